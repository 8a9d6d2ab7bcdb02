//! A node that has lost what it had promised goes on as a new member, by itself.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, time::Duration};

use cluster_tests::{Cluster, damage::flip_a_bit_of_the_log, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

async fn members(cluster: &Cluster, node: usize) -> Vec<Value> {
    let status = cluster.status(node).await;
    status.and_then(|status| status["nodes"].as_array().cloned()).unwrap_or_default()
}

#[tokio::test]
async fn a_voter_with_a_damaged_log_comes_back_under_a_new_id_and_keeps_the_logs_of_jobs() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[1], &[]).await;
    let old = cluster.id_of(1).await;
    let job = cluster.submit(&[], &["seq", "1000"]).await;
    cluster.wait_job(&job, "succeeded", |job| job["state"] == "Succeeded").await;

    cluster.nodes[1].stop().await;
    flip_a_bit_of_the_log(&cluster.nodes[1].data);
    cluster.nodes[1].restart().await;
    cluster.wait_healthy(3).await;
    assert!(cluster.id_of(1).await > 3, "under an id that nobody has had");
    let known = members(&cluster, 0).await;
    assert!(known.iter().all(|member| member["id"] != old), "{known:?}");

    // What it had as a gateway is still to be had, from any node.
    let expected: String = (1..=1000).map(|line| format!("{line}\n")).collect();
    for node in 0..3 {
        let output = cluster.cli_at(node).run(&["job", "logs", &job]).await;
        assert_eq!((output.code, String::from_utf8_lossy(&output.stdout).into_owned()), (0, expected.clone()));
        let held = cluster.cli_at(node).json(&["job", "get", &job]).await;
        assert_eq!(held["state"], "Succeeded", "node {node}");
    }
    // It votes: with another voter gone, there is a majority still.
    cluster.nodes[2].kill();
    cluster.leader_other_than(Some(2)).await;
    let job = cluster.submit(&[], &["true"]).await;
    cluster.wait_job(&job, "succeeded", |job| job["state"] == "Succeeded").await;
    // An ordinary start, from here on.
    let id = cluster.id_of(1).await;
    cluster.nodes[2].restart().await;
    cluster.nodes[1].stop().await;
    cluster.nodes[1].restart().await;
    cluster.wait_healthy(3).await;
    assert_eq!(cluster.id_of(1).await, id);
}

#[tokio::test]
async fn without_a_quorum_it_waits_and_an_interrupted_replacement_makes_one_member() {
    let mut cluster = Cluster::start(3).await;
    let job = cluster.submit(&[], &["true"]).await;
    cluster.nodes[1].stop().await;
    cluster.nodes[2].stop().await;
    fs::remove_dir_all(cluster.nodes[2].data.join("wal")).unwrap();

    // Nobody can take it in; its request is on disk.
    let note = cluster.nodes[2].data.join("pki/replacement.toml");
    for _ in 0..3 {
        cluster.nodes[2].launch(&["run"]);
        wait::until_true("the request is on disk", SOON, || async { note.exists() }).await;
        cluster.nodes[2].kill();
    }
    cluster.nodes[2].launch(&["run"]);
    cluster.nodes[1].restart().await;
    cluster.wait_healthy(3).await;
    let mut known: Vec<_> = members(&cluster, 0).await.iter().map(|member| member["id"].as_u64()).collect();
    known.sort_unstable();
    assert_eq!(known, [Some(1), Some(2), Some(4)], "one new member for all requests");
    assert!(!note.exists());
    let held = cluster.cli_at(2).json(&["job", "get", &job]).await;
    assert_eq!(held["id"], job.as_str());
}

#[tokio::test]
async fn who_was_removed_is_not_taken_in_again() {
    let mut cluster = Cluster::start(3).await;
    let id = cluster.id_of(2).await.to_string();
    cluster.nodes[2].stop().await;
    cluster.cli().ok(&["cluster", "remove", &id]).await;
    flip_a_bit_of_the_log(&cluster.nodes[2].data);
    cluster.nodes[2].launch(&["run"]);
    let process = cluster.nodes[2].process();
    assert!(!process.exit(SOON).await.success());
    let output = process.stderr_text();
    assert!(output.contains("HODEI-STORAGE-01") && output.contains("is not, or no longer, a party"), "{output}");
}
