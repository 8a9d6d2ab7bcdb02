//! Clients that keep a cluster busy while it suffers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{
    Client, Cluster,
    client::shell,
    history::{History, Kind, SetVerdict},
    wait,
};

/// How long one submission may take before its outcome counts as unknown.
const DEADLINE: Duration = Duration::from_secs(3);
/// Between two submissions of a client: a node that is down refuses at once, and nobody shall spin on it.
const PAUSE: Duration = Duration::from_millis(5);

/// Clients that submit jobs one after the other, and the history of what they were told.
#[derive(Debug)]
pub struct Submitters {
    /// What was asked and answered.
    pub history: Arc<History>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Submitters {
    /// `count` clients, spread over the nodes.
    #[must_use]
    pub fn start(cluster: &Cluster, count: u32) -> Self {
        let history = Arc::new(History::default());
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..count).map(|i| {
            let client = cluster.client(i as usize % cluster.nodes.len());
            tokio::spawn(submit(i, client, history.clone(), stop.clone()))
        });
        let tasks = tasks.collect();
        Self { history, stop, tasks }
    }

    /// Waits until `more` further submissions are acknowledged.
    pub async fn wait_for(&self, more: usize) {
        let before = self.acknowledged();
        wait::until_true("submissions are acknowledged", Duration::from_secs(30), || async {
            self.acknowledged() >= before + more
        })
        .await;
    }

    /// How many submissions are acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.history.keys("submit", Kind::Ok).len()
    }

    /// Ends the clients after the answers that are still out.
    ///
    /// # Panics
    /// If a client panicked.
    pub async fn stop(self) -> Arc<History> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a client does not panic");
        }
        self.history
    }
}

async fn submit(proc: u32, client: Client, history: Arc<History>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let id = Uuid::now_v7().to_string();
        history.add(proc, Kind::Invoke, "submit", &id, "");
        let answer = client.submit_as(&id, shell("true", &[]), DEADLINE).await;
        history.answer(proc, "submit", &id, &answer);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Checks on every running node that each acknowledged job is there, once, and no refused one is.
///
/// # Panics
/// If not; the history is then in the cluster's directory.
pub async fn check_submissions(cluster: &Cluster, history: &History) {
    for node in cluster.running() {
        let jobs = cluster.cli_at(node).json(&["job", "list", "--limit", "1000000"]).await;
        let jobs = jobs.as_array().expect("a list is an array");
        let held: std::collections::BTreeSet<_> =
            jobs.iter().filter_map(|job| job["id"].as_str()).map(str::to_owned).collect();
        assert_eq!(held.len(), jobs.len(), "node {node} lists a job twice");
        let verdict = SetVerdict::of(history, "submit", &held);
        if !verdict.is_valid() {
            let file = std::fs::File::create(cluster.dir().join("history.jsonl"));
            history.write(file.expect("the cluster's directory is writable")).expect("the history can be written");
        }
        assert!(verdict.is_valid(), "node {node}: {verdict:?}");
    }
}
