//! What a job's witness saw agrees with what the cluster says of it. S3: an attempt runs where it was scheduled to, as the
//! log of events tells at the index that is its fence, and nothing of a job runs once it has ended. S2: a job ends as its
//! process did.
//!
//! A state that is terminal is told when no process of the job lives any more: by its agent, which has seen it end, or by
//! the end of a lease, before which an agent kills what it cannot answer for. The one exception is that of [`overlap`]: what
//! a frozen machine could not kill lives on for a moment when the machine wakes up.
//!
//! Jobs that say how long they run end with exit code 0, for no fault is to cost one all its attempts: Succeeded, or
//! Cancelled where somebody asked for that. What found its lock taken says so, and ends with 99 for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    Judge,
    events::{EventLog, LAG_NS, Told},
    life::View,
    overlap::{self, Marks},
    sights, timeline,
};
use crate::history::{At, Body, Evidence, JobState, Mark, MarkKind, Note, Op, Reply, Request, WITNESS};

/// How a witness ends that was refused its lock.
const REFUSED: i32 = 99;

/// A job's end as somebody saw it.
#[derive(Clone, Copy, Debug)]
struct End {
    at: At,
    view: View,
    /// How its process ended, where a read shows that.
    code: Option<Option<i32>>,
}

/// Of each job, in the order of time.
type Ends<'a> = BTreeMap<&'a str, Vec<End>>;

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let (marks, ends) = (overlap::marks(evidence), ends(evidence));
    if scheduled(evidence, judge, &marks) > 0 {
        judge.part("S3");
    }
    outlived(evidence, judge, &marks, &ends);
    if ended_as_meant(evidence, judge, &marks, &ends) > 0 {
        judge.part("S2");
    }
}

fn ends(evidence: &Evidence) -> Ends<'_> {
    let mut ends: Ends<'_> = BTreeMap::new();
    for (at, record) in evidence.records() {
        let seen = match &record.body {
            Body::Ok(Reply::Get(view)) | Body::Note(Note::Watched(view)) => {
                sights::view_of(view).map(|known| (known, Some(view.exit_code)))
            }
            Body::Note(Note::Event(event)) => sights::told(event).map(|view| (view, None)),
            _ => None,
        };
        if let Some((view, code)) = seen.filter(|(view, _)| view.state.is_terminal()) {
            ends.entry(&record.key).or_default().push(End { at, view, code });
        }
    }
    ends
}

/// Each attempt that a witness saw begin was scheduled to its worker. Returns how many there were.
fn scheduled(evidence: &Evidence, judge: &mut Judge<'_>, marks: &BTreeMap<&str, Marks<'_>>) -> usize {
    let log = EventLog::of(evidence);
    let scheduled = log.events.values().filter(|told| told.event.kind == "job_scheduled");
    let scheduled: HashMap<(&str, u32), &Told<'_>> =
        scheduled.map(|told| ((told.job, told.event.attempt), told)).collect();
    let over = evidence.records().next_back().map_or(0, |(_, record)| record.t_ns);
    let covered = log.covered();
    // Nobody ends a stream before the history ends.
    let is_told = |t_ns: u64, mark: &Mark| match covered[..] {
        [((0, 0), to)] => (mark.fence, u32::MAX) <= to || t_ns.saturating_add(LAG_NS) <= over,
        _ => false,
    };
    let mut judged = 0;
    for (job, marks) in marks {
        for &(at, t_ns, mark) in marks {
            if !matches!(mark.mark, MarkKind::Start | MarkKind::Refused) {
                continue;
            }
            judged += 1;
            let (line, attempt, fence) = (judge.line(at), mark.attempt, mark.fence);
            let ran = format!("attempt {attempt} of job {job} ran at {:?} under fence {fence}", mark.worker);
            match scheduled.get(&(*job, attempt)) {
                Some(told) if (told.event.at.0, &told.event.worker) != (fence, &mark.worker) => {
                    let (first, to) = (judge.line(told.at), &told.event.worker);
                    let text = format!("{ran}, and was scheduled to {to:?} at {}", told.event.at.0);
                    judge.invalid(format!("{first}, {line}: {text}"));
                }
                None if is_told(t_ns, mark) => {
                    judge.invalid(format!("{line}: {ran}, and no stream tells that it was scheduled"));
                }
                _ => {}
            }
        }
    }
    judge.judged(judged);
    judged
}

/// Nothing of a job runs once somebody knows that it has ended.
fn outlived(evidence: &Evidence, judge: &mut Judge<'_>, marks: &BTreeMap<&str, Marks<'_>>, ends: &Ends<'_>) {
    let mut over: HashMap<&str, At> = ends.iter().filter_map(|(job, ends)| Some((*job, ends.first()?.at))).collect();
    for op in evidence.ops().filter(|op| sights::refused_as_ended(op).is_some()) {
        if let Some(told) = op.returned {
            let first = over.entry(op.key).or_insert(told);
            *first = told.min(*first);
        }
    }
    let wakes = timeline::wakes(evidence);
    for (job, marks) in marks {
        let Some(&end) = over.get(job) else { continue };
        let end_ns = evidence.record(end).t_ns;
        let mut late: BTreeMap<u32, (At, u64)> = BTreeMap::new();
        for (at, t_ns, mark) in marks.iter().filter(|(_, t_ns, _)| *t_ns > end_ns) {
            if !timeline::within(&wakes, &mark.worker, *t_ns) {
                late.insert(mark.attempt, (*at, *t_ns));
            }
        }
        for (attempt, (at, t_ns)) in late {
            let (lines, by) = ((judge.line(end), judge.line(at)), (t_ns - end_ns) / 1_000_000);
            let text = format!("attempt {attempt} of job {job} ran {by} ms after the job had ended");
            judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
        }
    }
}

/// What is meant of a job.
#[derive(Clone, Copy, Debug)]
struct Meant {
    /// It says how long it runs.
    ends: bool,
    /// It writes marks.
    witnessed: bool,
}

/// Each job ended as its process did, and its process as it was made to. Returns how many have ended.
fn ended_as_meant(
    evidence: &Evidence,
    judge: &mut Judge<'_>,
    marks: &BTreeMap<&str, Marks<'_>>,
    ends: &Ends<'_>,
) -> usize {
    let mut meant: BTreeMap<&str, Meant> = BTreeMap::new();
    let mut cancels: HashMap<&str, u64> = HashMap::new();
    for Op { key, request, from_ns, .. } in evidence.ops().filter(|op| !op.failed()) {
        match request {
            Request::Submit(submit) => {
                let (run, witnessed) = (submit.run_ms.is_some(), submit.payload.starts_with(WITNESS));
                let job = meant.entry(key).or_insert(Meant { ends: run, witnessed });
                *job = Meant { ends: job.ends && run, witnessed: job.witnessed && witnessed };
            }
            Request::Cancel => {
                cancels.entry(key).or_insert(from_ns);
            }
            _ => {}
        }
    }
    let mut judged = 0;
    for (job, meant) in meant {
        let Some(ends) = ends.get(job) else { continue };
        judged += 1;
        let marks: &[(At, u64, &Mark)] = marks.get(job).map_or(&[], Vec::as_slice);
        let mut told: BTreeSet<String> = BTreeSet::new();
        for end in ends {
            let cancelled = cancels.get(job).is_some_and(|asked| *asked < evidence.record(end.at).t_ns);
            let wrote = |kind| marks.iter().any(|(.., mark)| (mark.attempt, mark.mark) == (end.view.attempt, kind));
            if let Some(text) = end.is_not(meant, cancelled, wrote)
                && told.insert(text.clone())
            {
                judge.invalid(format!("{}: job {job} is {} {text}", judge.line(end.at), end.view));
            }
        }
    }
    judge.judged(judged);
    judged
}

impl End {
    /// What is wrong with it.
    fn is_not(&self, meant: Meant, cancelled: bool, wrote: impl Fn(MarkKind) -> bool) -> Option<String> {
        let text = match self.view.state {
            JobState::Cancelled if cancelled => return None,
            JobState::Cancelled => "and nobody asked for that".to_owned(),
            JobState::Succeeded if meant.witnessed && !wrote(MarkKind::End) => {
                "and its witness never came to its end".to_owned()
            }
            JobState::Succeeded if self.code.is_none_or(|code| code == Some(0)) => return None,
            JobState::Failed if wrote(MarkKind::Refused) && self.code.is_none_or(|code| code == Some(REFUSED)) => {
                return None;
            }
            _ => match self.code {
                Some(Some(code)) => format!("with exit code {code}, and was made to end with 0"),
                _ => "and was made to end with exit code 0".to_owned(),
            },
        };
        (meant.ends || self.view.state == JobState::Cancelled).then_some(text)
    }
}
