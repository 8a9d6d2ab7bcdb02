//! Bytes of everything that this crate stores or sends: a version byte, then bincode of a frozen struct of our own.
//!
//! bincode is not self-describing, so a struct that was ever written is never changed: a new shape is a new version.
//! openraft's types never reach a disk or a wire themselves; the conversions are all here. Decoding checks that every
//! byte was used and allocates no more than the input can justify.
//!
//! A batch of commands ([`encode_batch`]) is the data of one log entry. Each command is encoded once, by the node that
//! took it from its client ([`encode_command`]); joining them costs a copy.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use hodei_state::{command::Envelope, ids::Millis};
use openraft::{EntryPayload, Membership, StoredMembership, alias::StoredMembershipOf};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::types::{Batch, Entry, LogId, TypeConfig, Vote};

/// The version byte of all records and messages that exist so far.
pub const VERSION: u8 = 1;

/// No record or message decodes to more than this many bytes.
pub const LIMIT: usize = 256 << 20;

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Nothing there.
    #[error("empty record")]
    Empty,
    /// Written by a later version.
    #[error("record of version {0}, which this binary does not know")]
    Version(u8),
    /// Damaged, or of another shape.
    #[error("malformed record: {0}")]
    Malformed(String),
    /// Longer than its content.
    #[error("{0} bytes are left over after the record")]
    Trailing(usize),
}

impl From<DecodeError> for std::io::Error {
    fn from(error: DecodeError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<LIMIT>()
}

/// Version byte and bincode of `value`.
///
/// # Panics
/// If `value` cannot be serialized: none of this crate's types can fail to.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = vec![VERSION];
    bincode::serde::encode_into_std_write(value, &mut out, config()).expect("own records serialize into memory");
    out
}

/// The inverse of [`encode`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (&version, rest) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let (value, used) =
        bincode::serde::decode_from_slice(rest, config()).map_err(|e| DecodeError::Malformed(e.to_string()))?;
    if used != rest.len() {
        return Err(DecodeError::Trailing(rest.len() - used));
    }
    Ok(value)
}

/// One command as it travels from node to node and lies in the log: a batch of one in the core's own encoding.
pub fn encode_command(envelope: &Envelope) -> Bytes {
    hodei_state::codec::encode_batch(std::slice::from_ref(envelope)).into()
}

/// The inverse of [`encode_command`].
pub fn decode_command(bytes: &[u8]) -> Result<Envelope, DecodeError> {
    let mut batch =
        hodei_state::codec::decode_batch(bytes).map_err(|error| DecodeError::Malformed(error.to_string()))?;
    match (batch.pop(), batch.is_empty()) {
        (Some(envelope), true) => Ok(envelope),
        _ => Err(DecodeError::Malformed("expected exactly one command".to_owned())),
    }
}

/// The data of one log entry: version byte, then each encoded command behind its length (u32, little endian).
pub fn encode_batch<'a>(commands: impl Iterator<Item = &'a Bytes>, bytes: usize, count: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + bytes + 4 * count);
    out.put_u8(VERSION);
    for command in commands {
        out.put_u32_le(u32::try_from(command.len()).expect("a command is smaller than 4 GiB"));
        out.put_slice(command);
    }
    out.freeze()
}

/// The inverse of [`encode_batch`].
pub fn decode_batch(bytes: &[u8]) -> Result<Vec<Envelope>, DecodeError> {
    let (&version, mut rest) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let mut commands = Vec::new();
    while !rest.is_empty() {
        let (len, tail) = rest.split_first_chunk::<4>().ok_or(DecodeError::Trailing(rest.len()))?;
        let len = u32::from_le_bytes(*len) as usize;
        let (command, tail) = tail.split_at_checked(len).ok_or(DecodeError::Trailing(tail.len()))?;
        commands.push(decode_command(command)?);
        rest = tail;
    }
    Ok(commands)
}

/// Term and index of a log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogIdV1 {
    /// The term of the leader that proposed it.
    pub term: u64,
    /// Its place in the log.
    pub index: u64,
}

impl From<LogId> for LogIdV1 {
    fn from(id: LogId) -> Self {
        Self { term: **id.committed_leader_id(), index: id.index() }
    }
}

impl From<LogIdV1> for LogId {
    fn from(id: LogIdV1) -> Self {
        Self::new(id.term.into(), id.index)
    }
}

/// A vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteV1 {
    /// The term voted in.
    pub term: u64,
    /// The node voted for.
    pub node: u64,
    /// Whether a quorum granted it.
    pub committed: bool,
}

impl From<Vote> for VoteV1 {
    fn from(vote: Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<VoteV1> for Vote {
    fn from(vote: VoteV1) -> Self {
        if vote.committed { Self::new_committed(vote.term, vote.node) } else { Self::new(vote.term, vote.node) }
    }
}

/// Who votes and who only listens. Two voter sets: a change is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipV1 {
    /// Voter sets; each needs a majority of its own.
    pub configs: Vec<BTreeSet<u64>>,
    /// All nodes, learners too.
    pub nodes: BTreeSet<u64>,
}

impl From<&Membership<u64, ()>> for MembershipV1 {
    fn from(membership: &Membership<u64, ()>) -> Self {
        Self { configs: membership.get_joint_config().clone(), nodes: membership.nodes().map(|(id, ())| *id).collect() }
    }
}

impl MembershipV1 {
    /// Checked: every voter is a node, no voter set is empty.
    pub fn into_membership(self) -> Result<Membership<u64, ()>, DecodeError> {
        if self.configs.is_empty() && self.nodes.is_empty() {
            return Ok(Membership::default());
        }
        let nodes: BTreeMap<u64, ()> = self.nodes.into_iter().map(|id| (id, ())).collect();
        Membership::new(self.configs, nodes).map_err(|e| DecodeError::Malformed(e.to_string()))
    }
}

/// A membership and the entry that it came with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMembershipV1 {
    /// None before the first.
    pub log_id: Option<LogIdV1>,
    /// The membership.
    pub membership: MembershipV1,
}

impl From<&StoredMembershipOf<TypeConfig>> for StoredMembershipV1 {
    fn from(stored: &StoredMembershipOf<TypeConfig>) -> Self {
        Self { log_id: (*stored.log_id()).map(Into::into), membership: stored.membership().into() }
    }
}

impl StoredMembershipV1 {
    /// See [`MembershipV1::into_membership`].
    pub fn into_stored(self) -> Result<StoredMembershipOf<TypeConfig>, DecodeError> {
        Ok(StoredMembership::new(self.log_id.map(Into::into), self.membership.into_membership()?))
    }
}

/// A log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryV1 {
    /// Term and index.
    pub id: LogIdV1,
    /// What it says.
    pub payload: PayloadV1,
}

/// What a log entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PayloadV1 {
    /// The first entry of a term.
    Blank,
    /// Commands.
    Batch {
        /// The leader's stamp, milliseconds since the epoch.
        at: u64,
        /// See [`encode_batch`].
        commands: Bytes,
    },
    /// A change of membership.
    Membership(MembershipV1),
}

impl From<Entry> for EntryV1 {
    fn from(entry: Entry) -> Self {
        let payload = match entry.payload {
            EntryPayload::Blank => PayloadV1::Blank,
            EntryPayload::Normal(batch) => PayloadV1::Batch { at: batch.at.0, commands: batch.commands },
            EntryPayload::Membership(membership) => PayloadV1::Membership((&membership).into()),
        };
        Self { id: entry.log_id.into(), payload }
    }
}

impl EntryV1 {
    /// Fails on a membership that cannot be.
    pub fn into_entry(self) -> Result<Entry, DecodeError> {
        let payload = match self.payload {
            PayloadV1::Blank => EntryPayload::Blank,
            PayloadV1::Batch { at, commands } => EntryPayload::Normal(Batch { at: Millis(at), commands }),
            PayloadV1::Membership(membership) => EntryPayload::Membership(membership.into_membership()?),
        };
        Ok(Entry { log_id: self.id.into(), payload })
    }
}
