//! The server side of `RaftService`.
//!
//! Every message names cluster, sender and receiver; what is not for this node of this cluster is refused. That the
//! sender is who it says is checked before, by the node's authorisation table.

use std::{pin::Pin, time::Duration};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hodei_proto::v1::{
    RaftMessage,
    raft_service_server::{RaftService, RaftServiceServer},
};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, TransferLeaderError, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use serde::Serialize;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::{
    peers::{MAX_MESSAGE, bare},
    receive,
    wire::{
        AppendRequestV1, AppendResponseV1, ForwardAnswerV1, ForwardRequestV1, ForwardResponseV1, ForwardedV1,
        NotDoneV1, ProbeRequestV1, ProbeResponseV1, ReadRequestV1, ReadResponseV1, TransferRequestV1,
        TransferResponseV1, VoteRequestV1, VoteResponseV1,
    },
};
use crate::{
    codec::{self, DecodeError},
    error::MembershipError,
    handle::{Handle, confirm_here},
    types::{TypeConfig, Vote},
};

/// A stream's first message has to come within this time.
const FIRST: Duration = Duration::from_secs(5);
/// Forwarded commands of one peer that are under way at once.
const FORWARDED: usize = 16 * 1024;
/// Answers in one message.
const ANSWERS: usize = 1024;
/// Nobody forwards a command for longer.
const LONGEST: Duration = Duration::from_secs(300);

type Messages = Pin<Box<dyn Stream<Item = Result<RaftMessage, Status>> + Send>>;

/// Mount it behind the authorisation table; see [`Handle::service`].
#[derive(Clone)]
pub struct Service {
    handle: Handle,
}

impl Service {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// With the limits that messages between nodes need.
    #[must_use]
    pub fn into_server(self) -> RaftServiceServer<Self> {
        RaftServiceServer::new(self).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
    }

    fn question<T: serde::de::DeserializeOwned>(&self, request: &Request<RaftMessage>) -> Result<T, Status> {
        self.handle.inner.peers.check(request.get_ref()).map_err(|status| *status)?;
        codec::decode(&request.get_ref().payload).map_err(|error| malformed(&error))
    }

    /// The first message of a stream, checked.
    async fn first(&self, stream: &mut Streaming<RaftMessage>) -> Result<RaftMessage, Status> {
        let first = tokio::time::timeout(FIRST, stream.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the stream says nothing"))??
            .ok_or_else(|| Status::invalid_argument("the stream is empty"))?;
        self.handle.inner.peers.check(&first).map_err(|status| *status)?;
        Ok(first)
    }
}

#[tonic::async_trait]
impl RaftService for Service {
    type AppendStream = Messages;
    type ForwardStream = Messages;

    async fn append(&self, request: Request<Streaming<RaftMessage>>) -> Result<Response<Messages>, Status> {
        let mut stream = request.into_inner();
        let first = append_request(&self.first(&mut stream).await?).map_err(|error| malformed(&error))?;
        let rest =
            futures::stream::unfold(
                stream,
                |mut stream| async move { Some((next_append(&mut stream).await?, stream)) },
            );
        let quorum = self.handle.inner.quorum.clone();
        let requests = futures::stream::once(async { first }).chain(rest).inspect(move |_| quorum.heard());
        let results = self.handle.inner.raft.stream_append(requests).map(|result| match result {
            Ok(Ok(matched)) => {
                hodei_state::failpoint!("replicate::before-answer");
                Ok(answer(&AppendResponseV1::Matched(matched.map(Into::into))))
            }
            Ok(Err(StreamAppendError::Conflict(id))) => Ok(answer(&AppendResponseV1::Conflict(id.into()))),
            Ok(Err(StreamAppendError::HigherVote(vote))) => Ok(answer(&AppendResponseV1::HigherVote(vote.into()))),
            Err(_) => Err(stopping()),
        });
        Ok(Response::new(results.boxed()))
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let question = self.question(&request)?;
        let response = self.handle.inner.raft.vote(vote_request(question)).await.map_err(|_| stopping())?;
        hodei_state::failpoint!("vote::before-answer");
        Ok(Response::new(answer(&vote_response(&response))))
    }

    async fn pre_vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let question = self.question(&request)?;
        let response = self.handle.inner.raft.pre_vote(vote_request(question)).await.map_err(|_| stopping())?;
        Ok(Response::new(answer(&vote_response(&response))))
    }

    async fn transfer_leader(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let response = match self.question(&request)? {
            TransferRequestV1::Stand { from, to, last } => {
                let request = TransferLeaderRequest::new(Vote::from(from), to, last.map(Into::into));
                let handled = self.handle.inner.raft.handle_transfer_leader(request).await;
                match handled.map_err(|_| stopping())? {
                    Ok(()) => TransferResponseV1::Accepted,
                    Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                        TransferResponseV1::VoteChanged { expected: expected.into(), actual: actual.into() }
                    }
                    Err(TransferLeaderError::LogNotFlushed { expected, actual }) => TransferResponseV1::LogNotFlushed {
                        expected: expected.map(Into::into),
                        actual: actual.map(Into::into),
                    },
                }
            }
            TransferRequestV1::HandOver { to } => match self.handle.hand_over(to).await {
                Ok(()) => TransferResponseV1::Accepted,
                Err(MembershipError::NotLeader { leader }) => TransferResponseV1::NotLeader { leader },
                Err(error) => TransferResponseV1::Refused(error.to_string()),
            },
        };
        Ok(Response::new(answer(&response)))
    }

    async fn snapshot(&self, request: Request<Streaming<RaftMessage>>) -> Result<Response<RaftMessage>, Status> {
        let mut stream = request.into_inner();
        let first = self.first(&mut stream).await?;
        let response = receive::snapshot(&self.handle, &first, stream).await?;
        Ok(Response::new(answer(&response)))
    }

    async fn snapshot_offset(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let response = receive::offset(&self.handle, self.question(&request)?).await?;
        Ok(Response::new(answer(&response)))
    }

    async fn forward(&self, request: Request<Streaming<RaftMessage>>) -> Result<Response<Messages>, Status> {
        let mut stream = request.into_inner();
        let first = self.first(&mut stream).await?;
        let mut forwarding =
            Forwarding { handle: self.handle.clone(), stream: Some(stream), under_way: FuturesUnordered::new() };
        forwarding.take(&first)?;
        let answers = futures::stream::unfold(forwarding, |mut forwarding| async move {
            let answers = forwarding.next().await?;
            Some((Ok(answers), forwarding))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn read_index(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let ReadRequestV1 = self.question(&request)?;
        let patience = self.handle.inner.config.timing.patience();
        let response = match confirm_here(&self.handle.inner.raft, patience).await {
            Ok(position) => ReadResponseV1::Index(codec::LogIdV1 { term: position.term, index: position.index }),
            Err(why) => ReadResponseV1::NotConfirmed(why),
        };
        Ok(Response::new(answer(&response)))
    }

    async fn probe(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let ProbeRequestV1 { hashes_from } = self.question(&request)?;
        let replica = &self.handle.inner.replica;
        let hashes = replica.hashes().into_iter().filter(|(index, _)| *index >= hashes_from).collect();
        let response = ProbeResponseV1 {
            wall_clock: self.handle.inner.config.clock.wall().0,
            applied: replica.with(|held| held.applied).map(Into::into),
            feature_level: self.handle.feature_level(),
            hashes,
        };
        Ok(Response::new(answer(&response)))
    }
}

/// The commands of one follower, and their answers as they come.
struct Forwarding {
    handle: Handle,
    /// None once the follower has sent its last.
    stream: Option<Streaming<RaftMessage>>,
    under_way: FuturesUnordered<BoxFuture<'static, (u64, ForwardAnswerV1)>>,
}

impl Forwarding {
    fn take(&mut self, message: &RaftMessage) -> Result<(), Status> {
        let request: ForwardRequestV1 = codec::decode(&message.payload).map_err(|error| malformed(&error))?;
        for forwarded in request.commands {
            self.under_way.push(carry_out(self.handle.clone(), forwarded));
        }
        Ok(())
    }

    /// The answers that are ready, at least one. None: the follower has gone, or all is answered after its last.
    async fn next(&mut self) -> Option<RaftMessage> {
        loop {
            let room = self.under_way.len() < FORWARDED;
            let stream = self.stream.as_mut();
            let message = async {
                match stream {
                    Some(stream) => stream.message().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(ready) = self.under_way.next(), if !self.under_way.is_empty() => {
                    let mut answers = vec![ready];
                    while answers.len() < ANSWERS && let Some(Some(ready)) = self.under_way.next().now_or_never() {
                        answers.push(ready);
                    }
                    hodei_state::failpoint!("forward::before-answer");
                    return Some(answer(&ForwardResponseV1 { answers }));
                }
                message = message, if room => match message {
                    Ok(Some(message)) if self.take(&message).is_ok() => {}
                    Ok(Some(_)) | Err(_) => return None,
                    Ok(None) => self.stream = None,
                },
            }
            if self.stream.is_none() && self.under_way.is_empty() {
                return None;
            }
        }
    }
}

fn carry_out(handle: Handle, forwarded: ForwardedV1) -> BoxFuture<'static, (u64, ForwardAnswerV1)> {
    let ForwardedV1 { id, timeout_ms, command } = forwarded;
    // What this binary cannot read must not get into the log: a follower may be newer.
    if let Err(error) = codec::decode_command(&command) {
        let refusal = ForwardAnswerV1::NotDone(NotDoneV1::Malformed(error.to_string()));
        return futures::future::ready((id, refusal)).boxed();
    }
    let deadline = Instant::now() + Duration::from_millis(timeout_ms).min(LONGEST);
    async move { (id, handle.submit_forwarded(command, deadline).await.into()) }.boxed()
}

/// The next request; none at the end of the stream, however it ends.
async fn next_append(stream: &mut Streaming<RaftMessage>) -> Option<AppendEntriesRequest<TypeConfig>> {
    let message = match stream.message().await {
        Ok(message) => message?,
        Err(status) => {
            tracing::debug!(%status, "an append stream ended");
            return None;
        }
    };
    append_request(&message).inspect_err(|error| tracing::warn!(%error, "an append message cannot be read")).ok()
}

fn append_request(message: &RaftMessage) -> Result<AppendEntriesRequest<TypeConfig>, DecodeError> {
    let AppendRequestV1 { vote, prev, entries, commit } = codec::decode(&message.payload)?;
    let entries = entries.into_iter().map(codec::EntryV1::into_entry).collect::<Result<_, _>>()?;
    Ok(AppendEntriesRequest {
        vote: vote.into(),
        prev_log_id: prev.map(Into::into),
        entries,
        leader_commit: commit.map(Into::into),
    })
}

fn vote_request(request: VoteRequestV1) -> VoteRequest<TypeConfig> {
    let mut vote = VoteRequest::new(request.vote.into(), request.last.map(Into::into));
    vote.leadership_transfer = request.transfer;
    vote
}

fn vote_response(response: &VoteResponse<TypeConfig>) -> VoteResponseV1 {
    VoteResponseV1 {
        vote: response.vote.into(),
        granted: response.vote_granted,
        last: response.last_log_id.map(Into::into),
    }
}

fn answer<T: Serialize>(content: &T) -> RaftMessage {
    bare(codec::encode(content).into())
}

fn malformed(error: &DecodeError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopping() -> Status {
    Status::unavailable("the node is stopping")
}
