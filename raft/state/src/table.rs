//! A table: rows in key order, in a persistent map, so that a clone is O(1) and shares everything with the original.
//!
//! A write encodes its row for its hash, which is kept beside the value and makes the table's sum: the sum over all rows
//! of xxh3-128(key, value), wrapping, hence independent of the order of writes, and changed in O(1) by each. The bytes
//! are not kept: who stores rows encodes them again, once for many changes of a row.

use std::{
    collections::BTreeSet,
    ops::{Bound, RangeBounds},
    sync::Arc,
};

use imbl::OrdMap;
use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::Xxh3Default;

use crate::{codec, rows::RowKey};

/// A value that is stored as a row of its own.
pub(crate) trait RowValue: Clone + Serialize + DeserializeOwned {
    /// Its place in the table.
    type Key: Copy + Ord;
    /// Its place among all rows.
    fn row_key(key: Self::Key) -> RowKey;
    /// The reverse; `None` for a row of another table.
    fn key_of(row: RowKey) -> Option<Self::Key>;
}

/// Rows written or removed since they were last taken.
pub(crate) type Dirty = BTreeSet<RowKey>;

#[derive(Debug)]
struct Stored<V> {
    hash: u128,
    value: V,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Table<V: RowValue> {
    rows: OrdMap<V::Key, Arc<Stored<V>>>,
    sum: u128,
}

impl<V: RowValue> Clone for Table<V> {
    fn clone(&self) -> Self {
        Self { rows: self.rows.clone(), sum: self.sum }
    }
}

impl<V: RowValue> Default for Table<V> {
    fn default() -> Self {
        Self { rows: OrdMap::new(), sum: 0 }
    }
}

impl<V: RowValue> Table<V> {
    pub(crate) fn get(&self, key: &V::Key) -> Option<&V> {
        self.rows.get(key).map(|row| &row.value)
    }

    pub(crate) fn contains(&self, key: &V::Key) -> bool {
        self.rows.contains_key(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Inserts or replaces a row.
    pub(crate) fn put(&mut self, key: V::Key, value: V, dirty: &mut Dirty) {
        self.set(key, value);
        dirty.insert(V::row_key(key));
    }

    /// The same for a row that is stored already.
    pub(crate) fn set(&mut self, key: V::Key, value: V) {
        let bytes = codec::encode_row(&value);
        // Validation and splitting keep every row below the bound; storage relies on it.
        debug_assert!(bytes.len() <= codec::MAX_ROW, "row {:?} has {} bytes", V::row_key(key), bytes.len());
        let hash = hash_row(V::row_key(key), &bytes);
        let old = self.rows.insert(key, Arc::new(Stored { hash, value }));
        self.sum = self.sum.wrapping_sub(old.map_or(0, |row| row.hash)).wrapping_add(hash);
    }

    /// Removes a row, where there is one.
    pub(crate) fn remove(&mut self, key: &V::Key, dirty: &mut Dirty) {
        if let Some(row) = self.rows.remove(key) {
            self.sum = self.sum.wrapping_sub(row.hash);
            dirty.insert(V::row_key(*key));
        }
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&V::Key, &V)> {
        self.rows.iter().map(|(key, row)| (key, &row.value))
    }

    pub(crate) fn range(&self, range: impl RangeBounds<V::Key>) -> impl DoubleEndedIterator<Item = (&V::Key, &V)> {
        self.rows.range(range).map(|(key, row)| (key, &row.value))
    }

    /// The rows from `from` on; `from` may be a row of any table.
    pub(crate) fn encoded_from(&self, from: RowKey) -> impl Iterator<Item = (RowKey, Vec<u8>)> + '_ {
        let first = self.rows.get_min().map(|(key, _)| V::row_key(*key));
        let rows = start(V::key_of(from), first, from).map(|start| self.rows.range((start, Bound::Unbounded)));
        rows.into_iter().flatten().map(|(key, row)| (V::row_key(*key), codec::encode_row(&row.value)))
    }

    pub(crate) fn hash(&self) -> u128 {
        self.sum
    }
}

/// Where a table's rows from `from` on begin: at `key` if `from` is one of its own; otherwise the whole table is behind
/// `from`, as its `first` row is, or before it.
pub(crate) fn start<K>(key: Option<K>, first: Option<RowKey>, from: RowKey) -> Option<Bound<K>> {
    match key {
        Some(key) => Some(Bound::Included(key)),
        None => first.is_some_and(|first| first > from).then_some(Bound::Unbounded),
    }
}

/// The hash of one row. Key bytes have a length fixed by their first byte, so that no two rows share an input.
pub(crate) fn hash_row(key: RowKey, value: &[u8]) -> u128 {
    let mut hasher = Xxh3Default::new();
    hasher.update(&key.to_bytes());
    hasher.update(value);
    hasher.digest128()
}
