//! What can be said of a batch of log entries without knowing where it came from or where it goes.
//!
//! Entry `i` of a batch has sequence `first_sequence + i`, `kinds[i]` and the next `lens[i]` bytes of `data`. A gap
//! entry stands for lines that are lost. One that a gateway writes has the sequence of the last lost entry, so that
//! what follows it continues from there; it is the only entry before which sequences may be missing.

use bytes::Bytes;
use hodei_proto::v1::LogBatch;

/// Standard output.
pub const STDOUT: u32 = 1;
/// Standard error.
pub const STDERR: u32 = 2;
/// Lines that are lost; the data is their number, u64 LE.
pub const GAP: u32 = 3;

/// No honest batch is larger: agents send at 64 KiB, and one piece of a line is at most 64 KiB.
pub const MAX_BATCH_BYTES: usize = 1 << 20;

/// Why a batch is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed log batch: {0}")]
pub struct Malformed(pub &'static str);

/// Checks that the columns fit each other.
///
/// # Errors
/// They do not, or the batch is empty or too large.
pub fn check(batch: &LogBatch) -> Result<(), Malformed> {
    if batch.first_sequence == 0 {
        return Err(Malformed("sequences begin at 1"));
    }
    if batch.lens.is_empty() {
        return Err(Malformed("no entries"));
    }
    if batch.kinds.len() != batch.lens.len() || !matches!(batch.times_ms.len(), n if n == 0 || n == batch.lens.len()) {
        return Err(Malformed("columns of different lengths"));
    }
    if batch.data.len() > MAX_BATCH_BYTES || batch.lens.len() > MAX_BATCH_BYTES {
        return Err(Malformed("too large"));
    }
    let bytes: u64 = batch.lens.iter().map(|&len| u64::from(len)).sum();
    if bytes != batch.data.len() as u64 {
        return Err(Malformed("lengths do not add up to the data"));
    }
    for (kind, len) in batch.kinds.iter().zip(&batch.lens) {
        match *kind {
            STDOUT | STDERR => {}
            GAP if *len == 8 => {}
            GAP => return Err(Malformed("a gap carries one u64")),
            _ => return Err(Malformed("unknown kind of entry")),
        }
    }
    if batch.first_sequence.checked_add(batch.lens.len() as u64).is_none() {
        return Err(Malformed("sequence out of range"));
    }
    Ok(())
}

/// Sequence of the last entry. The batch must not be empty.
#[must_use]
pub fn last_sequence(batch: &LogBatch) -> u64 {
    batch.first_sequence + batch.lens.len() as u64 - 1
}

/// Whether entries are missing from `next` to the batch, without a gap at its beginning that stands for all of them.
#[must_use]
pub fn leaves_hole(batch: &LogBatch, next: u64) -> bool {
    let missing = batch.first_sequence.saturating_sub(next);
    let stands_for = || entries(batch).next().map_or(0, |first| first.lost());
    missing > 0 && stands_for() <= missing
}

/// The batch without entries before `from`; `None` where nothing is left.
#[must_use]
pub fn from_sequence(batch: LogBatch, from: u64) -> Option<LogBatch> {
    if from <= batch.first_sequence {
        return Some(batch);
    }
    if from > last_sequence(&batch) {
        return None;
    }
    let skip = usize::try_from(from - batch.first_sequence).ok()?;
    Some(skip_entries(batch, skip))
}

/// The batch from the first entry on that is stamped at or after `since_ms`; `None` where there is none.
#[must_use]
pub fn since(batch: LogBatch, since_ms: i64) -> Option<LogBatch> {
    let mut at = 0i64;
    let position = batch.times_ms.iter().position(|delta| {
        at = at.saturating_add(*delta);
        at >= since_ms
    })?;
    Some(skip_entries(batch, position))
}

fn skip_entries(batch: LogBatch, skip: usize) -> LogBatch {
    if skip == 0 {
        return batch;
    }
    let bytes: usize = batch.lens[..skip].iter().map(|&len| len as usize).sum();
    let mut times_ms = batch.times_ms.get(skip..).unwrap_or_default().to_vec();
    if let Some(first) = times_ms.first_mut() {
        *first = batch.times_ms[..=skip].iter().fold(0i64, |sum, delta| sum.saturating_add(*delta));
    }
    LogBatch {
        attempt: batch.attempt,
        first_sequence: batch.first_sequence + skip as u64,
        lens: batch.lens[skip..].to_vec(),
        kinds: batch.kinds[skip..].to_vec(),
        data: batch.data.slice(bytes..),
        times_ms,
    }
}

/// The gap that stands for the entries `from..before`, which nobody has any more.
#[must_use]
pub fn gap(from: u64, before: u64, now_ms: i64) -> LogBatch {
    LogBatch {
        attempt: None,
        first_sequence: before - 1,
        lens: vec![8],
        kinds: vec![GAP],
        data: Bytes::copy_from_slice(&(before - from).to_le_bytes()),
        times_ms: vec![now_ms],
    }
}

/// An entry of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its sequence.
    pub sequence: u64,
    /// [`STDOUT`], [`STDERR`] or [`GAP`].
    pub kind: u32,
    /// Its bytes.
    pub data: &'a [u8],
}

impl Entry<'_> {
    /// How many lines a gap stands for; 0 where nobody knows, and for output.
    #[must_use]
    pub fn lost(&self) -> u64 {
        match <[u8; 8]>::try_from(self.data) {
            Ok(count) if self.kind == GAP => u64::from_le_bytes(count),
            _ => 0,
        }
    }
}

/// The entries of a batch that [`check`] has passed.
pub fn entries(batch: &LogBatch) -> impl Iterator<Item = Entry<'_>> {
    let mut rest: &[u8] = &batch.data;
    batch.kinds.iter().zip(&batch.lens).zip(batch.first_sequence..).map(move |((&kind, &len), sequence)| {
        let (data, after) = rest.split_at((len as usize).min(rest.len()));
        rest = after;
        Entry { sequence, kind, data }
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A batch of lines on standard output, each stamped 10 ms after the one before.
    pub fn lines(first_sequence: u64, lines: &[&str]) -> LogBatch {
        LogBatch {
            attempt: None,
            first_sequence,
            lens: lines.iter().map(|line| u32::try_from(line.len()).unwrap()).collect(),
            kinds: vec![STDOUT; lines.len()],
            data: Bytes::from(lines.concat()),
            times_ms: (0..lines.len()).map(|at| if at == 0 { 1_000 } else { 10 }).collect(),
        }
    }

    #[test]
    fn a_batch_is_cut_at_a_sequence() {
        let batch = lines(5, &["a\n", "bb\n", "ccc\n"]);
        assert_eq!(from_sequence(batch.clone(), 3), Some(batch.clone()));
        let cut = from_sequence(batch.clone(), 6).unwrap();
        assert_eq!(check(&cut), Ok(()));
        assert_eq!((cut.first_sequence, &cut.data[..], cut.times_ms), (6, &b"bb\nccc\n"[..], vec![1_010, 10]));
        assert_eq!(from_sequence(batch, 8), None);
    }

    #[test]
    fn a_batch_is_cut_at_a_time() {
        let batch = lines(1, &["a\n", "b\n", "c\n"]);
        assert_eq!(since(batch.clone(), 1_011).unwrap().first_sequence, 3);
        assert_eq!(since(batch.clone(), 0).unwrap(), batch);
        assert_eq!(since(batch, 2_000), None);
    }

    #[test]
    fn a_gap_stands_for_what_is_missing_before_it() {
        let gap = gap(3, 10, 0);
        assert_eq!(check(&gap), Ok(()));
        assert_eq!((gap.first_sequence, last_sequence(&gap)), (9, 9));
        assert_eq!(entries(&gap).next().unwrap().lost(), 7);
        assert!([3, 4, 9, 10].iter().all(|next| !leaves_hole(&gap, *next)));
        assert!(leaves_hole(&gap, 2), "one entry more is missing");
        assert!(leaves_hole(&lines(3, &["c\n"]), 2) && !leaves_hole(&lines(3, &["c\n"]), 3));
    }

    #[test]
    fn columns_that_do_not_fit_are_refused() {
        let good = lines(1, &["a\n", "b\n"]);
        assert_eq!(check(&good), Ok(()));
        for bad in [
            LogBatch { first_sequence: 0, ..good.clone() },
            LogBatch { kinds: vec![STDOUT], ..good.clone() },
            LogBatch { kinds: vec![STDOUT, 9], ..good.clone() },
            LogBatch { kinds: vec![STDOUT, GAP], ..good.clone() },
            LogBatch { lens: vec![2, 3], ..good.clone() },
            LogBatch { lens: vec![], kinds: vec![], ..good.clone() },
            LogBatch { times_ms: vec![1], ..good.clone() },
            LogBatch { first_sequence: u64::MAX, ..good },
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }
}
