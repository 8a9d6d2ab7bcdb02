//! Measures Hodei beside etcd and prints a report. `scripts/bench.sh` builds what it needs and runs it.

use std::{env, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use cluster_tests::bench::{failover, machine, noop, started, submit, table};

/// The nodes' own: the clients shall not cost more than they do.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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
    /// Jobs that do nothing, through one agent of two slots
    Noop(Options),
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
    /// How often each number of clients, and each system of `noop`, is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of each measurement, after a second of warm-up
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Jobs whose start is measured
    #[arg(long, default_value_t = 300)]
    samples: usize,
    /// Jobs of a round of `noop`
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..))]
    jobs: u32,
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
            noops(&options).await;
            outages(&options).await;
            println!("\nload average afterwards: {}", machine::load());
        }),
        Command::Submit(options) => run(|| submissions(&options)),
        Command::Started(options) => run(|| starts(&options)),
        Command::Noop(options) => run(|| noops(&options)),
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

async fn noops(options: &Options) {
    let plan = noop::Plan { jobs: options.jobs, rounds: options.rounds };
    let figures = noop::run(&plan).await;
    println!(
        "\n## {} jobs of /bin/true, each submitted by itself, three nodes, one agent of {} slots\n",
        plan.jobs,
        noop::SLOTS
    );
    print!("{}", table::noop(&figures));
    println!(
        "\nMedians of {} rounds, in turns. Overhead: time of a slot per job, less that of starting the process alone. Start: \
         from assignment to the committed start; end: from there to the committed end; rest: until the slot's next \
         assignment. CPU: processor time per job, of the nodes + the agent + its children, the job itself among them.",
        plan.rounds
    );
    if figures.hyperqueue.is_none() {
        println!("HyperQueue was not measured: there is no `hq` on the PATH.");
    }
}

async fn outages(options: &Options) {
    let outages = failover::run(options.kills).await;
    println!("\n## kill -9 of the leader to the first answered write, default timeouts\n");
    print!("{}", table::failover(&outages));
}
