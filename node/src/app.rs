//! The composition root: builds a node's parts, binds, spawns, and drains.
//!
//! ```text
//! Credentials ─ Peers ─ raft::Handle ─┬─ services ─ AuthLayer ─ TLS listener
//!                                     ├─ work: gateway, leader's loops, log plane
//!                                     ├─ founding, membership, Hello, their commits
//!                                     └─ probes over HTTP
//! ```
//!
//! Every task belongs to one [`Tasks`] and ends with its token. The node ends by a signal, by a fault of its replica, or
//! because the cluster removed it; a leader hands over first.

mod founding;
mod registry;
mod tasks;

use std::{sync::Arc, time::Duration};

use hodei_proto::v1::{
    cluster_service_server::ClusterServiceServer, job_execution_service_server::JobExecutionServiceServer,
    log_stream_service_server::LogStreamServiceServer, peer_service_server::PeerServiceServer,
    raft_service_server::RaftServiceServer, scheduler_service_server::SchedulerServiceServer,
    secret_service_server::SecretServiceServer, worker_agent_service_server::WorkerAgentServiceServer,
};
use hodei_raft::{Handle, Leadership, Topic};
use hodei_state::{State, ids::NodeId};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tower::util::MapResponseLayer;

use self::{registry::Known, tasks::Tasks};
use crate::{
    api,
    cli::{
        commands::serve::Node,
        exit::{CommandResult, Failure},
        output,
    },
    config::Config,
    data_dir::{DataDir, Identity},
    membership,
    peers::{
        Peers,
        book::Book,
        hello::{self, Greeter, Inbox, Myself},
    },
    pki::credentials::Credentials,
    recovery, replacement,
    server::{auth::AuthLayer, drain, http, listener},
    work::{self, Work},
};

/// When `ready` is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Once connections are accepted, quorum or not.
    Accepts,
    /// Once jobs are taken, and the node is a full member.
    TakesJobs,
}

/// For a leader to hand over before it ends.
const HAND_OVER: Duration = Duration::from_secs(2);
/// For requests and streams under way when the node ends.
const DRAIN: Duration = Duration::from_secs(3);
/// For the replica to write what is staged.
const SHUT_DOWN: Duration = Duration::from_secs(10);
/// For a removed node to see its removal through before it ends: the others may have no majority without it.
const LEAVE: Duration = Duration::from_secs(60);
/// A dead connection is noticed within about this.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Serves until a signal or a fault.
///
/// # Errors
/// What keeps the node from starting, or ended it.
pub async fn serve(node: Node, identity: Identity, ready: Ready) -> CommandResult {
    let (app, tasks) = App::start(node, identity).await?;
    let ended = tokio::select! {
        ended = app.run(ready) => ended,
        failure = tasks.failed() => Err(failure),
    };
    app.drain(tasks).await;
    ended
}

/// A node that serves.
struct App {
    config: Config,
    dir: Arc<DataDir>,
    identity: Identity,
    myself: Arc<Myself>,
    credentials: Credentials,
    peers: Arc<Peers>,
    handle: Handle,
    work: Work,
    /// Ends what takes requests.
    stop: CancellationToken,
    /// The cluster says that this node was removed.
    removed: CancellationToken,
}

impl App {
    async fn start(node: Node, identity: Identity) -> Result<(Self, Tasks), Failure> {
        let advertise = node.reachable();
        let Node { config, dir, sockets } = node;
        let sockets = sockets.ok_or_else(|| Failure::other("there is nothing to serve on"))?;
        let Opened { mut identity, credentials, peers, handle } = open(&config, &dir, identity, &advertise).await?;
        let broken = |error: crate::pki::PkiError| Failure::other(format!("{}: {error}", dir.path().display()));
        let server_tls = Arc::new(credentials.server_config().map_err(broken)?);
        if !identity.log_begun {
            identity.log_begun = true;
            dir.write_identity(&identity)?;
        }
        let myself = Arc::new(Myself {
            cluster: identity.cluster_id,
            node: identity.node_id,
            address: advertise,
            start_counter: identity.start_counter,
        });
        let (stop, removed) = (CancellationToken::new(), CancellationToken::new());
        let dir = Arc::new(dir);
        let work = work::start(
            handle.clone(),
            peers.clone(),
            &dir.join("logs"),
            credentials.vault.clone(),
            stop.child_token(),
        )
        .map_err(|error| Failure::other(format!("{}: {error}", dir.join("logs").display())))?;
        let app = Self { config, dir, identity, myself, credentials, peers, handle, work, stop, removed };
        let tasks = app.spawn(sockets.grpc, sockets.http, server_tls)?;
        Ok((app, tasks))
    }

    /// Everything that runs beside [`App::run`].
    fn spawn(
        &self,
        grpc: std::net::TcpListener,
        http: Option<std::net::TcpListener>,
        tls: Arc<rustls::ServerConfig>,
    ) -> Result<Tasks, Failure> {
        let mut tasks = Tasks::new(self.stop.clone());
        let (inbox, hellos) = hello::inbox();
        self.spawn_loops(&mut tasks, inbox.clone(), hellos);
        let incoming = listener::incoming(adopt(grpc)?, watch::channel(tls).1, self.stop.clone());
        let ending = self.stop.clone();
        let serving = Server::builder()
            .layer(MapResponseLayer::new(move |response| drain::until(&ending, response)))
            .layer(AuthLayer::new(Arc::new(Known::new(self.identity.cluster_id, self.handle.clone()))))
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_concurrent_streams(4096)
            .add_routes(self.services(inbox))
            .serve_with_incoming_shutdown(incoming, self.stop.clone().cancelled_owned());
        tasks.spawn("the gRPC server", async move { serving.await.map_err(|error| error.to_string()) });
        if let Some(socket) = http {
            let cluster = self.cluster();
            let ready = Arc::new(move || cluster.takes_jobs());
            let (socket, stop) = (adopt(socket)?, self.stop.clone());
            tasks.spawn("the HTTP server", async move {
                http::serve(socket, ready, stop).await.map_err(|error| error.to_string())
            });
        }
        Ok(tasks)
    }

    fn spawn_loops(&self, tasks: &mut Tasks, inbox: Inbox, hellos: mpsc::Receiver<hodei_state::command::NodeHello>) {
        let greeter = Greeter {
            myself: (*self.myself).clone(),
            peers: self.peers.clone(),
            seeds: self.config.peers.clone(),
            handle: self.handle.clone(),
            dir: self.dir.clone(),
            inbox,
            removed: self.removed.clone(),
        };
        tasks.run("Hello", greeter.run(self.stop.clone()));
        tasks.run("the commits of Hellos", hello::commit(self.handle.clone(), hellos, self.stop.clone()));
        tasks.run("the membership loop", membership::run(self.handle.clone(), self.peers.clone(), self.stop.clone()));
    }

    fn cluster(&self) -> api::cluster::Cluster {
        api::cluster::Cluster::new(
            self.myself.clone(),
            self.handle.clone(),
            self.peers.clone(),
            &self.credentials,
            Duration::from_millis(self.config.raft.election_max_ms),
        )
    }

    fn services(&self, inbox: Inbox) -> Routes {
        let peer = api::peer::Peer::new(
            self.myself.clone(),
            self.handle.clone(),
            self.peers.clone(),
            inbox,
            self.work.peer.clone(),
        );
        let raft = RaftServiceServer::new(self.handle.service())
            .max_decoding_message_size(hodei_raft::MAX_MESSAGE)
            .max_encoding_message_size(hodei_raft::MAX_MESSAGE);
        let mut routes = Routes::builder();
        routes.add_service(ClusterServiceServer::new(self.cluster()));
        routes.add_service(PeerServiceServer::new(peer));
        routes.add_service(raft);
        routes.add_service(JobExecutionServiceServer::new(self.work.jobs.clone()));
        routes.add_service(LogStreamServiceServer::new(self.work.logs.clone()));
        let secrets = api::secrets::Secrets::new(self.handle.clone(), self.credentials.vault.clone());
        routes.add_service(SecretServiceServer::new(secrets));
        routes.add_service(SchedulerServiceServer::new(self.work.scheduler.clone()));
        routes.add_service(WorkerAgentServiceServer::new(self.work.workers.clone()));
        routes.add_service(tonic_health::server::health_reporter().1);
        api::add_reflection(&mut routes);
        routes.routes()
    }

    /// Until it ends.
    async fn run(&self, ready: Ready) -> CommandResult {
        let (mut terminate, mut interrupt) =
            (listen_for(SignalKind::terminate())?, listen_for(SignalKind::interrupt())?);
        tracing::info!(node = self.myself.node, cluster = %self.myself.cluster, address = self.myself.address, "serving");
        let becoming = async {
            founding::complete(&self.handle, &self.dir, &self.identity, &self.credentials, &self.myself).await?;
            if ready == Ready::TakesJobs {
                takes_jobs(&self.handle, self.myself.node).await;
                output::line("ready")?;
            }
            std::future::pending::<Result<(), Failure>>().await
        };
        if ready == Ready::Accepts {
            output::line("ready")?;
        }
        tokio::select! {
            _ = terminate.recv() => Ok(0),
            _ = interrupt.recv() => Ok(0),
            fatal = self.handle.fatal() => Err(Failure::other(fatal.to_string())),
            () = left(&self.handle, self.myself.node, &self.removed) => {
                Err(Failure::not_allowed(format!("node {} was removed from the cluster", self.myself.node)))
            }
            ended = becoming => ended.map(|()| 0),
        }
    }

    /// Hands over, lets what is under way end, and stops. Bounded.
    async fn drain(self, tasks: Tasks) {
        tracing::info!("stopping");
        let leads = matches!(*self.handle.leadership().borrow(), Leadership::Leading { .. });
        if leads && self.handle.status().voters.len() > 1 {
            match timeout(HAND_OVER, self.handle.transfer_leader(None)).await {
                Ok(Ok(_)) => tracing::info!("handed over"),
                Ok(Err(error)) => tracing::warn!(%error, "nobody to hand over to"),
                Err(_) => tracing::warn!("nobody took over in time"),
            }
        }
        self.stop.cancel();
        self.work.shutdown().await;
        tasks.end(DRAIN).await;
        if timeout(SHUT_DOWN, self.handle.shutdown()).await.is_err() {
            tracing::error!("the replica did not stop in time");
        }
    }
}

/// A node whose replica is open.
struct Opened {
    identity: Identity,
    credentials: Credentials,
    peers: Arc<Peers>,
    handle: Handle,
}

/// Opens the replica. One that has lost what it had promised goes on as a new member, for which it waits as long as it
/// takes.
async fn open(config: &Config, dir: &DataDir, identity: Identity, advertise: &str) -> Result<Opened, Failure> {
    recovery::resume(dir)?;
    let mut identity = replacement::resume(dir, identity)?;
    let mut replaced = false;
    loop {
        let credentials = Credentials::load(dir, &identity)?;
        let tls = credentials.client_config();
        let tls = Arc::new(tls.map_err(|error| Failure::other(format!("{}: {error}", dir.path().display())))?);
        let why = match open_replica(config, dir, &mut identity, tls.clone()).await {
            Ok((peers, handle)) => return Ok(Opened { identity, credentials, peers, handle }),
            // A new replica that is lost at once will not be the last one.
            Err(NotOpened::Lost(why)) if !replaced && identity.founder.is_none() => why,
            Err(NotOpened::Lost(why)) => return Err(Failure::other(why)),
            Err(NotOpened::Failed(failure)) => return Err(failure),
        };
        identity = replacement::obtain(dir, &identity, tls, &config.peers, advertise, &why).await?;
        replaced = true;
    }
}

/// Why a replica is not open.
enum NotOpened {
    /// It has lost what it had promised: it must not vote again under this id.
    Lost(String),
    /// Nothing is known to be lost.
    Failed(Failure),
}

impl From<Failure> for NotOpened {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

async fn open_replica(
    config: &Config,
    dir: &DataDir,
    identity: &mut Identity,
    tls: Arc<rustls::ClientConfig>,
) -> Result<(Arc<Peers>, Handle), NotOpened> {
    // A node that forgot what it promised must not begin anew.
    if identity.log_begun && !dir.join("wal").is_dir() {
        return Err(NotOpened::Lost(format!("HODEI-STORAGE-010: {} is missing", dir.join("wal").display())));
    }
    let book = dir.read_toml::<Book>("peers.toml")?.unwrap_or_default();
    let peers = Arc::new(Peers::new(identity.node_id, watch::channel(tls).1, book));
    let mut raft = hodei_raft::Config::new(identity.node_id, identity.cluster_id, dir.path().to_owned());
    raft.timing.heartbeat = Duration::from_millis(config.raft.heartbeat_ms);
    raft.timing.election_min = Duration::from_millis(config.raft.election_min_ms);
    raft.timing.election_max = Duration::from_millis(config.raft.election_max_ms);
    let handle = match hodei_raft::start(raft, peers.clone()).await {
        Ok(handle) => handle,
        Err(error) if error.is_loss() => return Err(NotOpened::Lost(error.to_string())),
        Err(error) => return Err(NotOpened::Failed(Failure::other(error.to_string()))),
    };
    // A Hello of this start must not be taken for one of an earlier start: the number is kept before it is said.
    let known = handle.inspect(|state| state.member(identity.node_id).map_or(0, |member| member.start_counter));
    identity.count_start(known);
    dir.write_identity(identity)?;
    Ok((peers, handle))
}

fn adopt(socket: std::net::TcpListener) -> Result<TcpListener, Failure> {
    TcpListener::from_std(socket).map_err(|error| Failure::other(format!("cannot listen: {error}")))
}

fn listen_for(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|error| Failure::other(format!("cannot listen for signals: {error}")))
}

/// Resolves once this node answers linearizable reads and is a voter.
async fn takes_jobs(handle: &Handle, me: NodeId) {
    let mut members = handle.subscribe(Topic::Any);
    loop {
        let read = handle.read(Instant::now() + Duration::from_secs(1)).await;
        let voter = handle.status().voters.contains(&me);
        if voter && read.is_ok_and(|view| view.state.cluster().is_some()) {
            return;
        }
        // A change of the membership is no change of the state: look again soon in any case.
        let _ = timeout(Duration::from_millis(50), members.changed()).await;
    }
}

/// Resolves once this node has left: its removal is committed, and Raft goes on without it, as it sees for itself or as the
/// others say. Until then they may need its vote, be it for the change that ends that.
async fn left(handle: &Handle, me: NodeId, told: &CancellationToken) {
    let mut members = handle.subscribe(Topic::Members);
    let removed = |state: &State| state.member(me).is_some_and(|member| member.removed_at.is_some());
    while !told.is_cancelled() && !handle.inspect(removed) {
        tokio::select! {
            () = told.cancelled() => {}
            changed = members.changed() => if changed.is_err() { return std::future::pending().await },
        }
    }
    let out = async {
        while handle.status().counts_in(me) && !told.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let _ = timeout(LEAVE, out).await;
}
