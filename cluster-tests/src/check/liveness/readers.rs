//! L8: a reader of a log that goes on gets more of it within five seconds of a change of leader.
//!
//! A log goes on where the witness of its job says so within that time. One whose worker is itself acted upon by a fault
//! cannot be read at times, and is not judged; nor is a reader that is slow on purpose or turns to a node that is cut off from
//! the majority, where the worker is gone from, or a change after which the next fault takes the new leader or its majority
//! away.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{SECOND, Scene};
use crate::{
    check::{
        Judge,
        timeline::{self, Stretch},
    },
    history::{At, Note},
};

const RESUMES: u64 = 5 * SECOND;

/// See the module.
pub(super) fn check(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    let mut readers: BTreeMap<(u32, &str), Vec<(u64, At)>> = BTreeMap::new();
    let mut ended: HashSet<(u32, &str)> = HashSet::new();
    let mut slow: HashSet<(u32, &str)> = HashSet::new();
    // When each has turned to a node that is cut off.
    let mut astray: BTreeMap<(u32, &str), Vec<u64>> = BTreeMap::new();
    for (at, note) in scene.evidence.notes() {
        let record = scene.evidence.record(at);
        let reader = (record.proc, record.key.as_str());
        match note {
            Note::LogFrom(from) if from.slow => drop(slow.insert(reader)),
            Note::LogFrom(_) if record.node.is_some_and(|node| is_cut_off(scene, node, record.t_ns)) => {
                astray.entry(reader).or_default().push(record.t_ns);
            }
            Note::Log(_) => readers.entry(reader).or_default().push((record.t_ns, at)),
            Note::LogEnd(_) => {
                readers.entry(reader).or_default().push((record.t_ns, at));
                ended.insert(reader);
            }
            _ => {}
        }
    }
    let leaders = timeline::leaders(scene.evidence);
    let changes = leaders.windows(2).filter(|pair| pair[0].2 != pair[1].2).map(|pair| (pair[1].0, pair[1].2));
    let lasting = changes.filter(|&(change, leader)| !is_struck(scene, change, leader));
    let changes: Vec<_> = lasting.map(|(change, _)| change).collect();
    let marks = marks(scene);
    for (reader, got) in readers.iter().filter(|(reader, _)| !slow.contains(*reader)) {
        let marks = marks.get(reader.1).map(Vec::as_slice).unwrap_or_default();
        let lasts = |change: &&u64| marks.last().is_some_and(|(t_ns, _)| **change + RESUMES <= *t_ns);
        for &change in changes.iter().filter(lasts) {
            let next = got.partition_point(|(t_ns, _)| *t_ns <= change);
            // Only a reader that was reading when it happened.
            let Some((before, at)) = next.checked_sub(1).map(|last| got[last]) else { continue };
            if before + RESUMES < change || (next == got.len() && ended.contains(reader)) {
                continue;
            }
            let goes_astray = |t_ns: &u64| change < *t_ns && *t_ns <= change + RESUMES;
            if !goes_on(scene, marks, change) || astray.get(reader).into_iter().flatten().any(goes_astray) {
                continue;
            }
            judge.judged(1);
            if got.get(next).is_none_or(|(t_ns, _)| *t_ns > change + RESUMES) {
                let text = format!("the reader of job {} got nothing for 5 s after the leader changed", reader.1);
                judge.invalid(format!("L8: {}: {text} at {change}", judge.line(at)));
            }
        }
    }
}

/// When each job's witness said something, and on which worker. Of one that prints nothing there is nothing to read.
fn marks<'a>(scene: &Scene<'a>) -> HashMap<&'a str, Vec<(u64, &'a str)>> {
    let mut marks: HashMap<&str, Vec<(u64, &str)>> = HashMap::new();
    for (at, note) in scene.evidence.notes() {
        if let Note::Witness(mark) = note
            && mark.lines != Some(0)
        {
            let record = scene.evidence.record(at);
            marks.entry(&record.key).or_default().push((record.t_ns, &mark.worker));
        }
    }
    marks
}

fn is_cut_off(scene: &Scene<'_>, node: u64, at_ns: u64) -> bool {
    let is_open = |stretch: &&Stretch<'_>| stretch.from_ns <= at_ns && stretch.to_ns.is_none_or(|to_ns| at_ns < to_ns);
    scene.faults.iter().filter(is_open).any(|stretch| stretch.fault.minority.contains(&node))
}

/// Whether a fault begins right after a change that acts upon the new leader, or leaves no majority upon which none acts.
fn is_struck(scene: &Scene<'_>, change: u64, leader: u64) -> bool {
    let soon = scene.faults.iter().filter(|stretch| stretch.from_ns < change + RESUMES);
    soon.into_iter().any(|stretch| {
        // Who polls learns of a leader some time after it was elected.
        let strikes_leader = stretch.from_ns + SECOND > change && stretch.fault.nodes.contains(&leader);
        strikes_leader || stretch.from_ns >= change && !leaves_majority(scene, stretch.from_ns)
    })
}

/// Whether a majority is left upon which no fault acts at a time.
fn leaves_majority(scene: &Scene<'_>, at_ns: u64) -> bool {
    let is_open = |stretch: &&Stretch<'_>| stretch.from_ns <= at_ns && stretch.to_ns.is_none_or(|to_ns| at_ns < to_ns);
    let open = scene.faults.iter().filter(is_open);
    let struck: HashSet<u64> = open.flat_map(|stretch| stretch.fault.nodes.iter().copied()).collect();
    let members = timeline::members_at(scene.evidence, at_ns).unwrap_or_default();
    let whole = members.iter().filter(|node| !struck.contains(node)).count();
    members.is_empty() || whole * 2 > members.len()
}

/// Whether a job printed something soon after a change, on a worker that nothing was done to.
fn goes_on(scene: &Scene<'_>, marks: &[(u64, &str)], change: u64) -> bool {
    let soon = marks.iter().filter(|(t_ns, _)| change < *t_ns && *t_ns < change + RESUMES - SECOND);
    let untouched = |worker: &str| {
        let acted_upon = scene.faults.iter().filter(|stretch| stretch.fault.workers.iter().any(|of| of == worker));
        let over = |to_ns: Option<u64>| to_ns.is_some_and(|to_ns| to_ns < change);
        acted_upon.into_iter().all(|stretch| over(stretch.to_ns) || change + RESUMES < stretch.from_ns)
    };
    soon.into_iter().any(|(_, worker)| untouched(worker))
}
