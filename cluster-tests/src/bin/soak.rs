//! Runs with faults: a chosen few, a plan that was kept, or as many random ones as fit into some hours.
//!
//! Exit codes: 0 all valid, 1 not, 2 bad usage.

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use cluster_tests::{
    disk,
    nemesis::{self, Class, Kind},
    report::{self, Summary},
    run::{Judged, run},
    schedule::Plan,
};
use tokio::signal::unix::{SignalKind, signal};

/// Named places in a run: so that it stays below what checkers can judge.
const POINTS_AT_ONCE: usize = 12;

#[derive(Debug, Parser)]
#[command(about = "Runs a cluster under faults and judges what happened; exit code 0: all valid, 1: not, 2: bad usage")]
struct Cli {
    /// Random runs until so many hours are over; absent: one run
    #[arg(long)]
    hours: Option<f64>,
    /// Where random choices come from; each further run takes the next number
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nodes of the cluster: 3 or 5
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Faults of a random run
    #[arg(long, default_value_t = 6)]
    faults: usize,
    /// These kinds instead of random ones
    #[arg(long, value_delimiter = ',')]
    kind: Vec<String>,
    /// How many of them may be there at once
    #[arg(long, default_value_t = 1)]
    overlap: usize,
    /// Has somebody die at every named place in the code, some in each run
    #[arg(long, conflicts_with_all = ["hours", "kind"])]
    points: bool,
    /// The plan of an earlier run: its plan.json
    #[arg(long, conflicts_with_all = ["hours", "kind", "points"])]
    plan: Option<PathBuf>,
    /// Prints the kinds of fault
    #[arg(long)]
    list: bool,
    /// Where the folders of runs are kept
    #[arg(long)]
    keep: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    if cli.list {
        nemesis::kinds().for_each(|kind| println!("{:<28} {:?}, {} nodes or more", kind.name, kind.class, kind.nodes));
        return Ok(ExitCode::SUCCESS);
    }
    if !disk::permitted() {
        return Ok(ExitCode::from(2));
    }
    let mut summaries = Vec::new();
    let (begun, mut bad) = (Instant::now(), 0);
    let points: Vec<&'static Kind> = nemesis::kinds().filter(|kind| kind.class == Class::Points).collect();
    let mut batches = points.chunks(POINTS_AT_ONCE);
    for seed in cli.seed.. {
        let plan = match cli.points.then(|| batches.next()) {
            Some(Some(batch)) => Plan::of("points", seed, cli.nodes, batch, 1),
            Some(None) => break,
            None => plan(&cli, seed)?,
        };
        // A run that is dropped takes its processes, mounts and networks with it.
        let judged = tokio::select! {
            judged = once(&cli, &plan) => judged,
            signal = interrupted() => {
                println!("seed {seed} was ended by {signal}, and is not judged");
                break;
            }
        };
        bad += usize::from(!judged.is_valid());
        summaries.push(Summary::of(&judged.evidence, &judged.reports));
        if let Some(dir) = &cli.keep {
            report::write(dir, &summaries)?;
        }
        let hours = cli.hours.map(|hours| Duration::from_secs_f64(hours * 3600.0));
        if !cli.points && hours.is_none_or(|hours| begun.elapsed() >= hours) {
            break;
        }
    }
    if cli.points {
        let struck = report::kinds(&summaries);
        println!("somebody died at {} of {} named places", struck.len(), points.len());
    }
    report::bars(&summaries).iter().for_each(|bar| println!("{bar}"));
    println!("{} passed, {bad} failed", summaries.len() - bad);
    Ok(ExitCode::from(u8::from(bad > 0 || summaries.is_empty())))
}

/// Waits for Ctrl-C or SIGTERM.
async fn interrupted() -> &'static str {
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be waited for");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be waited for");
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

fn plan(cli: &Cli, seed: u64) -> anyhow::Result<Plan> {
    if let Some(file) = &cli.plan {
        return Ok(serde_json::from_slice(&fs::read(file)?)?);
    }
    if cli.kind.is_empty() {
        return Ok(Plan::random(seed, cli.nodes, cli.faults));
    }
    let known = |name: &String| {
        nemesis::kinds().find(|kind| kind.name == name.as_str()).ok_or_else(|| anyhow::anyhow!("--kind: no {name:?}"))
    };
    let kinds: Vec<&'static Kind> = cli.kind.iter().map(known).collect::<Result<_, _>>()?;
    Ok(Plan::of(&cli.kind.join("-"), seed, cli.nodes, &kinds, cli.overlap))
}

async fn once(cli: &Cli, plan: &Plan) -> Judged {
    let kinds: Vec<_> = plan.steps.iter().map(|step| step.kind.as_str()).collect();
    println!("seed {}: {}", plan.seed, kinds.join(", "));
    let keep = cli.keep.as_ref().map(|dir| dir.join(format!("seed-{}", plan.seed)));
    let judged = run(plan, keep.as_deref()).await;
    println!("{}", judged.reports);
    // Of a valid run its seed is enough.
    if let (Some(dir), true) = (keep, judged.is_valid() && cli.hours.is_some()) {
        let _ = fs::remove_dir_all(dir);
    }
    judged
}
