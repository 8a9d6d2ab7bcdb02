//! `job …`: submit, look, follow, cancel.

mod cancel;
mod ending;
pub mod explain;
mod follow;
mod get;
mod list;
mod logs;
mod options;
mod retry;
mod run;
mod schema;
mod show;
mod submit;
mod wait;

use clap::Subcommand;

pub use self::show::{reason, reason_text, state};

use hodei_proto::v1::JobSelector;

use crate::cli::{Global, exit::CommandResult};

/// Jobs.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  hodei-node job run -- echo hello")]
pub enum Command {
    /// Submit a job, follow its output, exit with its exit code; Ctrl-C cancels it
    Run(Box<run::Args>),
    /// Submit a job
    Submit(Box<submit::Args>),
    /// Show jobs, newest first
    List(list::Args),
    /// Show a job
    Get(get::Args),
    /// Show a job's output
    Logs(logs::Args),
    /// Request that a job be cancelled
    Cancel(cancel::Args),
    /// Show why a job waits, or why it is where it is
    Explain(explain::Args),
    /// Try an ended job once more, as a new job
    Retry(retry::Args),
    /// Wait until jobs have ended
    Wait(wait::Args),
    /// Print the JSON Schema of job files
    Schema(schema::Args),
}

impl Command {
    pub async fn run(self, global: &Global) -> CommandResult {
        match self {
            Self::Run(args) => args.run(global).await,
            Self::Submit(args) => args.run(global).await,
            Self::List(args) => args.run(global).await,
            Self::Get(args) => args.run(global).await,
            Self::Logs(args) => args.run(global).await,
            Self::Cancel(args) => args.run(global).await,
            Self::Explain(args) => args.run(global).await,
            Self::Retry(args) => args.run(global).await,
            Self::Wait(args) => args.run(global).await,
            Self::Schema(args) => args.run(),
        }
    }
}

/// What a person typed for a job; the server finds it.
fn selector(text: &str) -> Option<JobSelector> {
    Some(JobSelector { text: text.to_owned() })
}

/// The help of every argument that names a job.
macro_rules! job_help {
    () => {
        "A job's id, its name (the newest), at least four of its last hex digits, or `last`"
    };
}
use job_help;
