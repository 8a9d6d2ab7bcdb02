//! `init`: the first node of a new cluster.

use std::fs;

use super::serve::{self, Node};
use crate::{
    app::Ready,
    cli::{
        Global,
        client_file::{self, Made},
        exit::CommandResult,
        output,
    },
    config::NodeArgs,
    prepare,
};

/// Make a new cluster with this node as its first member, and serve.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  hodei-node init --data-dir /var/lib/hodei --listen 0.0.0.0:50051\n\nOn a directory that is prepared it simply runs."
)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// Stop after preparing the data directory
    #[arg(long)]
    prepare_only: bool,
}

impl Args {
    pub async fn run(self, _: &Global) -> CommandResult {
        let Some(node) = Node::open(&self.node, &[], !self.prepare_only)? else { return Ok(0) };
        let identity = match node.dir.identity()? {
            Some(identity) => identity,
            None => match prepare::found(&node.dir) {
                Ok(identity) => identity,
                Err(failure) => return node.give_up(failure),
            },
        };
        if identity.founder.is_some() {
            make_default(&node).await;
        }
        serve::or_stop(node, identity, self.prepare_only, Ready::TakesJobs).await
    }
}

/// Makes the first administrator this user's default, where there is none. An unwritable home is a warning.
async fn make_default(node: &Node) {
    let admin = node.dir.join("admin");
    let identity = fs::canonicalize(&admin).unwrap_or(admin);
    if let Made::Impossible(why) = client_file::make_default("", &[node.reachable()], &identity).await {
        output::note(format_args!("warning: {why}; use --server and --identity, or HODEI_SERVER and HODEI_IDENTITY"));
    }
}
