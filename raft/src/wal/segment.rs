//! Segments: the files that hold the records.
//!
//! ```text
//! page 0: header block (salt, and the shape of the log that the segment continues from) | records … | zeros
//! ```
//! A segment is filled with zeros and synced under a temporary name, gets its header when it is needed, is synced
//! again, and takes effect by being renamed to `<LSN of its first record>.wal`. From then on it is written front to
//! back, once. The existence of a segment proves that everything before it is durable.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bincode::{Decode, Encode};
use bytes::Bytes;

use super::{
    EntryId, Lsn, OpenError, Quarantine, Vote,
    block::{self, BLOCK_BYTES, BlockError},
    fatal::Failure,
    record::{self, Found},
    shape::Shape,
};
use crate::seam::{Entropy, File, Fs};

const MAGIC: [u8; 8] = *b"HODEIWAL";
const VERSION: u32 = 1;

/// Where the records begin.
pub const FIRST_RECORD: usize = BLOCK_BYTES;

/// How much is zeroed between two syncs, so that no foreground sync waits behind a whole segment.
const FILL_BYTES: usize = 1 << 20;

/// An open segment; immutable except for the tail of the newest, so readers share it freely.
pub struct Segment<F> {
    /// The LSN that it continues from.
    pub(crate) base: Lsn,
    /// What its records' CRCs are seeded with.
    pub(crate) salt: u32,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// The file.
    pub(crate) file: F,
}

impl<F> fmt::Debug for Segment<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment after {}", self.base)
    }
}

/// A segment and which live entries lie in it, as of the last record written.
#[derive(Debug)]
pub(crate) struct Stretch<F> {
    pub(crate) segment: Arc<Segment<F>>,
    pub(crate) live: Range<u64>,
}

// Frozen.
#[derive(Encode, Decode)]
struct HeaderV1 {
    salt: u32,
    lsn: u64,
    chain: u128,
    vote: Option<(u64, u64, bool)>,
    purged: Option<(u64, u64)>,
    live_start: u64,
    live_end: u64,
}

fn encode_header(salt: u32, shape: &Shape) -> Vec<u8> {
    let header = HeaderV1 {
        salt,
        lsn: shape.lsn,
        chain: shape.chain,
        vote: shape.vote.map(|vote| (vote.term, vote.node, vote.committed)),
        purged: shape.purged.map(|id| (id.term, id.index)),
        live_start: shape.live.start,
        live_end: shape.live.end,
    };
    block::encode(MAGIC, VERSION, &header)
}

fn decode_header(bytes: &[u8]) -> Result<(u32, Shape), BlockError> {
    let header: HeaderV1 = block::decode(MAGIC, VERSION, bytes)?;
    let shape = Shape {
        lsn: header.lsn,
        chain: header.chain,
        vote: header.vote.map(|(term, node, committed)| Vote { term, node, committed }),
        purged: header.purged.map(|(term, index)| EntryId { term, index }),
        live: header.live_start..header.live_end,
    };
    Ok((header.salt, shape))
}

/// The name of the segment that continues from `base`.
#[must_use]
pub fn name(base: Lsn) -> String {
    format!("{:020}.wal", base + 1)
}

/// The LSN that a segment of this name continues from.
#[must_use]
pub fn base_of(name: &str) -> Option<Lsn> {
    let digits = name.strip_suffix(".wal").filter(|digits| digits.len() == 20)?;
    digits.parse::<u64>().ok()?.checked_sub(1)
}

/// A segment that only lacks its header and its name.
pub struct Prepared<F> {
    file: F,
    path: PathBuf,
    size: u64,
    salt: u32,
}

/// Fills a segment of at least `options_bytes`, and room for a record of `record_bytes`, with zeros, durably.
///
/// # Errors
/// If the disk refuses.
pub fn prepare<D: Fs>(
    fs: &D,
    dir: &Path,
    entropy: &dyn Entropy,
    segment_bytes: u64,
    record_bytes: u64,
) -> Result<Prepared<D::File>, Failure> {
    // A name of its own: the segment before may still wait for its final one.
    let path = dir.join(format!("{:016x}.tmp", entropy.next_u64()));
    let size = segment_bytes.max(FIRST_RECORD as u64 + record_bytes);
    let file = fs.create(&path).map_err(Failure::write("create a segment"))?;
    let zeros = vec![0; FILL_BYTES.min(usize::try_from(size).unwrap_or(FILL_BYTES))];
    let mut at = 0;
    while at < size {
        let len = (size - at).min(zeros.len() as u64);
        file.write_at(&zeros[..len as usize], at).map_err(Failure::write("fill a segment with zeros"))?;
        file.sync_data().map_err(Failure::sync("fdatasync of a new segment"))?;
        at += len;
    }
    Ok(Prepared { file, path, size, salt: entropy.next_u64() as u32 })
}

impl<F: File> Prepared<F> {
    /// Removes it unused.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn discard<D: Fs<File = F>>(self, fs: &D) -> Result<(), Failure> {
        fs.remove(&self.path).map_err(Failure::write("remove an unused segment"))
    }

    /// The salt for its records.
    pub(crate) fn salt(&self) -> u32 {
        self.salt
    }

    /// Writes bytes before the segment takes effect.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Failure> {
        self.file.write_at(bytes, offset).map_err(Failure::write("write into a new segment"))
    }

    /// Gives it its header and its name; it takes effect, durably.
    pub(crate) fn install<D: Fs<File = F>>(self, fs: &D, dir: &Path, shape: &Shape) -> Result<Segment<F>, Failure> {
        self.write_at(&encode_header(self.salt, shape), 0)?;
        self.file.sync_data().map_err(Failure::sync("fdatasync of a new segment"))?;
        let path = dir.join(name(shape.lsn));
        hodei_state::failpoint!("wal::before-segment-rename");
        fs.rename(&self.path, &path).map_err(Failure::write("rename a new segment"))?;
        fs.sync_dir(dir).map_err(Failure::sync("fsync of the log's directory"))?;
        Ok(Segment { base: shape.lsn, salt: self.salt, size: self.size, file: self.file })
    }
}

/// Removes a segment, durably, so that segments vanish oldest first whatever happens.
///
/// # Errors
/// If the disk refuses.
pub fn remove<D: Fs>(fs: &D, dir: &Path, base: Lsn) -> Result<(), Failure> {
    fs.remove(&dir.join(name(base))).map_err(Failure::write("remove a segment"))?;
    fs.sync_dir(dir).map_err(Failure::sync("fsync of the log's directory"))
}

/// A segment as found on disk, header verified, with all its bytes.
pub(crate) struct Loaded<F> {
    pub(crate) segment: Arc<Segment<F>>,
    pub(crate) shape: Shape,
    pub(crate) bytes: Bytes,
}

/// Reads a whole segment.
pub(crate) fn load<D: Fs>(fs: &D, dir: &Path, base: Lsn) -> Result<Loaded<D::File>, OpenError> {
    let name = name(base);
    let read = || {
        let file = fs.open(&dir.join(&name))?;
        let size = file.size()?;
        let mut bytes = vec![0; usize::try_from(size).map_err(std::io::Error::other)?];
        file.read_at(&mut bytes, 0)?;
        Ok((file, size, bytes))
    };
    let (file, size, bytes) = read().map_err(OpenError::io(format!("read segment {name}")))?;
    match decode_header(&bytes) {
        Ok((salt, shape)) if shape.lsn == base => {
            Ok(Loaded { segment: Arc::new(Segment { base, salt, size, file }), shape, bytes: bytes.into() })
        }
        Ok(_) | Err(BlockError::Damaged) => {
            Err(OpenError::quarantined(Quarantine::Damaged, format!("the header of segment {name} is damaged")))
        }
        Err(BlockError::Newer(version)) => {
            let what = format!("segment {name} is of version {version}, this program knows {VERSION}");
            Err(OpenError::quarantined(Quarantine::Newer, what))
        }
    }
}

/// Walks a segment's records in order and stops at the first that is not the next of this history.
pub(crate) struct Scan {
    bytes: Bytes,
    offset: usize,
    salt: u32,
}

impl Scan {
    pub(crate) fn new<F>(loaded: &Loaded<F>) -> Self {
        Self { bytes: loaded.bytes.clone(), offset: FIRST_RECORD, salt: loaded.segment.salt }
    }

    /// The record that follows `lsn` and `chain`, with its offset.
    pub(crate) fn next(&mut self, lsn: Lsn, chain: u128) -> Option<(usize, Found)> {
        let found = record::read(&self.bytes, self.offset, self.salt).ok()?;
        if found.lsn != lsn + 1 || !found.follows(chain) {
            return None;
        }
        let offset = self.offset;
        self.offset += found.len();
        Some((offset, found))
    }

    /// Where the last record that was returned ends.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by the first version; it must decode for ever.
    #[test]
    fn a_header_on_disk_never_changes() {
        let shape = Shape {
            lsn: 1_000,
            chain: 0x0123_4567_89ab_cdef,
            vote: Some(Vote { term: 7, node: 3, committed: true }),
            purged: Some(EntryId { term: 6, index: 200 }),
            live: 201..900,
        };
        let bytes = encode_header(0x0102_0304, &shape);
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let hex: String = bytes[..used].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "484f44454957414c010000004a44a36a1c000000fc04030201fbe803fdefcdab8967452301010703010106c8c9fb8403"
        );
        assert_eq!(decode_header(&bytes), Ok((0x0102_0304, shape)));
    }

    #[test]
    fn names_say_the_first_record() {
        assert_eq!(name(41), "00000000000000000042.wal");
        assert_eq!(base_of(&name(41)), Some(41));
        for other in ["mark", "42.wal", "00000000000000000000.wal", "0000000000000000004x.wal", "x.tmp"] {
            assert_eq!(base_of(other), None, "{other}");
        }
    }
}
