//! S15: once it is acknowledged that an identity was removed or revoked, no call of it is served. S17: a removal that
//! failed removes nobody.
//!
//! Calls are those that the log decides, or of nodes that are known to have applied the removal. In the log of events
//! nothing happens to a worker once it was removed: it gets no job and opens no session. One that was drained gets no job
//! either, until it serves again.

use std::collections::HashMap;

use super::{
    Judge,
    events::{EventLog, Told},
};
use crate::history::{At, Evidence, Op, Outcome, Reply, Request};

/// What nodes say to whom they do not know, or no longer: by a certificate, and by the log.
const VOID: [&str; 2] = ["revoked", "removed"];

/// By which an agent asks to get no more jobs.
const DRAIN: &str = "WorkerAgentService/UpdateWorkerStatus";

/// Identities (`role/id`) with the operation whose acknowledgement made them void.
type Void<'a> = HashMap<&'a str, Op<'a>>;

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut void = Void::new();
    for op in evidence.ops() {
        if let (Request::Revoke, Some(Reply::Revoke)) = (op.request, op.reply()) {
            // The first acknowledgement counts.
            let first = void.entry(op.key).or_insert(op);
            if op.to_ns < first.to_ns {
                *first = op;
            }
        }
    }
    judge.judged(void.len());
    for op in evidence.ops() {
        let Request::Call(call) = op.request else { continue };
        if let (Some(revoked), Some(_)) = (void.get(op.key), op.reply())
            && revoked.precedes(&op)
        {
            let at = |op: &Op<'_>| judge.line(op.returned.unwrap_or(op.invoked));
            let node = op.node.map_or_else(String::new, |node| format!(" by node {node}"));
            let text = format!("{} was void, and its {} was served{node}", op.key, call.rpc);
            judge.invalid(format!("{}, {}: {text}", at(revoked), at(&op)));
        }
    }
    void_by_nobody(evidence, judge);
    let log = EventLog::of(evidence);
    results(evidence, judge, &log, &void);
    told(evidence, judge, &log);
}

/// Neither is what it says of jobs that it was given before.
fn results(evidence: &Evidence, judge: &mut Judge<'_>, log: &EventLog<'_>, void: &Void<'_>) {
    let scheduled = log.events.values().filter(|told| told.event.kind == "job_scheduled");
    let workers: HashMap<(&str, u32), &str> =
        scheduled.map(|told| ((told.job, told.event.attempt), told.event.worker.as_str())).collect();
    for op in evidence.ops() {
        let (Request::Result(result), Some(_)) = (op.request, op.reply()) else { continue };
        let worker = workers.get(&(op.key, result.attempt)).map(|worker| format!("agent/{worker}"));
        let revoked = worker.as_deref().and_then(|worker| void.get(worker));
        if let Some(revoked) = revoked.filter(|revoked| revoked.precedes(&op)) {
            let at = |op: &Op<'_>| judge.line(op.returned.unwrap_or(op.invoked));
            let text = format!("{} was void, and its result of job {} was accepted", revoked.key, op.key);
            judge.invalid(format!("{}, {}: {text}", at(revoked), at(&op)));
        }
    }
}

/// What the log of events tells of workers that were removed or drained, which somebody asked for.
fn told(evidence: &Evidence, judge: &mut Judge<'_>, log: &EventLog<'_>) {
    let mut asked: HashMap<(&str, &str), u64> = HashMap::new();
    for op in evidence.ops().filter(|op| !op.failed()) {
        let kind = match op.request {
            Request::Revoke => "worker_removed",
            Request::Call(call) if call.rpc == DRAIN => "worker_drained",
            _ => continue,
        };
        if let Some(worker) = op.key.strip_prefix("agent/") {
            asked.entry((worker, kind)).or_insert(op.from_ns);
        }
    }
    let mut removed: HashMap<&str, At> = HashMap::new();
    let mut drained: HashMap<&str, At> = HashMap::new();
    for &Told { at, job, event } in log.events.values() {
        let (worker, kind, line) = (event.worker.as_str(), event.kind.as_str(), judge.line(at));
        let scheduled = kind == "job_scheduled";
        if let Some(since) = removed.get(worker).filter(|_| scheduled || kind.starts_with("worker_")) {
            let since = judge.line(*since);
            judge.invalid(format!("{since}, {line}: worker {worker} was removed, and {kind} is told of it after that"));
        }
        if let Some(since) = drained.get(worker).filter(|_| scheduled) {
            let since = judge.line(*since);
            judge.invalid(format!("{since}, {line}: worker {worker} was drained, and got job {job}"));
        }
        match kind {
            "worker_removed" => removed.insert(worker, at),
            "worker_drained" => drained.insert(worker, at),
            // What an agent asked for was for the end of its session; who asked, no event tells.
            "worker_undrained" | "worker_registered" => drained.remove(worker),
            _ => None,
        };
        if ["worker_removed", "worker_drained"].contains(&kind) {
            judge.judged(1);
            if asked.get(&(worker, kind)).is_none_or(|asked| evidence.record(at).t_ns < *asked) {
                judge.invalid(format!("{line}: {kind} is told of worker {worker}, and nobody asked for it"));
            }
        }
    }
}

/// Whoever is turned away as void was removed by somebody whose wish may have been granted by then.
fn void_by_nobody(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut removed: HashMap<&str, u64> = HashMap::new();
    for op in evidence.ops() {
        if matches!(op.request, Request::Revoke) && !op.failed() {
            let since = removed.entry(op.key).or_insert(op.from_ns);
            *since = op.from_ns.min(*since);
        }
    }
    for op in evidence.ops() {
        let (Request::Call(call), Outcome::Fail(failure)) = (op.request, op.outcome) else { continue };
        let says_so = VOID.contains(&failure.code.as_str()) && failure.message.starts_with(&format!("{} ", op.key));
        let may_be = removed.get(op.key).is_some_and(|since| op.to_ns.is_none_or(|told| *since < told));
        judge.judged(usize::from(says_so));
        if says_so && !may_be {
            let line = judge.line(op.returned.unwrap_or(op.invoked));
            judge.invalid(format!(
                "{line}: {} was turned away as void, from {}, and nobody removed it",
                op.key, call.rpc
            ));
        }
    }
}
