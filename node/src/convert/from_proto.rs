//! From the wire to the core: parse, check, fill in defaults.

use std::str::FromStr;

use hodei_proto::v1;
use hodei_state::{
    codec,
    command::{Command, DrainWorker, OpenSession, SubmitJob},
    flapping::SetAsideChange,
    ids::{AttemptRef, Caller, JobId, SessionId, WorkerId},
    job::{Deadline, JobState, LogEnd, Reason, StartFailure},
    registry::{AgentInfo, Capacity, SessionRef},
    score::{Usage, WeightsChange},
    spec::{
        Action, Array, Body, Constraint, Execution, Extras, JobSpec, OutputPolicy, Preference, Resources, Retry,
        SecretRef, defaults,
    },
    validate,
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tonic::Status;

use crate::error;

/// A value of the wire that the core does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}")]
pub struct Bad {
    /// Path of the field, for example `resources.cpu_cores`.
    pub field: String,
    /// What was expected there.
    pub expected: String,
}

impl Bad {
    /// A value at `field` that should have been `expected`.
    pub fn new(field: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { field: field.into(), expected: expected.into() }
    }
}

impl From<validate::Invalid> for Bad {
    fn from(invalid: validate::Invalid) -> Self {
        Self::new(invalid.field, invalid.expected)
    }
}

impl From<Bad> for Status {
    fn from(bad: Bad) -> Self {
        error::invalid(bad.field, bad.expected)
    }
}

/// An id in its hyphenated form.
///
/// # Errors
/// The text is none, or the id is nil.
pub fn id<T: FromStr + Default + PartialEq>(text: &str, field: &str) -> Result<T, Bad> {
    let bad = || Bad::new(field, "a UUID such as 0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b");
    let id: T = text.parse().map_err(|_| bad())?;
    if id == T::default() { Err(bad()) } else { Ok(id) }
}

/// A submission: checked, with the digest of the spec as it was received and the spec with its defaults.
///
/// # Errors
/// The first field that is wrong.
pub fn submission(request: v1::QueueJobRequest) -> Result<SubmitJob, Bad> {
    let job: JobId = id(&request.id, "id")?;
    let received = request.spec.ok_or_else(|| Bad::new("command", "a command"))?;
    let digest = digest(&received);
    let submit = SubmitJob { job, digest, idempotency_key: optional(request.idempotency_key), spec: spec(received)? };
    validate::submit(&submit)?;
    validate::supported(&submit.spec)?;
    Ok(submit)
}

/// SHA-256 over the canonical bytes of a spec: maps are ordered and unknown fields are not kept, so that the same
/// submission has the same digest on every node, whatever defaults the node that takes it fills in.
#[must_use]
pub fn digest(spec: &v1::JobSpec) -> [u8; 32] {
    Sha256::digest(spec.encode_to_vec()).into()
}

/// A spec with its defaults.
///
/// # Errors
/// The first field that is wrong.
pub fn spec(spec: v1::JobSpec) -> Result<JobSpec, Bad> {
    let execution =
        Execution { action: action(spec.command)?, env: spec.env, working_directory: optional(spec.working_directory) };
    validate::execution(&execution)?;
    let output_policy = match v1::OutputPolicy::try_from(spec.output_policy) {
        Ok(v1::OutputPolicy::Block) => OutputPolicy::Block,
        Ok(v1::OutputPolicy::Drop) => OutputPolicy::Drop,
        Err(_) => return Err(Bad::new("output_policy", "block or drop")),
    };
    let extras = Extras {
        constraints: spec.constraints.into_iter().map(constraint).collect(),
        preferences: spec.preferences.into_iter().enumerate().map(preference).collect::<Result<_, _>>()?,
        depends_on: (spec.depends_on.iter().enumerate())
            .map(|(at, job)| id(job, &format!("depends_on[{at}]")))
            .collect::<Result<_, _>>()?,
        array: spec.array.map(|array| Array { count: array.count, max_parallel: array.max_parallel }),
        image: optional(spec.image),
        secrets: spec.secrets.into_iter().map(|s| SecretRef { name: s.name, env: optional(s.env) }).collect(),
        user: optional(spec.user),
    };
    let resources = resources(spec.resources.unwrap_or_default());
    validate::variables(&execution, &resources, &extras)?;
    let spec = JobSpec {
        name: optional(spec.name),
        priority: spec.priority,
        resources,
        labels: spec.labels,
        timeout_ms: (spec.timeout_ms > 0).then_some(spec.timeout_ms),
        lost_after_ms: or_default(spec.lost_after_ms, defaults::LOST_AFTER_MS),
        grace_period_ms: or_default(spec.grace_period_ms, defaults::GRACE_PERIOD_MS),
        retry: retry(spec.retry.unwrap_or_default()),
        output_policy,
        preemptible: spec.preemptible,
        extras: (extras != Extras::default()).then(|| Box::new(extras)),
        body: Body::Inline(codec::encode_execution(&execution)),
    };
    validate::spec(&spec)?;
    Ok(spec)
}

fn action(command: Option<v1::Command>) -> Result<Action, Bad> {
    match command.and_then(|command| command.kind) {
        Some(v1::command::Kind::Shell(shell)) => Ok(Action::Exec { cmd: shell.cmd, args: shell.args }),
        Some(v1::command::Kind::Script(script)) => {
            Ok(Action::Script { interpreter: optional(script.interpreter), content: script.content })
        }
        None => Err(Bad::new("command", "a command: shell or script")),
    }
}

fn resources(resources: v1::Resources) -> Resources {
    Resources {
        cpu_millis: resources.cpu_millis,
        memory_mb: resources.memory_mb,
        storage_mb: resources.storage_mb,
        gpu: resources.gpu,
        architecture: optional(resources.architecture),
    }
}

fn retry(retry: v1::Retry) -> Retry {
    let defaults = Retry::default();
    let backoff_initial_ms = or_default(retry.backoff_initial_ms, defaults.backoff_initial_ms);
    Retry {
        infrastructure: retry.infrastructure.unwrap_or(defaults.infrastructure),
        failure: retry.failure.unwrap_or(defaults.failure),
        exit_codes: retry.exit_codes,
        timeout: retry.timeout.unwrap_or(defaults.timeout),
        backoff_initial_ms,
        backoff_max_ms: or_default(retry.backoff_max_ms, defaults.backoff_max_ms.max(backoff_initial_ms)),
        max_attempts: retry.max_attempts,
        preemption: retry.preemption.unwrap_or(defaults.preemption),
    }
}

fn constraint(constraint: v1::Constraint) -> Constraint {
    Constraint { attribute: constraint.attribute, operator: constraint.operator, value: constraint.value }
}

fn preference((at, preference): (usize, v1::Preference)) -> Result<Preference, Bad> {
    let inner = preference.constraint.ok_or_else(|| Bad::new(format!("preferences[{at}]"), "a constraint"))?;
    Ok(Preference { constraint: constraint(inner), weight: preference.weight })
}

/// An attempt that a message is about. Its fence may be 0 where the speaker does not know it.
///
/// # Errors
/// It is absent, or its job is no id, or its number is 0.
pub fn attempt(attempt: Option<&v1::AttemptRef>) -> Result<AttemptRef, Bad> {
    let attempt = attempt.ok_or_else(|| Bad::new("attempt", "an attempt"))?;
    if attempt.attempt == 0 {
        return Err(Bad::new("attempt.attempt", "1 or more"));
    }
    Ok(AttemptRef { job: id(&attempt.job_id, "attempt.job_id")?, attempt: attempt.attempt, fence: attempt.fence })
}

/// Attempts in a list.
///
/// # Errors
/// As [`attempt`], for the first that is wrong.
pub fn attempts(list: &[v1::AttemptRef]) -> Result<Vec<AttemptRef>, Bad> {
    list.iter().map(|one| attempt(Some(one))).collect()
}

/// How an attempt ended, as its agent reports it. `by` is who is speaking.
///
/// # Errors
/// The kind is unknown or lacks what it needs.
pub fn reason(reason: v1::Reason, by: Caller) -> Result<Reason, Bad> {
    let missing = |field: &str| Bad::new(format!("reason.{field}"), "a value");
    Ok(match reason.kind.as_str() {
        "exited" => Reason::Exited { code: reason.exit_code.ok_or_else(|| missing("exit_code"))? },
        "signaled" => Reason::Signaled { signal: reason.signal.ok_or_else(|| missing("signal"))? },
        "out_of_memory" => Reason::OutOfMemory,
        "worker_lost" => Reason::WorkerLost { message: reason.message },
        "not_provisioned" => Reason::NotProvisioned { message: reason.message },
        "timeout" => Reason::Timeout { deadline: Deadline::Run },
        "cancelled" => {
            Reason::Cancelled { by, reason: reason.message, exit_code: reason.exit_code, signal: reason.signal }
        }
        "could_not_start" => {
            let cause = match reason.cause.as_str() {
                "not_found" => StartFailure::NotFound,
                "not_permitted" => StartFailure::NotPermitted,
                "no_secret" => StartFailure::NoSecret,
                "no_directory" => StartFailure::NoDirectory,
                _ => StartFailure::Other,
            };
            Reason::CouldNotStart { cause, message: reason.message }
        }
        _ => return Err(Bad::new("reason.kind", "a kind of end that this node knows")),
    })
}

/// The figures of a log; an absent message is an empty log.
#[must_use]
pub fn log_end(end: Option<&v1::LogEnd>) -> LogEnd {
    end.map_or_else(LogEnd::default, |end| LogEnd {
        last_sequence: end.last_sequence,
        lines: end.lines,
        dropped: end.dropped,
        bytes: end.bytes,
        checksum: end.checksum,
    })
}

/// A new session of a worker.
///
/// # Errors
/// The first field that is wrong.
pub fn session(request: v1::RegisterRequest, worker: WorkerId) -> Result<OpenSession, Bad> {
    let session: SessionId = id(&request.session_id, "session_id")?;
    let capacity = capacity(request.capacity.unwrap_or_default());
    if capacity.slots == 0 {
        return Err(Bad::new("capacity.slots", "at least 1"));
    }
    Ok(OpenSession {
        on: SessionRef { worker, session },
        previous: None,
        info: AgentInfo {
            capacity,
            labels: request.labels,
            version: request.version,
            architecture: request.architecture,
            kernel: request.kernel,
            hostname: request.hostname,
            boot_id: request.boot_id,
            provider: None,
        },
        adopted: attempts(&request.adopted)?,
        dead: attempts(&request.dead)?,
    })
}

/// What is to become of a worker: which, and the command. An agent speaks of its own worker, and of its own end.
///
/// # Errors
/// The first field that is wrong.
pub fn worker_status(request: v1::UpdateWorkerStatusRequest, caller: Caller) -> Result<(WorkerId, Command), Bad> {
    use v1::update_worker_status_request::Wish;
    let (worker, session) = match caller {
        Caller::Agent(worker) => (worker, Some(id(&request.session_id, "session_id")?)),
        _ => (id(&request.worker_id, "worker_id")?, None),
    };
    let command = match request.wish.ok_or_else(|| Bad::new("wish", "drain or undrain"))? {
        Wish::Undrain(_) => Command::UndrainWorker { worker },
        Wish::Drain(drain) => Command::DrainWorker(DrainWorker {
            worker,
            nonce: id::<SessionId>(&drain.request_id, "drain.request_id")?.0,
            deadline_ms: (drain.deadline_ms > 0).then_some(drain.deadline_ms),
            requeue: drain.requeue,
            session,
        }),
    };
    Ok((worker, command))
}

fn capacity(capacity: v1::Capacity) -> Capacity {
    Capacity {
        slots: capacity.slots,
        cpu_millis: capacity.cpu_millis,
        memory_mb: capacity.memory_mb,
        storage_mb: capacity.storage_mb,
        gpu: capacity.gpu,
    }
}

/// New values of the scheduler.
///
/// # Errors
/// The first one that is out of bounds; none at all.
#[must_use]
pub fn scheduler_change(request: &v1::ConfigureSchedulerRequest) -> Command {
    let v1::ConfigureSchedulerRequest { bin_packing, spread, load, affinity, reliability, .. } = *request;
    let set_aside = SetAsideChange {
        flaps: request.set_aside_flaps,
        window_ms: request.set_aside_window_ms,
        first_ms: request.set_aside_first_ms,
        longest_ms: request.set_aside_longest_ms,
    };
    Command::ConfigureScheduler {
        weights: WeightsChange { bin_packing, spread, load, affinity, reliability },
        set_aside,
    }
}

/// What an agent says of its machine.
#[must_use]
pub fn usage(stats: &v1::WorkerStats) -> Usage {
    Usage {
        cpu_used_millis: stats.cpu_used_millis,
        memory_used_mb: stats.memory_used_mb,
        memory_total_mb: stats.memory_total_mb,
    }
}

/// States to select by; empty: all.
///
/// # Errors
/// One is unknown.
pub fn states(states: &[i32]) -> Result<Vec<JobState>, Bad> {
    use v1::JobState as Wire;
    let one = |state: &i32| match Wire::try_from(*state) {
        Ok(Wire::Pending) => Ok(JobState::Pending),
        Ok(Wire::Scheduled) => Ok(JobState::Scheduled),
        Ok(Wire::Running) => Ok(JobState::Running),
        Ok(Wire::Succeeded) => Ok(JobState::Succeeded),
        Ok(Wire::Failed) => Ok(JobState::Failed),
        Ok(Wire::Cancelled) => Ok(JobState::Cancelled),
        Ok(Wire::Timeout) => Ok(JobState::Timeout),
        Ok(Wire::Unspecified) | Err(_) => Err(Bad::new("states", "states of jobs")),
    };
    states.iter().map(one).collect()
}

fn optional(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn or_default(value: u64, default: u64) -> u64 {
    if value == 0 { default } else { value }
}
