//! `worker get`.

use hodei_proto::v1::{GetAvailableWorkersRequest, Worker};

use super::{list::ask, show::One, worker_help};
use crate::cli::{
    Global,
    client::Client,
    exit::{CommandResult, Failure},
    output,
};

/// Show a worker and what it runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node worker get build-7")]
pub struct Args {
    #[arg(value_name = "ID", help = worker_help!())]
    worker: String,
    /// Read what one node knows, without asking the others
    #[arg(long)]
    stale: bool,
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let worker = get(&Client::new(global)?, &self.worker, self.stale).await?;
        output::print(global.output, &One(worker))?;
        Ok(0)
    }
}

/// The worker that `text` names, with what it runs.
///
/// # Errors
/// As of any read; that there is none such.
pub async fn get(client: &Client, text: &str, stale: bool) -> Result<Worker, Failure> {
    if text.is_empty() {
        return Err(Failure::bad_input(concat!("expected: ", worker_help!())));
    }
    let message = GetAvailableWorkersRequest { stale, worker: text.to_owned(), all: false };
    let mut answer = ask(client, message).await?;
    answer.workers.pop().ok_or_else(|| Failure::other("the node's answer is damaged"))
}
