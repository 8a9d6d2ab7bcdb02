//! What excuses a log that is not whole, and what must be there in the end.
//!
//! - Jobs of runs are blocked by a full spool and drop nothing, so that lines are gone only with the machine that had them:
//!   a gap, or less than the witness had printed, takes a fault of the attempt's worker, or a node that is gone for good.
//! - A log without figures is that of an attempt that was lost or declined: not of one in which the job succeeded, and one
//!   that was declined never began.
//! - Once faults are over and nodes had their time to come back, only those are missing that have left the cluster.
//! - A reader of a job that has ended comes to the end of what it reads; so does whoever reads a log whole from one node,
//!   which is done at every node.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    super::{Judge, sights, timeline},
    Attempt, Fault, Reader, fault,
};
use crate::history::{At, Evidence, JobState, LogEnd, LogPart, MarkKind, Note, Part, Record};

/// How long after the last fault every node serves what it has.
const SETTLED_NS: u64 = 10_000_000_000;
/// How long before the end of a history a job has ended whose readers have, too.
const READ_NS: u64 = 10_000_000_000;

/// What is known of attempts, workers and nodes.
pub(super) struct Excuses<'a> {
    /// Where each attempt began, as its witness says, and the worker that it ran on.
    began: HashMap<Attempt<'a>, (At, &'a str)>,
    /// Lines that its witness had certainly printed.
    printed: HashMap<Attempt<'a>, (u64, At)>,
    succeeded: HashMap<&'a str, (u32, At)>,
    /// When somebody first acted upon a worker.
    harmed: HashMap<&'a str, u64>,
    /// Members that are none in the end.
    gone: BTreeSet<u64>,
    /// From when on all nodes serve; never, where a fault does not end.
    settled: Option<u64>,
    /// When each reader asked last.
    asked: HashMap<u32, u64>,
}

impl<'a> Excuses<'a> {
    pub(super) fn of(evidence: &'a Evidence) -> Self {
        let (faults, _) = timeline::faults(evidence);
        let mut harmed: HashMap<&str, u64> = HashMap::new();
        for stretch in &faults {
            for worker in &stretch.fault.workers {
                harmed.entry(worker).or_insert(stretch.from_ns);
            }
        }
        let over: Option<Vec<u64>> = faults.iter().map(|stretch| stretch.to_ns).collect();
        let members: BTreeSet<u64> = timeline::members(evidence).unwrap_or_default().iter().copied().collect();
        let ever = evidence.notes().filter_map(|(_, note)| match note {
            Note::Cluster(members) => Some(&members.nodes),
            _ => None,
        });
        let mut excuses = Self {
            began: HashMap::new(),
            printed: HashMap::new(),
            succeeded: HashMap::new(),
            harmed,
            gone: ever.flatten().copied().filter(|node| !members.contains(node)).collect(),
            settled: over.map(|ends| ends.into_iter().max().unwrap_or(0) + SETTLED_NS),
            asked: HashMap::new(),
        };
        excuses.witnesses(evidence);
        for (job, sights) in sights::sights(evidence) {
            let end = sights.iter().find(|sight| sight.view.state == JobState::Succeeded);
            excuses.succeeded.extend(end.map(|sight| (job, (sight.view.attempt, sight.at))));
        }
        excuses
    }

    fn witnesses(&mut self, evidence: &'a Evidence) {
        let mut beats: HashMap<Attempt<'_>, u64> = HashMap::new();
        for (at, note) in evidence.notes() {
            let Note::Witness(mark) = note else { continue };
            let attempt = (evidence.record(at).key.as_str(), mark.attempt);
            if mark.mark == MarkKind::Start {
                self.began.entry(attempt).or_insert((at, &mark.worker));
            }
            if mark.mark == MarkKind::Beat {
                let beats = beats.entry(attempt).or_default();
                *beats += 1;
                // Between two beats it prints at least one line.
                let lines = mark.lines.unwrap_or(u64::from(*beats > 1));
                self.printed.insert(attempt, (lines, at));
            }
        }
    }

    /// A reader asks for something.
    pub(super) fn asks(&mut self, record: &Record) {
        self.asked.insert(record.proc, record.t_ns);
    }

    /// Whether lines of an attempt may be gone by then. Nobody knows of one that no witness has seen begin.
    fn may_lack(&self, attempt: Attempt<'_>, by_ns: u64) -> bool {
        let worker = self.began.get(&attempt).map_or("", |(_, worker)| worker);
        worker.is_empty() || !self.gone.is_empty() || self.harmed.get(worker).is_some_and(|&from| from <= by_ns)
    }

    pub(super) fn of_gap(&self, at: At, record: &Record, part: &LogPart) -> Option<Fault> {
        let attempt = (record.key.as_str(), part.attempt);
        if matches!(part.part, Part::Gap { .. }) && !self.may_lack(attempt, record.t_ns) {
            return fault(at, "a gap, although nothing was done to its worker, and no node is gone");
        }
        None
    }

    pub(super) fn of_end(&self, at: At, record: &Record, end: &LogEnd, reader: &Reader) -> Option<Fault> {
        let attempt = (record.key.as_str(), end.attempt);
        if end.lost {
            if let Some((began, _)) = self.began.get(&attempt).filter(|_| end.complete) {
                return fault(*began, "it never ran, as its end says, and it began");
            }
            let succeeded = self.succeeded.get(attempt.0).filter(|(number, _)| *number == end.attempt);
            if let Some((_, seen)) = succeeded {
                return fault(*seen, "the attempt is told lost in which the job succeeded");
            }
        }
        let settled =
            self.settled.is_some_and(|settled| self.asked.get(&record.proc).is_some_and(|&asked| asked > settled));
        if settled && let Some(node) = end.missing.iter().find(|node| !self.gone.contains(node)) {
            return fault(at, format!("node {node} is missing, although all is healed and it is a member"));
        }
        if end.complete
            && !end.lost
            && !reader.partial
            && let Some(&(printed, beat)) = self.printed.get(&attempt)
            && reader.seen + reader.lost < printed
            && !self.may_lack(attempt, record.t_ns)
        {
            let text = format!(
                "{printed} lines or more were printed, {} are there and {} told lost",
                reader.seen, reader.lost
            );
            return fault(beat, text);
        }
        None
    }
}

/// When each job was first seen to have ended, with the number of its last attempt.
fn ended(evidence: &Evidence) -> HashMap<&str, (u64, u32)> {
    let sights = sights::sights(evidence);
    let ended = sights.into_iter().filter_map(|(job, sights)| {
        let end = sights.iter().find(|sight| sight.view.state.is_terminal())?;
        Some((job, (evidence.record(end.at).t_ns, end.view.attempt)))
    });
    ended.collect()
}

/// Readers of jobs that have ended have come to the end of every attempt that they began to read.
pub(super) fn ends(evidence: &Evidence, judge: &mut Judge<'_>, readers: &BTreeMap<(u32, Attempt<'_>), Reader>) {
    let ended = ended(evidence);
    let over = evidence.records().next_back().map_or(0, |(_, record)| record.t_ns);
    for ((reader, (job, attempt)), state) in readers.iter().filter(|(_, state)| !state.ended) {
        let Some(&(end_ns, attempts)) = ended.get(job) else { continue };
        // Behind the last attempt there is nothing to come to the end of.
        if *attempt <= attempts && end_ns + READ_NS < over {
            let line = state.last.map(|at| judge.line(at)).unwrap_or_default();
            let text = format!("reader {reader} never came to the end of attempt {attempt} of job {job}");
            judge.invalid(format!("{line}: {text}, which has ended"));
        }
    }
}

/// Logs that were wanted whole were read to their ends, and at every node.
pub(super) fn reads(evidence: &Evidence, judge: &mut Judge<'_>, readers: &BTreeMap<(u32, Attempt<'_>), Reader>) {
    let ended = ended(evidence);
    let mut read: BTreeMap<Attempt<'_>, BTreeSet<u64>> = BTreeMap::new();
    for (at, note) in evidence.notes() {
        let Note::LogRead(done) = note else { continue };
        let record = evidence.record(at);
        let attempt = (record.key.as_str(), done.attempt);
        if let Some(node) = record.node {
            read.entry(attempt).or_default().insert(node);
        }
        let of = format!("{}: the log of attempt {} of job {}", judge.line(at), attempt.1, attempt.0);
        match &done.failure {
            // The log of a job that goes on has no end.
            Some(why) if ended.contains_key(attempt.0) => judge.invalid(format!("{of} could not be read: {why}")),
            None if !readers.get(&(record.proc, attempt)).is_some_and(|reader| reader.ended) => {
                judge.invalid(format!("{of} was read, and nobody was told its end"));
            }
            _ => {}
        }
    }
    for ((job, attempt), nodes) in read {
        for node in timeline::members(evidence).unwrap_or_default().iter().filter(|node| !nodes.contains(node)) {
            judge.unknown(format!("the log of attempt {attempt} of job {job} was not read at node {node}"));
        }
    }
}
