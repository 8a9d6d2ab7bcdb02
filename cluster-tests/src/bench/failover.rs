//! From kill -9 of the leader to the next accepted write.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::{Client, Cluster, client::shell};

/// How long a write may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How far apart each surviving node gets its next write.
const EVERY: Duration = Duration::from_millis(20);

/// Kills the leader `kills` times, each time after the cluster is whole again. One duration per kill: from just before
/// the signal until the first answer to a write that was sent after it, on any surviving node.
///
/// # Panics
/// If no write is accepted any more.
pub async fn run(kills: usize) -> Vec<Duration> {
    let mut cluster = Cluster::start(3).await;
    let clients: Vec<_> = (0..3).map(|node| cluster.client(node)).collect();
    let mut outages = Vec::new();
    for i in 1..=kills {
        cluster.wait_healthy(3).await;
        for client in &clients {
            // The connection is there, and the node knows its way to the leader.
            client.submit(shell("true", &[]), DEADLINE).await.expect("a whole cluster takes writes");
        }
        let leader = cluster.leader().await;
        let survivors = clients.iter().enumerate().filter(|&(node, _)| node != leader);
        let survivors: Vec<_> = survivors.map(|(_, client)| client.clone()).collect();
        let begin = Instant::now();
        cluster.nodes[leader].kill();
        let outage = first_answer(survivors, begin).await;
        eprintln!("failover {i:>2}: {:.0} ms", outage.as_secs_f64() * 1000.0);
        outages.push(outage);
        cluster.nodes[leader].restart().await;
    }
    outages
}

async fn first_answer(survivors: Vec<Client>, begin: Instant) -> Duration {
    let (answered, mut answers) = mpsc::channel(1);
    let writers: Vec<_> = survivors
        .into_iter()
        .map(|client| {
            let answered = answered.clone();
            tokio::spawn(async move {
                loop {
                    let (client, answered) = (client.clone(), answered.clone());
                    tokio::spawn(async move {
                        if client.submit(shell("true", &[]), DEADLINE).await.is_ok() {
                            let _ = answered.try_send(begin.elapsed());
                        }
                    });
                    tokio::time::sleep(EVERY).await;
                }
            })
        })
        .collect();
    let first = tokio::time::timeout(2 * DEADLINE, answers.recv()).await;
    for writer in writers {
        writer.abort();
    }
    first.ok().flatten().expect("a write is accepted again")
}
