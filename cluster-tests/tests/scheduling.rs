//! What goes where, as users see it: constraints, weights, and why a job waits.

use std::time::Duration;

use cluster_tests::{Cluster, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// Asks until a worker is heard of as it should be: heartbeats and streams come when they come.
async fn explained(cluster: &Cluster, node: usize, job: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let found = std::cell::RefCell::new(Value::Null);
    wait::until_true(what, SOON, || async {
        let answer = cluster.cli_at(node).json(&["job", "explain", job]).await;
        let fits = wanted(&answer);
        *found.borrow_mut() = answer;
        fits
    })
    .await;
    found.into_inner()
}

#[tokio::test]
async fn every_node_says_why_a_job_waits_and_where_it_runs() {
    let mut cluster = Cluster::start(3).await;
    let job = cluster.submit(&["--constraint", "label.zone in a,b", "--cpu", "0.5"], &["sleep", "300"]).await;
    for node in 0..3 {
        let answer = explained(&cluster, node, &job, "the leader answers", |answer| answer["heard"] == true).await;
        assert_eq!((&answer["standing"], &answer["blocker"]), (&"pending".into(), &"no_worker".into()), "{answer}");
        assert_eq!((&answer["ahead"], &answer["start"]["kind"]), (&0.into(), &"unknown".into()), "{answer}");
    }

    cluster.agent(&[0], &["--label", "zone=c"]).await;
    let answer = explained(&cluster, 1, &job, "the worker is judged", |answer| answer["blocker"] == "none_suits").await;
    let verdict = &answer["workers"][0];
    assert_eq!((&verdict["verdict"], &verdict["constraint"]["actual"]), (&"constraint".into(), &"c".into()));

    cluster.agent(&[1], &["--label", "zone=b"]).await;
    cluster.wait_state(&job, "Running").await;
    for node in 0..3 {
        let answer = cluster.cli_at(node).json(&["job", "explain", &job]).await;
        assert_eq!(answer["standing"], "running");
        assert_eq!(answer["attempt"]["choice"]["candidates"], 1, "{answer}");
    }
    let shown = cluster.cli().ok(&["job", "explain", &job]).await;
    assert!(shown.contains("the best of 1 that it fitted on"), "{shown}");
    cluster.cli().ok(&["job", "cancel", &job]).await;
    explained(&cluster, 2, &job, "the job has ended", |answer| answer["reason"]["kind"] == "cancelled").await;
    cluster.cli().run(&["job", "explain", "nosuchjob"]).await.expect(1);
}

#[tokio::test]
async fn the_weights_decide_and_only_administrators_change_them() {
    let mut cluster = Cluster::one().await;
    for zone in ["zone=a", "zone=b"] {
        cluster.agent(&[0], &["--label", zone, "--capacity", "4"]).await;
    }
    let cli = cluster.cli();
    let weights = cli.json(&["scheduler", "set", "--bin-packing", "0", "--load", "0", "--spread", "500"]).await;
    assert_eq!(weights, cli.json(&["scheduler", "get"]).await);
    assert_eq!((&weights["weights"]["spread"], &weights["weights"]["affinity"]), (&500.into(), &200.into()));
    cli.run(&["scheduler", "set", "--spread", "1001"]).await.expect(2);
    cli.run(&["scheduler", "set"]).await.expect(2);

    let mut workers = Vec::new();
    for _ in 0..2 {
        let job = cluster.submit(&[], &["sleep", "300"]).await;
        workers.push(cluster.wait_state(&job, "Running").await["worker_id"].clone());
    }
    assert_ne!(workers[0], workers[1], "spread over both");
    // A preference outweighs what little load there is.
    let preferred = cluster.submit(&["--prefer", "label.zone=b:10"], &["true"]).await;
    let preferred = cluster.wait_state(&preferred, "Succeeded").await;
    let zone = cluster.wait_worker(preferred["worker_id"].as_str().unwrap_or_default(), |_| true).await;
    assert_eq!(zone["labels"]["zone"], "b");
}
