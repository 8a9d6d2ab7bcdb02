//! Threads and queues around the engine, and the handle that everybody else holds.
//!
//! ```text
//! submit ──queue──▶ writer: write, fdatasync ──▶ marker: mark, fdatasync, callbacks ──▶ keeper: remove segments
//!                      ▲────────── prepared segment ──────────────────────────────────────┘
//! ```
//! The queue is bounded by bytes ([`Wal::admit`]), the others by length. Dropping the last handle, or [`Wal::close`],
//! closes the queue; each thread finishes what it has and closes the next. What was submitted before is written.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    EntryId, Lsn, OpenError, Options, Record, Recovered,
    durable::{Durable, DurablePoint, Publisher, closed, durable},
    engine::{Engine, Written},
    fatal::{self, Failure, PanicGuard},
    index::{Index, Plan},
    mark::{Mark, MarkFile},
    recover,
    segment::{self, Prepared},
    steps::Steps,
};
use crate::seam::{Entropy, File, Fs, RealFs};

/// Runs when what it was submitted with is durable and marked, on the log's marker thread: it must not block.
pub type Done = Box<dyn FnOnce() + Send>;

/// Room in the queue.
#[derive(Debug)]
pub struct Permit(#[expect(dead_code, reason = "held until the records are written")] OwnedSemaphorePermit);

/// The unit of room in the queue.
const ROOM_BYTES: usize = 1024;
/// Groups that may wait for their mark.
const UNMARKED_GROUPS: usize = 64;
/// Finished purges that may wait for the keeper.
const PENDING_REMOVALS: usize = 64;

pub(super) struct Job {
    records: Vec<Record>,
    /// The log's last entry after these records.
    last: Option<EntryId>,
    done: Option<Done>,
    permit: Option<Permit>,
}

/// A group whose records are durable.
pub(super) struct Group {
    pub(super) mark: Mark,
    last: Option<EntryId>,
    done: Vec<Done>,
    freed: Vec<Lsn>,
}

/// The log. All methods take `&self`.
pub struct Wal<F: Fs = RealFs> {
    /// Where submissions enter. Held while the index advances, so that index and queue have the same order.
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    index: Arc<Mutex<Index<F::File>>>,
    room: Arc<Semaphore>,
    rooms: usize,
    durable: Durable,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl<F: Fs> Wal<F> {
    /// Opens the log in `dir`, or begins one, and starts its threads. Blocks.
    ///
    /// # Errors
    /// See [`recover::open`].
    pub fn open(
        fs: &F,
        dir: &Path,
        options: &Options,
        entropy: Arc<dyn Entropy>,
    ) -> Result<(Self, Recovered), OpenError> {
        let (wal, recovered, steps, filler) = Self::assemble(fs, dir, options, entropy)?;
        let Steps { writer, jobs, groups, marker, unmarked, keeper, freed } = steps;
        *wal.threads.lock() = vec![
            spawn("wal-writer", move || writer.run(&jobs, &groups))?,
            spawn("wal-marker", move || marker.run(&unmarked))?,
            spawn("wal-keeper", move || keeper.run(&freed))?,
            spawn("wal-filler", move || filler.run())?,
        ];
        Ok((wal, recovered))
    }

    /// As [`Wal::open`], without threads: nothing is written but by the [`Steps`].
    ///
    /// # Errors
    /// See [`recover::open`].
    pub fn open_stepped(
        fs: &F,
        dir: &Path,
        options: &Options,
        entropy: Arc<dyn Entropy>,
    ) -> Result<(Self, Recovered, Steps<F>), OpenError> {
        // Without a filler the writer prepares its segments itself.
        let (wal, recovered, steps, _) = Self::assemble(fs, dir, options, entropy)?;
        Ok((wal, recovered, steps))
    }

    fn assemble(
        fs: &F,
        dir: &Path,
        options: &Options,
        entropy: Arc<dyn Entropy>,
    ) -> Result<(Self, Recovered, Steps<F>, Filler<F>), OpenError> {
        let opened = recover::open(fs, dir, options, &*entropy)?;
        let point = DurablePoint { lsn: opened.recovered.lsn, last: opened.recovered.last };
        let (publisher, durable) = durable(point);
        let index = Arc::new(Mutex::new(opened.index));
        let (queue, jobs) = mpsc::channel();
        let (groups, unmarked) = mpsc::sync_channel(UNMARKED_GROUPS);
        let (removals, freed) = mpsc::sync_channel(PENDING_REMOVALS);
        let (ready, prepared) = mpsc::sync_channel(0);
        let store = Store { fs: fs.clone(), dir: dir.to_path_buf(), segment_bytes: options.segment_bytes, entropy };
        let group_bytes = options.group_bytes;
        let writer =
            Writer { engine: opened.engine, index: index.clone(), group_bytes, prepared, store: store.clone() };
        let marker = Marker { file: opened.mark, publisher, removals };
        let keeper = Keeper { store: store.clone(), index: index.clone() };
        let steps = Steps { writer, jobs, groups, marker, unmarked, keeper, freed };
        let rooms = (options.queue_bytes / ROOM_BYTES).max(1);
        let wal = Self {
            queue: Mutex::new(Some(queue)),
            index,
            room: Arc::new(Semaphore::new(rooms)),
            rooms,
            durable,
            threads: Mutex::default(),
        };
        Ok((wal, opened.recovered, steps, Filler { store, ready }))
    }

    /// Waits for room in the queue for records of so many bytes. First come, first served.
    pub async fn admit(&self, bytes: usize) -> Permit {
        let rooms = bytes.div_ceil(ROOM_BYTES).clamp(1, self.rooms);
        let permit = self.room.clone().acquire_many_owned(rooms as u32).await;
        Permit(permit.expect("the semaphore is never closed"))
    }

    /// Queues records; `done` runs once all of them are durable and marked. In the index they are there at once.
    ///
    /// # Errors
    /// `InvalidInput` if a record cannot follow what is there; nothing has then happened. `BrokenPipe` after
    /// [`Wal::close`].
    pub fn submit(&self, records: Vec<Record>, permit: Option<Permit>, done: Option<Done>) -> io::Result<Lsn> {
        let queue = self.queue.lock();
        let sender = queue.as_ref().ok_or_else(closed)?;
        let mut index = self.index.lock();
        index.check(&records)?;
        for record in &records {
            index.advance(record);
        }
        let (lsn, last) = (index.lsn, index.last());
        drop(index);
        sender.send(Job { records, last, done, permit }).map_err(|_| closed())?;
        Ok(lsn)
    }

    /// The present indexes.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.index.lock().range()
    }

    /// The purge point.
    #[must_use]
    pub fn purged(&self) -> Option<EntryId> {
        self.index.lock().purged
    }

    /// The last entry, or the purge point if there is none.
    #[must_use]
    pub fn last(&self) -> Option<EntryId> {
        self.index.lock().last()
    }

    /// The last record submitted.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.index.lock().lsn
    }

    /// The term of a present entry.
    #[must_use]
    pub fn term(&self, index: u64) -> Option<u64> {
        self.index.lock().slot(index).map(|slot| slot.term)
    }

    /// Bytes of the present entries in the segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.index.lock().bytes
    }

    /// Whether an entry can be read from its segment.
    #[must_use]
    pub fn is_placed(&self, index: u64) -> bool {
        self.index.lock().slot(index).is_some_and(|slot| slot.place.is_some())
    }

    /// How many of the present entries from `range.start` on fit into `max_bytes`; at least one.
    #[must_use]
    pub fn fitting(&self, range: Range<u64>, max_bytes: u64) -> Range<u64> {
        self.index.lock().fitting(range, max_bytes)
    }

    /// The last present entry of each term in `range`.
    #[must_use]
    pub fn term_ends(&self, range: Range<u64>) -> Vec<EntryId> {
        self.index.lock().term_ends(range)
    }

    /// Plans reading present, placed entries; [`Plan::read`] then does it, whatever happens to the log meanwhile.
    ///
    /// # Errors
    /// `InvalidInput` if an entry is not present or not placed.
    pub fn plan(&self, range: Range<u64>) -> io::Result<Plan<F::File>> {
        self.index.lock().plan(range)
    }

    /// Up to where the log is durable.
    #[must_use]
    pub fn durable(&self) -> Durable {
        self.durable.clone()
    }

    /// Closes the queue and waits until what was submitted is durable and the threads are gone. Blocks.
    pub fn close(&self) {
        self.queue.lock().take();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // A thread that panicked has ended the process already.
            let _ = thread.join();
        }
    }
}

fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    let guarded = move || {
        let _guard = PanicGuard(name);
        run();
    };
    std::thread::Builder::new().name(name.into()).spawn(guarded).map_err(OpenError::io(format!("start {name}")))
}

fn or_abort<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| fatal::abort(&failure))
}

pub(super) struct Writer<F: Fs> {
    engine: Engine<F>,
    index: Arc<Mutex<Index<F::File>>>,
    group_bytes: usize,
    prepared: mpsc::Receiver<Result<Prepared<F::File>, Failure>>,
    store: Store<F>,
}

impl<F: Fs> Writer<F> {
    fn run(mut self, jobs: &mpsc::Receiver<Job>, groups: &mpsc::SyncSender<Group>) {
        while let Ok(first) = jobs.recv() {
            let group = or_abort(self.write(first, jobs));
            if groups.send(group).is_err() {
                return;
            }
        }
    }

    /// Writes this job and what else is waiting.
    pub(super) fn write(&mut self, first: Job, jobs: &mpsc::Receiver<Job>) -> Result<Group, Failure> {
        let batch = self.gather(first, jobs);
        let Self { engine, prepared, store, .. } = self;
        let records = batch.iter().flat_map(|job| &job.records);
        let written = engine.write(records, |bytes| next_segment(prepared, store, bytes))?;
        Ok(self.finish(batch, written))
    }

    /// Takes what else is waiting, so that one sync serves all of it.
    fn gather(&self, first: Job, jobs: &mpsc::Receiver<Job>) -> Vec<Job> {
        let weight = |job: &Job| job.records.iter().map(Record::weight).sum::<usize>();
        let mut bytes = weight(&first);
        let mut batch = vec![first];
        while bytes < self.group_bytes
            && let Ok(job) = jobs.try_recv()
        {
            bytes += weight(&job);
            batch.push(job);
        }
        batch
    }

    fn finish(&self, batch: Vec<Job>, written: Written<F::File>) -> Group {
        let mut index = self.index.lock();
        for segment in written.opened {
            index.segments.insert(segment.base, segment);
        }
        for placed in &written.placed {
            index.place(placed);
        }
        drop(index);
        let last = batch.last().and_then(|job| job.last);
        let mut done = Vec::with_capacity(batch.len());
        for job in batch {
            drop(job.permit);
            done.extend(job.done);
        }
        Group { mark: written.mark, last, done, freed: written.freed }
    }
}

/// The segment that lies ready, or a fresh one if the record needs more room.
fn next_segment<F: Fs>(
    prepared: &mpsc::Receiver<Result<Prepared<F::File>, Failure>>,
    store: &Store<F>,
    record_bytes: u64,
) -> Result<Prepared<F::File>, Failure> {
    if record_bytes <= store.segment_bytes.saturating_sub(segment::FIRST_RECORD as u64)
        && let Ok(ready) = prepared.recv()
    {
        return ready;
    }
    store.prepare(record_bytes)
}

pub(super) struct Marker<D: File> {
    file: MarkFile<D>,
    publisher: Publisher,
    removals: mpsc::SyncSender<Vec<Lsn>>,
}

impl<D: File> Marker<D> {
    fn run(mut self, groups: &mpsc::Receiver<Group>) {
        while let Ok(first) = groups.recv() {
            if !or_abort(self.mark(first, groups)) {
                return;
            }
        }
    }

    /// Marks this group and what else is waiting. False: nobody removes segments any more.
    pub(super) fn mark(&mut self, first: Group, groups: &mpsc::Receiver<Group>) -> Result<bool, Failure> {
        let mut batch = vec![first];
        batch.extend(groups.try_iter());
        let newest = batch.last().expect("there is at least the first");
        let point = DurablePoint { lsn: newest.mark.lsn, last: newest.last };
        hodei_state::failpoint!("wal::before-mark");
        self.file.write(&newest.mark)?;
        hodei_state::failpoint!("wal::before-mark-fsync");
        self.file.sync()?;
        hodei_state::failpoint!("wal::before-acknowledge");
        self.publisher.publish(point);
        for group in batch {
            group.done.into_iter().for_each(|done| done());
            if !group.freed.is_empty() && self.removals.send(group.freed).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Where segments come from.
struct Store<F> {
    fs: F,
    dir: PathBuf,
    segment_bytes: u64,
    entropy: Arc<dyn Entropy>,
}

impl<F: Clone> Clone for Store<F> {
    fn clone(&self) -> Self {
        let Self { fs, dir, segment_bytes, entropy } = self;
        Self { fs: fs.clone(), dir: dir.clone(), segment_bytes: *segment_bytes, entropy: entropy.clone() }
    }
}

impl<F: Fs> Store<F> {
    fn prepare(&self, record_bytes: u64) -> Result<Prepared<F::File>, Failure> {
        segment::prepare(&self.fs, &self.dir, &*self.entropy, self.segment_bytes, record_bytes)
    }
}

struct Filler<F: Fs> {
    store: Store<F>,
    ready: mpsc::SyncSender<Result<Prepared<F::File>, Failure>>,
}

impl<F: Fs> Filler<F> {
    /// Keeps one segment ready until nobody takes it any more. A full disk becomes the writer's failure only when it
    /// needs the segment; a failed sync ends the process at once.
    fn run(self) {
        loop {
            let prepared = self.store.prepare(0);
            if let Err(failure) = &prepared
                && failure.code == fatal::SYNC_FAILED
            {
                fatal::abort(failure);
            }
            if let Err(mpsc::SendError(unused)) = self.ready.send(prepared) {
                // Left behind by accident, it would be removed when the log opens.
                if let Ok(unused) = unused {
                    let _ = unused.discard(&self.store.fs);
                }
                return;
            }
        }
    }
}

/// Removes segments that nothing needs any more.
pub(super) struct Keeper<F: Fs> {
    store: Store<F>,
    index: Arc<Mutex<Index<F::File>>>,
}

impl<F: Fs> Keeper<F> {
    fn run(self, freed: &mpsc::Receiver<Vec<Lsn>>) {
        for base in freed.iter().flatten() {
            or_abort(self.remove(base));
        }
    }

    pub(super) fn remove(&self, base: Lsn) -> Result<(), Failure> {
        self.index.lock().segments.remove(&base);
        hodei_state::failpoint!("wal::before-remove-segment");
        segment::remove(&self.store.fs, &self.store.dir, base)
    }
}
