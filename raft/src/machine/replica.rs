//! What the state machine shares with the rest of the node: the state, how far it is applied, who wants to know.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hodei_state::{RowKey, State, ids::Millis};
use openraft::alias::StoredMembershipOf;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use super::{payloads::Payloads, topics::Topics};
use crate::types::{LogId, TypeConfig};

/// Every how many entries the state's hash is kept for comparison.
pub(crate) const HASH_EVERY: u64 = 64;
/// How many such hashes are kept.
const HASHES_KEPT: usize = 512;

/// The state and the entry that it stands at; changed together, under one lock.
#[derive(Clone, Default)]
pub(crate) struct Held {
    pub(crate) state: State,
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: Arc<StoredMembershipOf<TypeConfig>>,
}

/// Shared between the state machine (the only writer) and everybody who reads.
pub(crate) struct Replica {
    held: RwLock<Held>,
    applied: watch::Sender<Option<LogId>>,
    pub(crate) topics: Topics,
    pub(crate) payloads: Payloads,
    hashes: Mutex<VecDeque<(u64, u128)>>,
    /// Bytes of log entries applied since the last snapshot.
    log_bytes: AtomicU64,
    /// Bytes of log after which a snapshot is due.
    threshold: AtomicU64,
    snapshot_floor: u64,
    /// Woken when a snapshot becomes due.
    pub(crate) snapshot_due: Notify,
}

impl Replica {
    pub(crate) fn new(held: Held, payloads: Payloads, snapshot_floor: u64) -> Self {
        let (applied, _) = watch::channel(held.applied);
        Self {
            held: RwLock::new(held),
            applied,
            topics: Topics::default(),
            payloads,
            hashes: Mutex::default(),
            log_bytes: AtomicU64::new(0),
            threshold: AtomicU64::new(snapshot_floor),
            snapshot_floor,
            snapshot_due: Notify::new(),
        }
    }

    /// A consistent copy; cheap, because the tables are persistent maps.
    pub(crate) fn held(&self) -> Held {
        self.held.read().clone()
    }

    /// Reads without copying. `read` must be short: `apply` waits for it.
    pub(crate) fn with<R>(&self, read: impl FnOnce(&Held) -> R) -> R {
        read(&self.held.read())
    }

    /// Follows the applied log id.
    pub(crate) fn applied(&self) -> watch::Receiver<Option<LogId>> {
        self.applied.subscribe()
    }

    /// Changes the state; only the state machine calls it, one entry at a time.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut Held) -> R) -> R {
        change(&mut self.held.write())
    }

    /// Tells everybody that the entry at `log_id` is applied.
    pub(super) fn publish(&self, log_id: LogId, changed: &[RowKey], bytes: u64) {
        if log_id.index().is_multiple_of(HASH_EVERY) {
            let hash = self.with(|held| held.state.hash());
            let mut hashes = self.hashes.lock();
            if hashes.len() == HASHES_KEPT {
                hashes.pop_front();
            }
            hashes.push_back((log_id.index(), hash));
        }
        self.applied.send_replace(Some(log_id));
        self.topics.bump(log_id.index(), changed);
        let total = self.log_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if total >= self.threshold.load(Ordering::Relaxed) {
            self.snapshot_due.notify_one();
        }
    }

    /// Puts a whole other state in place, and wakes everybody: nobody saw the steps between. `staged` runs under the
    /// lock.
    pub(super) fn replace(&self, held: Held, staged: impl FnOnce()) {
        let applied = held.applied;
        self.change(|old| {
            *old = held;
            staged();
        });
        self.hashes.lock().clear();
        self.applied.send_replace(applied);
        self.topics.bump_all(applied.map_or(0, |id| id.index()));
    }

    /// A snapshot of `size` bytes is durable: the next one is due after as many bytes of log, or the configured floor.
    pub(super) fn snapshot_taken(&self, size: u64) {
        self.log_bytes.store(0, Ordering::Relaxed);
        let size = if hodei_state::armed!("tune::small-logs") { 0 } else { size };
        self.threshold.store(self.snapshot_floor.max(size), Ordering::Relaxed);
    }

    pub(super) fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn set_log_bytes(&self, bytes: u64) {
        self.log_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Hashes of the state at recent indexes, oldest first.
    pub(crate) fn hashes(&self) -> Vec<(u64, u128)> {
        self.hashes.lock().iter().copied().collect()
    }

    /// The newest stamp in the state.
    pub(crate) fn stamp(&self) -> Millis {
        self.with(|held| held.state.stamp())
    }
}
