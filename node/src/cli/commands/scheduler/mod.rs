//! `scheduler …`: how workers are chosen.

mod get;
mod set;

use clap::Subcommand;
use hodei_proto::v1::{SchedulerWeights, SetAsidePolicy};
use serde_json::{Map, Value, json};

use crate::cli::{
    Global,
    exit::CommandResult,
    output::{self, Output},
};

/// How workers are chosen for jobs, and when they get none for a while.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  hodei-node scheduler set --bin-packing 0 --spread 100")]
pub enum Command {
    /// Show what counts when a worker is chosen, and when workers are set aside
    Get(get::Args),
    /// Change what counts when a worker is chosen, and when workers are set aside
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

/// The scheduler's values as they are printed.
struct Config {
    weights: SchedulerWeights,
    set_aside: SetAsidePolicy,
}

impl Config {
    fn weights(&self) -> [(&'static str, u32, &'static str); 5] {
        let SchedulerWeights { bin_packing, spread, load, affinity, reliability } = self.weights;
        [
            ("bin_packing", bin_packing, "workers that will be full, so that others stay free"),
            ("spread", spread, "workers with few jobs"),
            ("load", load, "machines that have little to do"),
            ("affinity", affinity, "workers that the job prefers"),
            ("reliability", reliability, "workers on which jobs have succeeded lately"),
        ]
    }

    fn set_aside(&self) -> [(&'static str, u64); 4] {
        let SetAsidePolicy { flaps, window_ms, first_ms, longest_ms } = self.set_aside;
        [("flaps", flaps.into()), ("window_ms", window_ms), ("first_ms", first_ms), ("longest_ms", longest_ms)]
    }

    fn set_aside_text(&self) -> String {
        let SetAsidePolicy { flaps, window_ms, first_ms, longest_ms } = self.set_aside;
        let [window, first, longest] = [window_ms, first_ms, longest_ms].map(output::span_text);
        match flaps {
            0 => "No worker is set aside, whatever it loses.".to_owned(),
            _ => format!(
                "A worker that loses sessions or attempts {flaps} times within {window} is set aside for {first}, and for twice\nas long each time, up to {longest}."
            ),
        }
    }
}

impl Output for Config {
    fn table(&self) -> String {
        let rows = self.weights().map(|(name, weight, what)| [name.to_owned(), weight.to_string(), what.to_owned()]);
        format!("{}\n\n{}", output::table(["WEIGHT", "VALUE", "FAVOURS"], rows), self.set_aside_text())
    }

    fn json(&self) -> Value {
        let weights: Map<String, Value> =
            self.weights().into_iter().map(|(name, weight, _)| (name.to_owned(), json!(weight))).collect();
        let set_aside: Map<String, Value> =
            self.set_aside().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
        json!({ "weights": weights, "set_aside": set_aside })
    }

    fn quiet(&self) -> String {
        let weights = self.weights().map(|(name, weight, _)| format!("{name}={weight}"));
        let set_aside = self.set_aside().map(|(name, value)| format!("set_aside.{name}={value}"));
        weights.into_iter().chain(set_aside).collect::<Vec<_>>().join("\n")
    }
}
