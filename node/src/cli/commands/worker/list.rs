//! `worker list`.

use hodei_proto::v1::{Capacity, GetAvailableWorkersRequest, Worker, scheduler_service_client::SchedulerServiceClient};
use serde_json::{Value, json};

use crate::cli::{
    Global,
    client::Client,
    exit::CommandResult,
    output::{self, Output},
};

/// Show the workers.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node worker list --output json")]
pub struct Args {
    /// Read what one node knows, without asking the others
    #[arg(long)]
    stale: bool,
}

struct Listed(Vec<Worker>);

impl Output for Listed {
    fn table(&self) -> String {
        let rows = self.0.iter().map(|worker| {
            let labels: Vec<_> = worker.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            [
                output::short(&worker.id),
                worker.state.clone(),
                format!("{}/{}", slots(worker.free.as_ref()), slots(worker.capacity.as_ref())),
                worker.gateway.map(|node| node.to_string()).unwrap_or_default(),
                worker.hostname.clone(),
                worker.version.clone(),
                labels.join(" "),
            ]
        });
        output::table(["ID", "STATE", "FREE", "GATEWAY", "HOST", "VERSION", "LABELS"], rows)
    }

    fn json(&self) -> Value {
        let worker = |worker: &Worker| {
            json!({
                "id": worker.id,
                "state": worker.state,
                "capacity": worker.capacity.as_ref().map(capacity),
                "free": worker.free.as_ref().map(capacity),
                "labels": worker.labels,
                "gateway": worker.gateway,
                "provider": (!worker.provider.is_empty()).then_some(&worker.provider),
                "version": worker.version,
                "hostname": worker.hostname,
            })
        };
        self.0.iter().map(worker).collect()
    }

    fn quiet(&self) -> String {
        self.0.iter().map(|worker| worker.id.as_str()).collect::<Vec<_>>().join("\n")
    }
}

fn slots(capacity: Option<&Capacity>) -> u32 {
    capacity.map_or(0, |capacity| capacity.slots)
}

fn capacity(capacity: &Capacity) -> Value {
    json!({
        "slots": capacity.slots,
        "cpu_millis": capacity.cpu_millis,
        "memory_mb": capacity.memory_mb,
        "storage_mb": capacity.storage_mb,
        "gpu": capacity.gpu,
    })
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let message = GetAvailableWorkersRequest { stale: self.stale };
        let answer = Client::new(global)?
            .read(|conn| {
                let request = conn.request(message);
                async move { SchedulerServiceClient::new(conn.channel).get_available_workers(request).await }
            })
            .await?;
        output::print(global.output, &Listed(answer.workers))?;
        Ok(0)
    }
}
