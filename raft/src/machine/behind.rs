//! The write-behind thread: the one place from which payload files and sled are written.
//!
//! `apply` leaves the keys of what it changed in [`Staged`] and never waits. The thread takes all that is there together
//! with a copy of the state as of the last of these changes, waits until the log is durable through that (openraft
//! applies before the local flush), writes payloads, then one sled batch. It rests between passes, so that it takes a
//! bounded share of disk and processor; a restart replays what it had not written yet. A sled that fails is left alone
//! until the next start rebuilds it.
//!
//! Keys are staged under the lock under which the state changes, and taken under it: copy and keys belong together.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hodei_state::RowKey;
use parking_lot::{Condvar, Mutex};
use tokio::{runtime, sync::oneshot};

use super::{
    LogDurable,
    replica::{Held, Replica},
    sled_store::{MetaV1, SledStore},
    snapshot::Snapshots,
};
use crate::{codec::StoredMembershipV1, seam, types::LogId};

/// Staged changes above about this are written without a rest.
const URGENT_BYTES: u64 = 64 << 20;
/// What a row is taken to have beyond what the command that wrote it had.
const ROW_BYTES: u64 = 128;
/// For each part of time spent writing, so many parts of rest.
const REST: u32 = 9;
/// How long a pass waits for the log to become durable before it looks again.
const LOG_PATIENCE: Duration = Duration::from_secs(1);

/// Not yet on disk.
#[derive(Default)]
struct Staged {
    /// Of rows that were written or removed.
    keys: HashSet<RowKey>,
    /// About how much there is to write.
    bytes: u64,
    /// Log applied since the last snapshot, as of the last change.
    log_bytes: u64,
    /// Something was applied, rows changed or not.
    dirty: bool,
    /// All rows changed: a snapshot was installed.
    replace: bool,
    /// Answered once all payloads staged before are durable.
    payload_waiters: Vec<oneshot::Sender<io::Result<()>>>,
    collect: bool,
    stop: bool,
}

struct Shared {
    staged: Mutex<Staged>,
    wake: Condvar,
    /// Index that sled is known to hold, for tests and status.
    written: AtomicU64,
}

/// The thread and the way to it. In a simulation without threads it is a task, which ends with its runtime.
pub(crate) struct WriteBehind {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A cheap way to the thread for those who do not own it.
#[derive(Clone)]
pub(crate) struct Stage(Arc<Shared>);

struct Writer {
    shared: Arc<Shared>,
    store: Option<SledStore>,
    replica: Arc<Replica>,
    snapshots: Arc<Snapshots>,
    log: LogDurable,
    runtime: runtime::Handle,
    interval: Duration,
}

impl WriteBehind {
    /// Must be called within a tokio runtime.
    pub(crate) fn spawn(
        store: Option<SledStore>,
        replica: Arc<Replica>,
        snapshots: Arc<Snapshots>,
        log: LogDurable,
        interval: Duration,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared { staged: Mutex::default(), wake: Condvar::new(), written: AtomicU64::new(0) });
        let writer = Writer {
            shared: shared.clone(),
            store,
            replica,
            snapshots,
            log,
            runtime: runtime::Handle::current(),
            interval,
        };
        let thread = if seam::sim::is_without_threads() {
            tokio::spawn(writer.run_as_task());
            None
        } else {
            Some(std::thread::Builder::new().name("write-behind".to_owned()).spawn(move || writer.run())?)
        };
        Ok(Self { shared, thread: Mutex::new(thread) })
    }

    pub(crate) fn stage(&self) -> Stage {
        Stage(self.shared.clone())
    }

    /// The applied index that sled durably holds.
    pub(crate) fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Acquire)
    }

    /// Writes what is staged, as far as the log allows, and ends the thread. Blocking.
    pub(crate) fn stop(&self) {
        self.shared.staged.lock().stop = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the write-behind thread panicked");
        }
    }
}

impl Stage {
    /// Takes note of what one applied entry of `bytes` changed. Called while the state is locked for the change.
    pub(super) fn changed(&self, keys: &[RowKey], bytes: u64, log_bytes: u64) {
        let mut staged = self.0.staged.lock();
        staged.keys.extend(keys);
        staged.bytes += bytes + keys.len() as u64 * ROW_BYTES;
        staged.log_bytes = log_bytes;
        staged.dirty = true;
        let urgent = staged.bytes >= URGENT_BYTES;
        drop(staged);
        if urgent {
            self.0.wake.notify_one();
        }
    }

    /// Everything staged before is void; the state is another one now. Called while it is locked for the change.
    pub(super) fn replaced(&self) {
        let mut staged = self.0.staged.lock();
        staged.keys = HashSet::new();
        (staged.bytes, staged.log_bytes) = (0, 0);
        (staged.dirty, staged.replace, staged.collect) = (true, true, true);
        drop(staged);
        self.0.wake.notify_one();
    }

    /// Resolves once every payload that was put before is durable.
    pub(super) async fn payloads_durable(&self) -> io::Result<()> {
        let (answer, answered) = oneshot::channel();
        self.0.staged.lock().payload_waiters.push(answer);
        self.0.wake.notify_one();
        answered.await.map_err(|_| io::Error::other("the write-behind thread has ended"))?
    }

    /// Removes payload files that nothing refers to, at the next pass.
    pub(super) fn collect(&self) {
        self.0.staged.lock().collect = true;
        self.0.wake.notify_one();
    }
}

impl Writer {
    fn run(mut self) {
        let mut rest = self.interval;
        loop {
            self.wait(rest);
            let begun = Instant::now();
            let (staged, held) = self.take();
            let stop = staged.stop;
            let passed = self.pass(staged, held);
            if stop {
                return;
            }
            if !passed {
                // A full disk does not get better by trying at once.
                std::thread::sleep(self.interval);
            }
            rest = self.interval.max(begun.elapsed() * REST);
        }
    }

    async fn run_as_task(mut self) {
        loop {
            tokio::time::sleep(self.interval).await;
            let (staged, held) = self.take();
            let stop = staged.stop;
            self.pass(staged, held);
            if stop {
                return;
            }
        }
    }

    /// Waits until something is due, at least `rest` unless it is urgent.
    fn wait(&self, rest: Duration) {
        let not_before = Instant::now() + rest;
        let mut staged = self.shared.staged.lock();
        loop {
            let urgent = staged.stop
                || staged.bytes >= URGENT_BYTES
                || staged.replace
                || staged.collect
                || !staged.payload_waiters.is_empty();
            if urgent {
                return;
            }
            let timed_out = self.shared.wake.wait_until(&mut staged, not_before).timed_out();
            if timed_out && (staged.dirty || self.replica.payloads.has_unwritten()) {
                return;
            }
            if timed_out {
                // Idle: look again after the interval, without spinning.
                self.shared.wake.wait_for(&mut staged, self.interval);
            }
        }
    }

    /// What is staged, and the state as of its last change.
    fn take(&self) -> (Staged, Held) {
        self.replica.with(|held| {
            let mut staged = self.shared.staged.lock();
            let stop = staged.stop;
            (std::mem::replace(&mut *staged, Staged { stop, ..Staged::default() }), held.clone())
        })
    }

    fn pass(&mut self, mut staged: Staged, held: Held) -> bool {
        let payloads = self.replica.payloads.flush();
        if let Err(error) = &payloads {
            tracing::error!(%error, "payload files cannot be written");
        }
        for waiter in staged.payload_waiters.drain(..) {
            let result = payloads.as_ref().map_or_else(|error| Err(io::Error::other(error.to_string())), |()| Ok(()));
            // A snapshot build that was given up needs no answer.
            let _ = waiter.send(result);
        }
        if payloads.is_err() {
            self.put_back(staged);
            return false;
        }
        let collect = staged.collect;
        self.write(staged, held);
        if collect {
            self.collect();
        }
        true
    }

    fn write(&mut self, mut staged: Staged, held: Held) {
        if !staged.dirty || self.store.is_none() {
            return;
        }
        if !self.log_durable_through(held.applied) {
            staged.collect = false;
            self.put_back(staged);
            return;
        }
        let Some(store) = &mut self.store else { return };
        hodei_state::failpoint!("sled::before-write");
        let meta = MetaV1 {
            applied: held.applied.map(Into::into),
            membership: StoredMembershipV1::from(&*held.membership),
            hash: held.state.hash(),
            log_bytes: staged.log_bytes,
        };
        let written = if staged.replace {
            store.replace(&held.state, &meta)
        } else {
            let mut keys: Vec<RowKey> = staged.keys.into_iter().collect();
            keys.sort_unstable();
            store.write(held.state, &keys, &meta)
        };
        hodei_state::failpoint!("sled::after-write");
        match written {
            Ok(()) => self.shared.written.store(held.applied.map_or(0, |id| id.index()), Ordering::Release),
            Err(error) => {
                tracing::error!(%error, "sled cannot be written; the state is rebuilt at the next start");
                self.store = None;
            }
        }
    }

    /// An installed snapshot is committed and needs no log below it; anything else waits for the log.
    fn log_durable_through(&self, applied: Option<LogId>) -> bool {
        let Some(applied) = applied else { return true };
        if self.snapshots.current_id() >= Some(applied) {
            return true;
        }
        self.runtime
            .block_on(async { tokio::time::timeout(LOG_PATIENCE, self.log.through(applied)).await })
            .is_ok_and(|waited| waited.is_ok())
    }

    /// What could not be written waits with what came meanwhile.
    fn put_back(&self, older: Staged) {
        let mut staged = self.shared.staged.lock();
        staged.collect |= older.collect;
        if staged.replace {
            return;
        }
        if !staged.dirty {
            staged.log_bytes = older.log_bytes;
        }
        staged.dirty |= older.dirty;
        staged.replace = older.replace;
        staged.bytes += older.bytes;
        staged.keys.extend(older.keys);
    }

    fn collect(&self) {
        match self.replica.payloads.collect(&self.replica, || self.snapshots.digests()) {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "collected payload files"),
            Err(error) => tracing::warn!(%error, "payload files cannot be collected"),
        }
    }
}
