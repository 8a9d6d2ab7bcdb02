//! From the core to the wire. Nothing here can fail.

use hodei_proto::v1;
use hodei_state::{
    flapping::{SetAside, SetAsidePolicy},
    ids::{AttemptRef, Caller, Millis, Role},
    job::{Attempt, Budget, Deadline, EndedBy, Job, JobState, LogEnd, Next, Reason, StartFailure, TakenBack},
    registry::{Capacity, Worker, WorkerState},
    score::Weights,
    spec::{Action, Constraint, Execution, JobSpec, OutputPolicy, Resources, Retry},
};

/// Which state an answer was read from.
#[must_use]
pub fn position(term: u64, index: u64) -> v1::Position {
    v1::Position { term, index }
}

/// An attempt and its fence.
#[must_use]
pub fn attempt_ref(attempt: &AttemptRef) -> v1::AttemptRef {
    v1::AttemptRef { job_id: attempt.job.to_string(), attempt: attempt.attempt, fence: attempt.fence }
}

/// A party.
#[must_use]
pub fn identity(caller: &Caller) -> v1::Identity {
    let (role, id) = match caller {
        Caller::Node(id) => (v1::Role::Node, id.to_string()),
        Caller::Agent(id) => (v1::Role::Agent, id.to_string()),
        Caller::User(id) => (v1::Role::User, id.to_string()),
        Caller::Admin(id) => (v1::Role::Admin, id.to_string()),
    };
    v1::Identity { role: role.into(), id }
}

/// A role.
#[must_use]
pub fn role(role: Role) -> v1::Role {
    match role {
        Role::Node => v1::Role::Node,
        Role::Agent => v1::Role::Agent,
        Role::User => v1::Role::User,
        Role::Admin => v1::Role::Admin,
    }
}

/// A job with its attempts, and its spec where it could be read.
#[must_use]
pub fn job<'a>(
    job: &Job,
    attempts: impl Iterator<Item = &'a Attempt>,
    spec: Option<(&JobSpec, Option<&Execution>)>,
) -> v1::Job {
    let attempts: Vec<v1::Attempt> = attempts.map(attempt).collect();
    let newest = attempts.last();
    let log = newest.and_then(|attempt| attempt.log).unwrap_or_default();
    v1::Job {
        id: job.id.to_string(),
        name: spec.and_then(|(spec, _)| spec.name.clone()).unwrap_or_default(),
        state: state(job.state).into(),
        reason: job.reason.as_deref().map(reason),
        attempt: job.attempt,
        exit_code: job.reason.as_deref().and_then(Reason::exit_code),
        worker_id: newest.map(|attempt| attempt.worker_id.clone()).unwrap_or_default(),
        submitted_at_ms: ms(job.submitted_at),
        started_at_ms: optional_ms(job.started_at),
        finished_at_ms: optional_ms(job.finished_at),
        log_lines: log.lines,
        log_dropped: log.dropped,
        spec: spec.map(|(spec, execution)| self::spec(spec, execution)),
        submitted_by: Some(identity(&job.owner)),
        attempts,
        cancel_requested: job.cancel.is_some(),
        retry_of: job.retry_of.as_deref().map(ToString::to_string).unwrap_or_default(),
        not_before_ms: optional_ms(job.not_before),
        retries_used: Some(v1::RetriesUsed {
            infrastructure: job.retries.infrastructure,
            failure: job.retries.failure,
            timeout: job.retries.timeout,
            preemption: job.retries.preemption,
        }),
        cancel: job.cancel.as_deref().map(|cancel| v1::CancelRequest {
            by: cancel.by.to_string(),
            reason: cancel.reason.clone(),
            at_ms: ms(cancel.at),
        }),
    }
}

/// A job's state.
#[must_use]
pub fn state(state: JobState) -> v1::JobState {
    match state {
        JobState::Pending => v1::JobState::Pending,
        JobState::Scheduled => v1::JobState::Scheduled,
        JobState::Running => v1::JobState::Running,
        JobState::Succeeded => v1::JobState::Succeeded,
        JobState::Failed => v1::JobState::Failed,
        JobState::Cancelled => v1::JobState::Cancelled,
        JobState::Timeout => v1::JobState::Timeout,
    }
}

/// One attempt.
#[must_use]
pub fn attempt(attempt: &Attempt) -> v1::Attempt {
    let end = attempt.end.as_ref();
    v1::Attempt {
        number: attempt.id.attempt,
        worker_id: attempt.worker.to_string(),
        fence: attempt.id.fence,
        session_id: attempt.session.to_string(),
        assigned_at_ms: ms(attempt.assigned_at),
        started_at_ms: optional_ms(attempt.started_at),
        finished_at_ms: optional_ms(end.map(|end| end.at)),
        reason: end.map(|end| reason(&end.reason)),
        log: end.and_then(|end| end.log.as_ref()).map(log_end),
        choice: Some(super::explanation::choice(&attempt.choice)),
        ended_by: end.map(|end| ended_by(end.by)).unwrap_or_default().into(),
        next: end.map(|end| next(&end.next)),
        taken_back: match attempt.taken_back {
            None => String::new(),
            Some(TakenBack::Drained) => "drained".into(),
            Some(TakenBack::Preempted { .. }) => "preempted".into(),
        },
        preempted_for: match attempt.taken_back {
            Some(TakenBack::Preempted { for_job }) => for_job.to_string(),
            Some(TakenBack::Drained) | None => String::new(),
        },
    }
}

fn ended_by(by: EndedBy) -> &'static str {
    match by {
        EndedBy::Result => "result",
        EndedBy::Declined => "declined",
        EndedBy::Expiry => "expiry",
        EndedBy::Dead => "dead",
    }
}

fn next(next: &Next) -> v1::Next {
    let kind = |kind: &str| v1::Next { kind: kind.into(), ..v1::Next::default() };
    match next {
        Next::End => kind("end"),
        Next::Retry { budget, not_before } => {
            v1::Next { budget: self::budget(*budget).into(), not_before_ms: optional_ms(*not_before), ..kind("retry") }
        }
        Next::PutBack => kind("put_back"),
        Next::Spent { budget } => v1::Next { budget: self::budget(*budget).into(), ..kind("spent") },
        Next::MaxAttempts => kind("max_attempts"),
    }
}

fn budget(budget: Budget) -> &'static str {
    match budget {
        Budget::Infrastructure => "infrastructure",
        Budget::Failure => "failure",
        Budget::Timeout => "timeout",
        Budget::Preemption => "preemption",
    }
}

/// Why something ended.
#[must_use]
pub fn reason(reason: &Reason) -> v1::Reason {
    let kind = |kind: &str| v1::Reason { kind: kind.into(), ..v1::Reason::default() };
    match reason {
        Reason::Exited { code } => v1::Reason { exit_code: Some(*code), ..kind("exited") },
        Reason::Signaled { signal } => v1::Reason { signal: Some(*signal), ..kind("signaled") },
        Reason::OutOfMemory => kind("out_of_memory"),
        Reason::WorkerLost { message } => v1::Reason { message: message.clone(), ..kind("worker_lost") },
        Reason::NotProvisioned { message } => v1::Reason { message: message.clone(), ..kind("not_provisioned") },
        Reason::Cancelled { by, reason, exit_code, signal } => v1::Reason {
            by: by.to_string(),
            message: reason.clone(),
            exit_code: *exit_code,
            signal: *signal,
            ..kind("cancelled")
        },
        Reason::Timeout { deadline } => {
            let deadline = match deadline {
                Deadline::Run => "timeout",
                Deadline::Backstop => "backstop",
            };
            v1::Reason { deadline: deadline.into(), ..kind("timeout") }
        }
        Reason::TakenBack { why, exit_code, signal } => {
            let (cause, message) = match why {
                TakenBack::Drained => ("drained", "its worker is drained".to_owned()),
                TakenBack::Preempted { for_job } => ("preempted", format!("it made room for job {for_job}")),
            };
            v1::Reason { cause: cause.into(), message, exit_code: *exit_code, signal: *signal, ..kind("taken_back") }
        }
        Reason::CouldNotStart { cause, message } => {
            let cause = match cause {
                StartFailure::NotFound => "not_found",
                StartFailure::NotPermitted => "not_permitted",
                StartFailure::NoSecret => "no_secret",
                StartFailure::NoDirectory => "no_directory",
                StartFailure::Other => "other",
            };
            v1::Reason { cause: cause.into(), message: message.clone(), ..kind("could_not_start") }
        }
    }
}

/// The figures of a log.
#[must_use]
pub fn log_end(end: &LogEnd) -> v1::LogEnd {
    v1::LogEnd {
        last_sequence: end.last_sequence,
        lines: end.lines,
        dropped: end.dropped,
        bytes: end.bytes,
        checksum: end.checksum,
    }
}

/// A spec, defaults filled in. Without its execution (a payload that is not here) the command is absent.
#[must_use]
pub fn spec(spec: &JobSpec, execution: Option<&Execution>) -> v1::JobSpec {
    let extras = spec.extras.as_deref().cloned().unwrap_or_default();
    v1::JobSpec {
        name: spec.name.clone().unwrap_or_default(),
        command: execution.map(|execution| command(&execution.action)),
        env: execution.map(|execution| execution.env.clone()).unwrap_or_default(),
        resources: Some(resources(&spec.resources)),
        timeout_ms: spec.timeout_ms.unwrap_or_default(),
        priority: spec.priority,
        labels: spec.labels.clone(),
        lost_after_ms: spec.lost_after_ms,
        retry: Some(retry(&spec.retry)),
        grace_period_ms: spec.grace_period_ms,
        output_policy: match spec.output_policy {
            OutputPolicy::Block => v1::OutputPolicy::Block.into(),
            OutputPolicy::Drop => v1::OutputPolicy::Drop.into(),
        },
        constraints: extras.constraints.iter().map(constraint).collect(),
        preferences: (extras.preferences.iter())
            .map(|p| v1::Preference { constraint: Some(constraint(&p.constraint)), weight: p.weight })
            .collect(),
        depends_on: extras.depends_on.iter().map(ToString::to_string).collect(),
        array: extras.array.map(|array| v1::Array { count: array.count, max_parallel: array.max_parallel }),
        image: extras.image.unwrap_or_default(),
        secrets: (extras.secrets.into_iter())
            .map(|secret| v1::SecretRef { name: secret.name, env: secret.env.unwrap_or_default() })
            .collect(),
        user: extras.user.unwrap_or_default(),
        working_directory: execution.and_then(|execution| execution.working_directory.clone()).unwrap_or_default(),
        preemptible: spec.preemptible,
    }
}

fn command(action: &Action) -> v1::Command {
    let kind = match action {
        Action::Exec { cmd, args } => v1::command::Kind::Shell(v1::Shell { cmd: cmd.clone(), args: args.clone() }),
        Action::Script { interpreter, content } => v1::command::Kind::Script(v1::Script {
            interpreter: interpreter.clone().unwrap_or_default(),
            content: content.clone(),
        }),
    };
    v1::Command { kind: Some(kind) }
}

pub(super) fn resources(resources: &Resources) -> v1::Resources {
    v1::Resources {
        cpu_millis: resources.cpu_millis,
        memory_mb: resources.memory_mb,
        storage_mb: resources.storage_mb,
        gpu: resources.gpu,
        architecture: resources.architecture.clone().unwrap_or_default(),
    }
}

fn retry(retry: &Retry) -> v1::Retry {
    v1::Retry {
        infrastructure: Some(retry.infrastructure),
        failure: Some(retry.failure),
        exit_codes: retry.exit_codes.clone(),
        timeout: Some(retry.timeout),
        backoff_initial_ms: retry.backoff_initial_ms,
        backoff_max_ms: retry.backoff_max_ms,
        max_attempts: retry.max_attempts,
        preemption: Some(retry.preemption),
    }
}

pub(super) fn constraint(constraint: &Constraint) -> v1::Constraint {
    v1::Constraint {
        attribute: constraint.attribute.clone(),
        operator: constraint.operator.clone(),
        value: constraint.value.clone(),
    }
}

/// The scheduler's weights.
#[must_use]
pub fn weights(weights: &Weights) -> v1::SchedulerWeights {
    let Weights { bin_packing, spread, load, affinity, reliability } = *weights;
    v1::SchedulerWeights { bin_packing, spread, load, affinity, reliability }
}

/// When workers are set aside.
#[must_use]
pub fn set_aside_policy(policy: &SetAsidePolicy) -> v1::SetAsidePolicy {
    let SetAsidePolicy { flaps, window_ms, first_ms, longest_ms } = *policy;
    v1::SetAsidePolicy { flaps, window_ms, first_ms, longest_ms }
}

/// That a worker is set aside.
#[must_use]
pub fn set_aside(set_aside: &SetAside) -> v1::WorkerSetAside {
    let SetAside { since, until, sessions, attempts } = *set_aside;
    v1::WorkerSetAside { since_ms: ms(since), until_ms: ms(until), sessions, attempts }
}

/// A worker.
#[must_use]
pub fn worker(worker: &Worker) -> v1::Worker {
    v1::Worker {
        id: worker.id.to_string(),
        state: worker_state(worker.state).into(),
        capacity: Some(capacity(&worker.capacity)),
        free: Some(capacity(&worker.free())),
        labels: worker.labels.clone(),
        gateway: worker.gateway,
        provider: worker.provider.clone().unwrap_or_default(),
        version: worker.version.clone(),
        hostname: worker.hostname.clone(),
        architecture: worker.architecture.clone(),
        kernel: worker.kernel.clone(),
        session_id: worker.session.to_string(),
        registered_at_ms: ms(worker.registered_at),
        drain: worker.drain.as_ref().map(|drain| v1::WorkerDrain {
            by: Some(identity(&drain.by)),
            at_ms: ms(drain.at),
            deadline_ms: optional_ms(drain.deadline),
            requeue: drain.requeue,
        }),
        removed_at_ms: optional_ms(worker.removed_at),
        recent: u32::from(worker.recent),
        running: 0,
        attempts: Vec::new(),
        set_aside: worker.set_aside.as_ref().map(set_aside),
    }
}

/// What a worker holds: an attempt of a job with this name.
#[must_use]
pub fn worker_attempt(attempt: &Attempt, name: Option<String>) -> v1::WorkerAttempt {
    let state = if attempt.started_at.is_some() { v1::JobState::Running } else { v1::JobState::Scheduled };
    v1::WorkerAttempt {
        attempt: Some(attempt_ref(&attempt.id)),
        name: name.unwrap_or_default(),
        state: state.into(),
        assigned_at_ms: ms(attempt.assigned_at),
        started_at_ms: optional_ms(attempt.started_at),
        taken_back: attempt.taken_back.is_some(),
    }
}

pub(super) fn worker_state(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Creating => "Creating",
        WorkerState::Connecting => "Connecting",
        WorkerState::Ready => "Ready",
        WorkerState::Busy => "Busy",
        WorkerState::Disconnected => "Disconnected",
        WorkerState::Draining => "Draining",
        WorkerState::Terminating => "Terminating",
        WorkerState::Terminated => "Terminated",
    }
}

pub(super) fn capacity(capacity: &Capacity) -> v1::Capacity {
    v1::Capacity {
        slots: capacity.slots,
        cpu_millis: capacity.cpu_millis,
        memory_mb: capacity.memory_mb,
        storage_mb: capacity.storage_mb,
        gpu: capacity.gpu,
    }
}

/// Unix milliseconds as the wire has them.
#[must_use]
pub fn ms(at: Millis) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

/// The same; 0 where there is none.
#[must_use]
pub fn optional_ms(at: Option<Millis>) -> i64 {
    at.map_or(0, ms)
}
