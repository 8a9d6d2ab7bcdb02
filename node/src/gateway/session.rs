//! The owner task of one worker's stream.
//!
//! It holds everything that is known of the worker's attempts on this stream and is the only one that touches it. It
//! never waits for a commit: proposals run beside it, so that heartbeats and log lines pass meanwhile.

mod errands;
mod inbound;
mod outbound;
mod room;
mod secrets;

use std::{
    collections::{BTreeMap, HashSet, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use futures::{
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered, StreamExt as _},
};
use hodei_proto::v1::{self, NodeMessage, WorkerMessage, node_message, worker_message};
use hodei_raft::{Handle, Topic};
use hodei_state::{
    State,
    command::{Command, Envelope},
    ids::{AttemptRef, Caller, JobId, WorkerId},
    outcome::{Outcome, Refusal},
    registry::SessionRef,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tonic::Status;

use self::errands::Finished;
pub use self::room::{Room, SentAway};
use super::{
    attempt::Attempt,
    reconcile::{Said, Truth},
    relay::{Down, Enlisted, Relay},
};
use crate::{
    convert::{from_proto, to_proto},
    error,
    logs::{
        frame::LogKey,
        hub::{Hub, Open},
    },
    secrets::Vault,
};

/// Messages that may wait for the agent to read them.
const OUT_QUEUE: usize = 256;
/// An agent that reads nothing for so long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// For the first message, and for the state to take it up.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
/// For a proposal; it is repeated.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The same when the node stops.
const LAST_PROPOSAL: Duration = Duration::from_millis(500);

/// What all streams of a node share.
#[derive(Clone)]
pub struct Gateway {
    /// The replicated state.
    pub handle: Handle,
    /// The log plane.
    pub hub: Hub,
    /// The way to the leader.
    pub relay: Relay,
    /// Opens secrets.
    pub vault: Arc<Vault>,
    /// Whom this node has sent away, since it has no room for their logs.
    pub sent_away: SentAway,
}

/// What an agent sends.
pub type Inbound = BoxStream<'static, Result<WorkerMessage, Status>>;

impl Gateway {
    /// Serves a stream of this worker until either side ends it.
    #[must_use]
    pub fn serve(&self, worker: WorkerId, inbound: Inbound) -> mpsc::Receiver<Result<NodeMessage, Status>> {
        let (out, receiver) = mpsc::channel(OUT_QUEUE);
        let gateway = self.clone();
        self.hub.spawn(async move {
            if let Err(status) = gateway.run(worker, inbound, &out).await {
                tracing::info!(%worker, why = status.message(), "worker stream ended");
                let _ = out.try_send(Err(status));
            }
        });
        receiver
    }

    async fn run(
        &self,
        worker: WorkerId,
        mut inbound: Inbound,
        out: &mpsc::Sender<Result<NodeMessage, Status>>,
    ) -> Result<(), Status> {
        let deadline = Instant::now() + ATTACH_TIMEOUT;
        let attach = first_message(&mut inbound, deadline).await?;
        let on = SessionRef { worker, session: from_proto::id(&attach.session_id, "session_id")? };
        let stream = attach.stream;
        let state = self.attach(on, stream, deadline).await?;
        tracing::info!(%worker, stream, attempts = attach.attempts.len(), "worker attached");
        let (down, orders) = mpsc::channel(64);
        let mut session = Session {
            gateway: self.clone(),
            on,
            stream,
            out: out.clone(),
            attempts: BTreeMap::new(),
            errands: FuturesUnordered::new(),
            jobs: FuturesUnordered::new(),
            watched: HashSet::new(),
            log_progress: Arc::new(Notify::new()),
            reported: None,
            asked: true,
            enlisted: self.relay.enlist(worker, down).await,
        };
        let ended = session.live(inbound, orders, state, &attach).await;
        let (superseded, result) = match ended {
            Ended::Superseded => (true, Err(Status::aborted("a newer stream of this worker is attached"))),
            Ended::Stopping => (false, Err(error::unavailable("the node is stopping"))),
            Ended::NoRoom => (false, Err(error::unavailable("this node's disk takes no logs"))),
            Ended::Gone => (false, Ok(())),
        };
        if !superseded {
            self.detach(on, stream).await;
        }
        result
    }

    /// Has the state take up the stream. Returns the state that knows it.
    async fn attach(&self, on: SessionRef, stream: u64, deadline: Instant) -> Result<State, Status> {
        let view = self.handle.read(deadline).await.map_err(error::read)?;
        match view.state.worker(on.worker) {
            Some(worker) if worker.session == on.session => {}
            _ => return Err(error::failed_precondition("the session is not open: register first")),
        }
        hodei_state::failpoint!("gateway::before-attach");
        let command = Command::AttachWorker { worker: on, stream, gateway: self.handle.node_id() };
        let envelope = Envelope { caller: Caller::Agent(on.worker), command };
        let reply = self.handle.propose(envelope, deadline).await.map_err(error::propose)?;
        match reply.outcome {
            Outcome::Refused(refusal @ Refusal::StaleStream { .. }) => Err(Status::aborted(refusal.to_string())),
            Outcome::Refused(refusal) => Err(error::refusal(&refusal)),
            _ => {
                self.handle.wait_applied(reply.position.index, deadline).await.map_err(error::read)?;
                Ok(self.handle.view().state)
            }
        }
    }

    /// The stream broke: says so, for as long as nobody else has said something newer.
    async fn detach(&self, on: SessionRef, stream: u64) {
        let within = if self.hub.stop().is_cancelled() { LAST_PROPOSAL } else { PROPOSE_TIMEOUT };
        hodei_state::failpoint!("gateway::before-detach");
        let command = Command::DetachWorker { worker: on, stream };
        let envelope = Envelope { caller: Caller::Node(self.handle.node_id()), command };
        if let Err(error) = self.handle.propose(envelope, Instant::now() + within).await {
            tracing::warn!(worker = %on.worker, %error, "cannot tell that a worker's stream broke");
        }
    }
}

async fn first_message(inbound: &mut Inbound, deadline: Instant) -> Result<v1::Attach, Status> {
    match timeout_at(deadline, inbound.next()).await {
        Ok(Some(Ok(WorkerMessage { kind: Some(worker_message::Kind::Attach(attach)) }))) => Ok(attach),
        Ok(Some(Ok(_))) => Err(error::invalid("kind", "Attach as the first message")),
        Ok(Some(Err(status))) => Err(status),
        Ok(None) => Err(Status::cancelled("the stream ended before it began")),
        Err(_) => Err(Status::deadline_exceeded("no Attach in time")),
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The agent, or its connection, is gone.
    Gone,
    /// Another stream of the worker is attached, or another session.
    Superseded,
    /// The node stops.
    Stopping,
    /// The node cannot keep what the agent prints; another one may.
    NoRoom,
}

/// See the module.
struct Session {
    gateway: Gateway,
    on: SessionRef,
    stream: u64,
    out: mpsc::Sender<Result<NodeMessage, Status>>,
    attempts: BTreeMap<AttemptRef, Attempt>,
    errands: FuturesUnordered<BoxFuture<'static, Finished>>,
    /// A change of these jobs may be a request to cancel.
    jobs: FuturesUnordered<BoxFuture<'static, (JobId, watch::Receiver<u64>)>>,
    watched: HashSet<JobId>,
    log_progress: Arc<Notify>,
    /// The attempts in the last heartbeat.
    reported: Option<Vec<v1::AttemptRef>>,
    /// The leader waits for a heartbeat.
    asked: bool,
    enlisted: Enlisted,
}

impl Session {
    async fn live(
        &mut self,
        mut inbound: Inbound,
        mut orders: mpsc::Receiver<Down>,
        state: State,
        attach: &v1::Attach,
    ) -> Ended {
        let stop = self.gateway.hub.stop().clone();
        let mut worker = self.gateway.handle.subscribe(Topic::Worker(self.on.worker));
        worker.mark_changed();
        if let Err(ended) = self.greet(&state, attach).await {
            return ended;
        }
        let progress = self.log_progress.clone();
        loop {
            let due = self.due();
            let step = tokio::select! {
                () = stop.cancelled() => Err(Ended::Stopping),
                message = inbound.next() => match message {
                    Some(Ok(WorkerMessage { kind: Some(kind) })) => self.take(kind).await,
                    Some(Ok(WorkerMessage { kind: None })) => Ok(()),
                    Some(Err(_)) | None => Err(Ended::Gone),
                },
                changed = worker.changed() => match changed {
                    Ok(()) => self.reconcile().await,
                    Err(_) => Err(Ended::Stopping),
                },
                Some((job, receiver)) = self.jobs.next() => {
                    self.rewatch(job, receiver);
                    self.reconcile().await
                }
                Some(finished) = self.errands.next() => self.finished(finished).await,
                () = progress.notified() => self.acknowledge_all().await,
                Some(order) = orders.recv() => self.order(order).await,
                () = sleep_until(due.unwrap_or_else(far)), if due.is_some() => self.reconcile().await,
                () = self.out.closed() => Err(Ended::Gone),
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    }

    /// Tells the agent that it is attached, and takes up what it says it has.
    async fn greet(&mut self, state: &State, attach: &v1::Attach) -> Result<(), Ended> {
        let peers = state.members().filter(|member| member.removed_at.is_none());
        let attached = v1::Attached {
            node_id: self.gateway.handle.node_id().to_string(),
            stream: self.stream,
            peers: peers.map(|member| member.address.clone()).collect(),
        };
        self.send(node_message::Kind::Attached(attached)).await?;
        let now = Instant::now();
        for status in &attach.attempts {
            let Ok(id) = from_proto::attempt(status.attempt.as_ref()) else { continue };
            let mut attempt = Attempt::new(id, now);
            attempt.said = match status.phase() {
                v1::attempt_status::Phase::Running => Said::Running,
                v1::attempt_status::Phase::Ended => Said::Ended,
                _ => Said::Starting,
            };
            attempt.known_last = status.last_sequence;
            if Truth::of(state, self.on, id) != Truth::Unknown {
                self.open_log(&mut attempt, Open::Existing).await;
                let from_sequence = attempt.next;
                let wanted = v1::LogWanted { attempt: Some(to_proto::attempt_ref(&id)), from_sequence };
                self.send(node_message::Kind::LogWanted(wanted)).await?;
            }
            self.attempts.insert(id, attempt);
            self.watch(id.job);
        }
        Ok(())
    }

    /// Whether the state knows this stream as the worker's. What another one has taken over is nothing to speak of any more:
    /// what the agent gave that one would be put behind this node's.
    fn check_current(&self, state: &State) -> Result<(), Ended> {
        let current = state.worker(self.on.worker).is_some_and(|worker| {
            worker.session == self.on.session
                && worker.stream == self.stream
                && worker.gateway == Some(self.gateway.handle.node_id())
        });
        if current { Ok(()) } else { Err(Ended::Superseded) }
    }

    /// Compares what the state says with what the agent says, and does what is needed.
    async fn reconcile(&mut self) -> Result<(), Ended> {
        let state = self.gateway.handle.view().state;
        self.check_current(&state)?;
        let now = Instant::now();
        let on = self.on;
        for live in state.live_attempts(on.worker).filter(|live| live.session == on.session) {
            if let Entry::Vacant(vacant) = self.attempts.entry(live.id) {
                vacant.insert(Attempt::new(live.id, now));
                self.watch(live.id.job);
            }
        }
        let ids: Vec<AttemptRef> = self.attempts.keys().copied().collect();
        for id in ids {
            self.pump(&state, id, now).await?;
        }
        Ok(())
    }

    /// The next time at which something is to be done should nothing happen.
    fn due(&self) -> Option<Instant> {
        self.attempts.values().filter_map(|attempt| attempt.due().into_iter().chain(attempt.quiet_until).min()).min()
    }

    fn watch(&mut self, job: JobId) {
        if self.watched.insert(job) {
            let receiver = self.gateway.handle.subscribe(Topic::Job(job));
            self.rewatch(job, receiver);
        }
    }

    fn rewatch(&mut self, job: JobId, mut receiver: watch::Receiver<u64>) {
        if self.attempts.keys().any(|id| id.job == job) || !self.watched.remove(&job) {
            self.watched.insert(job);
            self.jobs.push(Box::pin(async move {
                if receiver.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                (job, receiver)
            }));
        }
    }

    async fn send(&mut self, kind: node_message::Kind) -> Result<(), Ended> {
        let message = Ok(NodeMessage { kind: Some(kind) });
        match timeout(SEND_TIMEOUT, self.out.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Ended::Gone),
        }
    }

    /// Opens this node's copy of an attempt's log and continues it.
    async fn open_log(&mut self, attempt: &mut Attempt, open: Open) {
        let key = LogKey { job: attempt.id.job, attempt: attempt.id.attempt };
        match self.gateway.hub.copy(key, open).await {
            Ok(Some(file)) => {
                file.listen(self.log_progress.clone());
                attempt.next = file.progress().tally.next();
                attempt.file = Some(file);
                attempt.cannot_open = false;
            }
            Ok(None) => (attempt.file, attempt.next, attempt.cannot_open) = (None, 1, false),
            // One that has failed stays, so that this is tried again, with every batch that comes.
            Err(error) if std::mem::replace(&mut attempt.cannot_open, true) => {
                tracing::debug!(job = %key.job, attempt = key.attempt, %error, "still cannot open a log segment");
            }
            Err(error) => {
                tracing::error!(job = %key.job, attempt = key.attempt, %error, "cannot open a log segment");
            }
        }
    }
}

/// A time that never comes; only named where no time is due.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(86_400)
}
