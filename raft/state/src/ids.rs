//! Identifiers and units. Ids are UUIDv7 made by the client and kept here as plain 128-bit numbers: the core makes none.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A Raft node's id: handed out by the state, never reused.
pub type NodeId = u64;

/// Milliseconds since the Unix epoch, stamped by the leader once per log entry; the only time that `apply` knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Millis(pub u64);

impl Millis {
    /// This time plus `ms` milliseconds, saturating.
    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// Milliseconds on the leader's monotonic clock, from an arbitrary origin. Never stored, never compared between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub u64);

impl Mono {
    /// This time plus `ms` milliseconds, saturating.
    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// Why a text is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a UUID such as 0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b")]
pub struct ParseIdError;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                format_uuid(self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                format_uuid(self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_uuid(text).map(Self)
            }
        }
    };
}

id!(
    /// A cluster.
    ClusterId
);
id!(
    /// A job.
    JobId
);
id!(
    /// A worker: one agent installation, whatever process it runs as.
    WorkerId
);
id!(
    /// A session: one agent process.
    SessionId
);
id!(
    /// An enrolment token; the secret is another matter.
    TokenId
);
id!(
    /// A version of a secret.
    SecretId
);
id!(
    /// A user or an administrator.
    UserId
);

fn format_uuid(value: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let hex = format!("{value:032x}");
    write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn parse_uuid(text: &str) -> Result<u128, ParseIdError> {
    let bytes = text.as_bytes();
    if bytes.len() != 36 || [8, 13, 18, 23].iter().any(|&at| bytes[at] != b'-') {
        return Err(ParseIdError);
    }
    let mut value = 0u128;
    for (at, &byte) in bytes.iter().enumerate() {
        if [8, 13, 18, 23].contains(&at) {
            continue;
        }
        let digit = (byte as char).to_digit(16).ok_or(ParseIdError)?;
        value = (value << 4) | u128::from(digit);
    }
    Ok(value)
}

/// One attempt of one job, with the fence that every message about it must carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptRef {
    /// The job.
    pub job: JobId,
    /// 1, 2, 3 …
    pub attempt: u32,
    /// The log index of the attempt's Assign.
    pub fence: u64,
}

/// Who speaks. Taken from the certificate by the shell, checked against revocation by `apply`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Caller {
    /// A member of the cluster.
    Node(NodeId),
    /// An agent; its worker bears the same id.
    Agent(WorkerId),
    /// May submit, read and cancel jobs.
    User(UserId),
    /// May also administer tokens, members, workers, providers and secrets.
    Admin(UserId),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node/{id}"),
            Self::Agent(id) => write!(f, "agent/{id}"),
            Self::User(id) => write!(f, "user/{id}"),
            Self::Admin(id) => write!(f, "admin/{id}"),
        }
    }
}

/// What an identity may do; a token grants exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// A member of the cluster.
    Node,
    /// An agent.
    Agent,
    /// Jobs.
    User,
    /// Jobs, tokens, members, providers, secrets.
    Admin,
}

impl Role {
    /// The spelling in tokens, certificates and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Agent => "agent",
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;
    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "node" => Ok(Self::Node),
            "agent" => Ok(Self::Agent),
            "user" => Ok(Self::User),
            "admin" => Ok(Self::Admin),
            _ => Err(UnknownRole),
        }
    }
}

/// The text names no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected one of node, agent, user, admin")]
pub struct UnknownRole;
