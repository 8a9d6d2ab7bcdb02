//! What is done to a cluster on purpose: the kinds of fault, how each begins, and how it is healed.
//!
//! A fault acts upon nodes, agents or links that no other fault acts upon at the time, and reserves them; where there are
//! none it does not begin. It says what it did as a [`Fault`], which checkers go by, and leaves behind what [`heal`] takes to
//! undo it. Nothing here waits: what a fault brings about is for clients and polls to see.

mod agents;
mod clock;
mod damage;
mod depose;
mod membership;
mod network;
mod points;
mod process;
mod storage;

use std::{ops::RangeInclusive, path::PathBuf, thread::JoinHandle};

use rand::{Rng as _, rngs::SmallRng, seq::IndexedRandom as _};

use crate::{
    disk::{self, Frozen},
    failpoints::Failpoints,
    groups::Group,
    history::{Fault, Phase},
    run::world::World,
};

/// A kind of fault.
pub struct Kind {
    /// What it is called, in histories and schedules.
    pub name: &'static str,
    /// What it acts upon.
    pub class: Class,
    /// It takes at least so many nodes.
    pub nodes: usize,
    /// What it brings about is judged by itself: no other fault at the same time.
    pub alone: bool,
    /// How long it lasts, in milliseconds.
    pub lasts_ms: RangeInclusive<u64>,
    begin: fn(&mut World, &mut SmallRng) -> Option<Active>,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Kind {
    /// Whether a node's process may end by it, at once or when it notices. The others every node has to survive.
    #[must_use]
    pub fn ends_nodes(&self) -> bool {
        let survived: &[&str] = match self.class {
            Class::Network | Class::Agents | Class::Clock => return false,
            Class::Process => &["pause", "frozen", "transfer"],
            Class::Storage => &["slow_disk", "stuttering_disk", "stalled_disk"],
            Class::Membership | Class::Damage | Class::Points => &[],
        };
        !survived.iter().any(|name| self.name.starts_with(name))
    }
}

/// How long most faults last, in milliseconds.
const BRIEF: RangeInclusive<u64> = 5_000..=8_000;

/// What faults act upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Links between hosts.
    Network,
    /// Processes of nodes.
    Process,
    /// Disks of nodes.
    Storage,
    /// Agents.
    Agents,
    /// Clocks of nodes.
    Clock,
    /// Who belongs to the cluster, and where.
    Membership,
    /// Files of nodes.
    Damage,
    /// Processes, at named places in their code.
    Points,
}

/// All there are.
pub const KINDS: &[&[Kind]] = &[
    network::KINDS,
    process::KINDS,
    storage::KINDS,
    agents::KINDS,
    clock::KINDS,
    membership::KINDS,
    damage::KINDS,
    points::KINDS,
];

/// All kinds, one after the other.
pub fn kinds() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().copied().flatten()
}

/// What takes a fault back.
#[derive(Debug)]
enum Undo {
    /// What was laid on links.
    Lift(u64),
    /// Ends a thread that changes things again and again, which takes back what it did.
    Flap(std::sync::mpsc::Sender<()>, Option<JoinHandle<()>>),
    /// Plugs a host in again.
    Carrier(usize),
    /// Lets a node run again.
    Release(usize),
    /// SIGCONT.
    Thaw(usize),
    /// Gives a node's disk its power back.
    Power(usize),
    /// Lets a process out of the control group that it is in.
    LetGo(Group),
    /// The same, once the kernel has killed it there or not.
    Feed(Group),
    /// Lets a node's disk take writes again.
    ThawDisk(Frozen),
    /// Removes what fills a disk.
    Empty(PathBuf),
    /// Kills a node and mounts its disk anew, with room below it.
    Replenish(usize),
    /// Ends a node, wipes its disk, and has it join as a new one.
    JoinAnew(usize),
    /// Sets a node's clock right.
    Clock(usize),
    /// Kills a node and mounts its disk anew.
    Remount(usize),
    /// Starts an agent again.
    StartAgent(usize),
    /// SIGCONT.
    ThawAgent(usize),
    /// SIGCONT to whatever an agent's machine runs.
    ThawMachine(usize),
    /// Kills a node and gives it back what a file of it once was.
    TurnBack { node: usize, file: PathBuf, old: Vec<u8> },
    /// Starts an agent again, if it was killed.
    ReviveAgent(usize),
    /// Ends a task that acts upon nodes one after the other; the fault is over when it is.
    Abort(tokio::task::JoinHandle<()>),
    /// Nobody dies there any more. So many had before.
    Disarm { site: &'static str, before: usize, controls: Vec<Failpoints> },
}

/// A fault that goes on.
#[derive(Debug)]
pub struct Active {
    fault: Fault,
    nodes: Vec<usize>,
    agents: Vec<usize>,
    undo: Vec<Undo>,
}

impl Active {
    /// Whether it is of a kind that is judged by itself.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        kinds().any(|kind| kind.alone && kind.name == self.fault.kind)
    }

    /// This machine cannot do what was planned, and this kind was done: that is told.
    fn instead(mut self, kind: &str) -> Self {
        kind.clone_into(&mut self.fault.instead);
        self
    }

    /// As it is recorded at its end.
    #[must_use]
    pub fn ended(&self) -> Fault {
        Fault { phase: Phase::End, missed: self.has_struck() == Some(false), ..self.fault.clone() }
    }

    /// Whether somebody has died as the fault wants it; absent: it is over when its time is.
    #[must_use]
    pub fn has_struck(&self) -> Option<bool> {
        self.undo.iter().find_map(|undo| match undo {
            Undo::Disarm { site, before, controls } => Some(controls.iter().any(|at| at.ended_at(site) > *before)),
            Undo::Feed(group) => Some(group.is_empty()),
            Undo::Abort(task) => Some(task.is_finished()),
            _ => None,
        })
    }

    /// As it is recorded at its beginning.
    #[must_use]
    pub fn begun(&self) -> Fault {
        self.fault.clone()
    }
}

/// Begins a fault, if there is somebody left for it.
pub fn begin(world: &mut World, kind: &Kind, rng: &mut SmallRng) -> Option<Active> {
    let mut active = (kind.begin)(world, rng)?;
    active.fault.kind = kind.name.to_owned();
    world.reserve(&active.nodes, &active.agents, true);
    if !active.fault.minority.is_empty() {
        world.field.part(&active.fault.minority);
    }
    Some(active)
}

/// Takes a fault back.
pub fn heal(world: &mut World, mut active: Active) {
    for undo in active.undo.drain(..).rev() {
        match undo {
            Undo::Lift(laid) => world.net.lift(laid),
            Undo::Flap(stop, thread) => {
                drop(stop);
                if let Some(thread) = thread {
                    let _ = thread.join();
                }
            }
            Undo::Carrier(node) => network::plug(world, node),
            Undo::Release(node) => world.release(node),
            Undo::Abort(task) => task.abort(),
            Undo::Thaw(node) => world.cluster.nodes[node].thaw(),
            Undo::Power(node) => world.disks[node].restore_power(),
            Undo::LetGo(group) | Undo::Feed(group) => drop(group),
            Undo::ThawDisk(frozen) => drop(frozen),
            Undo::Empty(file) => disk::empty(&file),
            Undo::Replenish(node) => {
                world.cluster.nodes[node].kill();
                world.disks[node].replenish();
            }
            Undo::JoinAnew(node) => {
                world.join_anew(node);
                world.release(node);
            }
            Undo::Clock(node) => world.set_clock(node, 0),
            Undo::Remount(node) => {
                world.cluster.nodes[node].kill();
                world.disks[node].restore_power();
            }
            Undo::StartAgent(agent) => world.cluster.agents[agent].start(),
            Undo::ThawAgent(agent) => world.cluster.agents[agent].thaw(),
            Undo::TurnBack { node, file, old } => {
                world.cluster.nodes[node].kill();
                let path = world.cluster.nodes[node].data.join(&file);
                // Where nothing was written since, it is no older one.
                if std::fs::read(&path).ok().as_ref() != Some(&old) {
                    std::fs::write(path, old).unwrap_or_else(|e| panic!("{} cannot be written: {e}", file.display()));
                    world.damaged(node, &file, "stale", 0);
                }
            }
            Undo::ReviveAgent(agent) => {
                world.agents_are_late = false;
                let agent = &mut world.cluster.agents[agent];
                if agent.pid().is_none() {
                    agent.start();
                }
            }
            Undo::Disarm { site, controls, .. } => controls.iter().for_each(|at| at.disarm(site)),
            Undo::ThawMachine(agent) => agents::machine(world, agent, nix::sys::signal::Signal::SIGCONT),
        }
    }
    world.reserve(&active.nodes, &active.agents, false);
    if !active.fault.minority.is_empty() {
        world.field.join(&active.fault.minority);
    }
}

/// The leader, if no fault acts upon it yet.
fn leader(world: &World) -> Option<usize> {
    world.leader().filter(|leader| world.free().contains(leader))
}

/// A node that does not lead.
fn follower(world: &World, rng: &mut SmallRng) -> Option<usize> {
    let leader = world.leader();
    let others: Vec<_> = world.free().into_iter().filter(|&node| Some(node) != leader).collect();
    others.choose(rng).copied()
}

/// All nodes, if no fault acts upon any of them.
fn everyone(world: &World) -> Option<Vec<usize>> {
    let free = world.free();
    (free.len() == world.nodes.len()).then_some(free)
}

/// A majority that the leader is in, and the others, if no fault acts upon any of them.
fn majority(world: &World, rng: &mut SmallRng) -> Option<(Vec<usize>, Vec<usize>)> {
    let mut nodes = everyone(world)?;
    rand::seq::SliceRandom::shuffle(nodes.as_mut_slice(), rng);
    if let Some(leader) = world.leader() {
        nodes.sort_by_key(|&node| node != leader);
    }
    let rest = nodes.split_off(world.majority());
    Some((nodes, rest))
}

fn agent(world: &World, rng: &mut SmallRng) -> Option<usize> {
    world.free_agents().choose(rng).copied()
}

/// A fault of nodes, for its kind to fill in.
fn of_nodes(world: &World, nodes: &[usize]) -> Fault {
    Fault {
        kind: String::new(),
        phase: Phase::Begin,
        nodes: world.ids(nodes),
        workers: Vec::new(),
        minority: Vec::new(),
        effect: crate::history::Effect::Other,
        permanent: false,
        missed: false,
        may_lose: false,
        instead: String::new(),
        detail: String::new(),
    }
}

/// Some time below a second, for what flaps.
fn moment(rng: &mut SmallRng) -> std::time::Duration {
    std::time::Duration::from_millis(rng.random_range(100..2_000))
}
