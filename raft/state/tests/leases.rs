//! The promise of leases, under random delays, losses, elections, restarts of agents and slow clocks: two attempts of a
//! job never run at the same time.
//!
//! The leader's side is the product's: `Liveness`, `plan`, `apply`. The agents' side is a model of what an agent does: it
//! starts an attempt, and lets it run, only until the send time of the newest heartbeat granted to it + `lost_after`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod random;

use std::collections::{BTreeMap, BTreeSet};

use hodei_state::{
    Liveness, Now, State,
    command::{Command, Envelope, OpenSession, SubmitJob},
    ids::{AttemptRef, Caller, JobId, Millis, Mono, SessionId, WorkerId},
    invariants,
    job::{LogEnd, Reason},
    plan,
    registry::{AgentInfo, Capacity, SessionRef},
    spec::{Body, JobSpec, Retry},
};
use proptest::prelude::*;

const NODE: Caller = Caller::Node(1);
const LOST_AFTER: u64 = 6_000;
const TICK: u64 = 50;
const JOBS: u128 = 3;

/// What is under way, and will arrive.
#[derive(Clone, Debug)]
enum Message {
    Heartbeat {
        on: SessionRef,
        sequence: u64,
        attempts: Vec<AttemptRef>,
        received: Option<u64>,
    },
    Granted {
        on: SessionRef,
        sequence: u64,
        extended: Vec<AttemptRef>,
    },
    Run {
        on: SessionRef,
        attempt: AttemptRef,
        heartbeat: u64,
    },
    /// A command that an agent or a client asks for: repeated by its sender in the end, so never lost here.
    Propose(Envelope),
    /// A decision of the leader of this term: dropped with its leadership, unless it is in the log by then.
    Decide {
        term: u64,
        command: Command,
    },
}

/// One agent process after the other; what an earlier one left running runs on until its deadline.
struct Agent {
    on: SessionRef,
    sequence: u64,
    /// Send times of this session's heartbeats.
    sent: Vec<u64>,
    /// Running attempts and their deadlines; all of this worker's, whichever session started them.
    running: BTreeMap<AttemptRef, u64>,
    /// What this session has: started or adopted.
    owned: Vec<AttemptRef>,
    /// What was ever started here: an agent starts no attempt twice.
    seen: BTreeSet<AttemptRef>,
    /// How slow its clock is: a lease lasts so many thousandths longer.
    drift: u64,
}

#[derive(Default)]
struct Tally {
    started: u32,
    lost: u32,
    finished: u32,
    adopted: u32,
    dead: u32,
}

struct World {
    state: State,
    liveness: Liveness,
    term: u64,
    index: u64,
    now: u64,
    seed: u64,
    agents: Vec<Agent>,
    under_way: Vec<(u64, Message)>,
    tally: Tally,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut state = State::new();
        let mut index = 0;
        for envelope in random::setup().into_iter().chain([random::never_set_aside()]) {
            index += 1;
            state.apply(index, 0, Millis(0), &envelope);
        }
        let liveness = Liveness::elected(1, &state, Mono(0));
        let (term, now, under_way, tally) = (1, 0, Vec::new(), Tally::default());
        let mut world = Self { state, liveness, term, index, now, seed, agents: Vec::new(), under_way, tally };
        for id in 1..=3 {
            let on = SessionRef { worker: WorkerId(id), session: SessionId(1) };
            let (running, owned, seen, drift) = (BTreeMap::new(), Vec::new(), BTreeSet::new(), world.dice(60));
            world.agents.push(Agent { on, sequence: 0, sent: vec![0], running, owned, seen, drift });
        }
        for job in 1..=JOBS {
            world.submit(job);
        }
        world
    }

    fn dice(&mut self, sides: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % sides
    }

    /// Mostly soon, sometimes late.
    fn delay(&mut self) -> u64 {
        match self.dice(12) {
            0 => self.dice(9_000),
            1 | 2 => self.dice(1_500),
            _ => self.dice(100),
        }
    }

    fn send(&mut self, message: Message) {
        let at = self.now + self.delay();
        self.under_way.push((at, message));
    }

    /// Some messages are lost.
    fn send_if_lucky(&mut self, message: Message) {
        if self.dice(8) > 0 {
            self.send(message);
        }
    }

    fn submit(&mut self, job: u128) {
        let spec = JobSpec {
            lost_after_ms: LOST_AFTER,
            retry: Retry { infrastructure: 1_000, backoff_initial_ms: 0, ..Retry::default() },
            body: Body::Inline(vec![1]),
            ..JobSpec::default()
        };
        let submission = SubmitJob { job: JobId(job), digest: [0; 32], idempotency_key: None, spec };
        self.apply(&Envelope { caller: random::ADMIN, command: Command::SubmitJob(Box::new(submission)) });
    }

    fn apply(&mut self, envelope: &Envelope) {
        self.index += 1;
        self.state.apply(self.index, 0, Millis(self.now), envelope);
        if let Command::Assign { job, attempt, on, heartbeat, .. } = envelope.command {
            let attempt = AttemptRef { job, attempt, fence: self.index };
            if self.state.attempt(job, attempt.attempt).is_some_and(|known| known.id == attempt) {
                // The gateway repeats it; once is enough here, or twice.
                self.send(Message::Run { on, attempt, heartbeat });
                self.send_if_lucky(Message::Run { on, attempt, heartbeat });
            }
        }
        if let Command::AttemptLost { .. } = envelope.command {
            self.tally.lost += 1;
        }
    }

    fn tick(&mut self) {
        self.now += TICK;
        let (due, later): (Vec<_>, Vec<_>) = self.under_way.drain(..).partition(|(at, _)| *at <= self.now);
        self.under_way = later;
        for (_, message) in due {
            self.deliver(message);
        }
        for at in 0..self.agents.len() {
            self.agent(at);
        }
        if self.dice(400) == 0 {
            self.elect();
        }
        self.lead();
        self.check();
    }

    fn deliver(&mut self, message: Message) {
        match message {
            // Arrives at the leader, which then takes a read index.
            Message::Heartbeat { on, sequence, attempts, received: None } => {
                let received = Some(self.now);
                self.send_if_lucky(Message::Heartbeat { on, sequence, attempts, received });
            }
            Message::Heartbeat { on, sequence, attempts, received: Some(received) } => {
                let (received, now) = (Mono(received), Mono(self.now));
                let grants = self.liveness.confirm(&self.state, on, sequence, &attempts, received, now);
                self.send_if_lucky(Message::Granted { on, sequence, extended: grants.extended });
            }
            Message::Granted { on, sequence, extended } => self.granted(on, sequence, &extended),
            Message::Run { on, attempt, heartbeat } => self.start(on, attempt, heartbeat),
            Message::Propose(envelope) => self.apply(&envelope),
            Message::Decide { term, command } if term == self.term => self.apply(&Envelope { caller: NODE, command }),
            Message::Decide { .. } => {}
        }
    }

    fn agent_of(&mut self, on: SessionRef) -> Option<&mut Agent> {
        self.agents.iter_mut().find(|agent| agent.on == on)
    }

    fn granted(&mut self, on: SessionRef, sequence: u64, extended: &[AttemptRef]) {
        let now = self.now;
        let Some(agent) = self.agent_of(on) else { return };
        let deadline = agent.deadline(sequence);
        for attempt in extended {
            if let Some(until) = agent.running.get_mut(attempt).filter(|until| **until > now) {
                *until = (*until).max(deadline);
            }
        }
    }

    fn start(&mut self, on: SessionRef, attempt: AttemptRef, heartbeat: u64) {
        let now = self.now;
        let Some(agent) = self.agent_of(on) else { return };
        let deadline = agent.deadline(heartbeat);
        if deadline > now && agent.seen.insert(attempt) {
            agent.running.insert(attempt, deadline);
            agent.owned.push(attempt);
            self.tally.started += 1;
        }
    }

    /// What an agent does of itself.
    fn agent(&mut self, at: usize) {
        let now = self.now;
        self.agents[at].running.retain(|_, until| *until > now);
        if self.dice(20) == 0 {
            let agent = &mut self.agents[at];
            agent.sequence += 1;
            agent.sent.push(now);
            let (on, sequence, attempts) = (agent.on, agent.sequence, agent.owned.clone());
            self.send_if_lucky(Message::Heartbeat { on, sequence, attempts, received: None });
        }
        if self.dice(300) == 0 {
            self.finish(at);
        }
        if self.dice(500) == 0 {
            self.restart(at);
        }
    }

    /// A process ends by itself, and its agent says so.
    fn finish(&mut self, at: usize) {
        let agent = &mut self.agents[at];
        let on = agent.on;
        let owned = agent.owned.iter().position(|attempt| agent.running.contains_key(attempt));
        let Some(attempt) = owned.map(|owned| agent.owned.remove(owned)) else { return };
        agent.running.remove(&attempt);
        self.tally.finished += 1;
        // The process gave itself up, so that the job is tried again: what matters is who runs when.
        let reason = Reason::WorkerLost { message: "again".to_string() };
        let result = Command::JobResult { attempt, by: on, reason, log: LogEnd::default(), segment: None };
        self.send(Message::Propose(Envelope { caller: NODE, command: result }));
    }

    /// The agent's process dies and another one takes its place. It adopts what runs; or it kills that and says so; or
    /// it cannot see whether anything is left, and says nothing. What it says may arrive late, after a newer session's.
    fn restart(&mut self, at: usize) {
        let choice = self.dice(3);
        let agent = &mut self.agents[at];
        let previous = Some(agent.on.session);
        let running: Vec<_> = agent.running.keys().copied().collect();
        agent.on.session = SessionId(agent.on.session.0 + 1);
        (agent.sequence, agent.sent) = (0, vec![self.now]);
        agent.owned = if choice == 0 { running.clone() } else { Vec::new() };
        if choice == 1 {
            agent.running.clear();
        }
        let on = agent.on;
        let capacity = Capacity { slots: 2, ..Capacity::default() };
        let info = AgentInfo { capacity, ..AgentInfo::default() };
        let (adopted, dead) = match choice {
            0 => (running, Vec::new()),
            1 => (Vec::new(), running),
            _ => Default::default(),
        };
        self.tally.adopted += adopted.len() as u32;
        self.tally.dead += dead.len() as u32;
        let open = Command::OpenSession(Box::new(OpenSession { on, previous, info, adopted, dead }));
        self.send(Message::Propose(Envelope { caller: Caller::Agent(on.worker), command: open }));
        for stream in 1..=3 {
            let attach = Command::AttachWorker { worker: on, stream, gateway: 1 };
            self.send(Message::Propose(Envelope { caller: NODE, command: attach }));
        }
    }

    /// A new term. What the old leader had decided is either in the log, and applied before the new one begins, or gone.
    fn elect(&mut self) {
        let (decided, other): (Vec<_>, Vec<_>) =
            self.under_way.drain(..).partition(|(_, message)| matches!(message, Message::Decide { .. }));
        self.under_way = other;
        for (_, message) in decided {
            if self.dice(2) == 0 {
                self.deliver(message);
            }
        }
        self.term += 1;
        self.liveness = Liveness::elected(self.term, &self.state, Mono(self.now));
    }

    /// What the leader does of itself, now and then late.
    fn lead(&mut self) {
        if self.dice(3) > 0 {
            return;
        }
        let verdicts = self.liveness.expire(&self.state, Mono(self.now));
        let planned = plan(&self.state, &self.liveness, Now { mono: Mono(self.now), stamp: Millis(self.now) });
        self.liveness.asked(&self.state, &planned.ask_heartbeat, &planned.held, Mono(self.now));
        for command in verdicts.into_iter().chain(planned.commands) {
            let term = self.term;
            self.send(Message::Decide { term, command });
        }
    }

    fn check(&self) {
        let now = self.now;
        let mut running: BTreeMap<JobId, AttemptRef> = BTreeMap::new();
        for agent in &self.agents {
            for attempt in agent.running.iter().filter(|(_, until)| **until > now).map(|(attempt, _)| *attempt) {
                if let Some(other) = running.insert(attempt.job, attempt) {
                    panic!("at {now} ms {attempt:?} and {other:?} run both");
                }
            }
        }
    }
}

impl Agent {
    /// Until when an attempt may run that was granted this heartbeat, in real time.
    fn deadline(&self, sequence: u64) -> u64 {
        let sent = usize::try_from(sequence).ok().and_then(|at| self.sent.get(at)).copied();
        sent.map_or(0, |sent| sent + LOST_AFTER + LOST_AFTER * self.drift / 1000)
    }
}

fn run(seed: u64) -> Tally {
    let mut world = World::new(seed);
    for _ in 0..4_000 {
        world.tick();
    }
    assert_eq!(invariants::check(&world.state), []);
    world.tally
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn attempts_never_overlap(seed in any::<u64>()) {
        run(seed);
    }
}

/// The worlds above are worth something: attempts start, end, are lost and are adopted in them.
#[test]
fn worlds_are_eventful() {
    let mut total = Tally::default();
    for seed in 0..5 {
        let Tally { started, lost, finished, adopted, dead } = run(seed);
        total.started += started;
        total.lost += lost;
        total.finished += finished;
        total.adopted += adopted;
        total.dead += dead;
    }
    let Tally { started, lost, finished, adopted, dead } = total;
    let eventful = started > 100 && lost > 50 && finished > 20 && adopted > 5 && dead > 5;
    assert!(eventful, "{started} {lost} {finished} {adopted} {dead}");
}
