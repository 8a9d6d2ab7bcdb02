//! Judges a history that was recorded: the same verdict as when the run ended.
//!
//! Exit codes: 0 valid, 1 invalid, 2 bad usage or no history, 3 unknown.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use cluster_tests::{
    check::{self, Verdict},
    history::Evidence,
};

#[derive(Debug, Parser)]
#[command(about = "Judges a recorded history; exit code 0: valid, 1: invalid, 2: no history, 3: unknown")]
struct Cli {
    /// The folder of a run, of which all files *.jsonl are read, or one such file
    history: PathBuf,
}

fn main() -> ExitCode {
    let evidence = match Evidence::read(&Cli::parse().history) {
        Ok(evidence) => evidence,
        Err(malformed) => {
            eprintln!("recheck: {malformed}");
            return ExitCode::from(2);
        }
    };
    let run = evidence.run();
    println!("{} records; scenario {:?}, seed {}", evidence.len(), run.scenario, run.seed);
    let reports = check::check_all(&evidence);
    println!("{reports}");
    ExitCode::from(match reports.verdict() {
        Verdict::Valid => 0,
        Verdict::Invalid => 1,
        Verdict::Unknown => 3,
    })
}
