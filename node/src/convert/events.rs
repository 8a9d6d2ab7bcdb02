//! Events, from the core to the wire.

use hodei_proto::v1;
use hodei_state::{
    events::{End, Event, EventPosition, Occurred},
    ids::Caller,
    job::{StartFailure, TakenBack},
};

use super::to_proto::{identity, ms, optional_ms, state};

/// All kinds of events, as they are spelled on the wire. What precedes the first `_` is a kind's group.
pub const KINDS: &[&str] = &[
    "cluster_initialised",
    "node_joined",
    "node_started",
    "node_removed",
    "feature_level_raised",
    "token_created",
    "token_used",
    "token_revoked",
    "job_submitted",
    "job_scheduled",
    "job_started",
    "job_cancel_requested",
    "attempt_lost",
    "job_requeued",
    "job_ended",
    "jobs_removed",
    "worker_registered",
    "worker_attached",
    "worker_detached",
    "worker_closed",
    "worker_drained",
    "worker_drain_overdue",
    "worker_undrained",
    "worker_removed",
    "worker_set_aside",
    "worker_set_aside_ended",
    "job_preempted",
    "secret_used",
    "node_replaced",
    "cluster_recovered",
];

/// The spelling of an event's kind.
#[must_use]
pub fn kind(event: &Event) -> &'static str {
    match event {
        Event::ClusterInitialised => "cluster_initialised",
        Event::NodeJoined { .. } => "node_joined",
        Event::NodeStarted { .. } => "node_started",
        Event::NodeRemoved { .. } => "node_removed",
        Event::FeatureLevelRaised { .. } => "feature_level_raised",
        Event::TokenCreated { .. } => "token_created",
        Event::TokenUsed { .. } => "token_used",
        Event::TokenRevoked { .. } => "token_revoked",
        Event::JobSubmitted { .. } => "job_submitted",
        Event::JobScheduled { .. } => "job_scheduled",
        Event::JobStarted { .. } => "job_started",
        Event::JobCancelRequested { .. } => "job_cancel_requested",
        Event::AttemptLost { .. } => "attempt_lost",
        Event::JobRequeued { .. } => "job_requeued",
        Event::JobEnded { .. } => "job_ended",
        Event::JobsRemoved { .. } => "jobs_removed",
        Event::WorkerRegistered { .. } => "worker_registered",
        Event::WorkerAttached { .. } => "worker_attached",
        Event::WorkerDetached { .. } => "worker_detached",
        Event::WorkerClosed { .. } => "worker_closed",
        Event::WorkerDrained { .. } => "worker_drained",
        Event::WorkerDrainOverdue { .. } => "worker_drain_overdue",
        Event::WorkerUndrained { .. } => "worker_undrained",
        Event::WorkerRemoved { .. } => "worker_removed",
        Event::WorkerSetAside { .. } => "worker_set_aside",
        Event::WorkerSetAsideEnded { .. } => "worker_set_aside_ended",
        Event::JobPreempted { .. } => "job_preempted",
        Event::SecretUsed { .. } => "secret_used",
        Event::NodeReplaced { .. } => "node_replaced",
        Event::ClusterRecovered { .. } => "cluster_recovered",
    }
}

/// Whether a kind is `wanted`, or of the group that is.
#[must_use]
pub fn is_of(kind: &str, wanted: &str) -> bool {
    kind == wanted || group(kind) == wanted
}

fn group(kind: &str) -> &str {
    match kind {
        "attempt_lost" | "jobs_removed" => "job",
        "cluster_initialised" | "cluster_recovered" | "feature_level_raised" => "node",
        _ => kind.split('_').next().unwrap_or(kind),
    }
}

/// A position.
#[must_use]
pub fn position(position: EventPosition) -> v1::EventPosition {
    v1::EventPosition { index: position.index, offset: position.offset }
}

/// An event.
#[must_use]
pub fn event(occurred: &Occurred) -> v1::ExecutionEvent {
    let Occurred { position, at, event } = occurred;
    let mut wire = v1::ExecutionEvent {
        position: Some(self::position(*position)),
        at_ms: ms(*at),
        kind: kind(event).into(),
        job_id: event.job().map(|job| job.to_string()).unwrap_or_default(),
        worker_id: event.worker().map(|worker| worker.to_string()).unwrap_or_default(),
        by: by(event).map(|by| identity(&by)),
        ..v1::ExecutionEvent::default()
    };
    fill(&mut wire, event);
    wire
}

fn by(event: &Event) -> Option<Caller> {
    match event {
        Event::NodeRemoved { by, .. }
        | Event::FeatureLevelRaised { by, .. }
        | Event::TokenCreated { by, .. }
        | Event::TokenRevoked { by, .. }
        | Event::JobSubmitted { by, .. }
        | Event::JobCancelRequested { by, .. }
        | Event::JobsRemoved { by, .. }
        | Event::WorkerDrained { by, .. }
        | Event::WorkerUndrained { by, .. }
        | Event::WorkerRemoved { by, .. } => Some(*by),
        Event::WorkerSetAsideEnded { by, .. } => *by,
        _ => None,
    }
}

/// What only some kinds have.
fn fill(wire: &mut v1::ExecutionEvent, event: &Event) {
    match event {
        Event::NodeJoined { node }
        | Event::NodeStarted { node }
        | Event::NodeRemoved { node, .. }
        | Event::ClusterRecovered { survivor: node }
        | Event::WorkerAttached { node, .. } => wire.node_id = *node,
        Event::NodeReplaced { node, replacement } => {
            wire.node_id = *node;
            wire.issued = Some(identity(&Caller::Node(*replacement)));
        }
        Event::FeatureLevelRaised { level, .. } => wire.feature_level = *level,
        Event::TokenCreated { token, role, .. } => {
            wire.token_id = token.to_string();
            wire.set_role(super::to_proto::role(*role));
        }
        Event::TokenUsed { token, issued } => {
            wire.token_id = token.to_string();
            wire.issued = Some(identity(issued));
        }
        Event::TokenRevoked { token, .. } => wire.token_id = token.to_string(),
        Event::JobScheduled { attempt, .. }
        | Event::JobStarted { attempt, .. }
        | Event::AttemptLost { attempt, .. } => wire.attempt = *attempt,
        Event::JobRequeued { attempt, end, .. } => {
            wire.attempt = *attempt;
            wire.reason = Some(reason(end));
        }
        Event::JobEnded { attempt, state: ended, end, .. } => {
            wire.attempt = *attempt;
            wire.set_state(state(*ended));
            wire.reason = Some(reason(end));
        }
        Event::JobPreempted { attempt, for_job, .. } => {
            wire.attempt = *attempt;
            wire.for_job_id = for_job.to_string();
        }
        Event::SecretUsed { attempt, name, version, .. } => {
            wire.attempt = *attempt;
            wire.secret.clone_from(name);
            wire.secret_version = *version;
        }
        Event::JobsRemoved { jobs, .. } => wire.jobs = *jobs,
        Event::WorkerRegistered { session, .. } => wire.session_id = session.to_string(),
        Event::WorkerDrained { deadline, requeue, .. } => {
            wire.deadline_ms = optional_ms(*deadline);
            wire.requeue = *requeue;
        }
        Event::WorkerRemoved { force, .. } => wire.force = *force,
        Event::WorkerSetAside { until, sessions, attempts, .. } => {
            let (until_ms, sessions, attempts) = (ms(*until), *sessions, *attempts);
            wire.set_aside = Some(v1::WorkerSetAside { since_ms: 0, until_ms, sessions, attempts });
        }
        Event::ClusterInitialised
        | Event::JobSubmitted { .. }
        | Event::JobCancelRequested { .. }
        | Event::WorkerDetached { .. }
        | Event::WorkerClosed { .. }
        | Event::WorkerDrainOverdue { .. }
        | Event::WorkerUndrained { .. }
        | Event::WorkerSetAsideEnded { .. } => {}
    }
}

/// As in a job's own reason, without what it says at length.
fn reason(end: &End) -> v1::Reason {
    let kind = |kind: &str| v1::Reason { kind: kind.into(), ..v1::Reason::default() };
    match end {
        End::Exited(code) => v1::Reason { exit_code: Some(*code), ..kind("exited") },
        End::Signaled(signal) => v1::Reason { signal: Some(*signal), ..kind("signaled") },
        End::OutOfMemory => kind("out_of_memory"),
        End::WorkerLost => kind("worker_lost"),
        End::NotProvisioned => kind("not_provisioned"),
        End::Cancelled => kind("cancelled"),
        End::Timeout => kind("timeout"),
        End::CouldNotStart(cause) => {
            let cause = match cause {
                StartFailure::NotFound => "not_found",
                StartFailure::NotPermitted => "not_permitted",
                StartFailure::NoSecret => "no_secret",
                StartFailure::NoDirectory => "no_directory",
                StartFailure::Other => "other",
            };
            v1::Reason { cause: cause.into(), ..kind("could_not_start") }
        }
        End::TakenBack(why) => {
            let cause = match why {
                TakenBack::Drained => "drained",
                TakenBack::Preempted { .. } => "preempted",
            };
            v1::Reason { cause: cause.into(), ..kind("taken_back") }
        }
    }
}

#[cfg(test)]
mod tests {
    use hodei_state::ids::{JobId, Millis, TokenId, WorkerId};

    use super::*;

    #[test]
    fn kinds_have_groups() {
        for kind in KINDS {
            assert!(["job", "worker", "node", "token", "secret"].contains(&group(kind)), "{kind}");
            assert!(is_of(kind, kind) && is_of(kind, group(kind)));
        }
        assert!(!is_of("job_ended", "worker"));
    }

    #[test]
    fn who_did_it_and_to_whom_is_said() {
        let (worker, token) = (WorkerId(7), TokenId(8));
        let used = Event::TokenUsed { token, issued: Caller::Agent(worker) };
        let occurred = |event| Occurred { position: EventPosition { index: 3, offset: 1 }, at: Millis(5), event };
        let wire = event(&occurred(used));
        assert_eq!((wire.token_id, wire.worker_id), (token.to_string(), worker.to_string()));
        assert_eq!(wire.issued.unwrap().role(), v1::Role::Agent);
        let submitted = event(&occurred(Event::JobSubmitted { job: JobId(1), by: Caller::Node(1) }));
        assert!(KINDS.contains(&submitted.kind.as_str()) && submitted.by.is_some());
        assert_eq!(submitted.position, Some(v1::EventPosition { index: 3, offset: 1 }));
    }
}
