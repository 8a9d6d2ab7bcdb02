//! Whole replicas in one process: real log, real files, real gRPC over loopback, no TLS.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unused_imports,
    reason = "a test's helpers may panic, and not every test uses all of them"
)]

mod net;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use futures::StreamExt;
use hodei_raft::{Config, Handle, Leadership, Reply, Status, View, start};
use hodei_state::{
    codec::encode_execution,
    command::{Command, Envelope, Init, SubmitJob},
    ids::{Caller, ClusterId, JobId, NodeId, UserId},
    outcome::Outcome,
    spec::{Action, Body, Execution, JobSpec, defaults},
};
pub use net::{Flow, Net};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

/// Longer than anything takes that works.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const CLUSTER: ClusterId = ClusterId(0xC1);
pub const ADMIN: Caller = Caller::Admin(UserId(1));

/// One replica and its server.
pub struct Node {
    pub handle: Handle,
    server: JoinHandle<()>,
}

/// Some replicas on some directories. Dropping it leaves nothing behind.
pub struct Cluster {
    pub net: Arc<Net>,
    pub nodes: BTreeMap<NodeId, Node>,
    tweak: fn(&mut Config),
    dir: TempDir,
}

impl Cluster {
    /// `count` voters, the first of which was initialised with an administrator.
    pub async fn start(count: u64, tweak: fn(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Self { net: Arc::default(), nodes: BTreeMap::new(), tweak, dir };
        cluster.run(1).await;
        cluster.node(1).initialize().await.unwrap();
        cluster.propose(1, init()).await;
        for id in 2..=count {
            cluster.run(id).await;
            cluster.join(id).await;
        }
        cluster
    }

    /// Starts, or starts again, a replica on its directory.
    pub async fn run(&mut self, id: NodeId) {
        let mut config = Config::new(id, CLUSTER, self.dir_of(id));
        config.timing.compare = Duration::from_millis(200);
        config.storage.write_interval = Duration::from_millis(20);
        (self.tweak)(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handle = start(config, self.net.ways_of(id)).await.unwrap();
        let service = handle.service().into_server();
        // Without it a small answer waits for the acknowledgement of the one before, for 40 ms.
        let incoming = TcpListenerStream::new(listener).inspect(|stream| {
            if let Ok(stream) = stream {
                stream.set_nodelay(true).unwrap();
            }
        });
        let server = Server::builder().add_service(service).serve_with_incoming(incoming);
        let server = tokio::spawn(async move { server.await.unwrap() });
        self.net.is_at(id, address);
        self.nodes.insert(id, Node { handle, server });
    }

    /// Makes a running node a voter.
    pub async fn join(&self, id: NodeId) {
        self.led(async |leader| leader.add_learner(id).await).await;
        self.caught_up(id).await;
        self.led(async |leader| leader.promote(id).await).await;
    }

    /// Has whoever leads do something that can be repeated; it has to succeed. On a busy machine another one may be elected
    /// meanwhile: then that one is asked.
    pub async fn led<T, E: std::fmt::Debug>(&self, ask: impl AsyncFn(&Handle) -> Result<T, E>) -> T {
        let deadline = soon();
        loop {
            let leader = self.leader().await;
            let term = self.node(leader).status().term;
            let error = match ask(self.node(leader)).await {
                Ok(done) => return done,
                Err(error) => error,
            };
            let leads_still = self.leader().await == leader && self.node(leader).status().term == term;
            assert!(!leads_still && Instant::now() < deadline, "node {leader}: {error:?}");
        }
    }

    /// Waits until the leader knows that a node has all of its log.
    pub async fn caught_up(&self, id: NodeId) {
        until("the node has caught up", || {
            let mut statuses = self.nodes.values().map(|node| node.handle.status());
            statuses.any(|own| own.peers.iter().any(|at| at.node == id && at.matched_index == own.last_log.index))
        })
        .await;
    }

    /// Takes a node away; its directory stays.
    pub async fn stop(&mut self, id: NodeId) {
        let node = self.nodes.remove(&id).unwrap();
        self.net.is_gone(id);
        node.server.abort();
        node.handle.shutdown().await;
    }

    pub fn node(&self, id: NodeId) -> &Handle {
        &self.nodes[&id].handle
    }

    pub fn dir_of(&self, id: NodeId) -> PathBuf {
        self.dir.path().join(format!("n{id}"))
    }

    /// The node that leads, ready for commands, in the newest term that any node knows of: one that was replaced may not
    /// have heard of it yet.
    pub async fn leader(&self) -> NodeId {
        let mut found = None;
        until("a leader", || {
            let newest = self.nodes.values().map(|node| node.handle.status().term).max();
            found = self.nodes.iter().find_map(|(id, node)| match *node.handle.leadership().borrow() {
                Leadership::Leading { term } if Some(term) >= newest => Some(*id),
                _ => None,
            });
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Has a node lead. On a busy machine another one may be elected instead: then it is asked again.
    pub async fn hand_over(&self, to: NodeId) {
        let deadline = soon();
        while self.leader().await != to {
            assert!(Instant::now() < deadline, "node {to} does not get to lead");
            let _ = self.node(to).transfer_leader(Some(to)).await;
        }
    }

    pub async fn follower(&self) -> NodeId {
        let leader = self.leader().await;
        *self.nodes.keys().find(|id| **id != leader).unwrap()
    }

    /// Proposes on a node; it has to succeed.
    pub async fn propose(&self, on: NodeId, envelope: Envelope) -> Reply {
        self.node(on).propose(envelope, soon()).await.unwrap()
    }

    /// Submits a job on a node and checks the answer.
    pub async fn submit(&self, on: NodeId, job: u128) -> Reply {
        let reply = self.propose(on, submission(job, 16)).await;
        assert!(matches!(reply.outcome, Outcome::Submitted { .. }), "{:?}", reply.outcome);
        reply
    }

    /// Reads, linearizably, on a node.
    pub async fn read(&self, on: NodeId) -> View {
        self.node(on).read(soon()).await.unwrap()
    }

    /// Waits until all nodes have applied the same, and checks that it is the same.
    pub async fn converged(&self) -> Status {
        let mut statuses = Vec::new();
        until("all nodes have applied the same", || {
            statuses = self.nodes.values().map(|node| node.handle.status()).collect::<Vec<_>>();
            statuses.iter().all(|status| status.applied == statuses[0].applied)
                && statuses.iter().all(|status| status.last_log.index == status.applied.index)
        })
        .await;
        assert!(statuses.iter().all(|status| status.hash == statuses[0].hash), "the states differ");
        statuses.swap_remove(0)
    }

    pub async fn shutdown(mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }
}

pub fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Waits for a condition.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn init() -> Envelope {
    let init = Init {
        cluster: CLUSTER,
        ca: vec![1; 16],
        address: "127.0.0.1:1".to_owned(),
        key: [1; 32],
        version: "0".to_owned(),
        feature_level: hodei_state::FEATURE_LEVEL,
        admin: (UserId(1), [2; 32]),
    };
    Envelope { caller: Caller::Node(1), command: Command::Init(init) }
}

/// A job whose script has `bytes` bytes.
pub fn submission(job: u128, bytes: usize) -> Envelope {
    let spec = JobSpec {
        lost_after_ms: defaults::LOST_AFTER_MS,
        grace_period_ms: defaults::GRACE_PERIOD_MS,
        body: Body::Inline(encode_execution(&execution(job, bytes))),
        ..JobSpec::default()
    };
    let mut digest = [0; 32];
    digest[..16].copy_from_slice(&job.to_be_bytes());
    let submit = SubmitJob { job: JobId(job), digest, idempotency_key: None, spec };
    Envelope { caller: ADMIN, command: Command::SubmitJob(Box::new(submit)) }
}

/// What such a job executes.
pub fn execution(job: u128, bytes: usize) -> Execution {
    let content = format!("# {job}\n{}", "x".repeat(bytes));
    Execution { action: Action::Script { interpreter: None, content }, env: BTreeMap::new(), working_directory: None }
}
