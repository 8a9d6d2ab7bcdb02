//! S2: a terminal state never changes, and states follow each other as they may. S8: nothing but Cancelled comes after an
//! acknowledged cancel.
//!
//! Sights of a job are put in order twice: by their place in the log, whoever saw them, and by real time, where one read
//! was answered before the next was asked. Within a stream of all events, each must be the very next step. Whoever may not
//! cancel a job since it has ended is told how it did. Whoever waits for a job sees it go forward only, and is told its end.

use std::collections::{BTreeMap, HashMap};

use super::{
    Judge,
    life::{self, View},
    sights::{self, Sight, Sights},
    timeline,
};
use crate::history::{At, Body, Evidence, JobState, Note, Op, Reply, Request};

/// How long after a job's end whoever waits for it may have to look for a node that tells it.
const TOLD_NS: u64 = 10_000_000_000;
/// The same while nothing is done to anybody: below the silence after which waiters ask another node.
const TOLD_IN_CALM_NS: u64 = 3_000_000_000;
/// How long before it nothing is, so that streams that are open are those of nodes that are well.
const CALM_NS: u64 = 8_000_000_000;

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let sights = sights::sights(evidence);
    for (job, sights) in &sights {
        judge.judged(sights.len());
        by_place(judge, job, sights);
    }
    by_time(evidence, judge);
    by_stream(evidence, judge);
    exit_codes(evidence, judge);
    refused_cancels(evidence, judge, &sights);
    waiters(evidence, judge, &sights);
    if judge.judged > 0 {
        judge.part("S2");
    }
    if after_cancel(evidence, judge, &sights) > 0 {
        judge.part("S8");
    }
}

fn by_place(judge: &mut Judge<'_>, job: &str, sights: &[Sight]) {
    for sight in sights.iter().filter(|sight| !sight.view.is_possible()) {
        judge.invalid(format!("{}: job {job} cannot be {}", judge.line(sight.at), sight.view));
    }
    let mut placed: Vec<_> = sights.iter().filter_map(|sight| Some((sight.place?, sight))).collect();
    placed.sort_by_key(|(place, _)| *place);
    for pair in placed.windows(2) {
        let [(at, before), (then, after)] = [pair[0], pair[1]];
        if at == then && before.view != after.view {
            let lines = (judge.line(before.at), judge.line(after.at));
            let text = format!("job {job} is {} and {} at index {}", before.view, after.view, at.0);
            judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
        } else if !life::reachable(before.view, after.view) {
            illegal(judge, job, (before.at, before.view), (after.at, after.view));
        }
    }
}

fn illegal(judge: &mut Judge<'_>, job: &str, before: (At, View), after: (At, View)) {
    let lines = (judge.line(before.0), judge.line(after.0));
    judge.invalid(format!("{}, {}: job {job} went from {} to {}", lines.0, lines.1, before.1, after.1));
}

/// A job's reads from the newest state: the furthest that was answered, against each that is asked later.
fn by_time(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut reads: BTreeMap<&str, Vec<(Op<'_>, View)>> = BTreeMap::new();
    for op in evidence.ops().filter(|op| sights::is_linearizable(op.request)) {
        if let Some(Reply::Get(view)) = op.reply()
            && let Some(view) = sights::view_of(view)
        {
            reads.entry(op.key).or_default().push((op, view));
        }
    }
    for (job, reads) in reads {
        let mut answered: Vec<_> = reads.iter().collect();
        answered.sort_by_key(|(op, _)| op.to_ns);
        let mut answered = answered.into_iter().peekable();
        let mut furthest: Option<&(Op<'_>, View)> = None;
        for (op, view) in &reads {
            while let Some(earlier) = answered.next_if(|(earlier, _)| earlier.precedes(op)) {
                if furthest.is_none_or(|(_, view)| view.progress() < earlier.1.progress()) {
                    furthest = Some(earlier);
                }
            }
            if let Some((earlier, before)) = furthest
                && !life::reachable(*before, *view)
            {
                let at = |op: &Op<'_>| op.returned.unwrap_or(op.invoked);
                illegal(judge, job, (at(earlier), *before), (at(op), *view));
            }
        }
    }
}

/// How the process of a job ended is part of how the job ended: it does not change.
fn exit_codes(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut first: HashMap<&str, (At, Option<i32>)> = HashMap::new();
    for (at, record) in evidence.records() {
        let (Body::Ok(Reply::Get(view)) | Body::Note(Note::Watched(view))) = &record.body else { continue };
        if !view.state.is_some_and(JobState::is_terminal) {
            continue;
        }
        let (before, known) = *first.entry(&record.key).or_insert((at, view.exit_code));
        if known != view.exit_code {
            let lines = (judge.line(before), judge.line(at));
            let text = format!("job {} ended with exit code {known:?}, and with {:?}", record.key, view.exit_code);
            judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
        }
    }
}

fn by_stream(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut whole: HashMap<u32, bool> = HashMap::new();
    let mut last: HashMap<(u32, &str), (At, View)> = HashMap::new();
    for (at, note) in evidence.notes() {
        let record = evidence.record(at);
        match note {
            Note::Subscribe(how) => {
                whole.insert(record.proc, how.kinds.is_empty() && how.worker.is_none());
            }
            Note::Event(event) if whole.get(&record.proc) == Some(&true) => {
                let Some(view) = sights::told(event) else { continue };
                let before = last.insert((record.proc, &record.key), (at, view));
                match before {
                    Some(before) if !life::follows(before.1, view) => illegal(judge, &record.key, before, (at, view)),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

fn waiters(evidence: &Evidence, judge: &mut Judge<'_>, sights: &Sights<'_>) {
    let mut last: BTreeMap<(u32, &str), (At, View)> = BTreeMap::new();
    for (at, note) in evidence.notes() {
        let Note::Watched(view) = note else { continue };
        let (record, Some(view)) = (evidence.record(at), sights::view_of(view)) else { continue };
        match last.insert((record.proc, &record.key), (at, view)) {
            Some(before) if !life::reachable(before.1, view) => illegal(judge, &record.key, before, (at, view)),
            _ => {}
        }
    }
    if !last.values().any(|(_, view)| view.state.is_terminal()) {
        judge.lacks("S2", "nobody who waited for a job was told its end");
    }
    let faults = timeline::faults(evidence).0;
    let is_calm = |from_ns: u64, to_ns: u64| {
        !faults.iter().any(|fault| fault.from_ns <= to_ns && fault.to_ns.is_none_or(|end| from_ns <= end + CALM_NS))
    };
    for ((proc, job), (at, _)) in last.iter().filter(|(_, (_, view))| view.state.is_terminal()) {
        let is_end = |sight: &&Sight| sight.view.state.is_terminal() && evidence.record(sight.at).proc != *proc;
        let Some(end) = sights.get(job).into_iter().flatten().find(is_end) else { continue };
        let (ended, told) = (evidence.record(end.at).t_ns, evidence.record(*at).t_ns);
        if ended + TOLD_IN_CALM_NS < told && is_calm(ended, told) {
            let lines = (judge.line(end.at), judge.line(*at));
            let text =
                format!("job {job} had ended for {} ms when who waits for it was told", (told - ended) / 1_000_000);
            judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
        }
    }
    let over = evidence.records().next_back().map_or(0, |(_, record)| record.t_ns);
    for ((_, job), (at, view)) in last.into_iter().filter(|(_, (_, view))| !view.state.is_terminal()) {
        let end = sights.get(job).into_iter().flatten().find(|sight| sight.view.state.is_terminal());
        if let Some(end) = end.filter(|end| evidence.record(end.at).t_ns + TOLD_NS < over) {
            let lines = (judge.line(at), judge.line(end.at));
            let text = format!("job {job} has ended, and the last that was told to who waits for it is {view}");
            judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
        }
    }
}

/// A job that was said to have ended did so as it was said, and is not read as live after that.
fn refused_cancels(evidence: &Evidence, judge: &mut Judge<'_>, sights: &Sights<'_>) {
    for op in evidence.ops() {
        let (Some(state), Some(told), Some(to_ns)) = (sights::refused_as_ended(&op), op.returned, op.to_ns) else {
            continue;
        };
        for Sight { at, view, asked_ns, .. } in sights.get(op.key).into_iter().flatten() {
            let later = asked_ns.is_some_and(|asked| to_ns < asked);
            let otherwise = view.state.is_terminal() && format!("{:?}", view.state) != state;
            if otherwise || later && !view.state.is_terminal() {
                let lines = (judge.line(told), judge.line(*at));
                let text = format!("job {} was said to have ended as {state}, and is {view}", op.key);
                judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
                break;
            }
        }
    }
}

/// From the entry that committed it on, the job runs at most its present attempt to the end, and then is Cancelled.
/// Returns how many cancels were acknowledged.
fn after_cancel(evidence: &Evidence, judge: &mut Judge<'_>, sights: &Sights<'_>) -> usize {
    let mut accepted = 0;
    for op in evidence.ops() {
        let (Request::Cancel, Some(Reply::Cancel(_))) = (op.request, op.reply()) else { continue };
        accepted += 1;
        let line = judge.line(op.returned.unwrap_or(op.invoked));
        let mut attempt: Option<u32> = None;
        let sights = sights.get(op.key).into_iter().flatten();
        for sight in sights {
            let Sight { at, view, place, asked_ns } = *sight;
            let later = match (place, op.position) {
                (Some((index, _)), Some((_, committed))) => index > committed,
                _ => op.to_ns.is_some_and(|to| asked_ns.is_some_and(|asked| to < asked)),
            };
            let why = match view.state {
                // A job that can be cancelled has not ended: no other end is right, whenever it was seen.
                JobState::Succeeded | JobState::Failed | JobState::Timeout => "ended otherwise",
                JobState::Pending if later => "waits for another attempt",
                _ if later && *attempt.get_or_insert(view.attempt) != view.attempt => "has another attempt",
                _ => continue,
            };
            let seen = judge.line(at);
            judge.invalid(format!(
                "{line}: the cancel of job {} was acknowledged, and {seen}: it {why}: {view}",
                op.key
            ));
        }
    }
    accepted
}
