//! Everything that can change the state. A new command goes to the end of [`Command`]: variants are positional on disk.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    flapping::SetAsideChange,
    ids::{AttemptRef, Caller, ClusterId, JobId, NodeId, Role, SecretId, SessionId, TokenId, UserId, WorkerId},
    job::{LogEnd, Reason},
    registry::{AgentInfo, SessionRef},
    score::{Choice, WeightsChange},
    spec::JobSpec,
};

/// A command and who asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Checked against revocation and against what the command needs.
    pub caller: Caller,
    /// What is asked.
    pub command: Command,
}

/// A change of state. Ids, nonces and random choices are inside, made by the proposer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of a cluster: its id, its authority and its first member (node 1).
    Init(Init),
    /// A node says who and where it is. Older start counters are ignored.
    NodeHello(NodeHello),
    /// A member is removed for good; its Raft membership follows by the reconcile loop.
    RemoveNode {
        /// Which.
        node: NodeId,
    },
    /// Every member can read commands of this level.
    SetFeatureLevel {
        /// The level.
        level: u32,
    },
    /// A new enrolment token.
    CreateToken(CreateToken),
    /// A token is void from here on.
    RevokeToken {
        /// Which.
        token: TokenId,
    },
    /// A party registers itself.
    UseToken(UseToken),

    /// Submits a job and puts it in the queue.
    SubmitJob(Box<SubmitJob>),
    /// Requests that a job be cancelled.
    CancelJob {
        /// Which.
        job: JobId,
        /// At most 256 bytes.
        reason: String,
    },
    /// Removes finished jobs (retention).
    RemoveJobs {
        /// Which; those that are unknown or not terminal are passed over.
        jobs: Vec<JobId>,
    },

    /// The scheduler's decision. Re-checked for capacity, state, session.
    Assign {
        /// The job; its next attempt must be `attempt`.
        job: JobId,
        /// 1, 2, 3 …
        attempt: u32,
        /// Where.
        on: SessionRef,
        /// Sequence of a confirmed heartbeat of that session.
        heartbeat: u64,
        /// Why there.
        choice: Choice,
    },
    /// The leader's verdict that an attempt's lease ran out.
    AttemptLost {
        /// Which.
        attempt: AttemptRef,
    },
    /// The leader's verdict that an attempt should have timed out long ago.
    AttemptOverdue {
        /// Which.
        attempt: AttemptRef,
    },

    /// An agent process takes over its worker.
    OpenSession(Box<OpenSession>),
    /// The worker's stream is with this gateway now. Older stream numbers are refused.
    AttachWorker {
        /// Whose.
        worker: SessionRef,
        /// Grows within the session.
        stream: u64,
        /// Where.
        gateway: NodeId,
    },
    /// The stream broke. Refused where a newer one is attached.
    DetachWorker {
        /// Whose.
        worker: SessionRef,
        /// Which stream.
        stream: u64,
    },
    /// The session ends for good.
    CloseSession {
        /// Whose.
        worker: SessionRef,
    },
    /// The process runs.
    JobStarted {
        /// Which attempt.
        attempt: AttemptRef,
        /// Who says so.
        by: SessionRef,
        /// Where its log lies, if there is any output yet.
        segment: Option<PlaceSegment>,
    },
    /// The attempt was never started and never will be.
    JobDeclined {
        /// Which attempt.
        attempt: AttemptRef,
        /// Who says so.
        by: SessionRef,
        /// Why.
        reason: String,
    },
    /// The attempt ended.
    JobResult {
        /// Which attempt.
        attempt: AttemptRef,
        /// Who says so.
        by: SessionRef,
        /// How.
        reason: Reason,
        /// What its log must add up to.
        log: LogEnd,
        /// Where its log lies, unless a command said so before.
        segment: Option<PlaceSegment>,
    },
    /// Where a further stretch of an attempt's log lies. Accepted for ended attempts too.
    PlaceLog {
        /// Which attempt.
        attempt: AttemptRef,
        /// Where.
        segment: PlaceSegment,
    },
    /// A worker gets no more jobs, until this is taken back. Replaces an earlier request, unless it is the same.
    DrainWorker(DrainWorker),
    /// The leader's verdict that the deadline of a drain has passed.
    DrainOverdue {
        /// Whose.
        worker: WorkerId,
        /// Of which request.
        nonce: u128,
    },
    /// A worker gets jobs again, whether it was drained or set aside. What was taken back from it stays so.
    UndrainWorker {
        /// Which.
        worker: WorkerId,
    },
    /// A worker is removed for good: its identity is void, and so are its keys.
    RemoveWorker {
        /// Which.
        worker: WorkerId,
        /// Although it has live attempts. That frees none of them: their leases are extended no more.
        force: bool,
    },

    /// Changes what counts when the scheduler chooses among workers, and when workers are set aside.
    ConfigureScheduler {
        /// The weights that change.
        weights: WeightsChange,
        /// What else changes.
        set_aside: SetAsideChange,
    },
    /// Tries an ended job once more: as a new job of the same spec, since what has ended stays so.
    RetryJob {
        /// The new job, made by the client.
        job: JobId,
        /// The one that has ended, but not succeeded.
        of: JobId,
    },
    /// The scheduler's decision to end an attempt for a job of higher priority. Re-checked for priorities and budget.
    Preempt {
        /// Which attempt.
        attempt: AttemptRef,
        /// The job that needs its room.
        for_job: JobId,
    },
    /// A secret, or a new version of one.
    PutSecret(Box<PutSecret>),
    /// A secret is removed.
    RemoveSecret {
        /// Its newest version.
        secret: SecretId,
    },
    /// The leader's verdict that a worker has been set aside for long enough.
    SetAsideOver {
        /// Which.
        worker: WorkerId,
    },
    /// A member that has lost what it had promised goes on under a new id. Its old one is void from here on; in the Raft
    /// membership the new one takes its place once it has caught up.
    ReplaceNode(ReplaceNode),
    /// Everybody else was lost for good: this member goes on alone, with what it has. Never proposed: an operator has it
    /// applied to the state of a node that does not run.
    Recover {
        /// Who is left.
        survivor: NodeId,
    },
}

/// See [`Command::PutSecret`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutSecret {
    /// Made by the client: repeating it succeeds again and changes nothing.
    pub secret: SecretId,
    /// By which jobs name it.
    pub name: String,
    /// Tells which key it is sealed with.
    pub key: [u8; 8],
    /// The value, sealed by whoever proposes it.
    pub sealed: Vec<u8>,
}

impl fmt::Debug for PutSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PutSecret {{ secret: {}, name: {:?}, {} sealed bytes }}", self.secret, self.name, self.sealed.len())
    }
}

/// See [`Command::Init`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// Made by the first node.
    pub cluster: ClusterId,
    /// DER.
    pub ca: Vec<u8>,
    /// The first member's address.
    pub address: String,
    /// SHA-256 of its public key.
    pub key: [u8; 32],
    /// Its version.
    pub version: String,
    /// What its binary speaks.
    pub feature_level: u32,
    /// The administrator that `init` made, and the hash of its key.
    pub admin: (UserId, [u8; 32]),
}

/// See [`Command::NodeHello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHello {
    /// Who; must be the caller.
    pub node: NodeId,
    /// host:port.
    pub address: String,
    /// Grows with each start of the node.
    pub start_counter: u64,
    /// Its version.
    pub version: String,
    /// What its binary speaks.
    pub feature_level: u32,
}

/// See [`Command::ReplaceNode`]. The caller is the member itself, by its old certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceNode {
    /// Who it was.
    pub node: NodeId,
    /// Made by it: repeating the request with the same key succeeds again with the same id.
    pub nonce: [u8; 16],
    /// SHA-256 of its new public key.
    pub key: [u8; 32],
    /// host:port.
    pub address: String,
    /// Its version.
    pub version: String,
    /// What its binary speaks.
    pub feature_level: u32,
}

/// See [`Command::CreateToken`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateToken {
    /// Made by the client: repeating it with the same content succeeds again.
    pub token: TokenId,
    /// What it grants.
    pub role: Role,
    /// SHA-256 of the secret.
    pub secret: [u8; 32],
    /// Validity from the command's stamp on.
    pub ttl_ms: u64,
    /// How many parties, 1 to 10,000.
    pub uses: u32,
}

/// See [`Command::UseToken`]. The caller is the node that serves the enrolment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UseToken {
    /// SHA-256 of the secret that was shown.
    pub secret: [u8; 32],
    /// What the token's text claims.
    pub role: Role,
    /// Made by the party.
    pub nonce: [u8; 16],
    /// SHA-256 of its public key.
    pub key: [u8; 32],
    /// The id for an agent, user or administrator, made by the proposer or the party; ignored for nodes.
    pub id: u128,
    /// A node's address.
    pub address: String,
    /// The party's version.
    pub version: String,
    /// What a node's binary speaks; below the cluster's level it may not join.
    pub feature_level: u32,
}

/// See [`Command::SubmitJob`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmitJob {
    /// Made by the client.
    pub job: JobId,
    /// SHA-256 of the submission as received, before defaults.
    pub digest: [u8; 32],
    /// At most 128 bytes.
    pub idempotency_key: Option<String>,
    /// Defaults filled in.
    pub spec: JobSpec,
}

/// See [`Command::OpenSession`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSession {
    /// The worker (the caller's id) and its new session.
    pub on: SessionRef,
    /// The session that this one follows, where the agent remembers one.
    pub previous: Option<SessionId>,
    /// What it offers and is.
    pub info: AgentInfo,
    /// Attempts taken over, running.
    pub adopted: Vec<AttemptRef>,
    /// Attempts that this process itself killed and saw empty.
    pub dead: Vec<AttemptRef>,
}

/// See [`Command::DrainWorker`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainWorker {
    /// Which.
    pub worker: WorkerId,
    /// Made by whoever asks.
    pub nonce: u128,
    /// What still runs so long after the command's stamp is taken back; absent: it may run to its end.
    pub deadline_ms: Option<u64>,
    /// What runs is taken back at once.
    pub requeue: bool,
    /// The session that is ending, where the worker's own agent asks; nobody else names one.
    pub session: Option<SessionId>,
}

/// A stretch of a log on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceSegment {
    /// The node that holds it.
    pub holder: NodeId,
    /// Sequence of its first entry.
    pub first_sequence: u64,
}

/// The id of a worker as it stands in a certificate.
impl From<WorkerId> for Caller {
    fn from(worker: WorkerId) -> Self {
        Self::Agent(worker)
    }
}

impl Command {
    /// The feature level from which on it may be proposed: every member can read it then.
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        1
    }
}
