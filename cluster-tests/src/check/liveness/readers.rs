//! L8: a reader of a log that goes on gets more of it within five seconds of a change of leader.

use std::collections::{BTreeMap, HashSet};

use super::{SECOND, Scene, last_marks};
use crate::{
    check::{Judge, timeline},
    history::{At, Note},
};

const RESUMES: u64 = 5 * SECOND;

/// See the module.
pub(super) fn check(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    let mut readers: BTreeMap<(u32, &str), Vec<(u64, At)>> = BTreeMap::new();
    let mut ended: HashSet<(u32, &str)> = HashSet::new();
    for (at, note) in scene.evidence.notes() {
        let record = scene.evidence.record(at);
        let reader = (record.proc, record.key.as_str());
        match note {
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
    let last_marks = last_marks(scene.evidence);
    for (reader, got) in &readers {
        let printing = last_marks.get(reader.1).copied().unwrap_or(0);
        for &change in changes.iter().filter(|change| **change + RESUMES <= printing) {
            let next = got.partition_point(|(t_ns, _)| *t_ns <= change);
            // Only a reader that was reading when it happened.
            let Some((before, at)) = next.checked_sub(1).map(|last| got[last]) else { continue };
            if before + RESUMES < change || (next == got.len() && ended.contains(reader)) {
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
