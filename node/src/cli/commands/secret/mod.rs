//! `secret …`: what jobs may be given and nobody may read.

mod list;
mod put;
mod remove;
mod uses;

use clap::Subcommand;

use crate::cli::{Global, exit::CommandResult};

/// Secrets.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  printf %s \"$PASSWORD\" | hodei-node secret put db/password")]
pub enum Command {
    /// Give a secret a value, read from standard input or a file
    Put(put::Args),
    /// Show the names of all secrets; their values are shown nowhere
    List(list::Args),
    /// Remove a secret
    Remove(remove::Args),
    /// Show which attempts were given secrets, newest first
    Uses(uses::Args),
}

impl Command {
    pub async fn run(self, global: &Global) -> CommandResult {
        match self {
            Self::Put(args) => args.run(global).await,
            Self::List(args) => args.run(global).await,
            Self::Remove(args) => args.run(global).await,
            Self::Uses(args) => args.run(global).await,
        }
    }
}
