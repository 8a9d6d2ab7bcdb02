//! What users ask for: submit, retry, cancel; and the removal of what has ended.

use super::{Context, Result, ending};
use crate::{
    command::SubmitJob,
    events::{End, Event},
    ids::{Caller, JobId},
    index::body_len,
    job::{CancelRequest, Job, JobState, Reason, RetriesUsed},
    outcome::{Outcome, Refusal},
    registry::Tombstone,
    spec::JobSpec,
    state::State,
    validate::{self, check},
};

/// Bytes of bodies that jobs which have not ended may hold together.
const MAX_QUEUED_BYTES: u64 = 4 << 30;
/// A removed job is still recognised for an hour.
const TOMBSTONE_MS: u64 = 3_600_000;
/// Jobs that one command may remove, so that none takes long.
pub(crate) const MAX_REMOVALS: usize = 1_000;

impl State {
    /// Submits a job and puts it in the queue. Recognised by its id, or by the caller's idempotency key: the same
    /// payload again names the existing job, another payload is refused.
    pub(super) fn submit_job(&mut self, context: Context, submission: &SubmitJob) -> Result {
        validate::stored(submission)?;
        if let Some(known) = self.known_submission(context.caller, submission) {
            return known;
        }
        self.check_secrets(&submission.spec)?;
        self.check_queued_bytes(&submission.spec)?;
        let idempotency_key = submission.idempotency_key.clone();
        let job = Job { idempotency_key, ..self.pending_job(context, submission.job, submission.digest) };
        self.insert_job(job, &submission.spec);
        Ok(Outcome::Submitted { job: submission.job, existing: false })
    }

    /// A job of the caller's that enters the queue now.
    fn pending_job(&self, context: Context, id: JobId, digest: [u8; 32]) -> Job {
        Job {
            id,
            owner: context.caller,
            digest,
            idempotency_key: None,
            submitted_index: context.index,
            submitted_offset: context.offset,
            submitted_at: self.stamp(),
            state: JobState::Pending,
            reason: None,
            attempt: 0,
            cancel: None,
            retries: RetriesUsed::default(),
            not_before: None,
            avoid: None,
            started_at: None,
            finished_at: None,
            retry_of: None,
        }
    }

    /// Tries a job that has ended, but not succeeded, once more: as a new job of the caller's, with the same spec and a
    /// link to the old one, which stays as it is. Recognised by the new job's id for as long as that is kept.
    pub(super) fn retry_job(&mut self, context: Context, id: JobId, of: JobId) -> Result {
        check(id != JobId(0), "id", "a UUIDv7")?;
        if let Some(existing) = self.job(id) {
            let same = existing.owner == context.caller && existing.retry_of.as_deref() == Some(&of);
            return if same {
                Ok(Outcome::Submitted { job: id, existing: true })
            } else {
                Err(Refusal::PayloadMismatch { job: id })
            };
        }
        if self.tombstones.get(&id).is_some_and(|tombstone| tombstone.until > self.stamp()) {
            return Err(Refusal::JobRemoved { job: id });
        }
        let (Some(old), Some(spec)) = (self.job(of), self.spec(of)) else {
            let removed = self.tombstones.contains(&of);
            return Err(if removed { Refusal::JobRemoved { job: of } } else { Refusal::UnknownJob { job: of } });
        };
        if !old.state.is_terminal() || old.state == JobState::Succeeded {
            return Err(Refusal::NothingToRetry { job: of, state: old.state });
        }
        let job = Job { retry_of: Some(Box::new(of)), ..self.pending_job(context, id, old.digest) };
        self.check_secrets(&spec)?;
        self.check_queued_bytes(&spec)?;
        self.insert_job(job, &spec);
        Ok(Outcome::Submitted { job: id, existing: false })
    }

    fn check_queued_bytes(&self, spec: &JobSpec) -> std::result::Result<(), Refusal> {
        let queued_bytes = self.counts().queued_bytes;
        let fits = queued_bytes.saturating_add(body_len(spec)) <= MAX_QUEUED_BYTES;
        if fits { Ok(()) } else { Err(Refusal::QueueFull { queued_bytes }) }
    }

    fn known_submission(&self, caller: Caller, submission: &SubmitJob) -> Option<Result> {
        if let Some(known) = self.recognise(submission.job, caller, submission) {
            return Some(known);
        }
        let key = submission.idempotency_key.as_deref()?;
        let job = *self.indexes.keys.get(&(caller, key.into()))?;
        self.recognise(job, caller, submission)
    }

    /// Whether `job`, or what is kept of it, is what is being submitted.
    fn recognise(&self, job: JobId, caller: Caller, submission: &SubmitJob) -> Option<Result> {
        let same = |owner: Caller, digest: [u8; 32]| {
            owner == caller && (digest == submission.digest || crate::armed!("bug::digest-not-compared"))
        };
        if let Some(existing) = self.job(job) {
            return Some(if same(existing.owner, existing.digest) {
                Ok(Outcome::Submitted { job, existing: true })
            } else {
                Err(Refusal::PayloadMismatch { job })
            });
        }
        let tombstone = self.tombstones.get(&job)?;
        (tombstone.until > self.stamp()).then(|| {
            let same = same(tombstone.owner, tombstone.digest);
            Err(if same { Refusal::JobRemoved { job } } else { Refusal::PayloadMismatch { job } })
        })
    }

    /// A pending job ends at once. One that is placed goes on until its process has ended or its lease has run out, and
    /// whatever ends it then, it ends as cancelled. The first request stands; repeating it changes nothing.
    pub(super) fn cancel_job(&mut self, context: Context, id: JobId, reason: &str) -> Result {
        check(reason.len() <= 256, "reason", "at most 256 bytes")?;
        let Some(job) = self.job(id) else {
            let removed = self.tombstones.contains(&id);
            return Err(if removed { Refusal::JobRemoved { job: id } } else { Refusal::UnknownJob { job: id } });
        };
        if job.cancel.is_some() && (job.state == JobState::Cancelled || !job.state.is_terminal()) {
            return Ok(Outcome::CancelAccepted { job: id, state: job.state });
        }
        if job.state.is_terminal() {
            return Err(Refusal::AlreadyTerminal { job: id, state: job.state });
        }
        let mut job = job.clone();
        let request = CancelRequest { by: context.caller, reason: reason.to_string(), at: self.stamp() };
        if job.state == JobState::Pending {
            let reason = ending::cancelled(&request, None);
            ending::finish(&mut job, reason, self.stamp());
        }
        job.cancel = Some(Box::new(request));
        let state = job.state;
        let attempt = job.attempt;
        self.update_job(job);
        self.emit(&Event::JobCancelRequested { job: id, by: context.caller });
        if state.is_terminal() {
            self.emit(&Event::JobEnded { job: id, attempt, worker: None, state, end: End::Cancelled });
        }
        Ok(Outcome::CancelAccepted { job: id, state })
    }

    /// Removes jobs that have ended; others are passed over.
    pub(super) fn remove_jobs(&mut self, context: Context, jobs: &[JobId]) -> Result {
        check(jobs.len() <= MAX_REMOVALS, "jobs", "at most 1,000 at once")?;
        let until = self.stamp().plus(TOMBSTONE_MS);
        let mut removed = 0;
        for id in jobs {
            let Some(job) = self.job(*id).filter(|job| job.state.is_terminal()) else {
                continue;
            };
            let tombstone =
                Tombstone { owner: job.owner, idempotency_key: job.idempotency_key.clone(), digest: job.digest, until };
            self.remove_job(*id);
            self.put_tombstone(*id, tombstone);
            removed += 1;
        }
        if removed == 0 {
            return Ok(Outcome::Unchanged);
        }
        self.emit(&Event::JobsRemoved { jobs: removed, by: context.caller });
        Ok(Outcome::Removed { jobs: removed })
    }
}

/// How an attempt that ended counts once its job is to be cancelled: the exit is kept.
pub(super) fn exit_of(reason: &Reason) -> (Option<i32>, Option<i32>) {
    match reason {
        Reason::Exited { code } => (Some(*code), None),
        Reason::Signaled { signal } => (None, Some(*signal)),
        Reason::Cancelled { exit_code, signal, .. } | Reason::TakenBack { exit_code, signal, .. } => {
            (*exit_code, *signal)
        }
        _ => (None, None),
    }
}
