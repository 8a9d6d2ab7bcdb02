//! A log on disk: files of frames, each a batch with its length and CRC-32C. Nothing is synced line by line; the
//! whole is synced once, before the result that promises it.
//!
//! A frame: length (u32 LE), CRC-32C of the payload (u32 LE), payload (an encoded `LogBatch` without its attempt).
//! A file is named after its first sequence. What a crash left half written at the end is cut off on open.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use hodei_proto::v1::LogBatch;
use prost::Message as _;

use super::last_of;

const HEAD: usize = 8;
/// A frame larger than this is damage.
const MAX_FRAME: u32 = 1 << 20;
/// A new file is begun at this size.
const SEGMENT_BYTES: u64 = 32 << 20;
/// Beyond this the oldest file goes.
const KEEP_BYTES: u64 = 1 << 30;
/// Distance of the index's points.
const POINT_EVERY: u64 = 256 << 10;

/// Where a frame was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its file, by the file's first sequence.
    segment: u64,
    first: u64,
    offset: u64,
    len: u64,
}

/// Where to begin reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    path: PathBuf,
    offset: u64,
    end: u64,
}

#[derive(Debug)]
struct Segment {
    first: u64,
    len: u64,
    points: Vec<(u64, u64)>,
}

/// Which sequences lie where.
#[derive(Debug, Default)]
pub struct Index {
    dir: PathBuf,
    segments: VecDeque<Segment>,
}

impl Index {
    /// The oldest sequence on disk.
    #[must_use]
    pub fn first_available(&self) -> Option<u64> {
        self.segments.front().map(|segment| segment.first)
    }

    /// Notes a frame that has been written.
    pub fn note(&mut self, placed: Placed) {
        let Placed { segment, first, offset, len } = placed;
        if self.segments.back().is_none_or(|last| last.first != segment) {
            self.segments.push_back(Segment { first: segment, len: 0, points: Vec::new() });
        }
        let Some(last) = self.segments.back_mut() else { return };
        last.len = offset + len;
        if last.points.last().is_none_or(|(_, point)| offset >= point + POINT_EVERY) {
            last.points.push((first, offset));
        }
    }

    /// Where to look for `from`.
    #[must_use]
    pub fn locate(&self, from: u64) -> Option<Location> {
        let at = self.segments.partition_point(|segment| segment.first <= from).checked_sub(1)?;
        let segment = &self.segments[at];
        let point = segment.points.partition_point(|(first, _)| *first <= from).checked_sub(1)?;
        let path = segment_path(&self.dir, segment.first);
        Some(Location { path, offset: segment.points[point].1, end: segment.len })
    }

    /// The first sequence of the next file.
    #[must_use]
    pub fn next_file_after(&self, from: u64) -> Option<u64> {
        let at = self.segments.partition_point(|segment| segment.first <= from);
        self.segments.get(at).map(|segment| segment.first)
    }

    /// Gives up the oldest files while there is too much; returns them for removal.
    pub fn over_bound(&mut self) -> Vec<PathBuf> {
        let mut total: u64 = self.segments.iter().map(|segment| segment.len).sum();
        let mut gone = Vec::new();
        while total > KEEP_BYTES && self.segments.len() > 1 {
            if let Some(oldest) = self.segments.pop_front() {
                total -= oldest.len;
                gone.push(segment_path(&self.dir, oldest.first));
            }
        }
        gone
    }
}

fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("spool-{first:020}"))
}

/// Appends to the spool. Blocking.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    file: Option<File>,
    segment: u64,
    len: u64,
    buffer: Vec<u8>,
}

impl Writer {
    /// A new spool in `dir`; no file before the first entry.
    #[must_use]
    pub fn new(dir: &Path) -> (Self, Index) {
        let writer = Self { dir: dir.to_owned(), file: None, segment: 0, len: 0, buffer: Vec::new() };
        (writer, Index { dir: dir.to_owned(), segments: VecDeque::new() })
    }

    /// Appends whole batches. After an error nothing of them is there, and the call may be repeated.
    pub fn append(&mut self, batches: &[LogBatch]) -> io::Result<Vec<Placed>> {
        let Some(first) = batches.first() else { return Ok(Vec::new()) };
        if self.file.is_none() || self.len >= SEGMENT_BYTES {
            self.begin(first.first_sequence)?;
        }
        self.buffer.clear();
        let mut placed = Vec::with_capacity(batches.len());
        for batch in batches {
            let offset = self.len + self.buffer.len() as u64;
            let len = frame(batch, &mut self.buffer);
            placed.push(Placed { segment: self.segment, first: batch.first_sequence, offset, len });
        }
        let file = self.file.as_mut().expect("begun above");
        if let Err(error) = file.write_all(&self.buffer) {
            // Whatever arrived of it is cut off again, so that a repetition continues at a frame's boundary.
            file.set_len(self.len)?;
            file.seek(SeekFrom::Start(self.len))?;
            return Err(error);
        }
        self.len += self.buffer.len() as u64;
        self.buffer.shrink_to(256 << 10);
        Ok(placed)
    }

    /// Makes everything appended durable.
    pub fn sync(&mut self) -> io::Result<()> {
        match &self.file {
            Some(file) => {
                file.sync_all()?;
                crate::disk::sync_dir(&self.dir)
            }
            None => Ok(()),
        }
    }

    fn begin(&mut self, first: u64) -> io::Result<()> {
        if let Some(file) = self.file.take() {
            file.sync_all()?;
        }
        let path = segment_path(&self.dir, first);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        self.file = Some(file);
        self.segment = first;
        self.len = 0;
        Ok(())
    }
}

fn frame(batch: &LogBatch, out: &mut Vec<u8>) -> u64 {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    batch.encode_raw(out);
    let payload = &out[start + HEAD..];
    let len = u32::try_from(payload.len()).expect("a batch is about 64 KiB");
    let crc = crc32c::crc32c(payload);
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    out[start + 4..start + HEAD].copy_from_slice(&crc.to_le_bytes());
    (out.len() - start) as u64
}

/// Reads batches that contain `from` and what follows, about `budget` bytes. Blocking.
pub fn read(place: &Location, from: u64, budget: u64) -> io::Result<Vec<LogBatch>> {
    let mut file = File::open(&place.path)?;
    file.seek(SeekFrom::Start(place.offset))?;
    let mut reader = BufReader::with_capacity(64 << 10, file.take(place.end - place.offset));
    let (mut batches, mut taken) = (Vec::new(), 0);
    while taken < budget {
        let Some((batch, len)) = next_frame(&mut reader)? else { break };
        if last_of(&batch) >= from {
            taken += len;
            batches.push(batch);
        }
    }
    Ok(batches)
}

/// The next frame and its length on disk; `None` at the end or where it is torn.
fn next_frame(reader: &mut impl io::Read) -> io::Result<Option<(LogBatch, u64)>> {
    let mut head = [0; HEAD];
    if !filled(reader, &mut head)? {
        return Ok(None);
    }
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (len, crc) = (word(0), word(4));
    if len == 0 || len > MAX_FRAME {
        return Ok(None);
    }
    let mut payload = vec![0; len as usize];
    if !filled(reader, &mut payload)? || (crc32c::crc32c(&payload) != crc && !crate::armed!("bug::spool-unchecked")) {
        return Ok(None);
    }
    let batch = LogBatch::decode(bytes::Bytes::from(payload)).ok().filter(|batch| !batch.lens.is_empty());
    Ok(batch.map(|batch| (batch, (HEAD as u64) + u64::from(len))))
}

fn filled(reader: &mut impl io::Read, into: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a spool that another process left: its index and its last sequence. A torn end is cut off, and what lies beyond
/// `upto`. Blocking.
pub fn recover(dir: &Path, upto: u64) -> io::Result<(Index, u64)> {
    let mut firsts = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if let Some(first) = name.to_str().and_then(|name| name.strip_prefix("spool-")).and_then(|n| n.parse().ok()) {
            firsts.push(first);
        }
    }
    firsts.sort_unstable();
    let mut index = Index { dir: dir.to_owned(), segments: VecDeque::new() };
    let mut last = firsts.first().map_or(0, |first: &u64| first - 1);
    for segment in firsts {
        if segment != last + 1 || segment > upto {
            // Whoever goes on may begin a file of the same name.
            fs::remove_file(segment_path(dir, segment))?;
            continue;
        }
        last = recover_segment(dir, segment, last, upto, &mut index)?;
    }
    Ok((index, last))
}

fn recover_segment(dir: &Path, segment: u64, mut last: u64, upto: u64, index: &mut Index) -> io::Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(segment_path(dir, segment))?;
    let mut reader = BufReader::with_capacity(256 << 10, &file);
    let mut offset = 0;
    while let Some((batch, len)) = next_frame(&mut reader)? {
        if batch.first_sequence != last + 1 || last_of(&batch) > upto {
            break;
        }
        last = last_of(&batch);
        index.note(Placed { segment, first: batch.first_sequence, offset, len });
        offset += len;
    }
    file.set_len(offset)?;
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::{
        super::batch::{Batcher, STDOUT},
        *,
    };

    fn batches(count: usize) -> Vec<LogBatch> {
        let mut batcher = Batcher::default();
        for line in 0..count {
            batcher.push(STDOUT, format!("line {line}\n").as_bytes(), 1);
        }
        batcher.flush(1);
        batcher.take_full()
    }

    #[test]
    fn what_was_appended_is_read_back_from_any_sequence() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, mut index) = Writer::new(dir.path());
        let all = batches(5_000);
        for placed in writer.append(&all).unwrap() {
            index.note(placed);
        }
        for from in [1, 2, 100, 101, 2_345, 5_000] {
            let read = read(&index.locate(from).unwrap(), from, u64::MAX).unwrap();
            assert!(read[0].first_sequence <= from && last_of(&read[0]) >= from);
            assert_eq!(last_of(read.last().unwrap()), 5_000);
        }
        let (again, last) = recover(dir.path(), u64::MAX).unwrap();
        assert_eq!((again.locate(4_000), last), (index.locate(4_000), 5_000));
    }

    #[test]
    fn what_was_never_told_is_cut_off_and_can_be_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = Writer::new(dir.path());
        let all = batches(500);
        writer.append(&all).unwrap();
        let (_, last) = recover(dir.path(), 300).unwrap();
        assert_eq!(last, 300);
        let (mut writer, _) = Writer::new(dir.path());
        writer.append(&all[3..]).unwrap();
        let (index, last) = recover(dir.path(), u64::MAX).unwrap();
        assert_eq!(last, 500);
        assert_eq!(read(&index.locate(300).unwrap(), 300, 1).unwrap().len(), 1);
        assert_eq!(recover(dir.path(), 300).unwrap().1, 300);
        assert!(!segment_path(dir.path(), 301).exists());
    }

    #[test]
    fn a_torn_or_damaged_end_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = Writer::new(dir.path());
        let placed = writer.append(&batches(300)).unwrap();
        let path = segment_path(dir.path(), 1);
        let whole = fs::read(&path).unwrap();
        for cut in [whole.len() - 1, usize::try_from(placed[2].offset).unwrap() + 3] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(recover(dir.path(), u64::MAX).unwrap().1, 200);
            assert_eq!(fs::metadata(&path).unwrap().len(), placed[2].offset);
        }
        let mut damaged = whole;
        damaged[usize::try_from(placed[1].offset).unwrap() + 20] ^= 1;
        fs::write(&path, damaged).unwrap();
        assert_eq!(recover(dir.path(), u64::MAX).unwrap().1, 100);
    }
}
