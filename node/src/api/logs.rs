//! `LogStreamService`.

use hodei_proto::v1::{LogEvent, SubscribeLogsRequest, log_stream_service_server::LogStreamService};
use hodei_raft::Handle;
use hodei_state::{State, ids::JobId};
use tokio::time::Instant;
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
        // Who follows will ask another node: without a majority here, nothing is gained by waiting for longer than an election.
        let by = if request.follow { by.min(Instant::now() + subscribe::ALONE) } else { by };
        let view = self.handle.read(by).await.map_err(error::read)?;
        let job = select(&view.state, request.job.as_ref(), caller)?;
        exists(&view.state, job, &request)?;
        Ok(Response::new(ReceiverStream::new(subscribe::serve(&self.hub, job, &request))))
    }
}

/// Whether there is the attempt that is asked for. Who follows may ask for the next one, also of a job that has ended: so
/// they go on after the newest one's end.
fn exists(state: &State, job: JobId, request: &SubscribeLogsRequest) -> Result<(), Status> {
    let Some(row) = state.job(job) else { return Ok(()) };
    if request.attempt <= row.attempt + u32::from(request.follow) {
        return Ok(());
    }
    let newest = match row.attempt {
        0 => "it has not been started".to_owned(),
        newest => format!("its newest is {newest}"),
    };
    let message = format!("job {job} has no attempt {}: {newest}", request.attempt);
    Err(error::not_found(error::code::UNKNOWN_ATTEMPT, message))
}
