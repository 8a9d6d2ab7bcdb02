//! L5: where a slot is free and a job waits that needs no more than one, something is scheduled within a second.
//!
//! Events are taken at the time at which they were told. Only first attempts count, since further ones may have to wait
//! for their backoff, and only workers whose streams stand and that are not set aside; what is reserved is for nobody else. Each assignment begins the
//! second anew, and so does a fault.

use std::collections::{HashMap, HashSet};

use super::{SECOND, Scene};
use crate::{
    check::{Judge, events::EventLog},
    history::{Capacity, Note, Request},
};

/// After a fault, before the second begins: a leader must be found first, and workers come back.
const SETTLES: u64 = 10 * SECOND;

#[derive(Default)]
struct Queue<'a> {
    waiting: HashSet<&'a str>,
    /// Slots of workers whose streams stand, and attempts that hold one.
    slots: HashMap<&'a str, u64>,
    held: HashMap<&'a str, HashSet<(&'a str, u32)>>,
    set_aside: HashSet<&'a str>,
}

/// See the module.
pub(super) fn check(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    let log = EventLog::of(scene.evidence);
    if !matches!(log.covered()[..], [((0, 0), _)]) {
        return;
    }
    let small: HashSet<&str> = scene
        .evidence
        .ops()
        .filter_map(|op| match op.request {
            Request::Submit(submit) if submit.needs == Capacity::default() => Some(op.key),
            _ => None,
        })
        .collect();
    let capacities: HashMap<&str, u64> = scene
        .evidence
        .notes()
        .filter_map(|(at, note)| match note {
            Note::Worker(capacity) if !capacity.reserved => {
                Some((scene.evidence.record(at).key.as_str(), capacity.slots))
            }
            _ => None,
        })
        .collect();
    let mut queue = Queue::default();
    // Since when something could have been scheduled, and was not.
    let mut since: Option<(u64, usize)> = None;
    let mut clock = 0;
    for told in log.events.values() {
        // A stream that was resumed tells old events late; time does not go back.
        clock = scene.evidence.record(told.at).t_ns.max(clock);
        starved(scene, judge, since, clock);
        queue.take(told.job, told.event, &small, &capacities);
        let scheduled = told.event.kind == "job_scheduled";
        judge.judged(usize::from(scheduled));
        since = match since {
            _ if !queue.could_schedule() => None,
            Some(since) if !scheduled => Some(since),
            _ => Some((clock, told.at)),
        };
    }
    starved(scene, judge, since, scene.end_ns);
}

fn starved(scene: &Scene<'_>, judge: &mut Judge<'_>, since: Option<(u64, usize)>, now: u64) {
    let Some((from, at)) = since else { return };
    // The part of the time before the first fault, or after the last one has settled.
    let first_fault = scene.faults.iter().map(|stretch| stretch.from_ns).filter(|t_ns| *t_ns >= from).min();
    let settled = scene.faults.iter().filter(|stretch| stretch.from_ns < from);
    let settled = settled.map(|stretch| stretch.to_ns.unwrap_or(stretch.from_ns) + SETTLES).max().unwrap_or(0);
    let (from, to) = (from.max(settled), first_fault.unwrap_or(u64::MAX).min(now));
    if to.saturating_sub(from) > SECOND {
        let ms = (to - from) / 1_000_000;
        judge.invalid(format!("L5: {}: from here on a job waited {ms} ms beside a free slot", judge.line(at)));
    }
}

impl<'a> Queue<'a> {
    fn take(
        &mut self,
        job: &'a str,
        event: &'a crate::history::Event,
        small: &HashSet<&str>,
        capacities: &HashMap<&str, u64>,
    ) {
        let worker = event.worker.as_str();
        match event.kind.as_str() {
            "job_submitted" if small.contains(job) => {
                self.waiting.insert(job);
            }
            "job_scheduled" => {
                self.waiting.remove(job);
                self.held.entry(worker).or_default().insert((job, event.attempt));
            }
            "job_requeued" | "job_ended" => {
                self.waiting.remove(job);
                self.held.entry(worker).or_default().remove(&(job, event.attempt));
            }
            "worker_set_aside" => {
                self.set_aside.insert(worker);
            }
            "worker_set_aside_ended" => {
                self.set_aside.remove(worker);
            }
            "worker_attached" | "worker_undrained" => {
                self.slots.insert(worker, capacities.get(worker).copied().unwrap_or(0));
            }
            "worker_detached" | "worker_closed" | "worker_drained" | "worker_removed" => {
                self.slots.remove(worker);
            }
            _ => {}
        }
    }

    fn could_schedule(&self) -> bool {
        let free = |(worker, slots): (&&str, &u64)| {
            !self.set_aside.contains(worker) && self.held.get(worker).map_or(0, HashSet::len) < *slots as usize
        };
        !self.waiting.is_empty() && self.slots.iter().any(free)
    }
}
