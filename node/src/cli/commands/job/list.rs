//! `job list`.

use hodei_proto::v1::{Job, JobState, ListJobsRequest, job_execution_service_client::JobExecutionServiceClient};

use super::{options::Pair, show::Many};
use crate::cli::{
    Global,
    client::Client,
    exit::{CommandResult, Failure},
    output,
};

/// Show jobs, newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node job list --state running --label team=ci --limit 20")]
pub struct Args {
    /// Only jobs in this state; may be repeated
    #[arg(long, value_name = "S", value_delimiter = ',', value_parser = state)]
    state: Vec<JobState>,
    /// Only jobs with this label; may be repeated
    #[arg(long, value_name = "K=V")]
    label: Vec<Pair>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// Read what one node knows, without asking the others
    #[arg(long)]
    stale: bool,
}

fn state(text: &str) -> Result<JobState, String> {
    match text.to_ascii_lowercase().as_str() {
        "pending" => Ok(JobState::Pending),
        "scheduled" => Ok(JobState::Scheduled),
        "running" => Ok(JobState::Running),
        "succeeded" => Ok(JobState::Succeeded),
        "failed" => Ok(JobState::Failed),
        "cancelled" => Ok(JobState::Cancelled),
        "timeout" => Ok(JobState::Timeout),
        _ => Err("expected pending, scheduled, running, succeeded, failed, cancelled or timeout".to_owned()),
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let jobs = self.list(&Client::new(global)?).await?;
        output::print(global.output, &Many(jobs))?;
        Ok(0)
    }

    async fn list(self, client: &Client) -> Result<Vec<Job>, Failure> {
        let states = self.state.iter().map(|state| (*state).into()).collect();
        let mut message = ListJobsRequest {
            states,
            labels: Pair::map(self.label),
            limit: self.limit,
            stale: self.stale,
            ..Default::default()
        };
        let limit = self.limit as usize;
        let mut jobs: Vec<Job> = Vec::new();
        loop {
            let page = client
                .read(|conn| {
                    let request = conn.request(message.clone());
                    async move {
                        let limit = hodei_raft::MAX_MESSAGE;
                        let client = JobExecutionServiceClient::new(conn.channel);
                        client.max_decoding_message_size(limit).list_jobs(request).await
                    }
                })
                .await?;
            jobs.extend(page.jobs);
            if page.next_page_token.is_empty() || jobs.len() >= limit {
                jobs.truncate(limit);
                return Ok(jobs);
            }
            message.page_token = page.next_page_token;
            message.limit = u32::try_from(limit - jobs.len()).unwrap_or(u32::MAX);
        }
    }
}
