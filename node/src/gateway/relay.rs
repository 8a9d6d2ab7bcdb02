//! Heartbeats of this node's workers to the leader, and its grants back.
//!
//! One task per node. It keeps one link to whoever leads: a call over the network, or the leader's door itself where
//! this node leads. Heartbeats wait for others for at most [`BATCH`], those that matter now not at all. Nothing is kept
//! but the newest heartbeat of each worker: what is lost with a link is made good by the next one, which a new link asks
//! every agent for at once. Nothing here extends anything: that is the leader's, after a read index.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use hodei_proto::v1::{
    LeaseExtended, LivenessRequest, LivenessResponse, RelayedHeartbeat, WorkerHeartbeat,
    peer_service_client::PeerServiceClient,
};
use hodei_raft::{Dialer, Handle, Leadership};
use hodei_state::ids::{NodeId, SessionId, WorkerId};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    convert::from_proto,
    leader::door::{Door, Gate},
};

/// How long a heartbeat may wait for others.
const BATCH: Duration = Duration::from_millis(500);
/// Messages from streams that may wait for the relay.
const QUEUE: usize = 1024;
/// For a link to be made.
const CONNECT: Duration = Duration::from_secs(1);
/// Between attempts to make one.
const RETRY: Duration = Duration::from_millis(100);
/// Heartbeats in one message.
const MAX_BATCH: usize = 4096;

/// What comes back for a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Down {
    /// The leader waits for a heartbeat.
    AskHeartbeat,
    /// What a heartbeat of this session came to.
    Grants(SessionId, LeaseExtended),
}

/// The streams' door to the relay; cheap to clone.
#[derive(Clone)]
pub struct Relay {
    up: mpsc::Sender<Up>,
}

enum Up {
    Enlist { worker: WorkerId, ticket: u64, down: mpsc::Sender<Down> },
    Heartbeat { worker: WorkerId, heartbeat: WorkerHeartbeat, urgent: bool },
    Leave { worker: WorkerId, ticket: u64 },
}

/// A stream that the relay knows of; it is forgotten when this is dropped.
pub struct Enlisted {
    up: mpsc::Sender<Up>,
    worker: WorkerId,
    ticket: u64,
}

impl Enlisted {
    /// Passes a heartbeat on; `urgent`: at once.
    pub async fn heartbeat(&self, heartbeat: WorkerHeartbeat, urgent: bool) {
        // Fails only when the node stops.
        let _ = self.up.send(Up::Heartbeat { worker: self.worker, heartbeat, urgent }).await;
    }
}

impl Drop for Enlisted {
    fn drop(&mut self) {
        // A full queue leaves an entry behind, which the worker's next stream replaces.
        let _ = self.up.try_send(Up::Leave { worker: self.worker, ticket: self.ticket });
    }
}

impl Relay {
    /// The relay, and its task to be spawned by whoever owns it.
    pub fn new(
        handle: &Handle,
        dialer: Arc<dyn Dialer>,
        door: Door,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (up, queue) = mpsc::channel(QUEUE);
        let task = Task {
            leadership: handle.leadership(),
            node: handle.node_id(),
            dialer,
            door,
            workers: HashMap::new(),
            pending: HashMap::new(),
            flush_at: None,
            link: Link::None,
        };
        let run = async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task.run(queue) => {}
            }
        };
        (Self { up }, run)
    }

    /// Takes up a worker's stream; `down` gets what is for it.
    pub async fn enlist(&self, worker: WorkerId, down: mpsc::Sender<Down>) -> Enlisted {
        let ticket = rand::random();
        let _ = self.up.send(Up::Enlist { worker, ticket, down }).await;
        Enlisted { up: self.up.clone(), worker, ticket }
    }
}

struct Stream {
    ticket: u64,
    down: mpsc::Sender<Down>,
}

struct Task {
    leadership: watch::Receiver<Leadership>,
    node: NodeId,
    dialer: Arc<dyn Dialer>,
    door: Door,
    workers: HashMap<WorkerId, Stream>,
    /// Not yet sent: the newest of each worker.
    pending: HashMap<WorkerId, WorkerHeartbeat>,
    flush_at: Option<Instant>,
    link: Link,
}

type Responses = BoxStream<'static, LivenessResponse>;

enum Uplink {
    Local(Gate),
    Remote(mpsc::Sender<LivenessRequest>),
}

enum Link {
    None,
    Connecting(BoxFuture<'static, Option<(Uplink, Responses)>>),
    Up(Uplink, Responses),
}

/// What the link has to say.
enum News {
    Linked(Uplink, Responses),
    Response(LivenessResponse),
    Broken,
}

impl Link {
    async fn news(&mut self) -> News {
        match self {
            Self::None => std::future::pending().await,
            Self::Connecting(connecting) => match connecting.await {
                Some((uplink, responses)) => News::Linked(uplink, responses),
                None => News::Broken,
            },
            Self::Up(_, responses) => responses.next().await.map_or(News::Broken, News::Response),
        }
    }
}

impl Task {
    async fn run(mut self, mut queue: mpsc::Receiver<Up>) {
        self.connect(Duration::ZERO);
        loop {
            let flush_at = self.flush_at;
            tokio::select! {
                up = queue.recv() => match up {
                    Some(up) => self.take(up),
                    None => return,
                },
                changed = self.leadership.changed() => match changed {
                    Ok(()) => self.connect(Duration::ZERO),
                    Err(_) => return,
                },
                news = self.link.news() => match news {
                    News::Linked(uplink, responses) => self.linked(uplink, responses),
                    News::Response(response) => self.hand_out(response),
                    News::Broken => self.connect(RETRY),
                },
                () = sleep_until(flush_at.unwrap_or_else(Instant::now)), if flush_at.is_some() => self.flush().await,
            }
        }
    }

    fn take(&mut self, up: Up) {
        match up {
            Up::Enlist { worker, ticket, down } => {
                self.workers.insert(worker, Stream { ticket, down });
            }
            Up::Heartbeat { worker, heartbeat, urgent } => {
                self.pending.insert(worker, heartbeat);
                let at = if urgent { Instant::now() } else { Instant::now() + BATCH };
                self.flush_at = Some(self.flush_at.map_or(at, |flush_at| flush_at.min(at)));
            }
            Up::Leave { worker, ticket } => {
                if self.workers.get(&worker).is_some_and(|stream| stream.ticket == ticket) {
                    self.workers.remove(&worker);
                    self.pending.remove(&worker);
                }
            }
        }
    }

    /// Begins to make a link to whoever leads, in place of the one there is.
    fn connect(&mut self, after: Duration) {
        let leadership = *self.leadership.borrow_and_update();
        self.link = match leadership {
            Leadership::Leading { .. } => {
                let (door, node) = (self.door.clone(), self.node);
                Link::Connecting(
                    async move {
                        sleep(after).await;
                        let (gate, responses) = door.enter(node).await?;
                        Some((Uplink::Local(gate), ReceiverStream::new(responses).boxed()))
                    }
                    .boxed(),
                )
            }
            Leadership::Following { leader: Some(leader) } => {
                let dialer = self.dialer.clone();
                Link::Connecting(
                    async move {
                        sleep(after).await;
                        match timeout(CONNECT, dial(&*dialer, leader)).await {
                            Ok(Some(link)) => Some(link),
                            _ => None,
                        }
                    }
                    .boxed(),
                )
            }
            Leadership::Following { leader: None } | Leadership::Preparing { .. } => Link::None,
        };
    }

    /// A new leader knows nothing of any worker: every agent is asked for a heartbeat.
    fn linked(&mut self, uplink: Uplink, responses: Responses) {
        self.link = Link::Up(uplink, responses);
        for stream in self.workers.values() {
            // A full queue belongs to an agent that does not read; its next heartbeat comes by itself.
            let _ = stream.down.try_send(Down::AskHeartbeat);
        }
        if !self.pending.is_empty() {
            self.flush_at = Some(Instant::now());
        }
    }

    async fn flush(&mut self) {
        self.flush_at = None;
        let Link::Up(uplink, _) = &self.link else { return };
        while !self.pending.is_empty() {
            let workers: Vec<WorkerId> = self.pending.keys().copied().take(MAX_BATCH).collect();
            let heartbeats = workers.into_iter().filter_map(|worker| {
                let heartbeat = Some(self.pending.remove(&worker)?);
                Some(RelayedHeartbeat { worker_id: worker.to_string(), heartbeat })
            });
            let request = LivenessRequest { heartbeats: heartbeats.collect() };
            let sent = match uplink {
                Uplink::Local(gate) => gate.pass(request).await,
                Uplink::Remote(requests) => matches!(timeout(CONNECT, requests.send(request)).await, Ok(Ok(()))),
            };
            if !sent {
                return self.connect(RETRY);
            }
        }
    }

    fn hand_out(&self, response: LivenessResponse) {
        for grants in response.grants {
            let (Ok(worker), Ok(session)) =
                (from_proto::id(&grants.worker_id, "worker_id"), from_proto::id(&grants.session_id, "session_id"))
            else {
                continue;
            };
            self.tell(worker, Down::Grants(session, grants.extended.unwrap_or_default()));
        }
        for worker in response.ask_heartbeat {
            if let Ok(worker) = worker.parse() {
                self.tell(worker, Down::AskHeartbeat);
            }
        }
    }

    fn tell(&self, worker: WorkerId, down: Down) {
        if let Some(stream) = self.workers.get(&worker) {
            // See `linked`.
            let _ = stream.down.try_send(down);
        }
    }
}

async fn dial(dialer: &dyn Dialer, leader: NodeId) -> Option<(Uplink, Responses)> {
    let channel = dialer.channel(leader)?;
    let (requests, body) = mpsc::channel(8);
    // The first message opens the call: the leader's headers come with its first answer otherwise.
    requests.try_send(LivenessRequest::default()).ok()?;
    let call = PeerServiceClient::new(channel).liveness(ReceiverStream::new(body)).await;
    let responses = call.inspect_err(|status| tracing::debug!(leader, %status, "no link to the leader")).ok()?;
    let responses = stream::unfold(responses.into_inner(), |mut responses| async move {
        let response = responses.message().await.ok().flatten()?;
        Some((response, responses))
    });
    Some((Uplink::Remote(requests), responses.boxed()))
}
