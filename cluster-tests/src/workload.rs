//! Clients that keep a cluster busy while it suffers.
//!
//! [`Submitters`] is enough for a test that only asks whether jobs are lost. The clients of a whole
//! [run](crate::run) are in the modules, each a loop that records what it asks and is told.

pub mod damaged;
pub mod events;
pub mod identities;
pub mod jobs;
pub mod keys;
pub mod late;
pub mod polls;
pub mod tokens;
pub mod waits;
pub mod witnessed;

use std::time::Duration;

use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{
    Cluster, check,
    client::shell,
    history::{Capacity, History, Kind, Members, Note, Run},
    run::field::{Field, Seat},
    wait,
};

/// Between two submissions of a client: a node that is down refuses at once, and nobody shall spin on it.
const PAUSE: Duration = Duration::from_millis(5);

/// Clients that submit jobs one after the other, and the history of what they were told.
#[derive(Debug)]
pub struct Submitters {
    field: Field,
    tasks: Vec<JoinHandle<()>>,
}

impl Submitters {
    /// `count` clients, spread over the nodes.
    #[must_use]
    pub fn start(cluster: &Cluster, count: usize) -> Self {
        let field = Field::new(0, cluster.admin(), cluster.dir().to_path_buf(), Capacity::default());
        let requires = ["set", "order"].map(str::to_owned).to_vec();
        let run = Run { scenario: "submissions".to_owned(), requires, ..Run::default() };
        field.history().note(0, "", Note::Run(run));
        let seats = (0..cluster.nodes.len()).map(|node| seat(cluster, node)).cycle();
        let tasks = seats.take(count).map(|seat| tokio::spawn(submit(field.clone(), seat))).collect();
        Self { field, tasks }
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
        self.history().keys("submit", Kind::Ok).len()
    }

    /// What was asked and answered.
    #[must_use]
    pub fn history(&self) -> &History {
        self.field.history()
    }

    /// Ends the clients after the answers that are still out.
    ///
    /// # Panics
    /// If a client panicked.
    pub async fn stop(self) -> Field {
        self.field.quieten();
        for task in self.tasks {
            task.await.expect("a client does not panic");
        }
        self.field
    }
}

/// A node by its number, where nobody cares for its id.
fn seat(cluster: &Cluster, node: usize) -> Seat {
    Seat { id: Some(node as u64), address: cluster.nodes[node].address, starts: 0 }
}

async fn submit(field: Field, seat: Seat) {
    let (proc, _) = field.process();
    while !field.is_quiet() {
        let id = Uuid::now_v7().to_string();
        let _ = jobs::queue(&field, proc, seat, &id, None, shell("true", &[]), ("true", None)).await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Has every running node list its jobs, and checks the history: each acknowledged job is there, once, and no refused one.
///
/// # Panics
/// If not; the history is then in the cluster's directory.
pub async fn check_submissions(cluster: &Cluster, field: &Field) {
    let (auditor, _) = field.process();
    let nodes: Vec<_> = cluster.running().into_iter().map(|node| node as u64).collect();
    field.history().note(auditor, "", Note::Cluster(Members { nodes }));
    for node in cluster.running() {
        let seat = seat(cluster, node);
        let lists = || async { jobs::list(field, auditor, seat).await.is_ok() };
        wait::until_true("a node lists its jobs", Duration::from_secs(30), lists).await;
    }
    if let Err(reports) = check::require_valid(field.history().evidence()) {
        let file = cluster.dir().join("history.jsonl");
        field.history().write(&file).expect("the cluster's directory is writable");
        panic!("{reports}\n{}", file.display());
    }
}
