//! The types that openraft is instantiated with.

use bytes::Bytes;
use hodei_state::{ids::Millis, outcome::Outcome};

/// One log entry's data: many commands, stamped once by the leader.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Batch {
    /// The leader's stamp.
    pub at: Millis,
    /// Encoded `Vec<Envelope>` (see [`crate::codec`]): encoded once by the leader, decoded once by each `apply`.
    pub commands: Bytes,
}

impl std::fmt::Display for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "batch at {} of {} bytes", self.at.0, self.commands.len())
    }
}

openraft::declare_raft_types!(
    /// Hodei's instance of openraft. One leader per term; addresses are no business of the membership.
    pub TypeConfig:
        D = Batch,
        R = Vec<Outcome>,
        NodeId = u64,
        Node = (),
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

/// A log id: term and index.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A vote.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
