//! The engine: writes groups of records into segments. Knows no threads; [`super::pipeline`] drives it.

use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use super::{
    EntryId, Lsn,
    fatal::Failure,
    index::{Place, Placed},
    mark::Mark,
    record::{self, HEADER_BYTES, Record},
    segment::{FIRST_RECORD, Prepared, Segment, Stretch},
    shape::{Shape, clip},
};
use crate::seam::{File, Fs};

/// Writes at the end of the log.
pub struct Engine<F: Fs> {
    pub(crate) fs: F,
    pub(crate) dir: PathBuf,
    pub(crate) shape: Shape,
    /// All segments, oldest first; the last one is written to.
    pub(crate) stretches: VecDeque<Stretch<F::File>>,
    /// Where the next write goes.
    pub(crate) offset: usize,
    /// Encoded and not yet written.
    pub(crate) buffer: Vec<u8>,
}

/// A group that is durable in the segments, and may be acknowledged once `mark` is.
#[derive(Debug)]
pub struct Written<F> {
    /// What to mark.
    pub mark: Mark,
    /// Where its entries lie.
    pub(crate) placed: Vec<Placed>,
    /// Segments that came into being.
    pub(crate) opened: Vec<Arc<Segment<F>>>,
    /// The bases of segments that hold nothing alive any more: to remove, oldest first, once the mark is durable.
    pub freed: Vec<Lsn>,
}

impl<F: Fs> Engine<F> {
    /// The last record written.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Writes the records and makes them durable. `prepare` gives a segment with room for a record of so many bytes.
    ///
    /// # Errors
    /// If the disk refuses, after which the process must end.
    ///
    /// # Panics
    /// If a record cannot follow the ones before it: whoever submits checks that first.
    pub fn write<'r>(
        &mut self,
        records: impl IntoIterator<Item = &'r Record>,
        mut prepare: impl FnMut(u64) -> Result<Prepared<F::File>, Failure>,
    ) -> Result<Written<F::File>, Failure> {
        let mut placed = Vec::new();
        let mut opened = Vec::new();
        for record in records {
            let mut start = self.buffer.len();
            let chain = record.encode(self.shape.lsn + 1, self.shape.chain, &mut self.buffer);
            if (self.offset + self.buffer.len()) as u64 > self.active().size {
                let encoded = self.buffer.split_off(start);
                self.flush()?;
                opened.push(self.roll(prepare(encoded.len() as u64)?)?);
                self.buffer = encoded;
                start = 0;
            }
            let salt = self.active().salt;
            record::seal(&mut self.buffer[start..], salt);
            self.shape.accept(record, chain).expect("submitted records follow each other");
            if let Record::Append { id, .. } = record {
                placed.push(self.placed(*id, start));
            }
            self.account(record);
        }
        self.flush()?;
        Ok(Written { mark: Mark::from(&self.shape), placed, opened, freed: self.freed() })
    }

    fn active(&self) -> &Segment<F::File> {
        &self.stretches.back().expect("there is always a segment to write to").segment
    }

    fn placed(&self, id: EntryId, start: usize) -> Placed {
        Placed {
            index: id.index,
            lsn: self.shape.lsn,
            len: (self.buffer.len() - start) as u32,
            place: Place { segment: self.active().base, offset: (self.offset + start) as u32 },
        }
    }

    /// Writes what is encoded and syncs it.
    fn flush(&mut self) -> Result<(), Failure> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        debug_assert!(self.buffer.len() > HEADER_BYTES, "only whole records are flushed");
        let file = &self.active().file;
        hodei_state::failpoint!("wal::before-write");
        file.write_at(&self.buffer, self.offset as u64).map_err(Failure::write("write to the log"))?;
        hodei_state::failpoint!("wal::before-fsync");
        if !hodei_state::armed!("bug::log-not-synced") {
            file.sync_data().map_err(Failure::sync("fdatasync of the log"))?;
        }
        hodei_state::failpoint!("wal::after-fsync");
        self.offset += self.buffer.len();
        self.buffer.clear();
        Ok(())
    }

    /// Goes on in a new segment; everything before is durable.
    fn roll(&mut self, prepared: Prepared<F::File>) -> Result<Arc<Segment<F::File>>, Failure> {
        debug_assert!(self.buffer.is_empty(), "a segment's existence proves that all before it is durable");
        hodei_state::failpoint!("wal::before-new-segment");
        let segment = Arc::new(prepared.install(&self.fs, &self.dir, &self.shape)?);
        let live = self.shape.live.end..self.shape.live.end;
        hodei_state::failpoint!("wal::after-new-segment");
        self.stretches.push_back(Stretch { segment: segment.clone(), live });
        self.offset = FIRST_RECORD;
        Ok(segment)
    }

    /// Keeps each segment's share of the live entries. Entries of higher index always lie further back in the log.
    fn account(&mut self, record: &Record) {
        account(&mut self.stretches, record);
    }

    /// Takes the leading segments without live entries off the list.
    fn freed(&mut self) -> Vec<Lsn> {
        let mut freed = Vec::new();
        while self.stretches.len() > 1 && self.stretches[0].live.is_empty() {
            freed.extend(self.stretches.pop_front().map(|stretch| stretch.segment.base));
        }
        freed
    }
}

/// Advances the segments' shares of the live entries over a record that went into the last one.
pub(crate) fn account<F>(stretches: &mut VecDeque<Stretch<F>>, record: &Record) {
    match record {
        Record::Append { id, .. } => {
            if let Some(last) = stretches.back_mut() {
                let start = if last.live.is_empty() { id.index } else { last.live.start };
                last.live = start..id.index + 1;
            }
        }
        Record::Vote(_) => {}
        Record::Truncate { from } => {
            for stretch in stretches {
                stretch.live = clip(&stretch.live, 0..*from);
            }
        }
        Record::Purge { upto } => {
            for stretch in stretches {
                stretch.live = clip(&stretch.live, upto.index + 1..u64::MAX);
            }
        }
    }
}
