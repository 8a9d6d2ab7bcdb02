//! Faults of links between nodes.

use std::{sync::mpsc, thread, time::Duration};

use rand::{Rng as _, rngs::SmallRng, seq::IndexedRandom as _};

use super::{Active, Class, Kind, Undo, everyone, follower, leader, majority, moment, of_nodes};
use crate::{
    history::Effect,
    netns::{Link, Way},
    run::world::World,
};

const fn kind(name: &'static str, begin: fn(&mut World, &mut SmallRng) -> Option<Active>) -> Kind {
    Kind { name, class: Class::Network, nodes: 3, alone: false, lasts_ms: super::BRIEF, begin }
}

/// By itself, and for as long as leaders are counted (L6).
const fn lasting(name: &'static str, begin: fn(&mut World, &mut SmallRng) -> Option<Active>) -> Kind {
    Kind { alone: true, lasts_ms: 30_000..=31_000, ..kind(name, begin) }
}

pub(super) const KINDS: &[Kind] = &[
    kind("isolate_leader", |world, _| isolate(world, leader(world)?)),
    kind("isolate_follower", |world, rng| isolate(world, follower(world, rng)?)),
    kind("halves", halves),
    kind("all_cut", |world, _| {
        let nodes = everyone(world)?;
        let ways = ways(world, &nodes, &nodes);
        let mut done = cut(world, nodes.clone(), ways);
        done.fault.minority = world.ids(&nodes);
        Some(done)
    }),
    Kind { nodes: 5, ..kind("majorities_ring", ring) },
    Kind { nodes: 5, ..kind("bridge", bridge) },
    lasting("leader_mute", |world, _| one_way(world, leader(world)?, true)),
    lasting("leader_deaf", |world, _| one_way(world, leader(world)?, false)),
    lasting("follower_mute", |world, rng| one_way(world, follower(world, rng)?, true)),
    lasting("follower_deaf", |world, rng| one_way(world, follower(world, rng)?, false)),
    kind("leader_and_follower_apart", |world, rng| {
        let (leader, follower) = (leader(world)?, follower(world, rng)?);
        let ways = ways(world, &[leader], &[follower]);
        Some(cut(world, vec![leader, follower], ways))
    }),
    kind("flapping_leader", |world, rng| Some(flap(world, leader(world)?, rng))),
    kind("flapping_follower", |world, rng| Some(flap(world, follower(world, rng)?, rng))),
    kind("loss", |world, rng| Some(bad(world, Link { loss: rng.random_range(20..200), ..Link::GOOD }))),
    kind("delay", |world, rng| {
        let delay = Duration::from_millis(rng.random_range(5..80));
        Some(bad(world, Link { delay, jitter: delay, ..Link::GOOD }))
    }),
    kind("reorder", |world, rng| Some(bad(world, Link { overtaken: rng.random_range(50..400), ..Link::GOOD }))),
    kind("duplicate", |world, rng| Some(bad(world, Link { duplicated: rng.random_range(50..500), ..Link::GOOD }))),
    kind("slow_link", |world, rng| {
        Some(bad(world, Link { bytes_per_s: rng.random_range(100_000..1_000_000), ..Link::GOOD }))
    }),
    kind("jam_leader", |world, _| Some(jam(world, leader(world)?))),
    kind("jam_follower", |world, rng| Some(jam(world, follower(world, rng)?))),
    kind("reset_connections", reset),
    kind("unplug_leader", |world, _| Some(unplug(world, leader(world)?))),
    kind("unplug_follower", |world, rng| Some(unplug(world, follower(world, rng)?))),
];

/// Both ways between each of these and each of those, but for a node and itself.
pub(super) fn ways(world: &World, these: &[usize], those: &[usize]) -> Vec<Way> {
    let host = |node: usize| &world.nodes[node];
    let pairs = these.iter().flat_map(|&one| those.iter().map(move |&other| (one, other)));
    pairs
        .filter(|(one, other)| one != other)
        .flat_map(|(one, other)| [host(one).to(host(other)), host(other).to(host(one))])
        .collect()
}

pub(super) fn others(world: &World, than: usize) -> Vec<usize> {
    (0..world.nodes.len()).filter(|&node| node != than).collect()
}

fn lay(world: &World, nodes: Vec<usize>, ways: Vec<Way>, link: Link) -> Active {
    let laid = world.net.lay(ways.into_iter().map(|way| (way, link)).collect());
    let mut fault = of_nodes(world, &nodes);
    fault.detail = format!("{link:?}");
    Active { fault, nodes, agents: Vec::new(), undo: vec![Undo::Lift(laid)] }
}

fn cut(world: &World, nodes: Vec<usize>, ways: Vec<Way>) -> Active {
    lay(world, nodes, ways, Link::CUT)
}

fn isolate(world: &World, node: usize) -> Option<Active> {
    let mut done = cut(world, vec![node], ways(world, &[node], &others(world, node)));
    done.fault.minority = world.ids(&[node]);
    Some(done)
}

/// A minority with the leader, and a majority without it.
fn halves(world: &mut World, rng: &mut SmallRng) -> Option<Active> {
    let (mut majority, mut minority) = majority(world, rng)?;
    // The leader goes with the smaller part: it came first.
    if let (Some(with), true) = (minority.first_mut(), world.leader().is_some()) {
        std::mem::swap(&mut majority[0], with);
    }
    let mut done = cut(world, [majority.clone(), minority.clone()].concat(), ways(world, &majority, &minority));
    done.fault.minority = world.ids(&minority);
    Some(done)
}

/// Each node sees a majority, and no two see the same one.
fn ring(world: &mut World, _: &mut SmallRng) -> Option<Active> {
    let nodes = everyone(world)?;
    let count = nodes.len();
    let apart = |one: usize, other: usize| {
        let distance = (one + count - other) % count;
        distance.min(count - distance) > count / 4
    };
    let pairs = nodes.iter().flat_map(|&one| nodes.iter().map(move |&other| (one, other)));
    let ways =
        pairs.filter(|&(one, other)| apart(one, other)).map(|(one, other)| world.nodes[one].to(&world.nodes[other]));
    let ways = ways.collect();
    Some(cut(world, nodes, ways))
}

/// Two halves that only one node sees both of.
fn bridge(world: &mut World, _: &mut SmallRng) -> Option<Active> {
    let nodes = everyone(world)?;
    let half = nodes.len() / 2;
    let ways = ways(world, &nodes[..half], &nodes[half + 1..]);
    Some(cut(world, nodes, ways))
}

fn one_way(world: &World, node: usize, mute: bool) -> Option<Active> {
    let to = |other: usize| {
        let (from, to) = if mute { (node, other) } else { (other, node) };
        world.nodes[from].to(&world.nodes[to])
    };
    let ways = others(world, node).into_iter().map(to).collect();
    let mut done = cut(world, vec![node], ways);
    done.fault.effect = Effect::OneWay;
    Some(done)
}

/// All links between nodes are bad, so that it can be had beside other faults.
fn bad(world: &World, link: Link) -> Active {
    let nodes: Vec<usize> = (0..world.nodes.len()).collect();
    let mut done = lay(world, nodes.clone(), ways(world, &nodes, &nodes), link);
    // It keeps nobody from anything, so that other faults may act upon the same nodes.
    done.nodes.clear();
    done
}

/// What a node says and hears is kept, and all of it comes at once in the end.
fn jam(world: &World, node: usize) -> Active {
    let ways = ways(world, &[node], &others(world, node));
    lay(world, vec![node], ways, Link { jammed: true, ..Link::GOOD })
}

fn reset(world: &mut World, rng: &mut SmallRng) -> Option<Active> {
    let nodes = everyone(world)?;
    let one = *nodes.choose(rng)?;
    for other in others(world, one) {
        world.nodes[one].reset_connections(&world.nodes[other]);
    }
    Some(Active { fault: of_nodes(world, &[one]), nodes: vec![one], agents: Vec::new(), undo: Vec::new() })
}

fn unplug(world: &World, node: usize) -> Active {
    world.nodes[node].carrier(false);
    let mut fault = of_nodes(world, &[node]);
    fault.effect = Effect::Unplugged;
    Active { fault, nodes: vec![node], agents: Vec::new(), undo: vec![Undo::Carrier(node)] }
}

pub(super) fn plug(world: &World, node: usize) {
    world.net.replug(&world.nodes[node]);
}

/// Cut and joined again and again, until its thread is told to end.
fn flap(world: &World, node: usize, rng: &mut SmallRng) -> Active {
    let ways = ways(world, &[node], &others(world, node));
    let moments: Vec<Duration> = (0..64).map(|_| moment(rng)).collect();
    let (stop, stopped) = mpsc::channel::<()>();
    let links = world.net.links();
    let flapping = move || {
        for pair in moments.chunks(2).cycle() {
            let laid = links.lay(ways.iter().map(|&way| (way, Link::CUT)).collect());
            let over = stopped.recv_timeout(pair[0]) != Err(mpsc::RecvTimeoutError::Timeout);
            links.lift(laid);
            if over || stopped.recv_timeout(pair[1]) != Err(mpsc::RecvTimeoutError::Timeout) {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("flap".to_owned()).spawn(flapping).ok();
    let fault = of_nodes(world, &[node]);
    Active { fault, nodes: vec![node], agents: Vec::new(), undo: vec![Undo::Flap(stop, thread)] }
}
