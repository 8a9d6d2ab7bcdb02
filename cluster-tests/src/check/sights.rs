//! Every sight of a job's state, wherever it was seen.

use std::collections::{BTreeMap, HashMap};

use super::life::View;
use crate::history::{At, Body, Event, Evidence, JobState, JobView, Note, Op, Outcome, Place, Record, Reply, Request};

/// A job as somebody saw it.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// The record that says so.
    pub at: At,
    /// What was seen.
    pub view: View,
    /// The place in the log after which it stood so, where that is known.
    pub place: Option<Place>,
    /// When it was asked for, if it was and the newest state was read.
    pub asked_ns: Option<u64>,
}

/// A read of the whole entry sees everything in it.
const WHOLE: u32 = u32::MAX;

/// Of each job.
pub type Sights<'a> = BTreeMap<&'a str, Vec<Sight>>;

/// All sights of each job, in the order of time.
pub fn sights(evidence: &Evidence) -> Sights<'_> {
    let reads = evidence.ops().filter(|op| is_linearizable(op.request));
    let asked: HashMap<At, u64> = reads.filter_map(|op| Some((op.returned?, op.from_ns))).collect();
    let mut jobs: BTreeMap<&str, Vec<Sight>> = BTreeMap::new();
    for (at, record) in evidence.records() {
        let seen = match &record.body {
            Body::Ok(Reply::Get(view)) | Body::Note(Note::Watched(view)) => {
                view_of(view).map(|view| (view, record.index.map(|index| (index, WHOLE))))
            }
            Body::Note(Note::Event(event)) => told(event).map(|view| (view, Some(event.at))),
            _ => None,
        };
        if let Some((view, place)) = seen {
            jobs.entry(&record.key).or_default().push(Sight { at, view, place, asked_ns: asked.get(&at).copied() });
        }
    }
    jobs
}

/// What a view says of a job that is there.
pub fn view_of(view: &JobView) -> Option<View> {
    view.state.map(|state| View { state, attempt: view.attempt })
}

/// Where an event puts its job.
pub fn told(event: &Event) -> Option<View> {
    let state = match event.kind.as_str() {
        "job_submitted" | "job_requeued" => JobState::Pending,
        "job_scheduled" => JobState::Scheduled,
        "job_started" => JobState::Running,
        "job_ended" => event.state?,
        _ => return None,
    };
    Some(View { state, attempt: event.attempt })
}

/// Every time that somebody saw the job of this record exist, with its key.
pub fn exists(record: &Record) -> Option<&str> {
    let there = match &record.body {
        Body::Ok(Reply::Get(view)) | Body::Note(Note::Watched(view)) => view.state.is_some(),
        Body::Note(Note::Event(event)) => told(event).is_some(),
        Body::Note(Note::Witness(_)) => true,
        _ => false,
    };
    there.then_some(record.key.as_str())
}

/// How a job had ended by the time at which its cancel was refused for that, as the answer spells it.
pub fn refused_as_ended<'a>(op: &Op<'a>) -> Option<&'a str> {
    let (Request::Cancel, Outcome::Fail(failure)) = (op.request, op.outcome) else { return None };
    failure.message.rsplit_once("has already ended: ").map(|(_, state)| state)
}

/// Whether a request is answered from the newest state.
pub fn is_linearizable(request: &Request) -> bool {
    !matches!(request, Request::Get(how) | Request::List(how) if how.stale)
}
