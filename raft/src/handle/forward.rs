//! Commands from a node that does not lead to the one that does.
//!
//! One bidirectional call to the leader carries many commands per message, and answers in whatever order they come,
//! matched by id. A lost call leaves its unanswered commands unknown: the leader may have appended them.
//! [`Handle::propose`](super::Handle::propose) repeats those, too, because every client command is idempotent.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use hodei_proto::v1::RaftMessage;
use hodei_state::ids::NodeId;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Position, propose::Answer};
use crate::{
    codec,
    error::NotDone,
    handle::propose::{Claim, Ends},
    network::{
        peers::{Peers, bare},
        wire::{ForwardAnswerV1, ForwardRequestV1, ForwardResponseV1, ForwardedV1, NotDoneV1},
    },
};

/// Commands waiting to be sent.
const QUEUE: usize = 16 * 1024;
/// Commands and bytes of one message.
const MESSAGE_COMMANDS: usize = 1024;
const MESSAGE_BYTES: usize = 1 << 20;
/// Messages that wait for the connection to take them.
const OUTGOING: usize = 8;
/// A leader that cannot be reached in this time is as good as none.
const CONNECT: Duration = Duration::from_millis(500);

struct Forwarded {
    to: NodeId,
    command: Bytes,
    deadline: Instant,
    claim: Claim,
    answer: oneshot::Sender<Answer>,
}

/// The callers' end.
#[derive(Clone)]
pub(crate) struct Forwarder {
    queue: mpsc::Sender<Forwarded>,
}

impl Forwarder {
    /// Sends one command to `to` and waits, until `deadline` or until that node's leadership is `over`, for what becomes
    /// of it.
    pub(crate) async fn submit(
        &self,
        to: NodeId,
        command: Bytes,
        deadline: Instant,
        over: impl Future<Output = ()>,
    ) -> Answer {
        let (answer, answered) = oneshot::channel();
        let claim = Claim::default();
        let forwarded = Forwarded { to, command, deadline, claim: claim.clone(), answer };
        match tokio::time::timeout_at(deadline, self.queue.send(forwarded)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Answer::NotDone(NotDone::Stopped),
            Err(_) => return Answer::NotDone(NotDone::Overloaded),
        }
        let unreachable = NotDone::NoQuorum("the leader cannot be reached".to_owned());
        let ends = Ends {
            lost: (NotDone::NoLeader, "the connection to the leader was lost"),
            over: (NotDone::NoLeader, "leadership ended before the leader answered"),
            late: (unreachable, "the leader did not answer within the deadline"),
        };
        claim.answer(answered, over, deadline, ends).await
    }
}

/// The connection's side; one task per node.
pub(crate) struct Link {
    peers: Peers,
    incoming: mpsc::Receiver<Forwarded>,
    call: Option<Call>,
    next_id: u64,
}

/// The queue's two ends.
pub(crate) fn forwarder(peers: Peers) -> (Forwarder, Link) {
    let (queue, incoming) = mpsc::channel(QUEUE);
    (Forwarder { queue }, Link { peers, incoming, call: None, next_id: 0 })
}

type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// An open call. Dropping it ends the reader and leaves what is pending unknown to its callers.
struct Call {
    to: NodeId,
    outgoing: mpsc::Sender<RaftMessage>,
    pending: Pending,
    sweep_at: usize,
    reader: JoinHandle<()>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.reader.abort();
        self.pending.lock().clear();
    }
}

impl Link {
    /// Runs until every [`Forwarder`] is gone or the task is aborted.
    pub(crate) async fn run(mut self) {
        let mut taken = Vec::with_capacity(MESSAGE_COMMANDS);
        while self.incoming.recv_many(&mut taken, MESSAGE_COMMANDS).await > 0 {
            let mut rest = std::mem::take(&mut taken).into_iter().peekable();
            while let Some(to) = rest.peek().map(|forwarded| forwarded.to) {
                let mut bytes = 0;
                let mut message = Vec::new();
                while let Some(forwarded) = rest.next_if(|next| next.to == to && bytes < MESSAGE_BYTES) {
                    bytes += forwarded.command.len();
                    message.push(forwarded);
                }
                self.send(to, message).await;
            }
        }
    }

    async fn send(&mut self, to: NodeId, batch: Vec<Forwarded>) {
        if let Err(why) = self.connect(to).await {
            for forwarded in batch {
                let _ = forwarded.answer.send(Answer::NotDone(NotDone::NoQuorum(why.clone())));
            }
            return;
        }
        let Some(call) = &mut self.call else { return };
        let now = Instant::now();
        let mut commands = Vec::with_capacity(batch.len());
        for forwarded in batch {
            if forwarded.deadline <= now || !forwarded.claim.take() {
                continue;
            }
            self.next_id += 1;
            let timeout_ms = u64::try_from((forwarded.deadline - now).as_millis()).unwrap_or(u64::MAX);
            commands.push(ForwardedV1 { id: self.next_id, timeout_ms, command: forwarded.command });
            call.register(self.next_id, forwarded.answer);
        }
        let message = bare(codec::encode(&ForwardRequestV1 { commands }).into());
        hodei_state::failpoint!("forward::before-send");
        let sent = tokio::time::timeout(CONNECT, call.outgoing.send(message)).await;
        if !matches!(sent, Ok(Ok(()))) {
            self.call = None;
        }
    }

    async fn connect(&mut self, to: NodeId) -> Result<(), String> {
        if self.call.as_ref().is_some_and(|call| call.to == to && !call.reader.is_finished()) {
            return Ok(());
        }
        self.call = None;
        let mut client = self.peers.client(to).map_err(|error| error.to_string())?;
        let (outgoing, body) = mpsc::channel(OUTGOING);
        let hello = codec::encode(&ForwardRequestV1 { commands: Vec::new() });
        outgoing.try_send(self.peers.envelope(to, hello.into())).expect("the channel is new");
        let responses = tokio::time::timeout(CONNECT, client.forward(ReceiverStream::new(body)))
            .await
            .map_err(|_| format!("leader {to} cannot be reached"))?
            .map_err(|status| format!("leader {to} cannot be reached: {}", status.message()))?
            .into_inner();
        let pending = Pending::default();
        let reader = tokio::spawn(read(responses, pending.clone()));
        self.call = Some(Call { to, outgoing, pending, sweep_at: 0, reader });
        Ok(())
    }
}

impl Call {
    fn register(&mut self, id: u64, answer: oneshot::Sender<Answer>) {
        let mut pending = self.pending.lock();
        if pending.len() >= self.sweep_at.max(QUEUE) {
            // Callers that gave up leave their entry behind.
            pending.retain(|_, answer| !answer.is_closed());
            self.sweep_at = pending.len() * 2;
        }
        pending.insert(id, answer);
    }
}

/// Hands out answers until the call ends; what is pending then is dropped, which its callers see.
async fn read(mut responses: Streaming<RaftMessage>, pending: Pending) {
    loop {
        let message = match responses.message().await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(status) => {
                tracing::debug!(%status, "the call to the leader ended");
                break;
            }
        };
        let Ok(ForwardResponseV1 { answers }) = codec::decode(&message.payload) else {
            tracing::warn!("the leader's answer cannot be read");
            break;
        };
        let mut pending = pending.lock();
        for (id, answer) in answers {
            if let Some(waiter) = pending.remove(&id) {
                let _ = waiter.send(answer.into());
            }
        }
    }
    pending.lock().clear();
}

impl From<ForwardAnswerV1> for Answer {
    fn from(answer: ForwardAnswerV1) -> Self {
        match answer {
            ForwardAnswerV1::Done { at, outcome } => {
                Self::Done(Position { term: at.term, index: at.index }, vec![outcome])
            }
            ForwardAnswerV1::Unknown(why) => Self::Unknown(why),
            ForwardAnswerV1::NotDone(why) => Self::NotDone(match why {
                NotDoneV1::NoQuorum(why) => NotDone::NoQuorum(why),
                NotDoneV1::NoLeader => NotDone::NoLeader,
                NotDoneV1::Overloaded => NotDone::Overloaded,
                // The leader stops, not this node: another will lead.
                NotDoneV1::Stopped => NotDone::NoQuorum("the leader is stopping".to_owned()),
                NotDoneV1::Malformed(why) => NotDone::NoQuorum(format!("the leader cannot read the command: {why}")),
            }),
        }
    }
}

impl From<Answer> for ForwardAnswerV1 {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Done(position, mut outcomes) => match outcomes.pop() {
                Some(outcome) => {
                    let at = codec::LogIdV1 { term: position.term, index: position.index };
                    Self::Done { at, outcome }
                }
                None => Self::Unknown("the entry has no outcome".to_owned()),
            },
            Answer::Unknown(why) => Self::Unknown(why),
            Answer::NotDone(why) => Self::NotDone(match why {
                NotDone::NoQuorum(why) => NotDoneV1::NoQuorum(why),
                NotDone::NoLeader | NotDone::LeadershipOver { .. } => NotDoneV1::NoLeader,
                NotDone::Overloaded => NotDoneV1::Overloaded,
                NotDone::Stopped => NotDoneV1::Stopped,
                NotDone::TooLarge { .. } => NotDoneV1::Malformed(why.to_string()),
            }),
        }
    }
}
