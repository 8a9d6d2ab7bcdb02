//! How batches lie in a segment file: frames with a CRC each, behind a header that says whose log it is.
//!
//! ```text
//! file   = magic "HODEILOG" | version u32 | attempt u32 | job u128 | crc32c of the above u32      (36 bytes)
//! frame  = len u32 | crc32c u32 | first_sequence u64 | count u32 | flags u32 | batch (len bytes)  (24 + len bytes)
//! ```
//! All numbers are little endian. A frame's CRC covers everything behind it; the batch is a `LogBatch` without its
//! attempt. A reader that looks for a sequence needs the 24 bytes of each frame only.

use hodei_proto::v1::LogBatch;
use hodei_state::ids::JobId;
use prost::Message as _;

use super::entries;

const MAGIC: &[u8; 8] = b"HODEILOG";
const VERSION: u32 = 1;

/// Bytes of the file's header.
pub const FILE_HEADER: u64 = 36;
/// Bytes of a frame before its batch.
pub const FRAME_HEADER: usize = 24;
/// Columns make an encoded batch larger than its data.
const MAX_FRAME_BYTES: usize = 16 * entries::MAX_BATCH_BYTES;

/// The entries came after their attempt had been freed.
pub const FLAG_LATE: u32 = 1;

/// One attempt's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogKey {
    /// The job.
    pub job: JobId,
    /// 1, 2, 3 …
    pub attempt: u32,
}

/// The first bytes of a file.
#[must_use]
pub fn file_header(key: LogKey) -> Vec<u8> {
    let mut header = Vec::with_capacity(36);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&key.attempt.to_le_bytes());
    header.extend_from_slice(&key.job.0.to_le_bytes());
    header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
    header
}

/// What stands before a frame's batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the batch.
    pub len: usize,
    crc: u32,
    /// Sequence of the first entry.
    pub first_sequence: u64,
    /// Number of entries.
    pub count: u32,
    /// [`FLAG_LATE`] or 0.
    pub flags: u32,
}

impl Header {
    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_len(&self) -> u64 {
        (FRAME_HEADER + self.len) as u64
    }

    /// Reads a header; `None` where the bytes are too few or cannot be one.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let len = word(0)? as usize;
        let first_sequence = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
        let header = Self { len, crc: word(4)?, first_sequence, count: word(16)?, flags: word(20)? };
        (len > 0 && len <= MAX_FRAME_BYTES && header.count > 0 && first_sequence > 0).then_some(header)
    }
}

/// Appends a frame to `out`.
pub fn write(batch: &LogBatch, flags: u32, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER]);
    let bare = LogBatch { attempt: None, ..batch.clone() };
    bare.encode(out).expect("a Vec takes any number of bytes");
    let len = u32::try_from(out.len() - start - FRAME_HEADER).expect("batches are bounded");
    let count = u32::try_from(batch.lens.len()).expect("batches are bounded");
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    out[start + 8..start + 16].copy_from_slice(&batch.first_sequence.to_le_bytes());
    out[start + 16..start + 20].copy_from_slice(&count.to_le_bytes());
    out[start + 20..start + 24].copy_from_slice(&flags.to_le_bytes());
    let crc = crc32c::crc32c(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Reads the frame at the beginning of `bytes`; `None` where it is cut off or damaged.
#[must_use]
pub fn read(bytes: &[u8]) -> Option<(Header, LogBatch)> {
    let header = Header::read(bytes)?;
    let end = FRAME_HEADER + header.len;
    let covered = bytes.get(8..end)?;
    if crc32c::crc32c(covered) != header.crc {
        return None;
    }
    let batch = LogBatch::decode(&bytes[FRAME_HEADER..end]).ok()?;
    entries::check(&batch).ok()?;
    (batch.first_sequence == header.first_sequence && batch.lens.len() == header.count as usize)
        .then_some((header, batch))
}
