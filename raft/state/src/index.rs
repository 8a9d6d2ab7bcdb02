//! What is derived from the rows, so that no question costs a walk over all of them. Nothing here is stored: it is
//! rebuilt from the rows, and must then be equal to what incremental writes made of it (`invariants` checks that).

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    ids::{Caller, JobId, Millis, SecretId, TokenId, WorkerId},
    job::{Attempt, Job, JobState, TakenBack},
    queue::{Class, Order, Position, Queue, class_of},
    registry::{Token, Worker},
    spec::{Body, JobSpec},
};

/// Numbers of jobs and attempts, kept as they change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Jobs that wait, those in backoff included.
    pub pending: u64,
    /// Jobs whose attempt is assigned.
    pub scheduled: u64,
    /// Jobs whose process runs.
    pub running: u64,
    /// Jobs that succeeded and are still kept.
    pub succeeded: u64,
    /// Jobs that failed and are still kept.
    pub failed: u64,
    /// Jobs that were cancelled and are still kept.
    pub cancelled: u64,
    /// Jobs that timed out and are still kept.
    pub timeout: u64,
    /// Attempts that have not ended.
    pub live_attempts: u64,
    /// Bytes of the bodies of jobs that have not ended.
    pub queued_bytes: u64,
}

impl Counts {
    /// All jobs that are kept.
    #[must_use]
    pub fn jobs(&self) -> u64 {
        self.pending + self.scheduled + self.running + self.succeeded + self.failed + self.cancelled + self.timeout
    }

    fn of(&mut self, state: JobState) -> &mut u64 {
        match state {
            JobState::Pending => &mut self.pending,
            JobState::Scheduled => &mut self.scheduled,
            JobState::Running => &mut self.running,
            JobState::Succeeded => &mut self.succeeded,
            JobState::Failed => &mut self.failed,
            JobState::Cancelled => &mut self.cancelled,
            JobState::Timeout => &mut self.timeout,
        }
    }

    pub(crate) fn add(&mut self, job: &Job, spec: &JobSpec) {
        *self.of(job.state) += 1;
        if !job.state.is_terminal() {
            self.queued_bytes = self.queued_bytes.saturating_add(body_len(spec));
        }
    }

    pub(crate) fn sub(&mut self, job: &Job, spec: &JobSpec) {
        let count = self.of(job.state);
        *count = count.saturating_sub(1);
        if !job.state.is_terminal() {
            self.queued_bytes = self.queued_bytes.saturating_sub(body_len(spec));
        }
    }
}

pub(crate) fn body_len(spec: &JobSpec) -> u64 {
    match &spec.body {
        Body::Inline(bytes) => bytes.len() as u64,
        Body::Payload { len, .. } => *len,
    }
}

/// What the leader's lease table needs to know of a live attempt; changes of it are found by comparing the index with
/// an older copy, which skips what they share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) fence: u64,
    pub(crate) started_at: Option<Millis>,
    pub(crate) overdue: bool,
    /// The job's priority, where it may be preempted at all.
    pub(crate) preemptible: Option<i32>,
}

/// Worker, job, attempt.
pub(crate) type LiveKey = (WorkerId, JobId, u32);

/// Where a job stands among the indexes that follow its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the queue.
    Queued(Class, Order),
    /// Pending, in backoff.
    Waiting(Millis, Position),
    /// Its newest attempt is live.
    Placed,
    /// Ended then.
    Finished(Millis),
}

/// See the module's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Indexes {
    /// Jobs by age.
    pub(crate) submitted: OrdMap<Position, JobId>,
    /// Ids with their hex digits reversed, so that a suffix is a range.
    pub(crate) suffixes: OrdSet<u128>,
    /// Jobs by a hash of their name, then age. Two names may share a hash: who looks here compares the names.
    pub(crate) names: OrdSet<(u64, Position)>,
    /// Jobs by submitter, then age.
    pub(crate) owners: OrdMap<Caller, OrdSet<Position>>,
    /// Idempotency keys of jobs and tombstones, scoped to the caller.
    pub(crate) keys: OrdMap<(Caller, Arc<str>), JobId>,
    /// Pending jobs that may be scheduled.
    pub(crate) queue: Queue,
    /// Pending jobs by age.
    pub(crate) pending: OrdSet<Position>,
    /// Pending jobs that wait for their backoff to pass.
    pub(crate) backoff: OrdSet<(Millis, Position)>,
    /// Terminal jobs by their end.
    pub(crate) finished: OrdSet<(Millis, JobId)>,
    /// Tombstones by their end.
    pub(crate) tombstones: OrdSet<(Millis, JobId)>,
    /// Live attempts by worker.
    pub(crate) live: OrdMap<LiveKey, Live>,
    /// Live attempts that could be taken from their workers for a job of a higher priority than theirs.
    pub(crate) victims: OrdSet<(i32, LiveKey)>,
    /// Live attempts that are to make room, by the job that waits for it.
    pub(crate) preempted: OrdSet<(JobId, LiveKey)>,
    /// Workers that may be given jobs and have a free slot.
    pub(crate) available: OrdSet<WorkerId>,
    /// Workers that are being emptied, by the deadline after which what still runs there is taken back.
    pub(crate) drains: OrdSet<(Millis, WorkerId)>,
    /// Workers that are set aside, by the end of that.
    pub(crate) set_aside: OrdSet<(Millis, WorkerId)>,
    /// Removed workers without live attempts, by when they were removed.
    pub(crate) removed_workers: OrdSet<(Millis, WorkerId)>,
    /// Tokens by the hash of their secret.
    pub(crate) secrets: OrdMap<[u8; 32], TokenId>,
    /// Secrets by name.
    pub(crate) secret_names: OrdMap<Arc<str>, SecretId>,
    /// Tokens by when they are forgotten.
    pub(crate) forgotten: OrdSet<(Millis, TokenId)>,
    /// Identities by the hash of their public key.
    pub(crate) party_keys: OrdSet<([u8; 32], Caller)>,
    /// Numbers.
    pub(crate) counts: Counts,
}

impl Indexes {
    /// A job that was not there before.
    pub(crate) fn add_job(&mut self, job: &Job, spec: &JobSpec, stamp: Millis) {
        let position = position(job);
        self.submitted.insert(position, job.id);
        self.suffixes.insert(reverse_digits(job.id.0));
        if let Some(name) = &spec.name {
            self.names.insert((hash_name(name), position));
        }
        self.owners.entry(job.owner).or_default().insert(position);
        if let Some(key) = &job.idempotency_key {
            self.keys.insert((job.owner, key.as_str().into()), job.id);
        }
        self.enter(job, spec, stamp);
    }

    /// A job that is there no more. Its idempotency key stays with its tombstone.
    pub(crate) fn remove_job(&mut self, job: &Job, spec: &JobSpec, stamp: Millis) {
        let position = position(job);
        self.submitted.remove(&position);
        self.suffixes.remove(&reverse_digits(job.id.0));
        if let Some(name) = &spec.name {
            self.names.remove(&(hash_name(name), position));
        }
        if let Some(positions) = self.owners.get_mut(&job.owner) {
            positions.remove(&position);
            if positions.is_empty() {
                self.owners.remove(&job.owner);
            }
        }
        self.leave(job, spec, stamp);
    }

    /// A job that changed; who submitted it, when and under which key never does.
    pub(crate) fn change_job(&mut self, old: &Job, new: &Job, spec: &JobSpec, stamp: Millis) {
        self.leave(old, spec, stamp);
        self.enter(new, spec, stamp);
    }

    fn enter(&mut self, job: &Job, spec: &JobSpec, stamp: Millis) {
        self.counts.add(job, spec);
        if job.state == JobState::Pending {
            self.pending.insert(position(job));
        }
        match place(job, spec, stamp) {
            Place::Queued(class, order) => self.queue.insert(class, order),
            Place::Waiting(until, position) => drop(self.backoff.insert((until, position))),
            Place::Placed => {}
            Place::Finished(at) => drop(self.finished.insert((at, job.id))),
        }
    }

    fn leave(&mut self, job: &Job, spec: &JobSpec, stamp: Millis) {
        self.counts.sub(job, spec);
        if job.state == JobState::Pending {
            self.pending.remove(&position(job));
        }
        match place(job, spec, stamp) {
            Place::Queued(class, order) => self.queue.remove(class, order),
            Place::Waiting(until, position) => drop(self.backoff.remove(&(until, position))),
            Place::Placed => {}
            Place::Finished(at) => drop(self.finished.remove(&(at, job.id))),
        }
    }

    /// The backoff of a job has passed: it goes back to its place in the queue.
    pub(crate) fn release(&mut self, until: Millis, job: &Job, spec: &JobSpec) {
        self.backoff.remove(&(until, position(job)));
        self.queue.insert(class_of(spec), order(job, spec));
    }

    /// `spec` is asked for once in an attempt's life.
    pub(crate) fn set_attempt(&mut self, attempt: &Attempt, spec: impl FnOnce() -> Option<JobSpec>) {
        let key = (attempt.worker, attempt.id.job, attempt.id.attempt);
        let old = self.live.get(&key).copied();
        let preemptible = match old {
            Some(old) => old.preemptible,
            None if attempt.is_live() => spec().filter(|spec| spec.preemptible).map(|spec| spec.priority),
            None => None,
        };
        self.set_preemption(attempt, key, preemptible);
        let was_live = old.is_some();
        if attempt.is_live() {
            let overdue = attempt.overdue_at.is_some();
            let live = Live { fence: attempt.id.fence, started_at: attempt.started_at, overdue, preemptible };
            self.live.insert(key, live);
        } else {
            self.live.remove(&key);
        }
        match (was_live, attempt.is_live()) {
            (false, true) => self.counts.live_attempts += 1,
            (true, false) => self.counts.live_attempts = self.counts.live_attempts.saturating_sub(1),
            _ => {}
        }
    }

    pub(crate) fn add_token(&mut self, token: &Token) {
        self.secrets.insert(token.secret, token.id);
        self.forgotten.insert((token.forgotten_at(), token.id));
    }

    pub(crate) fn remove_token(&mut self, token: &Token) {
        self.secrets.remove(&token.secret);
        self.forgotten.remove(&(token.forgotten_at(), token.id));
    }

    fn set_preemption(&mut self, attempt: &Attempt, key: LiveKey, preemptible: Option<i32>) {
        if let Some(priority) = preemptible {
            if attempt.is_live() && attempt.taken_back.is_none() {
                self.victims.insert((priority, key));
            } else {
                self.victims.remove(&(priority, key));
            }
        }
        if let Some(TakenBack::Preempted { for_job }) = attempt.taken_back {
            if attempt.is_live() {
                self.preempted.insert((for_job, key));
            } else {
                self.preempted.remove(&(for_job, key));
            }
        }
    }

    pub(crate) fn set_worker(&mut self, old: Option<&Worker>, worker: &Worker) {
        if let Some(due) = old.and_then(drain_due) {
            self.drains.remove(&(due, worker.id));
        }
        if let Some(due) = drain_due(worker) {
            self.drains.insert((due, worker.id));
        }
        if let Some(set_aside) = old.and_then(|old| old.set_aside) {
            self.set_aside.remove(&(set_aside.until, worker.id));
        }
        if let Some(set_aside) = worker.set_aside {
            self.set_aside.insert((set_aside.until, worker.id));
        }
        if let Some(since) = worker.forgettable_since() {
            self.removed_workers.insert((since, worker.id));
        }
        if worker.takes_jobs() && worker.used.slots < worker.capacity.slots {
            self.available.insert(worker.id);
        } else {
            self.available.remove(&worker.id);
        }
    }
}

/// When what still runs on a worker is to be taken back, where that is to come.
fn drain_due(worker: &Worker) -> Option<Millis> {
    worker.drain.as_ref().filter(|drain| !drain.requeue && worker.removed_at.is_none())?.deadline
}

/// The key of a name in its index.
pub(crate) fn hash_name(name: &str) -> u64 {
    xxh3_64(name.as_bytes())
}

/// The queue's order of a job.
pub(crate) fn order(job: &Job, spec: &JobSpec) -> Order {
    (std::cmp::Reverse(spec.priority), job.submitted_index, job.submitted_offset)
}

/// When a job was submitted.
pub(crate) fn position(job: &Job) -> Position {
    (job.submitted_index, job.submitted_offset)
}

fn place(job: &Job, spec: &JobSpec, stamp: Millis) -> Place {
    match (job.state, job.not_before) {
        (JobState::Pending, Some(until)) if until > stamp => Place::Waiting(until, position(job)),
        (JobState::Pending, _) => Place::Queued(class_of(spec), order(job, spec)),
        (JobState::Scheduled | JobState::Running, _) => Place::Placed,
        (_, _) => Place::Finished(job.finished_at.unwrap_or_default()),
    }
}

/// An id with its 32 hex digits in reverse.
pub(crate) fn reverse_digits(id: u128) -> u128 {
    const LOW: u128 = 0x0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f;
    let bytes = id.swap_bytes();
    ((bytes & LOW) << 4) | ((bytes >> 4) & LOW)
}
