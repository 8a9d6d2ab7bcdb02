//! What excuses a log that is not whole, and what must be there in the end.
//!
//! - Jobs of runs are blocked by a full spool and drop nothing, so that lines are gone only with the machine that had them:
//!   a gap, or less than the witness had printed, takes a fault of the attempt's worker while it lived or its log was not
//!   yet safe, or a node that is gone for good (`lives`). That nobody knows how many takes the death of agent and watchdog.
//! - A log without figures is that of an attempt that was lost or declined, as events tell: not of one in which the job
//!   succeeded, and one that was declined never began.
//! - A node is missing for a fault of it or of who was asked, there and then. Once faults are over and nodes had their time
//!   to come back, only those are missing that have left the cluster. Nobody else is told to be gone for good.
//! - What somebody has read, whoever asks later is given, or told for want of which node it is not.
//! - Only attempts that were scheduled have a log.
//! - A reader of a job that has ended comes to the end of what it reads, and of the last attempt; so does whoever reads a
//!   log whole from one node, which is done at every node.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    super::{Judge, sights, timeline},
    Attempt, Fault, Reader, fault,
    lives::Lives,
};
use crate::history::{At, Evidence, JobState, LogEnd, LogFrom, LogPart, MarkKind, Note, Part, Record};

/// How long after the last fault every node serves what it has.
const SETTLED_NS: u64 = 10_000_000_000;
/// How long before the end of a history a job has ended whose readers have, too.
const READ_NS: u64 = 10_000_000_000;

/// What is known of attempts, workers and nodes.
pub(super) struct Excuses<'a> {
    /// Where each attempt began, as its witness says.
    began: HashMap<Attempt<'a>, At>,
    /// Lines that its witness had certainly printed.
    printed: HashMap<Attempt<'a>, (u64, At)>,
    succeeded: HashMap<&'a str, (u32, At)>,
    lives: Lives<'a>,
    /// From when on all nodes serve; never, where a fault does not end.
    settled: Option<u64>,
    /// What each reader asked last.
    asked: HashMap<u32, Asked>,
    /// From which sequence on each node has told what it has not of an attempt to be gone for good.
    told_gone: HashMap<(Attempt<'a>, u64), (At, u64)>,
    /// The next sequence of each attempt that anybody had come to, whenever that was more than before.
    reached: HashMap<Attempt<'a>, Vec<(At, u64)>>,
}

/// A reader's question.
struct Asked {
    t_ns: u64,
    node: Option<u64>,
    /// It rests.
    slow: bool,
}

impl<'a> Excuses<'a> {
    pub(super) fn of(evidence: &'a Evidence) -> Self {
        let over: Option<Vec<u64>> = timeline::faults(evidence).0.iter().map(|stretch| stretch.to_ns).collect();
        let mut excuses = Self {
            began: HashMap::new(),
            printed: HashMap::new(),
            succeeded: HashMap::new(),
            lives: Lives::of(evidence),
            settled: over.map(|ends| ends.into_iter().max().unwrap_or(0) + SETTLED_NS),
            asked: HashMap::new(),
            told_gone: HashMap::new(),
            reached: HashMap::new(),
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
                self.began.entry(attempt).or_insert(at);
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
    pub(super) fn asks(&mut self, record: &Record, from: &LogFrom) {
        self.asked.insert(record.proc, Asked { t_ns: record.t_ns, node: record.node, slow: from.slow });
    }

    /// A reader has come so far.
    pub(super) fn reaches(&mut self, at: At, attempt: Attempt<'a>, next: u64) {
        let reached = self.reached.entry(attempt).or_default();
        if reached.last().is_none_or(|(_, most)| *most < next) {
            reached.push((at, next));
        }
    }

    /// A node tells a reader that has come to `next` that the rest is gone for good.
    pub(super) fn gives_up(&mut self, at: At, attempt: Attempt<'a>, node: Option<u64>, next: u64) {
        if let Some(node) = node {
            self.told_gone.entry((attempt, node)).or_insert((at, next));
        }
    }

    /// Something of an attempt that the same node has told to be gone.
    pub(super) fn of_return(&self, attempt: Attempt<'a>, record: &Record, next: u64) -> Option<Fault> {
        let node = self.asked.get(&record.proc)?.node?;
        let &(told, from) = self.told_gone.get(&(attempt, node))?;
        (next > from).then(|| Fault {
            before: told,
            text: format!("node {node} told what follows {} to be gone for good, and gives it", from.saturating_sub(1)),
        })
    }

    pub(super) fn of_part(&self, at: At, record: &Record, part: &LogPart) -> Option<Fault> {
        let attempt = (record.key.as_str(), part.attempt);
        if part.part == (Part::Gap { lost: 0 }) && !self.lives.may_end_unheard(attempt, record.t_ns) {
            return fault(at, "nobody knows how much is lost, although who kept it was not killed with who read it");
        }
        if matches!(part.part, Part::Gap { .. }) && !self.lives.may_lack(attempt, record.t_ns) {
            return fault(at, "a gap, although nothing was done to its worker then, and no node is gone that had it");
        }
        self.of_nobody(at, attempt, record.t_ns)
    }

    fn of_nobody(&self, at: At, attempt: Attempt<'_>, by_ns: u64) -> Option<Fault> {
        let is_told = self.lives.was_scheduled(attempt, by_ns) != Some(false);
        if is_told { None } else { fault(at, "there is a log, and no stream tells that it was scheduled") }
    }

    pub(super) fn of_end(&self, evidence: &Evidence, at: At, end: &LogEnd, reader: &Reader) -> Option<Fault> {
        let record = evidence.record(at);
        let attempt = (record.key.as_str(), end.attempt);
        self.of_nobody(at, attempt, record.t_ns)
            .or_else(|| if end.lost { self.of_loss(at, attempt, record, end) } else { None })
            .or_else(|| self.of_missing(at, attempt, record, end))
            .or_else(|| self.of_less(evidence, attempt, record, end, reader))
            .or_else(|| self.of_printed(attempt, record, end, reader))
    }

    /// An end without figures.
    fn of_loss(&self, at: At, attempt: Attempt<'_>, record: &Record, end: &LogEnd) -> Option<Fault> {
        if end.complete {
            let began = self.began.get(&attempt).copied().or_else(|| self.lives.started(attempt));
            if let Some(began) = began {
                return fault(began, "it never ran, as its end says, and it began");
            }
        }
        let succeeded = self.succeeded.get(attempt.0).filter(|(number, _)| *number == attempt.1);
        if let Some((_, seen)) = succeeded {
            return fault(*seen, "the attempt is told lost in which the job succeeded");
        }
        if !end.complete && self.lives.was_lost(attempt, record.t_ns) == Some(false) {
            return fault(at, "the attempt is told lost, and no stream tells that it was");
        }
        None
    }

    /// Nodes for want of which it is not whole.
    fn of_missing(&self, at: At, attempt: Attempt<'_>, record: &Record, end: &LogEnd) -> Option<Fault> {
        if end.gone
            && let Some(node) = end.missing.iter().find(|node| !self.lives.may_have_left(**node, record.t_ns))
        {
            let why = if self.lives.is_gone(*node) { "before anything made it leave" } else { "and it is a member" };
            return fault(at, format!("node {node} is told to be gone for good, {why}"));
        }
        let asked = self.asked.get(&record.proc);
        let (asked_ns, slow) = asked.map_or((record.t_ns, false), |asked| (asked.t_ns, asked.slow));
        if self.settled.is_some_and(|settled| asked_ns > settled)
            && let Some(node) = end.missing.iter().find(|node| !self.lives.is_gone(**node))
        {
            return fault(at, format!("node {node} is missing, although all is healed and it is a member"));
        }
        // Who rests hears of the end long after it was decided.
        let when = (if slow { asked_ns } else { record.t_ns }, record.t_ns);
        let mut missing = end.missing.iter();
        let node = missing.find(|node| !self.lives.may_miss(attempt, **node, record.node, when))?;
        fault(at, format!("node {node} is missing, and nothing was done to it or to who was asked"))
    }

    /// Less than somebody had got before it was asked for.
    fn of_less(
        &self,
        evidence: &Evidence,
        attempt: Attempt<'_>,
        record: &Record,
        end: &LogEnd,
        reader: &Reader,
    ) -> Option<Fault> {
        let asked_ns = self.asked.get(&record.proc)?.t_ns;
        let reached = self.reached.get(&attempt)?;
        let known = reached.partition_point(|(before, _)| evidence.record(*before).t_ns < asked_ns);
        let &(before, next) = reached[..known].last()?;
        let is_told = !end.complete && (!end.missing.is_empty() || self.lives.may_forget(attempt, record.t_ns));
        if reader.next >= next || is_told {
            return None;
        }
        let had = (next - 1, reader.next.saturating_sub(1));
        fault(before, format!("sequences up to {} had been read, and the end is told after {}", had.0, had.1))
    }

    /// Less than its witness had printed.
    fn of_printed(&self, attempt: Attempt<'_>, record: &Record, end: &LogEnd, reader: &Reader) -> Option<Fault> {
        let &(printed, beat) = self.printed.get(&attempt)?;
        let (seen, lost) = (reader.seen, reader.lost);
        let is_whole = end.complete && !end.lost && !reader.partial;
        if !is_whole || seen + lost >= printed || self.lives.may_lack(attempt, record.t_ns) {
            return None;
        }
        fault(beat, format!("{printed} lines or more were printed, {seen} are there and {lost} told lost"))
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
    // Who reads single attempts says so.
    let single = evidence.notes().filter(|(_, note)| matches!(note, Note::LogRead(_)));
    let single: BTreeSet<u32> = single.map(|(at, _)| evidence.record(at).proc).collect();
    let followers: BTreeSet<(u32, &str)> = readers.keys().map(|(reader, (job, _))| (*reader, *job)).collect();
    for (reader, job) in followers.into_iter().filter(|(reader, _)| !single.contains(reader)) {
        let Some(&(end_ns, attempts)) = ended.get(job) else { continue };
        if attempts > 0 && end_ns + READ_NS < over && !readers.contains_key(&(reader, (job, attempts))) {
            judge.invalid(format!("reader {reader} of job {job}, which has ended, never came to attempt {attempts}"));
        }
    }
}

/// Logs that were wanted whole were read to their ends, and at every node.
pub(super) fn reads(evidence: &Evidence, judge: &mut Judge<'_>, readers: &BTreeMap<(u32, Attempt<'_>), Reader>) {
    let ended = ended(evidence);
    let mut read: BTreeMap<Attempt<'_>, BTreeSet<u64>> = BTreeMap::new();
    let mut any = false;
    for (at, note) in evidence.notes() {
        let Note::LogRead(done) = note else { continue };
        let record = evidence.record(at);
        let attempt = (record.key.as_str(), done.attempt);
        if let Some(node) = record.node {
            any |= done.failure.is_none();
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
    if !any {
        judge.lacks("S9", "no log was read whole from one node");
    }
    for ((job, attempt), nodes) in read {
        for node in timeline::members(evidence).unwrap_or_default().iter().filter(|node| !nodes.contains(node)) {
            judge.unknown(format!("the log of attempt {attempt} of job {job} was not read at node {node}"));
        }
    }
}
