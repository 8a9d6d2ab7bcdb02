//! `run`: a node whose directory is prepared.

use super::serve::{self, Node};
use crate::{
    app::Ready,
    cli::{
        Global,
        exit::{CommandResult, Failure},
    },
    config::NodeArgs,
};

/// Serve from a data directory that `init` or `join` has prepared.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  hodei-node run --config /etc/hodei/node.toml\n\n`ready` is printed once it accepts connections, quorum or not."
)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// Where other members may be, for a node whose peers all moved
    #[arg(long, env = "HODEI_PEER", value_delimiter = ',', value_name = "A[,A]")]
    peer: Vec<String>,
}

impl Args {
    pub async fn run(self, _: &Global) -> CommandResult {
        let Some(node) = Node::open(&self.node, &self.peer, true)? else { return Ok(0) };
        match node.dir.identity()? {
            Some(identity) => serve::or_stop(node, identity, false, Ready::Accepts).await,
            None => {
                let why = format!(
                    "{} is not the data directory of a node: prepare it with `init` or `join`",
                    node.dir.path().display()
                );
                node.give_up(Failure::bad_input(why))
            }
        }
    }
}
