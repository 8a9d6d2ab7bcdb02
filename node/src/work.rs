//! The part of a node that has to do with jobs, put together: log plane, gateway, leader's loops, and their services.
//!
//! [`start`] builds it on a running replica; [`Work::shutdown`] ends it, before the replica is ended. The services are
//! mounted behind the authorisation table by whoever builds the server.

use std::{io, path::Path, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use hodei_proto::v1::{
    GetQueueStatusResponse, GetSchedulingDecisionRequest, GetSchedulingDecisionResponse, JobEnd, LivenessRequest,
    LivenessResponse, PullLogRequest, PullLogResponse, peer_service_client::PeerServiceClient,
};
use hodei_raft::{Dialer, Handle, Topic};
use hodei_state::{
    State,
    ids::{JobId, NodeId, WorkerId},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{
    api::{explain::Explainer, jobs, jobs::Jobs, logs::Logs, scheduler::Scheduler, workers::Workers},
    error,
    gateway::{
        Relay,
        session::{Gateway, SentAway},
    },
    leader::{self, door::Door},
    logs::{
        hub::{Hub, Ledger, Pulled, Upstream},
        pull,
    },
    secrets::Vault,
};

/// Between looks for logs of jobs that were removed.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
const SWEEP_READ: Duration = Duration::from_secs(10);
/// Streams that have not ended by then are cut off with their connection.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// See the module.
pub struct Work {
    /// `JobExecutionService`.
    pub jobs: Jobs,
    /// `LogStreamService`.
    pub logs: Logs,
    /// `SchedulerService`.
    pub scheduler: Scheduler,
    /// `WorkerAgentService`.
    pub workers: Workers,
    /// Parts of `PeerService`.
    pub peer: PeerParts,
    hub: Hub,
    stop: CancellationToken,
}

/// Starts everything below the directory `logs`, opening secrets with `vault`, until `stop` is cancelled. Needs a tokio runtime.
///
/// # Errors
/// The log directory cannot be made, or the system gives no thread.
pub fn start(
    handle: Handle,
    dialer: Arc<dyn Dialer>,
    logs: &Path,
    vault: Arc<Vault>,
    stop: CancellationToken,
) -> io::Result<Work> {
    let ledger = Arc::new(Replica { handle: handle.clone() });
    let upstream = Arc::new(Peers { dialer: dialer.clone() });
    let hub = Hub::start(handle.node_id(), logs, ledger, upstream, stop.clone())?;
    let door = Door::default();
    let (relay, relaying) = Relay::new(&handle, dialer.clone(), door.clone(), stop.clone());
    let explainer = Explainer::new(handle.clone(), door.clone(), dialer);
    hub.spawn(relaying);
    hub.spawn(leader::supervise(handle.clone(), door.clone(), stop.clone()));
    hub.spawn(sweep(handle.clone(), hub.clone(), stop.clone()));
    let gateway = Gateway { handle: handle.clone(), hub: hub.clone(), relay, vault, sent_away: SentAway::default() };
    Ok(Work {
        jobs: Jobs::new(handle.clone(), hub.clone()),
        logs: Logs::new(handle.clone(), hub.clone()),
        scheduler: Scheduler::new(handle, explainer.clone()),
        workers: Workers::new(gateway),
        peer: PeerParts { hub: hub.clone(), door, explainer },
        hub,
        stop,
    })
}

impl Work {
    /// Ends streams and loops, and waits for them for a moment.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        if timeout(SHUTDOWN, self.hub.stopped()).await.is_err() {
            tracing::warn!("some streams did not end in time");
        }
    }
}

/// What `PeerService` serves of this.
#[derive(Clone)]
pub struct PeerParts {
    hub: Hub,
    door: Door,
    explainer: Explainer,
}

impl PeerParts {
    /// `PeerService.Liveness`, called by the node `from`.
    ///
    /// # Errors
    /// This node does not lead.
    pub async fn liveness(
        &self,
        from: NodeId,
        requests: Streaming<LivenessRequest>,
    ) -> Result<mpsc::Receiver<Result<LivenessResponse, Status>>, Status> {
        self.door.serve(&self.hub, from, requests).await
    }

    /// `PeerService.Explain`.
    ///
    /// # Errors
    /// This node does not lead; an unknown job.
    pub async fn explain(
        &self,
        request: GetSchedulingDecisionRequest,
        by: Instant,
    ) -> Result<GetSchedulingDecisionResponse, Status> {
        self.explainer.answer_peer(request, by).await
    }

    /// `PeerService.QueueStatus`.
    ///
    /// # Errors
    /// This node does not lead.
    pub async fn queue_status(&self, by: Instant) -> Result<GetQueueStatusResponse, Status> {
        self.explainer.queue_for_peer(by).await
    }

    /// `PeerService.PullLog`.
    ///
    /// # Errors
    /// The request names no log.
    pub fn pull_log(
        &self,
        request: &PullLogRequest,
    ) -> Result<mpsc::Receiver<Result<PullLogResponse, Status>>, Status> {
        pull::serve(&self.hub, request)
    }
}

struct Replica {
    handle: Handle,
}

impl Ledger for Replica {
    fn state(&self) -> State {
        self.handle.view().state
    }

    fn watch_job(&self, job: JobId) -> watch::Receiver<u64> {
        self.handle.subscribe(Topic::Job(job))
    }

    fn watch_worker(&self, worker: WorkerId) -> watch::Receiver<u64> {
        self.handle.subscribe(Topic::Worker(worker))
    }

    fn reaches_majority(&self, by: Instant) -> BoxFuture<'_, bool> {
        self.handle.read(by).map(|read| read.is_ok()).boxed()
    }

    fn describe(&self, job: JobId) -> BoxFuture<'_, Option<JobEnd>> {
        jobs::job_end(&self.handle, job).boxed()
    }
}

struct Peers {
    dialer: Arc<dyn Dialer>,
}

impl Upstream for Peers {
    fn pull(&self, holder: NodeId, request: PullLogRequest) -> BoxFuture<'_, Result<Pulled, Status>> {
        async move {
            let unknown = || error::unavailable(format!("the address of node {holder} is not known"));
            let channel = self.dialer.channel(holder).ok_or_else(unknown)?;
            let answers = PeerServiceClient::new(channel)
                .max_decoding_message_size(hodei_raft::MAX_MESSAGE)
                .pull_log(request)
                .await?
                .into_inner();
            let answers = stream::unfold(Some(answers), |answers| async move {
                let mut answers = answers?;
                match answers.message().await {
                    Ok(Some(answer)) => Some((Ok(answer), Some(answers))),
                    Ok(None) => None,
                    Err(status) => Some((Err(status), None)),
                }
            });
            Ok(answers.boxed())
        }
        .boxed()
    }
}

/// Removes logs of removed jobs, now and then.
async fn sweep(handle: Handle, hub: Hub, stop: CancellationToken) {
    let mut every = interval(SWEEP_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    every.tick().await;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        // Linearizable: a replica that lags must not take a job that it has not heard of for one that was removed.
        let swept = match handle.read(Instant::now() + SWEEP_READ).await {
            Ok(view) => hub.sweep(view.state).await,
            Err(_) => continue,
        };
        if let Err(error) = swept {
            tracing::warn!(%error, "cannot remove the logs of removed jobs");
        }
    }
}

#[cfg(test)]
mod tests;
