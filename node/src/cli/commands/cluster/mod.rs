//! `cluster …`: the nodes and who leads them.

mod members;
mod remove;
mod status;
mod transfer_leader;

use clap::Subcommand;
use hodei_proto::v1::NodeStatus;
use serde_json::{Value, json};

use crate::cli::{Global, exit::CommandResult, output};

/// The nodes of the cluster.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  hodei-node cluster status")]
pub enum Command {
    /// Show the cluster as one node sees it, with or without a quorum
    Status(status::Args),
    /// List the members as a majority knows them
    Members(members::Args),
    /// Remove a node for good
    Remove(remove::Args),
    /// Have another node lead
    TransferLeader(transfer_leader::Args),
}

impl Command {
    pub async fn run(self, global: &Global) -> CommandResult {
        match self {
            Self::Status(args) => args.run(global).await,
            Self::Members(args) => args.run(global).await,
            Self::Remove(args) => args.run(global).await,
            Self::TransferLeader(args) => args.run(global).await,
        }
    }
}

fn nodes_table(nodes: &[NodeStatus], leader: Option<u64>) -> String {
    let rows = nodes.iter().map(|node| {
        let role = if Some(node.id) == leader { "leader" } else { node.role.as_str() };
        let healthy = if node.healthy { "yes" } else { "no" };
        [
            node.id.to_string(),
            node.address.clone(),
            role.to_owned(),
            healthy.to_owned(),
            heard(node),
            node.applied_index.to_string(),
            node.version.clone(),
        ]
    });
    output::table(["ID", "ADDRESS", "ROLE", "HEALTHY", "LAST HEARD", "APPLIED", "VERSION"], rows)
}

fn heard(node: &NodeStatus) -> String {
    match node.heard_ms_ago {
        None => "never".to_owned(),
        Some(_) if node.healthy => "now".to_owned(),
        Some(ms @ ..60_000) => format!("{}.{} s ago", ms / 1_000, ms % 1_000 / 100),
        Some(ms) => format!("{} min ago", ms / 60_000),
    }
}

fn nodes_json(nodes: &[NodeStatus]) -> Value {
    let node = |node: &NodeStatus| {
        json!({
            "id": node.id,
            "address": node.address,
            "role": node.role,
            "healthy": node.healthy,
            "heard_ms_ago": node.heard_ms_ago,
            "applied_index": node.applied_index,
            "version": node.version,
        })
    };
    nodes.iter().map(node).collect()
}

fn nodes_quiet(nodes: &[NodeStatus]) -> String {
    nodes.iter().map(|node| node.id.to_string()).collect::<Vec<_>>().join("\n")
}
