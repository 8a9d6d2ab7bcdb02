//! The leader's decisions. Each was made on an older state, so that everything it rests on is checked again.

use super::{Context, Result, may_be_preempted};
use crate::{
    events::Event,
    flapping::SetAsideChange,
    ids::{AttemptRef, Caller, JobId},
    job::{Attempt, Deadline, EndedBy, JobState, Reason, TakenBack},
    outcome::{Outcome, Refusal},
    registry::{Capacity, Cluster, SessionRef, Worker, WorkerState},
    score::{Choice, WeightsChange},
    state::State,
    validate::check,
};

impl State {
    /// Gives a pending job to a worker: a reservation, atomic with the check that there is room.
    pub(super) fn assign(
        &mut self,
        context: Context,
        id: JobId,
        attempt: u32,
        on: SessionRef,
        heartbeat: u64,
        choice: Choice,
    ) -> Result {
        let (Some(job), Some(spec)) = (self.job(id), self.spec(id)) else {
            return Err(Refusal::UnknownJob { job: id });
        };
        if job.state != JobState::Pending {
            return Err(out_of_date("the job is not pending"));
        }
        if job.attempt.checked_add(1) != Some(attempt) {
            return Err(out_of_date("another attempt is due"));
        }
        if job.not_before.is_some_and(|until| until > self.stamp()) {
            return Err(out_of_date("the job waits for its backoff to pass"));
        }
        let needed = Capacity::needed(&spec.resources);
        let worker = self.check_worker(on, &needed)?;
        let used = worker.used.plus(&needed);
        let worker = Worker { used, state: WorkerState::Busy, ..worker.clone() };
        let mut job = job.clone();
        job.state = JobState::Scheduled;
        job.attempt = attempt;
        job.not_before = None;
        let assigned = AttemptRef { job: id, attempt, fence: context.index };
        self.put_worker(worker);
        let given = self.note_secrets(context, &job, &spec, assigned, on.worker);
        self.put_attempt(Attempt {
            id: assigned,
            worker: on.worker,
            session: on.session,
            heartbeat,
            choice,
            assigned_at: self.stamp(),
            started_at: None,
            overdue_at: None,
            taken_back: None,
            end: None,
        });
        self.update_job(job);
        self.emit(&Event::JobScheduled { job: id, attempt, worker: on.worker });
        for (name, version) in given {
            self.emit(&Event::SecretUsed { job: id, attempt, worker: on.worker, name, version });
        }
        Ok(Outcome::Assigned { attempt: assigned })
    }

    /// Changes what counts when the scheduler chooses among workers; what is placed stays where it is, and who is set
    /// aside stays so.
    pub(super) fn configure_scheduler(&mut self, weights: &WeightsChange, set_aside: &SetAsideChange) -> Result {
        check(!weights.is_empty() || !set_aside.is_empty(), "scheduler", "at least one value")?;
        let cluster = self.cluster().ok_or(Refusal::WrongClusterState)?;
        let (weights, set_aside) = (weights.of(cluster.weights)?, set_aside.of(cluster.set_aside)?);
        if (weights, set_aside) == (cluster.weights, cluster.set_aside) {
            return Ok(Outcome::Unchanged);
        }
        self.put_cluster(Cluster { weights, set_aside, ..cluster.clone() });
        Ok(Outcome::Done)
    }

    fn check_worker(&self, on: SessionRef, needed: &Capacity) -> std::result::Result<&Worker, Refusal> {
        let worker = self.worker(on.worker).ok_or(Refusal::UnknownWorker { worker: on.worker })?;
        if worker.session != on.session {
            return Err(Refusal::StaleSession { session: on.session });
        }
        if !worker.takes_jobs() || self.is_revoked(Caller::Agent(on.worker)) {
            return Err(out_of_date("the worker takes no jobs"));
        }
        if !worker.free().holds(needed) && !crate::armed!("bug::capacity-unchecked") {
            return Err(Refusal::NoCapacity { worker: on.worker });
        }
        Ok(worker)
    }

    /// An attempt is to make room for a job of higher priority. That frees nothing yet: it is stopped as by a cancel, and
    /// its job goes back to the queue when it has ended.
    pub(super) fn preempt(&mut self, id: AttemptRef, for_job: JobId) -> Result {
        let attempt = self.known_attempt(id)?;
        let (Some(victim), Some(spec)) = (self.job(id.job), self.spec(id.job)) else {
            return Err(Refusal::UnknownJob { job: id.job });
        };
        let (Some(job), Some(wanted)) = (self.job(for_job), self.spec(for_job)) else {
            return Err(Refusal::UnknownJob { job: for_job });
        };
        if !attempt.is_live() || attempt.taken_back.is_some() {
            return Ok(Outcome::Unchanged);
        }
        if job.state != JobState::Pending {
            return Err(out_of_date("the job that it should make room for is not pending"));
        }
        if wanted.priority <= spec.priority {
            return Err(out_of_date("its priority is not lower"));
        }
        if !may_be_preempted(victim, &spec) {
            return Err(out_of_date("it may not be preempted, or not once more"));
        }
        let attempt = Attempt { taken_back: Some(TakenBack::Preempted { for_job }), ..attempt.clone() };
        let AttemptRef { job, attempt: number, .. } = id;
        let preempted = Event::JobPreempted { job, attempt: number, worker: attempt.worker, for_job };
        self.put_attempt(attempt);
        self.emit(&preempted);
        Ok(Outcome::Done)
    }

    /// The lease of an attempt ran out: no agent runs it any more, and none ever will.
    pub(super) fn attempt_lost(&mut self, id: AttemptRef) -> Result {
        let attempt = self.known_attempt(id)?;
        if !attempt.is_live() {
            return Ok(Outcome::Unchanged);
        }
        let reason = if attempt.overdue_at.is_some() {
            Reason::Timeout { deadline: Deadline::Backstop }
        } else {
            Reason::WorkerLost { message: "its lease ran out".to_string() }
        };
        self.end_attempt(attempt.clone(), EndedBy::Expiry, reason, None);
        Ok(Outcome::Done)
    }

    /// The agent should have ended the attempt by now. That frees nothing: the process may still run. The attempt's
    /// lease is extended no more, and the expiry, which the agent's watchdog heeds, frees it.
    pub(super) fn attempt_overdue(&mut self, id: AttemptRef) -> Result {
        let attempt = self.known_attempt(id)?;
        if !attempt.is_live() || attempt.overdue_at.is_some() {
            return Ok(Outcome::Unchanged);
        }
        let attempt = Attempt { overdue_at: Some(self.stamp()), ..attempt.clone() };
        self.put_attempt(attempt);
        Ok(Outcome::Done)
    }

    /// An attempt under this very fence, live or not.
    pub(super) fn known_attempt(&self, id: AttemptRef) -> std::result::Result<&Attempt, Refusal> {
        let same = |attempt: &&Attempt| attempt.id.fence == id.fence || crate::armed!("bug::fence-unchecked");
        let attempt = self.attempt(id.job, id.attempt).filter(same);
        attempt.ok_or(Refusal::StaleFence { attempt: id })
    }
}

fn out_of_date(why: &str) -> Refusal {
    Refusal::OutOfDate { why: why.to_string() }
}
