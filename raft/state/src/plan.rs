//! The scheduler: which pending job goes where. It decides on a view and acts on nothing; `apply` checks every decision
//! again, so that a plan made on an old view wastes a log entry at worst.
//!
//! First fit: jobs by priority, then age; workers by id; the first with room whose lease can be stood on. The cost is
//! that of the decisions: jobs that ask the same are one class, and once one of them does not fit, the rest of the class
//! is not looked at (see `queue`). The worst case, very many classes that fit nowhere, is bounded per call.
//!
//! Deliberately missing, as yet: preferences, spreading, preemption, dependencies, arrays.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    command::Command,
    fit::suits,
    ids::{Caller, Millis, Mono, WorkerId},
    job::Job,
    liveness::Liveness,
    queue::{Class, Order, class_of},
    registry::{Capacity, SessionRef, Worker},
    spec::JobSpec,
    state::State,
};

/// Decisions per call; the next call goes on.
const MAX_COMMANDS: usize = 1_024;
/// Looks at a worker for a job, per call.
const MAX_PROBES: u32 = 200_000;
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
    /// Assigns, and drains whose deadline has passed; to be proposed in the term of the [`Liveness`] that they stand on.
    pub commands: Vec<Command>,
    /// Jobs wait for a fresh heartbeat of these: their gateways are to ask for one. Named by each plan until it is there.
    pub ask_heartbeat: Vec<WorkerId>,
    /// Plan again then, if nothing else is a reason before: the next end of a backoff or deadline of a drain, or soon while jobs wait for a
    /// heartbeat.
    pub wake_at: Option<Millis>,
}

/// Decides. Call again once its commands are applied, or when jobs or workers have changed.
#[must_use]
pub fn plan(state: &State, liveness: &Liveness, now: Now) -> Plan {
    let mut planner = Planner::new(state, liveness, now);
    planner.place_all();
    planner.finish()
}

/// A worker with what this plan has left of it.
struct Candidate<'a> {
    worker: &'a Worker,
    free: Capacity,
}

/// What came of one job.
enum Placement {
    /// On this worker (its place among the candidates), standing on this heartbeat.
    On(usize, u64),
    /// Nowhere now because it avoids a worker; others of its class may fare better.
    Avoids,
    /// Nowhere, nor does any of its class fit.
    Nowhere,
}

struct Planner<'a> {
    state: &'a State,
    liveness: &'a Liveness,
    now: Now,
    /// Workers not looked at yet.
    unseen: Box<dyn Iterator<Item = &'a Worker> + 'a>,
    /// Workers looked at that still have a slot, in order.
    candidates: Vec<Candidate<'a>>,
    misfits: BTreeSet<Class>,
    asked: BTreeSet<WorkerId>,
    commands: Vec<Command>,
    probes: u32,
    misses: u32,
}

impl<'a> Planner<'a> {
    fn new(state: &'a State, liveness: &'a Liveness, now: Now) -> Self {
        let available = state.indexes.available.iter().filter_map(move |id| state.worker(*id));
        Self {
            state,
            liveness,
            now,
            unseen: Box::new(available.filter(move |worker| !state.is_revoked(Caller::Agent(worker.id)))),
            candidates: Vec::new(),
            misfits: BTreeSet::new(),
            asked: BTreeSet::new(),
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

    fn may_go_on(&mut self) -> bool {
        let bounded = self.commands.len() < MAX_COMMANDS && self.probes < MAX_PROBES && self.misses < MAX_MISSES;
        bounded && (!self.candidates.is_empty() || self.pull())
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

    /// Looks at one more worker; false: there is none.
    fn pull(&mut self) -> bool {
        match self.unseen.next() {
            Some(worker) => {
                self.candidates.push(Candidate { worker, free: worker.free() });
                true
            }
            None => false,
        }
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
        match self.choose(job, &spec) {
            Placement::On(at, heartbeat) => self.assign(job, &spec, at, heartbeat),
            Placement::Avoids => self.misses += 1,
            Placement::Nowhere => {
                self.misses += 1;
                self.misfits.insert(class);
                return false;
            }
        }
        true
    }

    fn choose(&mut self, job: &Job, spec: &JobSpec) -> Placement {
        let needed = Capacity::needed(&spec.resources);
        let mut on_avoided = None;
        let mut stale = Vec::new();
        let mut at = 0;
        while at < self.candidates.len() || self.pull() {
            self.probes += 1;
            let Candidate { worker, free } = &self.candidates[at];
            if free.holds(&needed) && suits(spec, worker) {
                let avoided = job.avoid == Some(worker.id);
                match self.fresh(worker, spec) {
                    Some(heartbeat) if avoided => on_avoided = Some((at, heartbeat)),
                    Some(heartbeat) => return Placement::On(at, heartbeat),
                    None => stale.push((worker.id, session_of(worker), avoided)),
                }
            }
            at += 1;
        }
        self.asked.extend(stale.iter().map(|(worker, ..)| *worker));
        // A worker that was heard of until lately may well answer: worth waiting for rather than going back to the one
        // that has just failed.
        let patience = (spec.lost_after_ms / 3).saturating_add(PATIENCE_MS);
        let hopeful = stale
            .iter()
            .any(|&(_, session, avoided)| !avoided && self.liveness.silence(session, self.now.mono) <= patience);
        match on_avoided {
            Some((at, heartbeat)) if !hopeful => Placement::On(at, heartbeat),
            Some(_) => Placement::Avoids,
            None => Placement::Nowhere,
        }
    }

    /// The heartbeat that an Assign may stand on: a third of the lease old at most, so that most of it is still to come.
    fn fresh(&self, worker: &Worker, spec: &JobSpec) -> Option<u64> {
        let (sequence, age) = self.liveness.heartbeat(session_of(worker), self.now.mono)?;
        (age <= spec.lost_after_ms / 3).then_some(sequence)
    }

    fn assign(&mut self, job: &Job, spec: &JobSpec, at: usize, heartbeat: u64) {
        let candidate = &mut self.candidates[at];
        candidate.free = candidate.free.minus(&Capacity::needed(&spec.resources));
        let on = session_of(candidate.worker);
        if candidate.free.slots == 0 {
            self.candidates.remove(at);
        }
        let attempt = job.attempt.saturating_add(1);
        self.commands.push(Command::Assign { job: job.id, attempt, on, heartbeat });
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

    fn finish(mut self) -> Plan {
        self.commands.extend(self.overdue_drains());
        let drained = self.state.indexes.drains.range((self.now.stamp.plus(1), WorkerId(0))..).next();
        let drained = drained.map(|&(due, _)| due);
        let next = self.state.indexes.backoff.range((self.now.stamp.plus(1), (0, 0))..).next();
        let next = next.map(|&(until, _)| until);
        let ask_again = (!self.asked.is_empty()).then(|| self.now.stamp.plus(ASK_AGAIN_MS));
        Plan {
            commands: self.commands,
            ask_heartbeat: self.asked.into_iter().collect(),
            wake_at: next.into_iter().chain(ask_again).chain(drained).min(),
        }
    }
}

fn session_of(worker: &Worker) -> SessionRef {
    SessionRef { worker: worker.id, session: worker.session }
}
