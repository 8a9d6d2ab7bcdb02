//! Jobs and attempts as rows of the state.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{AttemptRef, Caller, JobId, Millis, NodeId, SessionId, WorkerId},
    score::Choice,
};

/// `Pending → Scheduled → Running → Succeeded | Failed | Cancelled | Timeout`; back to `Pending` for a retry.
/// A terminal state never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum JobState {
    /// Waits in the queue.
    Pending,
    /// An attempt is assigned, its process not yet known to run.
    Scheduled,
    /// The process runs.
    Running,
    /// Terminal: exit code 0.
    Succeeded,
    /// Terminal.
    Failed,
    /// Terminal: a cancel was requested before it ended.
    Cancelled,
    /// Terminal: a deadline passed.
    Timeout,
}

impl JobState {
    /// Whether nothing can change any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Timeout)
    }
}

/// A job: what changes about it. Its spec is a row of its own and never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Who submitted it.
    pub owner: Caller,
    /// SHA-256 of the submission as received, before defaults.
    pub digest: [u8; 32],
    /// The submitter's key, scoped to the caller.
    pub idempotency_key: Option<String>,
    /// Log index of the submission: the queue's order.
    pub submitted_index: u64,
    /// Position within that entry, which may carry many commands.
    pub submitted_offset: u32,
    /// When.
    pub submitted_at: Millis,
    /// Where it stands.
    pub state: JobState,
    /// Why it ended; present exactly in terminal states. Boxed, because a million pending jobs have none.
    pub reason: Option<Box<Reason>>,
    /// Number of the newest attempt; 0 before the first.
    pub attempt: u32,
    /// A committed request to cancel.
    pub cancel: Option<Box<CancelRequest>>,
    /// Retries used.
    pub retries: RetriesUsed,
    /// Not to be scheduled before this time (backoff).
    pub not_before: Option<Millis>,
    /// The worker whose attempt failed last.
    pub avoid: Option<WorkerId>,
    /// First start of a process.
    pub started_at: Option<Millis>,
    /// When it became terminal.
    pub finished_at: Option<Millis>,
    /// The ended job that this one tries once more. Boxed, because few jobs are such.
    pub retry_of: Option<Box<JobId>>,
}

/// A committed request to cancel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// Who.
    pub by: Caller,
    /// Why, at most 256 bytes.
    pub reason: String,
    /// When it was committed.
    pub at: Millis,
}

/// Retries used of each budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetriesUsed {
    /// Lost to the infrastructure.
    pub infrastructure: u32,
    /// The job's own failures.
    pub failure: u32,
    /// Time-outs.
    pub timeout: u32,
    /// Ended for jobs of higher priority.
    pub preemption: u32,
}

/// What pays for another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Budget {
    /// For attempts that the infrastructure lost.
    Infrastructure,
    /// For the job's own failures.
    Failure,
    /// For time-outs.
    Timeout,
    /// For attempts that made room for a job of higher priority.
    Preemption,
}

/// What the end of an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    /// The job ended: this is no end that is made up for.
    End,
    /// Another attempt.
    Retry {
        /// What paid for it.
        budget: Budget,
        /// After its backoff.
        not_before: Option<Millis>,
    },
    /// Another attempt that nothing had to pay for.
    PutBack,
    /// The job ended: nothing was left of the budget that would have paid for another attempt.
    Spent {
        /// Which.
        budget: Budget,
    },
    /// The job ended: it was started as often as it may be at all.
    MaxAttempts,
}

/// One attempt. Live until `end` is set; live attempts hold their worker's capacity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Job, number and fence.
    pub id: AttemptRef,
    /// Where it runs.
    pub worker: WorkerId,
    /// Which agent process owns it.
    pub session: SessionId,
    /// The heartbeat sequence that its lease stands on at first.
    pub heartbeat: u64,
    /// Why it is there.
    pub choice: Choice,
    /// When it was assigned.
    pub assigned_at: Millis,
    /// When its process was reported to run.
    pub started_at: Option<Millis>,
    /// The leader's verdict that it should have timed out long ago: its lease is extended no more, and it ends as
    /// timed out when that runs out, unless its session reports first.
    pub overdue_at: Option<Millis>,
    /// It is to be stopped and its job put back, although nothing is wrong with either. Its agent is told as it is of
    /// a request to cancel; its lease is extended for the grace period only.
    pub taken_back: Option<TakenBack>,
    /// How it ended.
    pub end: Option<AttemptEnd>,
}

impl Attempt {
    /// Whether it has not ended; live attempts hold their worker's capacity.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.end.is_none()
    }
}

/// Why an attempt is taken from its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TakenBack {
    /// Its worker is being emptied, or was removed. The job pays for it from no budget.
    Drained,
    /// It makes room for a job of higher priority. How often a job may be preempted is a budget of its own, which is
    /// looked at before: preemption never ends a job.
    Preempted {
        /// Which.
        for_job: JobId,
    },
}

/// What freed an attempt: nothing else ever does (`docs/leases.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndedBy {
    /// Its session reported a result.
    Result,
    /// Its session never started it and never will.
    Declined,
    /// Its lease ran out.
    Expiry,
    /// A later session of its worker killed what was left of it and saw that nothing is.
    Dead,
}

/// The end of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptEnd {
    /// When it was committed.
    pub at: Millis,
    /// Who freed it.
    pub by: EndedBy,
    /// Why.
    pub reason: Reason,
    /// The figures of its log; absent for a lost attempt.
    pub log: Option<LogEnd>,
    /// What came of it.
    pub next: Next,
}

/// Why a job or an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The process exited.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// A signal ended it.
    Signaled {
        /// The signal's number.
        signal: i32,
    },
    /// The kernel ended it for its memory.
    OutOfMemory,
    /// Its lease ran out, or its worker reported it dead.
    WorkerLost {
        /// What is known.
        message: String,
    },
    /// No worker could be provisioned for it.
    NotProvisioned {
        /// What the provider said.
        message: String,
    },
    /// Cancelled; keeps how the process ended where it had one.
    Cancelled {
        /// Who.
        by: Caller,
        /// The reason given.
        reason: String,
        /// The exit code, where there was one.
        exit_code: Option<i32>,
        /// The signal, where there was one.
        signal: Option<i32>,
    },
    /// A deadline passed.
    Timeout {
        /// Which.
        deadline: Deadline,
    },
    /// The process could not be made.
    CouldNotStart {
        /// What kind of obstacle.
        cause: StartFailure,
        /// What the system said.
        message: String,
    },
    /// Taken from its worker, which gave it back; keeps how the process ended where it had one. Ends a job only where
    /// that may not be started once more.
    TakenBack {
        /// For what.
        why: TakenBack,
        /// The exit code, where there was one.
        exit_code: Option<i32>,
        /// The signal, where there was one.
        signal: Option<i32>,
    },
}

impl Reason {
    /// The exit code, where the process had one.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Exited { code } => Some(*code),
            Self::Cancelled { exit_code, .. } | Self::TakenBack { exit_code, .. } => *exit_code,
            _ => None,
        }
    }

    /// Whether it tells that there was a process.
    #[must_use]
    pub fn had_process(&self) -> bool {
        match self {
            Self::Exited { .. }
            | Self::Signaled { .. }
            | Self::OutOfMemory
            | Self::Timeout { deadline: Deadline::Run } => true,
            Self::Cancelled { exit_code, signal, .. } | Self::TakenBack { exit_code, signal, .. } => {
                exit_code.is_some() || signal.is_some()
            }
            Self::WorkerLost { .. }
            | Self::NotProvisioned { .. }
            | Self::CouldNotStart { .. }
            | Self::Timeout { deadline: Deadline::Backstop } => false,
        }
    }
}

/// Which deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deadline {
    /// The job's own time-out, seen by the agent.
    Run,
    /// The same, seen by the leader after the agent should have acted.
    Backstop,
}

/// Why a process could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartFailure {
    /// No such command or interpreter: exit code 127.
    NotFound,
    /// Not executable, no permission, no such user: exit code 126.
    NotPermitted,
    /// Anything else: exit code 126.
    Other,
    /// A secret that it names was removed before it started: exit code 126.
    NoSecret,
    /// Its working directory is not there, or no directory: exit code 126.
    NoDirectory,
}

/// The figures that an attempt's log is checked against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// Sequence of the last entry; 0: no output.
    pub last_sequence: u64,
    /// Entries that are output.
    pub lines: u64,
    /// Lines that gap records stand for.
    pub dropped: u64,
    /// Bytes of output.
    pub bytes: u64,
    /// CRC-32C as `LogEnd.checksum` on the wire.
    pub checksum: u32,
}

/// Where a stretch of an attempt's log lies. Segments are numbered 1, 2, 3 … within the attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// Its number.
    pub number: u32,
    /// Sequence of its first entry.
    pub first_sequence: u64,
    /// Nodes that hold some of it, in the order in which the agent came to them. To each it delivers all of it anew: the
    /// last one has the most, once the agent is done.
    pub holders: Vec<NodeId>,
}
