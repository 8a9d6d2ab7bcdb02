//! Log entries and heartbeats to one follower, pipelined over one bidirectional call.
//!
//! openraft gives a stream of requests and takes a stream of results in the same order. The request stream belongs to
//! the returned result stream, which pumps it into the call: dropping the result stream drops the request stream with
//! it, at once. That matters, because the request stream holds a lock that the next session needs; left inside the HTTP/2
//! connection's task it would be dropped only when that task notices.
//!
//! openraft takes an answer for one to every request that ends where it matches, or before, and takes the time at which the
//! newest of them was sent for one at which the follower still followed. A request without entries, which tells a commit
//! index, ends where the one before it does: told the answer to that one, openraft would believe that this one was answered,
//! too, and a leader that had stood still while another one was elected would confirm itself, to those who read from it, by
//! what it was answered before. So an answer is kept back where it could be taken for a later one's, which stands for it.
//!
//! Where the log has been purged under a session, openraft goes on asking for what is gone, and the log store has nothing
//! for it. Such a session ends with an error, after which openraft looks again at what the follower needs: a snapshot.

use std::{collections::VecDeque, pin::Pin, time::Duration};

use futures::{Stream, StreamExt, future, stream::BoxStream};
use hodei_proto::v1::RaftMessage;
use hodei_state::ids::NodeId;
use openraft::{
    errors::{NetworkError, RPCError, Unreachable},
    raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    peers::{Peers, bare},
    wire::{AppendRequestV1, AppendResponseV1},
};
use crate::{
    codec,
    types::{LogId, TypeConfig},
};

/// Encoded requests that wait for the connection to take them.
const OUTGOING: usize = 16;
/// Requests sent and not yet answered; the follower takes about as many at a time.
const UNANSWERED: usize = 128;

type Requests = Pin<Box<dyn Stream<Item = AppendEntriesRequest<TypeConfig>> + Send>>;
type Item = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// Opens the call and returns the results. `stall`: a follower that owes an answer for so long is given up.
pub(super) async fn stream<S>(
    peers: &Peers,
    to: NodeId,
    mut requests: S,
    stall: Duration,
) -> Result<BoxStream<'static, Item>, RPCError<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    let Some(first) = requests.next().await else { return Ok(futures::stream::empty().boxed()) };
    let mut client = peers.client(to).map_err(|error| unreachable(&error))?;
    let (outgoing, body) = mpsc::channel::<RaftMessage>(OUTGOING);
    let mut told = Told::default();
    told.is_news(&first);
    let owed = VecDeque::from([Owed::to(&first)]);
    let first = peers.envelope(to, encode(first));
    outgoing.try_send(first).expect("the channel is new");
    let call = tokio::time::timeout(stall, client.append(ReceiverStream::new(body))).await;
    let responses = match call {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Err(RPCError::Unreachable(Unreachable::new(&status))),
        Err(_) => {
            return Err(RPCError::Unreachable(Unreachable::from_string(format!("no connection within {stall:?}"))));
        }
    };
    let session =
        Session { requests: Some(Box::pin(requests)), outgoing: Some(outgoing), responses, owed, told, stall };
    Ok(futures::stream::unfold(Some(session), |session| async move {
        let mut session = session?;
        let item = session.next().await?;
        let go_on = matches!(item, Ok(Ok(_)));
        Some((item, go_on.then_some(session)))
    })
    .boxed())
}

struct Session {
    /// None once exhausted.
    requests: Option<Requests>,
    /// None once the request stream has ended: tells the follower.
    outgoing: Option<mpsc::Sender<RaftMessage>>,
    responses: Streaming<RaftMessage>,
    /// What the follower has not answered, oldest first.
    owed: VecDeque<Owed>,
    /// By the last request.
    told: Told,
    stall: Duration,
}

/// An answer that has not come.
struct Owed {
    /// When the request was sent, or the answer before came: the follower made progress.
    since: Instant,
    /// Where the follower's log matches if it takes the request.
    last: Option<LogId>,
}

/// What an answer is to openraft.
enum Answer {
    Result(Item),
    /// The next one stands for it.
    KeptBack,
    /// There are no more.
    End,
}

impl Session {
    /// Pumps requests until a result is there. None: all are answered, or the follower ended the stream.
    async fn next(&mut self) -> Option<Item> {
        loop {
            let deadline = self.owed.front().map(|owed| owed.since + self.stall);
            let stalled = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => future::pending().await,
                }
            };
            let may_send = self.owed.len() < UNANSWERED;
            let (requests, outgoing) = (&mut self.requests, &self.outgoing);
            tokio::select! {
                response = self.responses.message() => match self.received(response) {
                    Answer::Result(item) => return Some(item),
                    Answer::KeptBack => {}
                    Answer::End => return None,
                },
                request = next_request(requests, outgoing.as_ref()), if may_send => {
                    if let Err(error) = self.send(request) {
                        return Some(Err(error));
                    }
                }
                () = stalled => {
                    let text = format!("the follower owes an answer for {:?}", self.stall);
                    return Some(Err(RPCError::Network(NetworkError::from_string(text))));
                }
            }
            if self.requests.is_none() && self.owed.is_empty() {
                return None;
            }
        }
    }

    fn send(
        &mut self,
        request: Option<(mpsc::OwnedPermit<RaftMessage>, AppendEntriesRequest<TypeConfig>)>,
    ) -> Result<(), RPCError<TypeConfig>> {
        match request {
            Some((permit, request)) => {
                if !self.told.is_news(&request) {
                    return Err(RPCError::Network(NetworkError::from_string("the entries to send are purged")));
                }
                hodei_state::failpoint!("replicate::before-send");
                self.owed.push_back(Owed::to(&request));
                permit.send(bare(encode(request)));
            }
            None => (self.requests, self.outgoing) = (None, None),
        }
        Ok(())
    }

    fn received(&mut self, response: Result<Option<RaftMessage>, tonic::Status>) -> Answer {
        let failed = |error| Answer::Result(Err(RPCError::Network(error)));
        let message = match response {
            Ok(Some(message)) => message,
            Ok(None) if self.owed.is_empty() => return Answer::End,
            Ok(None) => {
                return failed(NetworkError::from_string("the follower ended the stream before it had answered"));
            }
            Err(status) => return failed(NetworkError::new(&status)),
        };
        self.owed.pop_front();
        if let Some(oldest) = self.owed.front_mut() {
            oldest.since = Instant::now();
        }
        let result = match codec::decode::<AppendResponseV1>(&message.payload) {
            Ok(AppendResponseV1::Matched(id)) => Ok(id.map(Into::into)),
            Ok(AppendResponseV1::Conflict(id)) => Err(StreamAppendError::Conflict(id.into())),
            Ok(AppendResponseV1::HigherVote(vote)) => Err(StreamAppendError::HigherVote(vote.into())),
            Err(error) => return failed(NetworkError::new(&error)),
        };
        match &result {
            Ok(matched) if self.owed.front().is_some_and(|next| next.is_taken_for_answered(*matched)) => {
                Answer::KeptBack
            }
            _ => Answer::Result(Ok(result)),
        }
    }
}

impl Owed {
    fn to(request: &AppendEntriesRequest<TypeConfig>) -> Self {
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        Self { since: Instant::now(), last }
    }

    /// Whether openraft, told that the follower matches there, believes that this is answered.
    fn is_taken_for_answered(&self, matched: Option<LogId>) -> bool {
        !hodei_state::armed!("bug::old-answer-confirms") && self.last <= matched
    }
}

/// What the last request told, if it had no entries: what comes before, and the commit index.
#[derive(Default)]
struct Told(Option<(Option<LogId>, Option<LogId>)>);

impl Told {
    /// Remembers a request. The same again without entries is no news: a commit index is told once.
    fn is_news(&mut self, request: &AppendEntriesRequest<TypeConfig>) -> bool {
        let tells = request.entries.is_empty().then_some((request.prev_log_id, request.leader_commit));
        let is_news = tells.is_none() || tells != self.0;
        self.0 = tells;
        is_news
    }
}

/// The next request, once there is room for it. None: there are no more, or the call has ended.
async fn next_request(
    requests: &mut Option<Requests>,
    outgoing: Option<&mpsc::Sender<RaftMessage>>,
) -> Option<(mpsc::OwnedPermit<RaftMessage>, AppendEntriesRequest<TypeConfig>)> {
    let (Some(requests), Some(outgoing)) = (requests, outgoing) else { return future::pending().await };
    // Nothing is taken out of the stream before its place is sure: this future may be dropped at any await.
    let permit = outgoing.clone().reserve_owned().await.ok()?;
    let request = requests.next().await?;
    Some((permit, request))
}

fn encode(request: AppendEntriesRequest<TypeConfig>) -> bytes::Bytes {
    codec::encode(&AppendRequestV1 {
        vote: request.vote.into(),
        prev: request.prev_log_id.map(Into::into),
        entries: request.entries.into_iter().map(Into::into).collect(),
        commit: request.leader_commit.map(Into::into),
    })
    .into()
}

fn unreachable(error: &super::peers::CallError) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(error))
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::*;
    use crate::types::{Entry, Vote};

    #[test]
    fn only_the_same_request_without_entries_is_no_news() {
        let id = |index| LogId::new(1.into(), index);
        let request = |prev, commit, entries: &[u64]| AppendEntriesRequest::<TypeConfig> {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(id(prev)),
            leader_commit: Some(id(commit)),
            entries: entries.iter().map(|&index| Entry { log_id: id(index), payload: EntryPayload::Blank }).collect(),
        };
        let mut told = Told::default();
        assert!(told.is_news(&request(4, 3, &[])), "the first one");
        assert!(told.is_news(&request(4, 4, &[])), "another commit index");
        assert!(told.is_news(&request(4, 4, &[5])), "an entry");
        assert!(told.is_news(&request(4, 4, &[5])), "the entry again");
        assert!(told.is_news(&request(5, 4, &[])), "further on");
        assert!(!told.is_news(&request(5, 4, &[])), "what should follow is purged");
    }
}
