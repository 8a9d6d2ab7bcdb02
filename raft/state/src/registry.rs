//! Workers, members, tokens and identities as rows of the state.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    flapping::{Flaps, SetAside, SetAsidePolicy},
    ids::{Caller, ClusterId, Millis, NodeId, Role, SessionId, TokenId, WorkerId},
    score::Weights,
    spec::Resources,
};

/// `Creating → Connecting → Ready ⇄ Busy → Draining → Terminating → Terminated`, and `Disconnected` beside Ready and Busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WorkerState {
    /// A provider makes it.
    Creating,
    /// It has a session and no stream yet.
    Connecting,
    /// It takes jobs and has none.
    Ready,
    /// It runs jobs; it takes more while its capacity lasts.
    Busy,
    /// Its stream is broken; leases run.
    Disconnected,
    /// It takes no new jobs.
    Draining,
    /// It is being taken down.
    Terminating,
    /// It is gone.
    Terminated,
}

/// What a worker offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Jobs at once.
    pub slots: u32,
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// MiB.
    pub memory_mb: u64,
    /// MiB.
    pub storage_mb: u64,
    /// Devices.
    pub gpu: u32,
}

impl Capacity {
    /// What one attempt takes: a slot and its resources.
    #[must_use]
    pub fn needed(resources: &Resources) -> Self {
        Self {
            slots: 1,
            cpu_millis: resources.cpu_millis,
            memory_mb: resources.memory_mb,
            storage_mb: resources.storage_mb,
            gpu: resources.gpu,
        }
    }

    /// Both together, saturating.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            slots: self.slots.saturating_add(other.slots),
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_mb: self.memory_mb.saturating_add(other.memory_mb),
            storage_mb: self.storage_mb.saturating_add(other.storage_mb),
            gpu: self.gpu.saturating_add(other.gpu),
        }
    }

    /// What is left of it; never below nothing, since a worker may come back with less than its attempts hold.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        Self {
            slots: self.slots.saturating_sub(other.slots),
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_mb: self.memory_mb.saturating_sub(other.memory_mb),
            storage_mb: self.storage_mb.saturating_sub(other.storage_mb),
            gpu: self.gpu.saturating_sub(other.gpu),
        }
    }

    /// The larger of both, each in its kind.
    #[must_use]
    pub fn or_more(&self, other: &Self) -> Self {
        Self {
            slots: self.slots.max(other.slots),
            cpu_millis: self.cpu_millis.max(other.cpu_millis),
            memory_mb: self.memory_mb.max(other.memory_mb),
            storage_mb: self.storage_mb.max(other.storage_mb),
            gpu: self.gpu.max(other.gpu),
        }
    }

    /// How often `needed` is there.
    #[must_use]
    pub fn times(&self, needed: &Self) -> u64 {
        let kinds = [
            (u64::from(self.slots), u64::from(needed.slots)),
            (self.cpu_millis, needed.cpu_millis),
            (self.memory_mb, needed.memory_mb),
            (self.storage_mb, needed.storage_mb),
            (u64::from(self.gpu), u64::from(needed.gpu)),
        ];
        kinds.into_iter().filter_map(|(there, needed)| there.checked_div(needed)).min().unwrap_or(u64::MAX)
    }

    /// Whether all of `needed` is there.
    #[must_use]
    pub fn holds(&self, needed: &Self) -> bool {
        self.slots >= needed.slots
            && self.cpu_millis >= needed.cpu_millis
            && self.memory_mb >= needed.memory_mb
            && self.storage_mb >= needed.storage_mb
            && self.gpu >= needed.gpu
    }
}

/// A request that a worker be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Made by whoever asks: the same request again changes nothing.
    pub nonce: u128,
    /// Who asked. What the worker's own agent asked for ends with its session.
    pub by: Caller,
    /// When.
    pub at: Millis,
    /// What runs then is taken back; absent: it may run to its end.
    pub deadline: Option<Millis>,
    /// What runs is being taken back.
    pub requeue: bool,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Its id.
    pub id: WorkerId,
    /// Where it stands.
    pub state: WorkerState,
    /// The agent process that speaks for it.
    pub session: SessionId,
    /// Sessions that are over, newest last, at most 16: a late command cannot open one of them again.
    pub past_sessions: Vec<SessionId>,
    /// The newest stream number attached within the session; 0: none yet.
    pub stream: u64,
    /// The node that holds its stream.
    pub gateway: Option<NodeId>,
    /// What it offers.
    pub capacity: Capacity,
    /// What live attempts have taken of it.
    pub used: Capacity,
    /// For constraints.
    pub labels: BTreeMap<String, String>,
    /// The agent's version.
    pub version: String,
    /// For example `x86_64`.
    pub architecture: String,
    /// Kernel release.
    pub kernel: String,
    /// Host name.
    pub hostname: String,
    /// Boot id of its machine.
    pub boot_id: String,
    /// Who made it; absent: it enrolled by itself.
    pub provider: Option<String>,
    /// First session.
    pub registered_at: Millis,
    /// The present session.
    pub opened_at: Millis,
    /// It is being emptied: it gets no more jobs, over reconnections and restarts, until this is taken back.
    pub drain: Option<Drain>,
    /// Removed: it never comes back.
    pub removed_at: Option<Millis>,
    /// How its newest attempts fared, in thousandths: 1,000 where all succeeded, 0 where all failed. An average in which
    /// each newer attempt weighs an eighth.
    pub recent: u16,
    /// What it has lost lately.
    pub flaps: Flaps,
    /// It gets no jobs for a while, because it has lost too much.
    pub set_aside: Option<SetAside>,
}

impl Worker {
    /// A worker that was removed is still kept for so long: seven days, as finished jobs are. Its identity stays void.
    pub const KEPT_MS: u64 = 7 * 24 * 3_600_000;
    /// No more than so many of them are kept.
    pub const MAX_REMOVED: usize = 1_000;

    /// When it was removed, where nothing holds it any more: no attempt is live on it.
    #[must_use]
    pub fn forgettable_since(&self) -> Option<Millis> {
        self.removed_at.filter(|_| self.state == WorkerState::Terminated)
    }

    /// [`Worker::recent`] of a worker that nothing is known of, and the best that it can be.
    pub const RECENT_BEST: u16 = 1_000;

    /// Takes up how an attempt ended: an average in which each newer attempt weighs an eighth, so that about the last
    /// twenty matter. Only exit code 0 is a success. What says nothing about the worker is to be left out: attempts
    /// that were cancelled or taken from it.
    pub(crate) fn learn(&mut self, succeeded: bool) {
        let kept = u32::from(self.recent.min(Self::RECENT_BEST)) * 7;
        // Rounded towards the newest, so that both ends can be reached again.
        let recent = if succeeded { (kept + u32::from(Self::RECENT_BEST)).div_ceil(8) } else { kept / 8 };
        self.recent = u16::try_from(recent).unwrap_or(Self::RECENT_BEST);
    }

    /// What live attempts leave of its capacity.
    #[must_use]
    pub fn free(&self) -> Capacity {
        self.capacity.minus(&self.used)
    }

    /// Whether it may be given jobs.
    #[must_use]
    pub fn takes_jobs(&self) -> bool {
        self.serves() && self.set_aside.is_none()
    }

    /// Whether it has a stream and is not being emptied.
    #[must_use]
    pub fn serves(&self) -> bool {
        matches!(self.state, WorkerState::Ready | WorkerState::Busy)
    }
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id, never reused.
    pub id: NodeId,
    /// Where it says it is: host:port. A hint.
    pub address: String,
    /// Orders the addresses: grows with each start.
    pub start_counter: u64,
    /// SHA-256 of its public key (SubjectPublicKeyInfo).
    pub key: [u8; 32],
    /// Its binary's version.
    pub version: String,
    /// Highest feature level that its binary speaks.
    pub feature_level: u32,
    /// When it enrolled.
    pub joined_at: Millis,
    /// Removed: never served again.
    pub removed_at: Option<Millis>,
    /// Whose place it took, and by which request.
    pub replaces: Option<(NodeId, [u8; 16])>,
    /// Who took its place, which is why it is removed.
    pub replaced_by: Option<NodeId>,
}

/// The cluster itself: one row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// DER certificates of the authorities that are trusted; the last one issues.
    pub ca_bundle: Vec<Vec<u8>>,
    /// What every member can read.
    pub feature_level: u32,
    /// The next node id to hand out.
    pub next_node_id: NodeId,
    /// What counts when the scheduler chooses among workers.
    pub weights: Weights,
    /// When workers that lose what they run are set aside.
    pub set_aside: SetAsidePolicy,
    /// When it last went on with one member alone, after the others were lost ([`crate::command::Command::Recover`]).
    pub recovered_at: Option<Millis>,
}

/// An enrolment token. Its secret is nowhere; its hash is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// What it grants.
    pub role: Role,
    /// SHA-256 of the secret.
    pub secret: [u8; 32],
    /// Who made it.
    pub created_by: Caller,
    /// When.
    pub created_at: Millis,
    /// Not valid from here on.
    pub expires_at: Millis,
    /// How many parties it may register.
    pub uses: u32,
    /// How many it has registered; each has a [`TokenUse`] row.
    pub used: u32,
    /// Not valid any more.
    pub revoked_at: Option<Millis>,
    /// When its last use was taken.
    pub used_up_at: Option<Millis>,
}

impl Token {
    /// A token lets nobody in any more and is still kept for so long after that: seven days, in which a party that never
    /// got the answer to its request may repeat it, and an administrator can see what became of the token.
    pub const KEPT_MS: u64 = 7 * 24 * 3_600_000;

    /// From when on it is forgotten.
    #[must_use]
    pub fn forgotten_at(&self) -> Millis {
        let over = [self.revoked_at, self.used_up_at].into_iter().flatten().fold(self.expires_at, Millis::min);
        over.plus(Self::KEPT_MS)
    }
}

/// One use of a token. The same nonce with the same key succeeds again; with another key it is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// Made and persisted by the party before it asks.
    pub nonce: [u8; 16],
    /// SHA-256 of its public key.
    pub key: [u8; 32],
    /// What it was registered as.
    pub issued: Caller,
}

/// Somebody to whom a certificate was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Who.
    pub who: Caller,
    /// SHA-256 of the public key.
    pub key: [u8; 32],
    /// When.
    pub issued_at: Millis,
    /// Not served any more.
    pub revoked_at: Option<Millis>,
}

/// What is kept of a removed job for an hour, so that a repeated submission is still recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Who had submitted it.
    pub owner: Caller,
    /// The key it was submitted under.
    pub idempotency_key: Option<String>,
    /// The digest of the submission.
    pub digest: [u8; 32],
    /// Until then.
    pub until: Millis,
}

/// Labels and capacity that an agent states when it opens a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// What it offers.
    pub capacity: Capacity,
    /// For constraints.
    pub labels: BTreeMap<String, String>,
    /// The agent's version.
    pub version: String,
    /// For example `x86_64`.
    pub architecture: String,
    /// Kernel release.
    pub kernel: String,
    /// Host name.
    pub hostname: String,
    /// Boot id of its machine.
    pub boot_id: String,
    /// Who made it.
    pub provider: Option<String>,
}

/// Reference to a worker within one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionRef {
    /// The worker.
    pub worker: WorkerId,
    /// The agent process.
    pub session: SessionId,
}
