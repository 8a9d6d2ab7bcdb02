//! S1: an acknowledged job is in every later list of every node. S17: what definitely failed never takes effect.
//!
//! What anybody has seen is not forgotten either, whatever became of its submission. A job that is listed was submitted by
//! somebody, and one that is said to be there before it was submitted was made by another submission which did not fail. Every
//! node that is to serve must have given a list after the last submission was answered, or the verdict is unknown. What was
//! acknowledged before a fault that may lose acknowledged work is not missed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{Judge, sights};
use crate::history::{At, Evidence, JobState, Note, Op, Reply, Request};

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let ops: Vec<_> = evidence.ops().collect();
    let submits: Vec<_> = ops.iter().filter(|op| matches!(op.request, Request::Submit(_))).collect();
    let lists: Vec<_> = ops.iter().filter_map(list).collect();
    judge.judged(submits.len());
    lost(evidence, judge, &submits, &lists);
    forgotten(evidence, judge, &submits, &lists);
    undead(evidence, judge, &submits, &lists);
    strangers(judge, &submits, &lists);
    made_by_nobody(evidence, judge, &submits);
    cancelled_nevertheless(evidence, judge, &ops);
    if !submits.is_empty() {
        in_the_end(evidence, judge, &submits, &lists);
        judge.part("S1");
    }
    if ops.iter().any(|op| op.failed() && matches!(op.request, Request::Submit(_) | Request::Cancel)) {
        judge.part("S17");
    }
}

type List<'a> = (&'a Op<'a>, HashSet<&'a str>, usize);

fn list<'a>(op: &'a Op<'a>) -> Option<List<'a>> {
    match (op.request, op.reply()) {
        (Request::List(how), Some(Reply::List(listed))) if !how.stale => {
            Some((op, listed.jobs.iter().map(String::as_str).collect(), listed.jobs.len()))
        }
        _ => None,
    }
}

/// When work that was acknowledged was last permitted to be lost.
fn forgiven(evidence: &Evidence) -> u64 {
    let forgiven = evidence.notes().filter_map(|(at, note)| match note {
        Note::Fault(fault) if fault.may_lose => Some(evidence.record(at).t_ns),
        _ => None,
    });
    forgiven.max().unwrap_or(0)
}

/// What somebody has seen was there, whoever made it, and is in every list that is asked for later.
fn forgotten(evidence: &Evidence, judge: &mut Judge<'_>, submits: &[&Op<'_>], lists: &[List<'_>]) {
    let forgiven = forgiven(evidence);
    let wanted: HashSet<&str> = submits.iter().map(|op| op.key).collect();
    let mut seen: BTreeMap<&str, At> = BTreeMap::new();
    let mut strange: BTreeSet<&str> = BTreeSet::new();
    let asked: HashMap<At, &List<'_>> = lists.iter().map(|list| (list.0.invoked, list)).collect();
    let answered: HashMap<At, &List<'_>> = lists.iter().filter_map(|list| Some((list.0.returned?, list))).collect();
    for (at, record) in evidence.records().filter(|(_, record)| record.t_ns >= forgiven) {
        if let Some(job) = sights::exists(record) {
            if !wanted.contains(job) && !submits.is_empty() && strange.insert(job) {
                judge.invalid(format!("{}: there is job {job}, which nobody submitted", judge.line(at)));
            }
            seen.entry(job).or_insert(at);
        }
        if let Some((_, held, _)) = answered.get(&at) {
            held.iter().for_each(|job| _ = seen.entry(job).or_insert(at));
        }
        let Some((list, held, _)) = asked.get(&at) else { continue };
        for (job, first) in seen.iter().filter(|(job, _)| !held.contains(*job)) {
            let lines = (judge.line(*first), judge.line(list.returned.unwrap_or(at)));
            let node = node(list);
            judge.invalid(format!("{}: job {job} was seen, and {}: {node} has forgotten it", lines.0, lines.1));
        }
    }
}

fn lost(evidence: &Evidence, judge: &mut Judge<'_>, submits: &[&Op<'_>], lists: &[List<'_>]) {
    let forgiven = forgiven(evidence);
    for (list, held, len) in lists {
        let (line, node) = (judge.line(list.returned.unwrap_or(list.invoked)), node(list));
        if held.len() != *len {
            judge.invalid(format!("{line}: {node} lists a job twice"));
        }
        for submit in submits.iter().filter(|op| op.precedes(list) && op.to_ns >= Some(forgiven)) {
            let Some(Reply::Submit(done)) = submit.reply() else { continue };
            if !held.contains(done.job.as_str()) {
                let told = judge.line(submit.returned.unwrap_or(submit.invoked));
                judge.invalid(format!("{told}: job {} was acknowledged, and {line}: {node} has lost it", done.job));
            }
        }
    }
}

/// Jobs of which every submission failed.
fn undead(evidence: &Evidence, judge: &mut Judge<'_>, submits: &[&Op<'_>], lists: &[List<'_>]) {
    let mut refused: BTreeMap<&str, &Op<'_>> = BTreeMap::new();
    for submit in submits.iter().filter(|op| op.failed()) {
        refused.entry(submit.key).or_insert(submit);
    }
    for submit in submits.iter().filter(|op| !op.failed()) {
        refused.remove(submit.key);
    }
    if refused.is_empty() {
        return;
    }
    let listed =
        lists.iter().flat_map(|(op, held, _)| held.iter().map(|&job| (job, op.returned.unwrap_or(op.invoked))));
    let seen = evidence.records().filter_map(|(at, record)| Some((sights::exists(record)?, at)));
    let mut there: BTreeMap<&str, usize> = BTreeMap::new();
    for (job, at) in listed.chain(seen).filter(|(job, _)| refused.contains_key(job)) {
        there.entry(job).or_insert(at);
    }
    for (job, at) in there {
        let told = judge.line(refused[job].returned.unwrap_or(refused[job].invoked));
        let text = format!("{told}: the submission of job {job} failed, and {}: there it is", judge.line(at));
        judge.invalid(text);
    }
}

/// Jobs that are listed and that nobody wanted.
fn strangers(judge: &mut Judge<'_>, submits: &[&Op<'_>], lists: &[List<'_>]) {
    let wanted: HashSet<&str> = submits.iter().map(|op| op.key).collect();
    let mut told: BTreeSet<&str> = BTreeSet::new();
    for (list, held, _) in lists {
        for job in held.iter().filter(|job| !wanted.contains(*job)) {
            if told.insert(job) {
                let line = judge.line(list.returned.unwrap_or(list.invoked));
                judge.invalid(format!("{line}: {} lists job {job}, which nobody submitted", node(list)));
            }
        }
    }
}

/// A job is seen before anybody can have made it but those who were told that they had not. That one is told that its job is
/// there already does not show it: its own request may have been asked twice on its way.
fn made_by_nobody(evidence: &Evidence, judge: &mut Judge<'_>, submits: &[&Op<'_>]) {
    let mut of_job: HashMap<&str, Vec<&Op<'_>>> = HashMap::new();
    for submit in submits {
        of_job.entry(submit.key).or_default().push(submit);
    }
    let mut seen: HashSet<&str> = HashSet::new();
    for (at, record) in evidence.records() {
        let Some(job) = sights::exists(record).filter(|job| seen.insert(job)) else { continue };
        let ops = of_job.get(job).map(Vec::as_slice).unwrap_or_default();
        let mut earlier = ops.iter().filter(|op| op.from_ns < record.t_ns).peekable();
        // Where nobody ever succeeded, it is told above.
        if earlier.peek().is_some() && earlier.all(|op| op.failed()) && !ops.iter().all(|op| op.failed()) {
            judge.invalid(format!("{}: job {job} was there, and every submission before had failed", judge.line(at)));
        }
    }
}

fn cancelled_nevertheless(evidence: &Evidence, judge: &mut Judge<'_>, ops: &[Op<'_>]) {
    let mut refused: BTreeMap<&str, Option<&Op<'_>>> = BTreeMap::new();
    for op in ops.iter().filter(|op| matches!(op.request, Request::Cancel)) {
        let only_failures = refused.entry(op.key).or_insert(Some(op));
        if !op.failed() {
            *only_failures = None;
        }
    }
    refused.retain(|_, op| op.is_some());
    if refused.is_empty() {
        return;
    }
    let sights = sights::sights(evidence);
    for (job, op) in refused {
        let seen = sights.get(job).into_iter().flatten().find(|sight| sight.view.state == JobState::Cancelled);
        if let (Some(seen), Some(op)) = (seen, op) {
            let told = judge.line(op.returned.unwrap_or(op.invoked));
            let text = format!("{told}: the cancel of job {job} failed, and {}: it is cancelled", judge.line(seen.at));
            judge.invalid(text);
        }
    }
}

/// Every node that is to serve has shown what it has.
fn in_the_end(evidence: &Evidence, judge: &mut Judge<'_>, submits: &[&Op<'_>], lists: &[List<'_>]) {
    let last = submits.iter().filter_map(|op| op.to_ns).max().unwrap_or(0);
    let members = evidence.notes().rev().find_map(|(_, note)| match note {
        Note::Cluster(members) => Some(&members.nodes),
        _ => None,
    });
    let Some(members) = members else {
        judge.unknown("nobody says which nodes there are");
        return;
    };
    let mut latest: HashMap<u64, u64> = HashMap::new();
    for (node, from_ns) in lists.iter().filter_map(|(op, ..)| Some((op.node?, op.from_ns))) {
        let at = latest.entry(node).or_default();
        *at = from_ns.max(*at);
    }
    let silent: BTreeSet<_> = members.iter().filter(|node| latest.get(node).is_none_or(|&at| at < last)).collect();
    for node in silent {
        judge.unknown(format!("node {node} was not asked for its list after the last submission"));
    }
}

/// Of whom nobody knows which node it is was asked by its address.
fn node(op: &Op<'_>) -> String {
    op.node.map_or_else(|| "a damaged node".to_owned(), |node| format!("node {node}"))
}
