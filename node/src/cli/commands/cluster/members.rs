//! `cluster members`.

use hodei_proto::v1::{MembersRequest, MembersResponse, cluster_service_client::ClusterServiceClient};
use serde_json::Value;

use super::{nodes_json, nodes_quiet, nodes_table};
use crate::cli::{
    Global,
    client::Client,
    exit::CommandResult,
    output::{self, Output},
};

/// List the members as a majority knows them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node cluster members --stale")]
pub struct Args {
    /// Answer from what the asked node knows by itself
    #[arg(long)]
    stale: bool,
}

struct Shown(MembersResponse);

impl Output for Shown {
    fn table(&self) -> String {
        nodes_table(&self.0.nodes, None)
    }

    fn json(&self) -> Value {
        nodes_json(&self.0.nodes)
    }

    fn quiet(&self) -> String {
        nodes_quiet(&self.0.nodes)
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let members = Client::new(global)?
            .read(|conn| {
                let request = conn.request(MembersRequest { stale: self.stale });
                async move { ClusterServiceClient::new(conn.channel).members(request).await }
            })
            .await?;
        output::print(global.output, &Shown(members))?;
        Ok(0)
    }
}
