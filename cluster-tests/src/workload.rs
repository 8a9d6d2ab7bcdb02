//! Clients that keep a cluster busy while it suffers.
//!
//! [`Submitters`] is enough for a test that only asks whether jobs are lost. The clients of a whole
//! [run](crate::run) are in the modules, each a loop that records what it asks and is told.

pub mod events;
pub mod identities;
pub mod jobs;
pub mod late;
pub mod polls;
pub mod tokens;
pub mod witnessed;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hodei_proto::v1::QueueJobRequest;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{
    Client, Cluster, check,
    client::shell,
    history::{Get, History, Kind, Listed, Members, Note, Reply, Request, Run, Submit, Submitted},
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
        let requires = ["set", "order"].map(str::to_owned).to_vec();
        history.note(0, "", Note::Run(Run { scenario: "submissions".to_owned(), requires, ..Run::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..count).map(|i| {
            let node = i as usize % cluster.nodes.len();
            tokio::spawn(submit(i, node as u64, cluster.client(node), history.clone(), stop.clone()))
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

async fn submit(proc: u32, node: u64, client: Client, history: Arc<History>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let id = Uuid::now_v7().to_string();
        let asked = Submit { payload: "true".to_owned(), ..Submit::default() };
        let open = history.invoke(proc, node, &id, Request::Submit(asked));
        let message = QueueJobRequest { id, spec: Some(shell("true", &[])), idempotency_key: String::new() };
        let mut request = tonic::Request::new(message);
        request.set_timeout(DEADLINE);
        let answer = client.jobs().queue_job(request).await.map(tonic::Response::into_inner);
        open.answer(&answer, |done| {
            (Reply::Submit(Submitted { job: done.id.clone(), existing: done.existing }), done.position)
        });
        tokio::time::sleep(PAUSE).await;
    }
}

/// The process that looks at what is there in the end.
const AUDITOR: u32 = u32::MAX;

/// Has every running node list its jobs, and checks the history: each acknowledged job is there, once, and no refused one.
///
/// # Panics
/// If not; the history is then in the cluster's directory.
pub async fn check_submissions(cluster: &Cluster, history: &History) {
    let nodes: Vec<_> = cluster.running().into_iter().map(|node| node as u64).collect();
    history.note(AUDITOR, "", Note::Cluster(Members { nodes }));
    for node in cluster.running() {
        let open = history.invoke(AUDITOR, node as u64, "", Request::List(Get::default()));
        open.answer(&jobs::pages(&cluster.client(node)).await, |(jobs, position)| {
            (Reply::List(Listed { jobs: jobs.iter().map(|job| job.id.clone()).collect() }), *position)
        });
    }
    if let Err(reports) = check::require_valid(history.evidence()) {
        let file = cluster.dir().join("history.jsonl");
        history.write(&file).expect("the cluster's directory is writable");
        panic!("{reports}\n{}", file.display());
    }
}
