//! `scheduler …`: how workers are chosen.

mod get;
mod set;

use clap::Subcommand;
use hodei_proto::v1::SchedulerWeights;
use serde_json::{Value, json};

use crate::cli::{Global, exit::CommandResult, output::Output};

/// How workers are chosen for jobs.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  hodei-node scheduler set --bin-packing 0 --spread 100")]
pub enum Command {
    /// Show what counts when a worker is chosen
    Get(get::Args),
    /// Change what counts when a worker is chosen
    Set(set::Args),
}

impl Command {
    pub async fn run(self, global: &Global) -> CommandResult {
        match self {
            Self::Get(args) => args.run(global).await,
            Self::Set(args) => args.run(global).await,
        }
    }
}

/// The weights as they are printed.
struct Weights(SchedulerWeights);

impl Weights {
    fn rows(&self) -> [(&'static str, u32, &'static str); 5] {
        let SchedulerWeights { bin_packing, spread, load, affinity, reliability } = self.0;
        [
            ("bin_packing", bin_packing, "workers that will be full, so that others stay free"),
            ("spread", spread, "workers with few jobs"),
            ("load", load, "machines that have little to do"),
            ("affinity", affinity, "workers that the job prefers"),
            ("reliability", reliability, "workers on which jobs have succeeded lately"),
        ]
    }
}

impl Output for Weights {
    fn table(&self) -> String {
        let rows = self.rows().map(|(name, weight, what)| [name.to_owned(), weight.to_string(), what.to_owned()]);
        crate::cli::output::table(["WEIGHT", "VALUE", "FAVOURS"], rows)
    }

    fn json(&self) -> Value {
        let weights: serde_json::Map<String, Value> =
            self.rows().into_iter().map(|(name, weight, _)| (name.to_owned(), json!(weight))).collect();
        json!({ "weights": weights })
    }

    fn quiet(&self) -> String {
        self.rows().map(|(name, weight, _)| format!("{name}={weight}")).join("\n")
    }
}
