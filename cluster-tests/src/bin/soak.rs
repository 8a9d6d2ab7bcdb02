//! Runs with faults: a chosen few, a plan that was kept, or as many random ones as fit into some hours.
//!
//! Exit codes: 0 all valid, 1 not, 2 bad usage, or nothing can be run on this machine.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use cluster_tests::{
    nemesis::{self, Class, Kind},
    report::{self, Summary},
    run::{caught, ready, run_in, world::World},
    schedule::Plan,
};
use tokio::signal::unix::{SignalKind, signal};

/// Named places in a run: so that it stays below what checkers can judge.
const POINTS_AT_ONCE: usize = 12;

#[derive(Debug, Parser)]
#[command(
    about = "Runs a cluster under faults and judges what happened; exit code 0: all valid, 1: not, 2: bad usage or no such machine"
)]
struct Cli {
    /// Random runs until so many hours are over; absent: one run
    #[arg(long, value_parser = hours)]
    hours: Option<Duration>,
    /// Where random choices come from; each further run takes the next number
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nodes of the cluster: 3 or 5
    #[arg(long, default_value = "3", value_parser = nodes)]
    nodes: usize,
    /// Faults of a random run
    #[arg(long, default_value_t = 6)]
    faults: usize,
    /// These kinds instead of random ones
    #[arg(long, value_delimiter = ',', value_parser = kind)]
    kind: Vec<&'static Kind>,
    /// How many of them may be there at once
    #[arg(long, default_value_t = 1)]
    overlap: usize,
    /// Snapshots every few kilobytes of log in each run, not in every other one
    #[arg(long)]
    small_logs: bool,
    /// Has somebody die at every named place in the code, some in each run
    #[arg(long, conflicts_with_all = ["hours", "kind"])]
    points: bool,
    /// The plan of an earlier run: its plan.json
    #[arg(long, conflicts_with_all = ["hours", "kind", "points", "seed", "nodes", "faults", "overlap", "small_logs"])]
    plan: Option<PathBuf>,
    /// Prints the kinds of fault
    #[arg(long)]
    list: bool,
    /// Prints which binaries it takes, `failpoints` or `ordinary`, and runs nothing
    #[arg(long, hide = true)]
    binaries: bool,
    /// Where the folders of runs are kept
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Does not keep those of valid ones among many: some 15 MB each, for stricter checkers
    #[arg(long, requires = "keep")]
    forget_valid: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        let row = |kind: &Kind| format!("{:<28} {:?}, {} nodes or more\n", kind.name, kind.class, kind.nodes);
        // Whoever has seen enough of it closes the pipe.
        let _ = io::stdout().write_all(nemesis::kinds().map(row).collect::<String>().as_bytes());
        return ExitCode::SUCCESS;
    }
    let plans = match plans(&cli) {
        Ok(plans) => plans,
        Err(why) => {
            eprintln!("soak: {why}");
            return ExitCode::from(2);
        }
    };
    if cli.binaries {
        // Any two that follow each other show what all of them take.
        let needs = plans.take(2).any(|plan| plan.needs_failpoints());
        println!("{}", if needs { "failpoints" } else { "ordinary" });
        return ExitCode::SUCCESS;
    }
    let (summaries, is_able) = soak(&cli, plans).await;
    if cli.points {
        let struck = report::kinds(&summaries);
        println!("somebody died at {} of {} named places", struck.len(), points().len());
    }
    report::bars(&summaries).iter().for_each(|bar| println!("{bar}"));
    let bad = summaries.iter().filter(|run| !run.is_valid()).count();
    println!("{} passed, {bad} failed", summaries.len() - bad);
    match is_able {
        true => ExitCode::from(u8::from(bad > 0 || summaries.is_empty())),
        false => ExitCode::from(2),
    }
}

/// One run after the other; gives what they came to, and whether this machine could run them.
async fn soak(cli: &Cli, plans: Plans) -> (Vec<Summary>, bool) {
    let (mut summaries, begun) = (Vec::new(), Instant::now());
    // Where the first cluster does not come up, or two in a row, the next one would not, either.
    let mut came_up = false;
    for plan in plans {
        if let Err(why) = ready(&plan) {
            eprintln!("soak: {why}");
            return (summaries, false);
        }
        // A run that is dropped takes its processes, mounts and networks with it.
        let ended = tokio::select! {
            ended = caught(once(cli, &plan)) => ended,
            signal = interrupted() => {
                println!("seed {} was ended by {signal}, and is not judged", plan.seed);
                break;
            }
        };
        let (summary, is_up) = ended.unwrap_or_else(|words| {
            println!("seed {} is not judged, and so not valid: {words}", plan.seed);
            (Summary::without_evidence(plan.seed, "not judged"), true)
        });
        summaries.push(summary);
        if let Some(dir) = &cli.keep
            && let Err(error) = report::write(dir, &summaries)
        {
            eprintln!("soak: {}: {error}", dir.display());
        }
        if !is_up && !came_up {
            return (summaries, false);
        }
        came_up = is_up;
        if cli.hours.is_some_and(|hours| begun.elapsed() >= hours) {
            break;
        }
    }
    (summaries, true)
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

/// Runs that are to be made, one after the other.
type Plans = Box<dyn Iterator<Item = Plan>>;

fn plans(cli: &Cli) -> Result<Plans, String> {
    let (seed, nodes, faults, overlap) = (cli.seed, cli.nodes, cli.faults, cli.overlap);
    let kinds = cli.kind.clone();
    let plans: Vec<Plan> = if let Some(file) = &cli.plan {
        let failed = |error: &dyn std::fmt::Display| format!("--plan {}: {error}", file.display());
        let text = fs::read(file).map_err(|error| failed(&error))?;
        let plan: Plan = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
        plan.check().map_err(|error| failed(&error))?;
        vec![plan]
    } else if cli.points {
        let batch = |(batch, seed): (&[&'static Kind], u64)| Plan::of("points", seed, nodes, batch, 1);
        points().chunks(POINTS_AT_ONCE).zip(seed..).map(batch).collect()
    } else {
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
        let scenario = names.join("-");
        let small_logs = cli.small_logs;
        let plan = move |seed| {
            let plan = match kinds.as_slice() {
                [] => Plan::random(seed, nodes, faults),
                kinds => Plan::of(&scenario, seed, nodes, kinds, overlap),
            };
            Plan { small_logs: small_logs || plan.small_logs, ..plan }
        };
        plan(seed).check()?;
        if cli.hours.is_some() {
            return Ok(Box::new((seed..).map(plan)));
        }
        vec![plan(seed)]
    };
    plans.iter().try_for_each(Plan::check)?;
    Ok(Box::new(plans.into_iter()))
}

fn points() -> Vec<&'static Kind> {
    nemesis::kinds().filter(|kind| kind.class == Class::Points).collect()
}

fn hours(text: &str) -> Result<Duration, String> {
    let hours: f64 = text.parse().map_err(|_| "not a number of hours".to_owned())?;
    Duration::try_from_secs_f64(hours * 3600.0).map_err(|error| error.to_string())
}

fn nodes(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|nodes| [3, 5].contains(nodes)).ok_or_else(|| "3 or 5".to_owned())
}

fn kind(name: &str) -> Result<&'static Kind, String> {
    nemesis::kinds()
        .find(|kind| kind.name == name)
        .ok_or_else(|| "there is no such kind of fault: see --list".to_owned())
}

/// A run; gives what it came to, and whether its cluster came up.
async fn once(cli: &Cli, plan: &Plan) -> (Summary, bool) {
    let kinds: Vec<_> = plan.steps.iter().map(|step| step.kind.as_str()).collect();
    let logs = if plan.small_logs { " (small logs)" } else { "" };
    println!("seed {}{logs}: {}", plan.seed, kinds.join(", "));
    // The folder that a plan came from stays as it is.
    let again = if cli.plan.is_some() { "-again" } else { "" };
    let keep = cli.keep.as_ref().map(|dir| dir.join(format!("seed-{}{again}", plan.seed)));
    if let Some(dir) = &keep {
        // What an earlier run with this seed has left is not to be taken for this one's.
        let _ = fs::remove_dir_all(dir);
    }
    let world = match caught(World::new(plan)).await {
        Ok(world) => world,
        Err(words) => {
            println!("seed {}: no cluster comes up: {words}", plan.seed);
            return (Summary::without_evidence(plan.seed, "no cluster"), false);
        }
    };
    let judged = run_in(world, plan, keep.as_deref()).await;
    println!("{}", judged.reports);
    if let (Some(dir), true) = (keep, judged.is_valid() && cli.hours.is_some() && cli.forget_valid) {
        let _ = fs::remove_dir_all(dir);
    }
    (Summary::of(&judged.evidence, &judged.reports), true)
}
