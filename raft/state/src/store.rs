//! The only writes to the tables: each keeps the indexes in step. Private to the crate; `apply` is the way in.

use crate::{
    events::Event,
    ids::{JobId, Millis, SecretId, TokenId, WorkerId},
    job::{Attempt, Job, Segment},
    registry::{Cluster, Identity, Member, Token, TokenUse, Tombstone, Worker},
    rows::Meta,
    secret::{MAX_USES, PART, Secret, SecretPart, SecretUse},
    spec::JobSpec,
    state::State,
};

/// So many tombstones go per command at most: a burst of removals an hour ago must not stall one command now.
const TOMBSTONES_PER_COMMAND: usize = 64;
/// So many rows of tokens, for the same reason: a token may have 10,000 uses.
const TOKEN_ROWS_PER_COMMAND: usize = 64;
/// And so many workers.
const WORKERS_PER_COMMAND: usize = 64;

impl State {
    /// Time moves on, never back. Jobs whose backoff has passed return to the queue; tombstones past their hour go, and
    /// so do tokens that have let nobody in for days, and workers that were removed days ago, or as too many.
    pub(crate) fn advance(&mut self, at: Millis) {
        if at > self.stamp() || self.meta.get(&()).is_none() {
            let stamp = at.max(self.stamp());
            let meta = self.meta.get(&()).cloned().unwrap_or_default();
            self.meta.put((), Meta { stamp, ..meta }, &mut self.dirty);
        }
        let stamp = self.stamp();
        while let Some(&(until, position)) = self.indexes.backoff.get_min().filter(|(until, _)| *until <= stamp) {
            let found = self.submitted_at_position(position).and_then(|job| Some((job, self.specs.get(&job.id)?)));
            let (job, spec) = found.expect("what waits is a job with a spec");
            let job = job.clone();
            self.indexes.release(until, &job, &spec);
        }
        for _ in 0..TOMBSTONES_PER_COMMAND {
            match self.indexes.tombstones.get_min() {
                Some(&(until, job)) if until <= stamp => self.remove_tombstone(job),
                _ => break,
            }
        }
        for _ in 0..TOKEN_ROWS_PER_COMMAND {
            match self.indexes.forgotten.get_min() {
                Some(&(at, token)) if at <= stamp => self.forget_row_of(token),
                _ => break,
            }
        }
        for _ in 0..WORKERS_PER_COMMAND {
            let removed = &self.indexes.removed_workers;
            let too_many = removed.len() > Worker::MAX_REMOVED;
            match removed.get_min().copied() {
                Some((since, worker)) if too_many || since.plus(Worker::KEPT_MS) <= stamp => self.forget_worker(worker),
                _ => break,
            }
        }
    }

    /// Something happened, in the entry that is being applied.
    pub(crate) fn emit(&mut self, event: &Event) {
        let stamp = self.stamp();
        if let Some(dropped) = self.events.append(event, stamp, &mut self.dirty) {
            self.meta.put((), Meta { stamp, dropped }, &mut self.dirty);
        }
    }

    pub(crate) fn put_cluster(&mut self, cluster: Cluster) {
        self.cluster.put((), cluster, &mut self.dirty);
    }

    pub(crate) fn put_member(&mut self, member: Member) {
        self.members.put(member.id, member, &mut self.dirty);
    }

    pub(crate) fn put_identity(&mut self, identity: Identity) {
        self.indexes.party_keys.insert((identity.key, identity.who));
        self.identities.put(identity.who, identity, &mut self.dirty);
    }

    pub(crate) fn put_token(&mut self, token: Token) {
        if let Some(old) = self.tokens.get(&token.id) {
            self.indexes.remove_token(old);
        }
        self.indexes.add_token(&token);
        self.tokens.put(token.id, token, &mut self.dirty);
    }

    /// Removes one use of a token, or, when it has none left, the token.
    fn forget_row_of(&mut self, id: TokenId) {
        let used = self.token_uses(id).next().map(|used| (id, used.nonce));
        match used {
            Some(used) => self.token_uses.remove(&used, &mut self.dirty),
            None => {
                if let Some(token) = self.tokens.get(&id) {
                    self.indexes.remove_token(token);
                }
                self.tokens.remove(&id, &mut self.dirty);
            }
        }
    }

    pub(crate) fn put_token_use(&mut self, token: &Token, used: TokenUse) {
        self.token_uses.put((token.id, used.nonce), used, &mut self.dirty);
    }

    pub(crate) fn put_worker(&mut self, worker: Worker) {
        self.indexes.set_worker(self.workers.get(&worker.id), &worker);
        self.workers.put(worker.id, worker, &mut self.dirty);
    }

    /// Forgets a worker that was removed. Its identity stays, and stays void: neither its id nor its key is anybody
    /// else's, ever.
    fn forget_worker(&mut self, id: WorkerId) {
        if let Some(since) = self.worker(id).and_then(Worker::forgettable_since) {
            self.indexes.removed_workers.remove(&(since, id));
            self.workers.remove(&id, &mut self.dirty);
        }
    }

    pub(crate) fn put_attempt(&mut self, attempt: Attempt) {
        self.indexes.set_attempt(&attempt, || self.specs.get(&attempt.id.job));
        self.attempts.put((attempt.id.job, attempt.id.attempt), attempt, &mut self.dirty);
    }

    pub(crate) fn put_segment(&mut self, segment: Segment) {
        self.segments.put((segment.job, segment.attempt, segment.number), segment, &mut self.dirty);
    }

    /// A new version of a secret; an older one of its name has been deleted.
    pub(crate) fn insert_secret(&mut self, secret: Secret, sealed: &[u8]) {
        for (n, part) in (0..).zip(sealed.chunks(PART)) {
            let part = SecretPart { bytes: part.to_vec() };
            self.secret_parts.put((secret.id, n), part, &mut self.dirty);
        }
        self.indexes.secret_names.insert(secret.name.as_str().into(), secret.id);
        self.secrets.put(secret.id, secret, &mut self.dirty);
    }

    /// Removes a secret with its value.
    pub(crate) fn delete_secret(&mut self, id: SecretId) {
        let Some(secret) = self.secrets.get(&id) else { return };
        self.indexes.secret_names.remove(secret.name.as_str());
        let parts: Vec<_> = self.secret_parts.range((id, 0)..=(id, u32::MAX)).map(|(key, _)| *key).collect();
        for part in parts {
            self.secret_parts.remove(&part, &mut self.dirty);
        }
        self.secrets.remove(&id, &mut self.dirty);
    }

    /// Remembers a use; the oldest goes where there are too many.
    pub(crate) fn put_secret_use(&mut self, at: (u64, u32), used: SecretUse) {
        self.secret_uses.put(at, used, &mut self.dirty);
        let oldest = self.secret_uses.iter().next().map(|(key, _)| *key);
        if let Some(oldest) = oldest.filter(|_| self.secret_uses.len() > MAX_USES) {
            self.secret_uses.remove(&oldest, &mut self.dirty);
        }
    }

    /// A new job.
    pub(crate) fn insert_job(&mut self, job: Job, spec: &JobSpec) {
        self.emit(&Event::JobSubmitted { job: job.id, by: job.owner });
        let stamp = self.stamp();
        let job = self.held_back(job, spec);
        self.indexes.add_job(&job, spec, stamp);
        self.specs.insert(job.id, spec, &mut self.dirty);
        self.jobs.put(job.id, job, &mut self.dirty);
    }

    /// A changed job.
    pub(crate) fn update_job(&mut self, job: Job) {
        let stamp = self.stamp();
        let (Some(old), Some(spec)) = (self.jobs.get(&job.id), self.specs.get(&job.id)) else {
            debug_assert!(false, "job {} is updated before it is inserted", job.id);
            return;
        };
        let job = self.held_back(job, &spec);
        self.indexes.change_job(old, &job, &spec, stamp);
        self.jobs.put(job.id, job, &mut self.dirty);
    }

    /// Removes a job and all that belongs to it, but for its idempotency key, which goes over to its tombstone.
    pub(crate) fn remove_job(&mut self, id: JobId) {
        let stamp = self.stamp();
        let (Some(job), Some(spec)) = (self.jobs.get(&id), self.specs.get(&id)) else {
            return;
        };
        self.indexes.remove_job(job, &spec, stamp);
        let segments: Vec<_> =
            self.segments.range((id, 0, 0)..=(id, u32::MAX, u32::MAX)).map(|(key, _)| *key).collect();
        for key in segments {
            self.segments.remove(&key, &mut self.dirty);
        }
        let attempts: Vec<_> = self.attempts.range((id, 0)..=(id, u32::MAX)).map(|(key, _)| *key).collect();
        for key in attempts {
            self.attempts.remove(&key, &mut self.dirty);
        }
        self.jobs.remove(&id, &mut self.dirty);
        self.specs.remove(&id, &mut self.dirty);
    }

    pub(crate) fn put_tombstone(&mut self, job: JobId, tombstone: Tombstone) {
        self.indexes.tombstones.insert((tombstone.until, job));
        self.tombstones.put(job, tombstone, &mut self.dirty);
    }

    fn remove_tombstone(&mut self, job: JobId) {
        let Some(tombstone) = self.tombstones.get(&job) else {
            return;
        };
        self.indexes.tombstones.remove(&(tombstone.until, job));
        if let Some(key) = &tombstone.idempotency_key {
            self.indexes.keys.remove(&(tombstone.owner, key.as_str().into()));
        }
        self.tombstones.remove(&job, &mut self.dirty);
    }
}
