//! Keys of rows. Their bytes order as the keys do, so that storage keeps each table together and in key order.

use crate::{
    ids::{Caller, JobId, NodeId, SecretId, TokenId, UserId, WorkerId},
    job::{Attempt, Job, Segment},
    registry::{Cluster, Identity, Member, Token, TokenUse, Tombstone, Worker},
    secret::{Secret, SecretPart, SecretUse},
    table::RowValue,
};

/// Names one row. Variants are positional on disk: a new one goes to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// The newest stamp.
    Meta,
    /// The cluster; absent before it is initialised.
    Cluster,
    /// A member, removed ones included.
    Member(NodeId),
    /// Somebody to whom a certificate was issued.
    Identity(Caller),
    /// An enrolment token.
    Token(TokenId),
    /// One use of a token, by nonce.
    TokenUse(TokenId, [u8; 16]),
    /// A job.
    Job(JobId),
    /// Its spec.
    Spec(JobId),
    /// One of its attempts.
    Attempt(JobId, u32),
    /// Where a stretch of an attempt's log lies.
    Segment(JobId, u32, u32),
    /// A worker.
    Worker(WorkerId),
    /// What is kept of a removed job.
    Tombstone(JobId),
    /// A secret's newest version.
    Secret(SecretId),
    /// A stretch of its sealed value.
    SecretPart(SecretId, u32),
    /// Secrets were given to an attempt; by the place of its Assign in the log.
    SecretUse(u64, u32),
    /// Events in a row: the log index of the first of them, and its place within that entry.
    Events(u64, u32),
}

impl RowKey {
    /// Order-preserving bytes: the variant's number, then its parts in big endian.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(33);
        match self {
            Self::Meta => bytes.push(0),
            Self::Cluster => bytes.push(1),
            Self::Member(node) => put(&mut bytes, 2, &[&node.to_be_bytes()]),
            Self::Identity(caller) => {
                let (role, id) = caller_parts(caller);
                put(&mut bytes, 3, &[&[role], &id.to_be_bytes()]);
            }
            Self::Token(token) => put(&mut bytes, 4, &[&token.0.to_be_bytes()]),
            Self::TokenUse(token, nonce) => put(&mut bytes, 5, &[&token.0.to_be_bytes(), &nonce]),
            Self::Job(job) => put(&mut bytes, 6, &[&job.0.to_be_bytes()]),
            Self::Spec(job) => put(&mut bytes, 7, &[&job.0.to_be_bytes()]),
            Self::Attempt(job, n) => put(&mut bytes, 8, &[&job.0.to_be_bytes(), &n.to_be_bytes()]),
            Self::Segment(job, n, segment) => {
                put(&mut bytes, 9, &[&job.0.to_be_bytes(), &n.to_be_bytes(), &segment.to_be_bytes()]);
            }
            Self::Worker(worker) => put(&mut bytes, 10, &[&worker.0.to_be_bytes()]),
            Self::Tombstone(job) => put(&mut bytes, 11, &[&job.0.to_be_bytes()]),
            Self::Secret(id) => put(&mut bytes, 12, &[&id.0.to_be_bytes()]),
            Self::SecretPart(id, n) => put(&mut bytes, 13, &[&id.0.to_be_bytes(), &n.to_be_bytes()]),
            Self::SecretUse(index, offset) => put(&mut bytes, 14, &[&index.to_be_bytes(), &offset.to_be_bytes()]),
            Self::Events(index, offset) => put(&mut bytes, 15, &[&index.to_be_bytes(), &offset.to_be_bytes()]),
        }
        bytes
    }

    /// The reverse of [`Self::to_bytes`]; `None` for anything that it does not yield.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        let mut parts = Parts(rest);
        let key = match kind {
            0 => Self::Meta,
            1 => Self::Cluster,
            2 => Self::Member(parts.u64()?),
            3 => Self::Identity(caller_from_parts(parts.u8()?, parts.u128()?)?),
            4 => Self::Token(TokenId(parts.u128()?)),
            5 => Self::TokenUse(TokenId(parts.u128()?), parts.take()?),
            6 => Self::Job(JobId(parts.u128()?)),
            7 => Self::Spec(JobId(parts.u128()?)),
            8 => Self::Attempt(JobId(parts.u128()?), parts.u32()?),
            9 => Self::Segment(JobId(parts.u128()?), parts.u32()?, parts.u32()?),
            10 => Self::Worker(WorkerId(parts.u128()?)),
            11 => Self::Tombstone(JobId(parts.u128()?)),
            12 => Self::Secret(SecretId(parts.u128()?)),
            13 => Self::SecretPart(SecretId(parts.u128()?), parts.u32()?),
            14 => Self::SecretUse(parts.u64()?, parts.u32()?),
            15 => Self::Events(parts.u64()?, parts.u32()?),
            _ => return None,
        };
        parts.0.is_empty().then_some(key)
    }
}

fn put(bytes: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    bytes.push(kind);
    for part in parts {
        bytes.extend_from_slice(part);
    }
}

fn caller_parts(caller: Caller) -> (u8, u128) {
    match caller {
        Caller::Node(id) => (0, u128::from(id)),
        Caller::Agent(id) => (1, id.0),
        Caller::User(id) => (2, id.0),
        Caller::Admin(id) => (3, id.0),
    }
}

fn caller_from_parts(role: u8, id: u128) -> Option<Caller> {
    match role {
        0 => Some(Caller::Node(u64::try_from(id).ok()?)),
        1 => Some(Caller::Agent(WorkerId(id))),
        2 => Some(Caller::User(UserId(id))),
        3 => Some(Caller::Admin(UserId(id))),
        _ => None,
    }
}

/// What remains of a key's bytes.
struct Parts<'a>(&'a [u8]);

impl Parts<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.take().map(u128::from_be_bytes)
    }
}

/// The state's only row about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Meta {
    /// The newest stamp that was applied: time never goes back, over restarts too.
    pub(crate) stamp: crate::ids::Millis,
    /// The newest event that is not kept any more.
    pub(crate) dropped: crate::events::EventPosition,
}

macro_rules! rows {
    ($($value:ty, $key:ty, $parts:tt => $variant:ident $(($($part:ident),+))?;)*) => {
        $(impl RowValue for $value {
            type Key = $key;
            fn row_key(key: $key) -> RowKey {
                let $parts = key;
                RowKey::$variant $(($($part),+))?
            }
            fn key_of(row: RowKey) -> Option<$key> {
                if let RowKey::$variant $(($($part),+))? = row { Some($parts) } else { None }
            }
        })*
    };
}

rows! {
    Meta, (), () => Meta;
    Cluster, (), () => Cluster;
    Member, NodeId, node => Member(node);
    Identity, Caller, who => Identity(who);
    Token, TokenId, token => Token(token);
    TokenUse, (TokenId, [u8; 16]), (token, nonce) => TokenUse(token, nonce);
    Job, JobId, job => Job(job);
    Attempt, (JobId, u32), (job, n) => Attempt(job, n);
    Segment, (JobId, u32, u32), (job, n, segment) => Segment(job, n, segment);
    Worker, WorkerId, worker => Worker(worker);
    Tombstone, JobId, job => Tombstone(job);
    Secret, SecretId, id => Secret(id);
    SecretPart, (SecretId, u32), (id, n) => SecretPart(id, n);
    SecretUse, (u64, u32), (index, offset) => SecretUse(index, offset);
}
