//! Damage to one file of a stopped node's log: repaired or refused, never silently wrong.
//!
//! For each kind of file and of damage, and as many seeded places as the matrix wants, the log is damaged, opened and read
//! in full. If it opens, it must hold every acknowledged record and be exactly the log as it was after some record. Beside
//! the damages of the matrix ([`hodei_damage`]): files that are missing, and those of another log.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod support;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hodei_damage::{Case, How, Matrix, Of, PAGE, PLACES, STALE, Verdict, written};
use hodei_raft::{
    seam::{
        Fs,
        sim::{SeededEntropy, SimFs, Unsynced},
    },
    wal::{
        EntryId, Lsn, OpenError, Record, mark,
        recover::Opened,
        salvage::{self, Salvaged},
        segment,
    },
};
use support::{
    Model, Workload,
    sim::{DIR, Node, Overlap, open},
    split, states, vote,
};

type Files = BTreeMap<PathBuf, Vec<u8>>;

fn files(fs: &SimFs) -> Files {
    let paths = fs.list(Path::new(DIR)).unwrap().into_iter().map(|name| Path::new(DIR).join(name));
    paths.map(|path| (path.clone(), fs.contents(&path).unwrap())).filter(|(path, _)| !is_temporary(path)).collect()
}

fn is_temporary(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tmp")
}

/// A stopped node's disk, how it got there, and what it had acknowledged.
struct Victim {
    fs: SimFs,
    states: Vec<Model>,
    acknowledged: Lsn,
    /// The files as they were after each group.
    past: Vec<Files>,
    /// Another log's files, at all times.
    other: Vec<Files>,
    /// Where votes lie: file and range of bytes.
    votes: Vec<(PathBuf, std::ops::Range<usize>)>,
}

/// Works for a while, in two lives, and stops: with everything acknowledged, or with a tail above the mark.
fn victim(seed: u64, overlap: Overlap) -> Victim {
    let fs = SimFs::default();
    let mut workload = Workload::new(seed, 300);
    let mut records = Vec::new();
    let mut past = Vec::new();
    let mut acknowledged = 0;
    for life in 0..2 {
        let mut node = Node::start(&fs, split(seed, life)).unwrap();
        node.segment_bytes = 3 * PAGE as u64;
        for at in 0..40 {
            let mut group = workload.group();
            if at == 39 {
                group.extend([vote(1_000 + life, 2, true)]);
                group.iter().skip(group.len() - 1).for_each(|record| workload.model.apply(record));
            }
            node.group(&group, overlap).unwrap();
            records.extend(group);
            past.push(files(&fs));
        }
        if life == 0 {
            node.finish().unwrap();
        }
        acknowledged = node.acknowledged;
    }
    let states = states(&Model::default(), &records);
    let votes = find_votes(&files(&fs), &records);
    Victim { fs, states, acknowledged, past, other: Vec::new(), votes }
}

/// Votes in records (found by their LSN, kind and what precedes it), in segment headers and in the mark's slots.
fn find_votes(files: &Files, records: &[Record]) -> Vec<(PathBuf, std::ops::Range<usize>)> {
    let mut found = Vec::new();
    for (path, bytes) in files {
        found.push((path.clone(), 0..96));
        if path.ends_with(mark::FILE) {
            found.push((path.clone(), PAGE..PAGE + 96));
        }
        let mut at = segment::FIRST_RECORD;
        while !path.ends_with(mark::FILE) && at + 33 < bytes.len() {
            let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
            let lsn = u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap());
            if lsn == 0 {
                break;
            }
            if matches!(records[lsn as usize - 1], Record::Vote(_)) {
                found.push((path.clone(), at..at + 33 + len));
            }
            at += 33 + len;
        }
    }
    found
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Segment,
    Mark,
    Vote,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    At(How),
    Stale,
    Missing,
    Foreign,
}

impl Damage {
    const ALL: [Self; 6] =
        [Self::At(How::Flip), Self::At(How::Truncate), Self::At(How::Zero), Self::Stale, Self::Missing, Self::Foreign];

    fn name(self) -> &'static str {
        match self {
            Self::At(how) => how.name(),
            Self::Stale => STALE,
            Self::Missing => "missing",
            Self::Foreign => "foreign",
        }
    }
}

/// Chooses a file and a place in it.
fn aim(victim: &Victim, target: Target, random: &SeededEntropy) -> (PathBuf, usize) {
    let files = files(&victim.fs);
    if target == Target::Vote {
        let (path, range) = &victim.votes[random.below(victim.votes.len() as u64) as usize];
        return (path.clone(), range.start + random.below(range.len() as u64) as usize);
    }
    let wanted = |path: &&PathBuf| path.ends_with(mark::FILE) == (target == Target::Mark);
    let paths: Vec<&PathBuf> = files.keys().filter(wanted).collect();
    let path = paths[random.below(paths.len() as u64) as usize];
    let bytes = &files[path];
    // Half of the places lie where something is written.
    let end = if random.below(2) == 0 { written(bytes) } else { bytes.len() };
    (path.clone(), random.below(end as u64) as usize)
}

/// Another log's file of the same name, from any time.
fn foreign(other: &[Files], path: &Path, random: &SeededEntropy) -> Option<Vec<u8>> {
    let files: Vec<&Vec<u8>> = other.iter().filter_map(|files| files.get(path)).collect();
    (!files.is_empty()).then(|| files[random.below(files.len() as u64) as usize].clone())
}

/// Damages a copy of the disk; none if there is nothing to damage in this way.
fn harm(victim: &Victim, damage: Damage, path: &Path, place: usize, random: &SeededEntropy) -> Option<SimFs> {
    let fs = victim.fs.power_cut(Unsynced::Kept);
    let mut bytes = fs.contents(path).unwrap();
    match damage {
        Damage::At(how) => how.apply(&mut bytes, place, random.below(8) as u8),
        Damage::Stale => {
            let olds = victim.past.iter().filter_map(|files| files.get(path)).filter(|old| **old != bytes);
            let olds: Vec<&Vec<u8>> = olds.collect();
            if olds.is_empty() {
                return None;
            }
            bytes = olds[random.below(olds.len() as u64) as usize].clone();
        }
        Damage::Foreign => bytes = foreign(&victim.other, path, random)?,
        Damage::Missing => {
            fs.remove(path).unwrap();
            return Some(fs);
        }
    }
    fs.overwrite(path, bytes);
    Some(fs)
}

/// Opens the damaged log and judges what it says, and what can be salvaged of it.
fn judge(victim: &Victim, fs: &SimFs, damage: Damage, intact: &Model, case: &str) -> Verdict {
    let changed = files(fs) != files(&victim.fs);
    let salvaged = salvage::salvage(fs, Path::new(DIR)).unwrap();
    let opened = open(fs, 4);
    judge_salvage(victim, &salvaged, damage, opened.as_ref().ok(), case);
    match opened {
        Err(OpenError::Quarantined { reason, what }) => {
            assert!(!what.is_empty() && reason.code().starts_with("HODEI-STORAGE-01"));
            Verdict::Refused
        }
        Err(error) => panic!("{case}: {error}: not a quarantine"),
        Ok(opened) => {
            let lsn = opened.recovered.lsn;
            assert!(lsn >= victim.acknowledged, "{case}: SILENT: {lsn} of {} acknowledged", victim.acknowledged);
            let found = Model::of(&opened);
            assert_eq!(found, victim.states[lsn as usize], "{case}: SILENT: another log");
            if !changed || found == *intact && opened_alike(&opened) { Verdict::Harmless } else { Verdict::Repaired }
        }
    }
}

/// What opens is salvaged as it is. Of what does not, nothing comes up that never was, and the damage is named.
fn judge_salvage(victim: &Victim, salvaged: &Salvaged, damage: Damage, opened: Option<&Opened<SimFs>>, case: &str) {
    if let Some(opened) = opened {
        assert_eq!(salvaged.damage, Vec::<String>::new(), "{case}");
        let last = salvaged.stretches.last().unwrap();
        let whole = Model::of(opened);
        let kept = whole.entries.iter().all(|(index, (term, body))| {
            last.get(index) == Some(&(EntryId { term: *term, index: *index }, body.clone()))
        });
        assert!(kept && salvaged.vote == whole.vote, "{case}: opened, but not salvaged");
        return;
    }
    assert!(!salvaged.damage.is_empty(), "{case}: refused, but nothing is named");
    // A whole segment of another log is as good as one's own: it may be another member's.
    let own = salvaged.stretches.iter().flatten().filter(|_| damage != Damage::Foreign);
    for (index, (id, body)) in own {
        let was = |state: &Model| state.entries.get(index) == Some(&(id.term, body.clone()));
        assert!(victim.states.iter().any(was), "{case}: SILENT: entry {id} never was");
    }
}

/// Whether opening had nothing to repair.
fn opened_alike(opened: &Opened<SimFs>) -> bool {
    opened.recovered.above_mark == 0 && !opened.recovered.torn
}

#[test]
fn damage_is_repaired_or_refused() {
    let mut matrix = Matrix::new("raft/tests/storage_damage.rs");
    let mut done: BTreeMap<(Target, Damage), usize> = BTreeMap::new();
    let places = if hodei_damage::everything() { 20 * PLACES } else { PLACES };
    let other = victim(99, Overlap::None).past;
    for (seed, overlap) in [(11, Overlap::None), (12, Overlap::Late), (13, Overlap::None), (14, Overlap::Across)] {
        let victim = Victim { other: other.clone(), ..victim(seed, overlap) };
        let intact = Model::of(&open(&victim.fs.power_cut(Unsynced::Kept), 4).unwrap());
        assert_eq!(intact, *victim.states.last().unwrap());
        for target in [Target::Segment, Target::Mark, Target::Vote] {
            for (kind, damage) in (0u64..).zip(Damage::ALL) {
                for number in 0..places as u64 {
                    let random = SeededEntropy::new(split(seed, number * 100 + kind * 10 + target as u64));
                    let (path, place) = aim(&victim, target, &random);
                    let Some(fs) = harm(&victim, damage, &path, place, &random) else { continue };
                    let case = format!("seed {seed}, {target:?}, {damage:?}, {} at {place}", path.display());
                    let verdict = judge(&victim, &fs, damage, &intact, &case);
                    let foreign = damage == Damage::Foreign && verdict != Verdict::Refused;
                    assert!(!foreign, "{case}: another log's file is always refused");
                    let name = path.file_name().unwrap().to_str().unwrap();
                    let row = hodei_damage::row(Of::Node, &format!("wal/{name}")).unwrap();
                    matrix.count(row, &Case { how: damage.name(), at: place, bytes: Vec::new() }, verdict);
                    *done.entry((target, damage)).or_default() += 1;
                }
            }
        }
    }
    for ((target, damage), count) in &done {
        let floor = if *damage == Damage::Foreign { 1 } else { PLACES };
        assert!(*count >= floor, "{target:?} × {damage:?} was not exercised");
    }
    matrix.finish(Of::Node);
}
