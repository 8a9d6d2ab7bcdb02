//! `WorkerAgentService`: sessions, and the stream over which a worker lives.

use futures::StreamExt as _;
use hodei_proto::v1::{
    NodeMessage, Position, RegisterRequest, RegisterResponse, UnregisterWorkerRequest, UnregisterWorkerResponse,
    UpdateWorkerStatusRequest, UpdateWorkerStatusResponse, WorkerMessage,
    worker_agent_service_server::WorkerAgentService,
};
use hodei_state::{
    command::{Command, Envelope},
    ids::{Caller, WorkerId},
    outcome::Outcome,
    registry::SessionRef,
};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    convert::{from_proto, to_proto},
    error,
    gateway::session::Gateway,
    server::{auth, deadline},
};

/// Serves `WorkerAgentService`.
#[derive(Clone)]
pub struct Workers {
    /// Serves the streams.
    pub gateway: Gateway,
}

impl Workers {
    /// Over this gateway.
    #[must_use]
    pub fn new(gateway: Gateway) -> Self {
        Self { gateway }
    }

    async fn commit(&self, caller: Caller, command: Command, by: Instant) -> Result<Position, Status> {
        let envelope = Envelope { caller, command };
        let reply = self.gateway.handle.propose(envelope, by).await.map_err(error::propose)?;
        match reply.outcome {
            Outcome::Refused(refusal) => Err(error::refusal(&refusal)),
            _ => Ok(to_proto::position(reply.position.term, reply.position.index)),
        }
    }
}

/// An agent speaks for its own worker only, whose id is in its certificate.
fn worker<T>(request: &Request<T>) -> Result<WorkerId, Status> {
    match auth::caller(request)? {
        Caller::Agent(worker) => Ok(worker),
        caller => Err(error::not_allowed(format!("{caller} is no agent"))),
    }
}

#[tonic::async_trait]
impl WorkerAgentService for Workers {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        let (worker, by) = (worker(&request)?, deadline::of(&request));
        let open = from_proto::session(request.into_inner(), worker)?;
        hodei_state::failpoint!("session::before-open");
        let position = self.commit(worker.into(), Command::OpenSession(Box::new(open)), by).await?;
        hodei_state::failpoint!("session::after-open");
        Ok(Response::new(RegisterResponse { worker_id: worker.to_string(), position: Some(position) }))
    }

    type WorkerStreamStream = ReceiverStream<Result<NodeMessage, Status>>;

    async fn worker_stream(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::WorkerStreamStream>, Status> {
        let worker = worker(&request)?;
        let messages = self.gateway.serve(worker, request.into_inner().boxed());
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn update_worker_status(
        &self,
        request: Request<UpdateWorkerStatusRequest>,
    ) -> Result<Response<UpdateWorkerStatusResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        let (worker, command) = from_proto::worker_status(request.into_inner(), caller)?;
        let position = self.commit(caller, command, by).await?;
        Ok(Response::new(UpdateWorkerStatusResponse { worker_id: worker.to_string(), position: Some(position) }))
    }

    async fn unregister_worker(
        &self,
        request: Request<UnregisterWorkerRequest>,
    ) -> Result<Response<UnregisterWorkerResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        let request = request.into_inner();
        let command = match caller {
            Caller::Agent(worker) => {
                let session = from_proto::id(&request.session_id, "session_id")?;
                Command::CloseSession { worker: SessionRef { worker, session } }
            }
            _ => {
                let worker = from_proto::id(&request.worker_id, "worker_id")?;
                Command::RemoveWorker { worker, force: request.force }
            }
        };
        let position = self.commit(caller, command, by).await?;
        Ok(Response::new(UnregisterWorkerResponse { position: Some(position) }))
    }
}
