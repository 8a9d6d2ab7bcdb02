//! A gateway that is cut off from the majority together with its agent, as when a rack loses its uplink: each host is a
//! network namespace, and the links between them are cut.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use cluster_tests::{
    Cluster, Witness,
    netns::{Net, permitted},
    wait,
    witness::{check_lines, now},
};

/// The shortest lease.
const LEASE: Duration = Duration::from_secs(5);
/// One that nothing here outlasts, however slow the machine is.
const LONG_LEASE: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(60);

/// A job of which each attempt goes on until a file of its own appears.
struct Job {
    id: String,
    witness: Witness,
    gate: PathBuf,
}

impl Job {
    async fn start(cluster: &Cluster, name: &str, lease: Duration) -> Self {
        let witness = Witness::new(cluster.dir(), name);
        let gate = cluster.dir().join(format!("{name}.gate"));
        let script = witness.script(&format!("[ ! -e {}.$HODEI_ATTEMPT ]", gate.display()), 0);
        let id = cluster.submit(&["--lost-after", &format!("{}s", lease.as_secs())], &["bash", "-c", &script]).await;
        let job = Self { id, witness, gate };
        job.witness.attempts(1).await;
        job
    }

    fn open_gate(&self, attempt: u32) {
        fs::write(self.gate.with_extension(format!("gate.{attempt}")), "").expect("the directory can be written to");
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// `leads`: the gateway that is cut off is also the leader.
async fn cut_off_together(leads: bool) {
    let mut net = Net::new();
    let [near, other, far, beyond] = [net.host(), net.host(), net.host(), net.host()];
    // The agent has no other way than through this gateway.
    net.part(&[&beyond], &[&near, &other]);
    let mut cluster = Cluster::start_at(&[near.clone(), other.clone(), far.clone()]).await;
    cluster.lead(if leads { 2 } else { 0 }).await;
    let first = cluster.agent_at(Some(&beyond), &[2], &["--capacity", "2"]).await;
    let lasting = Job::start(&cluster, "lasting", LEASE).await;
    let ending = Job::start(&cluster, "ending", LEASE).await;
    let second = cluster.agent_at(Some(&near), &[0, 1], &["--capacity", "2"]).await;
    let [first, second] = [first, second].map(|agent| cluster.agents[agent].worker.clone());
    lasting.witness.beats().await;

    let cut = now();
    net.part(&[&far], &[&near, &other]);
    // One ends by itself, and its agent has nobody to tell who could note it.
    ending.witness.beats().await;
    ending.open_gate(1);
    wait::until_true("it ends", SOON, || async { ending.witness.marks().iter().any(|mark| mark.what == "END") }).await;
    assert!(
        ending.witness.last_of(1) - cut < LEASE.as_secs_f64(),
        "this machine is too slow to tell the two ends apart"
    );
    // The other one is ended at its lease, although agent and gateway have each other: nothing extends it.
    wait::until_true("the tree is dead", SOON, || async { cluster.job_processes_of(0).is_empty() }).await;
    let lived = lasting.witness.last_of(1) - cut;
    assert!(lived < LEASE.as_secs_f64() + 0.5, "it lived for {lived} s");
    let asked = cluster.cli_at(2).request_timeout(Duration::from_secs(3)).run(&["job", "get", &lasting.id]).await;
    assert!(asked.expect(69).stderr.contains("no quorum"));

    // The majority runs both again elsewhere, and not before.
    for job in [&lasting, &ending] {
        job.witness.attempts(2).await;
        let row = cluster.cli_at(0).json(&["job", "get", &job.id]).await;
        assert_eq!(row["worker_id"], second.as_str(), "{row}");
        assert_eq!(row["attempts"][0]["ended_by"], "expiry", "{row}");
    }

    net.join(&[&far], &[&near, &other]);
    cluster.wait_healthy(3).await;
    // The agent is back at its old gateway, and what it has to say of its attempts comes too late.
    let back = cluster.wait_worker(&first, |row| row["state"] == "Ready" && !row["gateway"].is_null()).await;
    assert_eq!(back["gateway"], cluster.id_of(2).await, "{back}");
    let attempts = cluster.agents[0].data.join("attempts");
    wait::until_true("the first agent has nothing more to say", SOON, || async { is_empty(&attempts) }).await;
    for job in [&lasting, &ending] {
        let row = cluster.job(&job.id).await;
        assert_eq!((&row["state"], &row["attempt"]), (&"Running".into(), &2.into()), "{row}");
        job.witness.beats().await;
        job.open_gate(2);
        let row = cluster.wait_state(&job.id, "Succeeded").await;
        assert_eq!((&row["attempt"], &row["worker_id"]), (&2.into(), &second.as_str().into()), "{row}");
        assert_eq!(row["attempts"][0]["ended_by"], "expiry", "{row}");
        job.witness.check();
        assert_eq!(job.witness.starts(), 2);
        for node in cluster.running() {
            check_lines(&cluster.cli_at(node).run(&["job", "logs", &job.id]).await.expect(0).stdout);
        }
    }
}

#[tokio::test]
async fn a_gateway_cut_off_with_its_agent_extends_nothing_and_revives_nothing() {
    if permitted() {
        cut_off_together(false).await;
    }
}

#[tokio::test]
async fn nor_does_one_that_led() {
    if permitted() {
        cut_off_together(true).await;
    }
}

/// A reader's node, the last one, is cut off from the gateway and perhaps from the other one, but not from the reader: the log
/// goes on elsewhere, and so does the reader, within so many seconds.
async fn read_at_one_cut_off(leader: usize, is_alone: bool, within: f64) {
    let mut net = Net::new();
    let [near, other, far] = [net.host(), net.host(), net.host()];
    let mut cluster = Cluster::start_at(&[near.clone(), other.clone(), far.clone()]).await;
    cluster.lead(leader).await;
    cluster.agent_at(Some(&near), &[0], &[]).await;
    let job = Job::start(&cluster, "read", LONG_LEASE).await;
    let servers = [2, 1].map(|node| cluster.nodes[node].address.to_string());
    let mut reader = cluster.cli().at(servers).spawn("reader", &["job", "logs", "-f", &job.id]);
    wait::until_true("it reads", SOON, || async { !reader.stdout().is_empty() }).await;

    net.part(&[&far], &[&near, &other][..if is_alone { 2 } else { 1 }]);
    let cut = now();
    job.witness.beats().await;
    // Whatever was on its way when they were cut apart is there by then.
    wait::until_true("another node is read", SOON, || async { reader.stderr_text().contains("trying again") }).await;
    let there = reader.stdout().len();
    wait::until_true("the log goes on", SOON, || async { reader.stdout().len() > there }).await;
    let after = now() - cut;
    assert!(after < within, "the reader went on after {after} s");
    job.open_gate(1);
    assert!(reader.exit(SOON).await.success());
    check_lines(&reader.stdout());
}

#[tokio::test]
async fn a_reader_at_a_node_that_is_cut_off_goes_on_at_another_one() {
    if permitted() {
        read_at_one_cut_off(0, true, 10.0).await;
    }
}

#[tokio::test]
async fn so_does_one_at_a_leader_that_is_cut_off() {
    if permitted() {
        read_at_one_cut_off(2, true, 10.0).await;
    }
}

/// The gateway is not dead, so that its agent stays.
#[tokio::test]
async fn so_does_one_at_a_node_of_the_majority_that_cannot_reach_the_gateway() {
    if permitted() {
        read_at_one_cut_off(1, false, 30.0).await;
    }
}
