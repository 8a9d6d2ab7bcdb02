//! Harm to files of a node that does not run: it repairs them from what it still has, or goes on as a new member. Each is
//! alone, since what became of it has to be told apart.

use std::{fs, io, path::PathBuf};

use rand::{
    rngs::SmallRng,
    seq::{IndexedRandom as _, IteratorRandom as _},
};

use super::{Active, Class, Kind, Undo, of_nodes};
use crate::{
    damage::{How, harm},
    run::world::World,
};

/// Which files.
#[derive(Clone, Copy, Debug)]
enum Of {
    /// The write-ahead log with its mark.
    Log,
    /// What is stored of the state: written behind, and snapshots.
    State,
}

const fn kind(name: &'static str, begin: fn(&mut World, &mut SmallRng) -> Option<Active>) -> Kind {
    Kind { name, class: Class::Damage, nodes: 3, alone: true, lasts_ms: super::BRIEF, begin }
}

pub(super) const KINDS: &[Kind] = &[
    kind("flip_in_log", |world, rng| spoil(world, rng, Of::Log, How::Flip)),
    kind("truncate_log", |world, rng| spoil(world, rng, Of::Log, How::Truncate)),
    kind("zero_in_log", |world, rng| spoil(world, rng, Of::Log, How::Zero)),
    kind("stale_log", |world, rng| turn_back(world, rng, Of::Log)),
    kind("flip_in_state", |world, rng| spoil(world, rng, Of::State, How::Flip)),
    kind("truncate_state", |world, rng| spoil(world, rng, Of::State, How::Truncate)),
    kind("zero_in_state", |world, rng| spoil(world, rng, Of::State, How::Zero)),
    kind("stale_state", |world, rng| turn_back(world, rng, Of::State)),
];

/// A file of a node, below its data directory.
fn choose(world: &World, rng: &mut SmallRng, of: Of) -> Option<(usize, PathBuf)> {
    let node = world.free().into_iter().choose(rng)?;
    let data = &world.cluster.nodes[node].data;
    let places: &[&str] = match of {
        Of::Log => &["wal"],
        Of::State => &["db", "snapshots"],
    };
    let files = places.iter().flat_map(|place| fs::read_dir(data.join(place)).into_iter().flatten().flatten());
    // What is in preparation holds nothing yet. The larger ones more often: they hold what counts.
    let weighed = |entry: fs::DirEntry| {
        let (path, meta) = (entry.path(), entry.metadata().ok()?);
        let counts = meta.is_file() && path.extension().is_none_or(|extension| extension != "tmp");
        Some((path, meta.len().checked_ilog2().filter(|_| counts)?))
    };
    let mut files: Vec<(PathBuf, u32)> = files.filter_map(weighed).collect();
    files.sort();
    let (file, _) = files.choose_weighted(rng, |(_, weight)| *weight).ok()?;
    Some((node, file.strip_prefix(data).ok()?.to_owned()))
}

/// Killed, and damaged while it is down.
fn spoil(world: &mut World, rng: &mut SmallRng, of: Of, how: How) -> Option<Active> {
    let (node, file) = choose(world, rng, of)?;
    world.hold(node);
    let done = harm(&world.cluster.nodes[node].data.join(&file), how, rng);
    let offset = done.unwrap_or_else(|error: io::Error| panic!("{} cannot be damaged: {error}", file.display()));
    world.damaged(node, &file, how.name(), offset);
    Some(Active {
        fault: of_nodes(world, &[node]),
        nodes: vec![node],
        agents: Vec::new(),
        undo: vec![Undo::Release(node)],
    })
}

/// A file becomes what it was when the fault began, while the others are newer.
fn turn_back(world: &mut World, rng: &mut SmallRng, of: Of) -> Option<Active> {
    let (node, file) = choose(world, rng, of)?;
    let old = fs::read(world.cluster.nodes[node].data.join(&file)).ok()?;
    Some(Active {
        fault: of_nodes(world, &[node]),
        nodes: vec![node],
        agents: Vec::new(),
        undo: vec![Undo::TurnBack { node, file, old }],
    })
}
