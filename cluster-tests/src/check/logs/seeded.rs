//! Lines that tell by themselves whether they are whole and in their place, and how what was read of them is recorded.
//!
//! `<job> <attempt> <stream> <number> <filler> <CRC-32C of all before the last space, 8 hex digits>`

use crate::history::{LogPart, Part};

/// Which lines an attempt prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines {
    /// The job's id, or what else it tells itself apart by.
    pub job: String,
    /// 1, 2, 3 …
    pub attempt: u32,
}

impl Lines {
    /// Line `number` of a stream (1 stdout, 2 stderr), without a newline. Fillers have 0 to 47 bytes.
    #[must_use]
    pub fn line(&self, stream: u32, number: u64) -> String {
        let Self { job, attempt } = self;
        let seed = crc32c::crc32c(format!("{job} {attempt} {stream} {number}").as_bytes());
        let filler: String = format!("{seed:08x}").chars().cycle().take(seed as usize % 48).collect();
        let text = format!("{job} {attempt} {stream} {number} {filler}");
        format!("{text} {:08x}", crc32c::crc32c(text.as_bytes()))
    }

    /// The number of a line of this attempt and stream, if it is one and whole.
    #[must_use]
    pub fn number(&self, stream: u32, line: &[u8]) -> Option<u64> {
        let line = std::str::from_utf8(line).ok()?.trim_end_matches('\n');
        let mut fields = line.split(' ').skip(3);
        let number = fields.next()?.parse().ok()?;
        (line == self.line(stream, number)).then_some(number)
    }
}

/// A sequence of a log, as a node sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent<'a> {
    /// Output: stream and bytes.
    Line(u32, &'a [u8]),
    /// A gap record with its count.
    Gap(u64),
}

/// Puts what a reader gets together into stretches.
#[derive(Debug)]
pub struct Fold {
    lines: Lines,
    open: Option<LogPart>,
}

impl Fold {
    /// For a reader of these lines.
    #[must_use]
    pub fn new(lines: Lines) -> Self {
        Self { lines, open: None }
    }

    /// Takes the next entry, and gives the stretch that it does not belong to.
    pub fn push(&mut self, sequence: u64, sent: &Sent<'_>) -> Option<LogPart> {
        let attempt = self.lines.attempt;
        let part = match *sent {
            Sent::Gap(lost) => Part::Gap { lost },
            Sent::Line(stream, bytes) => match self.lines.number(stream, bytes) {
                Some(first) => Part::Lines { stream, first, count: 1 },
                None => Part::Damaged { text: String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned() },
            },
        };
        if let Some(LogPart { sequence: from, part: Part::Lines { stream, first, count }, .. }) = &mut self.open
            && part == (Part::Lines { stream: *stream, first: *first + *count, count: 1 })
            && sequence == *from + *count
        {
            *count += 1;
            return None;
        }
        self.open.replace(LogPart { attempt, sequence, part })
    }

    /// The last stretch. Where it was interrupted, it is as well to record it: the reader goes on with another one.
    pub fn finish(&mut self) -> Option<LogPart> {
        self.open.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Lines {
        Lines { job: "j".to_owned(), attempt: 2 }
    }

    #[test]
    fn a_line_is_known_by_its_own_attempt_and_stream_only_and_as_a_whole() {
        let line = lines().line(1, 7);
        assert_eq!(lines().number(1, line.as_bytes()), Some(7));
        assert_eq!(lines().number(1, format!("{line}\n").as_bytes()), Some(7));
        assert_eq!(lines().number(2, line.as_bytes()), None);
        assert_eq!(Lines { attempt: 1, ..lines() }.number(1, line.as_bytes()), None);
        for at in 0..line.len() {
            let mut bytes = line.clone().into_bytes();
            bytes[at] ^= 1;
            assert_eq!(lines().number(1, &bytes), None, "bit of byte {at}");
            assert_eq!(lines().number(1, &line.as_bytes()[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn stretches_end_where_something_else_begins() {
        let mut fold = Fold::new(lines());
        let text: Vec<_> = (0..6).map(|number| lines().line(1, number)).collect();
        let sent = [(1, 0), (2, 1), (3, 2), (4, 4), (6, 5)];
        let mut parts: Vec<_> =
            sent.iter().filter_map(|&(at, number)| fold.push(at, &Sent::Line(1, text[number].as_bytes()))).collect();
        parts.extend(fold.push(7, &Sent::Gap(3)));
        parts.extend(fold.push(8, &Sent::Line(1, b"noise")));
        parts.extend(fold.finish());
        let lines = |first, count| Part::Lines { stream: 1, first, count };
        let expected = [
            (1, lines(0, 3)),
            (4, lines(4, 1)),
            (6, lines(5, 1)),
            (7, Part::Gap { lost: 3 }),
            (8, Part::Damaged { text: "noise".to_owned() }),
        ];
        assert_eq!(parts, expected.map(|(sequence, part)| LogPart { attempt: 2, sequence, part }));
    }
}
