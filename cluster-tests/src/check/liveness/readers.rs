//! L8: a reader of a log that goes on gets more of it within five seconds of a change of leader.
//!
//! A log goes on where the witness of its job says so within that time. One whose worker is itself acted upon by a fault
//! cannot be read at times, and is not judged; nor is a reader that is slow on purpose.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{SECOND, Scene};
use crate::{
    check::{Judge, timeline},
    history::{At, Note},
};

const RESUMES: u64 = 5 * SECOND;

/// See the module.
pub(super) fn check(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    let mut readers: BTreeMap<(u32, &str), Vec<(u64, At)>> = BTreeMap::new();
    let mut ended: HashSet<(u32, &str)> = HashSet::new();
    let mut slow: HashSet<(u32, &str)> = HashSet::new();
    for (at, note) in scene.evidence.notes() {
        let record = scene.evidence.record(at);
        let reader = (record.proc, record.key.as_str());
        match note {
            Note::LogFrom(from) if from.slow => drop(slow.insert(reader)),
            Note::Log(_) => readers.entry(reader).or_default().push((record.t_ns, at)),
            Note::LogEnd(_) => {
                readers.entry(reader).or_default().push((record.t_ns, at));
                ended.insert(reader);
            }
            _ => {}
        }
    }
    let leaders = timeline::leaders(scene.evidence);
    let changes: Vec<_> = leaders.windows(2).filter(|pair| pair[0].2 != pair[1].2).map(|pair| pair[1].0).collect();
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
            if !goes_on(scene, marks, change) {
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

/// When each job's witness said something, and on which worker.
fn marks<'a>(scene: &Scene<'a>) -> HashMap<&'a str, Vec<(u64, &'a str)>> {
    let mut marks: HashMap<&str, Vec<(u64, &str)>> = HashMap::new();
    for (at, note) in scene.evidence.notes() {
        if let Note::Witness(mark) = note {
            let record = scene.evidence.record(at);
            marks.entry(&record.key).or_default().push((record.t_ns, &mark.worker));
        }
    }
    marks
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
