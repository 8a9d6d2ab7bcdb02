//! S9: an attempt's log is contiguous, in order and without duplicates for every reader, on every node and after failovers;
//! what is lost is told by a gap record with its count, or, at the very end, by one that says that nobody knows it.
//!
//! Jobs print seeded lines ([`seeded`]), numbered in each of their two streams, and readers record what they got as
//! stretches of such lines. A reader's sequences must go on without a hole or a repetition, except that a gap record may
//! stand for the sequences before it; numbers of lines must go on in each stream, but for as many as gap records stand for;
//! and what is complete must add up to what the witness says was printed. Equal sequences hold equal lines for all readers.
//! Whether a log may end as it does, with a gap, incomplete or not at all, is `excuse`'s to say.

mod excuse;
mod lives;
pub mod seeded;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use self::excuse::Excuses;
use super::{Judge, timeline};
use crate::history::{At, Evidence, LogEnd, LogPart, MarkKind, Note, Part};

/// Sequences up to here are compared between readers.
const MAX_SEQUENCE: u64 = 1 << 24;

/// An attempt of a job.
type Attempt<'a> = (&'a str, u32);

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let printed = printed(evidence);
    let mut excuses = Excuses::of(evidence);
    let mut readers: BTreeMap<(u32, Attempt<'_>), Reader> = BTreeMap::new();
    let mut contents: HashMap<Attempt<'_>, Contents> = HashMap::new();
    let mut complete: BTreeSet<u64> = BTreeSet::new();
    for (at, note) in evidence.notes() {
        let record = evidence.record(at);
        let of = |attempt: u32| (record.proc, (record.key.as_str(), attempt));
        let fault = match note {
            Note::LogFrom(from) => {
                excuses.asks(record, from);
                readers.entry(of(from.attempt)).or_default().from(at, from.sequence)
            }
            Note::Log(part) => {
                judge.judged(1);
                let told = contents.entry((&record.key, part.attempt)).or_default().put(at, part);
                let reader = readers.entry(of(part.attempt)).or_default();
                let fault = reader.part(at, part).or(told);
                let attempt = (record.key.as_str(), part.attempt);
                excuses.reaches(at, attempt, reader.next);
                let returned = || excuses.of_return(attempt, record, reader.next);
                fault.or_else(|| excuses.of_part(at, record, part)).or_else(returned)
            }
            Note::LogEnd(end) => {
                judge.judged(1);
                let printed = printed.get(&(record.key.as_str(), end.attempt)).copied();
                let reader = readers.entry(of(end.attempt)).or_default();
                let fault = reader.end(at, end, printed).or_else(|| excuses.of_end(evidence, at, end, reader));
                if end.complete && fault.is_none() {
                    complete.extend(record.node);
                }
                if end.gone {
                    excuses.gives_up(at, (&record.key, end.attempt), record.node, reader.next);
                }
                fault
            }
            _ => continue,
        };
        if let Some(Fault { before, text }) = fault {
            let attempt = match note {
                Note::LogFrom(from) => from.attempt,
                Note::Log(part) => part.attempt,
                Note::LogEnd(end) => end.attempt,
                _ => continue,
            };
            let lines =
                if before == at { judge.line(at) } else { format!("{}, {}", judge.line(before), judge.line(at)) };
            judge.invalid(format!("{lines}: log of attempt {attempt} of job {}: {text}", record.key));
        }
    }
    excuse::ends(evidence, judge, &readers);
    excuse::reads(evidence, judge, &readers);
    if !readers.is_empty() {
        for node in timeline::members(evidence).unwrap_or_default().iter().filter(|node| !complete.contains(node)) {
            judge.unknown(format!("node {node} never gave a whole log"));
        }
    }
}

/// How many lines each attempt printed that came to its own end, and where it says so.
fn printed(evidence: &Evidence) -> HashMap<Attempt<'_>, (u64, At)> {
    let ends = evidence.notes().filter_map(|(at, note)| match note {
        Note::Witness(mark) if mark.mark == MarkKind::End => {
            Some(((evidence.record(at).key.as_str(), mark.attempt), (mark.lines?, at)))
        }
        _ => None,
    });
    ends.collect()
}

/// What is wrong, and the earlier line that shows it.
struct Fault {
    before: At,
    text: String,
}

fn fault(before: At, text: impl Into<String>) -> Option<Fault> {
    Some(Fault { before, text: text.into() })
}

/// What a reader has got of an attempt.
#[derive(Default)]
struct Reader {
    last: Option<At>,
    /// It was told that there is nothing more.
    ended: bool,
    /// The next sequence.
    next: u64,
    /// It began in the middle, so that the first numbers of lines are not known.
    partial: bool,
    /// The next line of each stream, once one was seen.
    lines: HashMap<u32, u64>,
    seen: u64,
    /// Lines that gap records stand for, and those of them that are known to be missing.
    lost: u64,
    missing: u64,
    /// A gap record stands for nobody knows how many.
    uncounted: bool,
}

impl Reader {
    fn from(&mut self, at: At, sequence: u64) -> Option<Fault> {
        let sequence = sequence.max(1);
        let Some(before) = self.last.replace(at) else {
            self.next = sequence;
            self.partial = sequence > 1;
            return None;
        };
        // A reader may go on from where it was; it has no reason to ask for anything else.
        (sequence != self.next).then(|| Fault { before, text: format!("asks for {sequence} after {}", self.next - 1) })
    }

    fn part(&mut self, at: At, part: &LogPart) -> Option<Fault> {
        let before = self.last.replace(at).unwrap_or(at);
        let next = self.next.max(1);
        let sequence = part.sequence;
        let skipped = sequence.saturating_sub(next);
        if sequence < next {
            return fault(before, format!("sequence {sequence} again"));
        }
        if self.uncounted {
            return fault(before, "it goes on after a gap without a count");
        }
        match &part.part {
            Part::Lines { stream, first, count } => {
                self.next = sequence.saturating_add(*count);
                if skipped > 0 {
                    return fault(before, format!("sequences {next} to {} are missing", sequence - 1));
                }
                self.lines(before, *stream, *first, *count)
            }
            Part::Gap { lost: 0 } => {
                self.next = sequence + 1;
                self.uncounted = true;
                (skipped > 0).then(|| Fault { before, text: "a gap without a count hides sequences".to_owned() })
            }
            Part::Gap { lost } => {
                self.next = sequence + 1;
                self.lost = self.lost.saturating_add(*lost);
                // A gateway's record stands for sequences, the last of which it takes itself.
                let stands_for = skipped + u64::from(skipped > 0);
                if *lost < stands_for.max(1) {
                    return fault(before, format!("a gap of {lost} lines stands for {stands_for} sequences"));
                }
                None
            }
            Part::Damaged { text } => {
                self.next = sequence + 1;
                fault(at, format!("sequence {sequence} is damaged: {text:?}"))
            }
        }
    }

    fn lines(&mut self, before: At, stream: u32, first: u64, count: u64) -> Option<Fault> {
        self.seen = self.seen.saturating_add(count);
        let known = self.lines.insert(stream, first.saturating_add(count));
        let next = known.or((!self.partial).then_some(0))?;
        if first < next {
            return fault(before, format!("line {first} of stream {stream} again"));
        }
        self.missing = self.missing.saturating_add(first - next);
        if self.missing > self.lost {
            let text = format!("lines {next} to {} of stream {stream} are missing", first - 1);
            return fault(before, format!("{text}, and gap records stand for {} in all", self.lost));
        }
        None
    }

    fn end(&mut self, at: At, end: &LogEnd, printed: Option<(u64, At)>) -> Option<Fault> {
        let before = self.last.replace(at).unwrap_or(at);
        self.ended = true;
        if end.complete && self.uncounted {
            return fault(before, "is complete, although nobody knows how much of it is lost");
        }
        if !end.complete && !end.lost && end.missing.is_empty() && !self.uncounted {
            return fault(before, "is not complete, although nobody is missing who had it");
        }
        let (printed, witness) = printed?;
        let adds_up = end.complete || end.entries_lost.is_some();
        let lost = self.lost + end.entries_lost.unwrap_or(0);
        if !adds_up || self.partial || self.seen + lost == printed {
            return None;
        }
        fault(witness, format!("{printed} lines were printed, {} are there and {lost} told lost", self.seen))
    }
}

/// What each sequence of an attempt holds, by the first reader that got so far.
#[derive(Default)]
struct Contents {
    /// A gap, or a stream and the number of its line; nothing where nobody got it.
    lines: Vec<Option<(u32, u64)>>,
    first: Option<At>,
}

impl Contents {
    fn put(&mut self, at: At, part: &LogPart) -> Option<Fault> {
        let before = *self.first.get_or_insert(at);
        let (stream, first, count) = match part.part {
            Part::Lines { stream, first, count } => (stream, first, count),
            Part::Gap { lost } => (0, lost, 1),
            Part::Damaged { .. } => return None,
        };
        if part.sequence.saturating_add(count) > MAX_SEQUENCE {
            return fault(at, format!("sequence {} is absurd", part.sequence));
        }
        for i in 0..count {
            let place = usize::try_from(part.sequence + i).unwrap_or(0);
            if self.lines.len() <= place {
                self.lines.resize(place + 1, None);
            }
            let line = (stream, first + i);
            let known = *self.lines[place].get_or_insert(line);
            if known != line {
                return fault(before, format!("sequence {place} is not what another reader has"));
            }
        }
        None
    }
}
