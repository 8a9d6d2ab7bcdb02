//! `scheduler set`.

use std::time::Duration;

use hodei_proto::v1::{ConfigureSchedulerRequest, scheduler_service_client::SchedulerServiceClient};

use super::Config;
use crate::cli::{
    Global,
    client::Client,
    duration,
    exit::{CommandResult, Failure},
    output,
};

/// Change what counts when a worker is chosen, and when workers are set aside; what is not given stays.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  hodei-node scheduler set --bin-packing 0 --spread 100\n  hodei-node scheduler set --set-aside-flaps 5 --set-aside-first 30s"
)]
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
    /// A worker that has lost so many sessions or attempts is set aside (up to 16; 0: never)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(..=16))]
    set_aside_flaps: Option<u32>,
    /// If it has lost them within this time (1s to 24h)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    set_aside_window: Option<Duration>,
    /// For so long at first, and twice as long each time (1s to the longest)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    set_aside_first: Option<Duration>,
    /// And for so long at most (1s to 24h)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    set_aside_longest: Option<Duration>,
}

fn weight() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(..=1_000)
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let message = ConfigureSchedulerRequest {
            bin_packing: self.bin_packing,
            spread: self.spread,
            load: self.load,
            affinity: self.affinity,
            reliability: self.reliability,
            set_aside_flaps: self.set_aside_flaps,
            set_aside_window_ms: self.set_aside_window.map(ms),
            set_aside_first_ms: self.set_aside_first.map(ms),
            set_aside_longest_ms: self.set_aside_longest.map(ms),
        };
        if message == ConfigureSchedulerRequest::default() {
            let expected = "nothing to set: expected at least one flag, for example --spread 100 (all with --help)";
            return Err(Failure::bad_input(expected).coded("usage"));
        }
        let answer = Client::new(global)?
            .write(|conn| {
                let request = conn.request(message);
                async move { SchedulerServiceClient::new(conn.channel).configure_scheduler(request).await }
            })
            .await?;
        let (weights, set_aside) = (answer.weights.unwrap_or_default(), answer.set_aside.unwrap_or_default());
        output::print(global.output, &Config { weights, set_aside })?;
        Ok(0)
    }
}
