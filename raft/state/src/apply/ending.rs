//! What the end of an attempt means for its job: done, failed, or another attempt.

use super::jobs::exit_of;
use crate::{
    events::{End, Event},
    flapping::{Loss, SetAside},
    ids::{AttemptRef, Millis, WorkerId},
    job::{
        Attempt, AttemptEnd, Budget, CancelRequest, EndedBy, Job, JobState, LogEnd, Next, Reason, RetriesUsed,
        StartFailure, TakenBack,
    },
    registry::{Capacity, Worker, WorkerState},
    spec::{JobSpec, Retry},
    state::State,
};
use xxhash_rust::xxh3::xxh3_64;

impl State {
    /// Ends a live attempt, gives its capacity back and decides what becomes of its job.
    pub(super) fn end_attempt(&mut self, mut attempt: Attempt, by: EndedBy, reason: Reason, log: Option<LogEnd>) {
        debug_assert!(attempt.is_live(), "only live attempts end");
        let id = attempt.id;
        let now = self.stamp();
        let worker = attempt.worker;
        let (Some(job), Some(spec)) = (self.job(id.job), self.spec(id.job)) else {
            debug_assert!(false, "attempt {id:?} is of no job");
            return;
        };
        debug_assert_eq!(job.attempt, id.attempt, "only the newest attempt is live");
        let mut job = job.clone();
        let end = End::from(&reason);
        // What was taken back, whether the worker said so or its lease ran out instead, is nobody's fault.
        let taken_back = match reason {
            Reason::TakenBack { why, .. } => Some(why),
            Reason::WorkerLost { .. } => attempt.taken_back,
            _ => None,
        };
        let learnt = job.cancel.is_none() && taken_back.is_none();
        let silent = matches!(by, EndedBy::Expiry | EndedBy::Dead) && matches!(reason, Reason::WorkerLost { .. });
        let fared = Fared {
            succeeded: learnt.then_some(matches!(reason, Reason::Exited { code: 0 })),
            lost_since: (learnt && silent).then_some(attempt.assigned_at),
        };
        let next = match taken_back.filter(|_| job.cancel.is_none()) {
            Some(why) => put_back(&mut job, &spec.retry, why, reason.clone(), now),
            None => settle(&mut job, &spec.retry, reason.clone(), worker, now),
        };
        attempt.end = Some(AttemptEnd { at: now, by, reason, log, next });
        self.put_attempt(attempt);
        let set_aside = self.release_capacity(worker, id, fared);
        let state = job.state;
        self.update_job(job);
        self.tell_end(id, worker, by, state, end);
        self.tell_set_aside(worker, set_aside);
    }

    fn tell_end(&mut self, id: AttemptRef, worker: WorkerId, by: EndedBy, state: JobState, end: End) {
        let AttemptRef { job, attempt, .. } = id;
        if by == EndedBy::Expiry {
            self.emit(&Event::AttemptLost { job, attempt, worker });
        }
        self.emit(&if state.is_terminal() {
            Event::JobEnded { job, attempt, worker: Some(worker), state, end }
        } else {
            Event::JobRequeued { job, attempt, worker, end }
        });
    }

    /// Gives back what an attempt held of its worker, which learns how it fared, where that says anything about it.
    fn release_capacity(&mut self, worker: WorkerId, attempt: AttemptRef, fared: Fared) -> Option<SetAside> {
        let (worker, spec) = (self.worker(worker)?, self.spec(attempt.job)?);
        let used = worker.used.minus(&Capacity::needed(&spec.resources));
        let mut worker = Worker { used, ..worker.clone() };
        if let Some(succeeded) = fared.succeeded {
            worker.learn(succeeded);
        }
        let lost_since = fared.lost_since.filter(|_| worker.removed_at.is_none());
        let (now, policy) = (self.stamp(), self.set_aside_policy());
        let set_aside = lost_since.and_then(|began| worker.lose(Loss::Attempt, began, now, policy));
        if self.live_attempts(worker.id).next().is_none() {
            worker.state = match worker.state {
                WorkerState::Busy => WorkerState::Ready,
                WorkerState::Terminating => WorkerState::Terminated,
                state => state,
            };
        }
        self.put_worker(worker);
        set_aside
    }
}

/// What the end of an attempt says about its worker.
#[derive(Clone, Copy, Debug)]
struct Fared {
    /// Whether it succeeded, where that says anything.
    succeeded: Option<bool>,
    /// When it had been assigned, where the worker lost it.
    lost_since: Option<Millis>,
}

/// The job goes back to its place in the queue at once, unless it may not be started once more at all.
fn put_back(job: &mut Job, retry: &Retry, why: TakenBack, reason: Reason, now: Millis) -> Next {
    let next = match why {
        TakenBack::Drained if may_start_again(retry, job.attempt) => Next::PutBack,
        TakenBack::Drained => Next::MaxAttempts,
        TakenBack::Preempted { .. } => take(&mut job.retries, Budget::Preemption, retry, job.attempt),
    };
    match next {
        Next::PutBack | Next::Retry { .. } => {
            job.state = JobState::Pending;
            job.not_before = None;
        }
        Next::End | Next::Spent { .. } | Next::MaxAttempts => finish(job, reason, now),
    }
    next
}

fn may_start_again(retry: &Retry, attempts: u32) -> bool {
    retry.max_attempts == 0 || attempts < retry.max_attempts
}

/// Whether a job may be preempted once more: so that it will be tried again.
pub(crate) fn may_be_preempted(job: &Job, spec: &JobSpec) -> bool {
    spec.preemptible
        && job.cancel.is_none()
        && job.retries.preemption < spec.retry.preemption
        && may_start_again(&spec.retry, job.attempt)
}

/// The job's next state.
fn settle(job: &mut Job, retry: &Retry, reason: Reason, worker: WorkerId, now: Millis) -> Next {
    if let Some(request) = job.cancel.as_ref().filter(|_| !crate::armed!("bug::cancel-lost")) {
        let reason = cancelled(request, Some(&reason));
        finish(job, reason, now);
        return Next::End;
    }
    let next = match budget(&reason, retry) {
        Some(budget) => take(&mut job.retries, budget, retry, job.attempt),
        None => Next::End,
    };
    let Next::Retry { budget, .. } = next else {
        finish(job, reason, now);
        return next;
    };
    job.state = JobState::Pending;
    job.not_before = backoff(job, retry).map(|wait| now.plus(wait));
    job.avoid = Some(worker);
    Next::Retry { budget, not_before: job.not_before }
}

/// Makes a job terminal.
pub(super) fn finish(job: &mut Job, reason: Reason, now: Millis) {
    job.state = match reason {
        Reason::Exited { code: 0 } => JobState::Succeeded,
        Reason::Cancelled { .. } => JobState::Cancelled,
        Reason::Timeout { .. } => JobState::Timeout,
        _ => JobState::Failed,
    };
    job.reason = Some(Box::new(reason));
    job.finished_at = Some(now);
    job.not_before = None;
}

/// The reason of a cancelled job, with how its process ended where it had one.
pub(super) fn cancelled(request: &CancelRequest, end: Option<&Reason>) -> Reason {
    let (exit_code, signal) = end.map_or((None, None), exit_of);
    Reason::Cancelled { by: request.by, reason: request.reason.clone(), exit_code, signal }
}

/// The budget that this end may be made up for from; `None`: none.
fn budget(reason: &Reason, retry: &Retry) -> Option<Budget> {
    let failure =
        |code: i32| (retry.exit_codes.is_empty() || retry.exit_codes.contains(&code)).then_some(Budget::Failure);
    match reason {
        Reason::Exited { code: 0 } | Reason::Cancelled { .. } => None,
        Reason::Exited { code } => failure(*code),
        // As a shell reports them.
        Reason::Signaled { signal } => failure(signal.saturating_add(128)),
        Reason::OutOfMemory => failure(137),
        Reason::CouldNotStart { cause: StartFailure::NotFound, .. } => failure(127),
        Reason::CouldNotStart { .. } => failure(126),
        Reason::Timeout { .. } => Some(Budget::Timeout),
        Reason::WorkerLost { .. } | Reason::NotProvisioned { .. } | Reason::TakenBack { .. } => {
            Some(Budget::Infrastructure)
        }
    }
}

/// Takes one retry from a budget, where it and the bound on all attempts allow it.
fn take(used: &mut RetriesUsed, budget: Budget, retry: &Retry, attempts: u32) -> Next {
    let (used, allowed) = match budget {
        Budget::Infrastructure => (&mut used.infrastructure, retry.infrastructure),
        Budget::Failure => (&mut used.failure, retry.failure),
        Budget::Timeout => (&mut used.timeout, retry.timeout),
        Budget::Preemption => (&mut used.preemption, retry.preemption),
    };
    if *used >= allowed {
        return Next::Spent { budget };
    }
    if !may_start_again(retry, attempts) {
        return Next::MaxAttempts;
    }
    *used += 1;
    Next::Retry { budget, not_before: None }
}

/// How long the next attempt waits: doubled with each retry up to the longest wait, of which a hash of job and attempt
/// takes away up to a half, so that what failed together does not come back together. None where it would be zero.
fn backoff(job: &Job, retry: &Retry) -> Option<u64> {
    let retries = job.retries.infrastructure.saturating_add(job.retries.failure).saturating_add(job.retries.timeout);
    let doublings = retries.saturating_sub(1).min(63);
    let full = retry.backoff_initial_ms.saturating_mul(1 << doublings).min(retry.backoff_max_ms);
    let mut seed = [0; 20];
    seed[..16].copy_from_slice(&job.id.0.to_be_bytes());
    seed[16..].copy_from_slice(&job.attempt.to_be_bytes());
    let jitter = xxh3_64(&seed) % (full / 2 + 1);
    Some(full - jitter).filter(|wait| *wait > 0)
}
