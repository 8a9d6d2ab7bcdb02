//! The write-ahead log: the one place where this replica's log and vote live.
//!
//! # Concept
//!
//! Everything that Raft asks to be remembered becomes a [`Record`]: an entry appended, a vote, a truncation, a purge.
//! Records get consecutive log sequence numbers ([`Lsn`]) and go through one queue, in order, into *segments*: files
//! that are filled with zeros beforehand, written front to back once, and never recycled. Each record carries a CRC32C
//! salted by its segment, and the *chain*, a hash over all history up to it.
//!
//! Beside the segments lies the *high-water mark*: the LSN, chain and vote up to which this replica has ever promised
//! anything to anybody. It is what tells a torn tail (never promised, cut) from lost history (promised, quarantine).
//!
//! # Flow
//!
//! 1. [`Wal::submit`] gives records their LSNs, updates the in-memory [`index`], and queues them.
//! 2. The writer thread drains the queue into a group: one write, one fdatasync ([`engine`]).
//! 3. The marker thread writes the mark for the newest finished group, fdatasyncs it, and only then runs the callbacks
//!    of every group that it covers. It overlaps with the writer's next group ([`pipeline`]).
//! 4. The keeper thread prepares the next segment and removes those that a marked purge has freed, oldest first.
//!
//! A failed write or fsync ends the process ([`fatal`]); it is never retried, because after a failed fsync the kernel
//! may drop the data and report success next time.
//!
//! # Opening
//!
//! [`recover`] replays all segments, checking CRCs, LSNs, the chain, and each segment header's claims about what came
//! before it. The last segment is then rewritten as a new file with what is valid in it, synced, renamed over the old
//! one and marked, so that nothing is reported that only the page cache remembers. Anything missing or damaged at or
//! below the mark, or before the last segment, is [`OpenError::Quarantined`]: this replica forgot what it promised.
//!
//! # Deliberately missing
//!
//! Locking the directory (the node holds a lock on its data directory), detecting that the whole directory was
//! replaced by an older copy of itself (nothing in it could tell), compression, and recycling of segments (a recycled
//! file holds old records that only a checksum tells from new ones).

pub mod engine;
pub mod fatal;
pub mod index;
pub mod mark;
pub mod pipeline;
pub mod record;
pub mod recover;
pub mod salvage;
pub mod segment;
pub mod shape;
pub mod steps;

mod block;
mod durable;

use std::{fmt, io};

pub use durable::{Durable, DurablePoint};
pub use pipeline::{Done, Permit, Wal};
pub use record::{Body, Record};
pub use recover::Recovered;

/// A log sequence number: 1 for the first record of a log's life, then consecutive for ever.
pub type Lsn = u64;

/// An entry's place in Raft's log. Ordered as Raft orders logs: by term, then index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// The term of the leader that proposed it.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term, self.index)
    }
}

/// A vote: for whom in which term, and whether a quorum granted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vote {
    /// The term.
    pub term: u64,
    /// The node voted for.
    pub node: u64,
    /// Whether a quorum granted it.
    pub committed: bool,
}

/// How the log uses its disk and memory.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The size of a segment in bytes, header included; a record that does not fit gets a segment of its own size.
    pub segment_bytes: u64,
    /// At most so many bytes are written between two fdatasyncs, unless one submission is larger.
    pub group_bytes: usize,
    /// At most so many bytes wait in the queue; [`Wal::admit`] waits for room.
    pub queue_bytes: usize,
    /// Whether a missing log is an error (this node has served before) and not a new beginning.
    pub must_exist: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, group_bytes: 4 << 20, queue_bytes: 32 << 20, must_exist: false }
    }
}

/// Why a replica may not vote or serve: what an operator looks up. Each variant has a code and a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quarantine {
    /// The log, or all of its segments, are gone.
    Missing,
    /// The high-water mark is missing or cannot be read.
    Mark,
    /// Records at or below the high-water mark are missing or damaged.
    Damaged,
    /// Log and high-water mark are of different histories, or one is older than the other.
    Contradiction,
    /// A newer version of Hodei wrote this.
    Newer,
}

impl Quarantine {
    /// The code that messages and the documentation use.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Missing => "HODEI-STORAGE-010",
            Self::Mark => "HODEI-STORAGE-011",
            Self::Damaged => "HODEI-STORAGE-012",
            Self::Contradiction => "HODEI-STORAGE-013",
            Self::Newer => "HODEI-STORAGE-014",
        }
    }
}

/// Why a log does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// This replica forgot what it promised, or cannot tell: it must neither vote nor serve. Retrying does not help.
    #[error("{}: {what}", reason.code())]
    Quarantined {
        /// The kind of damage.
        reason: Quarantine,
        /// Where and what, for the operator.
        what: String,
    },
    /// The disk refused; nothing is known to be lost.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn quarantined(reason: Quarantine, what: impl Into<String>) -> Self {
        Self::Quarantined { reason, what: what.into() }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The operator-facing code, if this is a quarantine.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Quarantined { reason, .. } => Some(reason.code()),
            Self::Io { .. } => None,
        }
    }
}
