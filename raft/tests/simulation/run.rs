//! One simulation: a cluster is founded, kept busy, broken at every corner, healed, and must then agree.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    panic::{self, PanicHookInfo},
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use hodei_raft::{
    Status,
    seam::{self, Entropy, sim::SeededEntropy},
};
use hodei_state::ids::JobId;
use turmoil::{Builder, Sim};

use crate::{
    broken::Broken,
    check::NodeId,
    faults::{Faults, Kind},
    node::{self, name},
    observe::Observer,
    operation::Operation,
    random::Dice,
    trace::Trace,
    world::World,
};

/// What a simulation is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub steps: u64,
    /// Where to write all that happened.
    pub trace: Option<String>,
    /// What is wrong on purpose.
    pub broken: Option<Broken>,
}

/// What happened in a simulation that found nothing wrong.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub hash: u64,
    pub counts: BTreeMap<&'static str, u64>,
    pub faults: BTreeMap<Kind, u64>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "trace={:016x}", self.hash)?;
        self.counts.iter().try_for_each(|(what, count)| write!(f, " {what}={count}"))?;
        self.faults.iter().try_for_each(|(kind, count)| write!(f, " {kind:?}={count}"))
    }
}

/// Something that must not be, and what came before it.
#[derive(Debug)]
pub struct Failed {
    pub why: String,
    pub newest: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.why, self.newest)
    }
}

/// Steps before the cluster must be whole at first, and again after everything was healed.
const PATIENCE: u64 = 60_000;

/// Panics of tasks, which nobody else would notice.
static PANICS: AtomicU64 = AtomicU64::new(0);

struct Run<'a> {
    sim: Sim<'a>,
    world: Rc<RefCell<World>>,
    faults: Faults,
    observer: Observer,
    random: SeededEntropy,
    step: u64,
    tick: u64,
    /// Of a hundred, steps in which a client asks for something.
    load: u64,
    moved_at: u64,
    voters: u64,
}

/// Runs a plan. Must have the process to itself.
pub fn run(plan: &Plan) -> Result<Summary, Failed> {
    seam::sim::without_threads();
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        usual(info);
    }));
    let mut run = Run::new(plan);
    let result = run.all(plan.steps);
    let world = run.world.borrow();
    match result {
        Ok(()) => Ok(run.summary(&world)),
        Err(why) => Err(Failed { why: format!("step {}: {why}", run.step), newest: world.trace.newest() }),
    }
}

impl Run<'_> {
    fn new(plan: &Plan) -> Self {
        let random = SeededEntropy::new(plan.seed);
        let voters = if random.below(4) == 0 { 5 } else { 3 };
        let nodes = voters + 1 + random.below(2);
        let tick = [1, 2, 5][random.below(3) as usize];
        let latency = Duration::from_millis(1 + random.below(20));
        let mut trace = Trace::new(plan.trace.as_deref());
        trace.line(|| format!("{voters} of {nodes} nodes, a step is {tick} ms, messages take up to {latency:?}"));
        let world = Rc::new(RefCell::new(World::new(nodes, &random, trace, plan.broken)));
        let mut builder = Builder::new();
        builder
            .simulation_duration(Duration::from_secs(86_400))
            .epoch(SystemTime::UNIX_EPOCH)
            .tick_duration(Duration::from_millis(tick))
            .min_message_latency(Duration::ZERO)
            .max_message_latency(latency)
            .tcp_capacity(1 << 16)
            .rng_seed(random.next_u64());
        if random.below(2) == 0 {
            builder.enable_random_order();
        }
        let mut sim = builder.build();
        for id in 1..=nodes {
            let world = world.clone();
            sim.host(name(id), move || node::run(world.clone(), id));
        }
        let pace = 100 + random.below(500) / tick;
        let faults = Faults::new(random.next_u64(), pace, latency);
        let load = 5 + random.below(40);
        let observer = Observer::new(plan.broken == Some(Broken::NoiseUnseen));
        Self { sim, world, faults, observer, random, step: 0, tick, load, moved_at: 0, voters }
    }

    fn all(&mut self, steps: u64) -> Result<(), String> {
        self.found(self.voters)?;
        self.faults.start(self.step);
        let end = self.step + steps;
        while self.step < end {
            self.faults.step(self.step, &mut self.sim, &self.world);
            self.ask();
            self.step()?;
        }
        self.faults.heal(&mut self.sim, &self.world);
        self.converge()?;
        self.world.borrow_mut().trace.line(|| "healed".to_owned());
        for _ in 0..5 {
            self.submit();
        }
        self.converge()?;
        self.judge()
    }

    /// One step of the simulation, and a look at what it did.
    fn step(&mut self) -> Result<(), String> {
        self.step += 1;
        {
            let mut world = self.world.borrow_mut();
            world.tick(self.tick);
            world.trace.step = self.step;
        }
        self.sim.step().map_err(|error| error.to_string())?;
        let mut world = self.world.borrow_mut();
        self.observer.step(&mut world)?;
        if PANICS.load(Ordering::SeqCst) > 0 {
            return Err("a task panicked".to_owned());
        }
        world.failure.take().map_or(Ok(()), Err)
    }

    /// A cluster of so many voters.
    fn found(&mut self, voters: u64) -> Result<(), String> {
        while !self.world.borrow().hosts.values().all(|host| host.up.is_some()) {
            self.patiently("the hosts do not start")?;
        }
        self.world.borrow_mut().ask(1, Operation::Found);
        loop {
            self.patiently("the cluster is not founded")?;
            let Some((leader, status)) = self.leader() else { continue };
            if status.voters.len() as u64 == voters && !status.changing && status.applied.index > 10 {
                return Ok(());
            }
            let next = status.voters.len() as u64 + 1;
            let caught_up = status.peers.iter().any(|peer| peer.node == next && peer.matched_index > 0);
            if status.learners.contains(&next) && caught_up {
                self.order(leader, Operation::Promote(next));
            } else if !status.learners.contains(&next) && status.applied.index > 10 {
                self.order(leader, Operation::AddLearner(next));
            }
        }
    }

    fn patiently(&mut self, what: &str) -> Result<(), String> {
        self.step()?;
        if self.step > PATIENCE { Err(what.to_owned()) } else { Ok(()) }
    }

    /// Who leads and what it knows.
    fn leader(&self) -> Option<(NodeId, Status)> {
        let world = self.world.borrow();
        let leader = world.leader()?;
        Some((leader, world.hosts[&leader].up.as_ref()?.handle.status()))
    }

    /// Asks for one change of the cluster at a time.
    fn order(&mut self, node: NodeId, operation: Operation) {
        let mut world = self.world.borrow_mut();
        let forgotten = self.step > self.moved_at + 2_000 / self.tick;
        if world.moving && !forgotten {
            return;
        }
        self.moved_at = self.step;
        world.moving = true;
        world.ask(node, operation);
    }

    /// Clients and operators.
    fn ask(&mut self) {
        if self.random.below(100) < self.load {
            self.submit();
        }
        let up = self.world.borrow().up();
        let Some(node) = self.pick(&up) else { return };
        if self.random.below(100) < self.load {
            let x = self.random.next_u64();
            let byte = || (self.random.next_u64() >> 13) as u8;
            let dice = Dice { kind: byte(), a: byte(), b: byte(), c: byte(), x };
            self.world.borrow_mut().ask(node, Operation::Any(Box::new(dice)));
        }
        if self.random.below(100) < 2 {
            self.world.borrow_mut().ask(node, Operation::Read);
        }
        if self.random.below(600) < self.tick {
            self.operate(node);
        }
    }

    fn submit(&mut self) {
        let up = self.world.borrow().up();
        let Some(node) = self.pick(&up) else { return };
        let mut world = self.world.borrow_mut();
        let job = world.ledger.open();
        world.ask(node, Operation::Submit(job));
    }

    /// Moves a member, or leadership.
    fn operate(&mut self, node: NodeId) {
        let Some((leader, status)) = self.leader() else { return };
        if status.changing {
            // A change that was interrupted is ended first. Anything else might take a leader that is half gone out
            // altogether, which openraft does not expect.
            return self.order(leader, Operation::Promote(leader));
        }
        let nodes: Vec<NodeId> = self.world.borrow().hosts.keys().copied().collect();
        let is_member = |node: &NodeId| status.voters.contains(node) || status.learners.contains(node);
        let spares: Vec<NodeId> = nodes.into_iter().filter(|node| !is_member(node)).collect();
        let learner = self.pick(&status.learners);
        let voter = self.pick(&status.voters);
        let follower = voter.filter(|voter| *voter != leader);
        let operation = match (self.random.below(6), learner, self.pick(&spares), voter) {
            (0, ..) => Operation::Transfer(voter.filter(|_| self.random.below(2) == 0)),
            (1, Some(learner), ..) if follower.is_some() => Operation::Swap(follower.unwrap_or(leader), learner),
            (2, Some(learner), ..) => Operation::Remove(learner),
            (_, Some(learner), ..) => Operation::Promote(learner),
            (1 | 2, None, _, Some(voter)) if status.voters.len() > 3 => Operation::Remove(voter),
            (_, None, Some(spare), _) => Operation::AddLearner(spare),
            _ => return,
        };
        let on = if matches!(operation, Operation::Transfer(_)) { node } else { leader };
        self.order(on, operation);
    }

    fn pick(&self, nodes: &[NodeId]) -> Option<NodeId> {
        let len = nodes.len() as u64;
        (len > 0).then(|| nodes[self.random.below(len) as usize])
    }

    /// Waits until every member has applied all there is.
    fn converge(&mut self) -> Result<(), String> {
        let begun = self.step;
        loop {
            self.step()?;
            let Some((leader, status)) = self.leader() else {
                self.in_time(begun, "nobody leads")?;
                continue;
            };
            if status.changing {
                // What an operator does with a change that was interrupted.
                self.order(leader, Operation::Promote(leader));
                self.in_time(begun, "a change of membership does not end")?;
                continue;
            }
            let world = self.world.borrow();
            let members = status.voters.iter().chain(&status.learners);
            let behind: Vec<NodeId> = members
                .filter(|node| {
                    let up = world.hosts[node].up.as_ref();
                    up.map(|up| up.handle.status()).is_none_or(|seen| {
                        seen.applied != status.last_log || seen.last_log != status.last_log || seen.term != status.term
                    })
                })
                .copied()
                .collect();
            let quiet = world.hosts.values().all(|host| host.operations.is_empty());
            drop(world);
            if behind.is_empty() && quiet && self.step > begun + 2_000 / self.tick {
                return Ok(());
            }
            self.in_time(begun, &format!("members {behind:?} are behind"))?;
        }
    }

    fn in_time(&self, begun: u64, what: &str) -> Result<(), String> {
        if self.step > begun + PATIENCE { Err(format!("not healed: {what}")) } else { Ok(()) }
    }

    /// What clients were told is what every member has.
    fn judge(&self) -> Result<(), String> {
        let (_, status) = self.leader().ok_or("nobody leads")?;
        let world = self.world.borrow();
        for node in status.voters.iter().chain(&status.learners) {
            let up = world.hosts[node].up.as_ref().ok_or("a member is down")?;
            let view = up.handle.view();
            let has = |job: &u64| view.state.job(JobId(u128::from(*job))).is_some();
            if let Some(lost) = world.ledger.acknowledged().iter().find(|job| !has(job)) {
                return Err(format!("node {node} lacks the acknowledged job {lost}"));
            }
            if let Some(ghost) = world.ledger.not_done().iter().find(|job| has(job)) {
                return Err(format!("node {node} has job {ghost}, which definitely failed"));
            }
            if view.state.hash() != status.hash {
                return Err(format!("node {node} has another state than the leader"));
            }
        }
        Ok(())
    }

    fn summary(&self, world: &World) -> Summary {
        let checker = &world.checker;
        let counts = [
            ("steps", self.step),
            ("ms", self.step * self.tick),
            ("elections", checker.elections() as u64),
            ("leader_changes", checker.changes() as u64),
            ("crashes", self.faults.crashes),
            ("installs", self.observer.installs),
            ("purges", self.observer.purges),
            ("truncations", self.observer.truncations),
            ("commits", checker.last_committed()),
            ("acknowledged", world.ledger.acknowledged().len() as u64),
            ("not_done", world.ledger.not_done().len() as u64),
            ("unknown", world.ledger.unknown() as u64),
            ("others", world.ledger.others),
            ("reads", world.ledger.reads),
            ("moves", world.moves),
            ("entries_compared", checker.compared.entries),
            ("states_compared", checker.compared.states),
        ];
        Summary { hash: world.trace.hash(), counts: counts.into(), faults: self.faults.counts.clone() }
    }
}
