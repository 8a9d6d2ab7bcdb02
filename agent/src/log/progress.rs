//! How far the capture of an attempt's output has come: in memory that its watchdog keeps, so that a successor of the
//! agent goes on exactly there.
//!
//! Written after each append to the spool and before anybody else hears of what was appended. What the spool has beyond
//! it is cut off and taken again from the stores (see [`super::store`]).

use std::{fs::File, io, os::unix::fs::FileExt as _};

use hodei_proto::v1::LogEnd;
use serde::{Deserialize, Serialize};

const LEN: usize = 64;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Newest entry in the spool.
    pub last_sequence: u64,
    /// Lines so far.
    pub lines: u64,
    /// Lines that gap records stand for.
    pub dropped: u64,
    /// Bytes of output in the spool.
    pub bytes: u64,
    /// The running checksum.
    pub checksum: u32,
    /// Lines dropped, for which no gap record was written yet.
    pub owed: u64,
    /// How much of standard output and standard error is in the spool or dropped.
    pub taken: [u64; 2],
}

impl Progress {
    /// The figures of the log so far.
    #[must_use]
    pub fn figures(&self) -> LogEnd {
        let Self { last_sequence, lines, dropped, bytes, checksum, .. } = *self;
        LogEnd { last_sequence, lines, dropped, bytes, checksum }
    }

    /// With the figures of a log.
    #[must_use]
    pub fn of(end: &LogEnd, owed: u64, taken: [u64; 2]) -> Self {
        let LogEnd { last_sequence, lines, dropped, bytes, checksum } = *end;
        Self { last_sequence, lines, dropped, bytes, checksum, owed, taken }
    }

    /// Replaces what the file says. One short write to memory: it is there as a whole or not at all.
    pub fn write(&self, file: &File) -> io::Result<()> {
        let [out, err] = self.taken;
        let words =
            [self.last_sequence, self.lines, self.dropped, self.bytes, u64::from(self.checksum), self.owed, out, err];
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        file.write_all_at(&bytes, 0)
    }

    /// What the file says; the beginning where it says nothing yet.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; LEN];
        if file.metadata()?.len() < LEN as u64 {
            return Ok(Self::default());
        }
        file.read_exact_at(&mut bytes, 0)?;
        let mut words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
        let mut next = || words.next().unwrap_or_default();
        Ok(Self {
            last_sequence: next(),
            lines: next(),
            dropped: next(),
            bytes: next(),
            checksum: u32::try_from(next()).unwrap_or_default(),
            owed: next(),
            taken: [next(), next()],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_back_and_an_empty_file_is_the_beginning() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Progress::read(&file).unwrap(), Progress::default());
        let end = LogEnd { last_sequence: 7, lines: 6, dropped: 5, bytes: 4, checksum: u32::MAX };
        let progress = Progress::of(&end, 3, [2, 1]);
        progress.write(&file).unwrap();
        assert_eq!(Progress::read(&file).unwrap(), progress);
        assert_eq!(progress.figures(), end);
    }
}
