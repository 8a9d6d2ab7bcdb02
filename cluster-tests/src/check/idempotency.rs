//! S5: one idempotency key, and one id, names one job of one payload; the same with another payload is an error.
//!
//! A job that an answer names was submitted under the key of who is answered, with the same payload; and whose payload is
//! refused for another's, there was another one before, under the same key or id.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Judge, sights};
use crate::history::{At, Body, Evidence, Op, Outcome, Reply, Request, Submit, Submitted};

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut by_key: BTreeMap<(&str, &str), Vec<(Op<'_>, &Submit)>> = BTreeMap::new();
    let mut by_id: BTreeMap<&str, Vec<(Op<'_>, &Submit)>> = BTreeMap::new();
    for op in evidence.ops() {
        let Request::Submit(submit) = op.request else { continue };
        by_id.entry(op.key).or_default().push((op, submit));
        if let Some(key) = &submit.idempotency_key {
            by_key.entry((&submit.caller, key)).or_default().push((op, submit));
        }
    }
    for (id, submits) in &by_id {
        for (op, submit) in submits {
            let key =
                submit.idempotency_key.as_ref().and_then(|key| by_key.get(&(submit.caller.as_str(), key.as_str())));
            of_somebody(judge, op, submit, key.unwrap_or(submits));
            mismatch(
                judge,
                (op, submit),
                key.into_iter().flatten().chain(submits).map(|(op, submit)| (op, *submit)),
                id,
            );
        }
    }
    let raced = by_id.values().chain(by_key.values()).filter(|submits| is_race(submits)).count();
    judge.remark(format!("keys and ids that several parties asked for at once: {raced}"));
    if raced == 0 {
        judge.lacks("S5", "no two parties asked for one key or id at once");
    }
    let there = there(evidence);
    for (id, submits) in by_id.iter().filter(|(_, submits)| submits.len() > 1) {
        judge.judged(1);
        alike(judge, &format!("job {id}"), submits);
    }
    for ((_, key), submits) in &by_key {
        judge.judged(1);
        let what = format!("key {key}");
        alike(judge, &what, submits);
        // Where an answer was lost, the job may be there all the same: what is seen of the key's ids, counts.
        let ids: BTreeSet<_> = submits.iter().map(|(op, _)| op.key).collect();
        let made: Vec<_> = ids.into_iter().filter_map(|id| Some((id, *there.get(id)?))).collect();
        if let [(one, at), (two, then), ..] = made[..] {
            let lines = (judge.line(at), judge.line(then));
            judge.invalid(format!("{}, {}: {what} made jobs {one} and {two}", lines.0, lines.1));
        }
    }
}

/// Who of all that asked under a key may have taken effect before this one was answered.
fn may_precede(other: &Op<'_>, op: &Op<'_>) -> bool {
    !other.failed() && op.to_ns.is_some_and(|to| other.from_ns < to)
}

/// The job that is named was asked for by somebody under the same key.
fn of_somebody(judge: &mut Judge<'_>, op: &Op<'_>, submit: &Submit, of_key: &[(Op<'_>, &Submit)]) {
    let Some(Reply::Submit(done)) = op.reply() else { return };
    let mut made = of_key.iter().filter(|(other, _)| other.key == done.job && may_precede(other, op));
    if !made.any(|(_, other)| other.payload == submit.payload) {
        let at = judge.line(op.returned.unwrap_or(op.invoked));
        let text = format!("job {} is told job {}, which nobody submitted under its key", op.key, done.job);
        judge.invalid(format!("{at}: {text} with its payload"));
    }
}

/// Another payload was there before.
fn mismatch<'a>(
    judge: &mut Judge<'_>,
    (op, submit): (&Op<'_>, &Submit),
    mut others: impl Iterator<Item = (&'a Op<'a>, &'a Submit)>,
    id: &str,
) {
    let refused = matches!(op.outcome, Outcome::Fail(failure) if failure.code == "payload_mismatch");
    if refused && !others.any(|(other, asked)| asked.payload != submit.payload && may_precede(other, op)) {
        let at = judge.line(op.returned.unwrap_or(op.invoked));
        judge.invalid(format!("{at}: job {id} is refused for another payload, and nobody submitted another one"));
    }
}

/// Whether one of several parties asked before another one was answered.
fn is_race(submits: &[(Op<'_>, &Submit)]) -> bool {
    // In the order in which they asked; no party asks again before it is answered.
    let meets = |one: &Op<'_>, two: &Op<'_>| one.to_ns.is_none_or(|to| two.from_ns < to);
    submits.iter().enumerate().any(|(i, (one, _))| submits[i + 1..].iter().any(|(two, _)| meets(one, two)))
}

/// Where each job was first seen to exist.
fn there(evidence: &Evidence) -> HashMap<&str, At> {
    let mut there = HashMap::new();
    for (at, record) in evidence.records() {
        if let Body::Ok(Reply::List(listed)) = &record.body {
            for job in &listed.jobs {
                there.entry(job.as_str()).or_insert(at);
            }
        } else if let Some(job) = sights::exists(record) {
            there.entry(job).or_insert(at);
        }
    }
    there
}

/// All that were acknowledged name one job, of one payload, which one of them at most has made.
fn alike(judge: &mut Judge<'_>, what: &str, submits: &[(Op<'_>, &Submit)]) {
    let mut first: Option<(At, &Submit, &Submitted)> = None;
    let mut maker: Option<At> = None;
    for (op, submit) in submits {
        let Some(Reply::Submit(done)) = op.reply() else { continue };
        let at = op.returned.unwrap_or(op.invoked);
        let (before, first, named) = *first.get_or_insert((at, submit, done));
        let lines = format!("{}, {}", judge.line(before), judge.line(at));
        if named.job != done.job {
            judge.invalid(format!("{lines}: {what} names jobs {} and {}", named.job, done.job));
        } else if first.payload != submit.payload {
            let payloads = (&first.payload, &submit.payload);
            judge.invalid(format!("{lines}: {what} was accepted with payloads {} and {}", payloads.0, payloads.1));
        }
        if !done.existing {
            if let Some(maker) = maker {
                judge.invalid(format!("{}, {}: {what} made job {} twice", judge.line(maker), judge.line(at), done.job));
            }
            maker = Some(at);
        }
    }
}
