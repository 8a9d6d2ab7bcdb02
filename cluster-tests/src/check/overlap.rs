//! S3: two attempts of a job never overlap, as the job's witness file tells.
//!
//! An attempt lives from its START to its last mark, and holds a lock while anything of it lives; a later attempt that finds
//! the lock taken writes REFUSED. Marks are swept in the order of time: a mark of an attempt after the start of a later one
//! is an overlap, and so is any refusal. The one allowance: where the earlier attempt's whole machine was frozen, it may
//! hold its lock meanwhile, and live for 100 ms after the machine woke up, which it does shortly before anybody tells. What
//! writes in the midst of it was not frozen.

use std::collections::{BTreeMap, HashMap};

use super::{Judge, timeline};
use crate::history::{At, Evidence, Mark, MarkKind, Note};

/// How long what was frozen may live on.
const WAKE_NS: u64 = 100_000_000;
/// How long it may take from waking a machine up to telling so.
const TOLD_NS: u64 = 1_000_000_000;

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut jobs: BTreeMap<&str, Vec<(At, u64, &Mark)>> = BTreeMap::new();
    for (at, note) in evidence.notes() {
        if let Note::Witness(mark) = note {
            let record = evidence.record(at);
            jobs.entry(&record.key).or_default().push((at, record.t_ns, mark));
        }
    }
    let frozen = timeline::frozen(evidence);
    for (job, marks) in jobs {
        judge.judged(marks.iter().filter(|(_, _, mark)| mark.mark == MarkKind::Start).count());
        sweep(judge, job, &marks, &frozen);
    }
}

/// Whether a worker is frozen at a time, or has just woken up.
fn excused(frozen: &HashMap<&str, Vec<(u64, u64)>>, worker: &str, t_ns: u64) -> bool {
    let stretches = frozen.get(worker).into_iter().flatten();
    stretches.into_iter().any(|&(from, to)| from <= t_ns && t_ns <= to.saturating_add(WAKE_NS))
}

/// Whether a worker wakes up at a time, or just has.
fn wakes(frozen: &HashMap<&str, Vec<(u64, u64)>>, worker: &str, t_ns: u64) -> bool {
    let stretches = frozen.get(worker).into_iter().flatten();
    let wakes = |&(from, to): &(u64, u64)| to.saturating_sub(TOLD_NS).max(from)..=to.saturating_add(WAKE_NS);
    stretches.into_iter().any(|stretch| wakes(stretch).contains(&t_ns))
}

fn sweep(judge: &mut Judge<'_>, job: &str, marks: &[(At, u64, &Mark)], frozen: &HashMap<&str, Vec<(u64, u64)>>) {
    // The latest start of all, and which attempts have begun and not told their end.
    let mut latest: Option<(At, u64, &Mark)> = None;
    let mut open: BTreeMap<u32, &Mark> = BTreeMap::new();
    for &(at, t_ns, mark) in marks {
        let line = judge.line(at);
        let attempt = mark.attempt;
        let began = latest.filter(|(.., latest)| attempt < latest.attempt);
        if let (Some((start, start_ns, later)), true) = (began, mark.mark != MarkKind::Refused) {
            // A later attempt has begun: whatever this one still does is an overlap.
            if mark.mark == MarkKind::Start || !wakes(frozen, &mark.worker, t_ns) {
                let by = (t_ns - start_ns) / 1_000_000;
                let start = judge.line(start);
                let text = format!("lives {by} ms after attempt {} began", later.attempt);
                judge.invalid(format!("{start}, {line}: attempt {attempt} of job {job} {text}"));
            }
        }
        match mark.mark {
            MarkKind::Start => {
                if let Some((before, _, other)) = latest.filter(|(.., latest)| latest.attempt == attempt) {
                    let lines = (judge.line(before), &line);
                    judge.invalid(format!(
                        "{}, {}: attempt {} of job {job} began twice",
                        lines.0, lines.1, other.attempt
                    ));
                }
                if began.is_none() {
                    latest = Some((at, t_ns, mark));
                }
                open.insert(attempt, mark);
            }
            MarkKind::End => {
                open.remove(&attempt);
            }
            MarkKind::Refused => {
                let holder =
                    open.values().find(|other| other.attempt != attempt && excused(frozen, &other.worker, t_ns));
                if holder.is_none() {
                    judge.invalid(format!("{line}: attempt {attempt} of job {job} found the lock taken"));
                }
            }
            MarkKind::Beat => {}
        }
    }
}
