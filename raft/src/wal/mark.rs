//! The high-water mark: up to where this replica has promised anything.
//!
//! Two slots in one file, a page each, written in turn: a torn write spoils only the slot that is being written, and
//! the other one still holds the mark before it.

use std::path::Path;

use bincode::{Decode, Encode};

use super::{
    Lsn, OpenError, Quarantine, Vote,
    block::{self, BLOCK_BYTES, BlockError},
    fatal::Failure,
    shape::Shape,
};
use crate::seam::{File, Fs};

/// The mark's file in the log's directory.
pub const FILE: &str = "mark";

const MAGIC: [u8; 8] = *b"HODEIHWM";
const VERSION: u32 = 1;

/// What is promised: everything up to `lsn`, history `chain`, and no vote below `vote`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The last promised record.
    pub lsn: Lsn,
    /// The chain hash there.
    pub chain: u128,
    /// The vote there.
    pub vote: Option<Vote>,
}

impl From<&Shape> for Mark {
    fn from(shape: &Shape) -> Self {
        Self { lsn: shape.lsn, chain: shape.chain, vote: shape.vote }
    }
}

// Frozen.
#[derive(Encode, Decode)]
struct SlotV1 {
    sequence: u64,
    lsn: u64,
    chain: u128,
    vote: Option<(u64, u64, bool)>,
}

/// The open file of the mark.
#[derive(Debug)]
pub struct MarkFile<F: File> {
    file: F,
    /// Of the newest slot; its parity says which slot that is.
    sequence: u64,
}

impl<F: File> MarkFile<F> {
    /// Creates the file with both slots valid, durably.
    pub(crate) fn create<D: Fs<File = F>>(fs: &D, dir: &Path, mark: &Mark) -> Result<Self, OpenError> {
        let temporary = dir.join("mark.tmp");
        let make = || {
            let file = fs.create(&temporary)?;
            let mut bytes = slot(0, mark);
            bytes.extend(slot(1, mark));
            file.write_at(&bytes, 0)?;
            file.sync_data()?;
            fs.rename(&temporary, &dir.join(FILE))?;
            fs.sync_dir(dir)?;
            Ok(file)
        };
        Ok(Self { file: make().map_err(OpenError::io("create the high-water mark"))?, sequence: 1 })
    }

    /// Opens the file and reads the newest valid slot.
    pub(crate) fn open<D: Fs<File = F>>(fs: &D, dir: &Path) -> Result<(Self, Mark), OpenError> {
        let file = fs.open(&dir.join(FILE)).map_err(OpenError::io("open the high-water mark"))?;
        let mut newest: Option<(u64, Mark)> = None;
        for number in 0..2u64 {
            match read_slot(&file, number)? {
                Some((sequence, mark)) if newest.is_none_or(|(other, _)| sequence > other) => {
                    newest = Some((sequence, mark));
                }
                _ => {}
            }
        }
        match newest {
            Some((sequence, mark)) => Ok((Self { file, sequence }, mark)),
            None => Err(OpenError::quarantined(Quarantine::Mark, "no slot of the high-water mark is readable")),
        }
    }

    /// Writes the mark into the older slot. It counts only after [`MarkFile::sync`].
    ///
    /// # Errors
    /// If the disk refuses, after which the process must end.
    pub fn write(&mut self, mark: &Mark) -> Result<(), Failure> {
        self.sequence += 1;
        let bytes = slot(self.sequence, mark);
        let offset = (self.sequence % 2) * BLOCK_BYTES as u64;
        self.file.write_at(&bytes, offset).map_err(Failure::write("write the high-water mark"))
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// If the disk refuses, after which the process must end.
    pub fn sync(&mut self) -> Result<(), Failure> {
        if hodei_state::armed!("bug::mark-not-synced") {
            return Ok(());
        }
        self.file.sync_data().map_err(Failure::sync("fdatasync of the high-water mark"))
    }
}

fn slot(sequence: u64, mark: &Mark) -> Vec<u8> {
    let vote = mark.vote.map(|vote| (vote.term, vote.node, vote.committed));
    block::encode(MAGIC, VERSION, &SlotV1 { sequence, lsn: mark.lsn, chain: mark.chain, vote })
}

fn read_slot(file: &impl File, number: u64) -> Result<Option<(u64, Mark)>, OpenError> {
    let mut bytes = vec![0; BLOCK_BYTES];
    match file.read_at(&mut bytes, number * BLOCK_BYTES as u64) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result.map_err(OpenError::io("read the high-water mark"))?,
    }
    match block::decode::<SlotV1>(MAGIC, VERSION, &bytes) {
        Ok(SlotV1 { sequence, lsn, chain, vote }) if sequence % 2 == number => {
            let vote = vote.map(|(term, node, committed)| Vote { term, node, committed });
            Ok(Some((sequence, Mark { lsn, chain, vote })))
        }
        Ok(_) | Err(BlockError::Damaged) => Ok(None),
        Err(BlockError::Newer(version)) => {
            let what = format!("the high-water mark is of version {version}, this program knows {VERSION}");
            Err(OpenError::quarantined(Quarantine::Newer, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seam::sim::SimFs;

    const MARK: Mark = Mark { lsn: 1_000, chain: 0xabc, vote: Some(Vote { term: 7, node: 3, committed: false }) };

    /// Written by the first version; it must decode for ever.
    #[test]
    fn a_slot_on_disk_never_changes() {
        let bytes = slot(12, &MARK);
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 2;
        let hex: String = bytes[..used].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "484f44454948574d01000000cf59d8230b0000000cfbe803fbbc0a01070300");
    }

    #[test]
    fn the_newest_slot_counts_and_a_spoiled_one_leaves_the_other() {
        let (fs, dir) = (SimFs::default(), Path::new("/wal"));
        let mut file = MarkFile::create(&fs, dir, &MARK).unwrap();
        let marks: Vec<Mark> = (1..=5).map(|more| Mark { lsn: MARK.lsn + more, ..MARK }).collect();
        for mark in &marks {
            file.write(mark).unwrap();
            file.sync().unwrap();
        }
        assert_eq!(MarkFile::open(&fs, dir).unwrap().1, marks[4]);
        let intact = fs.contents(&dir.join(FILE)).unwrap();
        let newest = (file.sequence % 2) as usize;
        for (slot, left) in [(newest, marks[3]), (1 - newest, marks[4])] {
            let mut spoiled = intact.clone();
            spoiled[slot * BLOCK_BYTES + 22] ^= 1;
            fs.overwrite(&dir.join(FILE), spoiled);
            assert_eq!(MarkFile::open(&fs, dir).unwrap().1, left);
        }
        fs.overwrite(&dir.join(FILE), vec![0; 2 * BLOCK_BYTES]);
        assert_eq!(MarkFile::open(&fs, dir).map(|_| ()).unwrap_err().code(), Some("HODEI-STORAGE-011"));
    }
}
