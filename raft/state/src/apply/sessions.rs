//! What agents say, mostly through their gateways: sessions, streams, and how attempts fare.

use std::collections::BTreeSet;

use super::Result;
use crate::{
    command::{OpenSession, PlaceSegment},
    events::Event,
    flapping::{Flaps, Loss},
    ids::{AttemptRef, Caller, NodeId},
    job::{Attempt, Deadline, EndedBy, JobState, LogEnd, Reason, Segment, TakenBack},
    outcome::{Outcome, Refusal},
    registry::{Capacity, SessionRef, Worker, WorkerState},
    state::State,
    validate::{self, check, shorten},
};

/// Attempts that a session may name when it opens.
const MAX_NAMED: usize = 10_000;
/// Sessions that are remembered as over.
const PAST_SESSIONS: usize = 16;
/// Stretches of one attempt's log.
const MAX_SEGMENTS: u32 = 10_000;
/// Bytes that are kept of what an agent says about an end. Longer texts are cut, not refused: the end counts.
const MAX_MESSAGE: usize = 512;

impl State {
    /// One agent process takes over its worker. Attempts that it adopted are its own from here on, under the fence that
    /// they had; this includes those whose result it found on disk. Those that it says are dead are free for a retry:
    /// it has killed their trees and seen them empty. Older sessions are over, and never open again.
    pub(super) fn open_session(&mut self, open: &OpenSession) -> Result {
        let SessionRef { worker: id, session } = open.on;
        validate::agent(&open.info)?;
        check(open.adopted.len() <= MAX_NAMED, "adopted", "at most 10,000")?;
        check(open.dead.len() <= MAX_NAMED, "dead", "at most 10,000")?;
        let known = self.worker(id);
        if let Some(worker) = known {
            let closed = matches!(worker.state, WorkerState::Terminating | WorkerState::Terminated);
            let over = worker.past_sessions.contains(&session) || (worker.session == session && closed);
            if over {
                return Err(Refusal::StaleSession { session });
            }
            if worker.session == session {
                return Ok(self.owned_by(open.on));
            }
        }
        let lost_since = known.filter(|worker| self.is_lost(worker, open)).map(|worker| worker.opened_at);
        let mut worker = self.succeed(known, open);
        let (now, policy) = (self.stamp(), self.set_aside_policy());
        let set_aside = lost_since.and_then(|began| worker.lose(Loss::Session, began, now, policy));
        self.put_worker(worker);
        self.emit(&Event::WorkerRegistered { worker: id, session });
        self.tell_set_aside(id, set_aside);
        for adopted in &open.adopted {
            let attempt = self.known_attempt(*adopted).ok();
            let Some(attempt) = attempt.filter(|attempt| attempt.is_live() && attempt.worker == id) else {
                continue;
            };
            let attempt = Attempt { session, ..attempt.clone() };
            self.put_attempt(attempt);
        }
        for dead in &open.dead {
            self.free_dead(*dead, open.on);
        }
        Ok(self.owned_by(open.on))
    }

    /// Whether the worker's session is lost, now that another is opened: it was not ended, and not all that it ran is
    /// taken over, or it ran nothing.
    fn is_lost(&self, worker: &Worker, open: &OpenSession) -> bool {
        let closed = matches!(worker.state, WorkerState::Terminating | WorkerState::Terminated);
        let ending = worker.drain.is_some_and(|drain| matches!(drain.by, Caller::Agent(_)));
        let adopted: BTreeSet<_> = open.adopted.iter().collect();
        let own = self.live_attempts(worker.id).filter(|attempt| attempt.session == worker.session);
        let mut own = own.map(|attempt| adopted.contains(&attempt.id)).peekable();
        let handed_over = own.peek().is_some() && own.all(|adopted| adopted);
        !closed && !ending && !handed_over
    }

    /// Frees an older session's attempt that the new one has killed and seen to be empty. What it adopted, too, lives;
    /// what is another worker's is not for it to say.
    fn free_dead(&mut self, dead: AttemptRef, by: SessionRef) {
        let attempt = self.known_attempt(dead).ok();
        let of_an_older_session =
            |attempt: &&Attempt| attempt.is_live() && attempt.worker == by.worker && attempt.session != by.session;
        let Some(attempt) = attempt.filter(of_an_older_session).cloned() else {
            return;
        };
        let reason = if attempt.overdue_at.is_some() {
            Reason::Timeout { deadline: Deadline::Backstop }
        } else {
            Reason::WorkerLost { message: "its agent died, and the next one ended what was left of it".to_string() }
        };
        self.end_attempt(attempt, EndedBy::Dead, reason, None);
    }

    /// The worker under its new session; what live attempts hold of it stays held.
    fn succeed(&self, known: Option<&Worker>, open: &OpenSession) -> Worker {
        let info = open.info.clone();
        let mut past_sessions = known.map_or_else(Vec::new, |worker| worker.past_sessions.clone());
        // The session that this one says it follows may be unknown here: its command may be lost or still under way,
        // and must then not undo this one.
        for over in known.map(|worker| worker.session).into_iter().chain(open.previous) {
            if over != open.on.session && !past_sessions.contains(&over) {
                past_sessions.push(over);
            }
        }
        past_sessions.drain(..past_sessions.len().saturating_sub(PAST_SESSIONS));
        Worker {
            id: open.on.worker,
            state: WorkerState::Connecting,
            session: open.on.session,
            past_sessions,
            stream: 0,
            gateway: None,
            capacity: info.capacity,
            used: known.map_or_else(Capacity::default, |worker| worker.used),
            labels: info.labels,
            version: info.version,
            architecture: info.architecture,
            kernel: info.kernel,
            hostname: info.hostname,
            boot_id: info.boot_id,
            provider: info.provider,
            registered_at: known.map_or(self.stamp(), |worker| worker.registered_at),
            opened_at: self.stamp(),
            // What its agent asked for was for the end of the older process.
            drain: known.and_then(|worker| worker.drain).filter(|drain| !matches!(drain.by, Caller::Agent(_))),
            removed_at: known.and_then(|worker| worker.removed_at),
            recent: known.map_or(Worker::RECENT_BEST, |worker| worker.recent),
            flaps: known.map_or_else(Flaps::default, |worker| worker.flaps.clone()),
            set_aside: known.and_then(|worker| worker.set_aside),
        }
    }

    fn owned_by(&self, on: SessionRef) -> Outcome {
        let owned = self.live_attempts(on.worker).filter(|attempt| attempt.session == on.session);
        Outcome::SessionOpened { owned: owned.map(|attempt| attempt.id).collect() }
    }

    /// The worker of this very session.
    fn worker_of(&self, on: SessionRef) -> std::result::Result<&Worker, Refusal> {
        let worker = self.worker(on.worker).ok_or(Refusal::UnknownWorker { worker: on.worker })?;
        if worker.session == on.session { Ok(worker) } else { Err(Refusal::StaleSession { session: on.session }) }
    }

    /// The worker's stream is with this gateway now. Only a newer stream displaces an older one.
    pub(super) fn attach_worker(&mut self, on: SessionRef, stream: u64, gateway: NodeId) -> Result {
        let worker = self.worker_of(on)?;
        if matches!(worker.state, WorkerState::Terminating | WorkerState::Terminated) {
            return Err(Refusal::StaleSession { session: on.session });
        }
        if self.member(gateway).is_none_or(|member| member.removed_at.is_some()) {
            return Err(Refusal::UnknownNode { node: gateway });
        }
        if stream == worker.stream && worker.gateway == Some(gateway) {
            return Ok(Outcome::Unchanged);
        }
        if stream <= worker.stream && !crate::armed!("bug::older-stream-obeyed") {
            return Err(Refusal::StaleStream { stream });
        }
        let mut worker = worker.clone();
        worker.stream = stream;
        worker.gateway = Some(gateway);
        worker.state = self.attached(&worker);
        self.put_worker(worker);
        self.emit(&Event::WorkerAttached { worker: on.worker, node: gateway });
        Ok(Outcome::Done)
    }

    /// Where a worker stands that has a stream.
    pub(super) fn attached(&self, worker: &Worker) -> WorkerState {
        match self.live_attempts(worker.id).next() {
            _ if worker.drain.is_some() => WorkerState::Draining,
            None => WorkerState::Ready,
            Some(_) => WorkerState::Busy,
        }
    }

    /// A stream broke; leases run, and live attempts hold their capacity. It may overtake its own attach, which is then
    /// refused as no newer.
    pub(super) fn detach_worker(&mut self, on: SessionRef, stream: u64) -> Result {
        let worker = self.worker_of(on)?;
        if stream < worker.stream {
            return Err(Refusal::StaleStream { stream });
        }
        if stream == worker.stream && worker.gateway.is_none() {
            return Ok(Outcome::Unchanged);
        }
        let had_one = worker.gateway.is_some();
        let worker = Worker { stream, ..without_stream(worker.clone()) };
        self.put_worker(worker);
        if had_one {
            self.emit(&Event::WorkerDetached { worker: on.worker });
        }
        Ok(Outcome::Done)
    }

    /// The session ends for good. Attempts that it still owns are freed by its results or by expiry, as ever.
    pub(super) fn close_session(&mut self, on: SessionRef) -> Result {
        let worker = self.worker_of(on)?;
        if matches!(worker.state, WorkerState::Terminating | WorkerState::Terminated) {
            return Ok(Outcome::Unchanged);
        }
        let idle = self.live_attempts(on.worker).next().is_none();
        let state = if idle { WorkerState::Terminated } else { WorkerState::Terminating };
        let worker = Worker { state, gateway: None, ..worker.clone() };
        self.put_worker(worker);
        self.emit(&Event::WorkerClosed { worker: on.worker });
        Ok(Outcome::Done)
    }

    /// The process runs. Late, or once more: only where its log lies may be news.
    pub(super) fn job_started(&mut self, id: AttemptRef, by: SessionRef, segment: Option<PlaceSegment>) -> Result {
        let attempt = match self.owned_attempt(id, by, EndedBy::Result)? {
            Some(attempt) if attempt.started_at.is_none() => attempt.clone(),
            _ => return self.place_further(id, segment),
        };
        let segment = segment.map(|segment| self.placed(id, segment)).transpose()?.flatten();
        self.begin(attempt);
        self.put_segments(segment);
        Ok(Outcome::Done)
    }

    /// Records that an attempt's process runs, or ran.
    fn begin(&mut self, attempt: Attempt) -> Attempt {
        let now = self.stamp();
        let attempt = Attempt { started_at: Some(now), ..attempt };
        self.put_attempt(attempt.clone());
        if let Some(mut job) = self.job(attempt.id.job).cloned() {
            job.state = JobState::Running;
            job.started_at = job.started_at.or(Some(now));
            self.update_job(job);
        }
        let AttemptRef { job, attempt: number, .. } = attempt.id;
        self.emit(&Event::JobStarted { job, attempt: number, worker: attempt.worker });
        attempt
    }

    /// Its session never started the attempt and never will: the infrastructure's fault, and another worker's turn.
    pub(super) fn job_declined(&mut self, id: AttemptRef, by: SessionRef, reason: &str) -> Result {
        let Some(attempt) = self.owned_attempt(id, by, EndedBy::Declined)? else {
            return Ok(Outcome::Unchanged);
        };
        if attempt.started_at.is_some() {
            return Err(Refusal::OutOfDate { why: "the process was reported to run".to_string() });
        }
        let reason = match self.taken_back(attempt) {
            Some(why) => Reason::TakenBack { why, exit_code: None, signal: None },
            None => Reason::WorkerLost { message: format!("declined: {}", shorten(reason, MAX_MESSAGE)) },
        };
        self.end_attempt(attempt.clone(), EndedBy::Declined, reason, None);
        Ok(Outcome::Done)
    }

    /// The attempt ended. The first result stands; the same report again is no news, except for where the rest of the log
    /// lies: the agent delivers it wherever it has repeated the report. A process that ended before its agent had said that
    /// it runs has run all the same, as far as is known in the moment of its end.
    pub(super) fn job_result(
        &mut self,
        id: AttemptRef,
        by: SessionRef,
        reason: &Reason,
        log: LogEnd,
        segment: Option<PlaceSegment>,
    ) -> Result {
        let Some(attempt) = self.owned_attempt(id, by, EndedBy::Result)? else {
            return self.place_further(id, segment);
        };
        let mut attempt = attempt.clone();
        let cancelled = self.job(id.job).is_some_and(|job| job.cancel.is_some());
        let reason = as_reported(reason, cancelled, self.taken_back(&attempt))?;
        let segment = segment.map(|segment| self.placed(id, segment)).transpose()?.flatten();
        self.put_segments(segment);
        if attempt.started_at.is_none() && reason.had_process() {
            attempt = self.begin(attempt);
        }
        self.end_attempt(attempt, EndedBy::Result, reason, Some(log));
        Ok(Outcome::Done)
    }

    /// Why a worker may give an attempt back at no cost to its job: it was asked to, or is being emptied.
    fn taken_back(&self, attempt: &Attempt) -> Option<TakenBack> {
        let drained = || self.worker(attempt.worker).is_some_and(|worker| worker.drain.is_some());
        attempt.taken_back.or_else(|| drained().then_some(TakenBack::Drained))
    }

    /// The live attempt that a session owns; `None` where it has ended in the way that the message itself reports, which
    /// is then a repetition, whichever session of the worker repeats it. Everything else is refused: once freed, an
    /// attempt is nobody's.
    fn owned_attempt(
        &self,
        id: AttemptRef,
        by: SessionRef,
        ends: EndedBy,
    ) -> std::result::Result<Option<&Attempt>, Refusal> {
        let attempt = self.known_attempt(id)?;
        match &attempt.end {
            Some(end) if end.by == ends && attempt.worker == by.worker => Ok(None),
            Some(_) if !crate::armed!("bug::ended-ends-again") => Err(Refusal::StaleFence { attempt: id }),
            None if (attempt.worker, attempt.session) != (by.worker, by.session)
                && !crate::armed!("bug::session-unchecked") =>
            {
                Err(Refusal::StaleSession { session: by.session })
            }
            _ => Ok(Some(attempt)),
        }
    }

    /// Where a further stretch of an attempt's log lies, whether or not it has ended.
    pub(super) fn place_log(&mut self, id: AttemptRef, segment: PlaceSegment) -> Result {
        self.known_attempt(id)?;
        match self.placed(id, segment)? {
            None => Ok(Outcome::Unchanged),
            placed => {
                self.put_segments(placed);
                Ok(Outcome::Done)
            }
        }
    }

    /// The same with a report that says nothing else that is new.
    fn place_further(&mut self, id: AttemptRef, segment: Option<PlaceSegment>) -> Result {
        segment.map_or(Ok(Outcome::Unchanged), |segment| self.place_log(id, segment))
    }

    fn put_segments(&mut self, segment: Option<Segment>) {
        if let Some(segment) = segment {
            self.put_segment(segment);
        }
    }

    /// The segment row that records a placement: the last holder of a stretch that is known, or a new stretch. `None`
    /// where it is recorded already. Whom the worker has left for another gateway is never the last one: it has no more than
    /// that one is given, and speaks late.
    fn placed(&self, id: AttemptRef, place: PlaceSegment) -> std::result::Result<Option<Segment>, Refusal> {
        if self.member(place.holder).is_none() {
            return Err(Refusal::UnknownNode { node: place.holder });
        }
        if let Some(known) =
            self.segments(id.job, id.attempt).find(|known| known.first_sequence == place.first_sequence)
        {
            if known.holders.last() == Some(&place.holder) {
                return Ok(None);
            }
            let worker = self.attempt(id.job, id.attempt).and_then(|attempt| self.worker(attempt.worker));
            let has_left = worker.and_then(|worker| worker.gateway).is_some_and(|gateway| gateway != place.holder);
            if has_left && known.holders.contains(&place.holder) {
                return Ok(None);
            }
            let mut known = known.clone();
            known.holders.retain(|holder| *holder != place.holder);
            check(known.holders.len() < 16, "segment.holder", "at most 16 holders")?;
            known.holders.insert(if has_left { 0 } else { known.holders.len() }, place.holder);
            return Ok(Some(known));
        }
        let newest = self.segments.range((id.job, id.attempt, 0)..=(id.job, id.attempt, u32::MAX)).next_back();
        let number = newest.map_or(1, |(key, _)| key.2.saturating_add(1));
        check(number <= MAX_SEGMENTS, "segment", "at most 10,000 of an attempt")?;
        Ok(Some(Segment {
            job: id.job,
            attempt: id.attempt,
            number,
            first_sequence: place.first_sequence,
            holders: vec![place.holder],
        }))
    }
}

/// A worker whose stream is broken. What is terminated, or about to be, stays so.
pub(super) fn without_stream(worker: Worker) -> Worker {
    let state = match worker.state {
        WorkerState::Terminating | WorkerState::Terminated => worker.state,
        _ => WorkerState::Disconnected,
    };
    Worker { state, gateway: None, ..worker }
}

/// The reason as it counts. An agent cannot say that a job was not provisioned, nor that it was cancelled where nobody
/// asked for it: that is an agent which gave the job up, because it was asked to or of its own accord.
fn as_reported(
    reason: &Reason,
    cancel_requested: bool,
    taken_back: Option<TakenBack>,
) -> std::result::Result<Reason, Refusal> {
    if let Some(why) = taken_back.filter(|_| !cancel_requested) {
        match reason {
            Reason::Cancelled { exit_code, signal, .. } => {
                return Ok(Reason::TakenBack { why, exit_code: *exit_code, signal: *signal });
            }
            Reason::WorkerLost { .. } => return Ok(Reason::TakenBack { why, exit_code: None, signal: None }),
            _ => {}
        }
    }
    Ok(match reason {
        Reason::NotProvisioned { .. } | Reason::TakenBack { .. } => {
            check(false, "reason", "how the attempt ended").map(|()| reason.clone())?
        }
        Reason::Cancelled { .. } if !cancel_requested => {
            Reason::WorkerLost { message: "given up by its worker".to_string() }
        }
        Reason::Cancelled { by, reason, exit_code, signal } => {
            Reason::Cancelled { by: *by, reason: shorten(reason, 256), exit_code: *exit_code, signal: *signal }
        }
        Reason::WorkerLost { message } => Reason::WorkerLost { message: shorten(message, MAX_MESSAGE) },
        Reason::CouldNotStart { cause, message } => {
            Reason::CouldNotStart { cause: *cause, message: shorten(message, MAX_MESSAGE) }
        }
        Reason::Exited { .. } | Reason::Signaled { .. } | Reason::OutOfMemory | Reason::Timeout { .. } => {
            reason.clone()
        }
    })
}
