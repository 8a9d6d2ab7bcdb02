//! `cluster status`.

use hodei_proto::v1::{StatusRequest, StatusResponse, cluster_service_client::ClusterServiceClient};
use serde_json::{Value, json};

use super::{nodes_json, nodes_quiet, nodes_table};
use crate::cli::{
    Global,
    client::Client,
    exit::CommandResult,
    output::{self, Output},
};

/// Show the cluster as one node sees it, with or without a quorum.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node cluster status --output json")]
pub struct Args {}

struct Shown(StatusResponse);

impl Output for Shown {
    fn table(&self) -> String {
        let status = &self.0;
        let leader = status.leader.map_or_else(|| "none known".to_owned(), |leader| format!("node {leader}"));
        format!(
            "cluster {}, leader: {leader}, term {}, as node {} sees it\n\n{}",
            status.cluster_id,
            status.term,
            status.answered_by,
            nodes_table(&status.nodes, status.leader),
        )
    }

    fn json(&self) -> Value {
        let status = &self.0;
        json!({
            "cluster_id": status.cluster_id,
            "leader": status.leader,
            "term": status.term,
            "applied_index": status.applied_index,
            "nodes": nodes_json(&status.nodes),
        })
    }

    fn quiet(&self) -> String {
        nodes_quiet(&self.0.nodes)
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let status = Client::new(global)?
            .read(|conn| {
                let request = conn.request(StatusRequest {});
                async move { ClusterServiceClient::new(conn.channel).status(request).await }
            })
            .await?;
        for warning in &status.warnings {
            output::note(format_args!("warning: {warning}"));
        }
        output::print(global.output, &Shown(status))?;
        Ok(0)
    }
}
