//! `token …`: what lets a party into the cluster.

mod create;
mod list;
mod revoke;

use clap::Subcommand;

pub use self::create::make;

use crate::cli::{Global, exit::CommandResult};

/// Tokens that let nodes, agents and people in.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  hodei-node token create --role agent --ttl 24h")]
pub enum Command {
    /// Make a token
    Create(create::Args),
    /// Show all tokens; their secrets are nowhere
    List(list::Args),
    /// Make a token void
    Revoke(revoke::Args),
}

impl Command {
    pub async fn run(self, global: &Global) -> CommandResult {
        match self {
            Self::Create(args) => args.run(global).await,
            Self::List(args) => args.run(global).await,
            Self::Revoke(args) => args.run(global).await,
        }
    }
}
