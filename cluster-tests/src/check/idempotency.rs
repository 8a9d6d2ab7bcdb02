//! S5: one idempotency key, and one id, names one job of one payload; the same with another payload is an error.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Judge, sights};
use crate::history::{At, Body, Evidence, Op, Reply, Request, Submit, Submitted};

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
