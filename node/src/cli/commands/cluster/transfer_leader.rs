//! `cluster transfer-leader [ID]`.

use hodei_proto::v1::{TransferLeaderRequest, TransferLeaderResponse, cluster_service_client::ClusterServiceClient};
use serde_json::{Value, json};

use crate::cli::{
    Global,
    client::Client,
    exit::CommandResult,
    output::{self, Output},
};

/// Have another node lead.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node cluster transfer-leader 2")]
pub struct Args {
    /// Which; by default the voter that is furthest of those that answer
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    id: Option<u64>,
}

struct Transferred(TransferLeaderResponse);

impl Output for Transferred {
    fn table(&self) -> String {
        format!("node {} leads in term {}", self.0.leader, self.0.term)
    }

    fn json(&self) -> Value {
        json!({ "leader": self.0.leader, "term": self.0.term })
    }

    fn quiet(&self) -> String {
        self.0.leader.to_string()
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let client = Client::new(global)?;
        let answer = client
            .write_once(|conn| {
                let request = conn.request(TransferLeaderRequest { to: self.id.unwrap_or(0) });
                async move { ClusterServiceClient::new(conn.channel).transfer_leader(request).await }
            })
            .await?;
        output::print(global.output, &Transferred(answer))?;
        Ok(0)
    }
}
