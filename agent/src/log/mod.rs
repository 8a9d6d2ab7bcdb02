//! The output of an attempt, from its pipes to the node.
//!
//! [`capture`] reads both streams as bytes, through memory that the job's watchdog keeps ([`store`]), and splits them into
//! lines ([`split`]), without the secrets that the job was given ([`mask`]). [`batch`] numbers the lines, one
//! sequence for both streams, and gathers them into batches; it also keeps the running figures and the checksum that
//! the end of the log is checked against. A batch first goes to the [`spool`] on disk, then it is [`Log::publish`]ed:
//! kept in memory while it is new, and offered to the session, which takes the next one with [`Log::take`]. What is
//! no longer in memory is read back from the spool. [`progress`] tells a successor of this agent where to go on.
//!
//! Two bounds: bytes that are not yet durable on the nodes ([`SPOOL_BOUND`]; a full spool blocks the job or drops
//! lines, as the job says), and bytes that are under way ([`WINDOW`], so that one noisy job cannot starve others).

pub mod batch;
pub mod capture;
mod entries;
pub mod ledger;
pub mod mask;
pub mod progress;
pub mod rest;
pub mod split;
pub mod spool;
pub mod store;

use std::{collections::VecDeque, path::PathBuf};

use hodei_proto::v1::LogBatch;
use parking_lot::Mutex;
use tokio::sync::Notify;

pub use self::entries::{Entry, account, addressed, entries, last_of};
use self::{
    entries::{starting_at, weight},
    ledger::Ledger,
    spool::{Index, Placed},
};

/// Bytes that the nodes have not made durable yet; beyond it the spool is full.
pub const SPOOL_BOUND: u64 = 64 << 20;
/// Bytes sent and not yet received.
pub const WINDOW: u64 = 4 << 20;
/// Batches kept in memory for the session to take.
const RECENT_BOUND: u64 = 2 << 20;
/// What one read from the spool may bring.
const REPLAY_BYTES: u64 = 1 << 20;

/// The log of one attempt, shared between who captures it and who sends it.
pub struct Log {
    inner: Mutex<Inner>,
    /// Signalled when more of it has become durable.
    space: Notify,
}

struct Inner {
    index: Index,
    /// Newest batches, contiguous up to `last`.
    recent: VecDeque<LogBatch>,
    recent_bytes: u64,
    /// Batches read back from the spool for the cursor.
    replay: VecDeque<LogBatch>,
    reading: bool,
    /// The next sequence to send on the current stream; `None` until the gateway says what it wants.
    cursor: Option<u64>,
    flight: Ledger,
    undurable: Ledger,
    last: u64,
    received: u64,
    durable: u64,
    /// The cursor has to leave out what lies before this.
    skip: Option<u64>,
    /// Sequences up to here were promised in a result; larger than `last` only where a crash took the spool's tail.
    promised: u64,
}

/// What [`Log::take`] found.
#[derive(Debug)]
pub enum Taken {
    /// Send this.
    Batch(LogBatch),
    /// The agent no longer has what the gateway wants: it goes on from this sequence.
    Resume(u64),
    /// Read this from disk and hand it to [`Log::replayed`].
    Read(Wanted),
    /// Nothing now.
    Nothing,
}

/// A stretch of the spool to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The first sequence.
    pub from: u64,
    place: spool::Location,
}

impl Wanted {
    /// Reads it. Blocking.
    pub fn read(&self) -> std::io::Result<Vec<LogBatch>> {
        spool::read(&self.place, self.from, REPLAY_BYTES)
    }
}

impl Log {
    /// A log without entries, sent from its beginning.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Index::default(), 0, 0, Some(1))
    }

    /// A log found on disk: nothing is sent before the gateway says what it wants.
    #[must_use]
    pub fn recovered(index: Index, last: u64, promised: u64) -> Self {
        Self::with(index, last, promised, None)
    }

    fn with(index: Index, last: u64, promised: u64, cursor: Option<u64>) -> Self {
        let inner = Inner {
            index,
            recent: VecDeque::new(),
            recent_bytes: 0,
            replay: VecDeque::new(),
            reading: false,
            cursor,
            flight: Ledger::default(),
            undurable: Ledger::default(),
            last,
            received: 0,
            durable: 0,
            skip: None,
            promised,
        };
        Self { inner: Mutex::new(inner), space: Notify::new() }
    }

    /// Its spool is kept here.
    pub fn begin(&self, index: Index) {
        self.inner.lock().index = index;
    }

    /// Newest entry in the spool.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        let inner = self.inner.lock();
        inner.last.max(inner.promised)
    }

    /// Whether everything in the spool is durable on the nodes.
    #[must_use]
    pub fn all_durable(&self) -> bool {
        let inner = self.inner.lock();
        inner.durable >= inner.last
    }

    /// Whether the spool has room.
    #[must_use]
    pub fn has_space(&self) -> bool {
        self.inner.lock().undurable.total() < SPOOL_BOUND
    }

    /// Waits until the spool has room.
    pub async fn space(&self) {
        loop {
            let notified = self.space.notified();
            if self.has_space() {
                return;
            }
            notified.await;
        }
    }

    /// Batches that are in the spool now. Returns files of the spool that are no longer needed, to be removed.
    pub fn publish(&self, batches: Vec<LogBatch>, placed: Vec<Placed>) -> Vec<PathBuf> {
        let mut inner = self.inner.lock();
        for (batch, place) in batches.into_iter().zip(placed) {
            debug_assert_eq!(batch.first_sequence, inner.last + 1, "batches are contiguous");
            inner.last = last_of(&batch);
            inner.index.note(place);
            let (last, bytes) = (inner.last, weight(&batch));
            inner.undurable.add(last, bytes);
            inner.recent_bytes += bytes;
            inner.recent.push_back(batch);
        }
        inner.trim_recent();
        inner.index.over_bound()
    }

    /// A new stream: nothing goes out before the gateway says what it wants.
    pub fn detach(&self) {
        self.inner.lock().restart(None);
    }

    /// The gateway wants entries from here on.
    pub fn wanted(&self, from: u64) {
        self.inner.lock().restart(Some(from.max(1)));
    }

    /// What the nodes have.
    pub fn acknowledged(&self, received: u64, durable: u64) {
        let mut inner = self.inner.lock();
        inner.received = inner.received.max(received);
        inner.durable = inner.durable.max(durable);
        let (received, durable) = (inner.received, inner.durable);
        inner.flight.settle(received);
        inner.undurable.settle(durable);
        while inner.recent.front().is_some_and(|batch| last_of(batch) <= received) {
            inner.pop_recent();
        }
        drop(inner);
        self.space.notify_waiters();
    }

    /// The next batch for the current stream.
    pub fn take(&self) -> Taken {
        self.inner.lock().take()
    }

    /// The answer to [`Taken::Read`]. What no longer fits the cursor is thrown away.
    pub fn replayed(&self, from: u64, batches: Vec<LogBatch>) {
        let mut inner = self.inner.lock();
        inner.reading = false;
        if inner.cursor != Some(from) {
            return;
        }
        if batches.is_empty() {
            // The place is damaged: what lies behind it is all that is left, and the gateway records a gap.
            inner.skip = Some(inner.next_after(from));
        }
        inner.replay = batches.into();
    }
}

impl Default for Log {
    fn default() -> Self {
        Self::new()
    }
}

impl Inner {
    fn restart(&mut self, cursor: Option<u64>) {
        self.cursor = cursor;
        self.replay.clear();
        self.skip = None;
        self.flight = Ledger::default();
    }

    /// The first sequence behind `from` that can still be had.
    fn next_after(&self, from: u64) -> u64 {
        let recent = self.recent.front().map(|batch| batch.first_sequence).filter(|first| *first > from);
        let on_disk = self.index.next_file_after(from);
        recent.into_iter().chain(on_disk).min().unwrap_or(self.last.max(from) + 1)
    }

    fn pop_recent(&mut self) {
        if let Some(batch) = self.recent.pop_front() {
            self.recent_bytes -= weight(&batch);
        }
    }

    fn trim_recent(&mut self) {
        while self.recent_bytes > RECENT_BOUND && self.recent.len() > 1 {
            self.pop_recent();
        }
    }

    fn take(&mut self) -> Taken {
        let Some(cursor) = self.cursor else { return Taken::Nothing };
        if let Some(next) = self.skip.take() {
            self.cursor = Some(next);
            return Taken::Resume(next);
        }
        if cursor > self.last {
            return self.take_past_the_end(cursor);
        }
        if self.flight.total() >= WINDOW {
            return Taken::Nothing;
        }
        let found = self.take_from_replay(cursor).or_else(|| self.take_from_recent(cursor));
        if let Some(batch) = found {
            let next = last_of(&batch) + 1;
            self.flight.add(next - 1, weight(&batch));
            self.cursor = Some(next);
            return Taken::Batch(batch);
        }
        self.take_from_disk(cursor)
    }

    /// A crash may have taken the end of a spool whose figures were promised: the gateway records a gap for it.
    fn take_past_the_end(&mut self, cursor: u64) -> Taken {
        if cursor > self.promised {
            return Taken::Nothing;
        }
        self.cursor = Some(self.promised + 1);
        Taken::Resume(self.promised + 1)
    }

    fn take_from_replay(&mut self, cursor: u64) -> Option<LogBatch> {
        while let Some(batch) = self.replay.pop_front() {
            if last_of(&batch) >= cursor {
                return starting_at(batch, cursor);
            }
        }
        None
    }

    fn take_from_recent(&self, cursor: u64) -> Option<LogBatch> {
        let at = self.recent.partition_point(|batch| last_of(batch) < cursor);
        starting_at(self.recent.get(at)?.clone(), cursor)
    }

    fn take_from_disk(&mut self, cursor: u64) -> Taken {
        let first = self.index.first_available().unwrap_or(self.last + 1);
        if cursor < first {
            self.cursor = Some(first);
            return Taken::Resume(first);
        }
        if self.reading {
            return Taken::Nothing;
        }
        match self.index.locate(cursor) {
            Some(place) => {
                self.reading = true;
                Taken::Read(Wanted { from: cursor, place })
            }
            None => Taken::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        batch::{Batcher, STDOUT},
        spool::Writer,
        *,
    };

    struct Fixture {
        _dir: tempfile::TempDir,
        log: Log,
        writer: Writer,
        batcher: Batcher,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (writer, index) = Writer::new(dir.path());
            let log = Log::new();
            log.begin(index);
            Self { _dir: dir, log, writer, batcher: Batcher::default() }
        }

        fn write(&mut self, lines: usize, len: usize) {
            for _ in 0..lines {
                self.batcher.push(STDOUT, &vec![b'x'; len], 1);
            }
            self.batcher.flush(1);
            let batches = self.batcher.take_full();
            let placed = self.writer.append(&batches).unwrap();
            self.log.publish(batches, placed);
        }

        /// Everything that can be sent now, as ranges of sequences; disk reads are answered.
        fn sent(&self) -> Vec<(u64, u64)> {
            let mut ranges = Vec::new();
            loop {
                match self.log.take() {
                    Taken::Batch(batch) => ranges.push((batch.first_sequence, last_of(&batch))),
                    Taken::Read(wanted) => self.log.replayed(wanted.from, wanted.read().unwrap()),
                    Taken::Resume(_) => panic!("nothing is missing"),
                    Taken::Nothing => return ranges,
                }
            }
        }
    }

    #[test]
    fn a_new_log_goes_out_at_once_and_a_new_stream_waits_for_the_gateways_wish() {
        let mut fixture = Fixture::new();
        fixture.write(150, 10);
        assert_eq!(fixture.sent(), [(1, 100), (101, 150)]);
        fixture.log.detach();
        fixture.write(10, 10);
        assert_eq!(fixture.sent(), []);
        fixture.log.wanted(42);
        assert_eq!(fixture.sent(), [(42, 100), (101, 150), (151, 160)]);
    }

    #[test]
    fn what_is_under_way_is_bounded_and_an_acknowledgement_makes_room() {
        let mut fixture = Fixture::new();
        fixture.write(200, 60_000);
        let first = fixture.sent();
        let last = first.last().unwrap().1;
        assert!((60..80).contains(&last), "4 MiB are about 70 lines of 60,000 bytes, got {last}");
        assert_eq!(fixture.sent(), []);
        fixture.log.acknowledged(last, 0);
        assert_eq!(fixture.sent().first().unwrap().0, last + 1);
    }

    #[test]
    fn what_is_no_longer_in_memory_comes_from_disk_without_gap_or_double() {
        let mut fixture = Fixture::new();
        fixture.write(5_000, 1_000);
        fixture.log.wanted(7);
        let mut next = 7;
        while next <= 5_000 {
            for (first, last) in fixture.sent() {
                assert_eq!(first, next);
                next = last + 1;
            }
            fixture.log.acknowledged(next - 1, next - 1);
        }
        assert!(fixture.log.all_durable());
    }

    #[test]
    fn a_full_spool_has_space_again_when_it_is_durable() {
        let mut fixture = Fixture::new();
        for _ in 0..SPOOL_BOUND / (64 << 10) {
            fixture.write(1, 64 << 10);
        }
        assert!(!fixture.log.has_space());
        fixture.log.acknowledged(500, 0);
        assert!(!fixture.log.has_space(), "received is not durable");
        fixture.log.acknowledged(500, 500);
        assert!(fixture.log.has_space());
    }

    #[test]
    fn a_tail_that_a_crash_took_is_told_as_a_gap() {
        let log = Log::recovered(Index::default(), 0, 12);
        log.wanted(1);
        assert!(matches!(log.take(), Taken::Resume(13)));
        assert!(matches!(log.take(), Taken::Nothing));
    }
}
