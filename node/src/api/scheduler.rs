//! `SchedulerService`: the queue in numbers, the workers.

use hodei_proto::v1::{
    GetAvailableWorkersRequest, GetAvailableWorkersResponse, GetQueueStatusRequest, GetQueueStatusResponse,
    scheduler_service_server::SchedulerService,
};
use hodei_raft::{Handle, View};
use hodei_state::registry::WorkerState;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::{convert::to_proto, error, server::deadline};

/// Serves `SchedulerService`.
#[derive(Clone)]
pub struct Scheduler {
    handle: Handle,
}

impl Scheduler {
    /// Over this state.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }

    async fn view(&self, stale: bool, by: Instant) -> Result<View, Status> {
        if stale { Ok(self.handle.view()) } else { self.handle.read(by).await.map_err(error::read) }
    }
}

#[tonic::async_trait]
impl SchedulerService for Scheduler {
    async fn get_queue_status(
        &self,
        request: Request<GetQueueStatusRequest>,
    ) -> Result<Response<GetQueueStatusResponse>, Status> {
        let by = deadline::of(&request);
        let View { state, position } = self.view(request.into_inner().stale, by).await?;
        let counts = state.counts();
        Ok(Response::new(GetQueueStatusResponse {
            pending: counts.pending,
            scheduled: counts.scheduled,
            running: counts.running,
            position: Some(to_proto::position(position.term, position.index)),
        }))
    }

    async fn get_available_workers(
        &self,
        request: Request<GetAvailableWorkersRequest>,
    ) -> Result<Response<GetAvailableWorkersResponse>, Status> {
        let by = deadline::of(&request);
        let View { state, position } = self.view(request.into_inner().stale, by).await?;
        let workers = state.workers().filter(|worker| worker.state != WorkerState::Terminated);
        Ok(Response::new(GetAvailableWorkersResponse {
            workers: workers.map(to_proto::worker).collect(),
            position: Some(to_proto::position(position.term, position.index)),
        }))
    }
}
