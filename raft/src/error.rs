//! What can go wrong, named by what the caller does next.
//!
//! A write that failed is either certainly not done ([`NotDone`]: repeat it freely) or of unknown outcome
//! ([`ProposeError::Unknown`]: repeat it only under the same id, nonce or fence). A refusal by the state is neither: it
//! is a reply. A broken disk or a diverged state is no error of a request at all: it ends the process ([`Fatal`]).

use hodei_state::ids::NodeId;

use crate::wal::{OpenError, Quarantine};

/// A command was not, or perhaps not, carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It was not appended and never will be.
    #[error(transparent)]
    NotDone(#[from] NotDone),
    /// It may have been appended, and may still take effect.
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

/// Why a command was certainly not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// The leader has not heard from a majority lately, or could not be reached.
    #[error("no quorum: {0}")]
    NoQuorum(String),
    /// Nobody is known to lead.
    #[error("no quorum: no leader is known")]
    NoLeader,
    /// The leadership that the command was decided in is over.
    #[error("leadership of term {term} is over")]
    LeadershipOver {
        /// Which.
        term: u64,
    },
    /// More is waiting than this node takes on.
    #[error("overloaded: too many commands are waiting")]
    Overloaded,
    /// Larger than an entry may be.
    #[error("a command of {bytes} bytes is larger than {limit}")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
        /// [`crate::handle::MAX_COMMAND`].
        limit: usize,
    },
    /// The node is shutting down.
    #[error("the node is stopping")]
    Stopped,
}

/// A linearizable read was not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader confirmed by a majority could be asked within the deadline, or its answer was not applied here in time.
    #[error("no quorum: {0}")]
    NoQuorum(String),
    /// The node is shutting down.
    #[error("the node is stopping")]
    Stopped,
}

/// A change of membership or of leadership did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader can; ask this one.
    #[error("this node does not lead{}", leader.map_or_else(String::new, |id| format!("; node {id} does")))]
    NotLeader {
        /// Who leads, as far as is known.
        leader: Option<NodeId>,
    },
    /// Another change is under way; repeat it later.
    #[error("a membership change is under way")]
    InProgress,
    /// It cannot be done at all.
    #[error("{0}")]
    Refused(String),
    /// Leadership did change, but to another node than was wanted.
    #[error("node {leader} was elected instead, in term {term}")]
    OtherLeads {
        /// Who leads now.
        leader: NodeId,
        /// In this term.
        term: u64,
    },
    /// There is no majority for it, and nothing was done.
    #[error("no quorum: {0}")]
    NoQuorum(String),
    /// Not confirmed by a majority in time; it may still take effect.
    #[error("{0}")]
    Unknown(String),
    /// The node is shutting down.
    #[error("the node is stopping")]
    Stopped,
}

/// The replica did not start. Each has a code with a page under `docs/errors/`.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory or file could not be made or read.
    #[error("HODEI-STORAGE-004: {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The write-ahead log does not open. A quarantined replica must neither vote nor serve.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// Neither snapshot nor log suffice to rebuild the state.
    #[error("{STATE_UNREBUILDABLE}: the state cannot be rebuilt from what is on disk: {0}")]
    Unrebuildable(String),
    /// openraft refused.
    #[error("{RAFT_REFUSED}: {0}")]
    Raft(String),
}

impl StartError {
    /// Whether this replica has lost what it had promised, so that no retry helps, and nothing that it has left is worth
    /// keeping: it can go on as a new member only. What a newer version has written is not lost.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        match self {
            Self::Log(OpenError::Quarantined { reason, .. }) => *reason != Quarantine::Newer,
            Self::Unrebuildable(_) => true,
            Self::Log(OpenError::Io { .. }) | Self::Io { .. } | Self::Raft(_) => false,
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The operator-facing code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => STORAGE_IO,
            Self::Log(error) => error.code().unwrap_or(STORAGE_IO),
            Self::Unrebuildable(_) => STATE_UNREBUILDABLE,
            Self::Raft(_) => RAFT_REFUSED,
        }
    }
}

/// This replica must not go on; the process ends with the code in its log and a non-zero exit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Fatal {
    /// For example `HODEI-STATE-001`, which has a page under `docs/errors/`.
    pub code: &'static str,
    /// What happened.
    pub message: String,
}

/// A directory or file could not be made or read.
pub const STORAGE_IO: &str = "HODEI-STORAGE-001";
/// Neither snapshot nor log suffice to rebuild the state.
pub const STATE_UNREBUILDABLE: &str = "HODEI-STATE-002";
/// openraft did not start.
pub const RAFT_REFUSED: &str = "HODEI-RAFT-001";
/// The state differs from what a majority of the members computed at the same index.
pub const STATE_DIVERGED: &str = "HODEI-STATE-001";
/// A committed command that this binary cannot read.
pub const STATE_UNREADABLE: &str = "HODEI-STATE-003";
/// openraft stopped: a storage error, or a broken invariant.
pub const RAFT_STOPPED: &str = "HODEI-RAFT-002";
