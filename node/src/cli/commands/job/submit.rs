//! `job submit`.

use std::path::PathBuf;

use hodei_proto::v1::{
    GetSchedulingDecisionRequest, QueueJobRequest, QueueJobResponse,
    job_execution_service_client::JobExecutionServiceClient,
};
use serde_json::{Value, json};

use super::{
    explain::{Explained, explain},
    options::{Options, read_file},
};
use crate::{
    cli::{
        Global,
        client::Client,
        exit::{CommandResult, Failure},
        output::{self, Output},
    },
    jobfile::JobFile,
};

/// What clap would say of `-- CMD` alone is but half of it.
const NO_COMMAND: &str = "command: expected one after --, or a job file with -f
usage: hodei-node job submit [OPTIONS] -- <CMD>... | hodei-node job submit [OPTIONS] -f <FILE> (more with --help)";

/// Submit a job.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  hodei-node job submit --name nightly --cpu 2 --timeout 1h -- ./build.sh\n  hodei-node job submit -f job.toml --output quiet\n  hodei-node job submit -f job.yaml --dry-run"
)]
pub struct Args {
    /// A job file in TOML, YAML or JSON; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Check it here and on the server and show where it would go, but do not submit it
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    options: Options,
    /// The command and its arguments, executed as given
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

struct Submitted(QueueJobResponse);

impl Output for Submitted {
    fn table(&self) -> String {
        let again = if self.0.existing { " (submitted before)" } else { "" };
        format!("job {}{again}", self.0.id)
    }

    fn json(&self) -> Value {
        json!({ "id": self.0.id, "existing": self.0.existing })
    }

    fn quiet(&self) -> String {
        self.0.id.clone()
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        if self.file.is_none() && self.command.is_empty() {
            return Err(Failure::bad_input(NO_COMMAND).coded("usage").of("command"));
        }
        let file = self.file.as_ref().map_or_else(|| Ok(JobFile::default()), read_file)?;
        let request = self.options.submission(file, self.command)?;
        let client = Client::new(global)?;
        if self.dry_run {
            let question = GetSchedulingDecisionRequest { job: None, spec: request.spec };
            output::print(global.output, &Explained(explain(&client, question).await?))?;
            return Ok(0);
        }
        let answer = submit(&client, request).await?;
        output::print(global.output, &Submitted(answer))?;
        Ok(0)
    }
}

/// Submits, over all servers, with the same id.
///
/// # Errors
/// As of any write.
pub async fn submit(client: &Client, request: QueueJobRequest) -> Result<QueueJobResponse, Failure> {
    client
        .write(|conn| {
            let request = conn.request(request.clone());
            async move { JobExecutionServiceClient::new(conn.channel).queue_job(request).await }
        })
        .await
}
