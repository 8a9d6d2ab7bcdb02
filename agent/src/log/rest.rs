//! The end of a log whose job ended without an agent: what the watchdog left of the output goes into the spool. Blocking.

use std::{io, path::Path};

use hodei_proto::v1::LogEnd;

use super::{
    account,
    batch::{Batcher, GAP, STDERR, STDOUT, UNCOUNTED},
    entries,
    progress::Progress,
    split::Splitter,
    spool::{self, Index, Writer},
};
use crate::{clock::wall_ms, disk::damaged};

/// Takes up a spool that goes as far as `from`, and what followed on standard output and standard error. May be repeated.
///
/// # Errors
/// Of kind `InvalidData` where the spool lacks something.
pub fn complete(dir: &Path, from: &Progress, rest: [Vec<u8>; 2]) -> io::Result<(Index, LogEnd)> {
    let (mut index, last) = spool::recover(dir, from.last_sequence)?;
    if last != from.last_sequence {
        return Err(damaged(dir, &format!("the spool ends at {last} instead of {}", from.last_sequence)));
    }
    let mut batcher = Batcher::resume(from);
    for (kind, bytes) in [STDOUT, STDERR].into_iter().zip(rest) {
        let mut splitter = Splitter::default();
        splitter.feed(&bytes, |entry| batcher.push(kind, entry, wall_ms()));
        splitter.finish(|entry| batcher.push(kind, entry, wall_ms()));
    }
    let end = append(dir, &mut index, batcher)?;
    Ok((index, end))
}

/// Takes up a spool behind which nobody knows how much is missing: a gap record at its end says so. May be repeated.
pub fn incomplete(dir: &Path) -> io::Result<(Index, LogEnd)> {
    let (mut index, last) = spool::recover(dir, u64::MAX)?;
    let (end, told) = figures(&index, last)?;
    if told {
        return Ok((index, end));
    }
    let mut batcher = Batcher::resume(&Progress::of(&end, 0, [0; 2]));
    batcher.lose(wall_ms());
    let end = append(dir, &mut index, batcher)?;
    Ok((index, end))
}

/// What a spool adds up to as far as it can be read, and whether such a gap record is its end.
fn figures(index: &Index, last: u64) -> io::Result<(LogEnd, bool)> {
    let (mut end, mut told) = (LogEnd { last_sequence: last, ..LogEnd::default() }, false);
    let mut from = index.first_available().unwrap_or(last + 1);
    while from <= last {
        let Some(place) = index.locate(from) else { break };
        let batches = spool::read(&place, from, u64::MAX)?;
        for batch in &batches {
            for entry in entries(batch).unwrap_or_default().into_iter().filter(|entry| entry.sequence >= from) {
                account(&mut end, entry.sequence, entry.kind, &entry.data);
                told = entry.kind == GAP && *entry.data == UNCOUNTED;
            }
        }
        match batches.last() {
            Some(batch) => from = super::last_of(batch) + 1,
            None => break,
        }
    }
    end.last_sequence = last;
    Ok((end, told))
}

fn append(dir: &Path, index: &mut Index, mut batcher: Batcher) -> io::Result<LogEnd> {
    batcher.flush(wall_ms());
    let mut writer = Writer::new(dir).0;
    writer.append(&batcher.take_full())?.into_iter().for_each(|placed| index.note(placed));
    writer.sync()?;
    Ok(batcher.figures())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_follows_what_is_in_the_spool_however_often() {
        let dir = tempfile::tempdir().unwrap();
        let mut batcher = Batcher::default();
        batcher.push(STDOUT, b"one\n", 1);
        batcher.flush(1);
        let progress = batcher.progress();
        // Appended, and never told.
        batcher.push(STDOUT, b"two\n", 1);
        batcher.flush(1);
        Writer::new(dir.path()).0.append(&batcher.take_full()).unwrap();
        let mut whole = batcher;
        whole.push(STDOUT, b"three", 1);
        whole.push(STDERR, b"err\n", 1);
        for _ in 0..2 {
            let (index, end) = complete(dir.path(), &progress, [b"two\nthree".to_vec(), b"err\n".to_vec()]).unwrap();
            assert_eq!(end, whole.figures());
            let all: Vec<_> = (1..=4).map(|at| index.locate(at).is_some()).collect();
            assert_eq!(all, [true; 4]);
        }
    }

    #[test]
    fn what_nobody_knows_is_told_once_however_often() {
        let dir = tempfile::tempdir().unwrap();
        let mut batcher = Batcher::default();
        batcher.push(STDOUT, b"one\n", 1);
        batcher.flush(1);
        Writer::new(dir.path()).0.append(&batcher.take_full()).unwrap();
        batcher.lose(1);
        for _ in 0..2 {
            let (index, end) = incomplete(dir.path()).unwrap();
            assert_eq!(end, batcher.figures());
            assert_eq!((end.last_sequence, end.lines, end.dropped), (2, 1, 0));
            let batches = spool::read(&index.locate(2).unwrap(), 2, u64::MAX).unwrap();
            let last = entries(batches.last().unwrap()).unwrap().pop().unwrap();
            assert_eq!((last.sequence, last.kind, &*last.data), (2, GAP, &UNCOUNTED[..]));
        }
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(incomplete(empty.path()).unwrap().1.last_sequence, 1);
    }

    #[test]
    fn a_spool_that_lacks_what_was_told_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let progress = Progress { last_sequence: 3, ..Progress::default() };
        assert!(complete(dir.path(), &progress, Default::default()).is_err());
    }
}
