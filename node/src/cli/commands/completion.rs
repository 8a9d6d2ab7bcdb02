//! `completion SHELL`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::{Cli, exit::CommandResult, output};

/// Print a script that completes commands and options in a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  source <(hodei-node completion bash)")]
pub struct Args {
    /// Which shell
    shell: Shell,
}

impl Args {
    /// Prints the script.
    pub fn run(self) -> CommandResult {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "hodei-node", &mut script);
        output::line(String::from_utf8_lossy(&script).trim_end())?;
        Ok(0)
    }
}
