//! `worker list`.

use hodei_proto::v1::{
    GetAvailableWorkersRequest, GetAvailableWorkersResponse, scheduler_service_client::SchedulerServiceClient,
};

use super::show::Many;
use crate::cli::{
    Global,
    client::Client,
    exit::{CommandResult, Failure},
    output,
};

/// Show the workers.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node worker list --output json")]
pub struct Args {
    /// Those that are gone as well
    #[arg(long)]
    all: bool,
    /// Read what one node knows, without asking the others
    #[arg(long)]
    stale: bool,
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let message = GetAvailableWorkersRequest { stale: self.stale, all: self.all, worker: String::new() };
        let answer = ask(&Client::new(global)?, message).await?;
        output::print(global.output, &Many(answer.workers))?;
        Ok(0)
    }
}

/// Asks for workers.
///
/// # Errors
/// As of any read.
pub async fn ask(client: &Client, message: GetAvailableWorkersRequest) -> Result<GetAvailableWorkersResponse, Failure> {
    client
        .read(|conn| {
            let request = conn.request(message.clone());
            async move {
                let client = SchedulerServiceClient::new(conn.channel);
                client.max_decoding_message_size(hodei_raft::MAX_MESSAGE).get_available_workers(request).await
            }
        })
        .await
}
