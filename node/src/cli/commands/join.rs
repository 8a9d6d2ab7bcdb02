//! `join`: a further node of a cluster.

use super::serve::{self, Node};
use crate::{
    app::Ready,
    cli::{
        Global,
        exit::{CommandResult, Failure},
        identity,
    },
    config::NodeArgs,
    pki::token::Token,
    prepare,
};

/// Become a member of a cluster, and serve.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  hodei-node join 10.0.0.1:50051 --token \"$(cat token)\"\n\nOn a directory that is prepared it simply runs, and the token is ignored."
)]
pub struct Args {
    /// Nodes of the cluster, HOST:PORT, separated by commas
    #[arg(value_name = "ADDR[,ADDR]", value_delimiter = ',', required = true)]
    addresses: Vec<String>,
    /// What `hodei-node token create --role node` printed
    #[arg(long, value_name = "T", env = "HODEI_TOKEN", hide_env_values = true)]
    token: String,
    #[command(flatten)]
    node: NodeArgs,
    /// Stop after preparing the data directory
    #[arg(long)]
    prepare_only: bool,
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let token = self.token.parse::<Token>().map_err(|error| Failure::bad_input(format!("--token: {error}")));
        let addresses: Vec<_> =
            self.addresses.iter().map(|address| identity::with_default_port(address)).collect::<Result<_, _>>()?;
        // Whoever lets this node in is also the first to ask where the others are.
        let Some(node) = Node::open(&self.node, &addresses, !self.prepare_only)? else { return Ok(0) };
        let identity = match node.dir.identity()? {
            Some(identity) => {
                // Only what it says of the cluster is looked at, as far as it says anything.
                if let Ok(token) = &token {
                    prepare::check_token(&node.dir, token)?;
                }
                identity
            }
            None => {
                let token = match token {
                    Ok(token) => token,
                    Err(failure) => return node.give_up(failure),
                };
                let advertise = node.reachable();
                match prepare::join(&node.dir, &addresses, &token, &advertise, global.request_timeout).await {
                    Ok(identity) => identity,
                    Err(refused) => return node.give_up(refused),
                }
            }
        };
        serve::or_stop(node, identity, self.prepare_only, Ready::TakesJobs).await
    }
}
