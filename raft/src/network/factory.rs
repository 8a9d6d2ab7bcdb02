//! openraft's network, client side.

use std::{future::Future, time::Duration};

use futures::{FutureExt, Stream, stream::BoxStream};
use hodei_state::ids::NodeId;
use openraft::{
    OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    alias::{SnapshotOf, VoteOf},
    base::BoxFuture,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use tonic::Code;

use super::{
    append,
    peers::{CallError, Peers},
    transfer,
    wire::{TransferRequestV1, TransferResponseV1, VoteRequestV1, VoteResponseV1},
};
use crate::{machine::SnapshotFile, types::TypeConfig};

/// Makes a [`Network`] per peer.
pub(crate) struct Factory {
    peers: Peers,
    stall: Duration,
}

impl Factory {
    /// `stall`: how long a follower may owe an answer before the stream to it is given up.
    pub(crate) fn new(peers: Peers, stall: Duration) -> Self {
        Self { peers, stall }
    }
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Network;

    async fn new_client(&mut self, target: NodeId, _node: &()) -> Network {
        Network { peers: self.peers.clone(), target, stall: self.stall }
    }
}

/// The way to one peer. HTTP/2 multiplexes heartbeats, entries and snapshots over the one channel.
pub(crate) struct Network {
    peers: Peers,
    target: NodeId,
    stall: Duration,
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        use futures::StreamExt;
        let requests = futures::stream::iter([rpc]);
        let mut responses = self.stream_append(requests, option).await?;
        match responses.next().await {
            Some(result) => Ok(AppendEntriesResponse::from(result?)),
            None => Err(RPCError::Network(NetworkError::from_string("the follower did not answer"))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        // A follower acknowledges after its fsync, which may take longer than a heartbeat's time on a busy disk.
        let stall = self.stall.max(option.soft_ttl());
        async move { append::stream(&self.peers, self.target, input, stall).await }.boxed()
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (to, question) = (self.target, vote_request(&rpc));
        let answer = self
            .peers
            .call(to, option.soft_ttl(), &question, |mut client, request| async move { client.vote(request).await });
        answer.await.map(vote_response).map_err(rpc_error)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (to, question) = (self.target, vote_request(&rpc));
        let answer = self.peers.call(to, option.soft_ttl(), &question, |mut client, request| async move {
            client.pre_vote(request).await
        });
        answer.await.map(vote_response).map_err(rpc_error)
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sent = transfer::send(&self.peers, self.target, vote, snapshot, option.hard_ttl());
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sent => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let question = TransferRequestV1::Stand {
            from: (*req.from_leader()).into(),
            to: *req.to_node_id(),
            last: req.last_log_id().copied().map(Into::into),
        };
        let answer = self
            .peers
            .call(self.target, option.hard_ttl(), &question, |mut client, request| async move {
                client.transfer_leader(request).await
            })
            .await
            .map_err(rpc_error)?;
        match answer {
            TransferResponseV1::Accepted => Ok(Ok(())),
            TransferResponseV1::VoteChanged { expected, actual } => {
                Ok(Err(TransferLeaderError::VoteChanged { expected: expected.into(), actual: actual.into() }))
            }
            TransferResponseV1::LogNotFlushed { expected, actual } => Ok(Err(TransferLeaderError::LogNotFlushed {
                expected: expected.map(Into::into),
                actual: actual.map(Into::into),
            })),
            TransferResponseV1::NotLeader { .. } | TransferResponseV1::Refused(_) => {
                Err(RPCError::Network(NetworkError::from_string("an answer to another question")))
            }
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        // Short at first: after a peer's restart the cluster should be whole again within an election's time.
        let millis = [20, 50, 100, 200, 400].into_iter().chain(std::iter::repeat(500));
        Some(Backoff::new(millis.map(Duration::from_millis)))
    }
}

fn vote_request(rpc: &VoteRequest<TypeConfig>) -> VoteRequestV1 {
    VoteRequestV1 { vote: rpc.vote.into(), last: rpc.last_log_id.map(Into::into), transfer: rpc.leadership_transfer }
}

fn vote_response(answer: VoteResponseV1) -> VoteResponse<TypeConfig> {
    VoteResponse::new(openraft::Vote::from(answer.vote), answer.last.map(Into::into), answer.granted)
}

/// `Unreachable` makes openraft wait before it tries again, `Network` does not.
pub(super) fn rpc_error(error: CallError) -> RPCError<TypeConfig> {
    match error {
        CallError::NoAddress(_) | CallError::Timeout(_) => RPCError::Unreachable(Unreachable::from_string(error)),
        CallError::Status(status) if status.code() == Code::Unavailable => {
            RPCError::Unreachable(Unreachable::from_string(status))
        }
        CallError::Status(status) => RPCError::Network(NetworkError::from_string(status)),
        CallError::Decode(error) => RPCError::Network(NetworkError::new(&error)),
    }
}
