//! S3: two attempts of a job never overlap, as the job's witness file tells.
//!
//! An attempt lives from its START to its last mark, and holds a lock while anything of it lives; a later attempt that finds
//! the lock taken writes REFUSED. Marks are swept in the order of time: a mark of an attempt after the start of a later one
//! is an overlap, and so is any refusal. The one allowance: where the earlier attempt's whole machine was frozen, it may
//! hold its lock meanwhile, and live for 100 ms from the first mark on that machine after it woke up, which it does shortly
//! before anybody tells. What writes in the midst of it was not frozen.

use std::collections::{BTreeMap, HashMap};

use super::{Judge, timeline};
use crate::history::{At, Evidence, Mark, MarkKind, Note};

/// What the witness of a job wrote, in the order of time.
pub(super) type Marks<'a> = Vec<(At, u64, &'a Mark)>;

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let machines = Machines { frozen: timeline::frozen(evidence), wakes: timeline::wakes(evidence) };
    for (job, marks) in marks(evidence) {
        judge.judged(marks.iter().filter(|(_, _, mark)| mark.mark == MarkKind::Start).count());
        sweep(judge, job, &marks, &machines);
    }
}

/// Of each job.
pub(super) fn marks(evidence: &Evidence) -> BTreeMap<&str, Marks<'_>> {
    let mut jobs: BTreeMap<&str, Marks<'_>> = BTreeMap::new();
    for (at, note) in evidence.notes() {
        if let Note::Witness(mark) = note {
            let record = evidence.record(at);
            jobs.entry(&record.key).or_default().push((at, record.t_ns, mark));
        }
    }
    jobs
}

/// When workers stood still and woke up.
struct Machines<'a> {
    frozen: HashMap<&'a str, Vec<(u64, u64)>>,
    wakes: HashMap<&'a str, Vec<(u64, u64)>>,
}

impl Machines<'_> {
    /// Whether what ran on a worker may hold its lock: it is frozen, or has just woken up.
    fn may_hold(&self, worker: &str, t_ns: u64) -> bool {
        timeline::within(&self.frozen, worker, t_ns) || timeline::within(&self.wakes, worker, t_ns)
    }
}

fn sweep(judge: &mut Judge<'_>, job: &str, marks: &Marks<'_>, machines: &Machines<'_>) {
    // The latest start of all, and which attempts have begun and not told their end.
    let mut latest: Option<(At, u64, &Mark)> = None;
    let mut open: BTreeMap<u32, &Mark> = BTreeMap::new();
    for &(at, t_ns, mark) in marks {
        let line = judge.line(at);
        let attempt = mark.attempt;
        let began = latest.filter(|(.., latest)| attempt < latest.attempt);
        if let (Some((start, start_ns, later)), true) = (began, mark.mark != MarkKind::Refused) {
            // A later attempt has begun: whatever this one still does is an overlap.
            if mark.mark == MarkKind::Start || !timeline::within(&machines.wakes, &mark.worker, t_ns) {
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
                    open.values().find(|other| other.attempt != attempt && machines.may_hold(&other.worker, t_ns));
                if holder.is_none() {
                    judge.invalid(format!("{line}: attempt {attempt} of job {job} found the lock taken"));
                }
            }
            MarkKind::Beat => {}
        }
    }
}
