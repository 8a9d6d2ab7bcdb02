//! The log of events, put together from the streams that were read of it.

use std::collections::{BTreeMap, HashMap};

use crate::history::{At, Event, Evidence, Note, Place, Subscribe};

/// How far a stream may be behind.
pub const LAG_NS: u64 = 5_000_000_000;

/// An event with the job that it is about, and where it was told.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    pub at: At,
    pub job: &'a str,
    pub event: &'a Event,
}

/// What one subscription gave until it broke.
#[derive(Debug)]
pub struct Segment<'a> {
    /// Its record.
    pub at: At,
    pub filter: &'a Subscribe,
    /// It begins after this place.
    pub after: Place,
    /// It has looked at everything up to this place.
    pub through: Place,
    /// In the order in which they came.
    pub events: Vec<Told<'a>>,
    /// Where it said last how far it has looked.
    looked: Option<(At, Place)>,
    /// Events that it told although it had looked beyond them, each with where it had said so.
    pub behind: Vec<(At, At)>,
}

impl Segment<'_> {
    pub fn is_unfiltered(&self) -> bool {
        self.filter.job.is_none() && self.filter.worker.is_none() && self.filter.kinds.is_empty()
    }
}

/// All events that anybody was told.
#[derive(Debug, Default)]
pub struct EventLog<'a> {
    /// By place; the first that was told there.
    pub events: BTreeMap<Place, Told<'a>>,
    pub segments: Vec<Segment<'a>>,
    /// Events of processes that never subscribed.
    pub strays: Vec<At>,
}

impl<'a> EventLog<'a> {
    pub fn of(evidence: &'a Evidence) -> Self {
        let mut log = Self::default();
        let mut current: HashMap<u32, usize> = HashMap::new();
        for (at, note) in evidence.notes() {
            let record = evidence.record(at);
            let open = current.get(&record.proc).copied();
            match (note, open) {
                (Note::Subscribe(filter), _) => {
                    current.insert(record.proc, log.segments.len());
                    let after = filter.after.unwrap_or_default();
                    let (events, behind) = (Vec::new(), Vec::new());
                    log.segments.push(Segment { at, filter, after, through: after, events, looked: None, behind });
                }
                (Note::Event(event), Some(segment)) => {
                    let told = Told { at, job: &record.key, event };
                    let segment = &mut log.segments[segment];
                    segment.events.push(told);
                    segment.through = segment.through.max(event.at);
                    segment.behind.extend(segment.looked.filter(|(_, to)| event.at <= *to).map(|(said, _)| (said, at)));
                    log.events.entry(event.at).or_insert(told);
                }
                (Note::Through(through), Some(segment)) => {
                    let segment = &mut log.segments[segment];
                    segment.through = segment.through.max(through.at);
                    segment.looked = Some((at, segment.looked.map_or(through.at, |(_, to)| to.max(through.at))));
                }
                (Note::Event(_) | Note::Through(_), None) => log.strays.push(at),
                _ => {}
            }
        }
        log
    }

    /// What unfiltered streams have looked at, from where to where, joined where they touch.
    pub fn covered(&self) -> Vec<(Place, Place)> {
        let whole = self.segments.iter().filter(|segment| segment.is_unfiltered());
        let mut ranges: Vec<_> = whole.map(|segment| (segment.after, segment.through)).collect();
        ranges.sort_unstable();
        let mut joined: Vec<(Place, Place)> = Vec::new();
        for (from, to) in ranges {
            match joined.last_mut() {
                Some((_, end)) if from <= *end => *end = to.max(*end),
                _ => joined.push((from, to)),
            }
        }
        joined
    }
}
