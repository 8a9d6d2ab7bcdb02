//! S7: a job's status is linearizable from any node: there is an order of the operations on it that agrees with real time
//! and in which each answer is right.
//!
//! The algorithm is Wing and Gong's with Lowe's memory: take any operation that was asked before every outstanding one was
//! answered, apply it to the model, go on; never visit the same (set of operations taken, state) twice. Operations that
//! failed are left out; those whose outcome is unknown may be taken at any later time, or never. The search is bounded by
//! a number of steps, not by time, so that the verdict is the same each time; what is beyond the bounds is unknown.

mod model;
mod search;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use self::{
    model::{Action, Life, MAX_ATTEMPT, Status},
    search::{Answered, Concurrent, Model, linearizable},
};
use super::{Judge, sights};
use crate::history::{At, Evidence, Op, Outcome, Reply, Request};

/// So many operations on a job are judged at most.
pub const MAX_OPERATIONS: usize = 40;
/// So many of them may be open at once, those without an outcome included.
pub const MAX_CONCURRENT: usize = 8;
/// So many steps are tried for a job at most.
const MAX_STEPS: usize = 2_000_000;

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut jobs: BTreeMap<&str, Vec<(At, Concurrent<Action>)>> = BTreeMap::new();
    for op in evidence.ops() {
        if let Some((job, action)) = action(&op) {
            let answered = op.reply().is_some();
            let to = if answered { op.to_ns } else { None };
            let at = op.returned.filter(|_| answered).unwrap_or(op.invoked);
            jobs.entry(job).or_default().push((at, Concurrent { from: op.from_ns, to, op: action }));
        }
    }
    let life = Life::default();
    for (job, ops) in jobs {
        let (places, ops): (Vec<_>, Vec<_>) = ops.into_iter().unzip();
        // A job that nobody read cannot be wrong.
        if !ops.iter().any(|op| matches!(op.op, Action::Read(_))) {
            continue;
        }
        judge.judged(1);
        let concurrent = concurrency(&ops);
        if ops.len() > MAX_OPERATIONS || concurrent > MAX_CONCURRENT {
            let bounds = format!("{MAX_OPERATIONS} and {MAX_CONCURRENT} can be judged");
            let text = format!("job {job} has {} operations, {concurrent} at once; {bounds}", ops.len());
            judge.unknown(text);
            continue;
        }
        if ops.iter().any(|op| matches!(op.op, Action::Read(Some(seen)) if seen.attempt >= MAX_ATTEMPT)) {
            judge.unknown(format!("job {job} has {MAX_ATTEMPT} attempts or more, too many to judge"));
            continue;
        }
        match linearizable(&life, &ops, MAX_STEPS) {
            Answered::Yes => {}
            Answered::GaveUp => judge.unknown(format!("job {job}: no order of its operations in {MAX_STEPS} steps")),
            Answered::No { stuck } => {
                let lines: Vec<_> = stuck.iter().map(|&op| told(judge, places[op], &ops[op].op)).collect();
                let text = format!("job {job} is not linearizable: whatever the order of its {} operations", ops.len());
                judge.invalid(format!("{text}, nothing explains {}", lines.join(" or ")));
            }
        }
    }
}

fn told(judge: &Judge<'_>, at: At, action: &Action) -> String {
    format!("{} ({action})", judge.line(at))
}

/// What an operation means to the model, and which job it is on. Nothing: it tells nothing.
fn action<'a>(op: &Op<'a>) -> Option<(&'a str, Action)> {
    let known = match op.outcome {
        Outcome::Fail(_) => return None,
        Outcome::Ok(reply) => Some(reply),
        Outcome::Info => None,
    };
    match (op.request, known) {
        (Request::Submit(_), Some(Reply::Submit(done))) if done.job != op.key => Some((&done.job, Action::Known)),
        (Request::Submit(_), Some(Reply::Submit(done))) => Some((op.key, Action::Submit { existing: done.existing })),
        // It may have found another job under its key, or this one: taken or left out, both are tried.
        (Request::Submit(_), _) => Some((op.key, Action::Submit { existing: true })),
        (Request::Get(_), Some(Reply::Get(view))) if sights::is_linearizable(op.request) => {
            Some((op.key, Action::Read(sights::view_of(view))))
        }
        (Request::Cancel, Some(Reply::Cancel(accepted))) => Some((op.key, Action::Cancel(Some(accepted.state)))),
        (Request::Cancel, _) => Some((op.key, Action::Cancel(None))),
        _ => None,
    }
}

/// How many operations are open at once, at most.
fn concurrency<O>(ops: &[Concurrent<O>]) -> usize {
    let mut edges: Vec<(u64, bool)> = ops.iter().map(|op| (op.from, true)).collect();
    edges.extend(ops.iter().filter_map(|op| Some((op.to?, false))));
    // At equal times the one begins before the other ends.
    edges.sort_by_key(|&(t_ns, begins)| (t_ns, !begins));
    let (mut open, mut most) = (0_usize, 0);
    for (_, begins) in edges {
        open = if begins { open + 1 } else { open - 1 };
        most = most.max(open);
    }
    most
}
