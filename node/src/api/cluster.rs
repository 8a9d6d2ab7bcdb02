//! `ClusterService`: enrolment, tokens, members, status.

mod enroll;
mod status;
mod tokens;

use std::{sync::Arc, time::Duration};

use hodei_proto::v1::{
    CreateTokenRequest, CreateTokenResponse, EnrollRequest, EnrollResponse, Identity, ListTokensRequest,
    ListTokensResponse, MembersRequest, MembersResponse, Position, RemoveRequest, RemoveResponse, ReplaceRequest,
    RevokeTokenRequest, RevokeTokenResponse, Role, StatusRequest, StatusResponse, TransferLeaderRequest,
    TransferLeaderResponse, cluster_service_server::ClusterService,
};
use hodei_raft::{Handle, View};
use hodei_state::{
    command::{Command, Envelope},
    ids::Caller,
    outcome::{Outcome, Refusal},
};
use tokio::{sync::Semaphore, time::Instant};
use tonic::{Request, Response, Status};

use crate::{
    error,
    peers::{Peers, hello::Myself},
    pki::{ca::Authority, credentials::Credentials},
    secrets::Vault,
    server::{auth, deadline},
};

/// Enrolments at once: they are open to everybody.
const ENROLMENTS: usize = 32;

/// Serves `ClusterService`.
#[derive(Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
}

struct Shared {
    myself: Arc<Myself>,
    handle: Handle,
    peers: Arc<Peers>,
    authority: Arc<Authority>,
    vault: Arc<Vault>,
    /// A member that was heard within this span is healthy.
    healthy: Duration,
    enrolments: Semaphore,
}

impl Cluster {
    /// `election` is the longest election time-out.
    #[must_use]
    pub fn new(
        myself: Arc<Myself>,
        handle: Handle,
        peers: Arc<Peers>,
        credentials: &Credentials,
        election: Duration,
    ) -> Self {
        let enrolments = Semaphore::new(ENROLMENTS);
        let (authority, vault) = (credentials.authority.clone(), credentials.vault.clone());
        let healthy = election * 2;
        Self { shared: Arc::new(Shared { myself, handle, peers, authority, vault, healthy, enrolments }) }
    }

    /// Whether this node can have jobs committed, as far as it knows.
    #[must_use]
    pub fn takes_jobs(&self) -> bool {
        self.shared.leader(&self.shared.handle.status()).is_some()
            && self.shared.handle.view().state.cluster().is_some()
    }
}

impl Shared {
    async fn read(&self, deadline: Instant) -> Result<View, Status> {
        self.handle.read(deadline).await.map_err(error::read)
    }

    /// Commits a command; a refusal is an error with the core's words.
    async fn commit(&self, caller: Caller, command: Command, by: Instant) -> Result<(Outcome, Position), Status> {
        let reply = self.handle.propose(Envelope { caller, command }, by).await.map_err(error::propose)?;
        match reply.outcome {
            // It speaks for whoever knocks, who need not know which node this is.
            Outcome::Refused(Refusal::CallerRevoked { caller: Caller::Node(node) }) if node == self.myself.node => {
                Err(error::unavailable("this node was removed from the cluster; ask another one"))
            }
            Outcome::Refused(refusal) => Err(error::refusal(&refusal)),
            outcome => Ok((outcome, position(reply.position))),
        }
    }
}

fn position(position: hodei_raft::Position) -> Position {
    Position { term: position.term, index: position.index }
}

/// A caller as it stands in messages.
pub fn identity(caller: Caller) -> Identity {
    let (role, id) = match caller {
        Caller::Node(id) => (Role::Node, id.to_string()),
        Caller::Agent(id) => (Role::Agent, id.to_string()),
        Caller::User(id) => (Role::User, id.to_string()),
        Caller::Admin(id) => (Role::Admin, id.to_string()),
    };
    Identity { role: role.into(), id }
}

#[tonic::async_trait]
impl ClusterService for Cluster {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let by = deadline::of(&request);
        self.shared.enroll(request.into_inner(), by).await.map(Response::new)
    }

    async fn replace(&self, request: Request<ReplaceRequest>) -> Result<Response<EnrollResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        self.shared.replace(caller, request.into_inner(), by).await.map(Response::new)
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.shared.status().await))
    }

    async fn members(&self, request: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        let by = deadline::of(&request);
        let view = if request.into_inner().stale { self.shared.handle.view() } else { self.shared.read(by).await? };
        self.shared.ask_again().await;
        let nodes = self.shared.nodes(&view.state);
        Ok(Response::new(MembersResponse { nodes, position: Some(position(view.position)) }))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<RemoveResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        self.shared.remove(caller, request.into_inner(), by).await.map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let by = deadline::of(&request);
        let to = Some(request.into_inner().to).filter(|&to| to != 0);
        self.shared.transfer_leader(to, by).await.map(Response::new)
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        self.shared.create_token(caller, request.into_inner(), by).await.map(Response::new)
    }

    async fn list_tokens(&self, request: Request<ListTokensRequest>) -> Result<Response<ListTokensResponse>, Status> {
        let by = deadline::of(&request);
        self.shared.list_tokens(by).await.map(Response::new)
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        self.shared.revoke_token(caller, &request.into_inner().id, by).await.map(Response::new)
    }
}
