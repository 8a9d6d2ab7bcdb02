//! `scheduler get`.

use hodei_proto::v1::{GetSchedulerConfigRequest, scheduler_service_client::SchedulerServiceClient};

use super::Config;
use crate::cli::{Global, client::Client, exit::CommandResult, output};

/// Show what counts when a worker is chosen among those that a job fits on, and when workers are set aside.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node scheduler get --output json")]
pub struct Args {
    /// Read what one node knows, without asking the others
    #[arg(long)]
    stale: bool,
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let message = GetSchedulerConfigRequest { stale: self.stale };
        let answer = Client::new(global)?
            .read(|conn| {
                let request = conn.request(message);
                async move { SchedulerServiceClient::new(conn.channel).get_scheduler_config(request).await }
            })
            .await?;
        let (weights, set_aside) = (answer.weights.unwrap_or_default(), answer.set_aside.unwrap_or_default());
        output::print(global.output, &Config { weights, set_aside })?;
        Ok(0)
    }
}
