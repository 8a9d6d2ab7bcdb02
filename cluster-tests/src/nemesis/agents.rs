//! Faults of agents, of what they run, and of their links to nodes.

use std::ops::RangeInclusive;

use nix::sys::signal::{Signal, kill};
use rand::{rngs::SmallRng, seq::IndexedRandom as _};

use super::{Active, Class, Kind, Undo, agent, leader, of_nodes};
use crate::{
    history::Effect,
    netns::{Link, Way},
    run::world::World,
};

/// Longer than it takes to find attempts lost, seven seconds: they are given to others while the first worker may run them.
const LEASES_END: RangeInclusive<u64> = 8_000..=11_000;

const fn kind(name: &'static str, begin: fn(&mut World, &mut SmallRng) -> Option<Active>) -> Kind {
    Kind { name, class: Class::Agents, nodes: 3, alone: false, lasts_ms: LEASES_END, begin }
}

pub(super) const KINDS: &[Kind] = &[
    kind("agent_cut", |world, rng| cut(world, rng, [true, true])),
    kind("agent_mute", |world, rng| cut(world, rng, [true, false])),
    kind("agent_deaf", |world, rng| cut(world, rng, [false, true])),
    kind("agent_killed", |world, rng| {
        let agent = agent(world, rng)?;
        world.cluster.agents[agent].kill();
        Some(done(world, agent, Undo::StartAgent(agent)))
    }),
    kind("agent_blinks", |world, rng| {
        let agent = agent(world, rng)?;
        world.cluster.agents[agent].kill();
        world.cluster.agents[agent].start();
        let mut done = done(world, agent, Undo::StartAgent(agent));
        done.undo.clear();
        Some(done)
    }),
    kind("agent_paused", |world, rng| {
        let agent = agent(world, rng)?;
        world.cluster.agents[agent].freeze();
        Some(done(world, agent, Undo::ThawAgent(agent)))
    }),
    kind("agent_killed_with_watchdogs", |world, rng| {
        let agent = agent(world, rng)?;
        let data = world.cluster.agents[agent].data.clone();
        // Whichever of the two goes first: the agent's guardians live on.
        for pid in crate::processes::named_within("hodei-watchdog", &data) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        world.cluster.agents[agent].kill();
        Some(done(world, agent, Undo::StartAgent(agent)))
    }),
    kind("machine_frozen", |world, rng| {
        let agent = agent(world, rng)?;
        machine(world, agent, Signal::SIGSTOP);
        let mut done = done(world, agent, Undo::ThawMachine(agent));
        done.fault.effect = Effect::Freeze;
        Some(done)
    }),
    kind("agents_with_minority", |world, rng| {
        // An agent that sees only a node which is cut off from the others.
        let (leader, agent) = (leader(world)?, agent(world, rng)?);
        let others: Vec<usize> = (0..world.nodes.len()).filter(|&node| node != leader).collect();
        let mut ways: Vec<Way> = Vec::new();
        for &other in &others {
            for host in [&world.nodes[leader], &world.agents[agent]] {
                ways.extend([host.to(&world.nodes[other]), world.nodes[other].to(host)]);
            }
        }
        let laid = world.net.lay(ways.into_iter().map(|way| (way, Link::CUT)).collect());
        let mut fault = of_nodes(world, &[leader]);
        fault.minority = world.ids(&[leader]);
        fault.workers = world.workers(&[agent]);
        Some(Active { fault, nodes: vec![leader], agents: vec![agent], undo: vec![Undo::Lift(laid)] })
    }),
];

fn done(world: &World, agent: usize, undo: Undo) -> Active {
    let mut fault = of_nodes(world, &[]);
    fault.workers = world.workers(&[agent]);
    Active { fault, nodes: Vec::new(), agents: vec![agent], undo: vec![undo] }
}

/// Cut off from all nodes: what it says, what it hears, or both.
fn cut(world: &mut World, rng: &mut SmallRng, [mute, deaf]: [bool; 2]) -> Option<Active> {
    let agent = *world.free_agents().choose(rng)?;
    let host = &world.agents[agent];
    let ways = world.nodes.iter().flat_map(|node| {
        let says = mute.then(|| host.to(node));
        let hears = deaf.then(|| node.to(host));
        says.into_iter().chain(hears)
    });
    let laid = world.net.lay(ways.map(|way| (way, Link::CUT)).collect());
    Some(done(world, agent, Undo::Lift(laid)))
}

/// Sends a signal to an agent and to everything that it has made.
pub(super) fn machine(world: &World, agent: usize, signal: Signal) {
    let of = &world.cluster.agents[agent];
    let variable = format!("HODEI_WORKER_ID={}", of.worker);
    let mut all = crate::processes::with_variable(|found| found == variable.as_bytes());
    for name in ["hodei-watchdog", "hodei-guardian"] {
        all.extend(crate::processes::named_within(name, &of.data));
    }
    all.extend(of.pid());
    all.sort_unstable();
    all.dedup();
    // Frozen from the outside in, so that nobody sees another one frozen; woken the other way round.
    if signal == Signal::SIGSTOP {
        all.reverse();
    }
    for pid in all {
        let _ = kill(pid, signal);
    }
}
