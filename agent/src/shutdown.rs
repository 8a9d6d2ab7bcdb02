//! The end of the process: the first request drains, the second ends it at once.

use std::{future::Future, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::{attempt::Stop, roster::Roster};

/// The longest grace period of jobs that are handed back: whoever stops the agent waits for it.
pub const GRACE_AT_MOST: Duration = Duration::from_secs(30);
/// How long the results of jobs that were killed may take to be acknowledged.
const HAND_BACK_WITHIN: Duration = Duration::from_secs(5);

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything is done or handed back.
    Drained,
    /// Somebody could not wait.
    AtOnce,
}

/// Counts requests to end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown {
    requests: watch::Receiver<u32>,
}

impl Shutdown {
    /// And the means to request it.
    #[must_use]
    pub fn new() -> (watch::Sender<u32>, Self) {
        let (sender, requests) = watch::channel(0);
        (sender, Self { requests })
    }

    /// Waits until the process is asked to end.
    pub async fn requested(&self) {
        self.at_least(1).await;
    }

    /// Waits until the process is asked to end, and then until its jobs have ended and their results are acknowledged.
    /// Jobs that take longer than `patience` are terminated, killed after their grace period and handed back. `announced` tells the cluster of it first, within a
    /// time of its own, which counts too: until then jobs may be on their way, and none is declined that need not be.
    pub async fn drain(&self, roster: &Roster, patience: Duration, announced: impl Future<Output = ()>) -> Ending {
        self.at_least(1).await;
        tracing::info!("draining: no new jobs, running ones may finish");
        let drained = async {
            let begun = Instant::now();
            announced.await;
            roster.drain();
            hand_back(roster, patience.saturating_sub(begun.elapsed())).await;
        };
        tokio::select! {
            () = drained => Ending::Drained,
            () = self.at_least(2) => {
                tracing::warn!("asked again: ending at once");
                Ending::AtOnce
            }
        }
    }

    async fn at_least(&self, count: u32) {
        if self.requests.clone().wait_for(|requests| *requests >= count).await.is_err() {
            // Whoever could ask is gone.
            std::future::pending::<()>().await;
        }
    }
}

async fn hand_back(roster: &Roster, patience: Duration) {
    if timeout(patience, roster.empty()).await.is_ok() {
        return;
    }
    tracing::warn!("jobs still run: they get SIGTERM, their grace period and SIGKILL, and are handed back");
    roster.all().iter().for_each(|attempt| attempt.stop(Stop::HandBack { within: GRACE_AT_MOST }));
    if timeout(GRACE_AT_MOST + HAND_BACK_WITHIN, roster.empty()).await.is_err() {
        tracing::warn!("not everything was acknowledged; it stays on disk for the next start");
    }
}
