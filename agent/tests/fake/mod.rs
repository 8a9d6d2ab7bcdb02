//! A cluster of fake nodes that speak the worker protocol, over plain TCP, and an agent to go with it.
//!
//! Each node and each agent has a runtime of its own, so that dropping it ends everything at once, as SIGKILL does.

#![allow(dead_code, unused_imports, reason = "not every test uses all of it")]

mod dir;
mod jobs;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::Stream;
use hodei_agent::{
    Options,
    data_dir::DataDir,
    error::Exit,
    executor::account::Accounts,
    key::AttemptKey,
    log::{account, entries},
    session::link::Dial,
    shutdown::Shutdown,
    trust::tls,
    watchdog::guard::Program,
};
use hodei_proto::v1::{
    Ack, Attach, Attached, AttemptRef, JobResult, JobSpec, LeaseExtended, LogEnd, LogWanted, NodeMessage,
    RegisterRequest, RegisterResponse, RunJob, SecretRef, SecretValue, UnregisterWorkerRequest,
    UnregisterWorkerResponse, UpdateWorkerStatusRequest, UpdateWorkerStatusResponse, WorkerMessage,
    node_message::Kind,
    worker_agent_service_server::{WorkerAgentService, WorkerAgentServiceServer},
    worker_message::Kind as Said,
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    sync::{Notify, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Channel, transport::Server};

pub use dir::Dir;
pub use jobs::*;

/// Longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How the nodes behave.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Manners {
    /// Heartbeats are answered.
    pub extends: bool,
    /// Heartbeats are answered by refusing every attempt.
    pub refuses: bool,
    /// Ends are acknowledged.
    pub ends: bool,
    /// What has arrived is durable, too.
    pub durable: bool,
    /// A drain that is announced is heard and not answered.
    pub silent: bool,
}

pub const KIND: Manners = Manners { extends: true, refuses: false, ends: true, durable: true, silent: false };

/// A log as one node has it.
#[derive(Clone, Default)]
pub struct NodeLog {
    pub last: u64,
    pub figures: LogEnd,
    pub out: Vec<u8>,
    pub err: Vec<u8>,
    pub batches: u64,
    pub resumed: Option<u64>,
}

/// What the nodes have seen, all together.
#[derive(Default)]
pub struct Seen {
    pub registrations: Vec<RegisterRequest>,
    pub attaches: Vec<(usize, Attach)>,
    pub logs: BTreeMap<(usize, AttemptKey), NodeLog>,
    pub started: BTreeMap<AttemptKey, u32>,
    pub declined: BTreeMap<AttemptKey, String>,
    pub results: BTreeMap<AttemptKey, JobResult>,
    pub ended: BTreeSet<AttemptKey>,
    pub heartbeats: Vec<(u64, Vec<AttemptKey>)>,
    pub announced: Vec<UpdateWorkerStatusRequest>,
    pub unregistered: bool,
    stream: Option<(usize, mpsc::Sender<Result<NodeMessage, Status>>)>,
}

pub struct Cluster {
    pub seen: Mutex<Seen>,
    pub manners: Mutex<Manners>,
    addresses: Mutex<Vec<String>>,
    changed: Notify,
}

impl Cluster {
    pub fn new(manners: Manners) -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::default(),
            manners: Mutex::new(manners),
            addresses: Mutex::default(),
            changed: Notify::new(),
        })
    }

    pub fn addresses(&self) -> Vec<String> {
        self.addresses.lock().clone()
    }

    /// Waits for a condition on what the nodes have seen.
    pub async fn until<T>(&self, what: &str, mut look: impl FnMut(&Seen) -> Option<T>) -> T {
        let found = timeout(PATIENCE, async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(found) = look(&self.seen.lock()) {
                    return found;
                }
                changed.await;
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("never happened: {what}; declined {:?}", self.seen.lock().declined),
        }
    }

    pub async fn say(&self, kind: Kind) {
        let stream = self.until("a stream", |seen| seen.stream.clone()).await.1;
        stream.send(Ok(NodeMessage { kind: Some(kind) })).await.unwrap();
    }

    /// Runs a job on the newest heartbeat; does not wait for anything but the heartbeat.
    pub async fn run(&self, spec: JobSpec) -> AttemptKey {
        self.run_for(spec, Duration::from_secs(60)).await
    }

    pub async fn run_for(&self, spec: JobSpec, lost_after: Duration) -> AttemptKey {
        let key = AttemptKey { job: uuid::Uuid::now_v7(), attempt: 1, fence: 42 };
        let run = self.request(key, spec, lost_after).await;
        self.say(Kind::RunJob(run)).await;
        key
    }

    /// What the job names as its secrets, with their values.
    pub async fn run_with(&self, spec: JobSpec, secrets: Vec<SecretValue>) -> AttemptKey {
        let key = AttemptKey { job: uuid::Uuid::now_v7(), attempt: 1, fence: 42 };
        let refs = secrets.iter().map(|secret| SecretRef { name: secret.name.clone(), env: secret.env.clone() });
        let spec = JobSpec { secrets: refs.collect(), ..spec };
        let run = self.request(key, spec, Duration::from_secs(60)).await;
        self.say(Kind::RunJob(RunJob { secrets, ..run })).await;
        key
    }

    pub async fn request(&self, key: AttemptKey, spec: JobSpec, lost_after: Duration) -> RunJob {
        let look = |seen: &Seen| {
            let session = seen.registrations.last()?.session_id.clone();
            Some((session, seen.heartbeats.last()?.0))
        };
        let (session_id, heartbeat) = self.until("a heartbeat", look).await;
        let lost_after_ms = u64::try_from(lost_after.as_millis()).unwrap();
        RunJob {
            attempt: Some(key.to_wire()),
            session_id,
            spec: Some(spec),
            heartbeat,
            lost_after_ms,
            ..RunJob::default()
        }
    }

    pub async fn result(&self, key: AttemptKey) -> JobResult {
        self.until("a result", |seen| seen.results.get(&key).cloned()).await
    }

    /// The log as node `node` has it once it is complete, checked against the result's figures.
    pub async fn complete_log(&self, node: usize, key: AttemptKey) -> NodeLog {
        let promised = self.result(key).await.log.unwrap();
        let look = |seen: &Seen| {
            let log = seen.logs.get(&(node, key)).cloned().unwrap_or_default();
            (log.last >= promised.last_sequence).then_some(log)
        };
        let log = self.until("the whole log", look).await;
        assert_eq!(log.figures, promised);
        log
    }

    fn notice(&self, act: impl FnOnce(&mut Seen)) {
        act(&mut self.seen.lock());
        self.changed.notify_waiters();
    }
}

/// A node; dropping it breaks all its connections.
pub struct Node {
    runtime: Option<Runtime>,
    pub address: String,
}

impl Node {
    pub fn start(cluster: &Arc<Cluster>) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let index = {
            let mut addresses = cluster.addresses.lock();
            addresses.push(address.clone());
            addresses.len() - 1
        };
        let service = WorkerAgentServiceServer::new(Service { cluster: Arc::clone(cluster), index });
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let mut server =
                Server::builder().initial_stream_window_size(4 << 20).initial_connection_window_size(8 << 20);
            server.add_service(service).serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { runtime: Some(runtime), address }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Service {
    cluster: Arc<Cluster>,
    index: usize,
}

type Outgoing = Pin<Box<dyn Stream<Item = Result<NodeMessage, Status>> + Send>>;

#[tonic::async_trait]
impl WorkerAgentService for Service {
    type WorkerStreamStream = Outgoing;

    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        self.cluster.notice(|seen| seen.registrations.push(request.into_inner()));
        Ok(Response::new(RegisterResponse::default()))
    }

    async fn worker_stream(&self, request: Request<Streaming<WorkerMessage>>) -> Result<Response<Outgoing>, Status> {
        let (messages, outgoing) = mpsc::channel(1_024);
        let gateway = Gateway { cluster: Arc::clone(&self.cluster), index: self.index, messages };
        tokio::spawn(gateway.serve(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn update_worker_status(
        &self,
        request: Request<UpdateWorkerStatusRequest>,
    ) -> Result<Response<UpdateWorkerStatusResponse>, Status> {
        self.cluster.notice(|seen| seen.announced.push(request.into_inner()));
        if self.cluster.manners.lock().silent {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(UpdateWorkerStatusResponse::default()))
    }

    async fn unregister_worker(
        &self,
        _: Request<UnregisterWorkerRequest>,
    ) -> Result<Response<UnregisterWorkerResponse>, Status> {
        self.cluster.notice(|seen| seen.unregistered = true);
        Ok(Response::new(UnregisterWorkerResponse::default()))
    }
}

struct Gateway {
    cluster: Arc<Cluster>,
    index: usize,
    messages: mpsc::Sender<Result<NodeMessage, Status>>,
}

impl Gateway {
    async fn serve(self, mut incoming: Streaming<WorkerMessage>) {
        while let Ok(Some(message)) = incoming.message().await {
            for kind in self.hear(message.kind.unwrap()) {
                if self.messages.send(Ok(NodeMessage { kind: Some(kind) })).await.is_err() {
                    return;
                }
            }
        }
    }

    fn hear(&self, said: Said) -> Vec<Kind> {
        match said {
            Said::Attach(attach) => self.attach(attach),
            Said::Heartbeat(heartbeat) => self.heartbeat(heartbeat.sequence, &heartbeat.attempts),
            Said::LogBatch(batch) => self.log(&batch),
            Said::LogResume(resume) => {
                let key = AttemptKey::from_wire(resume.attempt.as_ref()).unwrap();
                self.cluster.notice(|seen| {
                    let log = seen.logs.entry((self.index, key)).or_default();
                    log.resumed = Some(resume.first_available);
                    log.last = resume.first_available - 1;
                });
                Vec::new()
            }
            Said::JobStarted(started) => {
                let key = AttemptKey::from_wire(started.attempt.as_ref()).unwrap();
                self.cluster.notice(|seen| {
                    seen.started.insert(key, started.pid);
                });
                vec![Kind::Ack(Ack { attempt: started.attempt, started: true, ..Ack::default() })]
            }
            Said::JobDeclined(declined) => {
                let key = AttemptKey::from_wire(declined.attempt.as_ref()).unwrap();
                self.cluster.notice(|seen| {
                    seen.declined.insert(key, declined.reason);
                });
                Vec::new()
            }
            Said::JobResult(result) => {
                let key = AttemptKey::from_wire(result.attempt.as_ref()).unwrap();
                self.cluster.notice(|seen| {
                    seen.results.insert(key, result);
                });
                self.ack(key)
            }
            Said::Stats(_) => Vec::new(),
        }
    }

    fn attach(&self, attach: Attach) -> Vec<Kind> {
        let mut replies = vec![Kind::Attached(Attached {
            node_id: self.index.to_string(),
            stream: attach.stream,
            peers: self.cluster.addresses(),
        })];
        self.cluster.notice(|seen| {
            for status in &attach.attempts {
                let key = AttemptKey::from_wire(status.attempt.as_ref()).unwrap();
                let have = seen.logs.get(&(self.index, key)).map_or(0, |log| log.last);
                replies.push(Kind::LogWanted(LogWanted { attempt: status.attempt.clone(), from_sequence: have + 1 }));
            }
            seen.stream = Some((self.index, self.messages.clone()));
            seen.attaches.push((self.index, attach));
        });
        replies
    }

    fn heartbeat(&self, sequence: u64, attempts: &[AttemptRef]) -> Vec<Kind> {
        let keys = attempts.iter().map(|attempt| AttemptKey::from_wire(Some(attempt)).unwrap()).collect();
        self.cluster.notice(|seen| {
            assert!(seen.heartbeats.last().is_none_or(|(last, _)| sequence == 1 || *last < sequence));
            seen.heartbeats.push((sequence, keys));
        });
        let manners = *self.cluster.manners.lock();
        let answer = match (manners.extends, manners.refuses) {
            (_, true) => LeaseExtended { sequence, extended: Vec::new(), refused: attempts.to_vec() },
            (true, _) => LeaseExtended { sequence, extended: attempts.to_vec(), refused: Vec::new() },
            _ => return Vec::new(),
        };
        vec![Kind::LeaseExtended(answer)]
    }

    fn log(&self, batch: &hodei_proto::v1::LogBatch) -> Vec<Kind> {
        let key = AttemptKey::from_wire(batch.attempt.as_ref()).unwrap();
        self.cluster.notice(|seen| {
            let log = seen.logs.entry((self.index, key)).or_default();
            log.batches += 1;
            for entry in entries(batch).expect("a well-formed batch") {
                assert_eq!(entry.sequence, log.last + 1, "no gap, nothing twice");
                log.last = entry.sequence;
                account(&mut log.figures, entry.sequence, entry.kind, &entry.data);
                match entry.kind {
                    1 => log.out.extend_from_slice(&entry.data),
                    2 => log.err.extend_from_slice(&entry.data),
                    _ => {}
                }
            }
        });
        self.ack(key)
    }

    fn ack(&self, key: AttemptKey) -> Vec<Kind> {
        let manners = *self.cluster.manners.lock();
        let (received, ended) = {
            let mut seen = self.cluster.seen.lock();
            let received = seen.logs.get(&(self.index, key)).map_or(0, |log| log.last);
            let promised = seen.results.get(&key).and_then(|result| result.log).map(|log| log.last_sequence);
            let ended = manners.ends && promised.is_some_and(|promised| received >= promised);
            if ended {
                seen.ended.insert(key);
            }
            (received, ended)
        };
        self.cluster.changed.notify_waiters();
        let durable = if manners.durable { received } else { 0 };
        vec![Kind::Ack(Ack { attempt: Some(key.to_wire()), received, durable, started: true, ended })]
    }
}

/// Dials without TLS.
pub struct Plain;

impl Dial for Plain {
    async fn dial(&self, address: &str) -> io::Result<Channel> {
        tls::over(TokioIo::new(TcpStream::connect(address).await?)).await
    }
}

/// An agent; dropping it leaves its jobs running, as SIGKILL does. When that is done, nothing of it acts any more.
pub struct Agent {
    runtime: Option<Runtime>,
    pub shutdown: watch::Sender<u32>,
    ended: Option<oneshot::Receiver<Result<(), Exit>>>,
}

impl Agent {
    pub fn start(dir: &Path, servers: Vec<String>) -> Self {
        Self::with(dir, servers, 4, Duration::from_secs(60))
    }

    pub fn with(dir: &Path, servers: Vec<String>, capacity: u32, drain_timeout: Duration) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (requests, shutdown) = Shutdown::new();
        let (tell, ended) = oneshot::channel();
        let dir = dir.to_owned();
        let options = Options {
            worker_id: "w-1".to_owned(),
            servers,
            capacity,
            gpus: Vec::new(),
            labels: BTreeMap::new(),
            drain_timeout,
            accounts: Accounts::default(),
            cgroup: None,
            watchdog: Program(env!("CARGO_BIN_EXE_hodei-agent").into()),
        };
        runtime.spawn(async move {
            let dir = loop {
                // A predecessor that was just dropped may still hold it.
                match DataDir::open(&dir) {
                    Ok(dir) => break Arc::new(dir),
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            let _ = tell.send(hodei_agent::serve(dir, Plain, options, shutdown).await);
        });
        Self { runtime: Some(runtime), shutdown: requests, ended: Some(ended) }
    }

    pub async fn ended(&mut self) -> Result<(), Exit> {
        timeout(PATIENCE, self.ended.take().unwrap()).await.expect("the agent ends").unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // What blocks cannot be broken off, and may not be waited for on the runtime of a test.
            let ended = std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE));
            let _ = ended.join();
        }
    }
}
