//! `worker …`: who runs jobs.

mod list;

use clap::Subcommand;

use crate::cli::{Global, exit::CommandResult};

/// Workers.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  hodei-node worker list")]
pub enum Command {
    /// Show the workers
    List(list::Args),
}

impl Command {
    pub async fn run(self, global: &Global) -> CommandResult {
        match self {
            Self::List(args) => args.run(global).await,
        }
    }
}
