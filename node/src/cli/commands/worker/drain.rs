//! `worker drain`.

use std::time::Duration;

use hodei_proto::v1::{
    DrainWorker, UpdateWorkerStatusRequest, Worker, update_worker_status_request::Wish,
    worker_agent_service_client::WorkerAgentServiceClient,
};
use tokio::time::sleep;
use uuid::Uuid;

use super::{get::get, show::One, worker_help};
use crate::cli::{
    Global,
    client::Client,
    duration,
    exit::{CommandResult, Failure, code},
    output,
};

/// Between looks at what is left.
const EVERY: Duration = Duration::from_millis(500);
/// Jobs that are named while they are waited for.
const NAMED: usize = 5;

/// Give a worker no more jobs, and wait until it has none. It stays drained, over restarts, until it is undrained.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Ctrl-C ends the waiting, not the drain.\n\nExample:\n  hodei-node worker drain build-7 --deadline 10m"
)]
pub struct Args {
    #[arg(value_name = "ID", help = worker_help!())]
    worker: String,
    /// What still runs after this time is stopped and goes back to the queue
    #[arg(long, value_name = "TIME", value_parser = duration)]
    deadline: Option<Duration>,
    /// Stop what runs now and put it back in the queue; no retry budget pays for it
    #[arg(long, conflicts_with_all = ["let_finish", "deadline"])]
    requeue: bool,
    /// Let what runs come to its end, or to the deadline (the default)
    #[arg(long)]
    let_finish: bool,
    /// Do not wait
    #[arg(long)]
    detach: bool,
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let client = Client::new(global)?;
        let id = get(&client, &self.worker, false).await?.id;
        let drain = DrainWorker {
            request_id: Uuid::now_v7().to_string(),
            deadline_ms: self.deadline.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)),
            requeue: self.requeue,
        };
        update(&client, &id, Wish::Drain(drain)).await?;
        let worker = if self.detach { get(&client, &id, false).await? } else { wait(&client, &id).await? };
        output::print(global.output, &One(worker))?;
        Ok(0)
    }
}

/// Changes what a worker is for.
///
/// # Errors
/// As of any write; that there is no such worker.
pub async fn update(client: &Client, id: &str, wish: Wish) -> Result<(), Failure> {
    let message = UpdateWorkerStatusRequest { worker_id: id.to_owned(), session_id: String::new(), wish: Some(wish) };
    client
        .write(|conn| {
            let request = conn.request(message.clone());
            async move { WorkerAgentServiceClient::new(conn.channel).update_worker_status(request).await }
        })
        .await
        .map(drop)
}

/// Waits, through an outage too, until the worker has no job any more, and says what it waits for.
async fn wait(client: &Client, id: &str) -> Result<Worker, Failure> {
    let mut told = String::new();
    loop {
        let now = match get(client, id, false).await {
            Ok(worker) if worker.running == 0 => return Ok(worker),
            Ok(worker) if worker.drain.is_none() && worker.removed_at_ms == 0 => {
                return Err(Failure::other(format!("worker {id} was undrained")));
            }
            Ok(worker) => waiting_for(&worker),
            Err(failure) if failure.exit == code::UNREACHABLE => format!("{failure}; trying again"),
            Err(failure) => return Err(failure),
        };
        if now != told {
            output::note(format_args!("hodei: {now}"));
            told = now;
        }
        sleep(EVERY).await;
    }
}

fn waiting_for(worker: &Worker) -> String {
    let name = |attempt: &hodei_proto::v1::WorkerAttempt| {
        let id = attempt.attempt.clone().unwrap_or_default().job_id;
        let id = output::short(&id);
        if attempt.name.is_empty() { id } else { format!("{id} ({})", attempt.name) }
    };
    let mut names: Vec<String> = worker.attempts.iter().take(NAMED).map(name).collect();
    if worker.attempts.len() > NAMED {
        names.push("…".to_owned());
    }
    let jobs = if worker.running == 1 { "job" } else { "jobs" };
    format!("waiting for {} {jobs}: {}", worker.running, names.join(", "))
}
