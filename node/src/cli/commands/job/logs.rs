//! `job logs`.

use hodei_proto::v1::Job;

use super::{
    ending::{exit_code, is_over},
    follow::{Followed, Follower, Wanted},
    get::{get, get_patiently},
    job_help,
};
use crate::{
    cli::{
        Global,
        client::Client,
        exit::{CommandResult, Failure, code},
        output,
    },
    clock, error,
    jobfile::units,
};

/// Show a job's output: one attempt's, by default the newest's, or with -f all attempts' until the job ends.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node job logs last -f --tail 100\n  hodei-node job logs last --attempt 1")]
pub struct Args {
    #[arg(value_name = "ID", help = job_help!())]
    job: String,
    /// Go on until the job ends, and exit with its exit code
    #[arg(short, long)]
    follow: bool,
    /// Of this attempt (1, 2, 3 …); with -f from it on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    attempt: Option<u32>,
    /// Begin with the last N lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tail: Option<u64>,
    /// Only lines since then: a time ago (10m) or a date (RFC 3339)
    #[arg(long, value_name = "T", value_parser = since)]
    since: Option<i64>,
}

/// Unix milliseconds.
fn since(text: &str) -> Result<i64, String> {
    let expected = || "expected a time ago such as 10m, or a date such as 2026-01-31T12:00:00Z".to_owned();
    if let Ok(ms) = units::duration_ms(text) {
        let ago = i64::try_from(ms).map_err(|_| expected())?;
        return Ok((clock::unix_seconds() * 1_000).saturating_sub(ago).max(1));
    }
    let at =
        time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).map_err(|_| expected())?;
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).map_err(|_| expected())
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        tokio::select! {
            result = self.show(global) => result,
            // Who closes a pipe has seen enough, whether or not there will be another line.
            () = output::reader_gone() => Ok(0),
        }
    }

    async fn show(self, global: &Global) -> CommandResult {
        let client = Client::new(global)?;
        // `last` and names mean the job that they name now, also after a reconnect.
        let job =
            if self.follow { get_patiently(&client, &self.job).await } else { get(&client, &self.job, false).await };
        let job = job?;
        if self.follow && is_over(&job) && self.attempt > Some(job.attempt) {
            return Err(never_comes(&job, self.attempt.unwrap_or_default()));
        }
        let wanted = Wanted {
            job: job.id,
            attempt: self.attempt.unwrap_or_default(),
            follow: self.follow,
            tail: self.tail.unwrap_or_default(),
            since_ms: self.since.unwrap_or_default(),
        };
        match Follower::new(&client, wanted).run().await? {
            Followed::Ended(job) if self.follow => Ok(exit_code(&job)),
            Followed::Ended(_) | Followed::Printed => Ok(0),
            Followed::Lacking => Ok(code::UNREACHABLE),
        }
    }
}

/// Of a job that has ended there are no further attempts to wait for.
fn never_comes(job: &Job, attempt: u32) -> Failure {
    let message = format!("job {} has no attempt {attempt}: its newest is {}", job.id, job.attempt);
    Failure::other(message).coded(error::code::UNKNOWN_ATTEMPT)
}
