//! `job retry`.

use hodei_proto::v1::{RetryJobRequest, RetryJobResponse, job_execution_service_client::JobExecutionServiceClient};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{get::get, job_help, selector};
use crate::cli::{
    Global,
    client::Client,
    exit::CommandResult,
    output::{self, Output},
};

/// Try a job that failed, timed out or was cancelled once more: as a new job of the same spec.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "What has ended stays as it is; the new job has a link to it (`retry_of`).\n\nExample:\n  hodei-node job retry nightly\n  hodei-node job wait $(hodei-node job retry last --output quiet)"
)]
pub struct Args {
    #[arg(value_name = "ID", help = job_help!())]
    job: String,
}

struct Retried(RetryJobResponse);

impl Output for Retried {
    fn table(&self) -> String {
        format!("job {}, a retry of {}", self.0.id, self.0.retry_of)
    }

    fn json(&self) -> Value {
        json!({ "id": self.0.id, "retry_of": self.0.retry_of })
    }

    fn quiet(&self) -> String {
        self.0.id.clone()
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let client = Client::new(global)?;
        // By its full id from here on: the new job would be the newest of that name, should the request be repeated.
        let of = get(&client, &self.job, false).await?.id;
        let message = RetryJobRequest { id: Uuid::now_v7().to_string(), job: selector(&of) };
        let answer = client
            .write(|conn| {
                let request = conn.request(message.clone());
                async move { JobExecutionServiceClient::new(conn.channel).retry_job(request).await }
            })
            .await?;
        output::print(global.output, &Retried(answer))?;
        Ok(0)
    }
}
