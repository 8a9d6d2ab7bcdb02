//! Leases: which attempts may go on, and which are lost. The leader's table, which belongs to one term and is never
//! stored; time comes in as the leader's monotonic clock.
//!
//! An attempt may run on its agent until `send time of the newest heartbeat granted to it + lost_after`, by the agent's
//! clock. Here it is lost at `last extension + lost_after + margin`, where the last extension is the time at which such
//! a heartbeat was received: never before it was sent, so that the agent always gives up first. What makes that sound:
//!
//! - **Confirmed only.** [`Liveness::confirm`] is called for a heartbeat only after a read index that was begun after
//!   its receipt has been applied. A leader or gateway cut off from the majority extends nothing.
//! - **Closing is final.** An attempt past its deadline is marked before its loss is proposed, and the mark refuses
//!   every extension for the rest of the term. The next term starts afresh, with `last extension = now` for every live
//!   attempt, which is later than anything that this term granted.
//! - **By name.** A grant names attempt and fence, and the session must own both the worker and the attempt.
//!
//! What is not here: no heartbeat is ever written to the state, and nothing here frees an attempt; `AttemptLost` does.

use std::collections::{BTreeMap, BTreeSet};

use imbl::{OrdMap, ordmap::DiffItem};

use crate::{
    command::Command,
    ids::{AttemptRef, Caller, JobId, Millis, Mono, SessionId, WorkerId},
    index::{Live, LiveKey},
    registry::SessionRef,
    score::Usage,
    spec::JobSpec,
    state::State,
};

/// The margin is a tenth of the lease, but at least this: what clocks may drift apart, and a process takes to die.
const MIN_MARGIN_MS: u64 = 2_000;
/// The leader steps in for an agent that lets a time-out pass: so much after the time-out and the grace period.
const BACKSTOP_MS: u64 = 30_000;
/// A verdict whose proposal came to nothing is repeated after this long.
const REPEAT_MS: u64 = 1_000;
/// How long a worker that was asked for a heartbeat is waited for where a job could go elsewhere; and how long, in all, a
/// job is kept from going there. A dead worker costs nobody more.
const ANSWER_MS: u64 = 500;
/// Verdicts per call.
const MAX_VERDICTS: usize = 1_024;

/// What a heartbeat came to; travels back to the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Of the heartbeat.
    pub sequence: u64,
    /// These may go on until the heartbeat's send time + `lost_after`.
    pub extended: Vec<AttemptRef>,
    /// These get no more time: freed, closing, cancelled and out of grace, or none of this session's.
    pub refused: Vec<AttemptRef>,
}

/// The newest confirmed heartbeat of a worker's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heard {
    session: SessionId,
    sequence: u64,
    received: Mono,
    /// The latest receipt of any heartbeat of the session; heartbeats may overtake each other.
    latest: Mono,
    /// What its machine was doing, by the newest heartbeat that said so.
    usage: Option<Usage>,
}

/// What has been heard of workers in a term: what the scheduler goes by beside the state. A clone is O(1).
#[derive(Clone, Debug)]
pub struct Hearing {
    elected_at: Mono,
    heard: OrdMap<WorkerId, Heard>,
    /// Since when these have been asked for a heartbeat and have not been heard of.
    asked: OrdMap<WorkerId, (SessionId, Mono)>,
    /// Since when these jobs have been held for the answer of a better worker.
    held: OrdMap<JobId, Mono>,
}

impl Hearing {
    /// Sequence and age of the newest confirmed heartbeat of a session, on which an Assign may stand.
    #[must_use]
    pub fn heartbeat(&self, on: SessionRef, now: Mono) -> Option<(u64, u64)> {
        let heard = self.of(on)?;
        Some((heard.sequence, now.0.saturating_sub(heard.received.0)))
    }

    /// For how long nothing confirmed has been heard of a session, at most since the election.
    #[must_use]
    pub fn silence(&self, on: SessionRef, now: Mono) -> u64 {
        self.heartbeat(on, now).map_or(now.0.saturating_sub(self.elected_at.0), |(_, age)| age)
    }

    /// What the machine of a session was doing when it was last heard of.
    #[must_use]
    pub fn usage(&self, on: SessionRef) -> Option<Usage> {
        self.of(on)?.usage
    }

    /// Until when a session that is not heard of is worth a wait, for a job that could go elsewhere: it was asked just now,
    /// or is about to be. `None`: it has had its time; nobody waits for it any more until it is heard of again.
    pub(crate) fn awaited_until(&self, on: SessionRef, now: Mono) -> Option<Mono> {
        let since = self.asked.get(&on.worker).filter(|(session, _)| *session == on.session).map(|(_, since)| *since);
        Some(since.unwrap_or(now).plus(ANSWER_MS)).filter(|until| now < *until)
    }

    /// Until when a job may be held for better workers. `None`: it has been held for long enough.
    pub(crate) fn held_until(&self, job: JobId, now: Mono) -> Option<Mono> {
        let since = self.held.get(&job).copied();
        Some(since.unwrap_or(now).plus(ANSWER_MS)).filter(|until| now < *until)
    }

    fn of(&self, on: SessionRef) -> Option<&Heard> {
        self.heard.get(&on.worker).filter(|heard| heard.session == on.session)
    }

    /// A heartbeat that arrives after a newer one of its session says nothing new.
    fn note(&mut self, on: SessionRef, sequence: u64, received: Mono) {
        self.asked.remove(&on.worker);
        match self.heard.get_mut(&on.worker).filter(|heard| heard.session == on.session) {
            None => {
                let heard = Heard { session: on.session, sequence, received, latest: received, usage: None };
                self.heard.insert(on.worker, heard);
            }
            Some(heard) => {
                heard.latest = heard.latest.max(received);
                if sequence > heard.sequence {
                    (heard.sequence, heard.received) = (sequence, received);
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Lease {
    id: AttemptRef,
    lost_after_ms: u64,
    last_extension: Mono,
    /// When to speak of it next: one of `due`.
    wake: Mono,
    /// When the leader steps in for a time-out; absent where there is none, or where it has.
    backstop: Option<Mono>,
    /// When a request to stop it was first seen: a cancel, or that it is taken back.
    stop_seen: Option<Mono>,
    /// Past its deadline in this term: never extended again.
    closing: bool,
    /// The leader has stepped in: not extended any more.
    overdue: bool,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Liveness {
    term: u64,
    hearing: Hearing,
    /// The live attempts at the last look, to find what changed.
    known: OrdMap<LiveKey, Live>,
    looked_at: Mono,
    leases: BTreeMap<(JobId, u32), Lease>,
    due: BTreeSet<(Mono, JobId, u32)>,
}

impl Liveness {
    /// The table of a new term: every live attempt counts as extended now.
    #[must_use]
    pub fn elected(term: u64, state: &State, now: Mono) -> Self {
        let mut liveness = Self {
            term,
            hearing: Hearing { elected_at: now, heard: OrdMap::new(), asked: OrdMap::new(), held: OrdMap::new() },
            known: OrdMap::new(),
            looked_at: now,
            leases: BTreeMap::new(),
            due: BTreeSet::new(),
        };
        liveness.look(state, now);
        liveness
    }

    /// The term that it belongs to.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// A heartbeat, confirmed by a read index that was begun after `received` and whose state this is. Extends or
    /// refuses each attempt that it names.
    pub fn confirm(
        &mut self,
        state: &State,
        on: SessionRef,
        sequence: u64,
        attempts: &[AttemptRef],
        received: Mono,
        now: Mono,
    ) -> Grants {
        self.look(state, now);
        let speaks = state.worker(on.worker).is_some_and(|worker| worker.session == on.session)
            && !state.is_revoked(Caller::Agent(on.worker));
        if speaks {
            self.hearing.note(on, sequence, received);
        }
        let mut grants = Grants { sequence, ..Grants::default() };
        for attempt in attempts {
            if speaks && self.extend(state, on, *attempt, received, now) {
                grants.extended.push(*attempt);
            } else {
                grants.refused.push(*attempt);
            }
        }
        grants
    }

    /// What the machine of a session is doing, as one of its heartbeats says. Nothing rests on it but the choice among
    /// workers, so that it needs no confirmation; of a session that was not heard of, it is not kept.
    pub fn report(&mut self, on: SessionRef, usage: Usage) {
        if let Some(heard) = self.hearing.heard.get_mut(&on.worker).filter(|heard| heard.session == on.session) {
            heard.usage = Some(usage);
        }
    }

    /// What came of a plan: these workers are asked for a heartbeat, and these jobs are held until then.
    pub fn asked(&mut self, state: &State, workers: &[WorkerId], held: &[JobId], now: Mono) {
        for worker in workers.iter().filter_map(|worker| state.worker(*worker)) {
            let since = self.hearing.asked.get(&worker.id).filter(|(session, _)| *session == worker.session);
            if since.is_none() {
                self.hearing.asked.insert(worker.id, (worker.session, now));
            }
        }
        let before = std::mem::take(&mut self.hearing.held);
        self.hearing.held = held.iter().map(|job| (*job, before.get(job).copied().unwrap_or(now))).collect();
    }

    fn extend(&mut self, state: &State, on: SessionRef, id: AttemptRef, received: Mono, now: Mono) -> bool {
        let owned = state.attempt(id.job, id.attempt).is_some_and(|attempt| {
            attempt.is_live()
                && attempt.id.fence == id.fence
                && ((attempt.worker, attempt.session) == (on.worker, on.session)
                    || crate::armed!("bug::grant-to-anybody"))
        });
        let Some(job) = state.job(id.job) else {
            return false;
        };
        let Some(lease) = self.leases.get_mut(&(id.job, id.attempt)).filter(|_| owned) else {
            return false;
        };
        if job.cancel.is_some() || state.attempt(id.job, id.attempt).is_some_and(|one| one.taken_back.is_some()) {
            let seen = *lease.stop_seen.get_or_insert(now);
            let grace_period_ms = state.spec(id.job).map_or(0, |spec| spec.grace_period_ms);
            if now >= seen.plus(grace_period_ms) {
                return false;
            }
        }
        if (lease.closing || lease.overdue || now >= lease.lost_at()) && !crate::armed!("bug::lost-revived") {
            return false;
        }
        lease.last_extension = lease.last_extension.max(received);
        self.reschedule((id.job, id.attempt));
        true
    }

    /// What has become due: attempts whose lease ran out, marked as closing before anybody hears of it, and attempts
    /// whose time-out passed long ago. Each is repeated until the state shows it.
    pub fn expire(&mut self, state: &State, now: Mono) -> Vec<Command> {
        self.look(state, now);
        let mut verdicts = Vec::new();
        while let Some(&(wake, job, attempt)) = self.due.first().filter(|(wake, ..)| *wake <= now) {
            if verdicts.len() == MAX_VERDICTS {
                break;
            }
            let Some(lease) = self.leases.get_mut(&(job, attempt)) else {
                self.due.remove(&(wake, job, attempt));
                continue;
            };
            if lease.closing || now >= lease.lost_at() {
                lease.closing = true;
                verdicts.push(Command::AttemptLost { attempt: lease.id });
            } else if lease.backstop.is_some_and(|at| now >= at) {
                lease.backstop = Some(now.plus(REPEAT_MS));
                verdicts.push(Command::AttemptOverdue { attempt: lease.id });
            }
            let repeat = lease.closing.then(|| now.plus(REPEAT_MS));
            self.reschedule_at((job, attempt), repeat);
        }
        verdicts
    }

    /// When [`Liveness::expire`] is to be called next. Attempts that this table has not seen yet are looked at within
    /// a second.
    #[must_use]
    pub fn next_deadline(&self, state: &State) -> Option<Mono> {
        let due = self.due.first().map(|&(wake, ..)| wake);
        let look = (!self.known.ptr_eq(&state.indexes.live)).then(|| self.looked_at.plus(1_000));
        match (due, look) {
            (Some(due), Some(look)) => Some(due.min(look)),
            (due, look) => due.or(look),
        }
    }

    /// What has been heard of workers in this term.
    #[must_use]
    pub fn hearing(&self) -> &Hearing {
        &self.hearing
    }

    /// Takes up what changed among the live attempts since the last look.
    fn look(&mut self, state: &State, now: Mono) {
        self.looked_at = now;
        let live = state.indexes.live.clone();
        let known = std::mem::replace(&mut self.known, live.clone());
        for change in known.diff(&live) {
            match change {
                DiffItem::Add(&(_, job, attempt), live) => self.begin(state, (job, attempt), *live, now),
                DiffItem::Update { new: (&(_, job, attempt), live), .. } => {
                    self.change(state, (job, attempt), *live, now);
                }
                DiffItem::Remove(&(_, job, attempt), _) => self.end((job, attempt)),
            }
        }
    }

    /// A new attempt stands on a heartbeat that this table confirmed, since its Assign was planned in this term: it
    /// counts as extended when the latest of its session was received. At an election, or where the session is another
    /// by now, it counts as extended now; later than needed is safe.
    fn begin(&mut self, state: &State, key: (JobId, u32), live: Live, now: Mono) {
        let (Some(spec), Some(attempt)) = (state.spec(key.0), state.attempt(key.0, key.1)) else {
            return;
        };
        let heard = self.hearing.of(SessionRef { worker: attempt.worker, session: attempt.session });
        // Without a heartbeat: a new leader does not know what the one before it granted.
        let unheard = if crate::armed!("bug::lease-table-not-reset") { Mono(0) } else { now };
        let last_extension = heard.map_or(unheard, |heard| heard.latest);
        self.leases.insert(
            key,
            Lease {
                id: AttemptRef { job: key.0, attempt: key.1, fence: live.fence },
                lost_after_ms: spec.lost_after_ms,
                last_extension,
                wake: now,
                backstop: None,
                stop_seen: None,
                closing: false,
                overdue: false,
            },
        );
        self.change(state, key, live, now);
    }

    fn change(&mut self, state: &State, key: (JobId, u32), live: Live, now: Mono) {
        if let (Some(lease), Some(spec)) = (self.leases.get_mut(&key), state.spec(key.0)) {
            lease.overdue = live.overdue;
            lease.backstop = backstop(&spec, live, state.stamp(), now);
            self.reschedule(key);
        }
    }

    fn end(&mut self, key: (JobId, u32)) {
        if let Some(lease) = self.leases.remove(&key) {
            self.due.remove(&(lease.wake, key.0, key.1));
        }
    }

    fn reschedule(&mut self, key: (JobId, u32)) {
        self.reschedule_at(key, None);
    }

    fn reschedule_at(&mut self, key: (JobId, u32), wake: Option<Mono>) {
        if let Some(lease) = self.leases.get_mut(&key) {
            self.due.remove(&(lease.wake, key.0, key.1));
            let next = lease.backstop.map_or(lease.lost_at(), |backstop| backstop.min(lease.lost_at()));
            lease.wake = wake.unwrap_or(next);
            self.due.insert((lease.wake, key.0, key.1));
        }
    }
}

/// How long after its last extension an attempt may still run somewhere: the lease and its margin.
pub(crate) fn lease_ms(lost_after_ms: u64) -> u64 {
    let margin = if crate::armed!("bug::no-margin") { 0 } else { (lost_after_ms / 10).max(MIN_MARGIN_MS) };
    lost_after_ms.saturating_add(margin)
}

impl Lease {
    fn lost_at(&self) -> Mono {
        self.last_extension.plus(lease_ms(self.lost_after_ms))
    }
}

/// When the leader steps in for a running attempt's time-out. What had passed of it before this term is known from the
/// stamps, of which the newest is now, or a little earlier.
fn backstop(spec: &JobSpec, live: Live, stamp: Millis, now: Mono) -> Option<Mono> {
    let started_at = live.started_at.filter(|_| !live.overdue)?;
    let allowed = spec.timeout_ms?.saturating_add(spec.grace_period_ms).saturating_add(BACKSTOP_MS);
    let passed = stamp.0.saturating_sub(started_at.0);
    Some(now.plus(allowed.saturating_sub(passed)))
}
