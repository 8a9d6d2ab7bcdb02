//! One simulated host: a replica, its server, its disk, and what it is asked to do.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hodei_raft::{
    Config, Dialer, Handle,
    log_store::{self, LogStore},
    seam::{
        Clock, Entropy,
        sim::{SeededEntropy, SimFs},
    },
    start_simulated,
    wal::{self, steps::Steps},
};
use hodei_state::ids::{ClusterId, Millis, Mono};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::{Channel, Endpoint, Server, server::Connected};
use turmoil::net::{TcpListener, TcpStream};

use crate::{
    broken::{self, Broken},
    check::NodeId,
    operation::Operation,
    world::World,
};

pub const CLUSTER: ClusterId = ClusterId(0xC1);
const PORT: u16 = 7000;
/// Where each host has its log on its disk.
const LOG: &str = "/wal";

/// What a node that runs is to the observer.
#[derive(Clone)]
pub struct Up {
    pub handle: Handle,
    pub log: LogStore<SimFs>,
}

/// What outlives a crash of the host, and what it is told from outside.
pub struct Host {
    pub id: NodeId,
    pub fs: SimFs,
    /// Its disk as the first crash left it.
    pub early: Option<SimFs>,
    pub life: u64,
    pub running: bool,
    /// None: it has crashed, or is not yet started.
    pub up: Option<Up>,
    pub operations: VecDeque<Operation>,
    pub clock: Arc<SkewedClock>,
    /// Milliseconds that a sync of the disk takes at most.
    pub disk_latency: u64,
    pub random: SeededEntropy,
}

/// The simulation's time as this host's clocks tell it.
#[derive(Debug, Default)]
pub struct SkewedClock {
    /// Milliseconds since the simulation began.
    now: Arc<AtomicU64>,
    /// Of the wall clock alone.
    skew: AtomicI64,
    drift: Mutex<Drift>,
}

/// How fast both clocks are, and what they have gained by that.
#[derive(Debug, Default)]
struct Drift {
    per_mille: i64,
    since: u64,
    gained: i64,
}

impl Drift {
    fn gained_at(&self, now: u64) -> i64 {
        self.gained + (now - self.since).cast_signed() * self.per_mille / 1000
    }
}

/// The wall clock at the beginning.
const BEGINNING: u64 = 1_800_000_000_000;

impl SkewedClock {
    pub fn new(now: Arc<AtomicU64>) -> Self {
        Self { now, ..Self::default() }
    }

    pub fn jump(&self, ms: i64) {
        self.skew.store(ms, Ordering::Relaxed);
    }

    /// From now on both clocks gain so many milliseconds a second, or lose them: fewer than a thousand.
    pub fn drift(&self, per_mille: i64) {
        let now = self.now.load(Ordering::Relaxed);
        let mut drift = self.drift.lock();
        *drift = Drift { per_mille, since: now, gained: drift.gained_at(now) };
    }

    fn passed(&self) -> u64 {
        let now = self.now.load(Ordering::Relaxed);
        now.saturating_add_signed(self.drift.lock().gained_at(now))
    }
}

impl Clock for SkewedClock {
    fn mono(&self) -> Mono {
        Mono(self.passed())
    }

    fn wall(&self) -> Millis {
        Millis((BEGINNING + self.passed()).saturating_add_signed(self.skew.load(Ordering::Relaxed)))
    }
}

pub fn name(id: NodeId) -> String {
    format!("n{id}")
}

/// Runs until the host crashes; an error ends the simulation.
pub async fn run(world: Rc<RefCell<World>>, id: NodeId) -> turmoil::Result {
    let (fs, seed, config) = {
        let mut world = world.borrow_mut();
        let config = world.config(id);
        let broken = world.broken;
        let host = world.host(id);
        host.life += 1;
        if broken == Some(Broken::LyingDisk) {
            host.fs.lie();
        }
        (host.fs.clone(), host.random.next_u64(), config)
    };
    let options = &config.storage.log;
    let entropy = Arc::new(SeededEntropy::new(seed));
    let opened = LogStore::open_stepped(&fs, Path::new(LOG), options, entropy);
    if opened.is_err() && fs.is_dead() {
        world.borrow_mut().dead.push(id);
        std::future::pending::<()>().await;
    }
    let (log, recovered, steps) = opened?;
    if world.borrow().broken != Some(Broken::OldDisk) {
        world.borrow_mut().checker.restarted(id, recovered.lsn, recovered.vote)?;
    }
    tokio::task::spawn_local(keep(world.clone(), id, steps));
    let dialer = Arc::new(Dial { ways: Mutex::default() });
    let handle = start_simulated(config, dialer, log.clone()).await?;
    let noise = world.borrow().broken.is_some_and(Broken::is_noise) && id == 2;
    tokio::task::spawn_local(serve(handle.clone(), noise));
    world.borrow_mut().host(id).up = Some(Up { handle: handle.clone(), log });
    let mut fatal = std::pin::pin!(handle.fatal());
    loop {
        let operations: Vec<Operation> = world.borrow_mut().host(id).operations.drain(..).collect();
        for operation in operations {
            tokio::task::spawn_local(operation.run(world.clone(), handle.clone()));
        }
        tokio::select! {
            biased;
            fatal = &mut fatal => return Err(format!("node {id} ended itself: {fatal:?}").into()),
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
}

/// The disk: writes, syncs and marks what is waiting, each after a time of its own.
async fn keep(world: Rc<RefCell<World>>, id: NodeId, mut steps: Steps<SimFs>) {
    let pause = || {
        let mut world = world.borrow_mut();
        let host = world.host(id);
        Duration::from_millis(host.random.below(host.disk_latency + 1))
    };
    loop {
        tokio::time::sleep(pause()).await;
        let Ok(written) = steps.write() else { break };
        let Some(mark) = written else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        tokio::time::sleep(pause()).await;
        if steps.mark().is_err() {
            break;
        }
        world.borrow_mut().checker.promised(id, mark.lsn, mark.vote);
    }
    // The power fails in the middle of an operation; nothing that waits for it is ever acknowledged.
    world.borrow_mut().dead.push(id);
    std::future::pending::<()>().await;
}

/// `noise`: what comes in is not always what was sent.
async fn serve(handle: Handle, noise: bool) {
    let listener = TcpListener::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT)).await.expect("the port is free");
    let incoming = futures::stream::unfold(listener, move |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Socket { stream, noise });
        Some((accepted, listener))
    });
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(handle.service().into_server());
    server.serve_with_incoming(incoming).await.expect("a server ends only with its host");
}

/// A connection that lost a message never recovers in this simulation: it has to be noticed soon.
const KEEP_ALIVE: Duration = Duration::from_millis(200);

/// The ways from one host to the others.
struct Dial {
    ways: Mutex<BTreeMap<NodeId, Channel>>,
}

impl Dialer for Dial {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        let way = || {
            let endpoint = Endpoint::from_shared(format!("http://{}:{PORT}", name(node)))
                .expect("a name is an address")
                .connect_timeout(KEEP_ALIVE)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .keep_alive_while_idle(true);
            endpoint.connect_with_connector_lazy(tower::service_fn(move |_| async move {
                TcpStream::connect((name(node), PORT)).await.map(TokioIo::new)
            }))
        };
        Some(self.ways.lock().entry(node).or_insert_with(way).clone())
    }
}

/// A simulated connection, as tonic wants it.
struct Socket {
    stream: TcpStream,
    noise: bool,
}

impl Connected for Socket {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if this.noise {
            broken::distort(&mut buffer.filled_mut()[before..]);
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Small segments, caches and intervals, so that a short run goes through all of them.
pub fn config(id: NodeId, dir: &Path, clock: Arc<SkewedClock>) -> Config {
    let mut config = Config::new(id, CLUSTER, dir.join(name(id)));
    config.clock = clock;
    config.timing.heartbeat = Duration::from_millis(50);
    config.timing.election_min = Duration::from_millis(150);
    config.timing.election_max = Duration::from_millis(300);
    config.timing.compare = Duration::from_millis(300);
    config.storage.log = log_store::Options {
        wal: wal::Options { segment_bytes: 16 << 10, group_bytes: 8 << 10, ..wal::Options::default() },
        cache_bytes: 4 << 10,
    };
    config.storage.snapshot_log_bytes = 8 << 10;
    config.storage.keep_entries = 20;
    config.storage.purge_batch = 4;
    config.storage.lag_entries = 40;
    config.storage.write_interval = Duration::from_millis(20);
    config
}
