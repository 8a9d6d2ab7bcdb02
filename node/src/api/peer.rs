//! `PeerService`: what nodes say to each other beside Raft.

use std::{collections::BTreeMap, sync::Arc};

use hodei_proto::v1::{
    GetQueueStatusRequest, GetQueueStatusResponse, GetSchedulingDecisionRequest, GetSchedulingDecisionResponse,
    HelloRequest, HelloResponse, LivenessRequest, LivenessResponse, PullLogRequest, PullLogResponse,
    peer_service_server::PeerService,
};
use hodei_raft::Handle;
use hodei_state::{command::NodeHello, ids::Caller};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    error,
    peers::{
        Peers,
        hello::{self, Inbox, Myself},
    },
    server::{auth, deadline},
    work::PeerParts,
};

/// Serves `PeerService`.
#[derive(Clone)]
pub struct Peer {
    myself: Arc<Myself>,
    handle: Handle,
    peers: Arc<Peers>,
    inbox: Inbox,
    work: PeerParts,
}

#[tonic::async_trait]
impl PeerService for Peer {
    type LivenessStream = ReceiverStream<Result<LivenessResponse, Status>>;
    type PullLogStream = ReceiverStream<Result<PullLogResponse, Status>>;

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        let caller = auth::caller(&request)?;
        self.answer(caller, request.into_inner()).map(Response::new)
    }

    async fn liveness(
        &self,
        request: Request<Streaming<LivenessRequest>>,
    ) -> Result<Response<Self::LivenessStream>, Status> {
        let Caller::Node(from) = auth::caller(&request)? else { return Err(error::not_allowed("nodes only")) };
        let answers = self.work.liveness(from, request.into_inner()).await?;
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn explain(
        &self,
        request: Request<GetSchedulingDecisionRequest>,
    ) -> Result<Response<GetSchedulingDecisionResponse>, Status> {
        let by = deadline::of(&request);
        self.work.explain(request.into_inner(), by).await.map(Response::new)
    }

    async fn queue_status(
        &self,
        request: Request<GetQueueStatusRequest>,
    ) -> Result<Response<GetQueueStatusResponse>, Status> {
        self.work.queue_status(deadline::of(&request)).await.map(Response::new)
    }

    async fn pull_log(&self, request: Request<PullLogRequest>) -> Result<Response<Self::PullLogStream>, Status> {
        let answers = self.work.pull_log(request.get_ref())?;
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

impl Peer {
    /// `inbox` takes what the state should know; `work` serves what has to do with jobs.
    #[must_use]
    pub fn new(myself: Arc<Myself>, handle: Handle, peers: Arc<Peers>, inbox: Inbox, work: PeerParts) -> Self {
        Self { myself, handle, peers, inbox, work }
    }

    /// Notes where a member is, and says where all of them are.
    /// Refuses one of another cluster or in another's name.
    fn answer(&self, caller: Caller, hello: HelloRequest) -> Result<HelloResponse, Status> {
        if hello.cluster_id != self.myself.cluster.to_string() {
            return Err(error::failed_precondition(format!("this node belongs to cluster {}", self.myself.cluster)));
        }
        if caller != Caller::Node(hello.node_id) {
            return Err(error::not_allowed(format!("{caller} speaks for node {}", hello.node_id)));
        }
        self.peers.learn(hello.node_id, &hello.address, hello.start_counter);
        self.peers.saw(hello.node_id, hello.applied_index, &hello.version);
        let view = self.handle.view();
        let hello = NodeHello {
            node: hello.node_id,
            address: hello.address,
            start_counter: hello.start_counter,
            version: hello.version,
            feature_level: hello.feature_level,
        };
        if hello::is_news(&view.state, &hello) {
            // No room: the next Hello brings it again.
            let _ = self.inbox.try_send(hello);
        }
        let status = self.handle.status();
        let (members, start_counters) = self.members();
        Ok(HelloResponse {
            members,
            node_id: self.myself.node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            applied_index: view.position.index,
            term: status.term,
            leader: status.leader,
            start_counters,
        })
    }

    fn members(&self) -> (BTreeMap<u64, String>, BTreeMap<u64, u64>) {
        let myself = &self.myself;
        let mut members = BTreeMap::from([(myself.node, myself.address.clone())]);
        let mut counters = BTreeMap::from([(myself.node, myself.start_counter)]);
        for (node, address, counter) in self.peers.book().borrow().entries() {
            members.insert(node, address.to_owned());
            counters.insert(node, counter);
        }
        (members, counters)
    }
}
