//! L2 and L3: once faults are healed jobs end, nodes are alike, and each of them serves.
//!
//! Between two faults that is judged where there is time enough for it and somebody asked; after the last one somebody must.

use std::collections::{BTreeMap, HashSet};

use super::{SETTLED, Scene, queue, runnable};
use crate::{
    check::{
        Judge,
        sights::{self, Sights},
        timeline::{self, Polled},
    },
    history::{JobState, Note, Op, Request},
};

/// L2.
pub(super) fn terminal(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    let healed = scene.healed();
    if healed.is_none() && !scene.faults.is_empty() {
        return;
    }
    let sights = sights::sights(scene.evidence);
    let full = queue::full(scene);
    left(scene, &sights, judge);
    in_between(scene, &sights, &full, judge);
    for (op, submit, acknowledged) in runnable(scene.evidence) {
        let from = acknowledged.max(healed.unwrap_or(0));
        let waits = had_to_wait(scene, &sights, &full, op.key, from);
        let deadline = from + waits + SETTLED + submit.run_ms.unwrap_or(0) * 1_000_000;
        let line = judge.line(op.invoked);
        let ended = sights.get(op.key).into_iter().flatten().find(|sight| sight.view.state.is_terminal());
        match ended.map(|sight| (sight, scene.evidence.record(sight.at).t_ns)) {
            Some((_, t_ns)) if t_ns <= deadline => judge.judged(1),
            Some((sight, t_ns)) => {
                judge.judged(1);
                let late = (t_ns - deadline) / 1_000_000;
                let text = format!("job {} ended {late} ms too late", op.key);
                judge.invalid(format!("L2: {line}, {}: {text}", judge.line(sight.at)));
            }
            None if scene.end_ns < deadline => {
                judge.unknown(format!("L2: {line}: nobody looked long enough for job {} to end", op.key));
            }
            None => {
                judge.judged(1);
                judge.invalid(format!("L2: {line}: job {} never ended", op.key));
            }
        }
    }
}

/// How long a job waited from then on for its first attempt because nothing was free. (One that holds a slot for too long is
/// late itself.)
fn had_to_wait(scene: &Scene<'_>, sights: &Sights<'_>, full: &[(u64, u64)], job: &str, from: u64) -> u64 {
    let mut of_job = sights.get(job).into_iter().flatten();
    let placed = of_job.find(|sight| sight.view.state != JobState::Pending);
    let until = placed.map_or(scene.end_ns, |sight| scene.evidence.record(sight.at).t_ns);
    full.iter().map(|(begin, end)| (*end).min(until).saturating_sub((*begin).max(from))).sum()
}

/// Jobs that had time enough before the next fault.
fn in_between(scene: &Scene<'_>, sights: &Sights<'_>, full: &[(u64, u64)], judge: &mut Judge<'_>) {
    for (op, submit, acknowledged) in runnable(scene.evidence) {
        let by = |healed: u64| {
            let from = acknowledged.max(healed);
            from + had_to_wait(scene, sights, full, op.key, from) + SETTLED + submit.run_ms.unwrap_or(0) * 1_000_000
        };
        let calm = |&&(healed, until): &&(u64, u64)| until != u64::MAX && by(healed) < until;
        let Some(&(healed, _)) = scene.heals.iter().find(calm) else { continue };
        judge.judged(1);
        let mut of_job = sights.get(op.key).into_iter().flatten();
        let ended = of_job.find(|sight| sight.view.state.is_terminal());
        if ended.is_none_or(|sight| scene.evidence.record(sight.at).t_ns > by(healed)) {
            let (line, by) = (judge.line(op.invoked), by(healed));
            judge.invalid(format!("L2: {line}: job {} had not ended by {by}, and there was no fault", op.key));
        }
    }
}

/// When all has come to rest no job is left, whatever was heard of its submission, and whoever was to run it.
fn left(scene: &Scene<'_>, sights: &Sights<'_>, judge: &mut Judge<'_>) {
    let is_last = |note: &Note| matches!(note, Note::Inventory(inventory) if !inventory.busy);
    let settled = scene.evidence.notes().find(|(_, note)| is_last(note));
    let Some((settled, _)) = settled else { return };
    for (job, sights) in sights {
        judge.judged(1);
        if !sights.iter().any(|sight| sight.view.state.is_terminal())
            && let Some(last) = sights.last()
        {
            let lines = (judge.line(last.at), judge.line(settled));
            judge.invalid(format!("L2: {}, {}: job {job} is {} when all has settled", lines.0, lines.1, last.view));
        }
    }
}

/// L3.
pub(super) fn alike(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    let Some(healed) = scene.healed() else { return };
    let by = healed + SETTLED;
    judge.judged(1);
    let mut having: BTreeMap<(u64, u32, &str), HashSet<u64>> = BTreeMap::new();
    let mut polled = false;
    for Polled { node, poll, .. } in scene.polls_within(healed, by).filter(|polled| !polled.poll.hash.is_empty()) {
        polled = true;
        having.entry((poll.applied, poll.feature_level, &poll.hash)).or_default().insert(*node);
    }
    if !polled {
        judge.unknown(format!("L3: nobody compared states for 10 s after faults were healed at {healed}"));
    } else if !having.values().any(|nodes| scene.members.iter().all(|node| nodes.contains(node))) {
        judge.invalid(format!("L3: 10 s after faults were healed at {healed} the nodes never had one state"));
    }
    let until = scene.evidence.run().deadline_ms * 1_000_000;
    for &(healed, next) in scene.heals.iter().filter(|(healed, next)| next - healed > SETTLED) {
        // Between two faults nobody need have asked, and who asks late has no time to be answered.
        let is_last = next == u64::MAX;
        let asked_by = healed + if is_last { SETTLED } else { SETTLED.saturating_sub(until) };
        // Who goes on under another id is a member under that one by then.
        for &node in timeline::members_at(scene.evidence, healed + SETTLED).unwrap_or_default() {
            served(scene, judge, node, (healed, asked_by), is_last);
        }
    }
}

/// A fresh write and a fresh read pass on a node that was asked within a time.
fn served(scene: &Scene<'_>, judge: &mut Judge<'_>, node: u64, (healed, asked_by): (u64, u64), is_last: bool) {
    let here = |op: &Op<'_>| op.node == Some(node) && healed <= op.from_ns && op.from_ns <= asked_by;
    let in_time = |op: &Op<'_>| op.reply().is_some() && op.to_ns.is_some_and(|to| to <= healed + SETTLED);
    let is_write = |op: &Op<'_>| matches!(op.request, Request::Submit(_));
    let is_read = |op: &Op<'_>| matches!(op.request, Request::Get(how) | Request::List(how) if !how.stale);
    for (what, wanted) in [("write", &is_write as &dyn Fn(&Op<'_>) -> bool), ("read", &is_read)] {
        let asked: Vec<_> = scene.evidence.ops().filter(|op| here(op) && wanted(op)).collect();
        match asked.last() {
            None if is_last => judge.unknown(format!("L3: nobody tried a fresh {what} on node {node} after {healed}")),
            Some(last) if !asked.iter().any(in_time) => {
                let line = judge.line(last.invoked);
                judge.invalid(format!("L3: {line}: no fresh {what} passes on node {node} 10 s after {healed}"));
            }
            None | Some(_) => {}
        }
    }
}
