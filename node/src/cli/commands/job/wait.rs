//! `job wait`.

use std::{collections::BTreeMap, time::Duration};

use hodei_proto::v1::{Job, WatchJobsRequest, job_execution_service_client::JobExecutionServiceClient};
use tokio::time::{sleep, timeout};

use super::{
    ending::{TIMED_OUT, exit_code, is_over},
    get::get_patiently,
    job_help, selector,
    show::Many,
};
use crate::cli::{
    Global,
    client::Client,
    exit::{CommandResult, Failure, code},
    output,
};

/// Between attempts to go on.
const RETRY: Duration = Duration::from_millis(100);
/// Of the requests of a wait that ends.
const SHORTEST_REQUEST: Duration = Duration::from_millis(200);
/// Of one watch; more are waited for one after the other.
const AT_ONCE: usize = 1_000;

/// Wait until jobs have ended; exit with the first exit code that is not zero, in the order given.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With --timeout, it ends after so long with 124, whatever has ended by then; nothing is printed.\nAn outage of the cluster is waited for as well.\n\nExample:\n  hodei-node job wait nightly 3f2a91c4 --timeout 1h"
)]
pub struct Args {
    #[arg(value_name = "ID", required = true, help = job_help!())]
    jobs: Vec<String>,
    /// Wait no longer than this; the jobs go on
    #[arg(long, value_name = "TIME", value_parser = crate::cli::duration)]
    timeout: Option<Duration>,
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let client = Client::new(global)?;
        let Some(within) = self.timeout else { return self.wait(global, &client).await };
        // Short enough to hear why there is no answer.
        let client = client.at_most((within / 2).max(SHORTEST_REQUEST));
        match timeout(within, self.wait(global, &client)).await {
            Ok(result) => result,
            Err(_) => {
                let known = format!("not all jobs are known to have ended after {within:?}");
                let message = match client.trouble() {
                    Some(why) => format!("{known}, and the cluster does not answer: {why}"),
                    None => format!("{known}; they go on"),
                };
                Err(Failure::new(TIMED_OUT, "timeout", message))
            }
        }
    }

    async fn wait(&self, global: &Global, client: &Client) -> CommandResult {
        let mut jobs = Vec::with_capacity(self.jobs.len());
        for text in &self.jobs {
            jobs.push(get_patiently(client, text).await?);
        }
        let ids: Vec<String> = jobs.iter().map(|job| job.id.clone()).collect();
        let mut ended: BTreeMap<String, Job> = BTreeMap::new();
        ended.extend(jobs.into_iter().filter(is_over).map(|job| (job.id.clone(), job)));
        let mut told = false;
        loop {
            let open: Vec<&String> = ids.iter().filter(|id| !ended.contains_key(*id)).take(AT_ONCE).collect();
            if open.is_empty() {
                break;
            }
            match watch(client, &open, &mut ended).await {
                Ok(()) => told = false,
                Err(failure) if failure.exit == code::UNREACHABLE => {
                    if !std::mem::replace(&mut told, true) {
                        output::note(format_args!("hodei: lost the connection ({failure}); trying again"));
                    }
                    client.next_server();
                    sleep(RETRY).await;
                }
                Err(failure) => return Err(failure),
            }
        }
        let jobs: Vec<Job> = ids.iter().filter_map(|id| ended.get(id).cloned()).collect();
        let exit = jobs.iter().map(exit_code).find(|exit| *exit != 0).unwrap_or(0);
        output::print(global.output, &Many(jobs))?;
        Ok(exit)
    }
}

/// Notes those that end until the stream does.
async fn watch(client: &Client, jobs: &[&String], ended: &mut BTreeMap<String, Job>) -> Result<(), Failure> {
    let message = WatchJobsRequest { jobs: jobs.iter().filter_map(|id| selector(id)).collect() };
    let mut stream = client
        .open(None, |conn| {
            let request = conn.request(message.clone());
            async move {
                let client = JobExecutionServiceClient::new(conn.channel);
                client.max_decoding_message_size(hodei_raft::MAX_MESSAGE).watch_jobs(request).await
            }
        })
        .await?;
    loop {
        match stream.message().await {
            Ok(Some(answer)) => {
                if let Some(job) = answer.job.filter(is_over) {
                    ended.insert(job.id.clone(), job);
                }
            }
            Ok(None) => return Ok(()),
            Err(status) => {
                let failure = Failure::from_status(&status);
                let definite = crate::error::detail(&status).is_some() && failure.exit == code::FAILURE;
                return Err(if definite { failure } else { Failure::unreachable(failure.message) });
            }
        }
    }
}
