//! Bounds of what is submitted, registered and stored. `apply` checks them on every replica, the node checks them
//! before it proposes anything; field paths are those of a job file.
//!
//! A bound that `apply` enforces is part of the replicated semantics: changing one takes a new feature level.

use std::collections::BTreeMap;

use crate::{
    codec,
    command::SubmitJob,
    ids::JobId,
    outcome::Refusal,
    registry::AgentInfo,
    spec::{Action, Body, Constraint, Execution, Extras, JobSpec, Resources, Retry, SecretRef, defaults},
};

/// A larger body travels as a payload file.
pub const MAX_INLINE_BODY: usize = 1024;
/// The whole spec, body included.
pub const MAX_SPEC: usize = 1024 * 1024;
/// The spec without its body: with an inline body it still fits into one row.
const MAX_SPEC_ROW: usize = 2000;
/// A million cores.
const MAX_CPU_MILLIS: u64 = 1_000_000 * 1000;
/// One PiB in MiB.
const MAX_MEMORY_MB: u64 = 1 << 30;
const MAX_GPU: u32 = 1024;
const MAX_NAME: usize = 128;
const MAX_LABELS: usize = 64;
const MAX_LABEL_KEY: usize = 64;
const MAX_LABEL_VALUE: usize = 256;
const MAX_LABEL_BYTES: usize = 1024;
const MAX_RETRIES: u32 = 1000;
const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// What every job finds in its environment.
const ALWAYS_SET: [&str; 4] = ["HODEI_JOB_ID", "HODEI_ATTEMPT", "HODEI_FENCE", "HODEI_WORKER_ID"];
/// What a job finds there that asked for GPUs.
const SET_WITH_GPUS: [&str; 3] = ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"];
/// Jobs at once on one worker.
const MAX_SLOTS: u32 = 100_000;

/// A value out of its bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}")]
pub struct Invalid {
    /// Its path, as in a job file.
    pub field: String,
    /// What was expected there.
    pub expected: String,
}

impl From<Invalid> for Refusal {
    fn from(Invalid { field, expected }: Invalid) -> Self {
        Self::Invalid { field, expected }
    }
}

pub(crate) fn check(holds: bool, field: &str, expected: &str) -> Result<(), Invalid> {
    if holds { Ok(()) } else { Err(Invalid { field: field.to_string(), expected: expected.to_string() }) }
}

/// A submission as it is received: its body may still be inline at any size up to [`MAX_SPEC`].
///
/// # Errors
/// The first value that is out of its bounds.
pub fn submit(submission: &SubmitJob) -> Result<(), Invalid> {
    check(submission.job != JobId(0), "id", "a UUIDv7")?;
    if let Some(key) = &submission.idempotency_key {
        check(plain_text(key, MAX_NAME), "idempotency_key", "1 to 128 bytes without control characters")?;
    }
    spec(&submission.spec)
}

/// A submission as it is stored: a body over [`MAX_INLINE_BODY`] has been moved to a payload file.
pub(crate) fn stored(submission: &SubmitJob) -> Result<(), Invalid> {
    submit(submission)?;
    let fits = !matches!(&submission.spec.body, Body::Inline(bytes) if bytes.len() > MAX_INLINE_BODY);
    check(fits, "command", "a body of at most 1 KiB, or a payload")
}

/// A spec, but for what its body holds (see [`execution`]).
///
/// # Errors
/// The first value that is out of its bounds.
pub fn spec(spec: &JobSpec) -> Result<(), Invalid> {
    if let Some(text) = &spec.name {
        name(text)?;
    }
    resources(&spec.resources)?;
    labels(&spec.labels)?;
    let timeout = spec.timeout_ms.is_none_or(|ms| (1..=366 * DAY_MS).contains(&ms));
    check(timeout, "timeout", "1 ms to 366 days")?;
    let lost_after = (defaults::MIN_LOST_AFTER_MS..=7 * DAY_MS).contains(&spec.lost_after_ms);
    check(lost_after, "lost_after", "5 s to 7 days")?;
    check(spec.grace_period_ms <= HOUR_MS, "grace_period", "at most 1 h")?;
    retry(&spec.retry)?;
    if let Some(extras) = &spec.extras {
        self::extras(extras)?;
    }
    let body = match &spec.body {
        Body::Inline(bytes) => bytes.len() as u64,
        Body::Payload { len, .. } => *len,
    };
    check(body > 0, "command", "a command")?;
    let inline = if let Body::Inline(bytes) = &spec.body { bytes.len() } else { 0 };
    let rest = codec::row_len(spec) - inline;
    check(rest <= MAX_SPEC_ROW, "labels, constraints and the like", "at most 2,000 bytes together")?;
    check(body <= (MAX_SPEC - rest) as u64, "command", "at most 1 MiB for the whole job")
}

/// A job's name: text that cannot be taken for another selector.
///
/// # Errors
/// Where it is none.
pub fn name(name: &str) -> Result<(), Invalid> {
    check(plain_text(name, MAX_NAME), "name", "1 to 128 bytes without control characters")?;
    let id_like = name.bytes().all(|byte| byte.is_ascii_hexdigit()) || name.parse::<JobId>().is_ok();
    check(!id_like && name != "last", "name", "a name that is not `last` and not made of hex digits only")
}

fn resources(resources: &Resources) -> Result<(), Invalid> {
    check(resources.cpu_millis <= MAX_CPU_MILLIS, "resources.cpu_cores", "at most 1,000,000 cores")?;
    check(resources.memory_mb <= MAX_MEMORY_MB, "resources.memory_mb", "at most 1 PiB")?;
    check(resources.storage_mb <= MAX_MEMORY_MB, "resources.storage_mb", "at most 1 PiB")?;
    check(resources.gpu <= MAX_GPU, "resources.gpu", "at most 1,024")?;
    let architecture = resources.architecture.as_ref().is_none_or(|text| plain_text(text, 32));
    check(architecture, "resources.architecture", "1 to 32 bytes, for example x86_64")
}

fn labels(labels: &BTreeMap<String, String>) -> Result<(), Invalid> {
    check(labels.len() <= MAX_LABELS, "labels", "at most 64")?;
    for (key, value) in labels {
        check(!key.is_empty(), "labels", "keys that are not empty")?;
        let field = || format!("labels.{}", shorten(key, MAX_LABEL_KEY));
        check(plain_text(key, MAX_LABEL_KEY), &field(), "a key of 1 to 64 bytes without control characters")?;
        check(value.len() <= MAX_LABEL_VALUE, &field(), "a value of at most 256 bytes")?;
        check(!value.chars().any(char::is_control), &field(), "a value without control characters")?;
    }
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    check(bytes <= MAX_LABEL_BYTES, "labels", "at most 1 KiB together")
}

fn retry(retry: &Retry) -> Result<(), Invalid> {
    for (field, budget) in [
        ("retry.infrastructure", retry.infrastructure),
        ("retry.failure", retry.failure),
        ("retry.timeout", retry.timeout),
        ("retry.preemption", retry.preemption),
        ("retry.max_attempts", retry.max_attempts),
    ] {
        check(budget <= MAX_RETRIES, field, "at most 1,000")?;
    }
    check(retry.exit_codes.len() <= 64, "retry.exit_codes", "at most 64")?;
    for (at, code) in retry.exit_codes.iter().enumerate() {
        check((1..=255).contains(code), &format!("retry.exit_codes[{at}]"), "1 to 255 (0 is success)")?;
    }
    check(retry.backoff_initial_ms <= DAY_MS, "retry.backoff_initial", "at most 24 h")?;
    check(retry.backoff_max_ms <= DAY_MS, "retry.backoff_max", "at most 24 h")?;
    check(retry.backoff_initial_ms <= retry.backoff_max_ms, "retry.backoff_initial", "at most retry.backoff_max")
}

fn extras(extras: &Extras) -> Result<(), Invalid> {
    check(extras.constraints.len() <= 16, "constraints", "at most 16")?;
    check(extras.preferences.len() <= 16, "preferences", "at most 16")?;
    check(extras.depends_on.len() <= 64, "depends_on", "at most 64")?;
    check(extras.secrets.len() <= 16, "secrets", "at most 16")?;
    for (at, constraint) in extras.constraints.iter().enumerate() {
        self::constraint(constraint, &format!("constraints[{at}]"))?;
    }
    for (at, preference) in extras.preferences.iter().enumerate() {
        constraint(&preference.constraint, &format!("preferences[{at}]"))?;
    }
    for (at, secret) in extras.secrets.iter().enumerate() {
        secret_name(&secret.name, &format!("secrets[{at}].name"))?;
        let env = secret.env.as_ref().is_none_or(|env| plain_text(env, MAX_NAME) && !env.contains('='));
        check(env, &format!("secrets[{at}].env"), "a variable's name of 1 to 128 bytes")?;
        let own = env_once(&extras.secrets[..at], secret);
        check(own, &format!("secrets[{at}]"), "each name and each variable once")?;
    }
    check(extras.array.as_ref().is_none_or(|array| array.count > 0), "array.count", "at least 1")?;
    check(extras.image.as_ref().is_none_or(|image| plain_text(image, 512)), "image", "1 to 512 bytes")?;
    check(extras.user.as_ref().is_none_or(|user| plain_text(user, 64)), "user", "1 to 64 bytes")
}

/// A secret is given on standard input or as a variable, or as both, but nothing twice in the same way.
fn env_once(before: &[SecretRef], secret: &SecretRef) -> bool {
    !before.iter().any(|other| match &secret.env {
        Some(env) => other.env.as_ref() == Some(env),
        None => other.env.is_none() && other.name == secret.name,
    })
}

/// A secret's name: letters, digits and `_.-/`, so that it can stand in a path, a URL and a shell.
///
/// # Errors
/// Where it is none; `field` is its path.
pub fn secret_name(name: &str, field: &str) -> Result<(), Invalid> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-/".contains(&byte);
    let good = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(known);
    check(good, field, "1 to 128 letters, digits, _, ., - or /")
}

fn constraint(constraint: &Constraint, field: &str) -> Result<(), Invalid> {
    check(plain_text(&constraint.attribute, MAX_NAME), &format!("{field}.attribute"), "1 to 128 bytes")?;
    check(plain_text(&constraint.operator, 16), &format!("{field}.operator"), "1 to 16 bytes")?;
    check(constraint.value.len() <= MAX_LABEL_VALUE, &format!("{field}.value"), "at most 256 bytes")
}

/// What an agent is to execute.
///
/// # Errors
/// The first value that cannot be executed as given.
pub fn execution(execution: &Execution) -> Result<(), Invalid> {
    match &execution.action {
        Action::Exec { cmd, args } => {
            check(!cmd.is_empty() && no_nul(cmd), "command.shell.cmd", "a command that is not empty and has no NUL")?;
            check(args.iter().all(|arg| no_nul(arg)), "command.shell.args", "arguments without NUL")?;
        }
        Action::Script { interpreter, content } => {
            let named = interpreter.as_ref().is_none_or(|text| text.starts_with('/') && no_nul(text));
            check(named, "command.script.interpreter", "a program without NUL")?;
            check(!content.trim().is_empty(), "command.script.content", "a script")?;
        }
    }
    for (key, value) in &execution.env {
        let named = !key.is_empty() && no_nul(key) && !key.contains('=');
        check(named, "env", "names that are not empty and have neither = nor NUL")?;
        check(no_nul(value), &format!("env.{}", shorten(key, MAX_NAME)), "a value without NUL")?;
    }
    let directory = execution.working_directory.as_ref().is_none_or(|text| text.starts_with('/') && no_nul(text));
    check(directory, "working_directory", "an absolute path without NUL")?;
    check(codec::encode_execution(execution).len() <= MAX_SPEC, "command", "at most 1 MiB for the whole job")
}

/// A job's variables as a whole: what Hodei sets itself would win, and of a variable and a secret of one name the secret,
/// both without a word.
///
/// # Errors
/// The first name that is taken.
pub fn variables(execution: &Execution, resources: &Resources, extras: &Extras) -> Result<(), Invalid> {
    const TAKEN: &str = "a name that Hodei does not set itself";
    let gpus: &[&str] = if resources.gpu > 0 { &SET_WITH_GPUS } else { &[] };
    let taken = |name: &str| ALWAYS_SET.contains(&name) || gpus.contains(&name);
    for name in execution.env.keys() {
        check(!taken(name), &format!("env.{}", shorten(name, MAX_NAME)), TAKEN)?;
    }
    for (at, secret) in extras.secrets.iter().enumerate() {
        let Some(name) = &secret.env else { continue };
        check(!taken(name), &format!("secrets[{at}].env"), TAKEN)?;
        let once = !execution.env.contains_key(name);
        check(once, &format!("secrets[{at}].env"), "a name that env does not give a value as well")?;
    }
    Ok(())
}

/// What this version can carry out. Not checked by `apply`, so that later versions may carry out more of what is stored.
///
/// # Errors
/// The first part of the spec that would be ignored.
pub fn supported(spec: &JobSpec) -> Result<(), Invalid> {
    let Some(extras) = &spec.extras else {
        return Ok(());
    };
    const LATER: &str = "nothing: this version does not support it yet";
    check(extras.depends_on.is_empty(), "depends_on", LATER)?;
    check(extras.array.is_none(), "array", LATER)?;
    check(extras.image.is_none(), "image", LATER)?;
    for (at, constraint) in extras.constraints.iter().enumerate() {
        crate::fit::understood(constraint, &format!("constraints[{at}]"))?;
    }
    for (at, preference) in extras.preferences.iter().enumerate() {
        crate::fit::understood_preference(preference, &format!("preferences[{at}]"))?;
    }
    Ok(())
}

/// What an agent states about itself.
pub(crate) fn agent(info: &AgentInfo) -> Result<(), Invalid> {
    let capacity = &info.capacity;
    check((1..=MAX_SLOTS).contains(&capacity.slots), "capacity.slots", "1 to 100,000")?;
    check(capacity.cpu_millis <= MAX_CPU_MILLIS, "capacity.cpu", "at most 1,000,000 cores")?;
    check(capacity.memory_mb <= MAX_MEMORY_MB, "capacity.memory", "at most 1 PiB")?;
    check(capacity.storage_mb <= MAX_MEMORY_MB, "capacity.storage", "at most 1 PiB")?;
    check(capacity.gpu <= MAX_GPU, "capacity.gpu", "at most 1,024")?;
    labels(&info.labels)?;
    check(info.version.len() <= 64, "version", "at most 64 bytes")?;
    check(info.architecture.len() <= 32, "architecture", "at most 32 bytes")?;
    check(info.kernel.len() <= 128, "kernel", "at most 128 bytes")?;
    check(info.hostname.len() <= 253, "hostname", "at most 253 bytes")?;
    check(info.boot_id.len() <= 64, "boot_id", "at most 64 bytes")?;
    check(info.provider.as_ref().is_none_or(|name| name.len() <= 64), "provider", "at most 64 bytes")
}

/// Where a node says it is, and its version.
pub(crate) fn node(address: &str, version: &str) -> Result<(), Invalid> {
    let port = address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    check(port && address.len() <= 256, "address", "host:port, at most 256 bytes")?;
    check(version.len() <= 64, "version", "at most 64 bytes")
}

fn plain_text(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn no_nul(text: &str) -> bool {
    !text.contains('\0')
}

/// At most `max` bytes of a text, cut between characters.
pub(crate) fn shorten(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_string()
}
