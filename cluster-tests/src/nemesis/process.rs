//! Faults of nodes' processes.

use std::time::Duration;

use hodei_proto::v1::{ListJobsRequest, TransferLeaderRequest};
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use tokio::time::sleep;

use super::{Active, Class, Kind, Undo, everyone, follower, leader, majority, of_nodes};
use crate::{
    groups::{Controller, Group},
    run::{
        field::{Field, Seat, within},
        world::World,
    },
};

/// How often a rolling restart looks whether a node is back.
const LOOK_EVERY: Duration = Duration::from_millis(100);

const fn kind(name: &'static str, begin: fn(&mut World, &mut SmallRng) -> Option<Active>) -> Kind {
    Kind { name, class: Class::Process, nodes: 3, alone: false, lasts_ms: super::BRIEF, begin }
}

/// By itself, and for so long that what the others must do without them can be seen.
const fn dead(name: &'static str, begin: fn(&mut World, &mut SmallRng) -> Option<Active>) -> Kind {
    Kind { alone: true, lasts_ms: 18_000..=22_000, ..kind(name, begin) }
}

pub(super) const KINDS: &[Kind] = &[
    kind("kill_leader", |world, _| Some(kill(world, &[leader(world)?], &[]))),
    kind("kill_follower", |world, rng| Some(kill(world, &[follower(world, rng)?], &[]))),
    kind("kill_majority", |world, rng| {
        let (majority, rest) = majority(world, rng)?;
        Some(kill(world, &majority, &rest))
    }),
    kind("kill_all", |world, _| Some(kill(world, &everyone(world)?, &[]))),
    kind("blink_leader", |world, _| Some(blink(world, leader(world)?))),
    kind("blink_all", |world, _| {
        let nodes = everyone(world)?;
        nodes.iter().for_each(|&node| world.cluster.nodes[node].kill());
        Some(Active { fault: of_nodes(world, &nodes), nodes, agents: Vec::new(), undo: Vec::new() })
    }),
    dead("dead_leader", |world, _| Some(for_good(world, &[leader(world)?]))),
    dead("dead_follower", |world, rng| Some(for_good(world, &[follower(world, rng)?]))),
    Kind {
        nodes: 5,
        ..dead("dead_minority", |world, rng| {
            let (majority, rest) = majority(world, rng)?;
            // The leader is one of them.
            let (_, rest) = rest.split_last().filter(|_| rest.len() + majority.len() > 4)?;
            Some(for_good(world, &[&majority[..1], rest].concat()))
        })
    },
    kind("stop_leader", |world, _| Some(stop(world, leader(world)?))),
    kind("stop_follower", |world, rng| Some(stop(world, follower(world, rng)?))),
    // Over as soon as the last one is back.
    Kind { alone: true, lasts_ms: 60_000..=60_000, ..kind("rolling_restart", rolling) },
    kind("transfer_leader", transfer),
    kind("pause_leader", |world, _| Some(pause(world, &[leader(world)?], &[]))),
    kind("pause_follower", |world, rng| Some(pause(world, &[follower(world, rng)?], &[]))),
    kind("pause_majority", |world, rng| {
        let (majority, rest) = majority(world, rng)?;
        Some(pause(world, &majority, &rest))
    }),
    kind("pause_all", |world, _| Some(pause(world, &everyone(world)?, &[]))),
    kind("frozen_leader", |world, _| freeze(world, leader(world)?, "pause_leader")),
    kind("frozen_follower", |world, rng| freeze(world, follower(world, rng)?, "pause_follower")),
    kind("out_of_memory_leader", |world, _| starve(world, leader(world)?, "blink_leader")),
    kind("out_of_memory_follower", |world, rng| starve(world, follower(world, rng)?, "blink_follower")),
];

/// Down until it is healed; `alone` are left without a majority.
fn kill(world: &mut World, nodes: &[usize], alone: &[usize]) -> Active {
    nodes.iter().for_each(|&node| world.hold(node));
    let mut fault = of_nodes(world, nodes);
    fault.minority = world.ids(alone);
    let undo = nodes.iter().map(|&node| Undo::Release(node)).collect();
    Active { fault, nodes: [nodes, alone].concat(), agents: Vec::new(), undo }
}

/// Killed, and not waited for: whatever has to happen has to happen without them.
fn for_good(world: &mut World, nodes: &[usize]) -> Active {
    let mut dead = kill(world, nodes, &[]);
    dead.fault.permanent = true;
    dead
}

/// Killed, and started again at once.
fn blink(world: &mut World, node: usize) -> Active {
    world.cluster.nodes[node].kill();
    Active { fault: of_nodes(world, &[node]), nodes: vec![node], agents: Vec::new(), undo: Vec::new() }
}

/// SIGTERM, and down until it is healed.
fn stop(world: &mut World, node: usize) -> Active {
    world.hold_down(node);
    world.cluster.nodes[node].process().signal(nix::sys::signal::Signal::SIGTERM);
    let fault = of_nodes(world, &[node]);
    Active { fault, nodes: vec![node], agents: Vec::new(), undo: vec![Undo::Release(node)] }
}

/// SIGTERM to one node after the other, to the next one once the one before is back and reads the newest state.
fn rolling(world: &mut World, _: &mut SmallRng) -> Option<Active> {
    let nodes = everyone(world)?;
    let restarts: Vec<(Pid, usize)> = nodes.iter().filter_map(|&node| Some((process_of(world, node)?, node))).collect();
    let (field, before) = (world.field.clone(), world.field.seats());
    let restarting = tokio::spawn(async move {
        for (process, node) in restarts {
            // Nobody else ends processes meanwhile; whoever has ended by itself is another process by now.
            if field.seats()[node].starts == before[node].starts {
                let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM);
            }
            while !is_back(&field, before[node], node).await {
                sleep(LOOK_EVERY).await;
            }
        }
    });
    let undo = vec![Undo::Abort(restarting)];
    Some(Active { fault: of_nodes(world, &nodes), nodes, agents: Vec::new(), undo })
}

async fn is_back(field: &Field, before: Seat, node: usize) -> bool {
    let seat = field.seats()[node];
    let mut client = field.client(seat, 0).jobs();
    let newest = ListJobsRequest { limit: 1, ..ListJobsRequest::default() };
    seat.starts > before.starts && within(client.list_jobs(Field::ask(newest))).await.is_ok()
}

fn pause(world: &mut World, nodes: &[usize], alone: &[usize]) -> Active {
    nodes.iter().for_each(|&node| world.cluster.nodes[node].freeze());
    let mut fault = of_nodes(world, nodes);
    fault.minority = world.ids(alone);
    let undo = nodes.iter().map(|&node| Undo::Thaw(node)).collect();
    Active { fault, nodes: [nodes, alone].concat(), agents: Vec::new(), undo }
}

/// As [`pause`], by a control group of version 1.
fn freeze(world: &mut World, node: usize, or: &str) -> Option<Active> {
    if !Controller::Freezer.is_there() {
        return Some(pause(world, &[node], &[]).instead(or));
    }
    let process = process_of(world, node)?;
    let fault = of_nodes(world, &[node]);
    let undo = vec![Undo::LetGo(Group::frozen(process))];
    Some(Active { fault, nodes: vec![node], agents: Vec::new(), undo })
}

/// Killed by the kernel where it next needs memory, and started again at once.
fn starve(world: &mut World, node: usize, or: &str) -> Option<Active> {
    if !Controller::Memory.is_there() {
        return Some(blink(world, node).instead(or));
    }
    let process = process_of(world, node)?;
    let fault = of_nodes(world, &[node]);
    let undo = vec![Undo::Feed(Group::starved(process))];
    Some(Active { fault, nodes: vec![node], agents: Vec::new(), undo })
}

fn process_of(world: &mut World, node: usize) -> Option<Pid> {
    let node = &mut world.cluster.nodes[node];
    (node.is_started() && !node.process().is_gone()).then(|| node.process().pid())
}

/// Somebody asks for another leader.
fn transfer(world: &mut World, _: &mut SmallRng) -> Option<Active> {
    let leader = leader(world)?;
    let mut client = world.cluster.client(leader).cluster();
    // The leader may answer, or be gone by then: what comes of it is seen by all.
    tokio::spawn(async move { within(client.transfer_leader(Field::ask(TransferLeaderRequest { to: 0 }))).await });
    Some(Active { fault: of_nodes(world, &[leader]), nodes: vec![leader], agents: Vec::new(), undo: Vec::new() })
}
