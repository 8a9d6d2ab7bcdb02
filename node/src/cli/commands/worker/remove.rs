//! `worker remove`.

use hodei_proto::v1::{UnregisterWorkerRequest, worker_agent_service_client::WorkerAgentServiceClient};
use hodei_state::ids::WorkerId;
use serde_json::{Value, json};

use super::{get::get, worker_help};
use crate::cli::{
    Global,
    client::Client,
    exit::CommandResult,
    output::{self, Output},
};

/// Remove a worker for good: its agent is served no more, neither under its id nor with its key under another one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node worker drain build-7 && hodei-node worker remove build-7")]
pub struct Args {
    #[arg(value_name = "ID", help = worker_help!())]
    worker: String,
    /// Although it runs jobs: each goes back to the queue once its lease has run out, and not before
    #[arg(long)]
    force: bool,
}

struct Removed(String);

impl Output for Removed {
    fn table(&self) -> String {
        format!("worker {} is removed", self.0)
    }

    fn json(&self) -> Value {
        json!({ "id": self.0, "removed": true })
    }

    fn quiet(&self) -> String {
        self.0.clone()
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let client = Client::new(global)?;
        // A whole id needs no look: its agent may have enrolled and never come.
        let worker_id = match self.worker.parse::<WorkerId>() {
            Ok(id) => id.to_string(),
            Err(_) => get(&client, &self.worker, false).await?.id,
        };
        let message = UnregisterWorkerRequest { worker_id: worker_id.clone(), force: self.force, ..Default::default() };
        client
            .write(|conn| {
                let request = conn.request(message.clone());
                async move { WorkerAgentServiceClient::new(conn.channel).unregister_worker(request).await }
            })
            .await?;
        output::print(global.output, &Removed(worker_id))?;
        Ok(0)
    }
}
