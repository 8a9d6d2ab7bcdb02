//! Why a job stands where it stands: what the scheduler would say about it, and about each worker, if it were asked.
//!
//! It goes by the same rules as [`crate::plan()`] (`fit`, `ranking`, `score`), looks at one job and changes nothing. The
//! same is said of a spec that is not submitted yet, as if it were submitted now. Unlike a plan it costs O(workers and
//! their live attempts), for the one job that somebody asks about; how many are ahead is counted up to a bound.
//!
//! Honest rather than hopeful: a start is only foretold from what is certain to pass (a backoff, the time-outs of the
//! attempts that hold the room), and only where nobody is ahead.

use std::cmp::Reverse;

use crate::{
    fit,
    flapping::SetAside,
    ids::{AttemptRef, Caller, JobId, Millis, WorkerId},
    job::{Attempt, Job, JobState, Reason},
    liveness::Hearing,
    plan::{Now, is_hopeful},
    preemption::is_awaited,
    queue::Order,
    ranking::Candidate,
    registry::{Capacity, SessionRef, Worker, WorkerState},
    score::{Choice, Score},
    spec::{Constraint, JobSpec},
    state::State,
};

/// Jobs ahead are counted up to this.
pub const MAX_AHEAD: u64 = 10_000;
/// Jobs named of those that hold a worker's capacity.
const MAX_HOLDERS: usize = 5;

/// What is to be explained.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// A job that is known.
    Job(JobId),
    /// One that is not submitted.
    Spec(&'a JobSpec),
}

/// What is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Where it stands.
    pub standing: Standing,
    /// Jobs before it in the queue, at most [`MAX_AHEAD`]; absent where it is not in the queue.
    pub ahead: Option<u64>,
    /// What keeps it from being placed now; absent where nothing does, or where it is not pending.
    pub blocker: Option<Blocker>,
    /// Where it would go now.
    pub chosen: Option<WorkerId>,
    /// When it is expected to be placed; absent where it is not pending.
    pub start: Option<Start>,
    /// What each worker is to it, in the order of their ids; those that are gone are left out. Empty where it is not
    /// pending.
    pub workers: Vec<(WorkerId, Verdict)>,
    /// Whether it was known what has been heard of workers: only a leader knows.
    pub heard: bool,
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is not submitted.
    NotSubmitted,
    /// It waits.
    Pending,
    /// An attempt is live.
    Placed {
        /// Which.
        attempt: AttemptRef,
        /// Where.
        worker: WorkerId,
        /// Since when.
        since: Millis,
        /// Whether its process runs.
        running: bool,
        /// Why there.
        choice: Choice,
    },
    /// It has ended.
    Ended {
        /// As what.
        state: JobState,
        /// Why.
        reason: Reason,
        /// When.
        at: Millis,
    },
}

/// What keeps a pending job waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blocker {
    /// It waits before its next attempt.
    Backoff {
        /// Until then.
        until: Millis,
    },
    /// There is no worker at all.
    NoWorker,
    /// There are workers, but none that is what it asks for.
    NoneSuits,
    /// Those that are what it asks for are too small, even if nothing ran there.
    TooSmall,
    /// Those that it would fit on are being emptied.
    Draining,
    /// Those that it would fit on take no jobs now.
    NoneTakesJobs,
    /// Those that it would fit on and that could take jobs are set aside.
    SetAside {
        /// The first of them until then.
        until: Millis,
    },
    /// Those that it would fit on and that take jobs are taken by others.
    NoRoom,
    /// Attempts of lower priority are being ended to make room for it.
    Preempting,
    /// There is room, once a worker has been heard of again.
    Heartbeat,
    /// There is room, but a better worker has been asked for a heartbeat, and has half a second to answer.
    AwaitsBetter,
    /// There is room on the worker that has just failed it; another one may yet have some.
    Avoids,
    /// There is room for some of those that ask the same, and they come before it. Said of many jobs at once only
    /// ([`crate::backlog`]).
    Behind,
}

impl Blocker {
    /// Tells the kinds apart, whatever their times.
    pub(crate) fn kind(self) -> u8 {
        match self {
            Self::Backoff { .. } => 0,
            Self::NoWorker => 1,
            Self::NoneSuits => 2,
            Self::TooSmall => 3,
            Self::Draining => 4,
            Self::NoneTakesJobs => 5,
            Self::SetAside { .. } => 6,
            Self::NoRoom => 7,
            Self::Preempting => 8,
            Self::Heartbeat => 9,
            Self::Avoids => 10,
            Self::Behind => 11,
            Self::AwaitsBetter => 12,
        }
    }
}

/// When a job is expected to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Now: in this or the next decision of the scheduler.
    Now,
    /// When its backoff has passed.
    AfterBackoff(Millis),
    /// When the attempts that hold the room have run out of time, at the latest, unless a job of higher priority comes.
    ByTimeouts(Millis),
    /// Nothing is certain.
    Unknown,
}

/// What a worker is to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It fits.
    Fits(Score),
    /// It fits, but has just failed there: only if it fits nowhere else.
    Avoided(Score),
    /// It fits, once the worker has been heard of again.
    Unheard {
        /// The age of its newest heartbeat in milliseconds, if any.
        age: Option<u64>,
        /// What it scores, by what was known of it then.
        score: Score,
        /// Whether a job waits for it that could go to one that scores less.
        awaited: bool,
    },
    /// It would fit, but others hold what it needs.
    NoRoom {
        /// What is free too little of.
        lacks: Vec<Lack>,
        /// Jobs that hold it: some of them.
        held_by: Vec<JobId>,
        /// When time-outs will have freed it at the latest.
        free_by: Option<Millis>,
    },
    /// It would fit, but the worker takes no jobs.
    TakesNone(WorkerState),
    /// It would fit, but the worker is set aside.
    SetAside(SetAside),
    /// It never fits: the worker offers too little.
    TooSmall(Vec<Lack>),
    /// Another architecture.
    Architecture {
        /// What the job asks for.
        wanted: String,
        /// What the worker has.
        actual: String,
    },
    /// A constraint does not hold.
    Constraint {
        /// Which.
        constraint: Constraint,
        /// What the worker has of its attribute.
        actual: Option<String>,
    },
}

/// Too little of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack {
    /// `slots`, `cpu_millis`, `memory_mb`, `storage_mb` or `gpu`.
    pub what: &'static str,
    /// How much the job needs.
    pub needed: u64,
    /// How much there is.
    pub there: u64,
}

/// Explains a job, or one that is not submitted. `hearing` is what the leader has heard of workers, where it is known.
/// `None`: there is no such job.
#[must_use]
pub fn explain(state: &State, hearing: Option<&Hearing>, now: Now, subject: Subject<'_>) -> Option<Explanation> {
    match subject {
        Subject::Spec(spec) => Some(pending(state, hearing, now, None, spec)),
        Subject::Job(id) => {
            let (job, spec) = (state.job(id)?, state.spec(id)?);
            Some(match standing(state, job) {
                Standing::Pending => pending(state, hearing, now, Some(job), &spec),
                standing => Explanation {
                    standing,
                    ahead: None,
                    blocker: None,
                    chosen: None,
                    start: None,
                    workers: Vec::new(),
                    heard: hearing.is_some(),
                },
            })
        }
    }
}

fn standing(state: &State, job: &Job) -> Standing {
    let live = state.attempt(job.id, job.attempt).filter(|attempt| attempt.is_live());
    match (&job.reason, live) {
        (Some(reason), _) => {
            let at = job.finished_at.unwrap_or_default();
            Standing::Ended { state: job.state, reason: (**reason).clone(), at }
        }
        (None, Some(attempt)) => Standing::Placed {
            attempt: attempt.id,
            worker: attempt.worker,
            since: attempt.started_at.unwrap_or(attempt.assigned_at),
            running: attempt.started_at.is_some(),
            choice: attempt.choice,
        },
        (None, None) => Standing::Pending,
    }
}

fn pending(state: &State, hearing: Option<&Hearing>, now: Now, job: Option<&Job>, spec: &JobSpec) -> Explanation {
    let judge = Judge::new(state, hearing, now, job, spec, true);
    let workers: Vec<_> = state.known_workers().map(|worker| (worker.id, judge.verdict(worker))).collect();
    let backoff = job.and_then(|job| job.not_before).filter(|until| *until > now.stamp);
    let order = job.map_or((Reverse(spec.priority), u64::MAX, u32::MAX), |job| crate::index::order(job, spec));
    let ahead = backoff.is_none().then(|| ahead(state, order));
    let blocker = match backoff {
        Some(until) => Some(Blocker::Backoff { until }),
        None => judge.blocker(&workers),
    };
    let start = match blocker {
        Some(Blocker::Backoff { until }) if judge.blocker(&workers).is_none() => Start::AfterBackoff(until),
        _ => start_of(blocker, ahead, &workers),
    };
    Explanation {
        standing: if job.is_some() { Standing::Pending } else { Standing::NotSubmitted },
        ahead,
        blocker,
        chosen: blocker.is_none().then(|| best(&workers)).flatten(),
        start: Some(start),
        workers,
        heard: hearing.is_some(),
    }
}

/// When a job is expected to be placed that is in the queue.
pub(crate) fn start_of(blocker: Option<Blocker>, ahead: Option<u64>, workers: &[(WorkerId, Verdict)]) -> Start {
    match blocker {
        None | Some(Blocker::AwaitsBetter) => Start::Now,
        Some(Blocker::NoRoom | Blocker::Preempting) if ahead == Some(0) => {
            earliest_room(workers).map_or(Start::Unknown, Start::ByTimeouts)
        }
        _ => Start::Unknown,
    }
}

/// How many jobs come before a place in the queue.
fn ahead(state: &State, order: Order) -> u64 {
    let mut walk = state.indexes.queue.walk();
    let mut count = 0;
    while let Some(item) = walk.next().filter(|(item, _)| *item < order && count < MAX_AHEAD) {
        walk.go_on(item);
        count += 1;
    }
    count
}

/// The worker with the best score, the first of equals; the one that the job avoids only where there is no other.
fn best(workers: &[(WorkerId, Verdict)]) -> Option<WorkerId> {
    let score = |verdict: &Verdict| match verdict {
        Verdict::Fits(score) => Some((true, score.total())),
        Verdict::Avoided(score) => Some((false, score.total())),
        _ => None,
    };
    let scored = workers.iter().filter_map(|(worker, verdict)| Some((score(verdict)?, Reverse(*worker))));
    scored.max().map(|(_, Reverse(worker))| worker)
}

fn set_aside_until(workers: &[(WorkerId, Verdict)]) -> Option<Millis> {
    let set_aside = workers.iter().filter_map(|(_, verdict)| match verdict {
        Verdict::SetAside(set_aside) => Some(set_aside.until),
        _ => None,
    });
    set_aside.min()
}

fn earliest_room(workers: &[(WorkerId, Verdict)]) -> Option<Millis> {
    let rooms = workers.iter().filter_map(|(_, verdict)| match verdict {
        Verdict::NoRoom { free_by, .. } => *free_by,
        _ => None,
    });
    rooms.min()
}

/// One job against the workers.
pub(crate) struct Judge<'a> {
    state: &'a State,
    hearing: Option<&'a Hearing>,
    now: Now,
    job: Option<&'a Job>,
    spec: &'a JobSpec,
    needed: Capacity,
    /// Whether to say who holds what is lacking, and until when, which takes a look at every attempt there.
    holders: bool,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(
        state: &'a State,
        hearing: Option<&'a Hearing>,
        now: Now,
        job: Option<&'a Job>,
        spec: &'a JobSpec,
        holders: bool,
    ) -> Self {
        Self { state, hearing, now, job, spec, needed: Capacity::needed(&spec.resources), holders }
    }

    /// What can never change is looked at first.
    pub(crate) fn verdict(&self, worker: &Worker) -> Verdict {
        if let Some(constraint) = fit::constraints(self.spec).iter().find(|one| !fit::holds(one, worker)) {
            let actual = fit::actual(&constraint.attribute, worker).map(str::to_string);
            return Verdict::Constraint { constraint: constraint.clone(), actual };
        }
        if let Some(wanted) = self.spec.resources.architecture.as_ref().filter(|one| **one != worker.architecture) {
            return Verdict::Architecture { wanted: wanted.clone(), actual: worker.architecture.clone() };
        }
        if !worker.capacity.holds(&self.needed) {
            return Verdict::TooSmall(lacks(&worker.capacity, &self.needed));
        }
        if !worker.serves() || self.state.is_revoked(Caller::Agent(worker.id)) {
            return Verdict::TakesNone(worker.state);
        }
        if let Some(set_aside) = worker.set_aside {
            return Verdict::SetAside(set_aside);
        }
        if !worker.free().holds(&self.needed) {
            let holders = self.state.live_attempts(worker.id).map(|attempt| attempt.id.job);
            return Verdict::NoRoom {
                lacks: lacks(&worker.free(), &self.needed),
                held_by: holders.take(if self.holders { MAX_HOLDERS } else { 0 }).collect(),
                free_by: self.holders.then(|| self.free_by(worker)).flatten(),
            };
        }
        let candidate = Candidate::new(worker, &self.state.weights(), self.hearing, self.now.mono);
        if self.hearing.is_some() && candidate.fresh(self.spec).is_none() {
            let (age, awaited) = (candidate.heartbeat.map(|(_, age)| age), candidate.awaited_until.is_some());
            return Verdict::Unheard { age, score: candidate.score(&self.state.weights(), self.spec), awaited };
        }
        let score = candidate.score(&self.state.weights(), self.spec);
        let avoided = self.job.is_some_and(|job| job.avoid == Some(worker.id));
        if avoided { Verdict::Avoided(score) } else { Verdict::Fits(score) }
    }

    pub(crate) fn blocker(&self, workers: &[(WorkerId, Verdict)]) -> Option<Blocker> {
        let any = |is: fn(&Verdict) -> bool| workers.iter().any(|(_, verdict)| is(verdict));
        if any(|verdict| matches!(verdict, Verdict::Fits(_))) {
            return self.awaits_better(workers).then_some(Blocker::AwaitsBetter);
        }
        if any(|verdict| matches!(verdict, Verdict::Avoided(_))) {
            return self.may_yet_answer(workers).then_some(Blocker::Avoids);
        }
        Some(if workers.is_empty() {
            Blocker::NoWorker
        } else if any(|verdict| matches!(verdict, Verdict::Unheard { .. })) {
            Blocker::Heartbeat
        } else if self.job.is_some_and(|job| is_awaited(self.state, job.id)) {
            Blocker::Preempting
        } else if any(|verdict| matches!(verdict, Verdict::NoRoom { .. })) {
            Blocker::NoRoom
        } else if let Some(until) = set_aside_until(workers) {
            Blocker::SetAside { until }
        } else if any(|verdict| matches!(verdict, Verdict::TakesNone(state) if *state != WorkerState::Draining)) {
            Blocker::NoneTakesJobs
        } else if any(|verdict| matches!(verdict, Verdict::TakesNone(_))) {
            Blocker::Draining
        } else if any(|verdict| matches!(verdict, Verdict::TooSmall(_))) {
            Blocker::TooSmall
        } else {
            Blocker::NoneSuits
        })
    }

    /// Whether a worker that is asked for a heartbeat would be better than those that it fits on.
    fn awaits_better(&self, workers: &[(WorkerId, Verdict)]) -> bool {
        let may_be_held =
            self.job.zip(self.hearing).is_none_or(|(job, hearing)| hearing.held_until(job.id, self.now.mono).is_some());
        let fits = workers.iter().filter_map(|(_, verdict)| match verdict {
            Verdict::Fits(score) => Some(score.total()),
            _ => None,
        });
        let best = fits.max();
        may_be_held
            && workers.iter().any(|(worker, verdict)| match verdict {
                Verdict::Unheard { score, awaited: true, .. } => {
                    Some(score.total()) > best && self.job.is_none_or(|job| job.avoid != Some(*worker))
                }
                _ => false,
            })
    }

    /// Whether a worker that is not heard of is worth waiting for, rather than going back to the one that has failed.
    fn may_yet_answer(&self, workers: &[(WorkerId, Verdict)]) -> bool {
        let unheard = workers.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Unheard { .. }));
        let unheard = unheard.filter(|(worker, _)| self.job.is_none_or(|job| job.avoid != Some(*worker)));
        let mut unheard = unheard.filter_map(|(worker, _)| self.state.worker(*worker));
        unheard.any(|worker| {
            let on = SessionRef { worker: worker.id, session: worker.session };
            self.hearing.is_some_and(|hearing| is_hopeful(hearing, on, self.spec, self.now.mono))
        })
    }

    /// When the time-outs of the attempts there will have freed enough.
    fn free_by(&self, worker: &Worker) -> Option<Millis> {
        let attempts = self.state.live_attempts(worker.id);
        let mut ends: Vec<_> = attempts.filter_map(|attempt| self.ends_by(attempt)).collect();
        ends.sort_by_key(|(at, _)| *at);
        let mut free = worker.free();
        ends.into_iter().find_map(|(at, freed)| {
            free = free.plus(&freed);
            free.holds(&self.needed).then_some(at)
        })
    }

    /// When an attempt ends at the latest, where that is known, and what it gives back.
    fn ends_by(&self, attempt: &Attempt) -> Option<(Millis, Capacity)> {
        let spec = self.state.spec(attempt.id.job)?;
        let cancelled = self.state.job(attempt.id.job).is_some_and(|job| job.cancel.is_some());
        let by = if cancelled || attempt.taken_back.is_some() {
            self.now.stamp.plus(spec.grace_period_ms)
        } else {
            let started = attempt.started_at.unwrap_or(self.now.stamp);
            started.plus(spec.timeout_ms?).plus(spec.grace_period_ms).max(self.now.stamp)
        };
        Some((by, Capacity::needed(&spec.resources)))
    }
}

fn lacks(there: &Capacity, needed: &Capacity) -> Vec<Lack> {
    let kinds = [
        ("slots", u64::from(needed.slots), u64::from(there.slots)),
        ("cpu_millis", needed.cpu_millis, there.cpu_millis),
        ("memory_mb", needed.memory_mb, there.memory_mb),
        ("storage_mb", needed.storage_mb, there.storage_mb),
        ("gpu", u64::from(needed.gpu), u64::from(there.gpu)),
    ];
    let short = kinds.into_iter().filter(|(_, needed, there)| needed > there);
    short.map(|(what, needed, there)| Lack { what, needed, there }).collect()
}
