//! `scheduler set`.

use hodei_proto::v1::{ConfigureSchedulerRequest, scheduler_service_client::SchedulerServiceClient};

use super::Weights;
use crate::cli::{Global, client::Client, exit::CommandResult, output};

/// Change what counts when a worker is chosen; weights that are not given stay.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hodei-node scheduler set --bin-packing 0 --spread 100")]
#[group(required = true, multiple = true)]
pub struct Args {
    /// For workers that will be full, so that others stay free (0 to 1,000)
    #[arg(long, value_name = "WEIGHT", value_parser = weight())]
    bin_packing: Option<u32>,
    /// For workers with few jobs
    #[arg(long, value_name = "WEIGHT", value_parser = weight())]
    spread: Option<u32>,
    /// For machines that have little to do
    #[arg(long, value_name = "WEIGHT", value_parser = weight())]
    load: Option<u32>,
    /// For workers that the job prefers
    #[arg(long, value_name = "WEIGHT", value_parser = weight())]
    affinity: Option<u32>,
    /// For workers on which jobs have succeeded lately
    #[arg(long, value_name = "WEIGHT", value_parser = weight())]
    reliability: Option<u32>,
}

fn weight() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(..=1_000)
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let Self { bin_packing, spread, load, affinity, reliability } = self;
        let message = ConfigureSchedulerRequest { bin_packing, spread, load, affinity, reliability };
        let answer = Client::new(global)?
            .write(|conn| {
                let request = conn.request(message);
                async move { SchedulerServiceClient::new(conn.channel).configure_scheduler(request).await }
            })
            .await?;
        output::print(global.output, &Weights(answer.weights.unwrap_or_default()))?;
        Ok(0)
    }
}
