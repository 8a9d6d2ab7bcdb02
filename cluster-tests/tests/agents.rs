//! Agents die, come back, and lose their nodes.

use std::{fs, time::Duration};

use cluster_tests::{Cluster, client::STDOUT, wait};
use hodei_proto::v1::{GetJobRequest, JobSelector};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(40);

#[tokio::test]
async fn a_dead_agents_job_is_run_again_by_another_under_a_larger_fence() {
    let mut cluster = Cluster::start(3).await;
    let first = cluster.agent(&[0], &[]).await;
    let script = "echo attempt $HODEI_ATTEMPT; [ $HODEI_ATTEMPT -gt 1 ] || sleep 60";
    let job = cluster.submit(&["--lost-after", "5s"], &["bash", "-c", script]).await;
    let running = cluster.wait_state(&job, "Running").await;
    assert_eq!(running["worker_id"], cluster.agents[first].worker.as_str());
    let second = cluster.agent(&[1], &[]).await;
    let follow = {
        let (client, job) = (cluster.client(2), job.clone());
        tokio::spawn(async move { client.follow(&job).await })
    };
    wait::until_true("the first attempt's line is kept", SOON, || async {
        cluster.cli().run(&["job", "logs", &job]).await.stdout == b"attempt 1\n"
    })
    .await;
    cluster.agents[first].kill();

    let worker = cluster.agents[first].worker.clone();
    cluster.wait_worker(&worker, |row| row["state"] == "Disconnected").await;
    wait::until_true("the second attempt succeeds", SOON, || async { cluster.job(&job).await["state"] == "Succeeded" })
        .await;
    let end = cluster.job(&job).await;
    assert_eq!(end["attempt"], 2);
    assert_eq!(end["worker_id"], cluster.agents[second].worker.as_str());
    let request = GetJobRequest { job: Some(JobSelector { text: job.clone() }), stale: false };
    let attempts = cluster.client(0).jobs().get_job(request).await.unwrap().into_inner().job.unwrap().attempts;
    assert_eq!(attempts.len(), 2);
    assert!(attempts[1].fence > attempts[0].fence && attempts[0].fence > 0);
    assert_eq!(attempts[0].reason.as_ref().unwrap().kind, "worker_lost");

    // A follower sees both attempts; the lost one's log is marked as incomplete.
    let log = follow.await.unwrap().unwrap();
    assert_eq!(log.bytes(STDOUT), b"attempt 1\nattempt 2\n");
    assert_eq!(log.ends.iter().map(|end| end.complete).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn retries_end_when_the_budget_does() {
    let mut cluster = Cluster::one().await;
    let agent = cluster.agent(&[0], &[]).await;
    let job = cluster.submit(&["--lost-after", "5s", "--max-attempts", "1"], &["sleep", "60"]).await;
    cluster.wait_state(&job, "Running").await;
    cluster.agents[agent].kill();
    let end = cluster.wait_state(&job, "Failed").await;
    assert_eq!((&end["reason"]["kind"], &end["attempt"]), (&"worker_lost".into(), &1.into()));
    cluster.cli().run(&["job", "wait", &job]).await.expect(125);
}

#[tokio::test]
async fn a_job_outlives_an_outage_of_all_nodes() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[0, 1, 2], &[]).await;
    let gate = cluster.dir().join("gate");
    let script = format!("echo before; while [ ! -e {} ]; do sleep 0.02; done; echo after; exit 9", gate.display());
    let job = cluster.submit(&[], &["bash", "-c", &script]).await;
    cluster.wait_state(&job, "Running").await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    // It ends while nobody listens: the result waits on the agent's disk.
    fs::write(&gate, "").unwrap();
    wait::until_true("the job's process ends", SOON, || async { cluster.job_processes().is_empty() }).await;
    for node in &mut cluster.nodes {
        node.launch(&["run"]);
    }
    let end = cluster.wait_state(&job, "Failed").await;
    assert_eq!((&end["exit_code"], &end["attempt"]), (&9.into(), &1.into()));
    for node in 0..3 {
        assert_eq!(cluster.cli_at(node).ok(&["job", "logs", &job]).await, "before\nafter", "node {node}");
    }
}

#[tokio::test]
async fn a_lost_connection_shows_within_a_second_and_the_session_goes_on() {
    let mut cluster = Cluster::start(3).await;
    let agent = cluster.agent(&[0, 1, 2], &[]).await;
    let worker = cluster.agents[agent].worker.clone();
    let job = cluster.submit(&[], &["sleep", "300"]).await;
    cluster.wait_state(&job, "Running").await;
    let row = cluster.wait_worker(&worker, |row| !row["gateway"].is_null()).await;
    let status = cluster.wait_status(0).await;
    let gateway = cluster.index_of(&status, &row["gateway"]).unwrap();
    let lead = (gateway + 1) % 3;
    cluster.lead(lead).await;
    cluster.nodes[gateway].kill();
    let row = cluster.wait_worker(&worker, |new| !new["gateway"].is_null() && new["gateway"] != row["gateway"]).await;
    assert_eq!(row["state"], "Busy");
    let job = cluster.job(&job).await;
    assert_eq!((&job["state"], &job["attempt"]), (&"Running".into(), &1.into()), "the session was resumed");
}

#[tokio::test]
async fn sigterm_drains_an_agent() {
    let mut cluster = Cluster::one().await;
    let agent = cluster.agent(&[0], &["--drain-timeout", "60s"]).await;
    let gate = cluster.dir().join("gate");
    let script = format!("echo on; while [ ! -e {} ]; do sleep 0.02; done; echo done", gate.display());
    let job = cluster.submit(&[], &["bash", "-c", &script]).await;
    cluster.wait_state(&job, "Running").await;
    let worker = cluster.agents[agent].worker.clone();
    cluster.agents[agent].process().signal(Signal::SIGTERM);
    // No new job while the running one may finish, and everybody sees why.
    let row = cluster.wait_worker(&worker, |row| row["state"] == "Draining").await;
    let shown = cluster.cli().json(&["worker", "get", &worker]).await;
    let drain = &shown["drain"];
    assert!(drain["deadline"].is_string() && drain["by"].as_str().unwrap().contains(&worker), "{row} {shown}");
    let late = cluster.submit(&[], &["true"]).await;
    fs::write(&gate, "").unwrap();
    assert!(cluster.agents[agent].process().exit(SOON).await.success());
    assert_eq!(cluster.job(&job).await["state"], "Succeeded");
    assert_eq!(cluster.cli().ok(&["job", "logs", &job]).await, "on\ndone");
    assert_eq!(cluster.job(&late).await["state"], "Pending");
    let rows = cluster.cli().json(&["worker", "list"]).await;
    let row = rows.as_array().unwrap().iter().find(|row| row["id"] == worker.as_str());
    assert!(row.is_none_or(|row| row["state"] == "Terminated"), "{row:?}");
    // The drain was that process' own: the next one takes jobs.
    cluster.agents[agent].kill();
    cluster.agents[agent].start();
    let end = cluster.wait_state(&late, "Succeeded").await;
    assert_eq!((&end["attempt"], &end["worker_id"]), (&1.into(), &worker.as_str().into()));
}

#[tokio::test]
async fn jobs_wait_for_a_slot_and_higher_priorities_go_first() {
    let mut cluster = Cluster::one().await;
    let gate = cluster.dir().join("gate");
    let order = cluster.dir().join("order");
    let wait_at_gate = format!("while [ ! -e {} ]; do sleep 0.02; done", gate.display());
    let note = |word: &str| format!("echo {word} >> {}", order.display());
    cluster.agent(&[0], &["--capacity", "1"]).await;
    let first = cluster.submit(&[], &["bash", "-c", &wait_at_gate]).await;
    cluster.wait_state(&first, "Running").await;
    let low = cluster.submit(&["--priority", "-1"], &["bash", "-c", &note("low")]).await;
    let middle = cluster.submit(&[], &["bash", "-c", &note("middle")]).await;
    let high = cluster.submit(&["--priority", "5"], &["bash", "-c", &note("high")]).await;
    assert_eq!(cluster.job(&high).await["state"], "Pending");
    fs::write(&gate, "").unwrap();
    for job in [&first, &low, &middle, &high] {
        cluster.wait_state(job, "Succeeded").await;
    }
    assert_eq!(fs::read_to_string(&order).unwrap(), "high\nmiddle\nlow\n");
}

#[tokio::test]
async fn no_gpu_is_given_to_two_jobs_and_a_restarted_agent_knows_whose_they_are() {
    let mut cluster = Cluster::one().await;
    let agent = cluster.agent(&[0], &["--capacity", "8", "--gpus", "0,1"]).await;
    let worker = cluster.agents[agent].worker.clone();
    assert_eq!(cluster.cli().json(&["worker", "get", &worker]).await["capacity"]["gpu"], 2);
    let dir = cluster.dir().to_owned();
    let gate = |name: &str| dir.join(format!("{name}.gate"));
    let script = |name: &str| {
        let shown = "echo \"cuda=$CUDA_VISIBLE_DEVICES nvidia=$NVIDIA_VISIBLE_DEVICES order=$CUDA_DEVICE_ORDER\"";
        format!("{shown}; while [ ! -e {} ]; do sleep 0.02; done", gate(name).display())
    };
    let (first, second, third) = (script("first"), script("second"), script("third"));
    // A job does not say itself which it gets.
    let own = ["job", "submit", "--gpu", "1", "--env", "CUDA_VISIBLE_DEVICES=0,1", "--", "true"];
    cluster.cli().run(&own).await.expect(2);
    let one = ["--gpu", "1"];
    let submit = async |cluster: &Cluster, script: &str| cluster.submit(&one, &["bash", "-c", script]).await;
    let lines = async |cluster: &Cluster, job: &str| {
        let shows = async || cluster.cli().run(&["job", "logs", job]).await.stdout.ends_with(b"\n");
        wait::until_true("it shows what it has", SOON, shows).await;
        cluster.cli().ok(&["job", "logs", job]).await
    };
    let first = submit(&cluster, &first).await;
    cluster.wait_state(&first, "Running").await;
    let second = submit(&cluster, &second).await;
    cluster.wait_state(&second, "Running").await;
    assert_eq!(lines(&cluster, &first).await, "cuda=0 nvidia=0 order=PCI_BUS_ID");
    assert_eq!(lines(&cluster, &second).await, "cuda=1 nvidia=1 order=PCI_BUS_ID");
    let third = submit(&cluster, &third).await;
    // A job that wants none does not wait, and sees none.
    let none = cluster
        .submit(&[], &["bash", "-c", "echo \"cuda=$CUDA_VISIBLE_DEVICES nvidia=$NVIDIA_VISIBLE_DEVICES\""])
        .await;
    cluster.wait_state(&none, "Succeeded").await;
    assert_eq!(lines(&cluster, &none).await, "cuda= nvidia=void");
    assert_eq!(cluster.job(&third).await["state"], "Pending");

    cluster.agents[agent].kill();
    cluster.agents[agent].start();
    cluster.wait_worker(&worker, |row| row["state"] == "Busy" && !row["gateway"].is_null()).await;
    fs::write(gate("second"), "").unwrap();
    cluster.wait_state(&second, "Succeeded").await;
    cluster.wait_state(&third, "Running").await;
    assert_eq!(lines(&cluster, &third).await, "cuda=1 nvidia=1 order=PCI_BUS_ID", "the first job has the other");
    for (name, job) in [("first", &first), ("third", &third)] {
        fs::write(gate(name), "").unwrap();
        let end = cluster.wait_state(job, "Succeeded").await;
        assert_eq!(end["attempt"], 1);
    }
}
