//! Replicates the state: a write-ahead log, a state machine, Raft between nodes, and one handle to all of it.
//!
//! # Concept
//!
//! Every node has the same log of commands and applies it to its own [`hodei_state::State`]. [openraft] decides what is
//! in the log; this crate is everything around it.
//!
//! ```text
//!             Handle (handle/)            the one door: propose, read, subscribe, members, status
//!                │
//!            openraft ───────── network/  gRPC to and from the other nodes
//!             │     │
//!   log_store.rs   machine/               the state in memory; sled, payload files and snapshots behind it
//!        wal/
//! ```
//!
//! # Vocabulary
//!
//! - **Command**, **envelope**, **outcome**: see `hodei_state`. **Batch**: the commands of one log entry, stamped once.
//! - **Position**: term and index of an entry. **View**: a copy of the state as of a position.
//! - **Leading**: elected, caught up and with a clock ([`handle::Leadership`]); only then commands are taken.
//! - **Read index**: where the log stood when a majority confirmed the leader.
//! - **Written behind**: on disk later than in memory, rebuildable from snapshot and log.
//!
//! # Life of a write
//!
//! 1. [`Handle::propose`] encodes the command. On a follower it goes to the leader over one stream
//!    (`handle/forward.rs`).
//! 2. On the leader the coalescer (`handle/propose.rs`) makes one entry of all that waits, with one stamp.
//! 3. openraft appends it to the log store and streams it to the followers (`network/append.rs`).
//! 4. When a majority has it durably, the state machine (`machine/`) applies it on every node; on the leader each
//!    waiter gets its outcome.
//! 5. The write-behind thread brings the changed rows to sled (`machine/behind.rs`); now and then a snapshot is built
//!    (`machine/snapshot`), and openraft purges the log behind it.
//!
//! # Invariants, as absences
//!
//! No acknowledgement before a majority has synced its log. No wall clock but as one voice in a majority. No command
//! decided in one leadership appended in another. No I/O in `apply`. No queue without a bound, no wait without a
//! deadline. openraft's own types never reach disk or wire ([`codec`]).
//!
//! # Deliberately missing
//!
//! Leases for reads (they trust clocks), leadership over several groups, repair of a diverged state.
//!
//! [openraft]: https://docs.rs/openraft

pub mod codec;
pub mod config;
pub mod error;
pub mod handle;
pub mod log_store;
mod machine;
pub mod network;
pub mod seam;
pub mod types;
pub mod wal;

pub use config::{Config, Dialer, Storage, Timing};
pub use error::{Fatal, MembershipError, NotDone, ProposeError, ReadError, StartError};
pub use handle::{Handle, Leadership, Led, PeerStatus, Position, Reply, Status, View, start, start_simulated};
pub use machine::{INLINE_LIMIT, Topic, salvage::Remains};
pub use network::{MAX_MESSAGE, Service};
