//! `job get`.

use hodei_proto::v1::{GetJobRequest, Job, job_execution_service_client::JobExecutionServiceClient};

use super::{job_help, selector, show::One};
use crate::cli::{
    Global,
    client::Client,
    exit::{CommandResult, Failure},
    output,
};

/// Show a job.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node job get last --output json")]
pub struct Args {
    #[arg(value_name = "ID", help = job_help!())]
    job: String,
    /// Read what one node knows, without asking the others
    #[arg(long)]
    stale: bool,
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let job = get(&Client::new(global)?, &self.job, self.stale).await?;
        output::print(global.output, &One(job))?;
        Ok(0)
    }
}

/// The job that `text` names.
///
/// # Errors
/// As of any read; that there is none such.
pub async fn get(client: &Client, text: &str, stale: bool) -> Result<Job, Failure> {
    let message = GetJobRequest { job: selector(text), stale };
    let answer = client
        .read(|conn| {
            let request = conn.request(message.clone());
            async move {
                let limit = hodei_raft::MAX_MESSAGE;
                JobExecutionServiceClient::new(conn.channel).max_decoding_message_size(limit).get_job(request).await
            }
        })
        .await?;
    answer.job.ok_or_else(|| Failure::other("the node's answer is damaged"))
}
