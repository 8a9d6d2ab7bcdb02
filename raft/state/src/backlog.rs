//! The whole queue by what blocks it: how many jobs wait, for what, and what there is for them.
//!
//! It says of classes of jobs (`queue`) what [`crate::explain::explain`] says of one, in the same words, and never looks at
//! single jobs but the first of each class: how many are pending does not matter. It costs O(workers) for each class that
//! is judged, and judges no more than a plan would rank; what is left off is counted.
//!
//! Jobs of one class wait for the same but for the first, which may avoid the worker that has just failed it, or have room
//! made for it. Where there is room for some of a class, the others wait behind them.

use std::collections::BTreeMap;

use crate::{
    explain::{Blocker, Judge, Start, Verdict, start_of},
    ids::{JobId, Millis, WorkerId},
    index::Counts,
    job::Job,
    liveness::Hearing,
    plan::Now,
    queue::{Class, Order},
    registry::{Capacity, Worker, WorkerState},
    spec::{Constraint, JobSpec, Resources},
    state::State,
};

/// Classes that are judged at most.
const MAX_CLASSES: usize = 1_000;
/// Workers judged for classes, in all.
const MAX_PROBES: usize = 200_000;
/// Priorities that are told apart; the highest.
const MAX_PRIORITIES: usize = 100;

/// See the module's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Jobs by state.
    pub counts: Counts,
    /// Jobs in the queue by priority, the highest first, at most a hundred of them. Those in backoff are not in the queue.
    pub priorities: Vec<(i32, u64)>,
    /// When the oldest pending job was submitted.
    pub oldest: Option<Millis>,
    /// Pending jobs by what blocks them; absent: nothing, they are being placed. Each kind of blocker once, with the
    /// earliest of its times.
    pub blocked: Vec<(Option<Blocker>, u64)>,
    /// Classes, in the order of their first jobs.
    pub classes: Vec<ClassStatus>,
    /// Classes that were not judged, and their jobs, which are not among `blocked`.
    pub left_off: (u64, u64),
    /// What workers that may be given jobs offer in all, and what of it is taken.
    pub capacity: Capacity,
    /// See [`Backlog::capacity`].
    pub used: Capacity,
    /// Workers by whether they may be given jobs.
    pub workers: WorkerCounts,
    /// Whether it was known what has been heard of workers: only a leader knows.
    pub heard: bool,
}

/// Jobs that ask the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassStatus {
    /// How many are in the queue.
    pub jobs: u64,
    /// What they take.
    pub resources: Resources,
    /// What must hold of the worker.
    pub constraints: Vec<Constraint>,
    /// The highest and the lowest priority among them.
    pub priorities: (i32, i32),
    /// The one that is placed first.
    pub first: JobId,
    /// When that was submitted.
    pub first_submitted_at: Millis,
    /// What blocks the first; absent: nothing.
    pub blocker: Option<Blocker>,
    /// What blocks the others.
    pub others: Option<Blocker>,
    /// How many of the others wait behind those for which there is room.
    pub behind: u64,
    /// When the first is expected to be placed.
    pub start: Start,
}

/// Workers, but for those that are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerCounts {
    /// May be given jobs.
    pub ready: u64,
    /// Are being emptied.
    pub draining: u64,
    /// Are set aside.
    pub set_aside: u64,
    /// Have no stream, or are ending.
    pub absent: u64,
}

/// What waits, and for what. `hearing` is what the leader has heard of workers, where it is known.
#[must_use]
pub fn backlog(state: &State, hearing: Option<&Hearing>, now: Now) -> Backlog {
    let queue = &state.indexes.queue;
    let oldest = state.indexes.pending.get_min().and_then(|position| state.submitted_at_position(*position));
    let mut backlog = Backlog {
        counts: state.counts(),
        priorities: queue.priorities().take(MAX_PRIORITIES).collect(),
        oldest: oldest.map(|job| job.submitted_at),
        heard: hearing.is_some(),
        ..Backlog::default()
    };
    let workers: Vec<&Worker> = state.known_workers().collect();
    workers.iter().for_each(|worker| backlog.count(worker));
    let judged = MAX_CLASSES.min(MAX_PROBES / workers.len().max(1)).max(1);
    let mut blocked = BTreeMap::new();
    if let Some(&(until, _)) = state.indexes.backoff.get_min() {
        add(&mut blocked, Some(Blocker::Backoff { until }), state.indexes.backoff.len() as u64);
    }
    for (at, head) in queue.heads().take(judged).enumerate() {
        let Some(class) = class_status(state, hearing, now, &workers, head, at == 0) else {
            continue;
        };
        let others = class.jobs.saturating_sub(1);
        add(&mut blocked, class.blocker, 1);
        add(&mut blocked, Some(Blocker::Behind), class.behind);
        add(&mut blocked, class.others, others.saturating_sub(class.behind));
        backlog.classes.push(class);
    }
    let queued = backlog.counts.pending - state.indexes.backoff.len() as u64;
    let told: u64 = backlog.classes.iter().map(|class| class.jobs).sum();
    let classes = queue.heads().len().saturating_sub(backlog.classes.len());
    backlog.left_off = (classes as u64, queued.saturating_sub(told));
    backlog.blocked = blocked.into_values().collect();
    backlog
}

/// Adds jobs to those with the same kind of blocker, whatever its time.
fn add(blocked: &mut BTreeMap<Option<u8>, (Option<Blocker>, u64)>, blocker: Option<Blocker>, jobs: u64) {
    if jobs > 0 {
        let (earliest, sum) = blocked.entry(blocker.map(Blocker::kind)).or_insert((blocker, 0));
        *earliest = blocker.min(*earliest);
        *sum += jobs;
    }
}

fn class_status(
    state: &State,
    hearing: Option<&Hearing>,
    now: Now,
    workers: &[&Worker],
    (order, class): (Order, Class),
    is_first: bool,
) -> Option<ClassStatus> {
    let job = state.queued_job(order)?;
    let spec = state.spec(job.id)?;
    let judge = |job: Option<&Job>| -> Vec<(WorkerId, Verdict)> {
        // When room will be there is only foretold of the very first.
        let judge = Judge::new(state, hearing, now, job, &spec, is_first);
        workers.iter().map(|worker| (worker.id, judge.verdict(worker))).collect()
    };
    let blocker_of = |job, verdicts: &[_]| Judge::new(state, hearing, now, job, &spec, false).blocker(verdicts);
    let verdicts = judge(None);
    let others = blocker_of(None, &verdicts);
    let own = judge(Some(job));
    let blocker = blocker_of(Some(job), &own);
    let (jobs, priorities) = state.indexes.queue.size(class);
    let room = if others.is_none() { room(&verdicts, workers, &spec) } else { 0 };
    let waiting = jobs.saturating_sub(room.max(1));
    Some(ClassStatus {
        jobs,
        resources: spec.resources.clone(),
        constraints: crate::fit::constraints(&spec).to_vec(),
        priorities,
        first: job.id,
        first_submitted_at: job.submitted_at,
        blocker,
        others,
        behind: if others.is_none() { waiting } else { 0 },
        start: start_of(blocker, is_first.then_some(0), &own),
    })
}

/// For how many jobs of a class there is room now.
fn room(verdicts: &[(WorkerId, Verdict)], workers: &[&Worker], spec: &JobSpec) -> u64 {
    let needed = Capacity::needed(&spec.resources);
    let fitting = verdicts.iter().zip(workers).filter(|((_, verdict), _)| matches!(verdict, Verdict::Fits(_)));
    fitting.map(|(_, worker)| worker.free().times(&needed)).fold(0, u64::saturating_add)
}

impl Backlog {
    fn count(&mut self, worker: &Worker) {
        if worker.takes_jobs() {
            self.workers.ready += 1;
            self.capacity = self.capacity.plus(&worker.capacity);
            self.used = self.used.plus(&worker.used);
        } else if worker.serves() {
            self.workers.set_aside += 1;
        } else if worker.state == WorkerState::Draining {
            self.workers.draining += 1;
        } else {
            self.workers.absent += 1;
        }
    }
}
