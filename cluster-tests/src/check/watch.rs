//! S10: a stream of events is filtered, ordered and unique, is resumed where it broke, and misses nothing.
//!
//! The log of events is put together from all streams. Within the range that a stream has looked at, it must have told
//! everything of that log that its filter lets through, and nothing else.
//!
//! Nobody ends a stream before the history ends: what is known `LAG_NS` before that is told by then, by every stream that
//! was told it or not. What is known is what other streams tell, every acknowledged submission, cancel and removal of a
//! worker, and what reads show: each attempt was scheduled, what runs or has succeeded was started, and what has ended was
//! told to have.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound::{Excluded, Included},
};

use super::{
    Judge,
    events::{EventLog, LAG_NS, Segment, Told},
    sights,
};
use crate::history::{Body, Event, Evidence, JobState, JobView, Place, Reply, Request, Subscribe};

/// Events by their places.
type Events<'a> = BTreeMap<Place, Told<'a>>;

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let log = EventLog::of(evidence);
    for at in &log.strays {
        judge.unknown(format!("{}: an event of a stream that never began", judge.line(*at)));
    }
    let mut by_job: HashMap<&str, Events<'_>> = HashMap::new();
    for (place, told) in &log.events {
        by_job.entry(told.job).or_default().insert(*place, *told);
    }
    let none = BTreeMap::new();
    let last: HashMap<u32, _> =
        log.segments.iter().map(|segment| (evidence.record(segment.at).proc, segment.at)).collect();
    let over = evidence.records().next_back().map_or(0, |(_, record)| record.t_ns);
    let in_time = |t_ns: u64| t_ns.saturating_add(LAG_NS) <= over;
    let told =
        log.events.iter().rev().find(|(_, told)| in_time(evidence.record(told.at).t_ns)).map(|(place, _)| *place);
    for segment in &log.segments {
        judge.judged(segment.events.len());
        alike(judge, &log, segment);
        in_order(judge, segment);
        // Streams of single jobs must not cost as much as all events.
        let events = match &segment.filter.job {
            Some(job) => by_job.get(job.as_str()).unwrap_or(&none),
            None => &log.events,
        };
        // Where it was resumed, the next one tells what is lacking.
        let goes_on = last.get(&evidence.record(segment.at).proc) == Some(&segment.at);
        complete(judge, events, segment, segment.through.max(told.filter(|_| goes_on).unwrap_or_default()));
    }
    let known = evidence.ops().filter(|op| op.to_ns.is_some_and(in_time) && op.reply().is_some());
    let index = known.filter_map(|op| op.position).map(|(_, index)| index).max().unwrap_or(0);
    let mut covered = log.covered();
    if let Some((_, to)) = covered.last_mut() {
        *to = (*to).max((index, u32::MAX));
    }
    submissions(evidence, judge, &log, &covered);
    // What may have been told before anybody listened is not judged.
    if let Some((_, to)) = covered.first().filter(|(from, _)| *from == Place::default()) {
        reads(evidence, judge, &by_job, *to);
        removals(evidence, judge, &log, *to);
        cancels(evidence, judge, &by_job, (*to, over));
    }
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
    for (said, at) in &segment.behind {
        let lines = (judge.line(*said), judge.line(*at));
        judge.invalid(format!("{}, {}: an event came although the stream had looked beyond it", lines.0, lines.1));
    }
}

/// It has told everything after its beginning and up to `through`.
fn complete(judge: &mut Judge<'_>, events: &Events<'_>, segment: &Segment<'_>, through: Place) {
    if segment.after >= through {
        return;
    }
    let told: HashSet<Place> = segment.events.iter().map(|told| told.event.at).collect();
    for (at, missed) in events.range((Excluded(segment.after), Included(through))) {
        if matches(segment.filter, missed) && !told.contains(at) {
            let lines = (judge.line(segment.at), judge.line(missed.at));
            let text = format!("the stream misses {} of {:?} at {}", missed.event.kind, missed.job, place(*at));
            judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
        }
    }
}

/// What was acknowledged is told, where somebody has looked at its place.
fn submissions(evidence: &Evidence, judge: &mut Judge<'_>, log: &EventLog<'_>, covered: &[(Place, Place)]) {
    for op in evidence.ops() {
        let (Some(Reply::Submit(done)), Some((_, index))) = (op.reply(), op.position) else { continue };
        let looked_at = covered.iter().any(|(from, to)| from.0 < index && (index, u32::MAX) <= *to);
        let mut of_entry = log.events.range((index, 0)..=(index, u32::MAX)).map(|(_, told)| told);
        let told = of_entry.any(|told| told.job == done.job && told.event.kind == "job_submitted");
        if looked_at && !told && !done.existing {
            let at = judge.line(op.returned.unwrap_or(op.invoked));
            judge.invalid(format!("{at}: job {} was submitted at {index}, and no stream tells it", done.job));
        }
    }
}

/// What a read shows has been told, by the place up to which everything was.
fn reads(evidence: &Evidence, judge: &mut Judge<'_>, by_job: &HashMap<&str, Events<'_>>, to: Place) {
    let mut missed: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (at, record) in evidence.records() {
        let (Body::Ok(Reply::Get(view)), Some(index)) = (&record.body, record.index) else { continue };
        let (JobView { state: Some(state), attempt, .. }, true) = (view, (index, u32::MAX) <= to) else { continue };
        let events = by_job.get(record.key.as_str()).into_iter().flat_map(|events| events.range(..=(index, u32::MAX)));
        let of: Vec<&Event> = events.map(|(_, told)| told.event).collect();
        let scheduled: BTreeSet<u32> =
            of.iter().filter(|event| event.kind == "job_scheduled").map(|event| event.attempt).collect();
        let has = |kind: &str| of.iter().any(|event| event.kind == kind && event.attempt == *attempt);
        let what = if !(1..=*attempt).all(|number| scheduled.contains(&number)) {
            "was scheduled"
        } else if matches!(state, JobState::Running | JobState::Succeeded) && !has("job_started") {
            "was started"
        } else if state.is_terminal() && !has("job_ended") {
            "has ended"
        } else {
            continue;
        };
        if missed.insert((&record.key, what)) {
            let text = format!("job {} is {state:?} in attempt {attempt} at {index}", record.key);
            judge.invalid(format!("{}: {text}, and no stream tells that it {what}", judge.line(at)));
        }
    }
}

/// So has every removal of a worker that was acknowledged.
fn removals(evidence: &Evidence, judge: &mut Judge<'_>, log: &EventLog<'_>, to: Place) {
    let removed = log.events.values().filter(|told| told.event.kind == "worker_removed");
    let removed: HashMap<&str, Place> = removed.map(|told| (told.event.worker.as_str(), told.event.at)).collect();
    for op in evidence.ops() {
        let (Request::Revoke, Some(_), Some((_, index))) = (op.request, op.reply(), op.position) else { continue };
        let Some(worker) = op.key.strip_prefix("agent/").filter(|_| (index, u32::MAX) <= to) else { continue };
        if removed.get(worker).is_none_or(|place| place.0 > index) {
            let at = judge.line(op.returned.unwrap_or(op.invoked));
            judge.invalid(format!("{at}: worker {worker} was removed at {index}, and no stream tells it"));
        }
    }
}

/// So has every cancel that was acknowledged, and the end that another was refused for.
fn cancels(evidence: &Evidence, judge: &mut Judge<'_>, by_job: &HashMap<&str, Events<'_>>, (to, over): (Place, u64)) {
    for op in evidence.ops().filter(|op| matches!(op.request, Request::Cancel)) {
        let events = by_job.get(op.key).into_iter().flatten();
        let mut kinds = events.map(|(place, told)| (place.0, told.event.kind.as_str()));
        let in_time = op.to_ns.is_some_and(|told| told.saturating_add(LAG_NS) <= over);
        let text = match (op.reply(), op.position) {
            (Some(_), Some((_, index))) if (index, u32::MAX) <= to => {
                let tells = |(at, kind)| at <= index && ["job_cancel_requested", "job_ended"].contains(&kind);
                (!kinds.any(tells)).then(|| format!("was cancelled at {index}, and no stream tells it"))
            }
            _ if sights::refused_as_ended(&op).is_some() && in_time => {
                let ended = kinds.any(|(_, kind)| kind == "job_ended");
                (!ended).then(|| "could not be cancelled any more, and no stream tells its end".to_owned())
            }
            _ => None,
        };
        if let Some(text) = text {
            judge.invalid(format!("{}: job {} {text}", judge.line(op.returned.unwrap_or(op.invoked)), op.key));
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
