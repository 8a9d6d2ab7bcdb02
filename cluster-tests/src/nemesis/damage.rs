//! Harm to files of a node that does not run: it repairs them from what it still has, or goes on as a new member. Each is
//! alone, since what became of it has to be told apart.

use std::{
    fs,
    path::{Path, PathBuf},
};

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

/// And which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    /// Any.
    Any,
    /// Those that are written anew while the node works: an older copy of any other is what is there.
    Changing,
}

/// Files that are, besides the newest segment of the log: its mark, and the stored state.
const CHANGING: [&str; 2] = ["wal/mark", "db/db"];
/// How many files are tried.
const TRIES: u32 = 20;

const fn kind(name: &'static str, begin: fn(&mut World, &mut SmallRng) -> Option<Active>) -> Kind {
    Kind { name, class: Class::Damage, nodes: 3, alone: true, lasts_ms: super::BRIEF, begin }
}

/// For so long that something is written meanwhile: what is stored of the state is rewritten every few seconds.
const fn lasting(name: &'static str, begin: fn(&mut World, &mut SmallRng) -> Option<Active>) -> Kind {
    Kind { lasts_ms: 15_000..=18_000, ..kind(name, begin) }
}

pub(super) const KINDS: &[Kind] = &[
    kind("flip_in_log", |world, rng| spoil(world, rng, Of::Log, How::Flip)),
    kind("truncate_log", |world, rng| spoil(world, rng, Of::Log, How::Truncate)),
    kind("zero_in_log", |world, rng| spoil(world, rng, Of::Log, How::Zero)),
    lasting("stale_log", |world, rng| turn_back(world, rng, Of::Log)),
    kind("flip_in_state", |world, rng| spoil(world, rng, Of::State, How::Flip)),
    kind("truncate_state", |world, rng| spoil(world, rng, Of::State, How::Truncate)),
    kind("zero_in_state", |world, rng| spoil(world, rng, Of::State, How::Zero)),
    lasting("stale_state", |world, rng| turn_back(world, rng, Of::State)),
];

/// A node.
fn anyone(world: &World, rng: &mut SmallRng) -> Option<usize> {
    world.free().into_iter().choose(rng)
}

/// A file of a node, below its data directory.
fn choose(data: &Path, rng: &mut SmallRng, of: Of, which: Which) -> Option<PathBuf> {
    let places: &[&str] = match (of, which) {
        (Of::Log, _) => &["wal"],
        (Of::State, Which::Any) => &["db", "snapshots"],
        (Of::State, Which::Changing) => &["db"],
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
    if which == Which::Changing {
        let newest = files.iter().map(|(path, _)| path.clone()).filter(|path| is_segment(path)).max();
        files.retain(|(path, _)| Some(path) == newest.as_ref() || CHANGING.iter().any(|name| path.ends_with(name)));
    }
    let (file, _) = files.choose_weighted(rng, |(_, weight)| *weight).ok()?;
    Some(file.strip_prefix(data).ok()?.to_owned())
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "wal")
}

/// Killed, and damaged while it is down.
fn spoil(world: &mut World, rng: &mut SmallRng, of: Of, how: How) -> Option<Active> {
    let node = anyone(world, rng)?;
    world.hold(node);
    let data = world.cluster.nodes[node].data.clone();
    // Some files have nothing in them that could become zero.
    let spoiled = (0..TRIES).find_map(|_| {
        let file = choose(&data, rng, of, Which::Any)?;
        Some((harm(&data.join(&file), how, rng).ok()?, file))
    });
    let (offset, file) = spoiled.unwrap_or_else(|| panic!("no file below {} can be damaged", data.display()));
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
    let node = anyone(world, rng)?;
    let data = &world.cluster.nodes[node].data;
    let file = choose(data, rng, of, Which::Changing)?;
    let old = fs::read(data.join(&file)).ok()?;
    Some(Active {
        fault: of_nodes(world, &[node]),
        nodes: vec![node],
        agents: Vec::new(),
        undo: vec![Undo::TurnBack { node, file, old }],
    })
}
