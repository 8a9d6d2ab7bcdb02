//! What a dying node takes with it: nothing.

use std::{fmt::Write as _, time::Duration};

use cluster_tests::{
    Cluster,
    client::STDOUT,
    history::Kind,
    wait,
    workload::{Submitters, check_submissions},
};
use nix::sys::signal::{Signal, kill};

const SOON: Duration = Duration::from_secs(30);

/// A job that prints `line 1` … `line n`, about a hundred a second.
fn counting(lines: u32) -> String {
    format!("for ((i = 1; i <= {lines}; i++)); do echo line $i; sleep 0.01; done")
}

fn counted(lines: u32) -> String {
    (1..=lines).fold(String::new(), |mut text, i| {
        writeln!(text, "line {i}").expect("a String takes everything");
        text
    })
}

#[tokio::test]
async fn the_leader_dies_while_it_is_the_jobs_gateway() {
    let mut cluster = Cluster::start(3).await;
    let agent = cluster.agent(&[0, 1, 2], &[]).await;
    let worker = cluster.agents[agent].worker.clone();
    // It waits in the midst of its output for the gateway's end.
    let gate = cluster.dir().join("gate");
    let closed = format!("[ $i != 300 ] || until [ -e {} ]; do sleep 0.01; done", gate.display());
    let script = counting(500).replace("echo", &format!("{closed}; echo"));
    let job = cluster.submit(&[], &["bash", "-c", &script]).await;
    cluster.wait_state(&job, "Running").await;

    let row = cluster.wait_worker(&worker, |row| row["state"] == "Busy").await;
    let status = cluster.wait_status(0).await;
    let gateway = cluster.index_of(&status, &row["gateway"]).expect("the gateway is a member");
    cluster.lead(gateway).await;
    let others: Vec<_> = (0..3).filter(|&node| node != gateway).collect();

    let (client, id) = (cluster.client(others[0]), job.clone());
    let followed = tokio::spawn(async move { client.follow(&id).await });
    let mut shown = cluster.cli_at(others[1]).spawn("logs", &["job", "logs", "-f", &job]);
    wait::until_true("some of the job's lines", SOON, || async { shown.stdout().len() > 1000 }).await;
    assert_eq!(cluster.job(&job).await["state"], "Running");
    std::fs::write(&gate, "").unwrap();
    cluster.nodes[gateway].kill();

    let status = shown.exit(SOON).await;
    assert!(status.success(), "{}", shown.stderr_text());
    assert_eq!(shown.stdout_text(), counted(500));
    // The stream of a node that lives goes on by itself: the subscriber never notices.
    let log = followed.await.unwrap().expect("the subscription outlives the leader");
    assert_eq!(String::from_utf8(log.bytes(STDOUT)).unwrap(), counted(500));
    assert!(log.is_contiguous());
    let end = cluster.job(&job).await;
    assert_eq!((&end["state"], &end["attempt"], &end["exit_code"]), (&"Succeeded".into(), &1.into(), &0.into()));

    // The dead node comes back, catches up, and serves the same log.
    cluster.nodes[gateway].restart().await;
    cluster.wait_healthy(3).await;
    assert_eq!(cluster.cli_at(gateway).run(&["job", "logs", &job]).await.expect(0).stdout, counted(500).into_bytes());
}

/// The first gateway is frozen, the agent goes on to another one and dies there, and the first one is back with less.
#[tokio::test]
async fn a_gateway_that_was_left_hides_no_line_of_a_lost_attempt() {
    let mut cluster = Cluster::start(3).await;
    let agent = cluster.agent(&[0, 1, 2], &[]).await;
    let worker = cluster.agents[agent].worker.clone();
    let job = cluster.submit(&["--lost-after", "15s"], &["bash", "-c", &counting(1_000_000)]).await;
    cluster.wait_state(&job, "Running").await;
    let row = cluster.wait_worker(&worker, |row| row["state"] == "Busy").await;
    let status = cluster.wait_status(0).await;
    let gateway = cluster.index_of(&status, &row["gateway"]).expect("the gateway is a member");
    let others: Vec<_> = (0..3).filter(|&node| node != gateway).collect();
    cluster.lead(gateway).await;

    let read = cluster.cli_at(others[0]).spawn("logs", &["job", "logs", "-f", &job]);
    wait::until_true("some of the job's lines", SOON, || async { read.stdout().len() > 1_000 }).await;
    cluster.nodes[gateway].freeze();
    let before = read.stdout().len();
    wait::until_true("lines by way of another gateway", SOON, || async { read.stdout().len() > before + 3_000 }).await;
    // It can say no more of the job's end than its watchdog can.
    cluster.agents[agent].freeze();
    for watchdog in cluster.watchdogs() {
        kill(watchdog, Signal::SIGKILL).unwrap();
    }
    cluster.agents[agent].kill();
    cluster.nodes[gateway].thaw();
    cluster.wait_healthy(3).await;
    assert_eq!(cluster.job(&job).await["attempt"], 1);
    let lost = |job: &serde_json::Value| job["state"] == "Pending" || job["attempt"] != 1;
    cluster.wait_job(&job, "its attempt is lost", lost).await;

    let read = read.stdout();
    for node in 0..3 {
        let log = cluster.cli_at(node).run(&["job", "logs", "--attempt", "1", &job]).await.stdout;
        assert!(log.starts_with(&read), "node {node} has {} bytes of {} that were read", log.len(), read.len());
    }
}

#[tokio::test]
async fn acknowledged_jobs_outlive_three_leaders() {
    let mut cluster = Cluster::start(3).await;
    let submitters = Submitters::start(&cluster, 6);
    for _ in 0..3 {
        submitters.wait_for(50).await;
        let leader = cluster.leader().await;
        cluster.nodes[leader].kill();
        cluster.leader_other_than(Some(leader)).await;
        cluster.nodes[leader].restart().await;
        cluster.wait_healthy(3).await;
    }
    let field = submitters.stop().await;
    check_submissions(&cluster, &field).await;
}

#[tokio::test]
async fn a_restart_of_all_nodes_keeps_everything() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[0, 1, 2], &[]).await;
    let done = cluster.submit(&["--name", "done"], &["bash", "-c", "echo kept; exit 4"]).await;
    let before = cluster.wait_state(&done, "Failed").await;
    // More than the agent can run: it stays in the queue.
    let waiting = cluster.submit(&["--name", "waiting", "--cpu", "1000"], &["true"]).await;

    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.launch(&["run"]);
    }
    for node in &mut cluster.nodes {
        node.process().ready(SOON).await;
    }
    cluster.wait_healthy(3).await;
    for node in 0..3 {
        let cli = cluster.cli_at(node);
        assert_eq!(cli.json(&["job", "get", &done]).await, before, "node {node}");
        assert_eq!(cli.json(&["job", "get", &waiting]).await["state"], "Pending", "node {node}");
        assert_eq!(cli.ok(&["job", "logs", &done]).await, "kept", "node {node}");
    }
    // The agent finds its way back by itself, and work goes on.
    cluster.cli().run(&["job", "run", "--", "true"]).await.expect(0);
}

#[tokio::test]
async fn leadership_is_handed_over_without_an_outage() {
    let cluster = Cluster::start(3).await;
    let old = cluster.leader().await;
    let new = (old + 1) % 3;
    let submitters = Submitters::start(&cluster, 3);
    submitters.wait_for(20).await;
    cluster.lead(new).await;
    submitters.wait_for(20).await;
    let field = submitters.stop().await;
    let ended_badly = [Kind::Fail, Kind::Info].map(|kind| field.history().keys("submit", kind).len());
    assert_eq!(ended_badly, [0, 0]);
}
