//! Batches and entries as `worker.proto` and `job.proto` define them.

use bytes::Bytes;
use hodei_proto::v1::{AttemptRef, LogBatch, LogEnd};

/// Sequence of the last entry of a batch.
#[must_use]
pub fn last_of(batch: &LogBatch) -> u64 {
    batch.first_sequence + batch.lens.len() as u64 - 1
}

/// What a batch counts for in the bounds: its data and what its columns take.
pub(super) fn weight(batch: &LogBatch) -> u64 {
    (batch.data.len() + 16 * batch.lens.len()) as u64
}

/// The batch without its entries before `from`; `None` where it does not contain `from`.
pub(super) fn starting_at(mut batch: LogBatch, from: u64) -> Option<LogBatch> {
    if from == batch.first_sequence {
        return Some(batch);
    }
    if from < batch.first_sequence || from > last_of(&batch) {
        return None;
    }
    let skip = usize::try_from(from - batch.first_sequence).ok()?;
    let bytes: usize = batch.lens[..skip].iter().map(|len| *len as usize).sum();
    let elapsed: i64 = batch.times_ms[..=skip].iter().sum();
    batch.first_sequence = from;
    batch.lens.drain(..skip);
    batch.kinds.drain(..skip);
    batch.times_ms.drain(..skip);
    if let Some(first) = batch.times_ms.first_mut() {
        *first = elapsed;
    }
    batch.data = batch.data.split_off(bytes.min(batch.data.len()));
    Some(batch)
}

/// The batch as it goes out.
#[must_use]
pub fn addressed(mut batch: LogBatch, attempt: &AttemptRef) -> LogBatch {
    batch.attempt = Some(attempt.clone());
    batch
}

/// One entry of a batch.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its sequence.
    pub sequence: u64,
    /// 1 stdout, 2 stderr, 3 gap.
    pub kind: u32,
    /// Its bytes.
    pub data: Bytes,
}

/// Takes a batch apart; `None` where its columns do not agree.
#[must_use]
pub fn entries(batch: &LogBatch) -> Option<Vec<Entry>> {
    let total: u64 = batch.lens.iter().map(|len| u64::from(*len)).sum();
    if batch.lens.len() != batch.kinds.len() || total != batch.data.len() as u64 {
        return None;
    }
    let mut at = 0;
    let pairs = batch.lens.iter().zip(&batch.kinds).zip(batch.first_sequence..);
    let entries = pairs.map(|((len, kind), sequence)| {
        let end = at + *len as usize;
        let data = batch.data.slice(at..end);
        at = end;
        Entry { sequence, kind: *kind, data }
    });
    Some(entries.collect())
}

/// Adds an entry to running figures, as `LogEnd` in `job.proto` defines them.
pub fn account(end: &mut LogEnd, sequence: u64, kind: u32, data: &[u8]) {
    let mut head = [0; 13];
    head[..8].copy_from_slice(&sequence.to_le_bytes());
    head[8] = u8::try_from(kind).unwrap_or(u8::MAX);
    head[9..].copy_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
    end.checksum = crc32c::crc32c_append(crc32c::crc32c_append(end.checksum, &head), data);
    end.last_sequence = sequence;
    if kind == super::batch::GAP {
        let count = data.try_into().map_or(0, u64::from_le_bytes);
        end.dropped += count;
    } else {
        end.lines += 1;
        end.bytes += data.len() as u64;
    }
}
