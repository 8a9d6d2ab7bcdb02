//! One leadership: the table of leases and the scheduler.
//!
//! A single task owns the table. It never waits for the log: one read index and one proposal may be under way, and
//! what arrives meanwhile is gathered for the next. A heartbeat counts only after a read index that began after it
//! arrived, so that a leader that is none any more extends nothing.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use hodei_proto::v1::{LeaseExtended, LivenessResponse, RelayedHeartbeat, WorkerGrants};
use hodei_raft::{Handle, ProposeError, ReadError, Topic, View};
use hodei_state::{
    Grants, Liveness, Now, State,
    command::Command,
    ids::{AttemptRef, Millis, Mono, NodeId, WorkerId},
    outcome::Outcome,
    plan,
    registry::SessionRef,
    score::Usage,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::door::Message;
use crate::convert::{from_proto, to_proto};

const READ_TIMEOUT: Duration = Duration::from_secs(2);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// A worker is asked for a heartbeat at most this often.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// After a proposal that came to nothing.
const PAUSE: Duration = Duration::from_millis(100);
/// Heartbeats that may wait for a read index; beyond it the agents' next ones count.
const MAX_WAITING: usize = 100_000;

/// A heartbeat as the leader takes it.
struct Beat {
    gate: u64,
    on: SessionRef,
    sequence: u64,
    attempts: Vec<AttemptRef>,
    usage: Option<Usage>,
    received: Mono,
}

struct Link {
    node: NodeId,
    answers: mpsc::Sender<LivenessResponse>,
}

/// See the module.
pub struct Term {
    handle: Handle,
    term: u64,
    clock: Clock,
    liveness: Liveness,
    links: BTreeMap<u64, Link>,
    waiting: Vec<Beat>,
    reading: UnderWay<(Result<View, ReadError>, Vec<Beat>)>,
    proposing: UnderWay<Result<Vec<Outcome>, ProposeError>>,
    asked: HashMap<WorkerId, Instant>,
    /// Plan now, unless a proposal is under way.
    plan_due: bool,
    /// Plan again then.
    wake_at: Option<Instant>,
}

/// At most one of its kind.
type UnderWay<T> = Option<BoxFuture<'static, T>>;

/// The leader's two clocks: its own monotonic one, and the state's stamps carried on by it.
struct Clock {
    origin: Instant,
    stamp: (Millis, Instant),
}

impl Clock {
    fn mono(&self, at: Instant) -> Mono {
        Mono(u64::try_from(at.saturating_duration_since(self.origin).as_millis()).unwrap_or(u64::MAX))
    }

    fn instant(&self, mono: Mono) -> Instant {
        self.origin + Duration::from_millis(mono.0)
    }

    /// The stamp that an entry proposed now would bear, or a little less.
    fn stamp(&mut self, state: &State, now: Instant) -> Millis {
        let (known, since) = self.stamp;
        if state.stamp() != known {
            self.stamp = (state.stamp(), now);
            return state.stamp();
        }
        known.plus(u64::try_from((now - since).as_millis()).unwrap_or(0))
    }
}

impl Term {
    /// The table of a new term.
    #[must_use]
    pub fn new(handle: Handle, term: u64) -> Self {
        let state = handle.view().state;
        let now = Instant::now();
        // The origin lies a little in the past: time 0 is no time.
        let clock = Clock { origin: now - Duration::from_millis(1), stamp: (state.stamp(), now) };
        let liveness = Liveness::elected(term, &state, clock.mono(now));
        Self {
            handle,
            term,
            clock,
            liveness,
            links: BTreeMap::new(),
            waiting: Vec::new(),
            reading: None,
            proposing: None,
            asked: HashMap::new(),
            plan_due: true,
            wake_at: None,
        }
    }

    /// Runs until the leadership is over, which whoever owns this decides.
    pub async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let mut queue = self.handle.subscribe(Topic::Queue);
        loop {
            self.begin();
            let wake_at = self.wake_at;
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                (view, beats) = under_way(&mut self.reading) => self.confirmed(view, beats),
                outcome = under_way(&mut self.proposing) => self.proposed(outcome),
                changed = queue.changed() => match changed {
                    Ok(()) => self.plan_due = true,
                    Err(_) => return,
                },
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {
                    // Past once: while a proposal is under way, its end is what is waited for.
                    self.wake_at = None;
                    self.plan_due = true;
                }
            }
        }
    }

    /// Starts what can be started.
    fn begin(&mut self) {
        if self.reading.is_none() && !self.waiting.is_empty() {
            hodei_state::failpoint!("lease::before-read-index");
            let (handle, beats) = (self.handle.clone(), std::mem::take(&mut self.waiting));
            let deadline = Instant::now() + READ_TIMEOUT;
            self.reading = Some(
                async move {
                    let view = if hodei_state::armed!("bug::lease-not-confirmed") {
                        Ok(handle.view())
                    } else {
                        handle.read(deadline).await
                    };
                    (view, beats)
                }
                .boxed(),
            );
        }
        if self.proposing.is_none() && self.plan_due {
            self.plan_due = false;
            self.decide();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Entered { node, gate, answers } => {
                // One link per node: an older one is broken, or will be.
                self.links.retain(|_, link| link.node != node && !link.answers.is_closed());
                self.links.insert(gate, Link { node, answers });
                self.plan_due = true;
            }
            Message::Heard { answer } => {
                let at = Instant::now();
                let stamp = self.clock.stamp(&self.handle.view().state, at);
                // Who asked may have given up.
                let _ = answer.send((self.liveness.hearing().clone(), Now { mono: self.clock.mono(at), stamp }));
            }
            Message::Heartbeats { gate, request, received } => {
                let received = self.clock.mono(received);
                let room = MAX_WAITING.saturating_sub(self.waiting.len());
                let beats = request.heartbeats.into_iter().filter_map(|relayed| beat(gate, relayed, received));
                self.waiting.extend(beats.take(room));
            }
        }
    }

    /// A read index has confirmed that this node still led when these had arrived.
    fn confirmed(&mut self, view: Result<View, ReadError>, beats: Vec<Beat>) {
        self.reading = None;
        let state = match view {
            Ok(view) => view.state,
            Err(error) => {
                tracing::warn!(heartbeats = beats.len(), %error, "heartbeats could not be confirmed");
                return;
            }
        };
        hodei_state::failpoint!("lease::after-read-index");
        let now = self.clock.mono(Instant::now());
        let mut answers: BTreeMap<u64, Vec<WorkerGrants>> = BTreeMap::new();
        for Beat { gate, on, sequence, attempts, usage, received } in beats {
            let grants = self.liveness.confirm(&state, on, sequence, &attempts, received, now);
            if let Some(usage) = usage {
                self.liveness.report(on, usage);
            }
            self.asked.remove(&on.worker);
            answers.entry(gate).or_default().push(worker_grants(on, &grants));
        }
        hodei_state::failpoint!("lease::before-grant");
        for (gate, grants) in answers {
            self.answer(gate, LivenessResponse { term: self.term, grants, ask_heartbeat: Vec::new() });
        }
        self.plan_due = true;
    }

    fn answer(&mut self, gate: u64, response: LivenessResponse) {
        let Some(link) = self.links.get(&gate) else { return };
        match link.answers.try_send(response) {
            // A gateway that does not read its answers gets the next ones.
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.links.remove(&gate);
            }
        }
    }

    fn proposed(&mut self, outcome: Result<Vec<Outcome>, ProposeError>) {
        self.proposing = None;
        match outcome {
            Ok(outcomes) => {
                hodei_state::failpoint!("decide::after-commit");
                for refusal in outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Refused(_))) {
                    tracing::debug!(?refusal, "a decision was out of date");
                }
                self.plan_due = true;
            }
            Err(error) => {
                tracing::debug!(%error, "decisions were not committed");
                self.wake_within(PAUSE);
            }
        }
    }

    /// Judges leases and schedules, on the state as it is applied here.
    fn decide(&mut self) {
        let state = self.handle.view().state;
        let at = Instant::now();
        let now = Now { mono: self.clock.mono(at), stamp: self.clock.stamp(&state, at) };
        let mut commands: Vec<Command> = self.liveness.expire(&state, now.mono);
        let plan = plan(&state, &self.liveness, now);
        commands.extend(plan.commands);
        self.liveness.asked(&state, &plan.ask_heartbeat, &plan.held, now.mono);
        self.ask(&state, plan.ask_heartbeat, at);
        let deadline = self.liveness.next_deadline(&state).map(|mono| self.clock.instant(mono));
        let wake = plan.wake_at.map(|wake| at + Duration::from_millis(wake.0.saturating_sub(now.stamp.0)));
        // A deadline that has passed was acted on above, or waits for what is proposed now.
        self.wake_at = deadline.into_iter().chain(wake).min().map(|wake| wake.max(at + Duration::from_millis(1)));
        if !commands.is_empty() {
            hodei_state::failpoint!("decide::before-propose");
            let (handle, term) = (self.handle.clone(), self.term);
            let deadline = at + PROPOSE_TIMEOUT;
            self.proposing = Some(async move { handle.propose_in_term(term, commands, deadline).await }.boxed());
        }
    }

    /// Has the gateways of these workers ask for heartbeats.
    fn ask(&mut self, state: &State, workers: Vec<WorkerId>, now: Instant) {
        self.asked.retain(|_, asked| now < *asked + ASK_EVERY);
        let mut by_gate: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for worker in workers {
            let gateway = state.worker(worker).and_then(|worker| worker.gateway);
            let gate = self.links.iter().find(|(_, link)| Some(link.node) == gateway).map(|(gate, _)| *gate);
            let Some(gate) = gate.filter(|_| !self.asked.contains_key(&worker)) else { continue };
            self.asked.insert(worker, now);
            by_gate.entry(gate).or_default().push(worker.to_string());
        }
        for (gate, ask_heartbeat) in by_gate {
            self.answer(gate, LivenessResponse { term: self.term, grants: Vec::new(), ask_heartbeat });
        }
    }

    fn wake_within(&mut self, span: Duration) {
        let at = Instant::now() + span;
        self.wake_at = Some(self.wake_at.map_or(at, |wake| wake.min(at)));
    }
}

/// The result of what is under way; never, where nothing is. What has come is taken.
async fn under_way<T>(future: &mut UnderWay<T>) -> T {
    match future {
        Some(running) => running.await,
        None => std::future::pending().await,
    }
}

/// `None`: a gateway sent what is no heartbeat.
fn beat(gate: u64, relayed: RelayedHeartbeat, received: Mono) -> Option<Beat> {
    let heartbeat = relayed.heartbeat?;
    let worker = from_proto::id(&relayed.worker_id, "worker_id").ok()?;
    let session = from_proto::id(&heartbeat.session_id, "session_id").ok()?;
    let attempts = from_proto::attempts(&heartbeat.attempts).ok()?;
    let usage = heartbeat.stats.as_ref().map(from_proto::usage);
    Some(Beat { gate, on: SessionRef { worker, session }, sequence: heartbeat.sequence, attempts, usage, received })
}

fn worker_grants(on: SessionRef, grants: &Grants) -> WorkerGrants {
    let refs = |attempts: &[AttemptRef]| attempts.iter().map(to_proto::attempt_ref).collect();
    WorkerGrants {
        worker_id: on.worker.to_string(),
        session_id: on.session.to_string(),
        extended: Some(LeaseExtended {
            sequence: grants.sequence,
            extended: refs(&grants.extended),
            refused: refs(&grants.refused),
        }),
    }
}
