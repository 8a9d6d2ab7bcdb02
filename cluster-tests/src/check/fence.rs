//! S4: a result with a stale fence is never accepted.
//!
//! An attempt has one fence, wherever it is told, and later attempts have greater ones. The first result of an attempt may
//! be acknowledged only while no greater fence of the job is known, and while nobody was told that the attempt is lost;
//! repetitions of a result that was already reported then may be at any time. A job that ended shows the exit code of a
//! result of its last attempt that was not refused (S17). Reserved workers tell of every result that they report.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Judge;
use crate::history::{At, AttemptView, Attempted, Body, Evidence, JobView, Note, Op, Outcome, Reply, Request};

/// Where an attempt's fence was first told.
type Grants = BTreeMap<u32, (u64, At)>;

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let grants = grants(evidence, judge);
    for (job, grants) in &grants {
        judge.judged(grants.len());
        for ((one, (fence, at)), (two, (next, then))) in grants.iter().zip(grants.iter().skip(1)) {
            if next <= fence {
                let lines = (judge.line(*at), judge.line(*then));
                let text = format!("attempt {two} of job {job} has fence {next}, attempt {one} has {fence}");
                judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
            }
        }
    }
    let mut results: BTreeMap<&str, Vec<(Op<'_>, &Attempted)>> = BTreeMap::new();
    for op in evidence.ops() {
        if let Request::Result(attempted) = op.request {
            results.entry(op.key).or_default().push((op, attempted));
        }
    }
    let refused = results.values().flatten().filter(|(op, _)| matches!(op.outcome, Outcome::Fail(_))).count();
    let of_job = |(job, results): (&&str, &Vec<(Op<'_>, &Attempted)>)| {
        results.iter().filter(|(op, result)| is_late(evidence, op, result, grants.get(*job))).count()
    };
    let late: usize = results.iter().map(of_job).sum();
    if !results.is_empty() {
        let said: usize = results.values().map(Vec::len).sum();
        judge.remark(format!("results: {said}, of them refused: {refused}, for being late: {late}"));
    }
    if late == 0 {
        judge.lacks("S4", "no result came too late and was refused");
    }
    let lost = lost(evidence);
    for (job, results) in &results {
        judge.judged(results.len());
        accepted(evidence, judge, job, results, grants.get(job));
        accepted_of_lost(evidence, judge, job, results, &lost);
    }
    ended(evidence, judge, &results);
}

/// All fences that were told, checked to be told alike.
fn grants<'a>(evidence: &'a Evidence, judge: &mut Judge<'_>) -> BTreeMap<&'a str, Grants> {
    let mut jobs: BTreeMap<&str, Grants> = BTreeMap::new();
    for (at, record) in evidence.records() {
        let mut told: Vec<(u32, u64)> = Vec::new();
        match &record.body {
            Body::Ok(Reply::Get(view)) | Body::Note(Note::Watched(view)) => {
                told.extend(view.attempts.iter().map(|&AttemptView { number, fence, .. }| (number, fence)));
            }
            Body::Note(Note::Witness(mark)) => told.push((mark.attempt, mark.fence)),
            _ => {}
        }
        for (attempt, fence) in told {
            let (known, first) = *jobs.entry(&record.key).or_default().entry(attempt).or_insert((fence, at));
            if known != fence {
                let lines = (judge.line(first), judge.line(at));
                let text = format!("attempt {attempt} of job {} has fences {known} and {fence}", record.key);
                judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
            }
        }
    }
    jobs
}

/// Whether a result was refused that came once a greater fence was out.
fn is_late(evidence: &Evidence, op: &Op<'_>, result: &Attempted, grants: Option<&Grants>) -> bool {
    let mut granted = grants.into_iter().flat_map(BTreeMap::values);
    op.failed() && granted.any(|(fence, at)| *fence > result.fence && evidence.record(*at).t_ns < op.from_ns)
}

/// No result was acknowledged that was first reported once a greater fence was out.
fn accepted(
    evidence: &Evidence,
    judge: &mut Judge<'_>,
    job: &str,
    results: &[(Op<'_>, &Attempted)],
    grants: Option<&Grants>,
) {
    let mut reported: BTreeMap<u64, u64> = BTreeMap::new();
    // The greatest fence of which a result was accepted.
    let mut greatest: Option<(u64, At)> = None;
    let mut granted: Vec<_> = grants.into_iter().flat_map(BTreeMap::values).collect();
    granted.sort_by_key(|(_, at)| *at);
    for (op, Attempted { attempt, fence, .. }) in results {
        let first = *reported.entry(*fence).or_insert(op.from_ns);
        if op.reply().is_none() {
            continue;
        }
        let line = judge.line(op.returned.unwrap_or(op.invoked));
        let newer = granted.iter().find(|(other, at)| other > fence && evidence.record(*at).t_ns < first);
        let after = greatest.filter(|&(other, at)| other > *fence && evidence.record(at).t_ns < first);
        if let Some((other, at)) = newer.map(|newer| **newer).or(after) {
            let at = judge.line(at);
            let text = format!("the result of attempt {attempt} of job {job} under fence {fence} was accepted");
            judge.invalid(format!("{at}, {line}: {text} although fence {other} was out"));
        }
        if greatest.is_none_or(|(other, _)| other < *fence) {
            greatest = Some((*fence, op.returned.unwrap_or(op.invoked)));
        }
    }
}

/// When somebody was first told that an attempt is nobody's any more.
fn lost(evidence: &Evidence) -> HashMap<(&str, u32), At> {
    let mut lost = HashMap::new();
    for (at, note) in evidence.notes() {
        if let Note::Event(event) = note
            && ["job_requeued", "attempt_lost"].contains(&event.kind.as_str())
        {
            lost.entry((evidence.record(at).key.as_str(), event.attempt)).or_insert(at);
        }
    }
    lost
}

/// No result was acknowledged that was first reported once its attempt was lost.
fn accepted_of_lost(
    evidence: &Evidence,
    judge: &mut Judge<'_>,
    job: &str,
    results: &[(Op<'_>, &Attempted)],
    lost: &HashMap<(&str, u32), At>,
) {
    let mut reported: HashMap<u32, u64> = HashMap::new();
    for (op, Attempted { attempt, .. }) in results {
        let first = *reported.entry(*attempt).or_insert(op.from_ns);
        let since = lost.get(&(job, *attempt)).filter(|at| evidence.record(**at).t_ns < first);
        if let (Some(since), Some(_)) = (since, op.reply()) {
            let lines = (judge.line(*since), judge.line(op.returned.unwrap_or(op.invoked)));
            let text =
                format!("the result of attempt {attempt} of job {job} was accepted although the attempt was lost");
            judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
        }
    }
}

/// A job shows the exit code that was acknowledged for its newest attempt.
fn ended(evidence: &Evidence, judge: &mut Judge<'_>, results: &BTreeMap<&str, Vec<(Op<'_>, &Attempted)>>) {
    let is_reserved = |op: &Op<'_>| matches!(op.request, Request::Submit(submit) if submit.needs.reserved);
    let reserved: HashSet<&str> = evidence.ops().filter(is_reserved).map(|op| op.key).collect();
    for (at, record) in evidence.records() {
        let (Body::Ok(Reply::Get(view)) | Body::Note(Note::Watched(view))) = &record.body else { continue };
        let JobView { state: Some(state), attempt, exit_code: Some(code), .. } = view else { continue };
        let of_job = results.get(record.key.as_str());
        let reports = of_job.into_iter().flatten();
        let reports = reports.filter(|(op, reported)| reported.attempt == *attempt && op.from_ns < record.t_ns);
        let (refused, reports): (Vec<_>, Vec<_>) = reports.partition(|(op, _)| op.failed());
        let codes_of = |reports: &[&(Op<'_>, &Attempted)]| -> Vec<i32> {
            reports.iter().filter_map(|(_, reported)| reported.exit_code).collect()
        };
        let codes = codes_of(&reports);
        if reports.is_empty() && state.is_terminal() && codes_of(&refused).contains(code) {
            let text = format!("job {} ended with exit code {code} in attempt {attempt}", record.key);
            judge.invalid(format!("{}: {text}, whose results were all refused", judge.line(at)));
        } else if state.is_terminal()
            && (!codes.is_empty() || reserved.contains(record.key.as_str()))
            && !codes.contains(code)
        {
            let text = format!("job {} ended with exit code {code} in attempt {attempt}", record.key);
            judge.invalid(format!("{}: {text}, whose results say {codes:?}", judge.line(at)));
        }
    }
}
