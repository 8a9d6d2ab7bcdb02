//! The running figures of a log, which its end is checked against.

use hodei_proto::v1::{LogBatch, LogEnd};

use super::entries::{self, GAP};

/// What the entries so far add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sequence of the last entry; 0: none.
    pub last_sequence: u64,
    /// Entries that are output.
    pub lines: u64,
    /// Lines that gaps stand for.
    pub dropped: u64,
    /// A gap stands for nobody knows how many.
    pub uncounted: bool,
    /// Bytes of output.
    pub bytes: u64,
    /// As `LogEnd.checksum` on the wire.
    pub checksum: u32,
}

/// How a batch continues a log.
#[derive(Clone, Debug, PartialEq)]
pub enum Continues {
    /// With these entries, which are the batch or its new part.
    With(LogBatch),
    /// Not at all: everything in it is there already.
    Nothing,
    /// Entries before it are missing; this is the next one wanted.
    Hole(u64),
}

impl Tally {
    /// The sequence that comes next.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.last_sequence + 1
    }

    /// Adds a batch that [`Tally::continues`] has passed.
    pub fn add(&mut self, batch: &LogBatch) {
        for entry in entries::entries(batch) {
            let len = u32::try_from(entry.data.len()).unwrap_or(u32::MAX);
            let kind = u8::try_from(entry.kind).unwrap_or(u8::MAX);
            self.checksum = crc32c::crc32c_append(self.checksum, &head(entry.sequence, kind, len));
            self.checksum = crc32c::crc32c_append(self.checksum, entry.data);
            if entry.kind == GAP {
                self.dropped = self.dropped.saturating_add(entry.lost());
                self.uncounted |= entry.lost() == 0;
            } else {
                self.lines += 1;
                self.bytes += u64::from(len);
            }
            self.last_sequence = entry.sequence;
        }
    }

    /// What of a batch is new. Only a gap at its beginning may stand for sequences before it.
    #[must_use]
    pub fn continues(&self, batch: LogBatch) -> Continues {
        if entries::leaves_hole(&batch, self.next()) && !hodei_state::armed!("bug::hole-in-log-accepted") {
            return Continues::Hole(self.next());
        }
        if hodei_state::armed!("bug::repeated-lines-kept") {
            return Continues::With(batch);
        }
        entries::from_sequence(batch, self.next()).map_or(Continues::Nothing, Continues::With)
    }

    /// Whether these are exactly the figures that the agent reported, and it knew what it had.
    #[must_use]
    pub fn is(&self, end: &LogEnd) -> bool {
        !self.uncounted
            && (self.last_sequence, self.lines, self.dropped, self.bytes, self.checksum)
                == (end.last_sequence, end.lines, end.dropped, end.bytes, end.checksum)
    }
}

fn head(sequence: u64, kind: u8, len: u32) -> [u8; 13] {
    let mut head = [0; 13];
    head[..8].copy_from_slice(&sequence.to_le_bytes());
    head[8] = kind;
    head[9..].copy_from_slice(&len.to_le_bytes());
    head
}

#[cfg(test)]
mod tests {
    use super::{super::entries::tests::lines, *};

    #[test]
    fn the_figures_do_not_depend_on_how_entries_are_batched() {
        let mut one = Tally::default();
        one.add(&lines(1, &["a\n", "b\n", "c\n"]));
        let mut two = Tally::default();
        two.add(&lines(1, &["a\n"]));
        two.add(&lines(2, &["b\n", "c\n"]));
        assert_eq!(one, two);
        assert_eq!((one.last_sequence, one.lines, one.bytes), (3, 3, 6));
    }

    /// The formula of the wire, computed in one piece.
    #[test]
    fn the_checksum_is_the_one_on_the_wire() {
        let mut tally = Tally::default();
        tally.add(&lines(1, &["hi\n"]));
        let flat = [&1u64.to_le_bytes()[..], &[1], &3u32.to_le_bytes(), b"hi\n"].concat();
        assert_eq!(tally.checksum, crc32c::crc32c(&flat));
    }

    #[test]
    fn duplicates_are_dropped_and_holes_are_seen() {
        let mut tally = Tally::default();
        tally.add(&lines(1, &["a\n", "b\n"]));
        assert_eq!(tally.continues(lines(1, &["a\n", "b\n"])), Continues::Nothing);
        assert!(
            matches!(tally.continues(lines(2, &["b\n", "c\n"])), Continues::With(batch) if batch.first_sequence == 3)
        );
        assert_eq!(tally.continues(lines(4, &["d\n"])), Continues::Hole(3));
        assert_eq!(tally.continues(entries::gap(4, 9, 0)), Continues::Hole(3));
        let gap = entries::gap(3, 9, 0);
        assert_eq!(tally.continues(gap.clone()), Continues::With(gap));
    }

    #[test]
    fn what_lacks_nobody_knows_how_much_is_not_complete() {
        let mut tally = Tally::default();
        tally.add(&LogBatch {
            kinds: vec![GAP],
            data: 0_u64.to_le_bytes().to_vec().into(),
            ..lines(1, &["8 bytes\n"])
        });
        let Tally { last_sequence, lines, dropped, bytes, checksum, .. } = tally;
        assert_eq!((last_sequence, lines, dropped), (1, 0, 0));
        let end = LogEnd { last_sequence, lines, dropped, bytes, checksum };
        assert!(!tally.is(&end) && Tally { uncounted: false, ..tally }.is(&end));
    }
}
