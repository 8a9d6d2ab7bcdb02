//! The table of specs. A spec never changes and is looked at seldom, while a million of them wait: each is kept as the
//! bytes of its row, a third of what the value takes, and decoded when it is asked for.

use std::{ops::Bound, sync::Arc};

use imbl::OrdMap;

use crate::{
    codec::{self, CodecError},
    ids::JobId,
    rows::RowKey,
    spec::JobSpec,
    table::{Dirty, hash_row, start},
};

/// See the module's text. It does for specs what `Table` does for other rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Specs {
    rows: OrdMap<JobId, Arc<[u8]>>,
    sum: u128,
}

impl Specs {
    pub(crate) fn get(&self, job: &JobId) -> Option<JobSpec> {
        let bytes = self.rows.get(job)?;
        Some(codec::decode_row(bytes).expect("only bytes that decode are inserted"))
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn insert(&mut self, job: JobId, spec: &JobSpec, dirty: &mut Dirty) {
        let bytes = codec::encode_row(spec);
        debug_assert!(bytes.len() <= codec::MAX_ROW, "spec of {job} has {} bytes", bytes.len());
        self.set(job, bytes.into());
        dirty.insert(RowKey::Spec(job));
    }

    /// Takes a row as it was stored; false: it was there already.
    pub(crate) fn load(&mut self, job: JobId, bytes: &[u8]) -> Result<bool, CodecError> {
        let spec: JobSpec = codec::decode_row(bytes)?;
        let new = !self.rows.contains_key(&job);
        // Canonical, whatever build wrote it.
        self.set(job, codec::encode_row(&spec).into());
        Ok(new)
    }

    pub(crate) fn remove(&mut self, job: &JobId, dirty: &mut Dirty) {
        if let Some(bytes) = self.rows.remove(job) {
            self.sum = self.sum.wrapping_sub(hash_row(RowKey::Spec(*job), &bytes));
            dirty.insert(RowKey::Spec(*job));
        }
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = JobSpec> + '_ {
        self.rows.keys().filter_map(|job| self.get(job))
    }

    pub(crate) fn encoded_from(&self, from: RowKey) -> impl Iterator<Item = (RowKey, Vec<u8>)> + '_ {
        let own = if let RowKey::Spec(job) = from { Some(job) } else { None };
        let first = self.rows.get_min().map(|(job, _)| RowKey::Spec(*job));
        let rows = start(own, first, from).map(|start| self.rows.range((start, Bound::Unbounded)));
        rows.into_iter().flatten().map(|(job, bytes)| (RowKey::Spec(*job), bytes.to_vec()))
    }

    pub(crate) fn hash(&self) -> u128 {
        self.sum
    }

    fn set(&mut self, job: JobId, bytes: Arc<[u8]>) {
        let added = hash_row(RowKey::Spec(job), &bytes);
        let removed = self.rows.insert(job, bytes).map_or(0, |old| hash_row(RowKey::Spec(job), &old));
        self.sum = self.sum.wrapping_sub(removed).wrapping_add(added);
    }
}
