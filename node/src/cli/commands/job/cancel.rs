//! `job cancel`.

use hodei_proto::v1::{CancelJobRequest, CancelJobResponse, job_execution_service_client::JobExecutionServiceClient};
use serde_json::{Value, json};

use super::{job_help, selector, show};
use crate::cli::{
    Global,
    client::Client,
    exit::{CommandResult, Failure},
    output::{self, Output},
};

/// Request that a job be cancelled.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node job cancel last --reason 'wrong branch'")]
pub struct Args {
    #[arg(value_name = "ID", help = job_help!())]
    job: String,
    /// Kept with the job
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

struct Accepted(CancelJobResponse);

impl Output for Accepted {
    fn table(&self) -> String {
        match show::state(self.0.state()) {
            "Cancelled" => format!("job {} is cancelled", self.0.id),
            state => format!("job {} is being cancelled (now {state})", self.0.id),
        }
    }

    fn json(&self) -> Value {
        json!({ "id": self.0.id, "state": show::state(self.0.state()) })
    }

    fn quiet(&self) -> String {
        self.0.id.clone()
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let answer = cancel(&Client::new(global)?, &self.job, &self.reason).await?;
        output::print(global.output, &Accepted(answer))?;
        Ok(0)
    }
}

/// Requests it; committed when this returns.
///
/// # Errors
/// As of any write; that the job has ended.
pub async fn cancel(client: &Client, job: &str, reason: &str) -> Result<CancelJobResponse, Failure> {
    let message = CancelJobRequest { job: selector(job), reason: reason.to_owned() };
    client
        .write(|conn| {
            let request = conn.request(message.clone());
            async move { JobExecutionServiceClient::new(conn.channel).cancel_job(request).await }
        })
        .await
}
