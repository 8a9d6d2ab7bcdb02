//! What a job is to do: the stored spec. Version 1 has room for everything that the design names, so that later work
//! need not change the format.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::JobId;

/// What a job asks for, as kept in the state. What the scheduler looks at is here in full; what only the agent needs
/// ([`Execution`]) is an encoded body, which the shell moves to a payload file where it is large.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// At most 128 bytes; not hex digits only, not `last`.
    pub name: Option<String>,
    /// Higher goes first.
    pub priority: i32,
    /// What it needs of a worker beside a slot.
    pub resources: Resources,
    /// Free text for selection, at most 64 pairs.
    pub labels: BTreeMap<String, String>,
    /// From the start of the process, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// The lease: see `docs/leases.md`. At least 5,000 ms.
    pub lost_after_ms: u64,
    /// Between SIGTERM and SIGKILL.
    pub grace_period_ms: u64,
    /// Budgets and backoff.
    pub retry: Retry,
    /// What happens when the agent's spool is full.
    pub output_policy: OutputPolicy,
    /// Lower priorities may be ended for higher ones only where this is set.
    pub preemptible: bool,
    /// What few jobs ask for; boxed, because a million of them must fit.
    pub extras: Option<Box<Extras>>,
    /// The encoded [`Execution`].
    pub body: Body,
}

/// Defaults of the design for what a submission leaves out.
pub mod defaults {
    /// Two minutes.
    pub const LOST_AFTER_MS: u64 = 120_000;
    /// Below this a lease cannot be kept alive by heartbeats.
    pub const MIN_LOST_AFTER_MS: u64 = 5_000;
    /// Ten seconds.
    pub const GRACE_PERIOD_MS: u64 = 10_000;
    /// Attempts lost to the infrastructure that are made up for.
    pub const INFRASTRUCTURE_RETRIES: u32 = 3;
    /// How often a preemptible job makes room for others.
    pub const PREEMPTIONS: u32 = 3;
    /// First backoff.
    pub const BACKOFF_INITIAL_MS: u64 = 1_000;
    /// Longest backoff.
    pub const BACKOFF_MAX_MS: u64 = 60_000;
}

/// Where the encoded [`Execution`] lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// In the row itself.
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// In a content-addressed payload file.
    Payload {
        /// SHA-256 of the bytes.
        digest: [u8; 32],
        /// Their number.
        len: u64,
    },
}

impl Default for Body {
    fn default() -> Self {
        Self::Inline(Vec::new())
    }
}

/// What the agent executes. Opaque to scheduling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// The command.
    pub action: Action,
    /// Added to the clean environment.
    pub env: BTreeMap<String, String>,
    /// The attempt's private directory where absent.
    pub working_directory: Option<String>,
}

/// How the process is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Executed as given, no shell in between.
    Exec {
        /// Looked up in PATH.
        cmd: String,
        /// Passed unchanged.
        args: Vec<String>,
    },
    /// Written to a file and executed.
    Script {
        /// `/bin/bash` with `set -euo pipefail` where absent.
        interpreter: Option<String>,
        /// The script.
        content: String,
    },
}

/// Needs of one attempt. Zero means: only a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// MiB.
    pub memory_mb: u64,
    /// MiB.
    pub storage_mb: u64,
    /// Devices.
    pub gpu: u32,
    /// For example `x86_64`.
    pub architecture: Option<String>,
}

/// Retry budgets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// For attempts that the infrastructure lost.
    pub infrastructure: u32,
    /// For the job's own failures.
    pub failure: u32,
    /// Which exit codes count for `failure`; empty: every non-zero one.
    pub exit_codes: Vec<i32>,
    /// For time-outs.
    pub timeout: u32,
    /// How often it may make room for a job of higher priority, where it is preemptible at all.
    pub preemption: u32,
    /// First wait.
    pub backoff_initial_ms: u64,
    /// Longest wait.
    pub backoff_max_ms: u64,
    /// All attempts together; 0: no bound of its own.
    pub max_attempts: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            infrastructure: defaults::INFRASTRUCTURE_RETRIES,
            failure: 0,
            exit_codes: Vec::new(),
            timeout: 0,
            preemption: defaults::PREEMPTIONS,
            backoff_initial_ms: defaults::BACKOFF_INITIAL_MS,
            backoff_max_ms: defaults::BACKOFF_MAX_MS,
            max_attempts: 0,
        }
    }
}

/// When the spool is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputPolicy {
    /// The job waits.
    #[default]
    Block,
    /// Lines are dropped and counted in a gap record.
    Drop,
}

/// Rarely used parts of a spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extras {
    /// Must hold of the worker.
    pub constraints: Vec<Constraint>,
    /// Should hold of the worker.
    pub preferences: Vec<Preference>,
    /// Must have succeeded before.
    pub depends_on: Vec<JobId>,
    /// Many of the same.
    pub array: Option<Array>,
    /// A container image.
    pub image: Option<String>,
    /// By name; never the value.
    pub secrets: Vec<SecretRef>,
    /// Runs as this user.
    pub user: Option<String>,
}

/// `attribute operator value`, for example `label.zone = a`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// `label.<key>`, `architecture`, `kernel`, `hostname`, `provider`, `region`.
    pub attribute: String,
    /// `=`, `!=`, `in`, `not_in`, `exists`, `not_exists`, `<`, `<=`, `>`, `>=`.
    pub operator: String,
    /// The right-hand side.
    pub value: String,
}

/// A constraint with a weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preference {
    /// What is wished for.
    pub constraint: Constraint,
    /// How much.
    pub weight: i32,
}

/// A job array.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Array {
    /// Number of elements.
    pub count: u32,
    /// At once; 0: no bound.
    pub max_parallel: u32,
}

/// A secret that the job is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRef {
    /// Its name.
    pub name: String,
    /// The variable it goes to; absent: JSON on standard input.
    pub env: Option<String>,
}
