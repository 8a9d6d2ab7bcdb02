//! Judges histories that were recorded: the same verdicts as when the runs ended, or those of checkers that have grown since.
//!
//! Exit codes: 0 all are valid, 1 one is invalid, 2 bad usage or no history, 3 none is invalid and one is unknown.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use cluster_tests::{
    check::{self, Verdict},
    history::Evidence,
    report::{self, Summary},
};

#[derive(Debug, Parser)]
#[command(about = "Judges recorded histories; exit code 0: valid, 1: invalid, 2: no history, 3: unknown")]
struct Cli {
    /// Folders of runs, of which all files *.jsonl are read, or one such file each
    #[arg(required = true, value_name = "HISTORY")]
    histories: Vec<PathBuf>,
    /// Writes report.md and timeline.svg of all of them there, and prints what they count for scripts/bars.sh
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (mut summaries, mut verdicts) = (Vec::new(), Vec::new());
    for history in &cli.histories {
        let evidence = match Evidence::read(history) {
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
        verdicts.push(reports.verdict());
        summaries.push(Summary::of(&evidence, &reports));
    }
    if let Some(dir) = cli.report {
        report::bars(&summaries).iter().for_each(|bar| println!("{bar}"));
        if let Err(error) = report::write(&dir, &summaries) {
            eprintln!("recheck: {}: {error}", dir.display());
            return ExitCode::from(2);
        }
    }
    ExitCode::from(if verdicts.contains(&Verdict::Invalid) {
        1
    } else if verdicts.contains(&Verdict::Unknown) {
        3
    } else {
        0
    })
}
