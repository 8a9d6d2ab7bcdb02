//! What nodes say to each other inside `RaftMessage.payload`. Frozen structs: see [`crate::codec`].

use bytes::Bytes;
use hodei_state::outcome::Outcome;
use serde::{Deserialize, Serialize};

use crate::codec::{EntryV1, LogIdV1, StoredMembershipV1, VoteV1};

/// Log entries, or none: a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendRequestV1 {
    /// The leader's.
    pub vote: VoteV1,
    /// Just before the entries.
    pub prev: Option<LogIdV1>,
    /// Consecutive.
    pub entries: Vec<EntryV1>,
    /// What is committed.
    pub commit: Option<LogIdV1>,
}

/// One per request, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppendResponseV1 {
    /// The follower's log matches, durably, through here.
    Matched(Option<LogIdV1>),
    /// It does not have this entry.
    Conflict(LogIdV1),
    /// It follows somebody else.
    HigherVote(VoteV1),
}

/// For a vote and for a pre-vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRequestV1 {
    /// The candidate's.
    pub vote: VoteV1,
    /// The end of its log.
    pub last: Option<LogIdV1>,
    /// The leader asked for this election: its lease does not protect it.
    pub transfer: bool,
}

/// See [`VoteRequestV1`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteResponseV1 {
    /// The voter's vote after it saw the request.
    pub vote: VoteV1,
    /// Whether it is granted.
    pub granted: bool,
    /// The end of the voter's log.
    pub last: Option<LogIdV1>,
}

/// Two ways to hand over leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransferRequestV1 {
    /// From the leader: stand for election now.
    Stand {
        /// The leader's vote.
        from: VoteV1,
        /// Who is to lead.
        to: u64,
        /// The end of the leader's log.
        last: Option<LogIdV1>,
    },
    /// From anybody to the leader: hand over.
    HandOver {
        /// To whom; the leader chooses where it is left open.
        to: Option<u64>,
    },
}

/// See [`TransferRequestV1`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransferResponseV1 {
    /// Under way.
    Accepted,
    /// Another vote came between.
    VoteChanged {
        /// As asked.
        expected: VoteV1,
        /// As is.
        actual: VoteV1,
    },
    /// The log is not durable as far as the leader's.
    LogNotFlushed {
        /// As asked.
        expected: Option<LogIdV1>,
        /// As is.
        actual: Option<LogIdV1>,
    },
    /// Not by this node.
    NotLeader {
        /// Who leads.
        leader: Option<u64>,
    },
    /// It cannot be done.
    Refused(String),
}

/// Names a snapshot file: the same id and length from the same node are the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SnapshotIdV1 {
    /// The last entry in it.
    pub last: Option<LogIdV1>,
    /// Bytes of the file.
    pub len: u64,
    /// CRC32C of its last bytes, which hold the count of rows and the last rows.
    pub tail: u32,
}

/// How far did we get, and what do you lack?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetRequestV1 {
    /// Which file.
    pub id: SnapshotIdV1,
    /// SHA-256 of each payload that it refers to.
    pub digests: Vec<[u8; 32]>,
}

/// See [`OffsetRequestV1`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetResponseV1 {
    /// Send from here.
    pub offset: u64,
    /// Positions, in the request, of the payloads that are not here.
    pub missing: Vec<u32>,
}

/// A snapshot in pieces: one `Begin`, then `File` from the offset on, then payloads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotPartV1 {
    /// First.
    Begin {
        /// The leader's.
        vote: VoteV1,
        /// Which file.
        id: SnapshotIdV1,
        /// The membership in it.
        membership: StoredMembershipV1,
    },
    /// Bytes of the file.
    File {
        /// Where they belong; consecutive.
        offset: u64,
        /// CRC32C of `bytes`.
        crc: u32,
        /// At most a megabyte.
        bytes: Bytes,
    },
    /// Bytes of a payload, pieces of one after the other.
    Payload {
        /// Of the whole.
        digest: [u8; 32],
        /// Where they belong; consecutive.
        offset: u64,
        /// Of the whole.
        len: u64,
        /// At most a megabyte.
        bytes: Bytes,
    },
}

/// The receiver's vote once the snapshot is installed, or refused for a higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotResponseV1 {
    /// The vote.
    pub vote: VoteV1,
}

/// Commands for the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardRequestV1 {
    /// Each answered by itself, in any order.
    pub commands: Vec<ForwardedV1>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardedV1 {
    /// Chosen by the sender.
    pub id: u64,
    /// Nobody waits any longer than this.
    pub timeout_ms: u64,
    /// See [`crate::codec::encode_command`].
    pub command: Bytes,
}

/// Answers that were ready together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardResponseV1 {
    /// By the sender's ids.
    pub answers: Vec<(u64, ForwardAnswerV1)>,
}

/// What became of a forwarded command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForwardAnswerV1 {
    /// Applied.
    Done {
        /// Where in the log.
        at: LogIdV1,
        /// What it came to.
        outcome: Outcome,
    },
    /// Certainly not appended by this node.
    NotDone(NotDoneV1),
    /// Perhaps appended.
    Unknown(String),
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotDoneV1 {
    /// No majority was heard from.
    NoQuorum(String),
    /// This node does not lead, or not yet.
    NoLeader,
    /// Too much is waiting.
    Overloaded,
    /// It is stopping.
    Stopped,
    /// The command cannot be read.
    Malformed(String),
}

/// Asks the leader for a read index. Empty: what matters is when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRequestV1;

/// See [`ReadRequestV1`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadResponseV1 {
    /// Whoever has applied up to here sees every write that was acknowledged before the question.
    Index(LogIdV1),
    /// Not by this node, or not confirmed by a majority.
    NotConfirmed(String),
}

/// Asks for [`ProbeResponseV1`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRequestV1 {
    /// Hashes from this index on.
    pub hashes_from: u64,
}

/// What a node knows of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResponseV1 {
    /// Milliseconds since the epoch.
    pub wall_clock: u64,
    /// What it has applied.
    pub applied: Option<LogIdV1>,
    /// Hashes can be compared only at the same level.
    pub feature_level: u32,
    /// Index and hash of the state after it, oldest first.
    pub hashes: Vec<(u64, u128)>,
}
