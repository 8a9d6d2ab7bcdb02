//! Numbers entries and gathers them into batches.

use bytes::BytesMut;
use hodei_proto::v1::{LogBatch, LogEnd};

use super::{account, progress::Progress};

/// `LogBatch.kinds`: the job's standard output.
pub const STDOUT: u32 = 1;
/// `LogBatch.kinds`: the job's standard error.
pub const STDERR: u32 = 2;
/// `LogBatch.kinds`: lines were dropped.
pub const GAP: u32 = 3;

/// What a gap record holds where nobody knows how many lines it stands for.
pub const UNCOUNTED: [u8; 8] = 0_u64.to_le_bytes();

/// A batch is full at this many entries …
pub const MAX_ENTRIES: usize = 100;
/// … or at this many bytes.
pub const MAX_BYTES: usize = 64 << 10;

/// Batches of one attempt: one sequence over both streams, and the figures so far.
#[derive(Debug, Default)]
pub struct Batcher {
    open: LogBatch,
    data: BytesMut,
    stamped: i64,
    end: LogEnd,
    dropped: u64,
    /// Bytes of each stream that are numbered or dropped.
    taken: [u64; 2],
    /// As it was when the last batch was closed.
    closed: Progress,
    full: Vec<LogBatch>,
}

impl Batcher {
    /// Goes on where another one has come to.
    #[must_use]
    pub fn resume(from: &Progress) -> Self {
        Self { end: from.figures(), dropped: from.owed, taken: from.taken, closed: *from, ..Self::default() }
    }

    /// Takes an entry stamped `now_ms` (Unix milliseconds).
    pub fn push(&mut self, kind: u32, entry: &[u8], now_ms: i64) {
        self.own_up(now_ms);
        if self.end.lines % 50 == 49 && crate::armed!("bug::line-lost") {
            self.end.lines += 1;
            return self.count(kind, entry);
        }
        self.number(kind, entry, now_ms);
        self.count(kind, entry);
        self.close_if_full();
    }

    /// Leaves an entry out: it gets no number, and a gap record will stand for it.
    pub fn drop_entry(&mut self, kind: u32, entry: &[u8]) {
        self.dropped += 1;
        self.count(kind, entry);
    }

    /// Leaves out nobody knows how many entries: a gap record says so.
    pub fn lose(&mut self, now_ms: i64) {
        self.own_up(now_ms);
        self.number(GAP, &UNCOUNTED, now_ms);
    }

    /// Closes the open batch, with the gap record that is due.
    pub fn flush(&mut self, now_ms: i64) {
        self.own_up(now_ms);
        self.close();
    }

    /// Whether entries wait in an open batch.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.open.lens.is_empty()
    }

    /// The closed batches.
    pub fn take_full(&mut self) -> Vec<LogBatch> {
        std::mem::take(&mut self.full)
    }

    /// The figures over everything numbered so far.
    #[must_use]
    pub fn figures(&self) -> LogEnd {
        self.end
    }

    /// How far the closed batches go.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.closed
    }

    /// The gap record that is due. Until it is numbered the lines are owed.
    fn own_up(&mut self, now_ms: i64) {
        if self.dropped > 0 {
            if !crate::armed!("bug::gap-not-told") {
                self.number(GAP, &self.dropped.to_le_bytes(), now_ms);
            }
            self.dropped = 0;
        }
    }

    fn count(&mut self, kind: u32, entry: &[u8]) {
        let stream = if kind == STDERR { 1 } else { 0 };
        self.taken[stream] += entry.len() as u64;
    }

    fn number(&mut self, kind: u32, entry: &[u8], now_ms: i64) {
        if self.open.lens.len() >= MAX_ENTRIES || self.data.len() + entry.len() > MAX_BYTES {
            self.close();
        }
        let sequence = self.end.last_sequence + 1;
        account(&mut self.end, sequence, kind, entry);
        if !self.is_open() {
            self.open.first_sequence = sequence;
            self.stamped = 0;
            self.data.reserve(entry.len());
        }
        self.open.lens.push(u32::try_from(entry.len()).expect("an entry is at most 64 KiB"));
        self.open.kinds.push(kind);
        self.open.times_ms.push(now_ms - self.stamped);
        self.stamped = now_ms;
        self.data.extend_from_slice(entry);
    }

    fn close_if_full(&mut self) {
        if self.open.lens.len() >= MAX_ENTRIES || self.data.len() >= MAX_BYTES {
            self.close();
        }
    }

    fn close(&mut self) {
        if self.is_open() {
            self.open.data = self.data.split().freeze();
            self.full.push(std::mem::take(&mut self.open));
            self.closed = Progress::of(&self.end, self.dropped, self.taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::entries, *};

    #[test]
    fn a_batch_leaves_at_a_hundred_entries_or_64_kib() {
        let mut batcher = Batcher::default();
        for _ in 0..250 {
            batcher.push(STDOUT, b"line\n", 5);
        }
        let full = batcher.take_full();
        assert_eq!(
            full.iter().map(|batch| (batch.first_sequence, batch.lens.len())).collect::<Vec<_>>(),
            [(1, 100), (101, 100)]
        );
        batcher.push(STDOUT, &vec![0; MAX_BYTES], 5);
        let sizes: Vec<_> = batcher.take_full().iter().map(|batch| (batch.lens.len(), batch.data.len())).collect();
        assert_eq!(sizes, [(50, 250), (1, MAX_BYTES)]);
        assert!(!batcher.is_open());
    }

    #[test]
    fn both_streams_share_one_sequence_and_times_are_differences() {
        let mut batcher = Batcher::default();
        batcher.push(STDOUT, b"a\n", 1_000);
        batcher.push(STDERR, b"b", 1_007);
        batcher.push(STDOUT, b"c", 1_005);
        batcher.flush(1_010);
        let batch = batcher.take_full().remove(0);
        assert_eq!((batch.kinds.as_slice(), batch.times_ms.as_slice()), (&[1, 2, 1][..], &[1_000, 7, -2][..]));
        let texts: Vec<_> = entries(&batch).unwrap().into_iter().map(|entry| (entry.sequence, entry.data)).collect();
        assert_eq!(texts, [(1, "a\n".into()), (2, "b".into()), (3, "c".into())]);
    }

    #[test]
    fn another_batcher_goes_on_as_if_it_were_the_same() {
        let line = |at: usize| format!("line {at}\n").into_bytes();
        let feed = |batcher: &mut Batcher, from: usize| {
            for at in from..330 {
                if at % 7 == 0 { batcher.drop_entry(STDERR, &line(at)) } else { batcher.push(STDOUT, &line(at), 1) }
            }
        };
        let mut whole = Batcher::default();
        feed(&mut whole, 0);
        let progress = whole.progress();
        assert!(progress.last_sequence == 300 && progress.taken[1] > 0, "{progress:?}");
        whole.flush(1);
        let mut resumed = Batcher::resume(&progress);
        // The first line that is not in a closed batch, found by what was taken of each stream.
        let sizes = |at: usize, stream: usize| {
            (0..at).filter(|at| (at % 7 == 0) == (stream == 1)).map(|at| line(at).len() as u64).sum::<u64>()
        };
        let from = (0..330).find(|at| [sizes(*at, 0), sizes(*at, 1)] == progress.taken).unwrap();
        feed(&mut resumed, from);
        resumed.flush(1);
        assert_eq!(resumed.figures(), whole.figures());
    }

    #[test]
    fn what_is_dropped_leaves_one_record_with_the_count() {
        let mut batcher = Batcher::default();
        batcher.push(STDOUT, b"a", 1);
        batcher.drop_entry(STDOUT, b"x");
        batcher.drop_entry(STDOUT, b"y");
        batcher.push(STDOUT, b"b", 2);
        batcher.drop_entry(STDOUT, b"z");
        batcher.flush(3);
        let batch = batcher.take_full().remove(0);
        assert_eq!(batch.kinds, [STDOUT, GAP, STDOUT, GAP]);
        let end = batcher.figures();
        assert_eq!((end.last_sequence, end.lines, end.dropped, end.bytes), (4, 2, 3, 2));
        let mut again = LogEnd::default();
        for entry in entries(&batch).unwrap() {
            account(&mut again, entry.sequence, entry.kind, &entry.data);
        }
        assert_eq!(again, end);
    }
}
