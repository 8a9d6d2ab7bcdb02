//! Submissions per second over three replicas in one process: real logs in a temporary directory, gRPC over loopback
//! without TLS. Beside it, what the log alone does with the same entries.
//!
//! `cargo run --release -p hodei-raft --example propose_bench -- [clients] [seconds] [body bytes]`

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark may panic and has to print")]

#[path = "../tests/nodes/mod.rs"]
mod nodes;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use hodei_raft::{
    Config, codec,
    log_store::{LogStore, Options},
    seam::{RealFs, SystemEntropy},
    types::{Batch, Entry, LogId, TypeConfig},
};
use hodei_state::ids::Millis;
use nodes::{Cluster, soon, submission};
use openraft::{
    EntryPayload,
    storage::{IOFlushed, RaftLogStorage},
    type_config::TypeConfigExt,
};

fn as_installed(config: &mut Config) {
    config.timing = hodei_raft::Timing::default();
    config.storage = hodei_raft::Storage::default();
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().unwrap());
    let clients = arguments.next().unwrap_or(256);
    let seconds = arguments.next().unwrap_or(5);
    let bytes = usize::try_from(arguments.next().unwrap_or(512)).unwrap();

    raw_log(bytes).await;
    let cluster = Cluster::start(3, as_installed).await;
    for (what, on) in [("on the leader", [1, 1, 1]), ("on all nodes", [1, 2, 3])] {
        for clients in [1, clients] {
            let (count, mut latencies, took) = load(&cluster, clients, seconds, bytes, on).await;
            latencies.sort_unstable();
            let at = |part: usize| Duration::from_micros(latencies[latencies.len() * part / 1000]);
            println!(
                "{what}, {clients} clients: {:.0} submissions/s, median {:?}, p99 {:?}",
                count as f64 / took.as_secs_f64(),
                at(500),
                at(990)
            );
        }
    }
    let begun = Instant::now();
    for _ in 0..200 {
        cluster.read(2).await;
    }
    println!("linearizable read on a follower, one reader: {:?}", begun.elapsed() / 200);
    cluster.shutdown().await;
}

async fn load(cluster: &Cluster, clients: u64, seconds: u64, bytes: usize, on: [u64; 3]) -> (u64, Vec<u64>, Duration) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let handle = cluster.node(on[(client % 3) as usize]).clone();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            while Instant::now() < end {
                let job = u128::from(NEXT.fetch_add(1, Ordering::Relaxed));
                let asked = Instant::now();
                handle.propose(submission(job, bytes), soon()).await.unwrap();
                latencies.push(u64::try_from(asked.elapsed().as_micros()).unwrap());
            }
            latencies
        });
    }
    let latencies = tasks.join_all().await.concat();
    (latencies.len() as u64, latencies, begun.elapsed())
}

/// One node's log by itself, one entry of 64 commands at a time, each waited for.
async fn raw_log(bytes: usize) {
    const ENTRIES: u64 = 2000;
    const COMMANDS: usize = 64;
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = LogStore::open(&RealFs, dir.path(), &Options::default(), Arc::new(SystemEntropy)).unwrap();
    let command = codec::encode_command(&submission(1, bytes));
    let commands: Vec<Bytes> = vec![command; COMMANDS];
    let commands = codec::encode_batch(commands.iter(), commands.iter().map(Bytes::len).sum(), COMMANDS);
    let begun = Instant::now();
    for index in 1..=ENTRIES {
        let batch = Batch { at: Millis(1), commands: commands.clone() };
        let entry = Entry { log_id: LogId::new(1.into(), index), payload: EntryPayload::Normal(batch) };
        let (flushed, durable) = TypeConfig::oneshot();
        log.append([entry], IOFlushed::signal(flushed)).await.unwrap();
        durable.await.unwrap().unwrap();
    }
    let took = begun.elapsed();
    println!(
        "the log alone, entries of {COMMANDS} commands one after the other: {:.0} commands/s, {:?} per entry",
        ENTRIES as f64 * COMMANDS as f64 / took.as_secs_f64(),
        took / u32::try_from(ENTRIES).unwrap()
    );
    log.close().await.unwrap();
}
