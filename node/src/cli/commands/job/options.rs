//! What a job is to do, from flags and job files.

use std::{collections::BTreeMap, io::Read as _, path::PathBuf, str::FromStr};

use hodei_proto::v1::QueueJobRequest;
use uuid::Uuid;

use crate::{
    cli::exit::Failure,
    convert::from_proto,
    jobfile::{
        self, BadJobFile, Command, Constraint, Cores, Duration, JobFile, Preference, Secret, Shell, Size, units,
    },
};

/// A larger job file cannot hold a job.
const MAX_FILE: u64 = 8 << 20;

/// `K=V`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    key: String,
    value: String,
}

impl FromStr for Pair {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.to_owned(), value: value.to_owned() }),
            _ => Err("expected KEY=VALUE".to_owned()),
        }
    }
}

impl Pair {
    /// As a map; a key given twice has its last value.
    pub fn map(pairs: Vec<Self>) -> BTreeMap<String, String> {
        pairs.into_iter().map(|pair| (pair.key, pair.value)).collect()
    }
}

/// What may be said of a job beside its command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// A name to find it by
    #[arg(long)]
    name: Option<String>,
    /// A variable of its environment; may be repeated
    #[arg(long, value_name = "K=V")]
    env: Vec<Pair>,
    /// Cores, for example 2 or 0.5
    #[arg(long, value_name = "CORES", value_parser = cores)]
    cpu: Option<Cores>,
    /// Memory, for example 512M or 2GiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<Size>,
    /// Disk space, for example 10GiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    storage: Option<Size>,
    /// Devices
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    gpu: Option<u32>,
    /// The worker's architecture, for example x86_64
    #[arg(long, value_name = "ARCH")]
    architecture: Option<String>,
    /// What must hold of its worker, for example label.zone=a, kernel>=5.10 or 'label.ssd exists'; may be repeated
    #[arg(long, value_name = "CONSTRAINT")]
    constraint: Vec<Constraint>,
    /// What it would like of its worker, with a weight: label.zone=a:10; may be repeated
    #[arg(long, value_name = "CONSTRAINT:WEIGHT", allow_hyphen_values = true)]
    prefer: Vec<Preference>,
    /// It is ended after so long
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Higher goes first
    #[arg(long)]
    priority: Option<i32>,
    /// For selection; may be repeated
    #[arg(long, value_name = "K=V")]
    label: Vec<Pair>,
    /// Its worker may be out of touch for so long (default 2m, at least 5s)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    lost_after: Option<Duration>,
    /// The same key with the same content names the same job
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// A bound on all attempts together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_attempts: Option<u32>,
    /// Try again so many times when it fails by itself (default 0)
    #[arg(long, visible_alias = "retries", value_name = "N")]
    retry_failure: Option<u32>,
    /// Only after these exit codes (128+n for a signal); default: all but 0
    #[arg(long, value_name = "CODE[,CODE]", value_delimiter = ',', value_parser = exit_code)]
    retry_exit_codes: Vec<i32>,
    /// Try again so many times when it runs out of time (default 0)
    #[arg(long, value_name = "N")]
    retry_timeout: Option<u32>,
    /// Try again so many times when the infrastructure loses it (default 3)
    #[arg(long, value_name = "N")]
    retry_infrastructure: Option<u32>,
    /// Wait before the second attempt; doubled with each further one (default 1s)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    retry_backoff: Option<Duration>,
    /// Never wait longer than so (default 1m)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    retry_backoff_max: Option<Duration>,
    /// It may be ended, and tried again, to make room for a job of higher priority
    #[arg(long)]
    preemptible: bool,
    /// How often it may make room (default 3)
    #[arg(long, value_name = "N", requires = "preemptible")]
    retry_preemption: Option<u32>,
    /// Between SIGTERM and SIGKILL (default 10s)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    grace_period: Option<Duration>,
    /// A secret that it is given: as JSON on its standard input, or in a variable; may be repeated
    #[arg(long, value_name = "NAME[=VARIABLE]")]
    secret: Vec<String>,
    /// Where it runs (default: a private directory)
    #[arg(long, value_name = "DIR")]
    working_directory: Option<String>,
    /// Run as this user of the worker, whose agent must run as root
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

fn exit_code(text: &str) -> Result<i32, &'static str> {
    text.trim().parse().map_err(|_| "expected exit codes from 1 to 255 with single commas between them, such as 75,100")
}

fn cores(text: &str) -> Result<Cores, units::BadUnit> {
    units::cores_millis(text).map(Cores)
}

fn size(text: &str) -> Result<Size, units::BadUnit> {
    units::size_mb(text).map(Size)
}

fn duration(text: &str) -> Result<Duration, units::BadUnit> {
    units::duration_ms(text).map(Duration)
}

impl Options {
    /// A submission: what the file says, changed by what the flags say. Checked here already, so that bad input is
    /// reported even where no server is reachable.
    ///
    /// # Errors
    /// Bad input.
    pub fn submission(self, file: JobFile, command: Vec<String>) -> Result<QueueJobRequest, Failure> {
        let mut file = self.apply(file);
        let mut words = command.into_iter();
        if let Some(cmd) = words.next() {
            if file.command.is_some() {
                return Err(Failure::bad_input("command: expected either in the job file or after --, not both"));
            }
            file.command = Some(Command::Shell(Shell { cmd, args: words.collect() }));
        }
        file.check().map_err(|bad| bad_file(&bad, bad.to_string()))?;
        let idempotency_key = file.idempotency_key.take().unwrap_or_default();
        let id = Uuid::now_v7().to_string();
        let request = QueueJobRequest { id, spec: Some(file.into_spec()), idempotency_key };
        from_proto::submission(request.clone()).map_err(|bad| Failure::bad_input(bad.to_string()).of(bad.field))?;
        Ok(request)
    }

    fn apply(self, mut file: JobFile) -> JobFile {
        file.name = self.name.or(file.name);
        file.env.extend(Pair::map(self.env));
        file.resources.cpu_cores = self.cpu.or(file.resources.cpu_cores);
        file.resources.memory_mb = self.memory.or(file.resources.memory_mb);
        file.resources.storage_mb = self.storage.or(file.resources.storage_mb);
        file.resources.gpu = self.gpu.unwrap_or(file.resources.gpu);
        file.resources.architecture = self.architecture.or(file.resources.architecture);
        file.constraints.extend(self.constraint);
        file.preferences.extend(self.prefer);
        file.timeout = self.timeout.or(file.timeout);
        file.priority = self.priority.unwrap_or(file.priority);
        file.labels.extend(Pair::map(self.label));
        file.lost_after = self.lost_after.or(file.lost_after);
        file.idempotency_key = self.idempotency_key.or(file.idempotency_key);
        file.retry.max_attempts = self.max_attempts.or(file.retry.max_attempts);
        file.retry.failure = self.retry_failure.or(file.retry.failure);
        if !self.retry_exit_codes.is_empty() {
            file.retry.exit_codes = self.retry_exit_codes;
        }
        file.retry.timeout = self.retry_timeout.or(file.retry.timeout);
        file.retry.infrastructure = self.retry_infrastructure.or(file.retry.infrastructure);
        file.retry.backoff_initial = self.retry_backoff.or(file.retry.backoff_initial);
        file.retry.backoff_max = self.retry_backoff_max.or(file.retry.backoff_max);
        file.preemptible |= self.preemptible;
        file.retry.preemption = self.retry_preemption.or(file.retry.preemption);
        file.grace_period = self.grace_period.or(file.grace_period);
        file.secrets.extend(self.secret.into_iter().map(|text| match text.split_once('=') {
            Some((name, env)) => Secret { name: name.to_owned(), env: Some(env.to_owned()) },
            None => Secret { name: text, env: None },
        }));
        file.working_directory = self.working_directory.or(file.working_directory);
        file.user = self.user.or(file.user);
        file
    }
}

/// Reads a job file; `-` is standard input.
///
/// # Errors
/// Bad input, named by file and field.
pub fn read_file(path: &PathBuf) -> Result<JobFile, Failure> {
    let stdin = path.as_os_str() == "-";
    let name = if stdin { "standard input".to_owned() } else { path.display().to_string() };
    let cannot = |error: std::io::Error| Failure::bad_input(format!("cannot read {name}: {error}"));
    let mut text = String::new();
    let read = if stdin {
        std::io::stdin().lock().take(MAX_FILE + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text))
    };
    if read.map_err(cannot)? as u64 > MAX_FILE {
        return Err(Failure::bad_input(format!("{name}: expected a job file of at most 8 MiB")));
    }
    jobfile::parse(&text).map_err(|bad| bad_file(&bad, format!("{name}: {bad}")))
}

fn bad_file(bad: &BadJobFile, message: String) -> Failure {
    let failure = Failure::bad_input(message);
    match bad {
        BadJobFile::Field { field, .. } => failure.of(field),
        BadJobFile::Syntax(_) => failure,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        for (flags, expected) in [
            (&["--env", "HODEI_FENCE=1"][..], "env.HODEI_FENCE: expected a name that Hodei does not set itself"),
            (&["--secret", "a=HODEI_JOB_ID"], "secrets[0].env: expected a name that Hodei does not set itself"),
            (
                &["--env", "A=1", "--secret", "b", "--secret", "a=A"],
                "secrets[1].env: expected a name that env does not give",
            ),
            (
                &["--gpu", "1", "--env", "CUDA_VISIBLE_DEVICES=0"],
                "env.CUDA_VISIBLE_DEVICES: expected a name that Hodei",
            ),
        ] {
            let line = Line::try_parse_from([&["job"], flags].concat()).unwrap();
            let failure = line.options.submission(JobFile::default(), vec!["true".to_owned()]).unwrap_err();
            assert!(failure.exit == 2 && failure.message.starts_with(expected), "{failure}");
        }
        // Its own concern, as long as Hodei does not have one.
        let line = Line::try_parse_from(["job", "--env", "HODEI_SERVER=a", "--env", "CUDA_VISIBLE_DEVICES="]).unwrap();
        line.options.submission(JobFile::default(), vec!["true".to_owned()]).unwrap();
    }

    #[test]
    fn exit_codes_are_a_list() {
        let line = Line::try_parse_from(["job", "--retry-exit-codes", "1, 75"]).unwrap();
        assert_eq!(line.options.retry_exit_codes, [1, 75]);
        for wrong in ["1,,2", "1,", "x", "-"] {
            let error = Line::try_parse_from(["job", "--retry-exit-codes", wrong]).err().unwrap().to_string();
            assert!(error.contains("expected exit codes from 1 to 255"), "{error}");
        }
    }

    #[test]
    fn an_empty_text_is_not_taken_for_none() {
        for (flag, expected) in [
            ("--idempotency-key=", "idempotency_key: expected 1 to 128 bytes"),
            ("--name=", "name: expected 1 to 128 bytes"),
            ("--working-directory=", "working_directory: expected a directory"),
            ("--user=", "user: expected a user's name"),
            (
                "--secret=a=",
                "secrets[0].env: expected the name of a variable; without one, the secret comes on standard",
            ),
        ] {
            let line = Line::try_parse_from(["job", flag]).unwrap();
            let failure = line.options.submission(JobFile::default(), vec!["true".to_owned()]).unwrap_err();
            assert_eq!(failure.exit, 2, "{flag}");
            assert!(failure.message.starts_with(expected), "{failure}");
        }
    }
}
