//! L5: a job that needs no more than a slot is scheduled within a second in which one worker has a free one all the time.
//!
//! Events are taken at the time at which they were told. Only first attempts count, since further ones may have to wait
//! for their backoff, and only workers whose streams stand and that are not set aside; what is reserved is for nobody
//! else. What happens in a fault, or within ten seconds of it, is not judged.

use std::collections::{HashMap, HashSet};

use super::{SECOND, Scene};
use crate::{
    check::{
        Judge,
        events::{EventLog, Told},
    },
    history::{At, Capacity, Note, Request},
};

/// After a fault, before the second begins: a leader must be found first, and workers come back.
const SETTLES: u64 = 10 * SECOND;

#[derive(Default)]
struct Queue<'a> {
    /// Slots of workers, whether or not they are there.
    capacities: HashMap<&'a str, u64>,
    /// Since when, and by which record.
    waiting: HashMap<&'a str, (u64, At)>,
    /// Since when workers have had a free slot.
    free: HashMap<&'a str, u64>,
    /// Slots of workers whose streams stand, and attempts that hold one.
    slots: HashMap<&'a str, u64>,
    held: HashMap<&'a str, HashSet<(&'a str, u32)>>,
    set_aside: HashSet<&'a str>,
    /// Workers that are to take nothing more.
    closed: HashSet<&'a str>,
}

/// See the module.
pub(super) fn check(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    let small: HashSet<&str> = scene
        .evidence
        .ops()
        .filter_map(|op| match op.request {
            Request::Submit(submit) if submit.needs == Capacity::default() => Some(op.key),
            _ => None,
        })
        .collect();
    let queue = replay(scene, |queue, told, clock| {
        // What was before it happened went on until then.
        starved(scene, judge, queue, clock);
        if told.event.kind == "job_submitted" && small.contains(told.job) {
            queue.waiting.insert(told.job, (clock, told.at));
        }
        judge.judged(usize::from(told.event.kind == "job_scheduled"));
    });
    if let Some(queue) = queue {
        starved(scene, judge, &queue, scene.end_ns);
    }
}

/// When no worker was away and all slots were taken: what waits then has to.
pub(super) fn full(scene: &Scene<'_>) -> Vec<(u64, u64)> {
    let (mut full, mut since) = (Vec::new(), 0);
    let queue = replay(scene, |queue, _, clock| {
        if queue.is_full() {
            full.push((since, clock));
        }
        since = clock;
    });
    full.extend(queue.filter(Queue::is_full).map(|_| (since, scene.end_ns)));
    full
}

/// Goes through all events, where all are known: before each is taken, it is shown with the queue until then and its time.
fn replay<'a>(scene: &Scene<'a>, mut next: impl FnMut(&mut Queue<'a>, &Told<'a>, u64)) -> Option<Queue<'a>> {
    let log = EventLog::of(scene.evidence);
    if !matches!(log.covered()[..], [((0, 0), _)]) {
        return None;
    }
    let mut queue = Queue { capacities: capacities(scene), ..Queue::default() };
    let mut clock = 0;
    for told in log.events.values() {
        // A stream that was resumed tells old events late; time does not go back.
        clock = scene.evidence.record(told.at).t_ns.max(clock);
        next(&mut queue, told, clock);
        queue.take(told.job, told.event);
        queue.look(clock);
    }
    Some(queue)
}

/// The slots of each worker that takes what there is.
fn capacities<'a>(scene: &Scene<'a>) -> HashMap<&'a str, u64> {
    let of = |(at, note): (At, &Note)| match note {
        Note::Worker(capacity) if !capacity.reserved => Some((scene.evidence.record(at).key.as_str(), capacity.slots)),
        _ => None,
    };
    scene.evidence.notes().filter_map(of).collect()
}

/// Of all that wait, who has waited longest, beside whoever has been free longest.
fn starved(scene: &Scene<'_>, judge: &mut Judge<'_>, queue: &Queue<'_>, now: u64) {
    let longest = queue.waiting.iter().min_by_key(|(_, since)| **since);
    let (Some((job, (waits, at))), Some(free)) = (longest, queue.free.values().min()) else { return };
    let (from, at) = (*waits.max(free), *at);
    // The part of the time before the first fault, or after the last one has settled.
    let first_fault = scene.faults.iter().map(|stretch| stretch.from_ns).filter(|t_ns| *t_ns >= from).min();
    let settled = scene.faults.iter().filter(|stretch| stretch.from_ns < from);
    let settled = settled.map(|stretch| stretch.to_ns.unwrap_or(stretch.from_ns) + SETTLES).max().unwrap_or(0);
    let (from, to) = (from.max(settled), first_fault.unwrap_or(u64::MAX).min(now));
    if to.saturating_sub(from) > SECOND {
        let ms = (to - from) / 1_000_000;
        judge.invalid(format!("L5: {}: job {job} waited {ms} ms beside a free slot", judge.line(at)));
    }
}

impl<'a> Queue<'a> {
    fn take(&mut self, job: &'a str, event: &'a crate::history::Event) {
        let worker = event.worker.as_str();
        match event.kind.as_str() {
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
                self.closed.remove(worker);
                self.slots.insert(worker, self.capacities.get(worker).copied().unwrap_or(0));
            }
            "worker_detached" => {
                self.slots.remove(worker);
            }
            "worker_closed" | "worker_drained" | "worker_removed" => {
                self.slots.remove(worker);
                self.closed.insert(worker);
            }
            _ => {}
        }
    }

    /// Whether all workers are there that could take something, and have nothing free.
    fn is_full(&self) -> bool {
        let mut workers = self.capacities.keys().filter(|worker| !self.closed.contains(*worker)).peekable();
        workers.peek().is_some() && workers.all(|worker| self.slots.contains_key(worker)) && self.free.is_empty()
    }

    /// Who has a free slot now, and since when.
    fn look(&mut self, now: u64) {
        let is_free = |(worker, slots): &(&&'a str, &u64)| {
            !self.set_aside.contains(*worker) && self.held.get(*worker).map_or(0, HashSet::len) < **slots as usize
        };
        let free: Vec<&str> = self.slots.iter().filter(is_free).map(|(worker, _)| *worker).collect();
        self.free.retain(|worker, _| free.contains(worker));
        free.into_iter().for_each(|worker| _ = self.free.entry(worker).or_insert(now));
    }
}
