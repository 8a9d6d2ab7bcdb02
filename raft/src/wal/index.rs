//! Where the entries are: the in-memory picture of the log that readers use.
//!
//! The index runs ahead of the disk: it shows what was submitted, in order. Entries that the writer has not yet placed
//! in a segment have no place, and whoever submitted them keeps them readable.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    EntryId, Lsn,
    record::{self, Record},
    segment::Segment,
    shape::{Shape, clip},
};
use crate::seam::File;

/// How far apart two records may lie that one read fetches together.
const GAP_BYTES: u64 = 4096;
/// At most so much is read at once, unless one record is larger.
const RUN_BYTES: u64 = 1 << 20;

/// One entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) term: u64,
    pub(crate) lsn: Lsn,
    /// Bytes in the segment; an estimate until the entry is placed.
    pub(crate) len: u32,
    pub(crate) place: Option<Place>,
}

/// Where a record begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The base of its segment.
    pub(crate) segment: Lsn,
    pub(crate) offset: u32,
}

/// An entry that the writer has placed.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) index: u64,
    pub(crate) lsn: Lsn,
    pub(crate) len: u32,
    pub(crate) place: Place,
}

/// The picture of the log.
#[derive(Debug)]
pub struct Index<F> {
    pub(crate) lsn: Lsn,
    pub(crate) purged: Option<EntryId>,
    pub(crate) first: u64,
    pub(crate) slots: VecDeque<Slot>,
    pub(crate) segments: BTreeMap<Lsn, Arc<Segment<F>>>,
    pub(crate) bytes: u64,
}

impl<F> Index<F> {
    pub(crate) fn new() -> Self {
        Self { lsn: 0, purged: None, first: 0, slots: VecDeque::new(), segments: BTreeMap::new(), bytes: 0 }
    }

    /// The present indexes.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.first..self.first + self.slots.len() as u64
    }

    /// The last entry, or the purge point if there is none.
    #[must_use]
    pub fn last(&self) -> Option<EntryId> {
        let index = self.range().end.wrapping_sub(1);
        self.slots.back().map(|slot| EntryId { term: slot.term, index }).or(self.purged)
    }

    pub(crate) fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    /// Whether the records can follow.
    pub(crate) fn check(&self, records: &[Record]) -> io::Result<()> {
        let mut shape = Shape { lsn: self.lsn, chain: 0, vote: None, purged: self.purged, live: self.range() };
        let invalid = |violation| io::Error::new(io::ErrorKind::InvalidInput, violation);
        records.iter().try_for_each(|record| shape.accept(record, 0).map_err(invalid))
    }

    /// Advances over a record.
    pub(crate) fn advance(&mut self, record: &Record) {
        self.lsn += 1;
        match record {
            Record::Append { id, .. } => {
                let slot = Slot { term: id.term, lsn: self.lsn, len: record.weight() as u32, place: None };
                self.push(id.index, slot);
            }
            Record::Vote(_) => {}
            Record::Truncate { from } => self.truncate(*from),
            Record::Purge { upto } => self.purge(*upto),
        }
    }

    pub(crate) fn push(&mut self, index: u64, slot: Slot) {
        if self.slots.is_empty() {
            self.first = index;
        }
        self.bytes += u64::from(slot.len);
        self.slots.push_back(slot);
    }

    fn truncate(&mut self, from: u64) {
        while self.range().end > from {
            let Some(slot) = self.slots.pop_back() else { return };
            self.bytes -= u64::from(slot.len);
        }
    }

    fn purge(&mut self, upto: EntryId) {
        self.purged = Some(upto);
        while self.first <= upto.index {
            let Some(slot) = self.slots.pop_front() else { break };
            self.first += 1;
            self.bytes -= u64::from(slot.len);
        }
        if self.slots.is_empty() {
            self.first = self.first.max(upto.index + 1);
        }
    }

    /// Notes where an entry lies, unless it is gone by now.
    pub(crate) fn place(&mut self, placed: &Placed) {
        let Some(at) = placed.index.checked_sub(self.first) else { return };
        let Some(slot) = self.slots.get_mut(at as usize).filter(|slot| slot.lsn == placed.lsn) else { return };
        self.bytes = self.bytes - u64::from(slot.len) + u64::from(placed.len);
        slot.len = placed.len;
        slot.place = Some(placed.place);
    }

    /// The beginning of `range` that is present and fits into `max_bytes`; at least one entry if any is present.
    pub(crate) fn fitting(&self, range: Range<u64>, max_bytes: u64) -> Range<u64> {
        let range = clip(&range, self.range());
        let mut bytes = 0;
        let mut end = range.start;
        while end < range.end {
            bytes += self.slot(end).map_or(0, |slot| u64::from(slot.len));
            if bytes > max_bytes && end > range.start {
                break;
            }
            end += 1;
        }
        range.start..end
    }

    /// The last present entry of each term in `range`.
    pub(crate) fn term_ends(&self, range: Range<u64>) -> Vec<EntryId> {
        let mut ends: Vec<EntryId> = Vec::new();
        for index in clip(&range, self.range()) {
            let Some(slot) = self.slot(index) else { break };
            if ends.last().is_some_and(|before| before.term == slot.term) {
                ends.pop();
            }
            ends.push(EntryId { term: slot.term, index });
        }
        ends
    }

    /// Plans the reads for a range of present, placed entries.
    ///
    /// # Errors
    /// `InvalidInput` if an entry is not present or not placed.
    pub fn plan(&self, range: Range<u64>) -> io::Result<Plan<F>> {
        let mut runs: Vec<Run<F>> = Vec::new();
        for index in range {
            let slot = self.slot(index).ok_or_else(|| bad(index, "is not in the log"))?;
            let place = slot.place.ok_or_else(|| bad(index, "is not written yet"))?;
            let item = Item { index, term: slot.term, lsn: slot.lsn, offset: place.offset };
            let start = u64::from(place.offset);
            let end = start + u64::from(slot.len);
            match runs.last_mut().filter(|run| run.joins(place.segment, start, end)) {
                Some(run) => {
                    run.span.end = end;
                    run.items.push(item);
                }
                None => {
                    let segment = self.segments.get(&place.segment).ok_or_else(|| bad(index, "has no segment"))?;
                    runs.push(Run { segment: segment.clone(), span: start..end, items: vec![item] });
                }
            }
        }
        Ok(Plan { runs })
    }
}

fn bad(index: u64, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("entry {index} {what}"))
}

/// Reads to do, independent of what happens to the log meanwhile.
#[derive(Debug)]
pub struct Plan<F> {
    runs: Vec<Run<F>>,
}

#[derive(Debug)]
struct Run<F> {
    segment: Arc<Segment<F>>,
    span: Range<u64>,
    items: Vec<Item>,
}

#[derive(Debug)]
struct Item {
    index: u64,
    term: u64,
    lsn: Lsn,
    offset: u32,
}

impl<F> Run<F> {
    fn joins(&self, segment: Lsn, start: u64, end: u64) -> bool {
        self.segment.base == segment
            && (self.span.end..=self.span.end + GAP_BYTES).contains(&start)
            && end - self.span.start <= RUN_BYTES
    }
}

impl<F: File> Plan<F> {
    /// Reads and verifies the entries. Blocks: call it where blocking is allowed.
    ///
    /// # Errors
    /// `InvalidData` if a record is not what was written; the node must stop, and will find out more when it opens.
    pub fn read(&self) -> io::Result<Vec<(EntryId, Bytes)>> {
        let mut entries = Vec::new();
        for run in &self.runs {
            let mut bytes = vec![0; (run.span.end - run.span.start) as usize];
            run.segment.file.read_at(&mut bytes, run.span.start)?;
            let bytes = Bytes::from(bytes);
            for item in &run.items {
                entries.push(item.extract(&bytes, run)?);
            }
        }
        Ok(entries)
    }
}

impl Item {
    fn extract<F>(&self, bytes: &Bytes, run: &Run<F>) -> io::Result<(EntryId, Bytes)> {
        let at = (u64::from(self.offset) - run.span.start) as usize;
        let found = record::read(bytes, at, run.segment.salt).ok().filter(|found| found.lsn == self.lsn);
        let expected = EntryId { term: self.term, index: self.index };
        match found.and_then(|found| Record::decode(found.kind, &found.payload)) {
            Some(Record::Append { id, body }) if id == expected => Ok((id, body.to_bytes())),
            _ => {
                let what = format!("entry {expected} at offset {} of {:?} is damaged", self.offset, run.segment);
                Err(io::Error::new(io::ErrorKind::InvalidData, what))
            }
        }
    }
}
