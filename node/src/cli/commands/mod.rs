//! The command tree.

mod completion;

use clap::Subcommand;

use super::{Global, exit::CommandResult};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print a script that completes commands and options in a shell
    Completion(completion::Args),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// What ends in a line on standard error and an exit code.
    pub async fn run(self, _global: Global) -> CommandResult {
        match self {
            Self::Completion(args) => args.run(),
        }
    }
}
