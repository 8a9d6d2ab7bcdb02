//! What clients ask of a cluster, and what they are told.

use serde::{Deserialize, Serialize};

/// What was asked. The record's key is the job's id, unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "f", content = "val", rename_all = "snake_case")]
pub enum Request {
    /// A job is submitted.
    Submit(Submit),
    /// A job is read.
    Get(Get),
    /// All jobs are listed, without a limit; no key.
    List(Get),
    /// A job is to be cancelled.
    Cancel,
    /// An agent reports the end of an attempt.
    Result(Attempted),
    /// A token is made; the key is the token's id.
    CreateToken(CreateToken),
    /// A token is made void; the key is the token's id.
    RevokeToken,
    /// Somebody wants to be let in; the key is the token's id.
    Enroll(Enroll),
    /// An identity is removed or revoked; the key is the identity (`role/id`).
    Revoke,
    /// Any call; the key is the identity of the caller (`role/id`).
    Call(Call),
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "f", content = "val", rename_all = "snake_case")]
pub enum Reply {
    /// It is in the queue.
    Submit(Submitted),
    /// Where the job stands; without a state: there is none.
    Get(JobView),
    /// All jobs.
    List(Listed),
    /// Where the job stands once the request was applied.
    Cancel(CancelAccepted),
    /// It was acknowledged.
    Result,
    /// The token is known.
    CreateToken,
    /// The token is void.
    RevokeToken,
    /// Who was let in.
    Enroll(Enrolled),
    /// The identity is void.
    Revoke,
    /// It was served.
    Call,
}

/// Why an operation did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// As in [`Request`].
    pub f: String,
    /// The stable code of the answer, such as `no_quorum`; empty where there was none.
    pub code: String,
    /// For people.
    pub message: String,
}

/// How the payload of a job begins that is its own outside witness.
pub const WITNESS: &str = "witness ";

/// See [`Request::Submit`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submit {
    /// Tells payloads apart: equal ones are equal here, too.
    pub payload: String,
    /// The user's idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Who submits, to whom idempotency keys are scoped; empty: the run's one identity.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub caller: String,
    /// The job's run time with that of what must run before it; absent: it is not meant to end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<u64>,
    /// What it needs beside a slot.
    #[serde(default, skip_serializing_if = "Capacity::is_zero")]
    pub needs: Capacity,
}

/// What jobs need and workers have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capacity {
    /// Jobs at once; a job needs one, whatever stands here.
    pub slots: u64,
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// MiB.
    pub memory_mb: u64,
    /// A worker that takes no other jobs than those made for it, or such a job.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reserved: bool,
}

impl Capacity {
    fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// How something is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Get {
    /// From the node's own state, which may be old.
    pub stale: bool,
}

/// See [`Reply::Submit`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submitted {
    /// The job's id: another one's where the idempotency key named it.
    pub job: String,
    /// Whether it was there before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub existing: bool,
}

/// Where a job stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobView {
    /// Absent: there is no such job.
    #[serde(default)]
    pub state: Option<JobState>,
    /// The number of the newest attempt; 0 before the first.
    #[serde(default)]
    pub attempt: u32,
    /// How its process ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Its attempts, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<AttemptView>,
}

/// See [`Reply::Cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelAccepted {
    /// Cancelled, or what it still is.
    pub state: JobState,
}

/// One attempt of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptView {
    /// 1, 2, 3 …
    pub number: u32,
    /// The index of its Assign.
    pub fence: u64,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub worker: String,
}

/// As the product spells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the product's states")]
pub enum JobState {
    Pending,
    Scheduled,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    Timeout,
}

impl JobState {
    /// Whether nothing can change any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Timeout)
    }
}

/// See [`Reply::List`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// Ids.
    pub jobs: Vec<String>,
}

/// See [`Request::Result`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempted {
    /// Which attempt.
    pub attempt: u32,
    /// Under which fence.
    pub fence: u64,
    /// How its process ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// See [`Request::CreateToken`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// How many parties it lets in.
    pub uses: u32,
    /// For how long it may be used; absent: longer than the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

/// See [`Request::Enroll`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enroll {
    /// Kept by the party until it is let in.
    pub nonce: String,
    /// The party's public key.
    pub public_key: String,
}

/// See [`Reply::Enroll`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolled {
    /// `role/id`.
    pub identity: String,
}

/// See [`Request::Call`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// `Service/Method`.
    pub rpc: String,
}

impl Request {
    /// `f` in the record.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Submit(_) => "submit",
            Self::Get(_) => "get",
            Self::List(_) => "list",
            Self::Cancel => "cancel",
            Self::Result(_) => "result",
            Self::CreateToken(_) => "create_token",
            Self::RevokeToken => "revoke_token",
            Self::Enroll(_) => "enroll",
            Self::Revoke => "revoke",
            Self::Call(_) => "call",
        }
    }
}

impl Reply {
    /// `f` in the record.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Submit(_) => "submit",
            Self::Get(_) => "get",
            Self::List(_) => "list",
            Self::Cancel(_) => "cancel",
            Self::Result => "result",
            Self::CreateToken => "create_token",
            Self::RevokeToken => "revoke_token",
            Self::Enroll(_) => "enroll",
            Self::Revoke => "revoke",
            Self::Call => "call",
        }
    }
}
