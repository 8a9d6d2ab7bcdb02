//! One node goes on alone after the others were lost for good, and never while they are not.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{process::Output, time::Duration};

use cluster_tests::{
    Cluster,
    damage::{end_of_the_log, flip_a_bit_behind},
    wait,
};

const SOON: Duration = Duration::from_secs(30);

/// Runs `recover` on a node that does not run: exit code, and what it says.
fn recover(cluster: &Cluster, node: usize, flags: &[&str]) -> (Option<i32>, String) {
    let verb = [&["recover"], flags].concat();
    let Output { status, stderr, .. } = cluster.nodes[node].command(&verb).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[tokio::test]
async fn one_node_goes_on_alone_and_listens_to_no_other() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[0], &["--capacity", "1"]).await;
    let ended = cluster.submit(&[], &["true"]).await;
    cluster.wait_state(&ended, "Succeeded").await;
    let running = cluster.submit(&[], &["sleep", "600"]).await;
    cluster.wait_state(&running, "Running").await;
    let waiting = cluster.submit(&["--lost-after", "5s"], &["true"]).await;

    // Not of a node that runs, nor while another one answers, nor without a word.
    let (code, said) = recover(&cluster, 0, &["--accept-data-loss"]);
    assert!(code == Some(2) && said.contains("in use"), "{code:?} {said}");
    cluster.nodes[0].kill();
    let (code, said) = recover(&cluster, 0, &["--accept-data-loss"]);
    assert!(code == Some(2) && said.contains("node 2") && said.contains("still there"), "{code:?} {said}");
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    let (code, said) = recover(&cluster, 0, &[]);
    assert!(
        code == Some(2) && said.contains("--accept-data-loss") && said.contains("1 jobs that wait"),
        "{code:?} {said}"
    );

    let (code, said) = recover(&cluster, 0, &["--accept-data-loss"]);
    assert!(code == Some(0) && said.contains("the only member"), "{code:?} {said}");
    cluster.nodes[0].restart().await;
    assert_eq!(cluster.cli_at(0).json(&["job", "get", &ended]).await["state"], "Succeeded");
    assert_eq!(cluster.cli_at(0).json(&["job", "get", &running]).await["state"], "Running");
    cluster.cli_at(0).ok(&["job", "cancel", &running]).await;
    cluster.wait_state(&running, "Cancelled").await;
    cluster.wait_state(&waiting, "Succeeded").await;
    let events = cluster.cli_at(0).ok(&["events", "--kind", "cluster_recovered"]).await;
    assert!(events.contains("cluster_recovered"), "{events}");

    // Who was given up, and comes back all the same, is no member, and gets nothing done.
    cluster.nodes[1].launch(&["run"]);
    let cli = cluster.cli_at(1).request_timeout(Duration::from_secs(2));
    wait::until_true("the lost node serves nobody", SOON, || async {
        cli.run(&["job", "submit", "--", "true"]).await.code != 0
    })
    .await;
    let status = cluster.wait_status(0).await;
    assert_eq!(status["nodes"].as_array().unwrap().len(), 1, "{status}");
    cluster.nodes[1].kill();

    let newcomer = cluster.join().await;
    assert!(cluster.id_of(newcomer).await > 1000, "no id that the lost nodes may have given out");
    cluster.wait_healthy(2).await;
    let (code, said) = recover(&cluster, 2, &["--accept-data-loss"]);
    assert!(code == Some(2) && said.contains("still there"), "nor do they go on beside it: {code:?} {said}");
}

#[tokio::test]
async fn what_is_damaged_is_said_and_the_rest_goes_on() {
    let mut cluster = Cluster::start(2).await;
    let (mut jobs, mut ten) = (Vec::new(), 0);
    for _ in 0..20 {
        jobs.push(cluster.submit(&[], &["true"]).await);
        if jobs.len() == 10 {
            ten = end_of_the_log(&cluster.nodes[0].data);
        }
    }
    let (code, said) = recover(&cluster, 0, &[]);
    assert!(code == Some(2) && said.contains("in use"), "{code:?} {said}");
    // What was stored comes behind what is logged: with both damaged, less is left.
    for stored in [true, false] {
        cluster.nodes.iter_mut().for_each(cluster_tests::Node::kill);
        if stored {
            flip_a_bit_behind(&cluster.nodes[0].data, ten);
        } else {
            std::fs::remove_dir_all(cluster.nodes[0].data.join("wal")).unwrap();
        }
        let (code, said) = recover(&cluster, 0, &["--accept-data-loss"]);
        assert!(code == Some(0) && said.contains("damaged: "), "{code:?} {said}");
        cluster.nodes[0].restart().await;
        let left = cluster.cli_at(0).json(&["job", "list", "--limit", "100"]).await;
        let left = left.as_array().unwrap().iter().rev().map(|job| job["id"].as_str().unwrap().to_owned());
        let left: Vec<_> = left.collect();
        assert!(left.len() >= 10 && jobs.starts_with(&left), "the oldest: {left:?} of {jobs:?}");
        jobs = left;
        jobs.push(cluster.submit(&[], &["true"]).await);
    }
    cluster.nodes[0].stop().await;
    let (code, said) = recover(&cluster, 0, &["--accept-data-loss"]);
    assert!(code == Some(2) && said.contains("nothing is lost"), "{code:?} {said}");
    let (code, said) = recover(&cluster, 1, &["--data-dir", "/proc/self"]);
    assert!(code == Some(2), "{code:?} {said}");
}
