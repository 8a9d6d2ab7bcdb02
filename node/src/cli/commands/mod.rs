//! The command tree.

mod cluster;
mod completion;
mod dev;
mod enroll;
mod events;
mod init;
mod job;
mod join;
mod queue;
mod recover;
mod run;
mod scheduler;
mod secret;
pub mod serve;
mod token;
mod worker;

use clap::Subcommand;

use super::{Global, exit::CommandResult};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster on this machine until Ctrl-C
    Dev(dev::Args),
    /// Make a new cluster with this node as its first member, and serve
    Init(init::Args),
    /// Become a member of a cluster, and serve
    Join(join::Args),
    /// Serve from a data directory that `init` or `join` has prepared
    Run(run::Args),
    /// Go on with this node alone, after a majority was lost for good
    Recover(recover::Args),
    /// Get an identity of one's own, as a user or an administrator
    #[command(visible_alias = "enrol")]
    Enroll(enroll::Args),
    /// Jobs
    #[command(subcommand)]
    Job(job::Command),
    /// The workers
    #[command(subcommand)]
    Worker(worker::Command),
    /// Show how many jobs wait, and what for
    Queue(queue::Args),
    /// How workers are chosen for jobs
    #[command(subcommand)]
    Scheduler(scheduler::Command),
    /// Show what happened, and what happens
    Events(events::Args),
    /// Tokens that let nodes, agents and people in
    #[command(subcommand)]
    Token(token::Command),
    /// Secrets that jobs are given
    #[command(subcommand)]
    Secret(secret::Command),
    /// The nodes of the cluster
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Print a script that completes commands and options in a shell
    Completion(completion::Args),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// What ends in a line on standard error and an exit code.
    pub async fn run(self, global: Global) -> CommandResult {
        match self {
            Self::Dev(args) => args.run(&global).await,
            Self::Init(args) => args.run(&global).await,
            Self::Join(args) => args.run(&global).await,
            Self::Run(args) => args.run(&global).await,
            Self::Recover(args) => args.run(&global).await,
            Self::Enroll(args) => args.run(&global).await,
            Self::Job(command) => command.run(&global).await,
            Self::Worker(command) => command.run(&global).await,
            Self::Queue(args) => args.run(&global).await,
            Self::Scheduler(command) => command.run(&global).await,
            Self::Events(args) => args.run(&global).await,
            Self::Token(command) => command.run(&global).await,
            Self::Secret(command) => command.run(&global).await,
            Self::Cluster(command) => command.run(&global).await,
            Self::Completion(args) => args.run(),
        }
    }
}
