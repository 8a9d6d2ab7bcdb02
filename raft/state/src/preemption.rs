//! Preemption: which attempts of lower priority make room for a job that fits nowhere.
//!
//! Only attempts of jobs that allow it, and whose budget for it lasts, so that none is ended by it for good; only as many
//! as are needed, all on one worker, and only where the job then fits. Among workers the one with the least loss: the
//! lowest priorities, then the fewest attempts; on a worker the lowest priority first, and of equals the youngest.
//!
//! A victim is stopped as by a cancel and may take its grace period. Meanwhile what it frees is kept for the job that
//! waits for it ([`Reserved`]): it goes to that job, or to one before it in the queue, and to nobody behind.

use std::{cmp::Reverse, collections::BTreeMap};

use crate::{
    apply::may_be_preempted,
    fit::suits,
    ids::{AttemptRef, Caller, JobId, Millis, WorkerId},
    index::order,
    job::{Job, JobState},
    queue::Order,
    registry::{Capacity, Worker},
    spec::JobSpec,
    state::State,
};

/// Attempts that one plan considers to end.
const MAX_VICTIMS: usize = 2_000;

/// An attempt that may be ended for a job of higher priority.
#[derive(Clone, Copy, Debug)]
struct Victim {
    priority: i32,
    assigned_at: Millis,
    attempt: AttemptRef,
    holds: Capacity,
    taken: bool,
}

/// All that may be ended, by worker. Made once per plan, when a job first needs it.
#[derive(Debug, Default)]
pub(crate) struct Victims {
    by_worker: BTreeMap<WorkerId, Vec<Victim>>,
}

impl Victims {
    pub(crate) fn new(state: &State) -> Self {
        let mut victims = Self::default();
        for &(priority, (worker, job, attempt)) in state.indexes.victims.iter().take(MAX_VICTIMS) {
            let (Some(row), Some(spec), Some(attempt)) = (state.job(job), state.spec(job), state.attempt(job, attempt))
            else {
                continue;
            };
            if may_be_preempted(row, &spec) {
                let (assigned_at, holds) = (attempt.assigned_at, Capacity::needed(&spec.resources));
                let victim = Victim { priority, assigned_at, attempt: attempt.id, holds, taken: false };
                victims.by_worker.entry(worker).or_default().push(victim);
            }
        }
        for victims in victims.by_worker.values_mut() {
            victims.sort_by_key(|victim| (victim.priority, Reverse(victim.assigned_at), victim.attempt));
        }
        victims
    }

    /// Takes the attempts that have to end so that the job fits on one of the workers; none, where that is not to be
    /// had. `free` is what the job could have of a worker now.
    pub(crate) fn take(
        &mut self,
        state: &State,
        job: &Job,
        spec: &JobSpec,
        free: impl Fn(&Worker) -> Capacity,
    ) -> Vec<AttemptRef> {
        let needed = Capacity::needed(&spec.resources);
        let workers = self.by_worker.iter().filter_map(|(id, victims)| Some((state.worker(*id)?, victims)));
        let able = workers.filter(|(worker, _)| {
            worker.takes_jobs()
                && !state.is_revoked(Caller::Agent(worker.id))
                && job.avoid != Some(worker.id)
                && worker.capacity.holds(&needed)
                && suits(spec, worker)
        });
        let choices = able.filter_map(|(worker, victims)| {
            let chosen = enough(victims, spec.priority, free(worker), &needed)?;
            let dearest = chosen.iter().map(|at| victims[*at].priority).max()?;
            Some(((dearest, chosen.len(), worker.id), chosen))
        });
        let Some(((.., worker), chosen)) = choices.min_by_key(|(loss, _)| *loss) else {
            return Vec::new();
        };
        let victims = self.by_worker.get_mut(&worker).map(Vec::as_mut_slice).unwrap_or_default();
        let mut attempts = Vec::with_capacity(chosen.len());
        for at in chosen {
            victims[at].taken = true;
            attempts.push(victims[at].attempt);
        }
        attempts
    }
}

/// The first victims with which enough is free, without those that turn out not to be needed.
fn enough(victims: &[Victim], below: i32, free: Capacity, needed: &Capacity) -> Option<Vec<usize>> {
    let mut free = free;
    let mut chosen = Vec::new();
    for (at, victim) in victims.iter().enumerate() {
        if free.holds(needed) || victim.priority >= below {
            break;
        }
        if !victim.taken {
            free = free.plus(&victim.holds);
            chosen.push(at);
        }
    }
    if !free.holds(needed) || chosen.is_empty() {
        return None;
    }
    for at in chosen.clone().into_iter().rev() {
        let without = free.minus(&victims[at].holds);
        if without.holds(needed) {
            free = without;
            chosen.retain(|one| *one != at);
        }
    }
    Some(chosen)
}

/// What is kept on workers for jobs that wait for attempts there to end.
#[derive(Debug, Default)]
pub(crate) struct Reserved {
    by_worker: BTreeMap<WorkerId, Vec<(Order, Capacity)>>,
}

impl Reserved {
    pub(crate) fn new(state: &State) -> Self {
        let mut releasing: BTreeMap<(JobId, WorkerId), Capacity> = BTreeMap::new();
        for &(for_job, (worker, victim, _)) in &state.indexes.preempted {
            let holds = state.spec(victim).map_or_else(Capacity::default, |spec| Capacity::needed(&spec.resources));
            let sum = releasing.entry((for_job, worker)).or_default();
            *sum = sum.plus(&holds);
        }
        let mut reserved = Self::default();
        for ((job, worker), releasing) in releasing {
            let (Some(job), Some(spec)) = (state.job(job), state.spec(job)) else {
                continue;
            };
            if job.state == JobState::Pending {
                // What is still to be freed is not there to be given away.
                let kept = Capacity::needed(&spec.resources).minus(&releasing);
                reserved.by_worker.entry(worker).or_default().push((order(job, &spec), kept));
            }
        }
        reserved
    }

    /// What of a worker's free capacity a job may have.
    pub(crate) fn left(&self, worker: WorkerId, free: Capacity, order: Order) -> Capacity {
        let kept = self.by_worker.get(&worker).into_iter().flatten();
        kept.filter(|(before, _)| *before < order).fold(free, |free, (_, kept)| free.minus(kept))
    }

    /// Whether nothing is kept anywhere.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_worker.is_empty()
    }
}

/// Whether attempts are being ended for a job.
pub(crate) fn is_awaited(state: &State, job: JobId) -> bool {
    let first = (job, (WorkerId(0), JobId(0), 0));
    state.indexes.preempted.range(first..).next().is_some_and(|(for_job, _)| *for_job == job)
}
