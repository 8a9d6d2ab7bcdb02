//! The state from its rows: after a restart, and from a snapshot.

use crate::{
    codec::{self, CodecError},
    events::EventPosition,
    ids::WorkerId,
    job::JobState,
    registry::Capacity,
    rows::RowKey,
    state::State,
    table::{RowValue, Table},
};

/// A row that cannot be, or does not fit the others: what it came from must not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row {key:?}: {why}")]
pub struct CorruptRow {
    /// Which.
    pub key: RowKey,
    /// What is wrong with it.
    pub why: String,
}

impl State {
    /// Rebuilds the state from all of its rows, in any order, with its indexes and its hash. No changes are left to
    /// take.
    ///
    /// # Errors
    /// Where a row does not decode or does not fit the others.
    pub fn from_rows(rows: impl IntoIterator<Item = (RowKey, Vec<u8>)>) -> Result<Self, CorruptRow> {
        let mut state = Self::new();
        for (key, bytes) in rows {
            state.load(key, &bytes)?;
        }
        state.rebuild()?;
        Ok(state)
    }

    fn load(&mut self, key: RowKey, bytes: &[u8]) -> Result<(), CorruptRow> {
        match key {
            RowKey::Meta => load(&mut self.meta, (), bytes, |_| true),
            RowKey::Cluster => load(&mut self.cluster, (), bytes, |_| true),
            RowKey::Member(id) => load(&mut self.members, id, bytes, |row| row.id == id),
            RowKey::Identity(who) => load(&mut self.identities, who, bytes, |row| row.who == who),
            RowKey::Token(id) => load(&mut self.tokens, id, bytes, |row| row.id == id),
            RowKey::TokenUse(id, nonce) => load(&mut self.token_uses, (id, nonce), bytes, |row| row.nonce == nonce),
            RowKey::Job(id) => load(&mut self.jobs, id, bytes, |row| row.id == id),
            RowKey::Spec(id) => match self.specs.load(id, bytes) {
                Ok(true) => Ok(()),
                Ok(false) => Err(corrupt(key, "it is there twice")),
                Err(error) => Err(corrupt(key, &error.to_string())),
            },
            RowKey::Attempt(job, n) => {
                load(&mut self.attempts, (job, n), bytes, |row| (row.id.job, row.id.attempt) == (job, n))
            }
            RowKey::Segment(job, n, number) => {
                let fits = |row: &crate::job::Segment| (row.job, row.attempt, row.number) == (job, n, number);
                load(&mut self.segments, (job, n, number), bytes, fits)
            }
            RowKey::Worker(id) => load(&mut self.workers, id, bytes, |row| row.id == id),
            RowKey::Tombstone(id) => load(&mut self.tombstones, id, bytes, |_| true),
            RowKey::Secret(id) => load(&mut self.secrets, id, bytes, |row| row.id == id),
            RowKey::SecretPart(id, n) => load(&mut self.secret_parts, (id, n), bytes, |_| true),
            RowKey::SecretUse(index, offset) => load(&mut self.secret_uses, (index, offset), bytes, |_| true),
            RowKey::Events(index, offset) => match self.events.load(EventPosition { index, offset }, bytes) {
                Ok(true) => Ok(()),
                Ok(false) => Err(corrupt(key, "it is there twice")),
                Err(error) => Err(corrupt(key, &error.to_string())),
            },
        }
    }

    fn rebuild(&mut self) -> Result<(), CorruptRow> {
        let stamp = self.stamp();
        let indexes = &mut self.indexes;
        if self.jobs.len() != self.specs.len() {
            return Err(corrupt(RowKey::Meta, "there are not as many specs as jobs"));
        }
        for (id, job) in self.jobs.iter() {
            let spec = self.specs.get(id).ok_or_else(|| corrupt(RowKey::Job(*id), "it has no spec"))?;
            let placed = matches!(job.state, JobState::Scheduled | JobState::Running);
            let newest = self.attempts.get(&(*id, job.attempt));
            if newest.is_some_and(crate::job::Attempt::is_live) != placed || newest.is_none() != (job.attempt == 0) {
                return Err(corrupt(RowKey::Job(*id), "its newest attempt does not fit its state"));
            }
            indexes.add_job(job, &spec, stamp);
        }
        for (key, attempt) in self.attempts.iter() {
            if self.jobs.get(&key.0).is_none_or(|job| key.1 > job.attempt || (attempt.is_live() && key.1 < job.attempt))
            {
                return Err(corrupt(RowKey::Attempt(key.0, key.1), "its job does not know it"));
            }
            indexes.set_attempt(attempt, || self.specs.get(&key.0));
        }
        for (id, tombstone) in self.tombstones.iter() {
            indexes.tombstones.insert((tombstone.until, *id));
            if let Some(key) = &tombstone.idempotency_key {
                indexes.keys.insert((tombstone.owner, key.as_str().into()), *id);
            }
        }
        for (_, token) in self.tokens.iter() {
            indexes.add_token(token);
        }
        for (who, identity) in self.identities.iter() {
            indexes.party_keys.insert((identity.key, *who));
        }
        for (id, secret) in self.secrets.iter() {
            if indexes.secret_names.insert(secret.name.as_str().into(), *id).is_some() {
                return Err(corrupt(RowKey::Secret(*id), "another one has its name"));
            }
        }
        for (_, worker) in self.workers.iter() {
            indexes.set_worker(None, worker);
        }
        self.check_capacity()
    }

    fn check_capacity(&self) -> Result<(), CorruptRow> {
        for (id, worker) in self.workers.iter() {
            if worker.used != self.taken(*id) {
                return Err(corrupt(RowKey::Worker(*id), "its live attempts take another capacity"));
            }
        }
        match self.indexes.live.keys().find(|(worker, ..)| !self.workers.contains(worker)) {
            Some(&(_, job, attempt)) => Err(corrupt(RowKey::Attempt(job, attempt), "its worker is not known")),
            None => Ok(()),
        }
    }

    /// What a worker's live attempts take.
    pub(crate) fn taken(&self, worker: WorkerId) -> Capacity {
        let specs = self.live_attempts(worker).filter_map(|attempt| self.specs.get(&attempt.id.job));
        specs.fold(Capacity::default(), |taken, spec| taken.plus(&Capacity::needed(&spec.resources)))
    }
}

fn load<V: RowValue>(
    table: &mut Table<V>,
    key: V::Key,
    bytes: &[u8],
    fits: impl Fn(&V) -> bool,
) -> Result<(), CorruptRow> {
    let value: V =
        codec::decode_row(bytes).map_err(|error: CodecError| corrupt(V::row_key(key), &error.to_string()))?;
    if !fits(&value) {
        return Err(corrupt(V::row_key(key), "its value belongs to another key"));
    }
    if table.contains(&key) {
        return Err(corrupt(V::row_key(key), "it is there twice"));
    }
    // Encoded again, but only for the hash, which is over what this build writes.
    table.set(key, value);
    Ok(())
}

fn corrupt(key: RowKey, why: &str) -> CorruptRow {
    CorruptRow { key, why: why.to_string() }
}
