//! Without a majority nothing is written, nothing hangs, and nothing old is shown as new.

use std::time::Duration;

use cluster_tests::{Cluster, cli as shell, wait};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_lone_node_answers_with_a_clear_error_inside_the_deadline() {
    let mut cluster = Cluster::start(3).await;
    let kept = cluster.submit(&[], &["true"]).await;
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();

    // At once: what was heard before they died is no sign of life.
    let status = cluster.status(0).await.expect("status needs no quorum");
    for node in status["nodes"].as_array().unwrap() {
        let own = node["address"] == cluster.nodes[0].address.to_string();
        assert_eq!((&node["healthy"], node["heard_ms_ago"].is_u64()), (&own.into(), true), "{status}");
    }
    let cli = cluster.cli_at(0).request_timeout(Duration::from_secs(2));
    // Until it has noticed, a leader may append what it cannot commit: then nobody knows, and it says so.
    let first = cli.run(&["job", "submit", "--name", "first", "--", "true"]).await;
    assert!([69, 75].contains(&first.code), "exit code {}: {}", first.code, first.stderr);
    assert!(first.took < Duration::from_secs(4), "took {:?}", first.took);
    wait::until_true("status sees no leader", SOON, || async {
        cluster.status(0).await.is_some_and(|status| status["leader"].is_null())
    })
    .await;

    for args in
        [&["job", "submit", "--", "true"][..], &["job", "list"], &["job", "get", &kept], &["job", "cancel", &kept]]
    {
        let output = cli.run(args).await.expect(69);
        assert!(output.stderr.contains("no quorum"), "{args:?}: {}", output.stderr);
        assert!(output.took < Duration::from_secs(4), "{args:?} took {:?}", output.took);
        assert!(output.stdout.is_empty(), "{args:?} showed {:?}", output.text());
    }

    let output = cli.run(&["job", "list", "--output", "json"]).await.expect(69);
    let failure: serde_json::Value = serde_json::from_str(&output.stderr).expect("one object");
    assert_eq!((&failure["code"], &failure["field"]), (&"no_quorum".into(), &serde_json::Value::Null), "{failure}");

    // Who waits goes on through an outage, but not beyond their own deadline, and is told why.
    let output = cluster.cli_at(0).run(&["job", "wait", &kept, "--timeout", "2s"]).await.expect(124);
    assert!(output.stderr.contains("does not answer") && output.stderr.contains("no quorum"), "{}", output.stderr);
    assert!(output.took < Duration::from_secs(4), "took {:?}", output.took);

    // Status is local knowledge, and says so.
    let output = cluster.cli_at(0).run(&["cluster", "status"]).await.expect(0);
    let said = format!("{}{}", output.text(), output.stderr);
    assert!(said.contains("quorum"), "{said}");

    cluster.nodes[1].restart().await;
    wait::until_true("the majority writes again", SOON, || async {
        cluster.cli_at(0).run(&["job", "submit", "--", "true"]).await.code == 0
    })
    .await;
    // What was refused was not done; what was unknown may have been.
    let listed = cluster.cli_at(0).json(&["job", "list"]).await;
    let others = listed.as_array().unwrap().iter().filter(|job| job["name"] != "first").count();
    assert_eq!(others, 2, "{listed}");
}

#[tokio::test]
async fn run_is_ready_without_a_quorum() {
    let mut cluster = Cluster::start(3).await;
    for node in &mut cluster.nodes {
        node.stop().await;
    }
    cluster.nodes[2].restart().await;
    let cli = cluster.cli_at(2).request_timeout(Duration::from_secs(1));
    cli.run(&["job", "list"]).await.expect(69);
    let status = cluster.wait_status(2).await;
    assert!(status["leader"].is_null(), "{status}");
}

#[tokio::test]
async fn a_frozen_leader_is_replaced_and_follows_when_it_wakes() {
    let mut cluster = Cluster::start(3).await;
    let old = cluster.leader().await;
    cluster.nodes[old].freeze();
    let new = cluster.leader_other_than(Some(old)).await;
    let job = cluster.cli_at(new).ok(&["job", "submit", "--output", "quiet", "--", "true"]).await;
    cluster.nodes[old].thaw();
    // Its first answer after the wake-up is linearizable: it knows the job that was accepted without it.
    let output = cluster.cli_at(old).run(&["job", "get", &job, "--output", "quiet"]).await.expect(0);
    assert_eq!(output.text(), job);
    cluster.wait_healthy(3).await;
}

#[tokio::test]
async fn nobody_reachable_is_the_same_exit_code() {
    let mut cluster = Cluster::one().await;
    let cli = cluster.cli().request_timeout(Duration::from_secs(2));
    cluster.nodes[0].process().signal(Signal::SIGTERM);
    assert!(cluster.nodes[0].process().exit(SOON).await.success());
    for args in [&["job", "list"][..], &["cluster", "status"], &["token", "list"]] {
        let output = cli.run(args).await.expect(69);
        assert!(output.took < Duration::from_secs(4), "{args:?} took {:?}", output.took);
    }
}

#[tokio::test]
async fn waiting_that_begins_in_an_outage_outlasts_it() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[0], &[]).await;
    let job = cluster.submit(&[], &["bash", "-c", "echo said; exit 3"]).await;
    cluster.wait_state(&job, "Failed").await;
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();

    let cli = cluster.cli_at(0).request_timeout(Duration::from_secs(1));
    let mut waiting = [
        cli.spawn("wait", &["job", "wait", &job]),
        cli.spawn("follow", &["job", "logs", "-f", &job]),
        cli.spawn("unknown", &["job", "wait", "no-such-job"]),
    ];
    for process in &waiting {
        wait::until_true("it says that it tries again", SOON, || async {
            process.stderr_text().contains("trying again")
        })
        .await;
    }
    // The outage outlasts their request timeout by far: somebody who asks for twice as long gets no answer either.
    let patient = cluster.cli_at(0).request_timeout(Duration::from_secs(2));
    let asked = patient.run(&["job", "list"]).await.expect(69);
    assert!(asked.took >= Duration::from_secs(1), "took {:?}", asked.took);
    cluster.nodes[1].restart().await;
    for (process, code) in waiting.iter_mut().zip([3, 3, 1]) {
        let status = process.exit(SOON).await;
        assert_eq!(shell::exit_code(status), code, "{}", process.stderr_text());
        assert_eq!(process.stderr_text().matches("trying again").count(), 1, "{}", process.stderr_text());
    }
    assert_eq!(waiting[1].stdout_text(), "said\n");
}
