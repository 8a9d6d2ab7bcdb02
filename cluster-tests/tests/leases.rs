//! Two attempts of a job never run at the same time, and no job dies without need: agents, watchdogs, gateways and leaders
//! that stop, die and come back under running jobs, with an outside witness.

use std::{
    fs,
    time::{Duration, Instant},
};

use cluster_tests::{
    Cluster, Witness, wait,
    witness::{check_lines, now},
};
use nix::sys::signal::{Signal, kill};

/// The shortest lease, and what ends within it plus the leader's margin plus a busy machine.
const LEASE: f64 = 5.0;
const LATE: f64 = 2.5;
const SOON: Duration = Duration::from_secs(60);

/// A job that goes on until a file appears.
struct Job {
    id: String,
    witness: Witness,
    gate: std::path::PathBuf,
}

impl Job {
    async fn start(cluster: &Cluster, name: &str, options: &[&str], code: u8) -> Self {
        let witness = Witness::new(cluster.dir(), name);
        let gate = cluster.dir().join(format!("{name}.gate"));
        let script = witness.script(&format!("[ ! -e {} ]", gate.display()), code);
        let id = cluster.submit(options, &["bash", "-c", &script]).await;
        let job = Self { id, witness, gate };
        cluster.wait_state(&job.id, "Running").await;
        job.witness.attempts(1).await;
        job
    }

    fn open_gate(&self) {
        fs::write(&self.gate, "").expect("the directory of the cluster can be written to");
    }

    /// It succeeds or fails as it was made to, in this attempt, and nothing ran twice at once.
    async fn ends(&self, cluster: &Cluster, state: &str, attempt: u32) {
        let end = cluster.wait_job(&self.id, state, |job| job["finished_at"].is_string()).await;
        assert_eq!((&end["state"], &end["attempt"]), (&state.into(), &attempt.into()), "{end}");
        self.witness.check();
        assert_eq!(self.witness.starts(), attempt as usize);
    }

    /// The log of its newest attempt is whole, on every node.
    async fn log_is_whole(&self, cluster: &Cluster) {
        for node in cluster.running() {
            check_lines(&cluster.cli_at(node).run(&["job", "logs", &self.id]).await.expect(0).stdout);
        }
        let job = cluster.job(&self.id).await;
        assert_eq!(job["log_dropped"], 0, "{job}");
    }
}

async fn nothing_is_left(cluster: &Cluster) {
    for agent in 0..cluster.agents.len() {
        nothing_is_left_of(cluster, agent).await;
    }
}

/// While another agent may have the next attempt.
async fn nothing_is_left_of(cluster: &Cluster, agent: usize) {
    wait::until_true("nothing is left", SOON, || async { cluster.left_of(agent).is_empty() }).await;
}

#[tokio::test]
async fn a_stopped_agents_job_dies_at_its_deadline_and_only_then_runs_elsewhere() {
    let mut cluster = Cluster::one().await;
    let first = cluster.agent(&[0], &[]).await;
    let job = Job::start(&cluster, "job", &["--lost-after", "5s"], 0).await;
    let second = cluster.agent(&[0], &[]).await;
    job.witness.beats().await;
    let stopped = now();
    cluster.agents[first].freeze();
    let is_dead = || async { cluster.job_processes_of(first).is_empty() };
    wait::until_true("its tree is dead while it is stopped", SOON, is_dead).await;
    let died = job.witness.last_of(1);
    assert!(died - stopped < LEASE + 0.5, "it lived for {} s", died - stopped);
    job.witness.attempts(2).await;
    assert!(job.witness.first_of(2) > died, "nothing else has begun before");
    job.witness.beats().await;
    cluster.agents[first].thaw();
    // It comes back, says what it has to say, and takes jobs again.
    let worker = cluster.agents[first].worker.clone();
    cluster.wait_worker(&worker, |row| row["state"] == "Ready").await;
    job.open_gate();
    job.ends(&cluster, "Succeeded", 2).await;
    let end = cluster.job(&job.id).await;
    assert_eq!(end["worker_id"], cluster.agents[second].worker.as_str());
    nothing_is_left(&cluster).await;
}

#[tokio::test]
async fn a_restarted_agent_adopts_its_jobs_and_not_a_line_is_lost() {
    let mut cluster = Cluster::one().await;
    let agent = cluster.agent(&[0], &[]).await;
    let job = Job::start(&cluster, "job", &["--lost-after", "5s"], 0).await;
    for _ in 0..3 {
        job.witness.beats().await;
        cluster.agents[agent].kill();
        job.witness.beats().await;
        cluster.agents[agent].start();
        let worker = cluster.agents[agent].worker.clone();
        cluster.wait_worker(&worker, |row| row["state"] == "Busy").await;
    }
    // Longer than the lease: it is extended under the new session.
    let begun = now();
    wait::until_true("a lease has passed", SOON, || async { now() - begun > LEASE + LATE }).await;
    job.open_gate();
    job.ends(&cluster, "Succeeded", 1).await;
    job.log_is_whole(&cluster).await;
    nothing_is_left(&cluster).await;
}

#[tokio::test]
async fn a_job_that_ended_without_its_agent_is_reported_and_not_run_again() {
    let mut cluster = Cluster::one().await;
    let agent = cluster.agent(&[0], &[]).await;
    let job = Job::start(&cluster, "job", &["--lost-after", "5s"], 7).await;
    job.witness.beats().await;
    cluster.agents[agent].kill();
    job.open_gate();
    nothing_is_left(&cluster).await;
    cluster.agents[agent].start();
    job.ends(&cluster, "Failed", 1).await;
    assert_eq!(cluster.job(&job.id).await["exit_code"], 7);
    job.log_is_whole(&cluster).await;
}

#[tokio::test]
async fn a_dead_agents_job_dies_at_its_deadline_and_runs_elsewhere() {
    let mut cluster = Cluster::one().await;
    let first = cluster.agent(&[0], &[]).await;
    let job = Job::start(&cluster, "job", &["--lost-after", "5s"], 0).await;
    cluster.agent(&[0], &[]).await;
    job.witness.beats().await;
    let killed = now();
    cluster.agents[first].kill();
    // It goes on for as long as its lease lasts: an agent that comes back in time would adopt it.
    job.witness.beats().await;
    nothing_is_left_of(&cluster, first).await;
    assert!(job.witness.last_of(1) - killed < LEASE + 0.5);
    job.witness.attempts(2).await;
    job.open_gate();
    job.ends(&cluster, "Succeeded", 2).await;
    // What the first attempt left is known to the next agent, which has nothing more to say of it.
    cluster.agents[first].start();
    let worker = cluster.agents[first].worker.clone();
    cluster.wait_worker(&worker, |row| row["state"] == "Ready").await;
    let attempts = cluster.agents[first].data.join("attempts");
    wait::until_true("it is forgotten", SOON, || async { fs::read_dir(&attempts).unwrap().next().is_none() }).await;
    assert_eq!(job.witness.starts(), 2);
}

#[tokio::test]
async fn when_a_watchdog_is_killed_its_tree_dies_and_the_attempt_ends_as_lost() {
    let mut cluster = Cluster::one().await;
    cluster.agent(&[0], &[]).await;
    // A lease that is not waited for.
    let job = Job::start(&cluster, "job", &["--lost-after", "10m"], 0).await;
    let watchdogs = cluster.watchdogs();
    assert_eq!(watchdogs.len(), 1);
    kill(watchdogs[0], Signal::SIGKILL).unwrap();
    job.witness.attempts(2).await;
    job.open_gate();
    job.ends(&cluster, "Succeeded", 2).await;
    job.log_is_whole(&cluster).await;
    nothing_is_left(&cluster).await;
}

#[tokio::test]
async fn when_agent_and_watchdog_are_killed_at_once_nothing_lives_on_beside_the_next_attempt() {
    let mut cluster = Cluster::one().await;
    let first = cluster.agent(&[0], &[]).await;
    // What beats and holds the lock has detached itself from what is started, and from its output.
    let witness = Witness::new(cluster.dir(), "job");
    let gate = cluster.dir().join("job.gate");
    let beating = witness.script(&format!("[ ! -e {} ]", gate.display()), 0);
    let outer = format!(
        "(setsid setsid bash -c \"$1\" </dev/null >/dev/null 2>&1 &); while [ ! -e {} ]; do sleep 0.01; done",
        gate.display()
    );
    let id = cluster.submit(&["--lost-after", "5s"], &["bash", "-c", &outer, "outer", &beating]).await;
    let job = Job { id, witness, gate };
    cluster.wait_state(&job.id, "Running").await;
    job.witness.attempts(1).await;
    let second = cluster.agent(&[0], &[]).await;
    job.witness.beats().await;
    let watchdogs = cluster.watchdogs();
    assert_eq!((watchdogs.len(), cluster.guardians().len()), (1, 1));
    cluster.agents[first].freeze();
    let killed = now();
    kill(watchdogs[0], Signal::SIGKILL).unwrap();
    cluster.agents[first].kill();
    nothing_is_left_of(&cluster, first).await;
    assert!(job.witness.last_of(1) - killed < 2.0, "it lived for {} s", job.witness.last_of(1) - killed);
    job.witness.attempts(2).await;
    assert!(job.witness.first_of(2) - killed > 2.0, "the lease had not run out when it died");
    job.witness.beats().await;
    // The next agent finds what the guardian has left, which is of no interest any more.
    cluster.agents[first].start();
    let worker = cluster.agents[first].worker.clone();
    cluster.wait_worker(&worker, |row| row["state"] == "Ready").await;
    job.open_gate();
    job.ends(&cluster, "Succeeded", 2).await;
    assert_eq!(cluster.job(&job.id).await["worker_id"], cluster.agents[second].worker.as_str());
    nothing_is_left(&cluster).await;
}

#[tokio::test]
async fn what_agent_and_watchdog_left_together_is_free_when_the_agent_is_back() {
    let mut cluster = Cluster::one().await;
    let agent = cluster.agent(&[0], &[]).await;
    let job = Job::start(&cluster, "job", &["--lost-after", "10m"], 0).await;
    cluster.agents[agent].kill();
    for watchdog in cluster.watchdogs() {
        kill(watchdog, Signal::SIGKILL).unwrap();
    }
    cluster.agents[agent].start();
    job.witness.attempts(2).await;
    job.open_gate();
    job.ends(&cluster, "Succeeded", 2).await;
    nothing_is_left(&cluster).await;
}

#[tokio::test]
async fn an_outage_of_all_nodes_kills_no_job_and_loses_no_line_and_no_result() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[0, 1, 2], &[]).await;
    let lasting = Job::start(&cluster, "lasting", &["--lost-after", "45s"], 0).await;
    let ending = Job::start(&cluster, "ending", &["--lost-after", "45s"], 5).await;
    cluster.nodes.iter_mut().for_each(cluster_tests::Node::freeze);
    let begun = Instant::now();
    wait::until_true("half of the outage", SOON, || async { begun.elapsed() > Duration::from_secs(10) }).await;
    ending.open_gate();
    wait::until_true("all of it", SOON, || async { begun.elapsed() > Duration::from_secs(20) }).await;
    lasting.witness.beats().await;
    cluster.nodes.iter_mut().for_each(cluster_tests::Node::thaw);
    ending.ends(&cluster, "Failed", 1).await;
    assert_eq!(cluster.job(&ending.id).await["exit_code"], 5);
    lasting.witness.beats().await;
    lasting.open_gate();
    lasting.ends(&cluster, "Succeeded", 1).await;
    lasting.log_is_whole(&cluster).await;
    ending.log_is_whole(&cluster).await;
}

#[tokio::test]
async fn an_agent_that_reaches_only_a_node_without_a_majority_gives_its_job_up_in_time() {
    let mut cluster = Cluster::start(3).await;
    cluster.lead(0).await;
    let first = cluster.agent(&[2], &[]).await;
    let job = Job::start(&cluster, "job", &["--lost-after", "5s"], 0).await;
    cluster.agent(&[0], &[]).await;
    job.witness.beats().await;
    let cut = now();
    for node in [0, 1] {
        cluster.nodes[node].freeze();
    }
    wait::until_true("its tree is dead", SOON, || async { cluster.job_processes().is_empty() }).await;
    assert!(job.witness.last_of(1) - cut < LEASE + 0.5, "{} s", job.witness.last_of(1) - cut);
    for node in [0, 1] {
        cluster.nodes[node].thaw();
    }
    job.witness.attempts(2).await;
    job.open_gate();
    job.ends(&cluster, "Succeeded", 2).await;
    let worker = cluster.agents[first].worker.clone();
    cluster.wait_worker(&worker, |row| row["state"] == "Ready").await;
}

#[tokio::test]
async fn a_job_outlives_leaders_that_die_and_one_that_was_stopped_revives_nothing() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[0, 1, 2], &[]).await;
    let job = Job::start(&cluster, "job", &["--lost-after", "15s"], 0).await;
    // An outage that this lease is promised to outlast. Grants go out every few heartbeats' time: this leader dies just
    // after some.
    let dead = cluster.leader().await;
    cluster.nodes[dead].kill();
    let stopped = cluster.leader_other_than(Some(dead)).await;
    job.witness.beats().await;
    cluster.nodes[dead].restart().await;
    cluster.wait_healthy(3).await;
    // This one is stopped for longer than a lease with its margin, and wakes up as if it still led.
    cluster.nodes[stopped].freeze();
    let begun = now();
    wait::until_true("a lease has passed", SOON, || async { now() - begun > 15.0 + LATE }).await;
    cluster.nodes[stopped].thaw();
    cluster.wait_healthy(3).await;
    job.witness.beats().await;
    job.open_gate();
    job.ends(&cluster, "Succeeded", 1).await;
    job.log_is_whole(&cluster).await;
}

#[tokio::test]
async fn a_gateway_that_was_stopped_comes_back_to_nothing() {
    let mut cluster = Cluster::start(3).await;
    let agent = cluster.agent(&[0, 1, 2], &[]).await;
    let worker = cluster.agents[agent].worker.clone();
    let job = Job::start(&cluster, "job", &["--lost-after", "10s"], 0).await;
    let row = cluster.wait_worker(&worker, |row| !row["gateway"].is_null()).await;
    let status = cluster.wait_status(0).await;
    let gateway = cluster.index_of(&status, &row["gateway"]).unwrap();
    cluster.lead((gateway + 1) % 3).await;
    let row = cluster.wait_worker(&worker, |row| !row["gateway"].is_null()).await;
    let at = cluster.index_of(&status, &row["gateway"]).unwrap();
    assert_eq!(at, gateway);
    cluster.nodes[gateway].freeze();
    let moved = |new: &serde_json::Value| !new["gateway"].is_null() && new["gateway"] != row["gateway"];
    wait::until("the agent has another gateway", SOON, || async {
        let rows = cluster.cli_at((gateway + 1) % 3).run(&["worker", "list", "--output", "json"]).await;
        let rows: serde_json::Value = serde_json::from_slice(&rows.stdout).ok()?;
        rows.as_array()?.iter().find(|row| row["id"] == worker.as_str()).filter(|row| moved(row)).cloned()
    })
    .await;
    cluster.nodes[gateway].thaw();
    cluster.wait_healthy(3).await;
    // What it still had to say of the stream that it had is refused.
    job.witness.beats().await;
    let row = cluster.wait_worker(&worker, moved).await;
    assert_eq!(row["state"], "Busy");
    job.open_gate();
    job.ends(&cluster, "Succeeded", 1).await;
    job.log_is_whole(&cluster).await;
}

#[tokio::test]
async fn a_job_that_takes_more_memory_than_it_asked_for_ends_as_out_of_memory() {
    let mut cluster = Cluster::one().await;
    let agent = cluster.agent(&[0], &[]).await;
    let worker = cluster.agents[agent].worker.clone();
    let row = cluster.wait_worker(&worker, |_| true).await;
    if !row["labels"]["hodei.limits"].as_str().unwrap_or_default().contains("memory") {
        return eprintln!("skipped: memory cannot be bounded here");
    }
    let greedy = "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}";
    let job = cluster.submit(&["--memory", "32M", "--max-attempts", "1"], &["bash", "-c", greedy]).await;
    let end = cluster.wait_state(&job, "Failed").await;
    assert_eq!(end["reason"]["kind"], "out_of_memory", "{end}");
    // With enough of it the same job succeeds.
    let job = cluster.submit(&["--memory", "512M", "--cpu", "0.5"], &["bash", "-c", greedy]).await;
    cluster.wait_state(&job, "Succeeded").await;
    assert_eq!(cluster.cli().ok(&["job", "logs", &job]).await, "100000000");
    nothing_is_left(&cluster).await;
}

#[tokio::test]
async fn what_daemonised_itself_does_not_survive_its_job() {
    let mut cluster = Cluster::one().await;
    cluster.agent(&[0], &[]).await;
    let script = "(setsid setsid sleep 600 >/dev/null 2>&1 </dev/null & ) ; (sleep 600 &) ; exit 3";
    let job = cluster.submit(&["--max-attempts", "1"], &["bash", "-c", script]).await;
    let end = cluster.wait_state(&job, "Failed").await;
    assert_eq!(end["exit_code"], 3);
    // Gone before anybody heard of the end.
    assert!(cluster.job_processes().is_empty());
    nothing_is_left(&cluster).await;
}
