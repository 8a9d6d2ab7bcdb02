//! The write-behind thread: the one place from which payload files and sled are written.
//!
//! `apply` leaves its changes in [`Staged`], newest value per key, and never waits. The thread takes all that is there,
//! waits until the log is durable through the last entry in it (openraft applies before the local flush), writes
//! payloads, then one sled batch. It rests between passes, so that it takes a bounded share of disk and processor;
//! a restart replays what it had not written yet. A sled that fails is left alone until the next start rebuilds it.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hodei_state::Changes;
use openraft::alias::StoredMembershipOf;
use parking_lot::{Condvar, Mutex};
use tokio::{runtime, sync::oneshot};

use super::{
    LogDurable,
    replica::{Held, Replica},
    sled_store::{MetaV1, Rows, SledStore},
    snapshot::Snapshots,
};
use crate::{
    codec::StoredMembershipV1,
    types::{LogId, TypeConfig},
};

/// Staged changes above this are written without a rest.
const URGENT_BYTES: usize = 64 << 20;
/// For each part of time spent writing, so many parts of rest.
const REST: u32 = 9;
/// How long a pass waits for the log to become durable before it looks again.
const LOG_PATIENCE: Duration = Duration::from_secs(1);

/// What the staged rows bring the state to.
struct Mark {
    applied: Option<LogId>,
    membership: Arc<StoredMembershipOf<TypeConfig>>,
    hash: u128,
    log_bytes: u64,
}

impl Mark {
    fn of(held: &Held, log_bytes: u64) -> Self {
        Self { applied: held.applied, membership: held.membership.clone(), hash: held.state.hash(), log_bytes }
    }

    fn to_meta(&self) -> MetaV1 {
        MetaV1 {
            applied: self.applied.map(Into::into),
            membership: StoredMembershipV1::from(&*self.membership),
            hash: self.hash,
            log_bytes: self.log_bytes,
        }
    }
}

/// Not yet on disk.
#[derive(Default)]
struct Staged {
    rows: HashMap<Vec<u8>, Option<Vec<u8>>>,
    bytes: usize,
    /// The rows are the whole state: a snapshot was installed.
    replace: bool,
    /// As of the last change; none when nothing is staged.
    mark: Option<Mark>,
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

/// The thread and the way to it.
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
        store: SledStore,
        replica: Arc<Replica>,
        snapshots: Arc<Snapshots>,
        log: LogDurable,
        interval: Duration,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared { staged: Mutex::default(), wake: Condvar::new(), written: AtomicU64::new(0) });
        let writer = Writer {
            shared: shared.clone(),
            store: Some(store),
            replica,
            snapshots,
            log,
            runtime: runtime::Handle::current(),
            interval,
        };
        let thread = std::thread::Builder::new().name("write-behind".to_owned()).spawn(move || writer.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
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
    /// Takes over the changes of one applied entry.
    pub(super) fn changes(&self, changes: Changes, held: &Held, log_bytes: u64) {
        let mut staged = self.0.staged.lock();
        for (key, value) in changes.rows {
            let key = key.to_bytes();
            staged.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            staged.rows.insert(key, value);
        }
        staged.mark = Some(Mark::of(held, log_bytes));
        let urgent = staged.bytes >= URGENT_BYTES;
        drop(staged);
        if urgent {
            self.0.wake.notify_one();
        }
    }

    /// Everything staged before is void; this is the state now.
    pub(super) fn replace(&self, held: &Held) {
        let rows: HashMap<_, _> = held.state.rows().map(|(key, value)| (key.to_bytes(), Some(value))).collect();
        let mut staged = self.0.staged.lock();
        staged.bytes = rows.values().flatten().map(Vec::len).sum();
        staged.rows = rows;
        staged.replace = true;
        staged.mark = Some(Mark::of(held, 0));
        staged.collect = true;
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
            let (staged, stop) = self.take(rest);
            let begun = Instant::now();
            let passed = self.pass(staged);
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

    /// Waits until something is due, at least `rest` unless it is urgent, and takes it.
    fn take(&self, rest: Duration) -> (Staged, bool) {
        let not_before = Instant::now() + rest;
        let mut staged = self.shared.staged.lock();
        loop {
            let urgent = staged.stop
                || staged.bytes >= URGENT_BYTES
                || staged.replace
                || staged.collect
                || !staged.payload_waiters.is_empty();
            if urgent {
                break;
            }
            let timed_out = self.shared.wake.wait_until(&mut staged, not_before).timed_out();
            if timed_out && (staged.mark.is_some() || self.replica.payloads.has_unwritten()) {
                break;
            }
            if timed_out {
                // Idle: look again after the interval, without spinning.
                self.shared.wake.wait_for(&mut staged, self.interval);
            }
        }
        let stop = staged.stop;
        let taken = std::mem::take(&mut *staged);
        staged.stop = stop;
        (taken, stop)
    }

    fn pass(&mut self, mut staged: Staged) -> bool {
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
        self.write(&mut staged);
        if staged.collect {
            self.collect();
        }
        true
    }

    fn write(&mut self, staged: &mut Staged) {
        let (Some(mark), Some(store)) = (staged.mark.take(), &self.store) else { return };
        let rows: Rows = std::mem::take(&mut staged.rows).into_iter().collect();
        if !self.log_durable_through(mark.applied) {
            let bytes = staged.bytes;
            let collect = std::mem::take(&mut staged.collect);
            let rows = rows.into_iter().collect();
            let replace = staged.replace;
            self.put_back(Staged { rows, bytes, replace, mark: Some(mark), collect, ..Staged::default() });
            return;
        }
        let meta = mark.to_meta();
        let written = if staged.replace { store.replace(&rows, &meta) } else { store.write(&rows, &meta) };
        match written {
            Ok(()) => self.shared.written.store(mark.applied.map_or(0, |id| id.index()), Ordering::Release),
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

    /// What could not be written waits below what came meanwhile.
    fn put_back(&self, older: Staged) {
        let mut staged = self.shared.staged.lock();
        staged.collect |= older.collect;
        if staged.replace {
            return;
        }
        staged.replace = older.replace;
        staged.bytes += older.bytes;
        for (key, value) in older.rows {
            staged.rows.entry(key).or_insert(value);
        }
        if staged.mark.is_none() {
            staged.mark = older.mark;
        }
    }

    fn collect(&self) {
        let mut live = self.snapshots.digests();
        self.replica.with(|held| live.extend(hodei_state::payload_digests(&held.state)));
        match self.replica.payloads.collect(&live) {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "collected payload files"),
            Err(error) => tracing::warn!(%error, "payload files cannot be collected"),
        }
    }
}
