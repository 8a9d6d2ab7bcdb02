//! Workers that come and go as an operator wants.

use std::{fs, path::Path, time::Duration};

use cluster_tests::{Cluster, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(40);

/// A job that ends when `gate` exists, or by SIGTERM.
fn until(gate: &Path) -> String {
    format!("while [ ! -e {} ]; do sleep 0.02; done", gate.display())
}

#[tokio::test]
async fn a_drained_worker_finishes_and_takes_nothing_until_it_is_undrained() {
    let mut cluster = Cluster::start(3).await;
    let agent = cluster.agent(&[1], &[]).await;
    let worker = cluster.agents[agent].worker.clone();
    let gate = cluster.dir().join("gate");
    let job = cluster.submit(&["--name", "slow"], &["bash", "-c", &until(&gate)]).await;
    cluster.wait_state(&job, "Running").await;

    let mut drain = cluster.cli_at(2).spawn("drain", &["worker", "drain", &worker, "--output", "quiet"]);
    wait::until_true("the drain says what it waits for", SOON, || async {
        drain.stderr_text().contains("waiting for 1 job") && drain.stderr_text().contains("(slow)")
    })
    .await;
    let row = cluster.cli().json(&["worker", "get", &worker]).await;
    assert_eq!((&row["state"], &row["running"]), (&"Draining".into(), &1.into()), "{row}");
    assert_eq!((&row["attempts"][0]["job_id"], &row["drain"]["requeue"]), (&job.as_str().into(), &false.into()));
    let late = cluster.submit(&[], &["true"]).await;
    fs::write(&gate, "").unwrap();
    assert!(drain.exit(SOON).await.success());
    assert_eq!(cluster.job(&job).await["state"], "Succeeded");

    // Another process of the agent, on another stream, is as drained; so is the worker to another leader.
    cluster.agents[agent].kill();
    cluster.agents[agent].start();
    let session = row["session_id"].clone();
    cluster.wait_worker(&worker, |row| row["state"] == "Draining" && row["session_id"] != session).await;
    let leader = cluster.leader().await;
    cluster.lead((leader + 1) % 3).await;
    assert_eq!(cluster.job(&late).await["state"], "Pending");
    cluster.cli().run(&["worker", "drain", &worker, "--deadline", "1h"]).await.expect(0);
    cluster.cli().run(&["worker", "undrain", &worker]).await.expect(0);
    cluster.wait_state(&late, "Succeeded").await;
    cluster.cli().run(&["worker", "undrain", &worker[30..]]).await.expect(0);
}

#[tokio::test]
async fn what_a_drain_takes_back_runs_elsewhere_at_no_cost() {
    let mut cluster = Cluster::one().await;
    let gate = cluster.dir().join("gate");
    let first = cluster.agent(&[0], &[]).await;
    let first = cluster.agents[first].worker.clone();
    let job = cluster.submit(&[], &["bash", "-c", &until(&gate)]).await;
    cluster.wait_state(&job, "Running").await;
    let second = cluster.agent(&[0], &[]).await;
    let second = cluster.agents[second].worker.clone();

    cluster.cli().run(&["worker", "drain", &first, "--requeue"]).await.expect(0);
    let running = cluster.wait_job(&job, "runs again", |job| job["attempt"] == 2 && job["state"] == "Running").await;
    assert_eq!(running["worker_id"], second.as_str());
    assert_eq!(running["attempts"][0]["reason"]["kind"], "taken_back");
    assert_eq!(running["attempts"][0]["reason"]["signal"], 15);

    // The other one gets a moment to finish, which is not enough.
    let output = cluster.cli().run(&["worker", "drain", &second, "--deadline", "500ms"]).await.expect(0);
    assert!(output.took >= Duration::from_millis(500));
    assert_eq!(cluster.job(&job).await["state"], "Pending");
    cluster.cli().run(&["worker", "undrain", &first]).await.expect(0);
    let running = cluster.wait_job(&job, "runs again", |job| job["attempt"] == 3 && job["state"] == "Running").await;
    assert_eq!(running["worker_id"], first.as_str());
    fs::write(&gate, "").unwrap();
    cluster.wait_state(&job, "Succeeded").await;
}

#[tokio::test]
async fn a_removed_worker_never_comes_back() {
    let mut cluster = Cluster::one().await;
    let agent = cluster.agent(&[0], &[]).await;
    let worker = cluster.agents[agent].worker.clone();
    let job = cluster.submit(&["--lost-after", "5s"], &["bash", "-c", "[ $HODEI_ATTEMPT -gt 1 ] || sleep 60"]).await;
    cluster.wait_state(&job, "Running").await;

    let output = cluster.cli().run(&["worker", "remove", &worker]).await.expect(1);
    let said = &output.stderr;
    assert!(
        said.contains("still runs jobs: 1") && said.contains("drain it first") && said.contains("--force"),
        "{said}"
    );
    cluster.cli().run(&["worker", "remove", "01990000-0000-7000-8000-000000000001"]).await.expect(1);
    cluster.cli().run(&["worker", "get", "no-such-host"]).await.expect(1);
    cluster.cli().run(&["worker", "get", ""]).await.expect(2);
    cluster.cli().run(&["worker", "drain", &worker, "--requeue", "--deadline", "1s"]).await.expect(2);
    assert_eq!(cluster.job(&job).await["state"], "Running");

    // By force it is removed at once; the job goes on until its lease is over, and only then elsewhere.
    cluster.cli().run(&["worker", "remove", &worker, "--force"]).await.expect(0);
    cluster.cli().run(&["worker", "remove", &worker]).await.expect(0);
    let other = cluster.agent(&[0], &[]).await;
    let end = cluster.wait_state(&job, "Succeeded").await;
    assert_eq!((&end["attempt"], &end["worker_id"]), (&2.into(), &cluster.agents[other].worker.as_str().into()));
    let status = cluster.agents[agent].process().exit(SOON).await;
    assert_eq!(status.code(), Some(77));
    cluster.agents[agent].kill();
    cluster.agents[agent].start();
    assert_eq!(cluster.agents[agent].process().exit(SOON).await.code(), Some(77), "its identity is void");

    let list = cluster.cli().json(&["worker", "list"]).await;
    assert!(list.as_array().unwrap().iter().all(|row| row["id"] != worker.as_str()), "{list}");
    let row = cluster.cli().json(&["worker", "get", &worker]).await;
    assert!(row["removed_at"].is_string() && row["state"] == "Terminated", "{row}");
    cluster.cli().run(&["worker", "undrain", &worker]).await.expect(1);
}

#[tokio::test]
async fn a_worker_whose_agent_keeps_dying_is_set_aside_and_says_so() {
    let mut cluster = Cluster::one().await;
    let agent = cluster.agent(&[0], &[]).await;
    let worker = cluster.agents[agent].worker.clone();
    let session = cluster.cli().json(&["worker", "get", &worker]).await["session_id"].clone();

    // Restarted as it should be, as often as that may be: nothing comes of it.
    let mut known = vec![session];
    for orderly in [true, true, true, true, false, false, false] {
        if orderly {
            cluster.agents[agent].process().signal(Signal::SIGTERM);
            assert!(cluster.agents[agent].process().exit(SOON).await.success());
        }
        cluster.agents[agent].kill();
        let row = cluster.cli().json(&["worker", "get", &worker]).await;
        assert!(row["set_aside"].is_null(), "{row}");
        cluster.agents[agent].start();
        let is_back = |row: &Value| row["state"] == "Ready" && !known.contains(&row["session_id"]);
        let row = cluster.wait_worker(&worker, is_back).await;
        known.push(row["session_id"].clone());
    }
    let row = cluster.cli().json(&["worker", "get", &worker]).await;
    assert_eq!((&row["set_aside"]["lost_sessions"], &row["set_aside"]["lost_attempts"]), (&3.into(), &0.into()));
    assert!(cluster.cli().ok(&["worker", "list"]).await.contains("Ready, set aside"));

    let job = cluster.submit(&[], &["true"]).await;
    let explained = cluster.cli().json(&["job", "explain", &job]).await;
    assert_eq!(explained["blocker"], "set_aside", "{explained}");
    assert_eq!(explained["workers"][0]["set_aside"]["until"], row["set_aside"]["until"]);
    cluster.cli().run(&["worker", "undrain", &worker]).await.expect(0);
    cluster.wait_state(&job, "Succeeded").await;

    // With other numbers once is enough; and the time passes by itself, with nothing else going on.
    let set = ["scheduler", "set", "--set-aside-flaps", "1", "--set-aside-first", "1s", "--set-aside-longest", "2s"];
    cluster.cli().run(&set).await.expect(0);
    cluster.cli().run(&["scheduler", "set", "--set-aside-first", "3s"]).await.expect(2);
    cluster.agents[agent].kill();
    cluster.agents[agent].start();
    let ended = "worker_set_aside_ended";
    wait::until_true("it is set aside no more", SOON, || async {
        let events = cluster.cli().ok(&["events", "--worker", &worker, "--output", "json"]).await;
        let kinds = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].clone());
        let kinds: Vec<_> = kinds.filter(|kind| kind.as_str().unwrap().starts_with("worker_set_aside")).collect();
        kinds == ["worker_set_aside", ended, "worker_set_aside", ended]
    })
    .await;
    let job = cluster.submit(&[], &["true"]).await;
    cluster.wait_state(&job, "Succeeded").await;
}
