//! What can still be read of a log that may not open: for an operator who accepts that the rest is lost.
//!
//! It judges records as opening does ([`super::recover`]), but goes on where opening refuses: behind a damaged segment
//! the next one's header says from where its records continue. What is damaged is named, never guessed. Nothing is
//! written.

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;

use super::{
    EntryId, OpenError, Vote,
    mark::{self, Mark, MarkFile},
    record::Record,
    segment::{self, Loaded, Scan},
    shape::Shape,
};
use crate::seam::{File, Fs};

/// What a log still holds.
#[derive(Debug, Default)]
pub struct Salvaged {
    /// Entries by index, oldest stretch first. Between two stretches records are damaged: entries of an earlier one may
    /// have been replaced there.
    pub stretches: Vec<BTreeMap<u64, (EntryId, Bytes)>>,
    /// The newest vote that can be read.
    pub vote: Option<Vote>,
    /// What is damaged or missing, in words for the operator; empty where the log is whole.
    pub damage: Vec<String>,
}

/// Reads what there is in `dir`.
///
/// # Errors
/// Only if the disk refuses.
pub fn salvage<F: Fs>(fs: &F, dir: &Path) -> Result<Salvaged, OpenError> {
    let names = match fs.list(dir) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(OpenError::io(format!("list {}", dir.display()))(error)),
    };
    let mut bases: Vec<_> = names.iter().filter_map(|name| segment::base_of(name)).collect();
    bases.sort_unstable();
    let mut reader = Reader::default();
    if names.iter().any(|name| name == mark::FILE) {
        match MarkFile::open(fs, dir) {
            Ok((_, mark)) => reader.mark = Some(mark),
            Err(error) => reader.salvaged.damage.push(error.to_string()),
        }
    } else {
        reader.salvaged.damage.push("the high-water mark is missing".to_owned());
    }
    for (position, base) in bases.iter().enumerate() {
        match segment::load(fs, dir, *base) {
            Ok(loaded) => reader.segment(&loaded, bases.get(position + 1).copied()),
            Err(error) => reader.salvaged.damage.push(error.to_string()),
        }
    }
    reader.compare();
    Ok(reader.salvaged)
}

#[derive(Default)]
struct Reader {
    mark: Option<Mark>,
    /// Whether the mark's history was found where the mark was made.
    met_mark: bool,
    /// Up to the last record read.
    shape: Option<Shape>,
    salvaged: Salvaged,
}

impl Reader {
    fn segment<F: File>(&mut self, loaded: &Loaded<F>, next: Option<u64>) {
        let mut shape = self.continued(loaded);
        self.meet(&shape);
        let mut scan = Scan::new(loaded);
        while next.is_none_or(|next| shape.lsn < next) {
            let Some((_, found)) = scan.next(shape.lsn, shape.chain) else { break };
            let record = Record::decode(found.kind, &found.payload);
            let accepted = record.as_ref().is_some_and(|record| shape.accept(record, found.chain).is_ok());
            match record {
                Some(record) if accepted => {
                    self.record(record);
                    self.meet(&shape);
                }
                _ => {
                    self.salvaged.damage.push(format!("record {} makes no sense", found.lsn));
                    break;
                }
            }
        }
        self.shape = Some(shape);
    }

    /// The shape that a segment continues from. Where what came before does not lead there, its own header counts.
    fn continued<F>(&mut self, loaded: &Loaded<F>) -> Shape {
        let before = self.shape.take();
        if before.as_ref().is_some_and(|before| *before != loaded.shape) {
            let lsn = before.as_ref().map_or(0, |before| before.lsn);
            self.salvaged.damage.push(format!("records between {lsn} and the {:?} are damaged", loaded.segment));
        }
        if before.as_ref() != Some(&loaded.shape) {
            self.salvaged.stretches.push(BTreeMap::new());
        }
        self.salvaged.vote = loaded.shape.vote.or(self.salvaged.vote);
        loaded.shape.clone()
    }

    fn record(&mut self, record: Record) {
        let entries = self.salvaged.stretches.last_mut();
        match (record, entries) {
            (Record::Append { id, body }, Some(entries)) => drop(entries.insert(id.index, (id, body.to_bytes()))),
            (Record::Truncate { from }, Some(entries)) => drop(entries.split_off(&from)),
            (Record::Vote(vote), _) => self.salvaged.vote = Some(vote),
            // What is purged is still good.
            _ => {}
        }
    }

    /// Compares histories where the mark was made.
    fn meet(&mut self, shape: &Shape) {
        self.met_mark |= self.mark.as_ref().is_some_and(|mark| *mark == Mark::from(shape));
    }

    /// After the last record: whether every entry of the log is there, and the log leads through the mark.
    fn compare(&mut self) {
        if let (Some(shape), Some(last)) = (&self.shape, self.salvaged.stretches.last()) {
            let missing = shape.live.clone().filter(|index| !last.contains_key(index)).count();
            if missing > 0 {
                self.salvaged.damage.push(format!("{missing} of the entries {:?} are missing", shape.live));
            }
        }
        let Some(mark) = &self.mark else { return };
        let last = self.shape.as_ref().map_or(0, |shape| shape.lsn);
        if mark.lsn > last {
            let what = format!("records up to {} were promised, and can be read up to {last}", mark.lsn);
            self.salvaged.damage.push(what);
        } else if !self.met_mark && self.shape.is_some() {
            let what = format!("the log's history at record {} is not the one that was promised", mark.lsn);
            self.salvaged.damage.push(what);
        }
        let term = |vote: &Vote| vote.term;
        if mark.vote.as_ref().map(term) > self.salvaged.vote.as_ref().map(term) {
            self.salvaged.vote = mark.vote;
        }
    }
}
