//! S10: a stream of events is filtered, ordered and unique, is resumed where it broke, and misses nothing.
//!
//! The log of events is put together from all streams. Within the range that a stream has looked at, it must have told
//! everything of that log that its filter lets through, and nothing else; and every acknowledged submission is in it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Bound::{Excluded, Included},
};

use super::{
    Judge,
    events::{EventLog, Segment, Told},
};
use crate::history::{Event, Evidence, Place, Reply, Subscribe};

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let log = EventLog::of(evidence);
    for at in &log.strays {
        judge.unknown(format!("{}: an event of a stream that never began", judge.line(*at)));
    }
    let mut by_job: HashMap<&str, BTreeMap<Place, Told<'_>>> = HashMap::new();
    for (place, told) in &log.events {
        by_job.entry(told.job).or_default().insert(*place, *told);
    }
    let none = BTreeMap::new();
    for segment in &log.segments {
        judge.judged(segment.events.len());
        alike(judge, &log, segment);
        in_order(judge, segment);
        // Streams of single jobs must not cost as much as all events.
        let events = match &segment.filter.job {
            Some(job) => by_job.get(job.as_str()).unwrap_or(&none),
            None => &log.events,
        };
        complete(judge, events, segment);
    }
    submissions(evidence, judge, &log);
}

/// Every stream tells the same of a place.
fn alike(judge: &mut Judge<'_>, log: &EventLog<'_>, segment: &Segment<'_>) {
    for told in &segment.events {
        let first = &log.events[&told.event.at];
        if (first.job, first.event) != (told.job, told.event) {
            let lines = (judge.line(first.at), judge.line(told.at));
            let text = format!("two events at {}", place(told.event.at));
            judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
        }
    }
}

fn in_order(judge: &mut Judge<'_>, segment: &Segment<'_>) {
    let mut last = (segment.after, segment.at);
    for told in &segment.events {
        let Event { at, kind, .. } = told.event;
        let lines = || format!("{}, {}", judge.line(last.1), judge.line(told.at));
        if *at <= last.0 {
            let how = if *at == last.0 { "again, or before it was asked for" } else { "out of order" };
            judge.invalid(format!("{}: {kind} at {} came {how}, after {}", lines(), place(*at), place(last.0)));
        }
        if !matches(segment.filter, told) {
            let text = format!("{kind} of {:?} was not asked for", told.job);
            judge.invalid(format!("{}, {}: {text}", judge.line(segment.at), judge.line(told.at)));
        }
        last = (*at, told.at);
    }
}

fn complete(judge: &mut Judge<'_>, events: &BTreeMap<Place, Told<'_>>, segment: &Segment<'_>) {
    if segment.after >= segment.through {
        return;
    }
    let told: HashSet<Place> = segment.events.iter().map(|told| told.event.at).collect();
    for (at, missed) in events.range((Excluded(segment.after), Included(segment.through))) {
        if matches(segment.filter, missed) && !told.contains(at) {
            let lines = (judge.line(segment.at), judge.line(missed.at));
            let text = format!("the stream misses {} of {:?} at {}", missed.event.kind, missed.job, place(*at));
            judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
        }
    }
}

/// What was acknowledged is told, where somebody has looked at its place.
fn submissions(evidence: &Evidence, judge: &mut Judge<'_>, log: &EventLog<'_>) {
    let covered = log.covered();
    for op in evidence.ops() {
        let (Some(Reply::Submit(done)), Some((_, index))) = (op.reply(), op.position) else { continue };
        let looked_at = covered.iter().any(|(from, to)| from.0 < index && index < to.0);
        let mut of_entry = log.events.range((index, 0)..=(index, u32::MAX)).map(|(_, told)| told);
        let told = of_entry.any(|told| told.job == done.job && told.event.kind == "job_submitted");
        if looked_at && !told && !done.existing {
            let at = judge.line(op.returned.unwrap_or(op.invoked));
            judge.invalid(format!("{at}: job {} was submitted at {index}, and no stream tells it", done.job));
        }
    }
}

fn matches(filter: &Subscribe, told: &Told<'_>) -> bool {
    let of_job = filter.job.as_deref().is_none_or(|job| job == told.job);
    let of_worker = filter.worker.as_deref().is_none_or(|worker| worker == told.event.worker);
    of_job && of_worker && (filter.kinds.is_empty() || filter.kinds.iter().any(|kind| is_of(&told.event.kind, kind)))
}

/// Whether a kind is the wanted one or of the wanted group.
fn is_of(kind: &str, wanted: &str) -> bool {
    kind == wanted || group(kind) == wanted
}

fn group(kind: &str) -> &str {
    match kind.split('_').next().unwrap_or(kind) {
        "attempt" | "jobs" => "job",
        "cluster" | "feature" => "node",
        group => group,
    }
}

fn place((index, offset): Place) -> String {
    format!("{index}.{offset}")
}
