//! `init`: the first node of a new cluster.

use super::serve::{self, Node};
use crate::{
    app::Ready,
    cli::{Global, exit::CommandResult},
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
            prepare::make_default(&node.dir, &node.reachable());
        }
        serve::or_stop(node, identity, self.prepare_only, Ready::TakesJobs).await
    }
}
