//! `job get`.

use std::time::Duration;

use hodei_proto::v1::{GetJobRequest, Job, job_execution_service_client::JobExecutionServiceClient};
use tokio::time::sleep;

use super::{job_help, selector, show::One};
use crate::cli::{
    Global,
    client::Client,
    exit::{CommandResult, Failure, code},
    output,
};

/// Between attempts to go on.
const RETRY: Duration = Duration::from_millis(100);

/// Show a job.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  hodei-node job get last --output json\n\nEach of `attempts` has, in JSON: number, worker_id, session_id, fence, assigned_at, started_at, finished_at;\n`reason` {kind, …}; `ended_by` (result, declined, expiry, dead); `next` {kind, budget, not_before}, where kind is\nend, retry, put_back, spent or max_attempts; `taken_back` (drained, preempted) and `preempted_for`; and `choice`,\nwhy it is where it is."
)]
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

/// The job that `text` names, as soon as the cluster can tell: for those who wait for the job anyway.
///
/// # Errors
/// A definite refusal; that there is none such.
pub async fn get_patiently(client: &Client, text: &str) -> Result<Job, Failure> {
    let mut told = false;
    loop {
        match get(client, text, false).await {
            Err(failure) if failure.exit == code::UNREACHABLE => {
                if !std::mem::replace(&mut told, true) {
                    output::note(format_args!("hodei: {failure}; trying again"));
                }
                sleep(RETRY).await;
            }
            answer => return answer,
        }
    }
}
