//! `worker …`: who runs jobs.

mod drain;
mod get;
mod list;
mod remove;
mod show;
mod undrain;

pub use show::{capacity, cores, losses, set_aside, set_aside_text};

use clap::Subcommand;

use crate::cli::{Global, exit::CommandResult};

/// Workers.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  hodei-node worker list")]
pub enum Command {
    /// Show the workers
    List(list::Args),
    /// Show a worker and what it runs
    Get(get::Args),
    /// Give a worker no more jobs, and wait until it has none
    Drain(drain::Args),
    /// Give a worker jobs again that was drained or set aside
    Undrain(undrain::Args),
    /// Remove a worker for good
    Remove(remove::Args),
}

impl Command {
    pub async fn run(self, global: &Global) -> CommandResult {
        match self {
            Self::List(args) => args.run(global).await,
            Self::Get(args) => args.run(global).await,
            Self::Drain(args) => args.run(global).await,
            Self::Undrain(args) => args.run(global).await,
            Self::Remove(args) => args.run(global).await,
        }
    }
}

/// The help of every argument that names a worker.
macro_rules! worker_help {
    () => {
        "A worker's id, at least four of its last hex digits, or its host's name"
    };
}
use worker_help;
