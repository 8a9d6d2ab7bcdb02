//! What goes wrong, by a plan that follows from the seed: each fault begins at some step and is taken back at a later one.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use hodei_raft::seam::{
    Entropy,
    sim::{SeededEntropy, Unsynced},
};
use turmoil::Sim;

use crate::{check::NodeId, node::name, world::World};

/// The kinds of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Two groups that do not hear of each other.
    Split,
    /// One node alone.
    Isolate,
    /// The leader alone.
    IsolateLeader,
    /// A node that hears but is not heard, or the other way.
    OneWay,
    /// As [`Kind::OneWay`], the leader.
    OneWayLeader,
    /// Each node loses its way to the next.
    Ring,
    /// Two groups with one node between them.
    Bridge,
    /// What is said is kept back, and then delivered at once.
    Hold,
    /// One connection that breaks again and again.
    Flap,
    /// All that is said arrives late.
    Late,
    /// A disk that takes its time.
    SlowDisk,
    /// A host loses its power.
    Crash,
    /// It does so in the middle of writing to its disk.
    CrashWriting,
    /// The leader does.
    CrashLeader,
    /// Without a last word: cut off first.
    VanishLeader,
    /// All of them at once.
    CrashAll,
    /// A wall clock that jumps.
    Clock,
    /// A host's clocks, both, go too fast or too slow.
    Drift,
}

const KINDS: [Kind; 18] = [
    Kind::Split,
    Kind::Isolate,
    Kind::IsolateLeader,
    Kind::OneWay,
    Kind::OneWayLeader,
    Kind::Ring,
    Kind::Bridge,
    Kind::Hold,
    Kind::Flap,
    Kind::Late,
    Kind::SlowDisk,
    Kind::Crash,
    Kind::CrashWriting,
    Kind::CrashLeader,
    Kind::VanishLeader,
    Kind::CrashAll,
    Kind::Clock,
    Kind::Drift,
];

/// How to take a fault back.
enum Undo {
    Cuts(Vec<(NodeId, NodeId)>),
    Hold(NodeId, NodeId),
    Flap(NodeId, NodeId),
    Late,
    Disk(NodeId, u64),
    Start(Vec<NodeId>),
    Clock(NodeId),
    Drift(NodeId),
    /// One that has not written since does not die of it any more.
    Writing(NodeId),
}

/// See the module.
pub struct Faults {
    random: SeededEntropy,
    active: Vec<(u64, Undo)>,
    /// How many faults cut each way.
    cuts: BTreeMap<(NodeId, NodeId), u32>,
    next: u64,
    /// What every run begins with, so that none goes by without a change of leader; last first.
    first: Vec<Kind>,
    /// Steps between faults, and of a fault, on average.
    pace: u64,
    latency: Duration,
    pub counts: BTreeMap<Kind, u64>,
    pub crashes: u64,
}

impl Faults {
    /// None until [`Faults::start`].
    pub fn new(seed: u64, pace: u64, latency: Duration) -> Self {
        let counts = BTreeMap::new();
        let random = SeededEntropy::new(seed);
        let (active, cuts, next) = (Vec::new(), BTreeMap::new(), u64::MAX);
        let first = vec![Kind::IsolateLeader, Kind::CrashLeader];
        Self { random, active, cuts, next, first, pace, latency, counts, crashes: 0 }
    }

    /// The first fault may come at this step.
    pub fn start(&mut self, step: u64) {
        self.next = step;
    }

    /// Takes back what is over, and begins what is due.
    pub fn step(&mut self, step: u64, sim: &mut Sim<'_>, world: &Rc<RefCell<World>>) {
        let (over, active) = std::mem::take(&mut self.active).into_iter().partition(|(until, _)| *until <= step);
        self.active = active;
        for (_, undo) in over {
            self.undo(undo, sim, world);
        }
        self.bury(step, sim, world);
        if step >= self.next {
            self.next = step + 1 + self.random.below(self.pace * 2);
            if self.active.len() < 3 {
                let kind = self.first.pop().unwrap_or_else(|| KINDS[self.random.below(KINDS.len() as u64) as usize]);
                let until = step + self.pace / 2 + self.random.below(self.pace * 2);
                self.begin(kind, until, sim, world);
            }
        }
    }

    /// Takes back everything.
    pub fn heal(&mut self, sim: &mut Sim<'_>, world: &Rc<RefCell<World>>) {
        self.bury(0, sim, world);
        for (_, undo) in std::mem::take(&mut self.active) {
            self.undo(undo, sim, world);
        }
        self.next = u64::MAX;
    }

    /// Those whose power has failed within a write crash, and come back.
    fn bury(&mut self, step: u64, sim: &mut Sim<'_>, world: &Rc<RefCell<World>>) {
        let dead = world.borrow().dead.clone();
        for node in dead {
            if let Some((_, start)) = self.crash(&[node], sim, world) {
                self.active.push((step + 1 + self.random.below(self.pace), start));
            }
        }
    }

    fn begin(&mut self, kind: Kind, until: u64, sim: &mut Sim<'_>, world: &Rc<RefCell<World>>) {
        let Some((what, undo)) = self.inflict(kind, sim, world) else { return };
        *self.counts.entry(kind).or_default() += 1;
        world.borrow_mut().trace.line(|| format!("{kind:?} until {until}: {what}"));
        self.active.push((until, undo));
    }

    /// What was done, and how to take it back. None: it cannot be done now.
    fn inflict(&mut self, kind: Kind, sim: &mut Sim<'_>, world: &Rc<RefCell<World>>) -> Option<(String, Undo)> {
        let nodes: Vec<NodeId> = world.borrow().hosts.keys().copied().collect();
        let one = self.pick(&nodes)?;
        let leader = world.borrow().leader();
        let others = |of: NodeId| nodes.iter().copied().filter(move |node| *node != of);
        let both = |a: NodeId, b: NodeId| [(a, b), (b, a)];
        let from = |node: NodeId| others(node).map(|other| (node, other)).collect::<Vec<_>>();
        let to = |node: NodeId| others(node).map(|other| (other, node)).collect::<Vec<_>>();
        let alone = |node: NodeId| others(node).flat_map(|other| both(node, other)).collect::<Vec<_>>();
        let cuts = match kind {
            Kind::Split | Kind::Bridge => {
                let (a, mut b): (Vec<_>, Vec<_>) = nodes.iter().partition(|_| self.random.below(2) == 0);
                if kind == Kind::Bridge {
                    b.pop()?;
                }
                a.iter().flat_map(|a| b.iter().flat_map(|b| both(*a, *b))).collect()
            }
            Kind::Isolate => alone(one),
            Kind::IsolateLeader => alone(leader?),
            Kind::OneWay => {
                if self.random.below(2) == 0 {
                    from(one)
                } else {
                    to(one)
                }
            }
            Kind::OneWayLeader => {
                if self.random.below(2) == 0 {
                    from(leader?)
                } else {
                    to(leader?)
                }
            }
            Kind::Ring => nodes.iter().zip(nodes.iter().cycle().skip(1)).flat_map(|(a, b)| both(*a, *b)).collect(),
            Kind::Crash => return self.crash(&[one], sim, world),
            Kind::CrashWriting => {
                let fs = world.borrow().hosts[&one].fs.clone();
                fs.die_at(fs.steps() + self.random.below(12));
                return Some((format!("{one}"), Undo::Writing(one)));
            }
            Kind::CrashLeader => return self.crash(&[leader?], sim, world),
            Kind::VanishLeader => {
                let leader = leader?;
                let ways = alone(leader);
                self.cut(&ways, sim);
                let crashed = self.crash(&[leader], sim, world);
                self.mend(&ways, sim);
                return crashed;
            }
            Kind::CrashAll => return self.crash(&nodes, sim, world),
            _ => return self.hinder(kind, one, &nodes, sim, world),
        };
        let cuts: Vec<(NodeId, NodeId)> = cuts;
        self.cut(&cuts, sim);
        Some((format!("{cuts:?}"), Undo::Cuts(cuts)))
    }

    /// Faults that break nothing.
    fn hinder(
        &mut self,
        kind: Kind,
        one: NodeId,
        nodes: &[NodeId],
        sim: &mut Sim<'_>,
        world: &Rc<RefCell<World>>,
    ) -> Option<(String, Undo)> {
        let other = self.pick(&nodes.iter().copied().filter(|node| *node != one).collect::<Vec<_>>())?;
        let free = !self.cuts.contains_key(&(one, other)) && !self.cuts.contains_key(&(other, one));
        match kind {
            Kind::Hold if free => {
                sim.hold(name(one), name(other));
                Some((format!("{one} {other}"), Undo::Hold(one, other)))
            }
            Kind::Flap if free => {
                sim.set_link_fail_rate(name(one), name(other), 0.02);
                Some((format!("{one} {other}"), Undo::Flap(one, other)))
            }
            Kind::Late => {
                let latency = Duration::from_millis(20 + self.random.below(200));
                sim.set_max_message_latency(latency);
                Some((format!("{latency:?}"), Undo::Late))
            }
            Kind::SlowDisk => {
                let latency = 20 + self.random.below(300);
                let before = std::mem::replace(&mut world.borrow_mut().host(one).disk_latency, latency);
                Some((format!("{one}: {latency} ms"), Undo::Disk(one, before.min(5))))
            }
            Kind::Clock => {
                let jump = self.random.below(7_200_000) as i64 - 3_600_000;
                world.borrow_mut().host(one).clock.jump(jump);
                Some((format!("{one}: {jump} ms"), Undo::Clock(one)))
            }
            Kind::Drift => {
                let per_mille = self.random.below(1_000) as i64 - 500;
                world.borrow_mut().host(one).clock.drift(per_mille);
                Some((format!("{one}: {per_mille} ms a second"), Undo::Drift(one)))
            }
            _ => None,
        }
    }

    fn crash(&mut self, nodes: &[NodeId], sim: &mut Sim<'_>, world: &Rc<RefCell<World>>) -> Option<(String, Undo)> {
        let running = world.borrow().running();
        let nodes: Vec<NodeId> = nodes.iter().copied().filter(|node| running.contains(node)).collect();
        let mut what = String::new();
        for node in &nodes {
            let unsynced = match self.random.below(3) {
                0 => Unsynced::Lost,
                1 => Unsynced::Kept,
                _ => Unsynced::Torn(self.random.next_u64()),
            };
            what += &format!("{node} {unsynced:?} ");
            sim.crash(name(*node));
            world.borrow_mut().crashed(*node, unsynced);
            self.crashes += 1;
        }
        (!nodes.is_empty()).then_some((what, Undo::Start(nodes)))
    }

    fn undo(&mut self, undo: Undo, sim: &mut Sim<'_>, world: &Rc<RefCell<World>>) {
        match undo {
            Undo::Cuts(cuts) => self.mend(&cuts, sim),
            Undo::Hold(a, b) => {
                sim.release(name(a), name(b));
                self.renew(a, b, sim);
            }
            Undo::Flap(a, b) => {
                sim.set_link_fail_rate(name(a), name(b), 0.0);
                sim.repair(name(a), name(b));
                self.renew(a, b, sim);
            }
            Undo::Late => sim.set_max_message_latency(self.latency),
            Undo::Disk(node, latency) => world.borrow_mut().host(node).disk_latency = latency,
            Undo::Start(nodes) => nodes.iter().for_each(|node| {
                world.borrow_mut().trace.line(|| format!("start {node}"));
                world.borrow_mut().host(*node).running = true;
                sim.bounce(name(*node));
            }),
            Undo::Writing(node) => {
                let fs = &world.borrow().hosts[&node].fs;
                if !fs.is_dead() {
                    fs.die_at(u64::MAX);
                }
            }
            Undo::Clock(node) => world.borrow_mut().host(node).clock.jump(0),
            Undo::Drift(node) => world.borrow_mut().host(node).clock.drift(0),
        }
    }

    fn cut(&mut self, cuts: &[(NodeId, NodeId)], sim: &Sim<'_>) {
        for way in cuts {
            *self.cuts.entry(*way).or_default() += 1;
            sim.partition_oneway(name(way.0), name(way.1));
        }
    }

    fn mend(&mut self, cuts: &[(NodeId, NodeId)], sim: &Sim<'_>) {
        for way in cuts {
            let count = self.cuts.entry(*way).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.cuts.remove(way);
                sim.repair_oneway(name(way.0), name(way.1));
            }
        }
    }

    /// What a release or a repair opened stays cut where other faults cut it.
    fn renew(&self, a: NodeId, b: NodeId, sim: &Sim<'_>) {
        for way in [(a, b), (b, a)] {
            if self.cuts.contains_key(&way) {
                sim.partition_oneway(name(way.0), name(way.1));
            }
        }
    }

    fn pick(&self, nodes: &[NodeId]) -> Option<NodeId> {
        let len = nodes.len() as u64;
        (len > 0).then(|| nodes[self.random.below(len) as usize])
    }
}
