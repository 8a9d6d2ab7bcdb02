//! What a command came to. Every replica computes the same; a refusal is an outcome, never a panic.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{AttemptRef, Caller, ClusterId, JobId, Millis, NodeId, SessionId, WorkerId},
    job::JobState,
};

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done, nothing more to say.
    Done,
    /// It had been done before, or had become void: no change, and that is fine.
    Unchanged,
    /// A job is in the queue.
    Submitted {
        /// The job: the existing one where the idempotency key named one.
        job: JobId,
        /// Whether it had been submitted before.
        existing: bool,
    },
    /// A request to cancel is committed.
    CancelAccepted {
        /// Which job.
        job: JobId,
        /// Its state now.
        state: JobState,
    },
    /// An attempt exists.
    Assigned {
        /// With its fence.
        attempt: AttemptRef,
    },
    /// A token exists.
    TokenCreated {
        /// Not valid from here on.
        expires_at: Millis,
    },
    /// A party is registered.
    Enrolled {
        /// As whom.
        issued: Caller,
        /// In which cluster.
        cluster: ClusterId,
    },
    /// A session is open; these of its attempts are its own now.
    SessionOpened {
        /// Live attempts of the worker that this session owns.
        owned: Vec<AttemptRef>,
    },
    /// Jobs were removed.
    Removed {
        /// How many.
        jobs: u32,
    },
    /// Refused; nothing changed.
    Refused(Refusal),
    /// A secret has this version now.
    SecretPut {
        /// Its newest.
        version: u64,
    },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The cluster has been initialised before, or not at all.
    #[error("the cluster is already initialised, or not yet")]
    WrongClusterState,
    /// The caller's identity is unknown, removed or revoked.
    #[error("{caller} is not, or no longer, a party of this cluster")]
    CallerRevoked {
        /// Who.
        caller: Caller,
    },
    /// The caller may not do this.
    #[error("{caller} may not do this")]
    NotAllowed {
        /// Who.
        caller: Caller,
    },
    /// A value is out of its bounds.
    #[error("{field}: expected {expected}")]
    Invalid {
        /// Path of the field, for example `resources.cpu_cores`.
        field: String,
        /// What was expected.
        expected: String,
    },
    /// No such job.
    #[error("no job {job}")]
    UnknownJob {
        /// Which.
        job: JobId,
    },
    /// No such worker.
    #[error("no worker {worker}")]
    UnknownWorker {
        /// Which.
        worker: WorkerId,
    },
    /// No such member.
    #[error("no node {node}")]
    UnknownNode {
        /// Which.
        node: NodeId,
    },
    /// The id or idempotency key was used with another payload.
    #[error("job {job} exists with another payload")]
    PayloadMismatch {
        /// The existing job.
        job: JobId,
    },
    /// The job was removed and its id is not free again.
    #[error("job {job} was finished and removed")]
    JobRemoved {
        /// Which.
        job: JobId,
    },
    /// The job has ended.
    #[error("job {job} has already ended: {state:?}")]
    AlreadyTerminal {
        /// Which.
        job: JobId,
        /// How.
        state: JobState,
    },
    /// The decision no longer fits the state (job not pending, attempt number, worker not ready).
    #[error("the decision is out of date: {why}")]
    OutOfDate {
        /// What changed.
        why: String,
    },
    /// The worker runs jobs.
    #[error("worker {worker} still runs jobs: {live}")]
    WorkerBusy {
        /// Which.
        worker: WorkerId,
        /// Live attempts.
        live: u32,
    },
    /// The worker was removed.
    #[error("worker {worker} was removed")]
    WorkerRemoved {
        /// Which.
        worker: WorkerId,
    },
    /// The worker's agent is ending.
    #[error("worker {worker} is drained by its own agent, which is ending")]
    WorkerEnding {
        /// Which.
        worker: WorkerId,
    },
    /// The worker has no room.
    #[error("worker {worker} has no room")]
    NoCapacity {
        /// Which.
        worker: WorkerId,
    },
    /// The attempt is no longer what the message is about.
    #[error("attempt {} of job {} is not live under fence {}", attempt.attempt, attempt.job, attempt.fence)]
    StaleFence {
        /// As named in the message.
        attempt: AttemptRef,
    },
    /// Another session owns the worker or the attempt.
    #[error("session {session} does not own it")]
    StaleSession {
        /// As named in the message.
        session: SessionId,
    },
    /// A newer stream is attached.
    #[error("stream {stream} is older than the attached one")]
    StaleStream {
        /// As named in the message.
        stream: u64,
    },
    /// No token has this secret.
    #[error("the token is not known to this cluster")]
    TokenUnknown,
    /// Its time is over.
    #[error("the token has expired")]
    TokenExpired,
    /// It has registered as many parties as it may.
    #[error("the token has been used")]
    TokenUsed,
    /// It was revoked.
    #[error("the token has been revoked")]
    TokenRevoked,
    /// It grants another role.
    #[error("the token is for another role")]
    TokenRole,
    /// The nonce was used with another key.
    #[error("the nonce was used with another key")]
    NonceReused,
    /// The binary does not speak what the cluster speaks.
    #[error("feature level {offered} is below the cluster's {required}")]
    FeatureLevel {
        /// What the binary speaks.
        offered: u32,
        /// What the cluster speaks.
        required: u32,
    },
    /// The last voter cannot be removed.
    #[error("the last member cannot be removed")]
    LastMember,
    /// The queue holds as many bytes as it may.
    #[error("the queue is full: {queued_bytes} bytes are queued")]
    QueueFull {
        /// How many bytes are queued.
        queued_bytes: u64,
    },
    /// Only what has ended without success is tried again.
    #[error("job {job} is {state:?}: only a job that failed, timed out or was cancelled is tried again")]
    NothingToRetry {
        /// Which.
        job: JobId,
        /// As what it stands.
        state: JobState,
    },
}
