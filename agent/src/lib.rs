//! The agent runs jobs on one machine for a Hodei cluster.
//!
//! **Words.** A *worker* is an agent's installation, known by its certificate; a *session* is one process of it. A
//! *stream* connects the session to one node, its *gateway*; it may break and be replaced by one to any other node at
//! any time. An *attempt* is one try at a job; its *fence* tells it from every other. A *lease* says until when an
//! attempt may run.
//!
//! **Flow.** [`run`] locks the data directory ([`data_dir`]), obtains an identity ([`trust::enrol`], once),
//! takes over from an earlier process ([`recover`]), and opens a session ([`session`]). A RunJob is admitted by the [`roster`] and
//! the lease table ([`lease`]), then run by the [`executor`], which captures the output ([`log`]) and puts the result
//! on disk. What the node must know is derived from the attempts whenever the stream has room, so nothing is lost with
//! a stream and nothing queues up. An attempt is forgotten when the node acknowledges its end.
//!
//! **Who ends a job.** Its main process; its [`watchdog`], a process of its own, at its timeout, at the lease's end, and
//! when it is told to; the watchdog's guardian where the watchdog has died, this process or a successor where both have; the
//! [`keeper`] where a watchdog is stopped.
//! A job outlives its agent for as long as its lease lasts, and the next agent on the same directory adopts it.
//!
//! **Deliberately missing.** Secrets, certificate renewal (its seam is the configuration's channel in
//! [`trust::tls::TlsDialer`]).

pub mod attempt;
pub mod clock;
pub mod config;
pub mod data_dir;
pub mod disk;
pub mod error;
pub mod executor;
// One source for both sides of the wire, which have no crate in common that could hold it.
#[path = "../../raft/state/src/failpoint.rs"]
pub mod failpoint;
pub mod gpu;
pub mod keeper;
pub mod key;
pub mod lease;
pub mod log;
pub mod metrics;
pub mod recover;
pub mod roster;
#[path = "../../node/src/seal.rs"]
pub mod seal;
pub mod session;
pub mod shutdown;
pub mod trust;
mod usage;
pub mod watchdog;

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use hodei_proto::v1::{Capacity, RegisterRequest};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

use crate::{
    config::Config,
    data_dir::DataDir,
    error::Exit,
    executor::{
        Executor,
        account::Accounts,
        cgroup::{CgroupRoot, Mounts},
        limits::Limiter,
    },
    keeper::Keeper,
    metrics::Metrics,
    recover::{Alive, Found},
    roster::Roster,
    session::{
        Session, Shared,
        link::{Dial, Servers, VERSION},
    },
    shutdown::{Ending, Shutdown},
    trust::{enrol, identity::Identity, tls},
    watchdog::guard::Program,
};

/// How long tasks that write to disk may take when the process ends.
const FINISH_WITHIN: Duration = Duration::from_secs(2);

/// The label that tells how a job's processes are kept together: `cgroup2`, `cgroup1` or `process-tree`.
pub const ISOLATION: &str = "hodei.isolation";

/// The label that tells what of a job's use can be bounded: `memory,cpu`, one of them, or `none`.
pub const LIMITS: &str = "hodei.limits";
/// The label that says which users jobs may run as; absent: any.
pub const USERS: &str = "hodei.users";
/// The longest value of a label.
const LONGEST_LABEL: usize = 256;

/// The whole product: from flags to the end of the process.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), Exit> {
    let servers = config.servers();
    if servers.is_empty() {
        return Err(Exit::bad_input("--server names no node"));
    }
    config.accounts().check().map_err(|(flag, why)| Exit::bad_input(format!("{flag}: {}", why.message)))?;
    let existed = config.data_dir.exists();
    check_token_before_writing(&config)?;
    let dir = Arc::new(DataDir::open(&config.data_dir)?);
    let identity = tokio::select! {
        identity = identify(&config, &dir, &servers) => identity,
        () = shutdown.requested() => return Ok(()),
    };
    let identity = identity.inspect_err(|_| {
        if !existed && !dir.pki().exists() {
            // A refused agent leaves nothing behind.
            let _ = fs::remove_dir_all(&config.data_dir);
        }
    })?;
    let worker_id = identity.worker_id.clone();
    let gpus = config.gpus.clone();
    let gpus = spawn_blocking(move || gpus.resolve())
        .await
        .map_err(|error| Exit::other(format!("cannot look for GPUs: {error}")))?;
    // Whoever renews the certificate will hold the sender.
    let (_renewed, tls) = watch::channel(tls::client_config(identity)?);
    let options = Options {
        worker_id,
        servers,
        capacity: config.capacity(),
        gpus,
        labels: config.labels(),
        drain_timeout: config.drain_timeout,
        accounts: config.accounts(),
        cgroup: config.cgroup.clone(),
        watchdog: Program::default(),
    };
    serve(dir, tls::TlsDialer::new(tls), options, shutdown).await
}

/// A token that cannot be one is refused before a directory is made for it.
fn check_token_before_writing(config: &Config) -> Result<(), Exit> {
    if config.data_dir.join("pki").join(trust::identity::CERT).exists() {
        return Ok(());
    }
    match config.token.as_deref().filter(|token| !token.trim().is_empty()) {
        Some(token) => Ok(trust::token::Token::parse(token).map(drop)?),
        None => Err(Exit::bad_input(format!(
            "{} holds no identity yet: the first start needs --token or HODEI_TOKEN",
            config.data_dir.display()
        ))),
    }
}

async fn identify(config: &Config, dir: &DataDir, servers: &[String]) -> Result<Identity, Exit> {
    let token = config.token.as_deref().unwrap_or_default();
    if let Some(identity) = Identity::load(&dir.pki())? {
        identity.check_token(token)?;
        return Ok(identity);
    }
    let wish = config.worker_id.map(|id| id.to_string()).unwrap_or_default();
    enrol::enrol(&dir.pki(), token, servers, &wish).await
}

/// What [`serve`] needs beside the directory and the dialer.
pub struct Options {
    /// From the certificate.
    pub worker_id: String,
    /// Nodes to begin with.
    pub servers: Vec<String>,
    /// Jobs at once.
    pub capacity: u32,
    /// GPUs for jobs, by the names that these know them by; at most 1,024.
    pub gpus: Vec<String>,
    /// For selection.
    pub labels: BTreeMap<String, String>,
    /// How long running jobs may go on when the agent is asked to end.
    pub drain_timeout: Duration,
    /// Whom jobs may run as.
    pub accounts: Accounts,
    /// The control group below which jobs get theirs, from the top of its hierarchy; absent: this process' own.
    pub cgroup: Option<String>,
    /// What is started as a job's watchdog.
    pub watchdog: Program,
}

/// Serves one session, from the clean-up after an earlier process to the end of this one.
pub async fn serve<D: Dial>(dir: Arc<DataDir>, dialer: D, options: Options, shutdown: Shutdown) -> Result<(), Exit> {
    let failed = |error: std::io::Error| Exit::other(format!("cannot start: {error}"));
    let keeper = Keeper::start().map_err(failed)?;
    let (recovering, given) = (Arc::clone(&dir), options.cgroup.clone());
    let (found, cgroups, limiter) = spawn_blocking(move || find(&recovering, given.as_deref()))
        .await
        .map_err(|error| Exit::other(format!("cannot recover: {error}")))?
        .map_err(failed)?;
    if cgroups.is_none() {
        tracing::warn!(
            "control groups are not permitted here: what a job has started may outlive its watchdog and guardian"
        );
    }
    let id = uuid::Uuid::now_v7().to_string();
    let isolation = cgroups.as_ref().map_or("process-tree", CgroupRoot::kind);
    let users = options.accounts.names().join(",");
    let own = [(ISOLATION, isolation), (LIMITS, limiter.kinds()), (USERS, &users)];
    let registration = registration(&id, &options, own, &found, &dir);
    let shared = share(id, &dir, &options, &keeper, (cgroups, limiter));
    found.ended.into_iter().for_each(|attempt| shared.roster.insert(Arc::new(attempt)));
    found.alive.into_iter().for_each(|alive| take_over(&shared, alive));
    let servers = Servers::new(options.servers, &dir.peers());
    let session = Session::new(Arc::clone(&shared), dialer, servers, registration);
    let ended = tokio::select! {
        exit = session.run() => Err(exit),
        ending = shutdown.drain(&shared.roster, options.drain_timeout, session.announce_drain(options.drain_timeout)) => Ok(ending),
    };
    // Nothing outlives the agent; what is killed here is told by the next process.
    keeper.leases().kill_all();
    if ended == Ok(Ending::AtOnce) {
        return Ok(());
    }
    session.unregister().await;
    shared.tasks.close();
    let _ = timeout(FINISH_WITHIN, shared.tasks.wait()).await;
    ended.map(|_| ())
}

/// What an earlier process has left, and what this one can do. Blocking.
fn find(dir: &DataDir, given: Option<&str>) -> std::io::Result<(Found, Option<CgroupRoot>, Limiter)> {
    let mounts = Mounts::read().with(given)?;
    let found = recover::recover(dir)?;
    let cgroups = CgroupRoot::best_of(&mounts);
    let limiter = Limiter::detect(&mounts, cgroups.as_ref());
    cgroups.iter().chain(limiter.roots()).for_each(|root| root.sweep(&found.unbegun));
    Ok((found, cgroups, limiter))
}

/// An attempt of an earlier process goes on under this one. Its lease is as it was until this session's is granted.
fn take_over(shared: &Arc<Shared>, alive: Alive) {
    let Alive { attempt, guarded, deadline, terms } = alive;
    let attempt = Arc::new(attempt);
    shared.leases.adopt(attempt.key, terms.lost_after, deadline);
    shared.roster.insert(Arc::clone(&attempt));
    let executor = Arc::clone(&shared.executor);
    shared.tasks.spawn(async move { executor.adopt(attempt, guarded, terms).await });
}

fn share(
    id: String,
    dir: &Arc<DataDir>,
    options: &Options,
    keeper: &Keeper,
    (cgroups, limiter): (Option<CgroupRoot>, Limiter),
) -> Arc<Shared> {
    let roster = Arc::new(Roster::new(options.capacity as usize, options.gpus.clone()));
    let executor = Executor {
        dir: Arc::clone(dir),
        session: id.clone(),
        worker_id: options.worker_id.clone(),
        cgroups,
        limiter,
        leases: keeper.leases(),
        roster: Arc::clone(&roster),
        accounts: options.accounts.clone(),
        has_gpus: !options.gpus.is_empty(),
        watchdog: options.watchdog.clone(),
    };
    Arc::new(Shared {
        id,
        dir: Arc::clone(dir),
        leases: keeper.leases(),
        roster,
        executor: Arc::new(executor),
        metrics: Metrics::new(dir.work()),
        sequence: AtomicU64::new(0),
        answered: Mutex::new(Instant::now()),
        tasks: TaskTracker::new(),
    })
}

fn registration(id: &str, options: &Options, own: [(&str, &str); 3], found: &Found, dir: &DataDir) -> RegisterRequest {
    let kernel =
        |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default().trim().to_owned();
    let (memory_mb, storage_mb) = metrics::capacity(&dir.work());
    let mut labels = options.labels.clone();
    // Without a value, or with one that is longer than labels may be, there is no such label.
    let own = own.into_iter().filter(|(_, value)| (1..=LONGEST_LABEL).contains(&value.len()));
    labels.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
    RegisterRequest {
        session_id: id.to_owned(),
        capacity: Some(Capacity {
            slots: options.capacity,
            cpu_millis: u64::from(config::cores()) * 1_000,
            memory_mb,
            storage_mb,
            gpu: u32::try_from(options.gpus.len()).expect("a bounded number"),
        }),
        labels,
        version: VERSION.to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        kernel: kernel("osrelease"),
        hostname: kernel("hostname"),
        boot_id: executor::intent::boot_id(),
        adopted: found.adopted.clone(),
        dead: found.dead.clone(),
    }
}
