//! Faults of nodes' wall clocks: they jump by up to an hour, there and back. What measures durations is not touched.

use rand::{Rng as _, rngs::SmallRng};

use super::{Active, Class, Kind, Undo, everyone, follower, leader, of_nodes};
use crate::run::world::World;

const fn kind(name: &'static str, begin: fn(&mut World, &mut SmallRng) -> Option<Active>) -> Kind {
    Kind { name, class: Class::Clock, nodes: 3, alone: false, lasts_ms: super::BRIEF, begin }
}

pub(super) const KINDS: &[Kind] = &[
    kind("clock_of_leader_ahead", |world, rng| jump(world, &[leader(world)?], 1, rng)),
    kind("clock_of_leader_back", |world, rng| jump(world, &[leader(world)?], -1, rng)),
    kind("clock_of_follower_ahead", |world, rng| jump(world, &[follower(world, rng)?], 1, rng)),
    kind("clock_of_follower_back", |world, rng| jump(world, &[follower(world, rng)?], -1, rng)),
    kind("clocks_apart", |world, rng| {
        let nodes = everyone(world)?;
        let mut done = jump(world, &nodes, 1, rng)?;
        // Each somewhere else.
        for &node in &nodes {
            let seconds = rng.random_range(-3_600..=3_600);
            world.set_clock(node, seconds);
        }
        done.fault.detail = "each by itself".to_owned();
        Some(done)
    }),
];

fn jump(world: &mut World, nodes: &[usize], way: i64, rng: &mut SmallRng) -> Option<Active> {
    let seconds = way * rng.random_range(60..=3_600);
    if !world.has_clocks() {
        return None;
    }
    nodes.iter().for_each(|&node| world.set_clock(node, seconds));
    let mut fault = of_nodes(world, nodes);
    fault.detail = format!("{seconds} s");
    let undo = nodes.iter().map(|&node| Undo::Clock(node)).collect();
    Some(Active { fault, nodes: nodes.to_vec(), agents: Vec::new(), undo })
}
