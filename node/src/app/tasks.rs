//! The tasks of a node: all of them end with one token, and one that ends by itself ends the node.

use std::{future::Future, panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt as _;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::cli::exit::Failure;

/// Owns the tasks.
pub struct Tasks {
    stop: CancellationToken,
    set: JoinSet<()>,
    failures: (mpsc::Sender<Failure>, tokio::sync::Mutex<mpsc::Receiver<Failure>>),
}

impl Tasks {
    /// No task yet; all of them are to end with `stop`.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        Self { stop, set: JoinSet::new(), failures: (sender, tokio::sync::Mutex::new(receiver)) }
    }

    /// A task that may fail.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = Result<(), String>> + Send + 'static) {
        let (stop, failures) = (self.stop.clone(), self.failures.0.clone());
        self.set.spawn(async move {
            // A panic is a failure like any other.
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            if stop.is_cancelled() {
                return;
            }
            let why = match ended {
                Ok(Ok(())) => "ended".to_owned(),
                Ok(Err(error)) => error,
                Err(_) => "panicked".to_owned(),
            };
            // One failure is enough to end the node.
            let _ = failures.try_send(Failure::other(format!("{name}: {why}")));
        });
    }

    /// A task that ends with the token only.
    pub fn run(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, async move {
            task.await;
            Ok(())
        });
    }

    /// Resolves when a task ended by itself.
    pub async fn failed(&self) -> Failure {
        match self.failures.1.lock().await.recv().await {
            Some(failure) => failure,
            // Never: this set holds a sender.
            None => std::future::pending().await,
        }
    }

    /// Waits for all tasks; what has not ended within `patience` is cut off.
    pub async fn end(self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut set = self.set;
        while let Ok(Some(_)) = timeout_at(until, set.join_next()).await {}
        if !set.is_empty() {
            tracing::info!(streams = set.len(), "cutting off what is still under way");
        }
        set.shutdown().await;
    }
}
