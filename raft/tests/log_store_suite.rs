//! openraft's own storage suite over the log store, once with everything cached and once with nothing; and what the
//! suite does not ask: reopening, old entries from disk, waiting for durability.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use hodei_raft::{
    log_store::{LogStore, Options},
    seam::{
        RealFs, SystemEntropy,
        sim::{SeededEntropy, SimFs, Unsynced},
    },
    types::{Batch, Entry, LogId, TypeConfig, Vote},
    wal,
};
use hodei_state::ids::Millis;
use openraft::{
    EntryPayload, OptionalSend,
    entry::RaftEntry,
    storage::{EntryResponder, IOFlushed, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
    type_config::{
        TypeConfigExt,
        alias::{SnapshotMetaOf, SnapshotOf, StoredMembershipOf},
    },
};
use tempfile::TempDir;

/// A state machine that knows only what was applied and who belongs.
#[derive(Clone, Default)]
struct Machine {
    applied: Option<LogId>,
    membership: StoredMembershipOf<TypeConfig>,
    snapshot: Arc<parking_lot::Mutex<Option<SnapshotOf<TypeConfig, ()>>>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = ();
    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, ()>, io::Error> {
        let meta = SnapshotMetaOf::<TypeConfig> { last_log_id: self.applied, last_membership: self.membership.clone() };
        let snapshot = SnapshotOf::<TypeConfig, ()> { meta, snapshot: () };
        *self.snapshot.lock() = Some(snapshot.clone());
        Ok(snapshot)
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembershipOf<TypeConfig>), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, _)) = entries.try_next().await? {
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                self.membership = StoredMembershipOf::<TypeConfig>::new(Some(entry.log_id), membership);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<TypeConfig>, snapshot: ()) -> Result<(), io::Error> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        *self.snapshot.lock() = Some(SnapshotOf::<TypeConfig, ()> { meta: meta.clone(), snapshot });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, ()>>, io::Error> {
        Ok(self.snapshot.lock().clone())
    }
}

fn options(cache_bytes: usize) -> Options {
    let wal = wal::Options { segment_bytes: 16 << 10, ..wal::Options::default() };
    Options { wal, cache_bytes }
}

fn open(dir: &TempDir, cache_bytes: usize) -> LogStore {
    let (store, _) = LogStore::open(&RealFs, dir.path(), &options(cache_bytes), Arc::new(SystemEntropy)).unwrap();
    store
}

struct Builder {
    cache_bytes: usize,
}

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), openraft::StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, self.cache_bytes);
        Ok((dir, store, Machine::default()))
    }
}

#[test]
fn passes_openrafts_suite() {
    TypeConfig::run(async {
        for cache_bytes in [Options::default().cache_bytes, 0] {
            Suite::test_all(Builder { cache_bytes }).await.unwrap();
        }
    });
}

fn entry(term: u64, index: u64) -> Entry {
    let commands = Bytes::from(format!("commands of {term}-{index}").repeat(1 + index as usize % 7));
    Entry::new(log_id(term, index), EntryPayload::Normal(Batch { at: Millis(index), commands }))
}

fn log_id(term: u64, index: u64) -> LogId {
    hodei_raft::log_store::entry::log_id(wal::EntryId { term, index })
}

async fn append(store: &mut LogStore, entries: impl IntoIterator<Item = Entry>) {
    let (done, durable) = TypeConfig::oneshot();
    store.append(entries.into_iter().collect::<Vec<_>>(), IOFlushed::signal(done)).await.unwrap();
    durable.await.unwrap().unwrap();
}

#[tokio::test]
async fn reopening_gives_back_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(&dir, 0);
    let vote = Vote::new_committed(3, 2);
    for index in 0..300 {
        append(&mut store, [entry(1, index)]).await;
    }
    store.purge(log_id(1, 40)).await.unwrap();
    store.truncate_after(Some(log_id(1, 250))).await.unwrap();
    append(&mut store, (251..280).map(|index| entry(2, index))).await;
    store.save_vote(&vote).await.unwrap();
    store.close().await.unwrap();
    assert!(store.append([entry(2, 280)], IOFlushed::noop()).await.is_err(), "a closed log takes nothing");

    let mut store = open(&dir, 0);
    assert_eq!(store.read_vote().await.unwrap(), Some(vote));
    let state = store.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 40)), Some(log_id(2, 279))));
    let expected: Vec<Entry> =
        (41..251).map(|index| entry(1, index)).chain((251..280).map(|index| entry(2, index))).collect();
    assert_eq!(store.try_get_log_entries(..).await.unwrap(), expected);
    let streamed: Vec<Entry> = store.entries_stream(0..1000).await.map(Result::unwrap).collect().await;
    assert_eq!(streamed, expected);
    let keys = store.get_key_log_ids(log_id(1, 41)..=log_id(2, 279)).await.unwrap();
    assert_eq!(keys, [log_id(1, 250), log_id(2, 279)]);
    assert_eq!((store.term(40), store.term(250), store.term(251), store.term(280)), (Some(1), Some(1), Some(2), None));

    // Entries come from disk and from the cache in one read, and the oldest segments are gone.
    append(&mut store, (280..290).map(|index| entry(2, index))).await;
    assert_eq!(store.limited_get_log_entries(270, 290).await.unwrap().len(), 20);
    store.close().await.unwrap();
}

#[tokio::test]
async fn purged_segments_vanish_and_log_bytes_shrink() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(&dir, 0);
    append(&mut store, (0..2_000).map(|index| entry(1, index))).await;
    let before = store.log_bytes();
    let segments = || std::fs::read_dir(dir.path()).unwrap().count();
    let many = segments();
    store.purge(log_id(1, 1_989)).await.unwrap();
    store.durable().barrier().await.unwrap();
    store.close().await.unwrap();
    assert!(store.log_bytes() * 100 < before, "{} of {before} bytes are left", store.log_bytes());
    assert!(many > 8 && segments() <= 3, "{many} files before, {} after", segments());
    let mut store = open(&dir, 0);
    assert_eq!(store.try_get_log_entries(..).await.unwrap().len(), 10);
    store.close().await.unwrap();
}

/// openraft sends what it reads as what follows the index before `start`.
#[tokio::test]
async fn what_is_to_be_sent_begins_where_it_should_or_is_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(&dir, 1 << 20);
    append(&mut store, (0..20).map(|index| entry(1, index))).await;
    store.purge(log_id(1, 9)).await.unwrap();
    assert_eq!(store.limited_get_log_entries(10, 20).await.unwrap().len(), 10);
    assert_eq!(store.limited_get_log_entries(9, 20).await.unwrap(), []);
    assert_eq!(store.limited_get_log_entries(20, 30).await.unwrap(), []);
    store.close().await.unwrap();
}

#[tokio::test]
async fn what_is_answered_survives_a_power_cut_at_once() {
    let (mut fs, dir) = (SimFs::default(), Path::new("/wal"));
    for life in 1..=50 {
        let open = |fs: &SimFs| LogStore::open(fs, dir, &options(0), Arc::new(SystemEntropy)).unwrap().0;
        let mut store = open(&fs);
        let vote = Vote::new(life, 1);
        store.save_vote(&vote).await.unwrap();
        let (voted, (done, durable)) = (fs.power_cut(Unsynced::Lost), TypeConfig::oneshot());
        assert_eq!(open(&voted).read_vote().await.unwrap(), Some(vote));
        store.append(vec![entry(life, life - 1)], IOFlushed::signal(done)).await.unwrap();
        durable.await.unwrap().unwrap();
        fs = fs.power_cut(Unsynced::Lost);
        // A copy: a disk belongs to one log at a time, and a log that is dropped may still be making its next segment.
        let mut looked_at = open(&fs.power_cut(Unsynced::Lost));
        let last = looked_at.get_log_state().await.unwrap().last_log_id;
        assert_eq!(last, Some(log_id(life, life - 1)));
    }
}

#[tokio::test]
async fn durability_can_be_awaited_by_tasks_and_threads() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(&dir, 1 << 20);
    let durable = store.durable();
    let on_thread = std::thread::spawn({
        let durable = durable.clone();
        move || durable.wait_blocking(log_id(4, 9))
    });
    let early = tokio::time::timeout(Duration::from_millis(5), durable.wait(log_id(4, 9))).await;
    assert!(early.is_err(), "nothing was written yet");
    store.append((0..10).map(|index| entry(4, index)).collect::<Vec<_>>(), IOFlushed::noop()).await.unwrap();
    durable.wait(log_id(4, 9)).await.unwrap();
    on_thread.join().unwrap().unwrap();
    assert_eq!(durable.last(), Some(log_id(4, 9)));
    store.truncate_after(Some(log_id(4, 5))).await.unwrap();
    durable.barrier().await.unwrap();
    assert_eq!(durable.last(), Some(log_id(4, 5)));
    let never = std::thread::spawn(move || durable.wait_blocking(log_id(9, 9)));
    store.close().await.unwrap();
    assert!(never.join().unwrap().is_err(), "whoever waits when the log closes is told");
}

/// Reads while the log grows, is cut at both ends, and its segments vanish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_never_see_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(&dir, 4 << 10);
    let writing = Arc::new(AtomicBool::new(true));
    let readers: Vec<_> =
        (0..3u64).map(|seed| tokio::spawn(read_along(store.clone(), seed, writing.clone()))).collect();
    let (mut term, mut next) = (1, 0);
    for round in 0..200u64 {
        store
            .append((next..next + 20).map(|index| entry(term, index)).collect::<Vec<_>>(), IOFlushed::noop())
            .await
            .unwrap();
        next += 20;
        if round % 7 == 3 {
            next -= round % 30;
            term += 1;
            store.truncate_after(Some(log_id(term - 1, next - 1))).await.unwrap();
        }
        if round % 11 == 5 {
            let upto = next - 60;
            store.purge(log_id(store.term(upto).unwrap(), upto)).await.unwrap();
        }
        tokio::task::yield_now().await;
    }
    store.durable().barrier().await.unwrap();
    writing.store(false, Ordering::Relaxed);
    let mut read = 0;
    for reader in readers {
        read += reader.await.unwrap();
    }
    println!("entries read beside {next} written: {read}");
    store.close().await.unwrap();
}

async fn read_along(mut store: LogStore, seed: u64, writing: Arc<AtomicBool>) -> usize {
    let random = SeededEntropy::new(seed);
    let mut read = 0;
    while writing.load(Ordering::Relaxed) {
        let state = store.get_log_state().await.unwrap();
        let last = state.last_log_id.map_or(0, |last| last.index);
        let start = last.saturating_sub(random.below(80));
        let entries = store.try_get_log_entries(start..start + 60).await.unwrap();
        for pair in entries.windows(2) {
            assert_eq!(pair[0].log_id.index + 1, pair[1].log_id.index);
        }
        for found in &entries {
            assert_eq!(*found, entry(found.log_id.leader_id.term, found.log_id.index));
        }
        read += entries.len();
        tokio::task::yield_now().await;
    }
    read
}
