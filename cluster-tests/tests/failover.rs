//! What a dying node takes with it: nothing.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cluster_tests::{
    Client, Cluster,
    client::{STDOUT, shell},
    history::{History, Kind, SetVerdict},
    wait,
};
use uuid::Uuid;

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
    let job = cluster.submit(&[], &["bash", "-c", &counting(500)]).await;
    cluster.wait_state(&job, "Running").await;

    let row = cluster.wait_worker(&worker, |row| row["state"] == "Busy").await;
    let status = cluster.status(0).await.unwrap();
    let gateway = cluster.index_of(&status, &row["gateway"]).expect("the gateway is a member");
    cluster.lead(gateway).await;
    let others: Vec<_> = (0..3).filter(|&node| node != gateway).collect();

    let (client, id) = (cluster.client(others[0]), job.clone());
    let followed = tokio::spawn(async move { client.follow(&id).await });
    let mut shown = cluster.cli_at(others[1]).spawn("logs", &["job", "logs", "-f", &job]);
    wait::until_true("half of the job's lines", SOON, || async { shown.stdout().len() > 2000 }).await;
    assert!(!cluster.job(&job).await["state"].as_str().unwrap().starts_with('S'), "killed too late to prove anything");
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

/// Submits one job after the other to its node until told to stop.
async fn write(proc: u32, client: Client, history: Arc<History>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let id = Uuid::now_v7().to_string();
        history.add(proc, Kind::Invoke, "submit", &id, "");
        let answer = client.submit_as(&id, shell("true", &[]), Duration::from_secs(3)).await;
        history.answer(proc, "submit", &id, &answer);
        // A node that is down refuses at once; do not spin on it.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn acknowledged_jobs_outlive_three_leaders() {
    let mut cluster = Cluster::start(3).await;
    let history = Arc::new(History::default());
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..6).map(|i| tokio::spawn(write(i, cluster.client(i as usize % 3), history.clone(), stop.clone()))).collect();

    for _ in 0..3 {
        let acknowledged = history.keys("submit", Kind::Ok).len();
        wait::until_true("writes are accepted", SOON, || async {
            history.keys("submit", Kind::Ok).len() > acknowledged + 50
        })
        .await;
        let leader = cluster.leader().await;
        cluster.nodes[leader].kill();
        cluster.leader_other_than(Some(leader)).await;
        cluster.nodes[leader].restart().await;
        cluster.wait_healthy(3).await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }

    for node in 0..3 {
        let jobs = cluster.cli_at(node).json(&["job", "list", "--limit", "1000000"]).await;
        let ids: Vec<_> = jobs.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
        let held: BTreeSet<_> = ids.iter().cloned().collect();
        assert_eq!(held.len(), ids.len(), "node {node} lists a job twice");
        let verdict = SetVerdict::of(&history, "submit", &held);
        if !verdict.is_valid() {
            history.write(File::create(cluster.dir().join("history.jsonl")).unwrap()).unwrap();
        }
        assert!(verdict.is_valid(), "node {node}: {verdict:?}");
    }
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
    let history = Arc::new(History::default());
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write(0, cluster.client(old), history.clone(), stop.clone()));
    wait::until_true("writes are accepted", SOON, || async { !history.keys("submit", Kind::Ok).is_empty() }).await;
    cluster.lead(new).await;
    let acknowledged = history.keys("submit", Kind::Ok).len();
    wait::until_true("writes go on", SOON, || async { history.keys("submit", Kind::Ok).len() > acknowledged + 20 })
        .await;
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    assert!(history.keys("submit", Kind::Fail).is_empty() && history.keys("submit", Kind::Info).is_empty());
}
