//! `LogStreamService`.

use hodei_proto::v1::{LogEvent, SubscribeLogsRequest, log_stream_service_server::LogStreamService};
use hodei_raft::Handle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::jobs::select;
use crate::{
    error,
    logs::{hub::Hub, subscribe},
    server::{auth, deadline},
};

/// Serves `LogStreamService`.
#[derive(Clone)]
pub struct Logs {
    handle: Handle,
    hub: Hub,
}

impl Logs {
    /// Over this state and log plane.
    #[must_use]
    pub fn new(handle: Handle, hub: Hub) -> Self {
        Self { handle, hub }
    }
}

#[tonic::async_trait]
impl LogStreamService for Logs {
    type SubscribeLogsStream = ReceiverStream<Result<LogEvent, Status>>;

    async fn subscribe_logs(
        &self,
        request: Request<SubscribeLogsRequest>,
    ) -> Result<Response<Self::SubscribeLogsStream>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        let request = request.into_inner();
        let view = self.handle.read(by).await.map_err(error::read)?;
        let job = select(&view.state, request.job.as_ref(), caller)?;
        Ok(Response::new(ReceiverStream::new(subscribe::serve(&self.hub, job, &request))))
    }
}
