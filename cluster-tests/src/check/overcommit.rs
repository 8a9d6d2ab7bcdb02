//! S14: the attempts that a worker has at any place of the log fit its capacity.
//!
//! The log of events is swept from its beginning: an attempt takes what its job needs from `job_scheduled` to
//! `job_requeued` or `job_ended`. A log with holes cannot be judged.

use std::collections::HashMap;

use super::{
    Judge,
    events::{EventLog, Told},
};
use crate::history::{At, Capacity, Evidence, Note, Request};

/// What a worker has and holds.
#[derive(Default)]
struct Worker<'a> {
    used: Capacity,
    attempts: HashMap<(&'a str, u32), (At, Capacity)>,
}

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let log = EventLog::of(evidence);
    if log.events.is_empty() {
        return;
    }
    match log.covered()[..] {
        [((0, 0), _)] => {}
        [] => return judge.unknown("no stream of all events was read"),
        _ => return judge.unknown("what was read of the log of events does not begin with it, or has a hole"),
    }
    let needs = needs(evidence);
    let has = capacities(evidence);
    let mut workers: HashMap<&str, Worker<'_>> = HashMap::new();
    for told in log.events.values() {
        let Told { at, job, event } = *told;
        let attempt = (job, event.attempt);
        match event.kind.as_str() {
            "job_scheduled" => {
                judge.judged(1);
                let need = needs.get(job).copied().unwrap_or(Capacity { slots: 1, ..Capacity::default() });
                let worker = workers.entry(&event.worker).or_default();
                worker.take(attempt, at, need);
                match has.get(event.worker.as_str()) {
                    Some(has) => worker.judge(judge, &event.worker, *has, at),
                    None => judge.unknown(format!("{}: nobody says what {} can take", judge.line(at), event.worker)),
                }
            }
            "job_requeued" | "job_ended" => {
                if let Some(worker) = workers.get_mut(event.worker.as_str()) {
                    worker.give_back(attempt);
                }
            }
            _ => {}
        }
    }
}

fn needs(evidence: &Evidence) -> HashMap<&str, Capacity> {
    let submits = evidence.ops().filter_map(|op| match op.request {
        Request::Submit(submit) => Some((op.key, Capacity { slots: 1, ..submit.needs })),
        _ => None,
    });
    submits.collect()
}

/// The largest that each worker had: when it changed, by the log, is not known.
fn capacities(evidence: &Evidence) -> HashMap<&str, Capacity> {
    let mut has: HashMap<&str, Capacity> = HashMap::new();
    for (at, note) in evidence.notes() {
        if let Note::Worker(capacity) = note {
            let known = has.entry(&evidence.record(at).key).or_default();
            known.slots = known.slots.max(capacity.slots);
            known.cpu_millis = known.cpu_millis.max(capacity.cpu_millis);
            known.memory_mb = known.memory_mb.max(capacity.memory_mb);
        }
    }
    has
}

impl<'a> Worker<'a> {
    fn take(&mut self, attempt: (&'a str, u32), at: At, need: Capacity) {
        self.give_back(attempt);
        self.attempts.insert(attempt, (at, need));
        self.used.slots += need.slots;
        self.used.cpu_millis += need.cpu_millis;
        self.used.memory_mb += need.memory_mb;
    }

    fn give_back(&mut self, attempt: (&'a str, u32)) {
        if let Some((_, need)) = self.attempts.remove(&attempt) {
            self.used.slots -= need.slots;
            self.used.cpu_millis -= need.cpu_millis;
            self.used.memory_mb -= need.memory_mb;
        }
    }

    fn judge(&self, judge: &mut Judge<'_>, worker: &str, has: Capacity, at: At) {
        for (what, used, has) in [
            ("slots", self.used.slots, has.slots),
            ("cpu_millis", self.used.cpu_millis, has.cpu_millis),
            ("memory_mb", self.used.memory_mb, has.memory_mb),
        ] {
            if used > has {
                let mut held: Vec<_> = self.attempts.values().map(|(at, _)| *at).collect();
                held.sort_unstable();
                let held: Vec<_> = held.into_iter().map(|at| judge.line(at)).collect();
                let text = format!("{worker} has {has} {what} and holds {used}");
                judge.invalid(format!("{}: {text} ({})", judge.line(at), held.join(", ")));
            }
        }
    }
}
