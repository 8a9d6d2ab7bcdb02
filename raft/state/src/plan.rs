//! The scheduler: which pending job goes where. It decides on a view and acts on nothing; `apply` checks every decision
//! again, so that a plan made on an old view wastes a log entry at worst.
//!
//! Jobs by priority, then age. For each: filter the workers (capacity, constraints, a heartbeat that a lease can stand
//! on), take the one that scores best (`score`), the first of equals, but not the one on which it has just failed while
//! another fits.
//!
//! A worker whose heartbeat is too old for the job's lease is asked for one. Where it would score better than the best of
//! the others, the job is held: it keeps room on both, for at most half a second from the asking, and half a second in all
//! (`Hearing`). A worker that has not answered by then is waited for no more until it is heard of again.
//!
//! # What it costs
//!
//! Jobs that ask the same are one class, which is ranked once per plan (`ranking`): O(workers with a free slot). From
//! then on each job of it costs O(log workers), and once one does not fit, the rest of the class is not looked at (see
//! `queue`): how many jobs are pending does not matter. The worst case, very many classes that fit nowhere, is bounded
//! per call; those that ask for more than any worker has left cost O(1) each. Where preemptible attempts run and a job
//! of higher priority fits nowhere, they are looked at once per plan (`preemption`).
//!
//! Deliberately missing, as yet: dependencies, arrays.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    command::Command,
    fit::suits,
    ids::{Caller, JobId, Millis, Mono, WorkerId},
    job::Job,
    liveness::{Hearing, Liveness},
    preemption::{self, Reserved, Victims},
    queue::{Class, Order, class_of},
    ranking::{Candidate, Ranking},
    registry::{Capacity, SessionRef, Worker},
    score::{Choice, Weights},
    spec::JobSpec,
    state::State,
};

/// Decisions per call; the next call goes on.
const MAX_COMMANDS: usize = 1_024;
/// Workers ranked for a class, per call.
const MAX_PROBES: usize = 200_000;
/// Jobs for which attempts are ended, per call.
const MAX_PREEMPTIONS: u32 = 64;
/// Jobs considered without success, per call.
const MAX_MISSES: u32 = 10_000;

/// How long a job that avoids a worker waits for the heartbeat of another one.
const PATIENCE_MS: u64 = 5_000;
/// When to plan again while jobs wait for a heartbeat, should nothing else be a reason before.
const ASK_AGAIN_MS: u64 = 1_000;

/// The leader's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For leases.
    pub mono: Mono,
    /// The stamp that an entry proposed now would bear: for backoffs.
    pub stamp: Millis,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Assigns, preemptions, drains whose deadline has passed, and workers that are set aside no more; to be proposed in
    /// the term of the [`Liveness`] that they stand on.
    pub commands: Vec<Command>,
    /// Jobs wait for a fresh heartbeat of these: their gateways are to ask for one. Named by each plan until it is there.
    /// [`Liveness::asked`] is to be told.
    pub ask_heartbeat: Vec<WorkerId>,
    /// Jobs that could be placed, but are held for a better worker that is asked. [`Liveness::asked`] is to be told.
    pub held: Vec<JobId>,
    /// Plan again then, if nothing else is a reason before: the next end of a backoff, deadline of a drain or end of a
    /// worker's being set aside, or soon while jobs wait for a heartbeat.
    pub wake_at: Option<Millis>,
}

/// Decides. Call again once its commands are applied, or when jobs or workers have changed.
#[must_use]
pub fn plan(state: &State, liveness: &Liveness, now: Now) -> Plan {
    let mut planner = Planner::new(state, liveness, now);
    planner.place_all();
    planner.finish()
}

/// What came of one job.
enum Placement {
    /// On this candidate, standing on this heartbeat, for this reason.
    On(usize, u64, Choice),
    /// On the first of these candidates, once it is heard of again; otherwise on the second.
    Held(usize, usize),
    /// Nowhere now because it avoids a worker, or room is being made for it; others of its class may fare better.
    Later,
    /// Nowhere, nor does any of its class fit. `hopeful`: there is room, once a worker is heard of again.
    Nowhere { hopeful: bool },
}

struct Planner<'a> {
    state: &'a State,
    hearing: &'a Hearing,
    now: Now,
    weights: Weights,
    /// Workers that had a free slot when the plan began.
    candidates: Vec<Candidate<'a>>,
    /// How many of them still have one.
    open: usize,
    /// What the largest of them had left, each in its kind: more fits nowhere.
    largest: Capacity,
    rankings: BTreeMap<Class, Ranking>,
    /// The candidate of each assignment so far.
    assigned: Vec<usize>,
    misfits: BTreeSet<Class>,
    reserved: Reserved,
    victims: Option<Victims>,
    preemptions: u32,
    asked: BTreeSet<WorkerId>,
    held: Vec<JobId>,
    /// When the first of the held jobs is held no more.
    held_until: Option<Mono>,
    commands: Vec<Command>,
    probes: usize,
    misses: u32,
}

impl<'a> Planner<'a> {
    fn new(state: &'a State, liveness: &'a Liveness, now: Now) -> Self {
        let (hearing, weights) = (liveness.hearing(), state.weights());
        let nothing_to_do = state.indexes.queue.is_empty() && state.indexes.backoff.is_empty();
        let available = state.indexes.available.iter().filter(|_| !nothing_to_do).filter_map(|id| state.worker(*id));
        let candidates: Vec<_> = available
            .filter(|worker| !state.is_revoked(Caller::Agent(worker.id)))
            .map(|worker| Candidate::new(worker, &weights, Some(hearing), now.mono))
            .collect();
        let free = candidates.iter().map(|candidate| candidate.free);
        Self {
            state,
            hearing,
            now,
            weights,
            open: candidates.len(),
            largest: free.fold(Capacity::default(), |largest, free| largest.or_more(&free)),
            candidates,
            rankings: BTreeMap::new(),
            assigned: Vec::new(),
            misfits: BTreeSet::new(),
            reserved: Reserved::new(state),
            victims: None,
            preemptions: 0,
            asked: BTreeSet::new(),
            held: Vec::new(),
            held_until: None,
            commands: Vec::new(),
            probes: 0,
            misses: 0,
        }
    }

    /// Walks the queue, and what has come out of backoff since the newest stamp, as long as there is something to place
    /// it on.
    fn place_all(&mut self) {
        let mut walk = self.state.indexes.queue.walk();
        let mut released = self.released();
        while self.may_go_on() {
            let queued = walk.peek();
            let first_released = released.first_key_value().map(|(order, class)| (*order, *class));
            match (queued, first_released) {
                (None, None) => break,
                (Some(item), other) if other.is_none_or(|other| item < other) => {
                    walk.next();
                    if self.place(item) {
                        walk.go_on(item);
                    }
                }
                (_, Some(item)) => {
                    released.pop_first();
                    self.place(item);
                }
                (Some(_), None) => unreachable!("a queued item without a released one is taken above"),
            }
        }
    }

    fn may_go_on(&self) -> bool {
        let bounded = self.commands.len() < MAX_COMMANDS && self.probes < MAX_PROBES && self.misses < MAX_MISSES;
        bounded && (self.open > 0 || self.may_preempt())
    }

    fn may_preempt(&self) -> bool {
        self.preemptions < MAX_PREEMPTIONS && !self.state.indexes.victims.is_empty()
    }

    /// Jobs whose backoff has passed by the leader's clock, but not yet by the newest applied stamp.
    fn released(&self) -> BTreeMap<Order, Class> {
        let backoff = self.state.indexes.backoff.iter();
        let due = backoff.take_while(|(until, _)| *until <= self.now.stamp).take(MAX_COMMANDS);
        due.filter_map(|&(_, position)| {
            let job = self.state.submitted_at_position(position)?;
            let spec = self.state.spec(job.id)?;
            Some((crate::index::order(job, &spec), class_of(&spec)))
        })
        .collect()
    }

    /// Tries to place a job; whether its class is worth going on with.
    fn place(&mut self, (order, class): (Order, Class)) -> bool {
        let Some(job) = self.state.queued_job(order) else {
            return false;
        };
        if self.misfits.contains(&class) {
            return false;
        }
        let Some(spec) = self.state.spec(job.id) else {
            return false;
        };
        match self.choose(job, &spec, (order, class)) {
            Placement::On(at, heartbeat, choice) => self.assign(job, &spec, at, heartbeat, choice),
            Placement::Held(better, fallback) => self.hold(job, &spec, better, fallback),
            Placement::Later => self.misses += 1,
            Placement::Nowhere { hopeful } => {
                self.misses += 1;
                if preemption::is_awaited(self.state, job.id) {
                    return true;
                }
                // What held jobs keep on two workers, they will give back on one.
                if !hopeful && self.held.is_empty() {
                    self.preempt(job, &spec, order);
                }
                self.misfits.insert(class);
                return false;
            }
        }
        true
    }

    /// Has attempts of lower priority ended, where the job fits then.
    fn preempt(&mut self, job: &Job, spec: &JobSpec, order: Order) {
        let cheapest = self.state.indexes.victims.get_min().map(|(priority, _)| *priority);
        if !self.may_preempt() || cheapest.is_none_or(|priority| priority >= spec.priority) {
            return;
        }
        let (state, candidates, reserved) = (self.state, &self.candidates, &self.reserved);
        let victims = self.victims.get_or_insert_with(|| Victims::new(state));
        let attempts = victims.take(state, job, spec, |worker| {
            let at = candidates.binary_search_by_key(&worker.id, |candidate| candidate.worker.id);
            let free = at.map_or_else(|_| worker.free(), |at| candidates[at].free);
            reserved.left(worker.id, free, order)
        });
        self.preemptions += u32::from(!attempts.is_empty());
        self.commands.extend(attempts.into_iter().map(|attempt| Command::Preempt { attempt, for_job: job.id }));
    }

    fn choose(&mut self, job: &Job, spec: &JobSpec, (order, class): (Order, Class)) -> Placement {
        if self.open == 0 || !self.largest.holds(&Capacity::needed(&spec.resources)) {
            return Placement::Nowhere { hopeful: false };
        }
        let ranking = self.ranked(spec, class);
        let placement = self.best_of(&ranking, job, spec, order);
        self.rankings.insert(class, ranking);
        placement
    }

    /// The ranking of a class, in step with what has been given away.
    fn ranked(&mut self, spec: &JobSpec, class: Class) -> Ranking {
        match self.rankings.remove(&class) {
            Some(mut ranking) => {
                ranking.follow(&self.assigned, &self.candidates, &self.weights, spec);
                ranking
            }
            None => {
                self.probes += self.candidates.len();
                Ranking::new(&self.candidates, &self.weights, spec, self.assigned.len())
            }
        }
    }

    fn best_of(&mut self, ranking: &Ranking, job: &Job, spec: &JobSpec, order: Order) -> Placement {
        let mut on_avoided = None;
        for at in ranking.best() {
            let candidate = &self.candidates[at];
            let Some(heartbeat) = candidate.fresh(spec).filter(|_| self.takes(at, spec, order)) else {
                continue;
            };
            let place = Placement::On(at, heartbeat, ranking.choice(candidate, &self.weights, spec));
            if job.avoid != Some(candidate.worker.id) {
                let better = self.better(ranking, job, spec, order, at);
                return better.map_or(place, |better| Placement::Held(better, at));
            }
            on_avoided = Some(place);
        }
        let stale = ranking.stale.iter().map(|at| self.candidates[*at].worker);
        self.asked.extend(stale.clone().map(|worker| worker.id));
        let hopeful = stale
            .filter(|worker| job.avoid != Some(worker.id))
            .any(|worker| is_hopeful(self.hearing, session_of(worker), spec, self.now.mono));
        match on_avoided {
            Some(place) if !hopeful => place,
            Some(_) => Placement::Later,
            None => Placement::Nowhere { hopeful },
        }
    }

    /// Whether a candidate of the job's class may have it.
    fn takes(&self, at: usize, spec: &JobSpec, order: Order) -> bool {
        let Candidate { worker, free, .. } = &self.candidates[at];
        // Two classes may share a hash, and then a ranking: what fits one may not fit the other.
        suits(spec, worker)
            && (self.reserved.is_empty()
                || self.reserved.left(worker.id, *free, order).holds(&Capacity::needed(&spec.resources)))
    }

    /// A worker that the job would be better off on than on this one, and that is asked whether it is there.
    fn better(&mut self, ranking: &Ranking, job: &Job, spec: &JobSpec, order: Order, than: usize) -> Option<usize> {
        self.hearing.held_until(job.id, self.now.mono)?;
        let serves = |at: &usize| job.avoid != Some(self.candidates[*at].worker.id) && self.takes(*at, spec, order);
        let better = ranking.better(than).find(serves)?;
        // Should it not answer, the next one may: all are asked with the first.
        if self.asked.insert(self.candidates[better].worker.id) {
            self.asked.extend(ranking.better(than).map(|at| self.candidates[at].worker.id));
        }
        Some(better)
    }

    /// Keeps room for the job on both, so that it can have either.
    fn hold(&mut self, job: &Job, spec: &JobSpec, better: usize, fallback: usize) {
        self.misses += 1;
        self.held.push(job.id);
        let until = [self.candidates[better].awaited_until, self.hearing.held_until(job.id, self.now.mono)];
        self.held_until = self.held_until.into_iter().chain(until.into_iter().flatten()).min();
        self.take(better, spec);
        self.take(fallback, spec);
    }

    fn take(&mut self, at: usize, spec: &JobSpec) {
        let candidate = &mut self.candidates[at];
        candidate.free = candidate.free.minus(&Capacity::needed(&spec.resources));
        if candidate.free.slots == 0 {
            self.open -= 1;
        }
        self.assigned.push(at);
    }

    fn assign(&mut self, job: &Job, spec: &JobSpec, at: usize, heartbeat: u64, choice: Choice) {
        self.take(at, spec);
        let on = session_of(self.candidates[at].worker);
        let attempt = job.attempt.saturating_add(1);
        self.commands.push(Command::Assign { job: job.id, attempt, on, heartbeat, choice });
    }

    /// Drains whose deadline has passed.
    fn overdue_drains(&self) -> Vec<Command> {
        let due = self.state.indexes.drains.iter().take_while(|(due, _)| *due <= self.now.stamp).take(MAX_COMMANDS);
        due.filter_map(|&(_, worker)| {
            let nonce = self.state.worker(worker)?.drain?.nonce;
            Some(Command::DrainOverdue { worker, nonce })
        })
        .collect()
    }

    /// Workers that have been set aside for long enough.
    fn set_aside_no_more(&self) -> Vec<Command> {
        let over = self.state.indexes.set_aside.iter().take_while(|(until, _)| *until <= self.now.stamp);
        over.take(MAX_COMMANDS).map(|&(_, worker)| Command::SetAsideOver { worker }).collect()
    }

    fn finish(mut self) -> Plan {
        self.commands.extend(self.overdue_drains());
        self.commands.extend(self.set_aside_no_more());
        let later = (self.now.stamp.plus(1), WorkerId(0));
        let drained = self.state.indexes.drains.range(later..).next().map(|&(due, _)| due);
        let set_aside = self.state.indexes.set_aside.range(later..).next().map(|&(until, _)| until);
        let next = self.state.indexes.backoff.range((self.now.stamp.plus(1), (0, 0))..).next();
        let next = next.map(|&(until, _)| until);
        let ask_again = (!self.asked.is_empty()).then(|| self.now.stamp.plus(ASK_AGAIN_MS));
        let held = self.held_until.map(|until| self.now.stamp.plus(until.0.saturating_sub(self.now.mono.0)));
        Plan {
            commands: self.commands,
            ask_heartbeat: self.asked.into_iter().collect(),
            held: self.held,
            wake_at: next.into_iter().chain(ask_again).chain(held).chain(drained).chain(set_aside).min(),
        }
    }
}

/// Whether a worker without a fresh heartbeat is worth waiting for, rather than going back to the one on which a job has
/// just failed: one that was heard of until lately may well answer.
pub(crate) fn is_hopeful(hearing: &Hearing, on: SessionRef, spec: &JobSpec, now: Mono) -> bool {
    let patience = (spec.lost_after_ms / 3).saturating_add(PATIENCE_MS);
    hearing.silence(on, now) <= patience
}

fn session_of(worker: &Worker) -> SessionRef {
    SessionRef { worker: worker.id, session: worker.session }
}
