//! What a replica is told at its start.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use hodei_state::ids::{ClusterId, NodeId};
use openraft::SnapshotPolicy;
use tonic::transport::Channel;

use crate::{
    error::StartError,
    log_store,
    seam::{Clock, SystemClock},
};

/// A replica's identity, place and pace.
#[derive(Clone)]
pub struct Config {
    /// This node; never reused within the cluster.
    pub node_id: NodeId,
    /// A peer that names another cluster is refused.
    pub cluster_id: ClusterId,
    /// `wal/`, `db/`, `snapshots/` and `payloads/` lie below it.
    pub dir: PathBuf,
    /// Heartbeats and elections.
    pub timing: Timing,
    /// Sizes and intervals on disk.
    pub storage: Storage,
    /// Where time for stamps comes from; wall time is only ever one voice in a majority.
    pub clock: Arc<dyn Clock>,
}

impl Config {
    /// Defaults for everything but identity and place.
    #[must_use]
    pub fn new(node_id: NodeId, cluster_id: ClusterId, dir: PathBuf) -> Self {
        Self {
            node_id,
            cluster_id,
            dir,
            timing: Timing::default(),
            storage: Storage::for_process(),
            clock: Arc::new(SystemClock::default()),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("node_id", &self.node_id)
            .field("cluster_id", &self.cluster_id)
            .field("dir", &self.dir)
            .field("timing", &self.timing)
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}

/// Heartbeats and elections. The defaults suit a LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between a leader's heartbeats.
    pub heartbeat: Duration,
    /// A follower that heard nothing for a random time between these two stands for election.
    pub election_min: Duration,
    /// See `election_min`.
    pub election_max: Duration,
    /// Between comparisons of the state's hash with the other members.
    pub compare: Duration,
}

impl Timing {
    /// Whoever has not been heard of for so long is taken to be away: two election time-outs, so that one lost vote does not
    /// count.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.election_max * 2
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
            compare: Duration::from_secs(5),
        }
    }
}

/// Sizes and intervals on disk.
#[derive(Clone, Copy, Debug)]
pub struct Storage {
    /// The log's own.
    pub log: log_store::Options,
    /// A snapshot is due after so many bytes of log, or the last snapshot's size if that is more.
    pub snapshot_log_bytes: u64,
    /// Entries kept behind a snapshot for followers that lag.
    pub keep_entries: u64,
    /// Entries are purged in batches of at least this many.
    pub purge_batch: u64,
    /// A follower further behind than this is sent a snapshot.
    pub lag_entries: u64,
    /// sled's page cache.
    pub sled_cache: u64,
    /// The write-behind rests at least so long between passes.
    pub write_interval: Duration,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            log: log_store::Options::default(),
            snapshot_log_bytes: 64 << 20,
            keep_entries: 10_000,
            purge_batch: 1_000,
            lag_entries: 40_000,
            sled_cache: 64 << 20,
            write_interval: Duration::from_secs(1),
        }
    }
}

impl Storage {
    /// The default. Tests may want snapshots and new segments every few seconds.
    fn for_process() -> Self {
        let mut storage = Self::default();
        if hodei_state::armed!("tune::small-logs") {
            storage.log.wal.segment_bytes = 64 << 10;
            storage.snapshot_log_bytes = 8 << 10;
            (storage.keep_entries, storage.purge_batch, storage.lag_entries) = (5, 1, 10);
        }
        storage
    }
}

/// Finds the way to a peer. Implementations hand out cheap clones of lazily connecting channels.
pub trait Dialer: Send + Sync + 'static {
    /// `None`: the node's address is not known.
    fn channel(&self, node: NodeId) -> Option<Channel>;
}

/// Entries in one append message.
const MAX_PAYLOAD_ENTRIES: u64 = 512;
/// Entries in one write to the log.
const MAX_APPEND_ENTRIES: u64 = 4096;
/// For the last chunk of a snapshot: sending and installing it.
const INSTALL_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn openraft_config(config: &Config) -> Result<Arc<openraft::Config>, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let timing = &config.timing;
    openraft::Config {
        cluster_name: config.cluster_id.to_string(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max: millis(timing.election_max),
        install_snapshot_timeout: millis(INSTALL_SNAPSHOT_TIMEOUT),
        max_payload_entries: MAX_PAYLOAD_ENTRIES,
        max_append_entries: Some(MAX_APPEND_ENTRIES),
        replication_lag_threshold: config.storage.lag_entries,
        // By bytes of log, triggered by the handle.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: config.storage.keep_entries,
        purge_batch_size: config.storage.purge_batch,
        // A node that was cut off must not disturb a leader that works.
        enable_pre_vote: Some(!hodei_state::armed!("bug::no-pre-vote")),
        // A restarted leader may have lost what it applied: it has to be elected again.
        enable_leader_restore: Some(false),
        // A follower that forgot what it acknowledged is a broken promise, not a fresh start.
        allow_log_reversion: None,
        ..openraft::Config::default()
    }
    .validate()
    .map(Arc::new)
    .map_err(|error| StartError::Raft(error.to_string()))
}
