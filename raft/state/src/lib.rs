//! The pure core of Hodei: what a cluster knows, how a command changes it, and what its leader decides.
//!
//! # Concept
//!
//! The cluster is a replicated state machine. Every node applies the same commands in the same order to its own
//! [`State`], and gets the same state and the same answers. This crate is that machine and nothing else:
//!
//! ```text
//! State::apply(index, offset, at, envelope) -> Outcome       the only way in which state changes
//! plan(state, liveness, now)                -> Plan          what the scheduler proposes
//! explain(state, hearing, now, subject)     -> Explanation   why a job waits, or is where it is
//! backlog(state, hearing, now)              -> Backlog       the whole queue, by what blocks it
//! Liveness::confirm, Liveness::expire                        which leases are extended, which have run out
//! retention(state, now, policy)             -> Command       which finished jobs go
//! ```
//!
//! All are functions of their arguments. Whoever calls them (the shell: crates `raft` and `node`) stores, sends, waits
//! and reads clocks.
//!
//! # Vocabulary
//!
//! - **Command**: a wish, with ids and random choices inside, made by its proposer. **Envelope**: a command and its
//!   caller. **Outcome**: what it came to; a refusal is an outcome like any other.
//! - **Stamp**: the leader's time, one per log entry, the only time that `apply` knows ([`ids::Millis`]).
//! - **Job**: what a user wants done. **Spec**: what it is; never changes. **Attempt**: one try on one worker.
//!   **Fence**: the log index of an attempt's Assign; whoever speaks about an attempt has to know it.
//! - **Worker**: an agent's installation. **Session**: one agent process; it owns attempts. **Stream**: its connection
//!   to a **gateway**, the node that speaks for it.
//! - **Row**: what is stored under one [`RowKey`]. **Index**: what is derived from rows, and never stored.
//!
//! # Flow of a job
//!
//! 1. `SubmitJob` makes a job and its spec, and puts it in the queue (`apply/jobs.rs`, `queue.rs`).
//! 2. [`plan()`] finds the best worker with room (`score.rs`) whose newest confirmed heartbeat is young enough, and
//!    yields `Assign`; or has a better one asked for a heartbeat first.
//! 3. `Assign` checks all that again, reserves the capacity and makes the attempt (`apply/scheduling.rs`).
//! 4. The worker's gateway sees the attempt in the state and has it run; `JobStarted`, `JobResult` or `JobDeclined` come
//!    back from the session that owns it (`apply/sessions.rs`).
//! 5. Meanwhile heartbeats extend the attempt's lease in [`Liveness`]; if they stop, it yields `AttemptLost`.
//! 6. The end of an attempt gives its capacity back and settles the job: ended, or pending again, within the retry
//!    budgets and after a backoff (`apply/ending.rs`).
//! 7. [`retention()`] removes what ended long ago; a tombstone recognises a repeated submission for another hour.
//!
//! # How it is kept
//!
//! Tables are persistent maps (`table.rs`): a clone is O(1), so that a snapshot or a reader never holds up `apply`. Each
//! write encodes its row once, for the write-behind, and keeps a rolling hash by which nodes are compared; specs stay as
//! bytes (`specs.rs`), so that a million pending jobs fit. Indexes
//! (`index.rs`) see to it that nothing costs O(all jobs).
//!
//! # Invariants, as absences
//!
//! No clock, no randomness, no I/O, no async, no threads, no floating point, no unordered map (`clippy.toml` bans them).
//! No panic on any command. No row over 3 KB. Nothing is stored that is not written through `store.rs`.
//! [`invariants::check`] checks a whole state; tests run it after every command.
//!
//! # Deliberately missing
//!
//! - Dependencies, arrays and images: the stored spec has room for them; [`validate::supported`]
//!   turns them away until they are carried out.
//! - Providers, revocation of single users.

#![forbid(unsafe_code)]

pub mod backlog;
pub mod codec;
pub mod command;
pub mod events;
pub mod explain;
pub mod failpoint;
pub mod flapping;
pub mod ids;
pub mod invariants;
pub mod job;
pub mod outcome;
pub mod registry;
pub mod score;
pub mod secret;
pub mod spec;
pub mod validate;

mod apply;
mod fit;
mod index;
mod liveness;
mod plan;
mod preemption;
mod queue;
mod ranking;
mod restore;
mod retention;
mod rows;
mod select;
mod specs;
mod state;
mod store;
mod table;

pub use index::Counts;
pub use liveness::{Grants, Hearing, Liveness};
pub use plan::{Now, Plan, plan};
pub use restore::CorruptRow;
pub use retention::{Retention, retention};
pub use rows::RowKey;
pub use select::{SelectError, SelectWorkerError};
pub use state::{Changes, State, payload_digests};

/// The highest feature level that this build reads and writes. Every command that exists so far is of level 1.
pub const FEATURE_LEVEL: u32 = 1;
