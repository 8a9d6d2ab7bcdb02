//! The one door to the replicated state: cheap to clone, good on every node.
//!
//! ```text
//! propose ─ leads? ─ yes ─ queue ─ Coalescer ─ one entry, stamped ─ openraft ─ Machine ─ outcome to each waiter
//!                  └ no ── queue ─ Link ─ one call to the leader ─ Service ─ (the same there)
//! read ─ queue ─ Rounds ─ read index at the leader, one for all that wait ─ applied here? ─ View
//! ```
//!
//! Nothing here waits longer than its deadline says. Every task is owned by the handle's set and ends with
//! [`Handle::shutdown`].
//!
//! A replica whose state differs from what a majority computed at the same index stops itself
//! ([`Handle::fatal`], `HODEI-STATE-001`). It does not destroy anything: why they differ is worth knowing. The way back
//! is to remove its `db/` and `snapshots/` where the log reaches far enough, or to join it anew.

mod compare;
mod forward;
mod lead;
mod members;
pub(crate) mod propose;
mod quorum;
mod read;
mod start;
mod status;
mod transfer;

use std::sync::Arc;

use bytes::Bytes;
use hodei_state::{
    State,
    command::{Command, Envelope},
    ids::{Caller, NodeId},
    outcome::Outcome,
    spec::{Body, Execution, JobSpec},
};
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinSet, time::Instant};

use self::{forward::Forwarder, propose::Proposer, quorum::Quorum, read::ReadIndex};
pub use self::{
    lead::Leadership,
    propose::MAX_COMMAND,
    start::{start, start_simulated},
    status::{PeerStatus, Status},
    transfer::Led,
};
pub(crate) use self::{propose::Answer, read::confirm_here};
use crate::{
    codec,
    config::Config,
    error::{Fatal, NotDone, ProposeError, ReadError},
    log_store::Log,
    machine::{Machine, Replica, Snapshots, Topic, WriteBehind},
    network::{Service, peers::Peers},
    seam::blocking,
    types::{LogId, TypeConfig},
};

pub(crate) type Raft = openraft::Raft<TypeConfig, Machine>;

/// Where in the log something happened, or up to where a view reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The term of the entry.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

impl From<LogId> for Position {
    fn from(id: LogId) -> Self {
        Self { term: **id.committed_leader_id(), index: id.index() }
    }
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What it came to; a refusal is one of them.
    pub outcome: Outcome,
    /// The entry that it was in.
    pub position: Position,
}

/// The state as of a position; a cheap copy.
#[derive(Clone)]
pub struct View {
    /// The state.
    pub state: State,
    /// The last entry in it.
    pub position: Position,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("position", &self.position).finish_non_exhaustive()
    }
}

/// See the module.
#[derive(Clone)]
pub struct Handle {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) raft: Raft,
    log: Arc<dyn Log>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) peers: Peers,
    pub(crate) quorum: Quorum,
    leadership: watch::Sender<Leadership>,
    proposer: Proposer,
    forwarder: Forwarder,
    pub(crate) reads: ReadIndex,
    behind: WriteBehind,
    fatal: watch::Sender<Option<Fatal>>,
    stopping: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("node", &self.inner.config.node_id).finish_non_exhaustive()
    }
}

impl Handle {
    /// This node.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.inner.config.node_id
    }

    /// Has a command carried out, by whichever node leads, and waits for what it comes to.
    ///
    /// What was certainly not done is tried again until `deadline`; what may have been done, too, because commands are
    /// idempotent by id, nonce or fence. The error says which of the two it is at the end.
    pub async fn propose(&self, envelope: Envelope, deadline: Instant) -> Result<Reply, ProposeError> {
        let command = codec::encode_command(&envelope);
        if command.len() > MAX_COMMAND {
            return Err(NotDone::TooLarge { bytes: command.len(), limit: MAX_COMMAND }.into());
        }
        let mut leadership = self.inner.leadership.subscribe();
        let mut unknown = None;
        let mut not_done = NotDone::NoLeader;
        let mut pause = propose::PAUSE;
        loop {
            let part = *leadership.borrow_and_update();
            match self.attempt(part, &command, deadline).await {
                Some(Answer::Done(position, outcomes)) => {
                    let outcome = outcomes.into_iter().next();
                    let outcome = outcome.expect("an entry has one outcome per command");
                    return Ok(Reply { outcome, position });
                }
                Some(Answer::NotDone(why)) => {
                    if self.is_stopping() {
                        return Err(unknown.map_or(NotDone::Stopped.into(), ProposeError::Unknown));
                    }
                    not_done = why;
                }
                Some(Answer::Unknown(why)) => unknown = Some(why),
                None => {}
            }
            if Instant::now() >= deadline {
                return Err(unknown.map_or(not_done.into(), ProposeError::Unknown));
            }
            let until = deadline.min(Instant::now() + pause);
            if tokio::time::timeout_at(until, leadership.changed()).await.is_err() {
                pause = (pause * 2).min(propose::LONGEST_PAUSE);
            }
        }
    }

    /// One try; none where nobody leads.
    async fn attempt(&self, part: Leadership, command: &Bytes, deadline: Instant) -> Option<Answer> {
        let over = self.over(part);
        match part {
            Leadership::Leading { .. } => {
                Some(self.inner.proposer.submit(vec![command.clone()], None, deadline, over).await)
            }
            Leadership::Following { leader: Some(leader) } => {
                Some(self.inner.forwarder.submit(leader, command.clone(), deadline, over).await)
            }
            Leadership::Preparing { .. } | Leadership::Following { leader: None } => None,
        }
    }

    /// Resolves when `part` is no longer this node's.
    async fn over(&self, part: Leadership) {
        let mut leadership = self.inner.leadership.subscribe();
        // The sender is in the handle itself.
        drop(leadership.wait_for(|now| *now != part).await);
    }

    /// For a command that another node forwarded: tried here or not at all.
    pub(crate) async fn submit_forwarded(&self, command: Bytes, deadline: Instant) -> Answer {
        let mut leadership = self.inner.leadership.subscribe();
        let ready = leadership.wait_for(|part| !matches!(part, Leadership::Preparing { .. }));
        let part = match tokio::time::timeout_at(deadline, ready).await {
            Ok(Ok(part)) => *part,
            Ok(Err(_)) => return Answer::NotDone(NotDone::Stopped),
            Err(_) => return Answer::NotDone(NotDone::NoLeader),
        };
        if !matches!(part, Leadership::Leading { .. }) {
            return Answer::NotDone(NotDone::NoLeader);
        }
        self.inner.proposer.submit(vec![command], None, deadline, self.over(part)).await
    }

    /// For the leader's own loops: carried out in the leadership of `term` or not at all; never forwarded, never
    /// repeated. Commands are kept together in entries as far as they fit; the outcomes are in their order. Where not
    /// all were done, the error stands for all, and the loop looks at the state again.
    pub async fn propose_in_term(
        &self,
        term: u64,
        commands: Vec<Command>,
        deadline: Instant,
    ) -> Result<Vec<Outcome>, ProposeError> {
        let caller = Caller::Node(self.node_id());
        let mut outcomes = Vec::with_capacity(commands.len());
        let mut encoded =
            commands.into_iter().map(|command| codec::encode_command(&Envelope { caller, command })).peekable();
        while encoded.peek().is_some() {
            let mut bytes = 0;
            let mut group = Vec::new();
            while let Some(command) = encoded.next_if(|next| {
                group.is_empty() || (group.len() < propose::MAX_COMMANDS && bytes + next.len() <= propose::MAX_BYTES)
            }) {
                bytes += command.len();
                group.push(command);
            }
            let over = self.over(Leadership::Leading { term });
            match self.inner.proposer.submit(group, Some(term), deadline, over).await {
                Answer::Done(_, done) => outcomes.extend(done),
                Answer::NotDone(NotDone::NoLeader) => return Err(NotDone::LeadershipOver { term }.into()),
                Answer::NotDone(why) => return Err(why.into()),
                Answer::Unknown(why) => return Err(ProposeError::Unknown(why)),
            }
        }
        Ok(outcomes)
    }

    /// The state as of now or later: every write that was acknowledged anywhere before this call is in it.
    pub async fn read(&self, deadline: Instant) -> Result<View, ReadError> {
        let mut leadership = self.inner.leadership.subscribe();
        let mut pause = propose::PAUSE;
        let position = loop {
            leadership.borrow_and_update();
            let why = match self.inner.reads.confirm(deadline).await {
                Ok(position) => break position,
                Err(why) => why,
            };
            if self.is_stopping() {
                return Err(ReadError::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(ReadError::NoQuorum(why));
            }
            let until = deadline.min(Instant::now() + pause);
            if tokio::time::timeout_at(until, leadership.changed()).await.is_err() {
                pause = (pause * 2).min(propose::LONGEST_PAUSE);
            }
        };
        self.wait_applied(position.index, deadline).await?;
        Ok(self.view())
    }

    /// Waits until this node has applied the entry at `index`.
    pub async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<(), ReadError> {
        let mut applied = self.inner.replica.applied();
        let reached = applied.wait_for(|applied| applied.is_some_and(|id| id.index() >= index));
        match tokio::time::timeout_at(deadline, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ReadError::Stopped),
            Err(_) => Err(ReadError::NoQuorum(format!("this node has not caught up with entry {index}"))),
        }
    }

    /// The state as this node has it; it may be behind.
    #[must_use]
    pub fn view(&self) -> View {
        let held = self.inner.replica.held();
        View { state: held.state, position: held.applied.map(Position::from).unwrap_or_default() }
    }

    /// Looks at the state as this node has it without copying it, for what every request asks. `look` must be short:
    /// applying waits for it.
    pub fn inspect<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        self.inner.replica.with(|held| look(&held.state))
    }

    /// Wakes when something about `topic` was applied; the value is the index. Several changes may be one wake-up.
    #[must_use]
    pub fn subscribe(&self, topic: Topic) -> watch::Receiver<u64> {
        let applied = self.inner.replica.with(|held| held.applied.map_or(0, |id| id.index()));
        self.inner.replica.topics.subscribe(topic, applied)
    }

    /// Follows who leads.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// What a job's agent executes, from its row or its payload file.
    pub async fn execution(&self, spec: &JobSpec) -> Result<Execution, std::io::Error> {
        let bytes = match &spec.body {
            Body::Inline(bytes) => Bytes::copy_from_slice(bytes),
            Body::Payload { digest, .. } => {
                let (digest, replica) = (*digest, self.inner.replica.clone());
                blocking(move || replica.payloads.read(&digest)).await??
            }
        };
        hodei_state::codec::decode_execution(&bytes)
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string()))
    }

    /// Resolves once this node has applied everything that it may have acknowledged before it was restarted.
    /// `None` of patience: however long that takes.
    pub async fn recovered(&self, patience: Option<std::time::Duration>) -> bool {
        self.inner.raft.wait_for_recovery(patience).await.is_ok()
    }

    /// Resolves when this replica must not go on. The process is to end with the code and a non-zero status.
    pub async fn fatal(&self) -> Fatal {
        let mut fatal = self.inner.fatal.subscribe();
        match fatal.wait_for(Option::is_some).await.map(|fatal| fatal.clone()) {
            Ok(Some(fatal)) => fatal,
            _ => std::future::pending().await,
        }
    }

    /// The server side of `RaftService`, to be mounted behind the authorisation table.
    #[must_use]
    pub fn service(&self) -> Service {
        Service::new(self.clone())
    }

    /// Ends everything and writes what is staged. Whoever still waits is told that the node stops.
    pub async fn shutdown(&self) {
        if self.inner.stopping.send_replace(true) {
            return;
        }
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "openraft did not end cleanly");
        }
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock());
        tasks.shutdown().await;
        let inner = self.inner.clone();
        if blocking(move || inner.behind.stop()).await.is_err() {
            tracing::error!("the write-behind thread did not end cleanly");
        }
        if let Err(error) = self.inner.log.close().await {
            tracing::error!(%error, "the log did not close cleanly");
        }
    }

    pub(crate) fn feature_level(&self) -> u32 {
        self.inner.replica.with(|held| held.state.feature_level())
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.inner.stopping.borrow()
    }
}
