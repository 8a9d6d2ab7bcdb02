//! One agent process as the cluster sees it: a session with a new id, opened once with Register and carried by one
//! stream at a time.
//!
//! [`Session::run`] keeps a stream to some node. A lost stream is replaced by one to the next node, at once; the
//! session goes on by the agent's certificate, with a stream number that grows. Only the newest stream is obeyed: it is
//! the only one that is read. Heartbeats and everything the node must know are said by [`outbound`], what the node
//! says is acted on by [`inbound`].

pub mod inbound;
pub mod link;
pub mod outbound;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hodei_proto::v1::{
    Attach, DrainWorker, NodeMessage, RegisterRequest, UnregisterWorkerRequest, UpdateWorkerStatusRequest,
    WorkerMessage, node_message, update_worker_status_request::Wish,
    worker_agent_service_client::WorkerAgentServiceClient, worker_message::Kind,
};
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status, Streaming, transport::Channel};

use self::link::{Dial, Servers};
use crate::{
    attempt::Phase, data_dir::DataDir, error::Exit, executor::Executor, keeper::Leases, metrics::Metrics,
    roster::Heartbeat, roster::Roster,
};

/// For Register, and from the call to Attached, which both need a majority: while there is another node to go to, longer than
/// an election takes, and no longer, since this node may be cut off; once all have been tried, as long as a slow one may need.
const SERVE_WITHIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(5)];
/// For UpdateWorkerStatus. A node that cannot be reached delays the end by no more than this.
const ANNOUNCE_WITHIN: Duration = Duration::from_secs(2);
/// The longest deadline that nodes take; whoever waits for a year waits for ever.
const LONGEST_DRAIN: Duration = Duration::from_secs(366 * 24 * 3_600);
/// For UnregisterWorker.
const UNREGISTER_WITHIN: Duration = Duration::from_secs(2);
/// Messages handed to the connection ahead of what it can send.
const AHEAD: usize = 8;
/// How often a stream is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A refusal may come from a node that does not know this agent yet; one that lasts is meant.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// What the parts of a session share.
pub struct Shared {
    /// The session's id.
    pub id: String,
    /// Where it keeps things.
    pub dir: Arc<DataDir>,
    /// Until when attempts may run.
    pub leases: Leases,
    /// The attempts.
    pub roster: Arc<Roster>,
    /// What runs them.
    pub executor: Arc<Executor>,
    /// For heartbeats.
    pub metrics: Metrics,
    /// Of the newest heartbeat.
    pub sequence: AtomicU64,
    /// When the leader last answered a heartbeat.
    pub answered: Mutex<Instant>,
    /// Owns every task that this session spawns.
    pub tasks: TaskTracker,
}

/// See the module.
pub struct Session<D> {
    shared: Arc<Shared>,
    dialer: D,
    servers: Mutex<Servers>,
    registration: RegisterRequest,
    connected: Mutex<Option<Channel>>,
}

/// Why a stream is over.
#[derive(Debug)]
enum Lost {
    /// The connection or the node failed.
    Broken(String),
    /// The node refuses this agent.
    Refused(Exit),
}

impl From<Status> for Lost {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => Self::Refused(Exit::not_allowed(status.message())),
            // This process' session is over: another one has opened a newer session for the same worker.
            Code::FailedPrecondition => Self::Refused(Exit::other(status.message())),
            code => Self::Broken(format!("{code:?}: {}", status.message())),
        }
    }
}

/// Progress that outlives a stream.
#[derive(Default)]
struct Progress {
    registered: bool,
    stream: u64,
    refused_since: Option<Instant>,
}

impl<D: Dial> Session<D> {
    /// A session that has not been opened yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>, dialer: D, servers: Servers, registration: RegisterRequest) -> Self {
        Self { shared, dialer, servers: Mutex::new(servers), registration, connected: Mutex::new(None) }
    }

    /// Keeps a stream until the cluster refuses this agent for good.
    pub async fn run(&self) -> Exit {
        let mut progress = Progress::default();
        loop {
            let Some(server) = self.servers.lock().current() else {
                return Exit::bad_input("no server to connect to");
            };
            let lost = self.stream(&server, &mut progress).await;
            *self.connected.lock() = None;
            if let Some(exit) = self.judge(&server, &lost, &mut progress) {
                return exit;
            }
            let pause = self.servers.lock().failed();
            tokio::time::sleep(pause).await;
        }
    }

    /// Tells the cluster, where a node can be told, that this session takes no more jobs, and that what it still runs after
    /// `patience` is handed back. The drain ends with the session: the next one is as ready as ever.
    pub async fn announce_drain(&self, patience: Duration) {
        let Some(channel) = self.connected.lock().clone() else { return };
        let deadline_ms = u64::try_from(patience.min(LONGEST_DRAIN).as_millis()).unwrap_or(u64::MAX).max(1);
        let drain = DrainWorker { request_id: uuid::Uuid::now_v7().to_string(), deadline_ms, requeue: false };
        let (session_id, wish) = (self.shared.id.clone(), Some(Wish::Drain(drain)));
        let request = UpdateWorkerStatusRequest { session_id, wish, ..Default::default() };
        let mut client = WorkerAgentServiceClient::new(channel);
        match timeout(ANNOUNCE_WITHIN, client.update_worker_status(request)).await {
            Ok(Ok(_)) => tracing::info!("the cluster knows of the drain"),
            Ok(Err(status)) => tracing::warn!(%status, "could not announce the drain"),
            Err(_) => tracing::warn!("no answer to the announcement of the drain"),
        }
    }

    /// Ends the session for good, where a node can be told.
    pub async fn unregister(&self) {
        let Some(channel) = self.connected.lock().take() else { return };
        let request = UnregisterWorkerRequest { session_id: self.shared.id.clone(), ..Default::default() };
        let mut client = WorkerAgentServiceClient::new(channel);
        match timeout(UNREGISTER_WITHIN, client.unregister_worker(request)).await {
            Ok(Ok(_)) => tracing::info!("unregistered"),
            Ok(Err(status)) => tracing::warn!(%status, "could not unregister"),
            Err(_) => tracing::warn!("no answer to unregistering"),
        }
    }

    fn judge(&self, server: &str, lost: &Lost, progress: &mut Progress) -> Option<Exit> {
        match lost {
            Lost::Broken(why) => {
                tracing::info!(server, why, "no stream to this node");
                None
            }
            Lost::Refused(exit) => {
                tracing::warn!(server, why = exit.message, "this node refuses the agent");
                let since = *progress.refused_since.get_or_insert_with(Instant::now);
                // Without a session nothing extends a lease, so what still runs will not run for long.
                let runs = self.shared.roster.all().iter().any(|attempt| attempt.phase() != Phase::Ended);
                let message = format!("refused by {server}: {}", exit.message);
                (!runs && since.elapsed() >= REFUSED_FOR).then_some(Exit { code: exit.code, message })
            }
        }
    }

    /// One stream, from the connection to its loss.
    async fn stream(&self, server: &str, progress: &mut Progress) -> Lost {
        let channel = match self.dialer.dial(server).await {
            Ok(channel) => channel,
            Err(error) => return Lost::Broken(error.to_string()),
        };
        *self.connected.lock() = Some(channel.clone());
        let mut client = WorkerAgentServiceClient::new(channel);
        if !progress.registered {
            if let Err(lost) = self.register(&mut client).await {
                return lost;
            }
            progress.registered = true;
        }
        progress.stream += 1;
        let deadline = Instant::now() + self.patience();
        let (messages, incoming) = match timeout_at(deadline, self.attach(&mut client, progress.stream)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(lost)) => return lost,
            Err(_) => return Lost::Broken("the node did not attach in time".to_owned()),
        };
        self.serve(server, messages, incoming, progress, deadline).await
    }

    fn patience(&self) -> Duration {
        let [haste, patience] = SERVE_WITHIN;
        if self.servers.lock().has_untried() { haste } else { patience }
    }

    async fn register(&self, client: &mut WorkerAgentServiceClient<Channel>) -> Result<(), Lost> {
        crate::failpoint!("agent::before-register");
        match timeout(self.patience(), client.register(self.registration.clone())).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(status.into()),
            Err(_) => Err(Lost::Broken("no answer to Register in time".to_owned())),
        }
    }

    async fn attach(
        &self,
        client: &mut WorkerAgentServiceClient<Channel>,
        stream: u64,
    ) -> Result<(mpsc::Sender<WorkerMessage>, Streaming<NodeMessage>), Lost> {
        let attempts = self.shared.roster.attach();
        let attach = Attach { session_id: self.shared.id.clone(), stream, attempts };
        let (messages, outgoing) = mpsc::channel(AHEAD);
        let first = WorkerMessage { kind: Some(Kind::Attach(attach)) };
        messages.try_send(first).map_err(|_| Lost::Broken("a new stream takes no message".to_owned()))?;
        let incoming = client.worker_stream(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok((messages, incoming))
    }

    async fn serve(
        &self,
        server: &str,
        messages: mpsc::Sender<WorkerMessage>,
        mut incoming: Streaming<NodeMessage>,
        progress: &mut Progress,
        deadline: Instant,
    ) -> Lost {
        match timeout_at(deadline, self.attached(&mut incoming)).await {
            Ok(Ok(())) => {}
            Ok(Err(lost)) => return lost,
            Err(_) => return Lost::Broken("the node did not attach in time".to_owned()),
        }
        tracing::info!(server, stream = progress.stream, "attached");
        progress.refused_since = None;
        self.servers.lock().succeeded();
        *self.shared.answered.lock() = Instant::now();
        self.shared.roster.heartbeat(Heartbeat::Asked);
        let pump = outbound::pump(Arc::clone(&self.shared), messages);
        tokio::pin!(pump);
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(message)) => self.obey(message),
                    Ok(None) => return Lost::Broken("the node closed the stream".to_owned()),
                    Err(status) => return status.into(),
                },
                () = &mut pump => return Lost::Broken("the connection takes no more messages".to_owned()),
                _ = look.tick() => {
                    inbound::sweep(&self.shared);
                    if self.is_cut_off() {
                        return Lost::Broken("the leader does not answer heartbeats through this node".to_owned());
                    }
                }
            }
        }
    }

    /// Waits for Attached; whatever comes before it is obeyed all the same.
    async fn attached(&self, incoming: &mut Streaming<NodeMessage>) -> Result<(), Lost> {
        loop {
            let Some(message) = incoming.message().await? else {
                return Err(Lost::Broken("the node closed the stream".to_owned()));
            };
            let done = matches!(message.kind, Some(node_message::Kind::Attached(_)));
            self.obey(message);
            if done {
                return Ok(());
            }
        }
    }

    fn obey(&self, message: NodeMessage) {
        match message.kind {
            Some(node_message::Kind::Attached(attached)) => self.learn(&attached.peers),
            Some(kind) => inbound::obey(&self.shared, kind),
            None => {}
        }
    }

    /// The members of the cluster, remembered for this process and the next.
    fn learn(&self, peers: &[String]) {
        if peers.is_empty() || !self.servers.lock().learn(peers) {
            return;
        }
        let (dir, peers) = (Arc::clone(&self.shared.dir), peers.to_vec());
        self.shared.tasks.spawn_blocking(move || {
            if let Err(error) = dir.remember_peers(&peers) {
                tracing::warn!(%error, "cannot remember the nodes' addresses");
            }
        });
    }

    /// A gateway without a majority extends nothing. With leases at stake, another node is tried while there is time.
    fn is_cut_off(&self) -> bool {
        let Some(shortest) = self.shared.leases.shortest() else { return false };
        let patience = (shortest / 2).clamp(Duration::from_secs(2), Duration::from_secs(12));
        self.servers.lock().has_choice() && self.shared.answered.lock().elapsed() > patience
    }
}

impl Shared {
    /// The number of the next heartbeat.
    pub fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed) + 1
    }
}
