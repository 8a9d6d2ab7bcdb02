//! Raft's log and vote, as openraft asks for them, over the write-ahead log.
//!
//! Recent entries are kept decoded in a bounded cache, always including those that are not written yet; older ones are
//! read from the segments off the async runtime, and their checksums verified. `append`, `truncate_after` and `purge`
//! return when the change can be seen; `save_vote` returns, and `append` calls back, when it is durable. All four go
//! through one queue, in order.
//!
//! Not kept here: the committed index. A restarted node waits until the leader tells it (`Raft::wait_for_recovery`).

pub mod entry;

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds, RangeInclusive},
    path::Path,
    sync::Arc,
};

use futures::{FutureExt, Stream, StreamExt, TryStreamExt, future::BoxFuture, stream};
use openraft::{
    EntryPayload, OptionalSend,
    storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage},
    vote::leader_id_std::LeaderId,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use self::entry::{id, log_id};
use crate::{
    seam::{Entropy, Fs, RealFs, blocking},
    types::{Entry, LogId, TypeConfig, Vote},
    wal::{self, Done, EntryId, OpenError, Record, Recovered, Wal, steps::Steps},
};

/// At most so many bytes are read for one replication message, unless one entry is larger.
const READ_BYTES: u64 = 4 << 20;

/// How the log store uses disk and memory.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The write-ahead log's own options.
    pub wal: wal::Options,
    /// About how many bytes of recent entries stay in memory.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { wal: wal::Options::default(), cache_bytes: 32 << 20 }
    }
}

/// Raft's log and vote. Clones share them.
pub struct LogStore<F: Fs = RealFs> {
    inner: Arc<Inner<F>>,
}

impl<F: Fs> Clone for LogStore<F> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<F: Fs> {
    wal: Wal<F>,
    /// Taken before the log's own lock wherever both are, so that cache and log agree.
    recent: Mutex<Recent>,
}

/// The vote, and the newest entries without a gap.
struct Recent {
    vote: Option<Vote>,
    entries: VecDeque<Entry>,
    bytes: usize,
    limit: usize,
}

impl Recent {
    fn start(&self, end: u64) -> u64 {
        end - self.entries.len() as u64
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
    }

    /// Drops what is too much, oldest first, and stops at the first entry that is only here.
    fn evict(&mut self, is_placed: impl Fn(u64) -> bool) {
        while self.bytes > self.limit && self.entries.front().is_some_and(|entry| is_placed(entry.log_id.index)) {
            self.drop_front();
        }
    }

    fn drop_front(&mut self) {
        self.bytes -= self.entries.pop_front().as_ref().map_or(0, weight);
    }

    fn truncate(&mut self, from: u64) {
        while self.entries.back().is_some_and(|entry| entry.log_id.index >= from) {
            self.bytes -= self.entries.pop_back().as_ref().map_or(0, weight);
        }
    }

    fn purge(&mut self, upto: u64) {
        while self.entries.front().is_some_and(|entry| entry.log_id.index <= upto) {
            self.drop_front();
        }
    }
}

/// About how many bytes an entry takes in memory.
fn weight(entry: &Entry) -> usize {
    let data = if let EntryPayload::Normal(batch) = &entry.payload { batch.commands.len() } else { 0 };
    size_of::<Entry>() + data
}

/// What the handle needs of a log store, whatever file system it is on.
pub(crate) trait Log: Send + Sync {
    /// The last entry, durable or not, or the purge point.
    fn last(&self) -> Option<LogId>;
    /// See [`LogStore::close`].
    fn close(&self) -> BoxFuture<'_, io::Result<()>>;
}

impl<F: Fs> Log for LogStore<F> {
    fn last(&self) -> Option<LogId> {
        self.inner.wal.last().map(log_id)
    }

    fn close(&self) -> BoxFuture<'_, io::Result<()>> {
        LogStore::close(self).boxed()
    }
}

impl<F: Fs> LogStore<F> {
    /// Opens the log in `dir`, or begins one. Blocks.
    ///
    /// # Errors
    /// See [`wal::OpenError`]: a quarantined replica must neither vote nor serve.
    pub fn open(
        fs: &F,
        dir: &Path,
        options: &Options,
        entropy: Arc<dyn Entropy>,
    ) -> Result<(Self, Recovered), OpenError> {
        let (wal, recovered) = Wal::open(fs, dir, &options.wal, entropy)?;
        let Recovered { lsn, above_mark, torn, .. } = recovered;
        tracing::info!(dir = %dir.display(), lsn, above_mark, torn, bytes = wal.bytes(), "opened the log");
        Ok((Self::over(wal, &recovered, options), recovered))
    }

    /// As [`LogStore::open`], without threads: nothing is written but by the [`Steps`].
    ///
    /// # Errors
    /// See [`LogStore::open`].
    pub fn open_stepped(
        fs: &F,
        dir: &Path,
        options: &Options,
        entropy: Arc<dyn Entropy>,
    ) -> Result<(Self, Recovered, Steps<F>), OpenError> {
        let (wal, recovered, steps) = Wal::open_stepped(fs, dir, &options.wal, entropy)?;
        Ok((Self::over(wal, &recovered, options), recovered, steps))
    }

    fn over(wal: Wal<F>, recovered: &Recovered, options: &Options) -> Self {
        let vote = recovered.vote.map(from_wal);
        let recent = Recent { vote, entries: VecDeque::new(), bytes: 0, limit: options.cache_bytes };
        Self { inner: Arc::new(Inner { wal, recent: Mutex::new(recent) }) }
    }

    /// Lets others wait until the log is durable.
    #[must_use]
    pub fn durable(&self) -> Durable<F> {
        Durable { store: self.clone() }
    }

    /// Bytes of the log since its purge point: what decides when to take a snapshot.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.inner.wal.bytes()
    }

    /// The term of an entry that is in the log, or of the purge point.
    #[must_use]
    pub fn term(&self, index: u64) -> Option<u64> {
        let purged = self.inner.wal.purged().filter(|purged| purged.index == index);
        self.inner.wal.term(index).or(purged.map(|purged| purged.term))
    }

    /// Writes what was submitted and ends the log's threads. Later changes are refused; reading goes on.
    ///
    /// # Errors
    /// Only if the runtime shuts down.
    pub async fn close(&self) -> io::Result<()> {
        let inner = self.inner.clone();
        blocking(move || inner.wal.close()).await
    }

    /// Entries of the range that are present; of many, as many as fit into `max_bytes`.
    async fn read(&self, range: Range<u64>, max_bytes: u64) -> io::Result<Vec<Entry>> {
        let (plan, recent) = {
            let recent = self.inner.recent.lock();
            let wal = &self.inner.wal;
            let wanted = wal.fitting(range, max_bytes);
            let start = recent.start(wal.range().end).clamp(wanted.start, wanted.end);
            let skip = (start - recent.start(wal.range().end).min(start)) as usize;
            let cached = recent.entries.iter().skip(skip).take((wanted.end - start) as usize);
            let cached: Vec<Entry> = cached.cloned().collect();
            let older = wanted.start..start;
            (if older.is_empty() { None } else { Some(wal.plan(older)?) }, cached)
        };
        let Some(plan) = plan else { return Ok(recent) };
        let read = move || {
            let found = plan.read()?;
            let corrupt = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            found.iter().map(|(id, body)| entry::decode(*id, body).map_err(corrupt)).collect::<io::Result<Vec<_>>>()
        };
        let mut entries = blocking(read).await??;
        entries.extend(recent);
        Ok(entries)
    }

    /// Submits one record that is no entry.
    async fn submit(&self, record: Record, done: Option<Done>, apply: impl FnOnce(&mut Recent)) -> io::Result<()> {
        let permit = self.inner.wal.admit(record.weight()).await;
        let mut recent = self.inner.recent.lock();
        self.inner.wal.submit(vec![record], Some(permit), done)?;
        apply(&mut recent);
        Ok(())
    }
}

fn from_wal(vote: wal::Vote) -> Vote {
    let leader_id = LeaderId { term: vote.term, voted_for: vote.node };
    Vote { leader_id, committed: vote.committed }
}

fn to_wal(vote: &Vote) -> wal::Vote {
    wal::Vote { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end.max(start)
}

impl<F: Fs> RaftLogReader<TypeConfig> for LogStore<F> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(bounds(&range), u64::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let entries = self.read(start..end.max(start), READ_BYTES).await?;
        // They are sent as what follows `start - 1`. What a purge left of the range does not.
        Ok(if entries.first().is_some_and(|first| first.log_id.index == start) { entries } else { Vec::new() })
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.inner.recent.lock().vote)
    }

    /// Reads piece by piece: after a restart the range to apply may be the whole log.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let store = self.clone();
        let pieces = stream::try_unfold((store, bounds(&range)), |(store, range)| async move {
            let entries = store.read(range.clone(), READ_BYTES).await?;
            let Some(last) = entries.last().map(|entry| entry.log_id.index) else { return Ok(None) };
            let rest = (last + 1).min(range.end)..range.end;
            Ok::<_, io::Error>(Some((stream::iter(entries).map(Ok::<_, io::Error>), (store, rest))))
        });
        pieces.try_flatten().boxed()
    }

    /// The last entry of each term (openraft's own implementation; its documentation says the first).
    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> Result<Vec<LogId>, io::Error> {
        let ends = self.inner.wal.term_ends(range.start().index..range.end().index.saturating_add(1));
        Ok(ends.into_iter().map(log_id).collect())
    }
}

impl<F: Fs> RaftLogStorage<TypeConfig> for LogStore<F> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let _agree = self.inner.recent.lock();
        let wal = &self.inner.wal;
        Ok(LogState { last_purged_log_id: wal.purged().map(log_id), last_log_id: wal.last().map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        hodei_state::failpoint!("vote::before-save");
        let (done, durable) = oneshot::channel();
        let done: Done = Box::new(move || {
            // The caller may have gone; the vote is durable all the same.
            let _ = done.send(());
        });
        let vote = *vote;
        if hodei_state::armed!("bug::vote-not-saved") {
            self.inner.recent.lock().vote = Some(vote);
            return Ok(());
        }
        self.submit(Record::Vote(to_wal(&vote)), Some(done), move |recent| recent.vote = Some(vote)).await?;
        durable
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the log closed before the vote was durable"))?;
        hodei_state::failpoint!("vote::after-save");
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        hodei_state::failpoint!("log::before-append");
        let entries: Vec<Entry> = entries.into_iter().collect();
        let record = |entry: &Entry| Record::Append { id: id(&entry.log_id), body: entry::encode(entry) };
        let records: Vec<Record> = entries.iter().map(record).collect();
        let permit = self.inner.wal.admit(records.iter().map(Record::weight).sum()).await;
        let mut recent = self.inner.recent.lock();
        let done: Done = Box::new(move || callback.io_completed(Ok(())));
        if hodei_state::armed!("bug::acknowledged-before-synced") {
            self.inner.wal.submit(records, Some(permit), None)?;
            done();
        } else {
            self.inner.wal.submit(records, Some(permit), Some(done))?;
        }
        entries.into_iter().for_each(|entry| recent.push(entry));
        recent.evict(|index| self.inner.wal.is_placed(index));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |last| last.index + 1);
        if from >= self.inner.wal.range().end {
            return Ok(());
        }
        hodei_state::failpoint!("log::before-truncate");
        if hodei_state::armed!("bug::truncation-not-logged") {
            self.inner.recent.lock().truncate(from);
            return Ok(());
        }
        self.submit(Record::Truncate { from }, None, |recent| recent.truncate(from)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let upto = id(&upto);
        if self.inner.wal.purged().is_some_and(|purged| purged.index >= upto.index) {
            return Ok(());
        }
        hodei_state::failpoint!("log::before-purge");
        self.submit(Record::Purge { upto }, None, |recent| recent.purge(upto.index)).await
    }
}

/// Lets others wait until the log is durable through something. Clones share what they see.
#[derive(Clone)]
pub struct Durable<F: Fs = RealFs> {
    store: LogStore<F>,
}

impl<F: Fs> Durable<F> {
    /// The last entry of the durable log, or its purge point.
    #[must_use]
    pub fn last(&self) -> Option<LogId> {
        self.store.inner.wal.durable().now().last.map(log_id)
    }

    /// Waits in a task until the log is durable through a *committed* entry: one that no truncation can take away.
    ///
    /// # Errors
    /// If the log closes before.
    pub async fn wait(&self, through: LogId) -> io::Result<()> {
        let through = id(&through);
        self.store.inner.wal.durable().wait(|point| reaches(point.last, through)).await
    }

    /// As [`Durable::wait`], on a thread.
    ///
    /// # Errors
    /// If the log closes before.
    pub fn wait_blocking(&self, through: LogId) -> io::Result<()> {
        let through = id(&through);
        self.store.inner.wal.durable().wait_blocking(|point| reaches(point.last, through))
    }

    /// Waits in a task until everything submitted before, truncations too, is durable.
    ///
    /// # Errors
    /// If the log closes before.
    pub async fn barrier(&self) -> io::Result<()> {
        let lsn = self.store.inner.wal.lsn();
        self.store.inner.wal.durable().wait(|point| point.lsn >= lsn).await
    }

    /// As [`Durable::barrier`], on a thread.
    ///
    /// # Errors
    /// If the log closes before.
    pub fn barrier_blocking(&self) -> io::Result<()> {
        let lsn = self.store.inner.wal.lsn();
        self.store.inner.wal.durable().wait_blocking(|point| point.lsn >= lsn)
    }
}

/// By log matching, a log whose last entry is not below a committed entry contains it.
fn reaches(last: Option<EntryId>, through: EntryId) -> bool {
    last.is_some_and(|last| last >= through)
}
