//! Explanations, from the core to the wire.

use hodei_proto::v1;
use hodei_raft::View;
use hodei_state::{
    State,
    explain::{Blocker, Explanation, Lack, Standing, Start, Verdict},
    ids::{JobId, Millis, WorkerId},
    score::{Choice, Score},
};

use super::to_proto;

/// Workers that are told of.
const MAX_WORKERS: usize = 1_000;

/// The answer about a job, or about a spec where `job` is absent.
#[must_use]
pub fn response(view: &View, job: Option<JobId>, explanation: &Explanation) -> v1::GetSchedulingDecisionResponse {
    let View { state, position } = view;
    let row = job.and_then(|job| state.job(job));
    let workers = explanation.workers.iter().take(MAX_WORKERS);
    let mut response = v1::GetSchedulingDecisionResponse {
        position: Some(to_proto::position(position.term, position.index)),
        job_id: job.map(|job| job.to_string()).unwrap_or_default(),
        state: row.map(|job| to_proto::state(job.state)).unwrap_or_default().into(),
        ahead: explanation.ahead,
        blocker: explanation.blocker.map(blocker).unwrap_or_default().to_owned(),
        chosen_worker_id: explanation.chosen.map(|worker| worker.to_string()).unwrap_or_default(),
        workers: workers.map(|(worker, verdict)| self::verdict(state, *worker, verdict)).collect(),
        workers_left_off: explanation.workers.len().saturating_sub(MAX_WORKERS) as u64,
        heard: explanation.heard,
        ..v1::GetSchedulingDecisionResponse::default()
    };
    if let Some(Blocker::Backoff { until }) = explanation.blocker {
        response.backoff_until_ms = to_proto::ms(until);
    }
    if let Some(start) = explanation.start {
        let (name, at) = self::start(start);
        response.start = name.to_owned();
        response.start_at_ms = to_proto::optional_ms(at);
    }
    response.standing = standing(&explanation.standing).to_owned();
    match &explanation.standing {
        Standing::Placed { attempt, .. } => {
            response.attempt = state.attempt(attempt.job, attempt.attempt).map(to_proto::attempt);
        }
        Standing::Ended { reason, at, .. } => {
            response.reason = Some(to_proto::reason(reason));
            response.ended_at_ms = to_proto::ms(*at);
        }
        Standing::NotSubmitted | Standing::Pending => {}
    }
    response
}

/// The name of when a job is expected to start, and the time where there is one.
#[must_use]
pub fn start(start: Start) -> (&'static str, Option<Millis>) {
    match start {
        Start::Now => ("now", None),
        Start::AfterBackoff(at) => ("after_backoff", Some(at)),
        Start::ByTimeouts(at) => ("by_timeouts", Some(at)),
        Start::Unknown => ("unknown", None),
    }
}

fn standing(standing: &Standing) -> &'static str {
    match standing {
        Standing::NotSubmitted => "not_submitted",
        Standing::Pending => "pending",
        Standing::Placed { running: false, .. } => "scheduled",
        Standing::Placed { running: true, .. } => "running",
        Standing::Ended { .. } => "ended",
    }
}

/// The name of what blocks a job.
#[must_use]
pub fn blocker(blocker: Blocker) -> &'static str {
    match blocker {
        Blocker::Backoff { .. } => "backoff",
        Blocker::NoWorker => "no_worker",
        Blocker::NoneSuits => "none_suits",
        Blocker::TooSmall => "too_small",
        Blocker::Draining => "draining",
        Blocker::NoneTakesJobs => "none_takes_jobs",
        Blocker::NoRoom => "no_room",
        Blocker::SetAside { .. } => "set_aside",
        Blocker::Preempting => "preempting",
        Blocker::Heartbeat => "heartbeat",
        Blocker::AwaitsBetter => "awaits_better",
        Blocker::Avoids => "avoids",
        Blocker::Behind => "behind",
    }
}

fn verdict(state: &State, worker: WorkerId, verdict: &Verdict) -> v1::WorkerVerdict {
    let hostname = state.worker(worker).map(|worker| worker.hostname.clone()).unwrap_or_default();
    let named = |verdict: &str| v1::WorkerVerdict {
        worker_id: worker.to_string(),
        hostname: hostname.clone(),
        verdict: verdict.to_owned(),
        ..v1::WorkerVerdict::default()
    };
    match verdict {
        Verdict::Fits(score) => v1::WorkerVerdict { score: Some(self::score(score)), ..named("fits") },
        Verdict::Avoided(score) => v1::WorkerVerdict { score: Some(self::score(score)), ..named("avoided") },
        Verdict::Unheard { age, score, awaited } => v1::WorkerVerdict {
            heard_ms_ago: *age,
            score: Some(self::score(score)),
            awaited: *awaited,
            ..named("unheard")
        },
        Verdict::NoRoom { lacks, held_by, free_by } => v1::WorkerVerdict {
            lacks: lacks.iter().map(lack).collect(),
            held_by: held_by.iter().map(ToString::to_string).collect(),
            free_by_ms: to_proto::optional_ms(*free_by),
            ..named("no_room")
        },
        Verdict::TakesNone(state) => {
            v1::WorkerVerdict { state: to_proto::worker_state(*state).to_owned(), ..named("takes_none") }
        }
        Verdict::SetAside(aside) => {
            v1::WorkerVerdict { set_aside: Some(to_proto::set_aside(aside)), ..named("set_aside") }
        }
        Verdict::TooSmall(lacks) => v1::WorkerVerdict { lacks: lacks.iter().map(lack).collect(), ..named("too_small") },
        Verdict::Architecture { wanted, actual } => v1::WorkerVerdict {
            constraint: Some(v1::Constraint {
                attribute: "architecture".to_owned(),
                operator: "=".to_owned(),
                value: wanted.clone(),
            }),
            actual: Some(actual.clone()),
            ..named("architecture")
        },
        Verdict::Constraint { constraint, actual } => v1::WorkerVerdict {
            constraint: Some(to_proto::constraint(constraint)),
            actual: actual.clone(),
            ..named("constraint")
        },
    }
}

fn lack(lack: &Lack) -> v1::Lack {
    v1::Lack { what: lack.what.to_owned(), needed: lack.needed, there: lack.there }
}

/// Why an attempt is where it is.
#[must_use]
pub fn choice(choice: &Choice) -> v1::Choice {
    v1::Choice { candidates: choice.candidates, score: Some(score(&choice.score)) }
}

fn score(score: &Score) -> v1::Score {
    let Score { bin_packing, spread, load, affinity, reliability } = *score;
    v1::Score { total: score.total(), bin_packing, spread, load, affinity, reliability }
}
