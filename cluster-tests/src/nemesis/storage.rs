//! Faults of nodes' disks. None of them may lose what was acknowledged.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::{Active, Class, Kind, Undo, everyone, follower, leader, majority, of_nodes};
use crate::{disk, groups::Controller, run::world::World};

/// How long a disk that stutters stands still, and goes on, in milliseconds.
const STUTTERS: std::ops::RangeInclusive<u64> = 50..=500;

const fn kind(name: &'static str, begin: fn(&mut World, &mut SmallRng) -> Option<Active>) -> Kind {
    Kind { name, class: Class::Storage, nodes: 3, alone: false, lasts_ms: super::BRIEF, begin }
}

pub(super) const KINDS: &[Kind] = &[
    kind("power_leader", |world, _| Some(power(world, &[leader(world)?], &[]))),
    kind("power_follower", |world, rng| Some(power(world, &[follower(world, rng)?], &[]))),
    kind("power_majority", |world, rng| {
        let (majority, rest) = majority(world, rng)?;
        Some(power(world, &majority, &rest))
    }),
    kind("power_all", |world, _| Some(power(world, &everyone(world)?, &[]))),
    kind("full_leader", |world, _| fill(world, leader(world)?)),
    kind("full_follower", |world, rng| fill(world, follower(world, rng)?)),
    kind("sync_fails_leader", |world, _| Some(exhaust(world, leader(world)?))),
    kind("sync_fails_follower", |world, rng| Some(exhaust(world, follower(world, rng)?))),
    kind("slow_disk_leader", |world, rng| slow_down(world, leader(world)?, rng, "stuttering_disk_leader")),
    kind("slow_disk_follower", |world, rng| slow_down(world, follower(world, rng)?, rng, "stuttering_disk_follower")),
    kind("stuttering_disk_leader", |world, rng| stutter(world, leader(world)?, rng)),
    kind("stuttering_disk_follower", |world, rng| stutter(world, follower(world, rng)?, rng)),
    kind("stalled_disk_leader", |world, _| Some(stall(world, leader(world)?))),
    kind("stalled_disk_follower", |world, rng| Some(stall(world, follower(world, rng)?))),
    kind("read_only_leader", |world, _| Some(read_only(world, leader(world)?))),
    kind("read_only_follower", |world, rng| Some(read_only(world, follower(world, rng)?))),
];

/// What was not durable is gone, and so is the process; down until it is healed.
fn power(world: &mut World, nodes: &[usize], alone: &[usize]) -> Active {
    // All disks first: no process is to learn of another one's end while its own disk still takes writes.
    nodes.iter().for_each(|&node| world.disks[node].cut_power());
    nodes.iter().for_each(|&node| world.hold(node));
    let mut fault = of_nodes(world, nodes);
    fault.minority = world.ids(alone);
    // Undone from the last to the first: power, then the process.
    let undo = nodes.iter().flat_map(|&node| [Undo::Release(node), Undo::Power(node)]).collect();
    Active { fault, nodes: [nodes, alone].concat(), agents: Vec::new(), undo }
}

/// Not a byte is left. The node may end by itself, and is started again, in vain, until there is room.
fn fill(world: &mut World, node: usize) -> Option<Active> {
    let path = world.disks[node].path().join("filler");
    disk::fill(&path).ok()?;
    let fault = of_nodes(world, &[node]);
    Some(Active { fault, nodes: vec![node], agents: Vec::new(), undo: vec![Undo::Empty(path)] })
}

/// As a file system becomes that has found an error in itself.
fn read_only(world: &mut World, node: usize) -> Active {
    world.disks[node].find_error();
    let fault = of_nodes(world, &[node]);
    Active { fault, nodes: vec![node], agents: Vec::new(), undo: vec![Undo::Remount(node)] }
}

/// Writes succeed, and making them durable fails. The node ends, and is started again, in vain, until it is healed.
fn exhaust(world: &mut World, node: usize) -> Active {
    world.disks[node].exhaust();
    let fault = of_nodes(world, &[node]);
    Active { fault, nodes: vec![node], agents: Vec::new(), undo: vec![Undo::Replenish(node)] }
}

/// Each write that is to be durable takes its time: 10 to 40 of them a second reach the disk.
fn slow_down(world: &mut World, node: usize, rng: &mut SmallRng, or: &str) -> Option<Active> {
    if !Controller::Blkio.is_there() {
        return Some(stutter(world, node, rng)?.instead(or));
    }
    if !world.cluster.nodes[node].is_started() {
        return None;
    }
    let writes = rng.random_range(10..=40);
    let process = world.cluster.nodes[node].process().pid();
    let undo = vec![Undo::LetGo(world.disks[node].slow_down(process, writes))];
    let mut fault = of_nodes(world, &[node]);
    fault.detail = format!("{writes} writes a second");
    Some(Active { fault, nodes: vec![node], agents: Vec::new(), undo })
}

/// Nothing is written, and nothing fails: whatever would write waits.
fn stall(world: &mut World, node: usize) -> Active {
    let undo = vec![Undo::ThawDisk(disk::freeze(world.disks[node].path()))];
    Active { fault: of_nodes(world, &[node]), nodes: vec![node], agents: Vec::new(), undo }
}

/// The same for moments, again and again, as of a disk that tidies up.
fn stutter(world: &mut World, node: usize, rng: &mut SmallRng) -> Option<Active> {
    let path = world.disks[node].path().to_owned();
    let mut rng = SmallRng::from_rng(rng);
    let (stop, stopped) = mpsc::channel::<()>();
    let mut goes_on = move || {
        let moment = Duration::from_millis(rng.random_range(STUTTERS));
        stopped.recv_timeout(moment) == Err(RecvTimeoutError::Timeout)
    };
    let freeze = move || {
        loop {
            let frozen = disk::freeze(&path);
            let on = goes_on();
            drop(frozen);
            if !on || !goes_on() {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("stutter".to_owned()).spawn(freeze).ok()?;
    let undo = vec![Undo::Flap(stop, Some(thread))];
    Some(Active { fault: of_nodes(world, &[node]), nodes: vec![node], agents: Vec::new(), undo })
}
