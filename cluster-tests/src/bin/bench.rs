//! Measures Hodei beside etcd and prints a report. `scripts/bench.sh` builds what it needs and runs it.

use std::{env, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use cluster_tests::bench::{failover, machine, started, submit, table};

#[derive(Debug, Parser)]
#[command(about = "Measures Hodei beside etcd on this machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything below, with a description of the machine
    All(Options),
    /// Durable writes per second, beside etcd's
    Submit(Options),
    /// From submission to the first instruction of the job's process
    Started(Options),
    /// From kill -9 of the leader to the next accepted write
    Failover(Options),
    /// Writes the time at which it started to a file; what the jobs of `started` do
    #[command(hide = true)]
    Witness {
        /// Where to
        file: PathBuf,
    },
}

#[derive(Args, Debug)]
struct Options {
    /// Numbers of clients
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256")]
    clients: Vec<usize>,
    /// How often each number of clients is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of each measurement, after a second of warm-up
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Jobs whose start is measured
    #[arg(long, default_value_t = 300)]
    samples: usize,
    /// How often the leader is killed
    #[arg(long, default_value_t = 10)]
    kills: usize,
    /// Measure Hodei alone
    #[arg(long)]
    without_etcd: bool,
}

fn main() -> std::io::Result<()> {
    // Before anything else: this is what the witness is for.
    let begun = started::now();
    match Cli::parse().command {
        Command::Witness { file } => return started::witness(begun, &file),
        Command::All(options) => run(|| async {
            describe();
            submissions(&options).await;
            starts(&options).await;
            outages(&options).await;
            println!("\nload average afterwards: {}", machine::load());
        }),
        Command::Submit(options) => run(|| submissions(&options)),
        Command::Started(options) => run(|| starts(&options)),
        Command::Failover(options) => run(|| outages(&options)),
    }
    Ok(())
}

/// The main thread starts every process: they die with the thread that started them.
fn run<F: Future<Output = ()>>(task: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime can be built").block_on(task());
}

fn describe() {
    println!("## Machine\n");
    for (name, value) in machine::describe(&env::temp_dir()) {
        println!("- {name}: {value}");
    }
    println!("- load average before: {}", machine::load());
}

async fn submissions(options: &Options) {
    let plan = submit::Plan {
        clients: options.clients.clone(),
        rounds: options.rounds,
        warm_up: Duration::from_secs(1),
        measured: Duration::from_secs(options.seconds),
        without_etcd: options.without_etcd,
    };
    let rows = submit::run(&plan).await;
    println!("\n## Durable writes of {} bytes, three members, one request in flight per client\n", submit::SIZE);
    print!("{}", table::submissions(&rows));
    println!(
        "\nMedians of {} rounds of {} s each; a client is a connection. CPU: processor time per write, of all members + clients.",
        plan.rounds, options.seconds
    );
}

async fn starts(options: &Options) {
    let figures = started::run(options.samples).await;
    println!("\n## Submission to the first instruction of the job's process, three idle nodes, one agent\n");
    print!("{}", table::started(&figures));
}

async fn outages(options: &Options) {
    let outages = failover::run(options.kills).await;
    println!("\n## kill -9 of the leader to the first answered write, default timeouts\n");
    print!("{}", table::failover(&outages));
}
