//! S7, S14: an attempt runs where it was scheduled, and who asks is told so by every node.
//!
//! A read lists the job's attempts from the first to the newest one, each with the worker that every other read and the
//! events name. Where the log of events was read from its beginning, each attempt was scheduled by the place of the read. A
//! worker that was made for some jobs gets these, and they get no other worker.

use std::collections::{BTreeMap, HashMap};

use super::{Judge, events::EventLog};
use crate::history::{At, Body, Evidence, JobView, Note, Place, Reply, Request, Submit};

/// Where each attempt of each job was first told to be.
type Places<'a> = HashMap<(&'a str, u32), (&'a str, At)>;

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let log = EventLog::of(evidence);
    let mut places = Places::new();
    let mut scheduled: HashMap<(&str, u32), Place> = HashMap::new();
    for told in log.events.values().filter(|told| told.event.kind == "job_scheduled") {
        judge.judged(1);
        let attempt = (told.job, told.event.attempt);
        scheduled.entry(attempt).or_insert(told.event.at);
        same(judge, &mut places, attempt, (&told.event.worker, told.at));
    }
    if reserved(evidence, judge, &log) > 0 {
        judge.part("S14");
    }
    let to = log.covered().first().filter(|(from, _)| *from == Place::default()).map(|(_, to)| *to);
    for (at, record) in evidence.records() {
        let (Body::Ok(Reply::Get(view)) | Body::Note(Note::Watched(view))) = &record.body else { continue };
        judge.judged(view.attempts.len());
        if matches!(record.body, Body::Ok(_)) {
            listed(judge, at, &record.key, view);
        }
        for attempt in &view.attempts {
            let id = (record.key.as_str(), attempt.number);
            same(judge, &mut places, id, (&attempt.worker, at));
            let Some(index) = record.index.filter(|index| to.is_some_and(|to| (*index, u32::MAX) <= to)) else {
                continue;
            };
            if scheduled.get(&id).is_none_or(|place| place.0 > index) {
                let text = format!("attempt {} of job {} is there at {index}", id.1, id.0);
                judge.invalid(format!("{}: {text}, and no stream tells that it was scheduled", judge.line(at)));
            }
        }
    }
    if judge.judged > 0 {
        judge.part("S7");
    }
}

/// Who reads a job is told of all attempts that there were.
fn listed(judge: &mut Judge<'_>, at: At, job: &str, view: &JobView) {
    let numbers: Vec<u32> = view.attempts.iter().map(|attempt| attempt.number).collect();
    if view.state.is_some() && !numbers.iter().copied().eq(1..=view.attempt) {
        let text = format!("job {job} stands in attempt {}, and its attempts are {numbers:?}", view.attempt);
        judge.invalid(format!("{}: {text}", judge.line(at)));
    }
}

/// Everybody names the same worker of an attempt.
fn same<'a>(judge: &mut Judge<'_>, places: &mut Places<'a>, attempt: (&'a str, u32), told: (&'a str, At)) {
    let (worker, at) = told;
    let (known, before) = *places.entry(attempt).or_insert(told);
    if known != worker {
        let text = format!("attempt {} of job {} is with workers {known:?} and {worker:?}", attempt.1, attempt.0);
        judge.invalid(format!("{}, {}: {text}", judge.line(before), judge.line(at)));
    }
}

/// Workers and jobs that are made for each other are together, and nobody else is with them. Returns how many were placed.
fn reserved(evidence: &Evidence, judge: &mut Judge<'_>, log: &EventLog<'_>) -> usize {
    let mut placed = 0;
    let asked = evidence.ops().filter_map(|op| match op.request {
        Request::Submit(submit) => Some((op.key, submit)),
        _ => None,
    });
    let asked: HashMap<&str, &Submit> = asked.collect();
    let workers = evidence.notes().filter_map(|(at, note)| match note {
        Note::Worker(capacity) => Some((evidence.record(at).key.as_str(), capacity.reserved)),
        _ => None,
    });
    let workers: HashMap<&str, bool> = workers.collect();
    // Such a worker is let in for jobs of one payload.
    let mut made_for: BTreeMap<&str, (&str, At)> = BTreeMap::new();
    for told in log.events.values().filter(|told| told.event.kind == "job_scheduled") {
        let worker = told.event.worker.as_str();
        let (Some(submit), Some(&is_reserved)) = (asked.get(told.job), workers.get(worker)) else { continue };
        placed += 1;
        let line = judge.line(told.at);
        if submit.needs.reserved != is_reserved {
            let [job, has] =
                [submit.needs.reserved, is_reserved].map(|reserved| if reserved { "reserved" } else { "ordinary" });
            judge.invalid(format!("{line}: the {job} job {} is given to the {has} worker {worker}", told.job));
        } else if is_reserved {
            let (payload, before) = *made_for.entry(worker).or_insert((&submit.payload, told.at));
            if payload != submit.payload {
                let lines = format!("{}, {line}", judge.line(before));
                let text =
                    format!("worker {worker} was made for {payload:?}, and is given a job of {:?}", submit.payload);
                judge.invalid(format!("{lines}: {text}"));
            }
        }
    }
    placed
}
