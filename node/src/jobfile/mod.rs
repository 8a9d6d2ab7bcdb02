//! Job files: a job's spec as a person writes it, in TOML, YAML or JSON.
//!
//! The formats have the same fields, those of [`JobFile`]; which one a text is in is told by its content ([`read`]). What
//! is wrong is reported by the field's path and what was expected there, before anything is sent. The [`schema`] is made
//! of the same definitions.

use std::collections::BTreeMap;

use hodei_proto::v1;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

mod constraint;
mod read;
mod scalar;
pub mod schema;
mod unique;
pub mod units;
mod yaml;

pub use read::parse;
pub use scalar::{Cores, Duration, Size};

/// What is wrong with a job file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadJobFile {
    /// One field is wrong.
    #[error("{field}: {problem}")]
    Field {
        /// Its path, for example `resources.cpu_cores`.
        field: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// The text is in none of the formats.
    #[error("{0}")]
    Syntax(String),
}

/// A job. Unknown fields are errors: a misspelt limit must not run without a limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a job")]
pub struct JobFile {
    /// At most 128 bytes.
    pub name: Option<String>,
    /// What is executed.
    pub command: Option<Command>,
    /// Added to the clean environment.
    #[serde(default, deserialize_with = "unique::map")]
    #[schemars(with = "BTreeMap<String, String>")]
    pub env: BTreeMap<String, String>,
    /// Needs beside a slot.
    #[serde(default)]
    pub resources: Resources,
    /// From the start of the process.
    pub timeout: Option<Duration>,
    /// Higher goes first.
    #[serde(default)]
    pub priority: i32,
    /// For selection.
    #[serde(default, deserialize_with = "unique::map")]
    #[schemars(with = "BTreeMap<String, String>")]
    pub labels: BTreeMap<String, String>,
    /// How long a worker may be out of touch before its attempt is given up.
    pub lost_after: Option<Duration>,
    /// Budgets and backoff.
    #[serde(default)]
    pub retry: Retry,
    /// Between SIGTERM and SIGKILL.
    pub grace_period: Option<Duration>,
    /// What happens when the output is not taken away fast enough.
    #[serde(default)]
    pub output_policy: OutputPolicy,
    /// Must hold of the worker.
    #[serde(default)]
    pub constraints: Vec<Constraint>,
    /// Should hold of the worker.
    #[serde(default)]
    pub preferences: Vec<Preference>,
    /// Jobs that must have succeeded before.
    #[serde(default)]
    pub depends_on: Vec<String>,
    /// Many of the same.
    pub array: Option<Array>,
    /// A container image.
    pub image: Option<String>,
    /// By name.
    #[serde(default)]
    pub secrets: Vec<Secret>,
    /// Runs as this user of the worker, whose agent must run as root; absent: as the agent decides.
    pub user: Option<String>,
    /// The attempt's private directory where absent.
    pub working_directory: Option<String>,
    /// May be ended for a job of higher priority.
    #[serde(default)]
    pub preemptible: bool,
    /// The same key with the same content names the same job.
    pub idempotency_key: Option<String>,
}

/// `{shell: {cmd, args}}` or `{script: {interpreter, content}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Executed as given, no shell in between.
    Shell(Shell),
    /// Written to a file and executed.
    Script(Script),
}

/// A [`Command`] before it is known that exactly one kind is given.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "shell or script")]
struct Kinds {
    shell: Option<Shell>,
    script: Option<Script>,
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Kinds::deserialize(deserializer)? {
            Kinds { shell: Some(shell), script: None } => Ok(Self::Shell(shell)),
            Kinds { shell: None, script: Some(script) } => Ok(Self::Script(script)),
            Kinds { shell: None, script: None } => Err(de::Error::custom("expected shell or script")),
            Kinds { .. } => Err(de::Error::custom("expected one of shell and script, not both")),
        }
    }
}

/// Executed as given, no shell in between.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table with cmd and args")]
pub struct Shell {
    /// Looked up in PATH.
    pub cmd: String,
    /// Passed unchanged.
    #[serde(default)]
    pub args: Vec<String>,
}

/// Written to a file and executed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table with content and interpreter")]
pub struct Script {
    /// `/bin/bash` with `set -euo pipefail` where absent.
    pub interpreter: Option<String>,
    /// The script.
    pub content: String,
}

/// Needs of one attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table such as {cpu_cores = 2}")]
pub struct Resources {
    /// Cores, as a decimal.
    pub cpu_cores: Option<Cores>,
    /// MiB as a number, or a size such as `2GiB`.
    pub memory_mb: Option<Size>,
    /// The same.
    pub storage_mb: Option<Size>,
    /// Devices.
    #[serde(default)]
    pub gpu: u32,
    /// For example `x86_64`.
    pub architecture: Option<String>,
}

/// Retry budgets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table such as {failure = 2}")]
pub struct Retry {
    /// For attempts that the infrastructure lost.
    pub infrastructure: Option<u32>,
    /// For the job's own failures.
    pub failure: Option<u32>,
    /// Which exit codes (1 to 255; 128+n for a signal) count for `failure`.
    #[serde(default)]
    pub exit_codes: Vec<i32>,
    /// For time-outs.
    pub timeout: Option<u32>,
    /// How often a preemptible job may make room for others.
    pub preemption: Option<u32>,
    /// First wait.
    pub backoff_initial: Option<Duration>,
    /// Longest wait.
    pub backoff_max: Option<Duration>,
    /// All attempts together.
    #[schemars(range(min = 1))]
    pub max_attempts: Option<u32>,
}

/// When the agent's spool is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutputPolicy {
    /// The job waits.
    #[default]
    Block,
    /// Lines are dropped and counted.
    Drop,
}

/// `attribute operator value`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table with attribute, operator and value")]
pub struct Constraint {
    /// `label.<key>`, `architecture`, `kernel`, `hostname`, `provider` or `region`.
    pub attribute: String,
    /// `=`, `!=`, `in`, `not_in`, `exists`, `not_exists`, `<`, `<=`, `>` or `>=`.
    pub operator: String,
    /// The right-hand side; nothing for `exists` and `not_exists`, comma-separated for `in` and `not_in`.
    #[serde(default)]
    pub value: String,
}

/// A constraint with a weight.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table with attribute, operator, value and weight")]
pub struct Preference {
    /// `label.<key>`, `architecture`, `kernel`, `hostname`, `provider` or `region`.
    pub attribute: String,
    /// `=`, `!=`, `in`, `not_in`, `exists`, `not_exists`, `<`, `<=`, `>` or `>=`.
    pub operator: String,
    /// The right-hand side; nothing for `exists` and `not_exists`, comma-separated for `in` and `not_in`.
    #[serde(default)]
    pub value: String,
    /// How much it counts among the job's preferences: -100 to 100, not 0.
    pub weight: i32,
}

/// A job array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table with count")]
pub struct Array {
    /// Number of elements.
    pub count: u32,
    /// At once; 0: no bound.
    #[serde(default)]
    pub max_parallel: u32,
}

/// A secret by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table with name and env")]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// The variable it goes to; absent: JSON on standard input.
    pub env: Option<String>,
}

impl JobFile {
    /// Refuses an explicit zero or empty text where on the wire these mean "not given", which is something else.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), BadJobFile> {
        let duration = |duration: Option<Duration>| duration.map(|duration| duration.0);
        let given = [
            ("resources.cpu_cores", self.resources.cpu_cores.map(|cores| cores.0)),
            ("resources.memory_mb", self.resources.memory_mb.map(|size| size.0)),
            ("resources.storage_mb", self.resources.storage_mb.map(|size| size.0)),
            ("timeout", duration(self.timeout)),
            ("lost_after", duration(self.lost_after)),
            ("grace_period", duration(self.grace_period)),
            ("retry.backoff_initial", duration(self.retry.backoff_initial)),
            ("retry.backoff_max", duration(self.retry.backoff_max)),
            ("retry.max_attempts", self.retry.max_attempts.map(u64::from)),
        ];
        let named = [
            ("name", &self.name, "expected 1 to 128 bytes without control characters"),
            ("idempotency_key", &self.idempotency_key, "expected 1 to 128 bytes without control characters"),
            ("user", &self.user, "expected a user's name"),
            ("working_directory", &self.working_directory, "expected a directory"),
        ];
        if let Some(at) = self.secrets.iter().position(|secret| secret.env.as_deref() == Some("")) {
            let problem = "expected the name of a variable; without one, the secret comes on standard input";
            return Err(BadJobFile::Field { field: format!("secrets[{at}].env"), problem: problem.to_owned() });
        }
        let zero = given.into_iter().find(|(_, value)| *value == Some(0));
        let zero = zero.map(|(field, _)| (field, "expected more than zero"));
        let empty = named.into_iter().find(|(_, value, _)| value.as_deref() == Some(""));
        match zero.or(empty.map(|(field, _, expected)| (field, expected))) {
            Some((field, problem)) => Err(BadJobFile::Field { field: field.to_owned(), problem: problem.to_owned() }),
            None => Ok(()),
        }
    }

    /// The spec as it goes over the wire; checked there, not here. The idempotency key is no part of it.
    #[must_use]
    pub fn into_spec(self) -> v1::JobSpec {
        let ms = |duration: Option<Duration>| duration.map_or(0, |duration| duration.0);
        v1::JobSpec {
            name: self.name.unwrap_or_default(),
            command: self.command.map(Command::into_proto),
            env: self.env,
            resources: Some(self.resources.into_proto()),
            timeout_ms: ms(self.timeout),
            priority: self.priority,
            labels: self.labels,
            lost_after_ms: ms(self.lost_after),
            retry: Some(self.retry.into_proto()),
            grace_period_ms: ms(self.grace_period),
            output_policy: match self.output_policy {
                OutputPolicy::Block => v1::OutputPolicy::Block.into(),
                OutputPolicy::Drop => v1::OutputPolicy::Drop.into(),
            },
            constraints: self.constraints.into_iter().map(Constraint::into_proto).collect(),
            preferences: self.preferences.into_iter().map(Preference::into_proto).collect(),
            depends_on: self.depends_on,
            array: self.array.map(|array| v1::Array { count: array.count, max_parallel: array.max_parallel }),
            image: self.image.unwrap_or_default(),
            secrets: self.secrets.into_iter().map(Secret::into_proto).collect(),
            user: self.user.unwrap_or_default(),
            working_directory: self.working_directory.unwrap_or_default(),
            preemptible: self.preemptible,
        }
    }
}

impl Command {
    fn into_proto(self) -> v1::Command {
        let kind = match self {
            Self::Shell(Shell { cmd, args }) => v1::command::Kind::Shell(v1::Shell { cmd, args }),
            Self::Script(Script { interpreter, content }) => {
                v1::command::Kind::Script(v1::Script { interpreter: interpreter.unwrap_or_default(), content })
            }
        };
        v1::Command { kind: Some(kind) }
    }
}

impl Resources {
    fn into_proto(self) -> v1::Resources {
        v1::Resources {
            cpu_millis: self.cpu_cores.map_or(0, |cores| cores.0),
            memory_mb: self.memory_mb.map_or(0, |size| size.0),
            storage_mb: self.storage_mb.map_or(0, |size| size.0),
            gpu: self.gpu,
            architecture: self.architecture.unwrap_or_default(),
        }
    }
}

impl Retry {
    fn into_proto(self) -> v1::Retry {
        v1::Retry {
            infrastructure: self.infrastructure,
            failure: self.failure,
            exit_codes: self.exit_codes,
            timeout: self.timeout,
            backoff_initial_ms: self.backoff_initial.map_or(0, |duration| duration.0),
            backoff_max_ms: self.backoff_max.map_or(0, |duration| duration.0),
            max_attempts: self.max_attempts.unwrap_or_default(),
            preemption: self.preemption,
        }
    }
}

impl Constraint {
    fn into_proto(self) -> v1::Constraint {
        v1::Constraint { attribute: self.attribute, operator: self.operator, value: self.value }
    }
}

impl Preference {
    fn into_proto(self) -> v1::Preference {
        let constraint = Constraint { attribute: self.attribute, operator: self.operator, value: self.value };
        v1::Preference { constraint: Some(constraint.into_proto()), weight: self.weight }
    }
}

impl Secret {
    fn into_proto(self) -> v1::SecretRef {
        v1::SecretRef { name: self.name, env: self.env.unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests;
