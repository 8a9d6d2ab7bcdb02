//! Starting a replica: log, state, openraft, tasks, in this order.

use std::{sync::Arc, time::Duration};

use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{Handle, Inner, Leadership, Raft, compare, forward, lead::Leader, propose, quorum::Quorum, read};
use crate::{
    config::{self, Config, Dialer},
    error::{Fatal, RAFT_STOPPED, STATE_UNREADABLE, StartError},
    log_store::LogStore,
    machine::recover::{self, Opened, Options},
    network::{factory::Factory, peers::Peers},
    seam::{Fs, RealFs, SystemEntropy, blocking},
};

/// Opens what is on disk under `config.dir` and takes part in the cluster. A node without a membership waits: for
/// [`Handle::initialize`], or for the leader to make it a learner.
pub async fn start(config: Config, dialer: Arc<dyn Dialer>) -> Result<Handle, StartError> {
    let log = open_log(&config).await?;
    let sled_cache = config.storage.sled_cache;
    start_on(config, dialer, log, Some(sled_cache)).await
}

/// As [`start`], on a log that is open already and without a store for the state behind it: at each start it is rebuilt
/// from snapshot and log. Under [`crate::seam::sim::without_threads`], all that it does is up to the async runtime.
pub async fn start_simulated<F: Fs>(
    config: Config,
    dialer: Arc<dyn Dialer>,
    log: LogStore<F>,
) -> Result<Handle, StartError> {
    start_on(config, dialer, log, None).await
}

/// `sled_cache`: of the store for the state, if there is to be one.
async fn start_on<F: Fs>(
    config: Config,
    dialer: Arc<dyn Dialer>,
    mut log: LogStore<F>,
    sled_cache: Option<u64>,
) -> Result<Handle, StartError> {
    let settings = config::openraft_config(&config)?;
    let options = Options {
        sled_cache,
        write_interval: config.storage.write_interval,
        snapshot_floor: config.storage.snapshot_log_bytes,
    };
    let durable = Arc::new(log.durable());
    let Opened { machine, replica, snapshots, behind } = recover::open(&config.dir, &mut log, durable, options).await?;

    let timing = config.timing;
    let peers = Peers::new(config.node_id, config.cluster_id, dialer);
    let factory = Factory::new(peers.clone(), timing.election_max);
    let raft = Raft::new(config.node_id, settings, factory, log.clone(), machine)
        .await
        .map_err(|error| StartError::Raft(error.to_string()))?;

    let (reign, reigns) = watch::channel(None);
    let leadership = watch::Sender::new(Leadership::Following { leader: None });
    let quorum = Quorum::new(raft.metrics(), timing.patience());
    let (proposer, coalescer) =
        propose::coalescer(raft.clone(), replica.clone(), reigns, quorum.clone(), config.clock.clone());
    let (forwarder, link) = forward::forwarder(peers.clone());
    let (reads, rounds) = read::read_index(raft.clone(), peers.clone(), timing.patience());
    let leader = Leader {
        metrics: raft.server_metrics(),
        replica: replica.clone(),
        peers: peers.clone(),
        clock: config.clock.clone(),
        reign,
        leadership: leadership.clone(),
    };
    let inner = Inner {
        config,
        raft,
        log: Arc::new(log),
        replica,
        snapshots,
        peers,
        quorum,
        leadership,
        proposer,
        forwarder,
        reads,
        behind,
        fatal: watch::Sender::new(None),
        stopping: watch::Sender::new(false),
        tasks: Mutex::default(),
    };
    let handle = Handle { inner: Arc::new(inner) };
    let mut tasks = handle.inner.tasks.lock();
    tasks.spawn(leader.run());
    tasks.spawn(coalescer.run());
    tasks.spawn(link.run());
    tasks.spawn(rounds.run());
    tasks.spawn(compare::run(handle.clone()));
    tasks.spawn(take_snapshots(handle.clone()));
    tasks.spawn(watch_over(handle.clone()));
    drop(tasks);
    Ok(handle)
}

async fn open_log(config: &Config) -> Result<LogStore, StartError> {
    let (dir, options) = (config.dir.join("wal"), config.storage.log);
    let opened = blocking(move || LogStore::open(&RealFs, &dir, &options, Arc::new(SystemEntropy)));
    let (log, _) = opened.await.map_err(StartError::io("opening the log"))??;
    Ok(log)
}

/// How long a snapshot is waited for before it may be asked for again, which changes nothing while one is built.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);

/// Has a snapshot built whenever enough log has been applied. openraft purges the log behind it.
async fn take_snapshots(handle: Handle) {
    let replica = &handle.inner.replica;
    loop {
        replica.snapshot_due.notified().await;
        let applied = *replica.applied().borrow();
        if handle.inner.snapshots.current_id() >= applied {
            // Told by entries that the newest snapshot has taken in. One more would be no newer, and never be heard of.
            continue;
        }
        if handle.inner.raft.trigger().snapshot().await.is_err() {
            return;
        }
        let mut metrics = handle.inner.raft.data_metrics();
        let taken = async {
            while metrics.borrow_watched().snapshot < applied {
                if metrics.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        // openraft takes no order while it builds one of its own, which may be older.
        if let Ok(false) = timeout(SNAPSHOT_PATIENCE, taken).await {
            return;
        }
    }
}

/// Notices that openraft stopped by itself.
async fn watch_over(handle: Handle) {
    let mut metrics = handle.inner.raft.metrics();
    loop {
        let state = metrics.borrow_watched().running_state.clone();
        if let Err(error) = state {
            return report(&handle, &error.to_string());
        }
        if metrics.changed().await.is_err() {
            return report(&handle, "openraft ended without a word");
        }
        // Metrics change with every entry; nothing is lost by looking less often.
        sleep(handle.inner.config.timing.heartbeat).await;
    }
}

fn report(handle: &Handle, message: &str) {
    if handle.is_stopping() {
        return;
    }
    let code = if message.contains(STATE_UNREADABLE) { STATE_UNREADABLE } else { RAFT_STOPPED };
    tracing::error!(code, message, "this replica has stopped");
    handle.inner.fatal.send_if_modified(|fatal| {
        let first = fatal.is_none();
        if first {
            *fatal = Some(Fatal { code, message: message.to_owned() });
        }
        first
    });
}
