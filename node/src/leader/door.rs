//! How gateways reach the leader of the moment. Open while this node leads; closed, everybody who came through it is
//! told to look for the next leader.

use std::{sync::Arc, time::Duration};

use hodei_proto::v1::{LivenessRequest, LivenessResponse};
use hodei_state::{Hearing, Now, ids::NodeId};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tonic::{Status, Streaming};

use crate::{error, logs::hub::Hub};

/// Messages of all gateways that may wait for the leader.
const INBOX: usize = 256;
/// For the leader's task to say what it has heard; it never waits itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Answers that may wait for a gateway.
const ANSWERS: usize = 64;

/// What the leader hears.
pub enum Message {
    /// A gateway has come.
    Entered {
        /// Which.
        node: NodeId,
        /// Names it from here on; higher than those before.
        gate: u64,
        /// Takes what is for it.
        answers: mpsc::Sender<LivenessResponse>,
    },
    /// Heartbeats of its workers.
    Heartbeats {
        /// From whom.
        gate: u64,
        /// What it said.
        request: LivenessRequest,
        /// When it arrived here: leases count from then, and the read index that confirms them begins later.
        received: Instant,
    },
    /// Somebody asks what has been heard of workers.
    Heard {
        /// Takes the answer: with the leader's clocks.
        answer: oneshot::Sender<(Hearing, Now)>,
    },
}

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Door {
    inbox: Arc<watch::Sender<Option<mpsc::Sender<Message>>>>,
    gates: Arc<std::sync::atomic::AtomicU64>,
}

impl Default for Door {
    fn default() -> Self {
        Self { inbox: Arc::new(watch::Sender::new(None)), gates: Arc::default() }
    }
}

impl Door {
    pub(super) fn open(&self) -> mpsc::Receiver<Message> {
        let (sender, inbox) = mpsc::channel(INBOX);
        self.inbox.send_replace(Some(sender));
        inbox
    }

    pub(super) fn close(&self) {
        self.inbox.send_replace(None);
    }

    /// Comes in as the gateway `node`; `None` where this node does not lead.
    pub async fn enter(&self, node: NodeId) -> Option<(Gate, mpsc::Receiver<LivenessResponse>)> {
        let inbox = self.inbox.borrow().clone()?;
        let gate = self.gates.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (answers, receiver) = mpsc::channel(ANSWERS);
        inbox.send(Message::Entered { node, gate, answers }).await.ok()?;
        Some((Gate { gate, inbox }, receiver))
    }

    /// What has been heard of workers in this leadership, and the leader's clocks; `None` where this node does not lead,
    /// or has no time for it.
    pub async fn heard(&self) -> Option<(Hearing, Now)> {
        let inbox = self.inbox.borrow().clone()?;
        let (answer, heard) = oneshot::channel();
        timeout(ANSWER_WITHIN, async {
            inbox.send(Message::Heard { answer }).await.ok()?;
            heard.await.ok()
        })
        .await
        .ok()?
    }

    /// Serves `PeerService.Liveness` for the gateway `node`.
    ///
    /// # Errors
    /// This node does not lead.
    pub async fn serve(
        &self,
        hub: &Hub,
        node: NodeId,
        mut requests: Streaming<LivenessRequest>,
    ) -> Result<mpsc::Receiver<Result<LivenessResponse, Status>>, Status> {
        let not_leading = || error::unavailable("this node does not lead");
        let (gate, mut answers) = self.enter(node).await.ok_or_else(not_leading)?;
        let (out, receiver) = mpsc::channel(1);
        let stop = hub.stop().clone();
        hub.spawn(async move {
            loop {
                let sent = tokio::select! {
                    () = stop.cancelled() => false,
                    () = out.closed() => false,
                    request = requests.message() => match request {
                        Ok(Some(request)) => gate.pass(request).await,
                        _ => false,
                    },
                    // The leadership is over when nobody holds the other end.
                    answer = answers.recv() => match answer {
                        Some(answer) => out.send(Ok(answer)).await.is_ok(),
                        None => false,
                    },
                };
                if !sent {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

/// A gateway's way in.
pub struct Gate {
    gate: u64,
    inbox: mpsc::Sender<Message>,
}

impl Gate {
    /// Hands heartbeats to the leader; false: the leadership is over.
    pub async fn pass(&self, request: LivenessRequest) -> bool {
        let received = Instant::now();
        self.inbox.send(Message::Heartbeats { gate: self.gate, request, received }).await.is_ok()
    }
}
