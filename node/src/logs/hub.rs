//! The node's log files and sources, each of them once.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use futures::{future::BoxFuture, stream::BoxStream};
use hodei_proto::v1;
use hodei_state::{
    State,
    ids::{JobId, NodeId, WorkerId},
};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;

use super::{
    contact::{self, Alone},
    file::{Kind, LogFile},
    frame::LogKey,
    source::{self, Source},
    writer::{Stopped, Writer},
};

/// What the log plane wants to know of the replicated state.
pub trait Ledger: Send + Sync + 'static {
    /// The state as applied here.
    fn state(&self) -> State;
    /// Bumped whenever something about the job changes: its state, its attempts, where its logs lie.
    fn watch_job(&self, job: JobId) -> watch::Receiver<u64>;
    /// Bumped whenever something about the worker changes, above all its gateway.
    fn watch_worker(&self, worker: WorkerId) -> watch::Receiver<u64>;
    /// Whether a majority answers this node in time, by way of whoever leads, and this node has applied what that has committed.
    fn reaches_majority(&self, by: Instant) -> BoxFuture<'_, bool>;
    /// The job as it is told to clients; `None` where it was removed.
    fn describe(&self, job: JobId) -> BoxFuture<'_, Option<v1::JobEnd>>;
}

/// The answers to one pull.
pub type Pulled = BoxStream<'static, Result<v1::PullLogResponse, Status>>;

/// Other nodes' copies.
pub trait Upstream: Send + Sync + 'static {
    /// Begins to pull a log from a node.
    fn pull(&self, holder: NodeId, request: v1::PullLogRequest) -> BoxFuture<'_, Result<Pulled, Status>>;
}

/// The door to the log plane; cheap to clone.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    dir: PathBuf,
    writer: Writer,
    ledger: Arc<dyn Ledger>,
    upstream: Arc<dyn Upstream>,
    /// One file object per copy, so that one tally rules what is appended. The inner lock is held while opening.
    copies: Mutex<HashMap<LogKey, Arc<Slot>>>,
    sources: Mutex<HashMap<LogKey, Weak<Source>>>,
    alone: Alone,
    tasks: TaskTracker,
    stop: CancellationToken,
}

type Slot = tokio::sync::Mutex<Weak<LogFile>>;

/// Whether a copy may be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Only one that exists.
    Existing,
    /// A new one, too.
    OrCreate,
}

impl Hub {
    /// The log plane below `dir`; what earlier processes cached there is removed.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn start(
        node: NodeId,
        dir: &Path,
        ledger: Arc<dyn Ledger>,
        upstream: Arc<dyn Upstream>,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        match std::fs::remove_dir_all(dir.join(CACHE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let inner = Inner {
            node,
            dir: dir.to_owned(),
            writer: Writer::start()?,
            ledger,
            upstream,
            copies: Mutex::default(),
            sources: Mutex::default(),
            alone: Alone::new(None),
            tasks: TaskTracker::new(),
            stop,
        };
        let (ledger, alone, stop) = (inner.ledger.clone(), inner.alone.clone(), inner.stop.clone());
        inner.tasks.spawn(stop.run_until_cancelled_owned(contact::look(ledger, alone)));
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Ends sources and subscriptions, and waits for them. The token given to [`Hub::start`] must be cancelled.
    pub async fn stopped(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// The replicated state, as the log plane sees it.
    #[must_use]
    pub fn ledger(&self) -> &dyn Ledger {
        &*self.inner.ledger
    }

    pub(super) fn alone(&self) -> &Alone {
        &self.inner.alone
    }

    pub(super) fn upstream(&self) -> &dyn Upstream {
        &*self.inner.upstream
    }

    /// Cancelled when the node stops.
    #[must_use]
    pub fn stop(&self) -> &CancellationToken {
        &self.inner.stop
    }

    /// Runs something that ends by itself when [`Hub::stop`] is cancelled.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.inner.tasks.spawn(task);
    }

    /// This node's copy of a log; `None` where it has none and may not begin one.
    ///
    /// # Errors
    /// The file cannot be opened or is another log's.
    pub async fn copy(&self, key: LogKey, open: Open) -> io::Result<Option<Arc<LogFile>>> {
        let slot = self.slot(key);
        let mut slot = slot.lock().await;
        if let Some(file) = slot.upgrade().filter(|file| !file.progress().failed) {
            return Ok(Some(file));
        }
        let path = self.inner.dir.join(key.job.to_string()).join(format!("{}.1.log", key.attempt));
        let opened = blocking(move || match open {
            Open::Existing if !path.try_exists()? => Ok(None),
            _ => LogFile::open(&path, key, Kind::Copy).map(Some),
        });
        let file = opened.await?.map(Arc::new);
        if let Some(file) = &file {
            *slot = Arc::downgrade(file);
        }
        Ok(file)
    }

    fn slot(&self, key: LogKey) -> Arc<Slot> {
        let mut copies = self.inner.copies.lock();
        if copies.len() >= 1024 && copies.len().is_power_of_two() {
            // Slots that nobody uses: not being opened, and their file closed.
            copies.retain(|_, slot| {
                Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|file| file.strong_count() > 0)
            });
        }
        copies.entry(key).or_default().clone()
    }

    /// A new cache file for a log.
    pub(super) async fn cache(&self, key: LogKey) -> io::Result<Arc<LogFile>> {
        let name = format!("{}-{}-{:016x}.log", key.job, key.attempt, rand::random::<u64>());
        let path = self.inner.dir.join(CACHE).join(name);
        blocking(move || LogFile::open(&path, key, Kind::Cache)).await.map(Arc::new)
    }

    /// Queues a batch for a file; see [`Writer::append`].
    ///
    /// # Errors
    /// The node is stopping.
    pub async fn append(&self, file: &Arc<LogFile>, batch: v1::LogBatch, flags: u32) -> Result<(), Stopped> {
        self.inner.writer.append(file.clone(), batch, flags).await
    }

    /// The source of a log on this node; shared by everybody who reads it, and ended with the last of them.
    #[must_use]
    pub fn source(&self, key: LogKey) -> Arc<Source> {
        let mut sources = self.inner.sources.lock();
        if let Some(source) = sources.get(&key).and_then(Weak::upgrade) {
            return source;
        }
        if sources.len() >= 1024 && sources.len().is_power_of_two() {
            sources.retain(|_, source| source.strong_count() > 0);
        }
        let source = source::start(self, key);
        sources.insert(key, Arc::downgrade(&source));
        source
    }

    /// Removes the copies of jobs that the state no longer has. `state` must be from a linearizable read, so that a
    /// replica that lags removes nothing that it has not heard of yet.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn sweep(&self, state: State) -> io::Result<()> {
        let dir = self.inner.dir.clone();
        blocking(move || {
            for entry in std::fs::read_dir(dir)? {
                let entry = entry?;
                let job = entry.file_name().to_str().and_then(|name| name.parse::<JobId>().ok());
                if job.is_some_and(|job| state.job(job).is_none()) {
                    std::fs::remove_dir_all(entry.path())?;
                }
            }
            Ok(())
        })
        .await
    }
}

const CACHE: &str = "cache";

/// Runs blocking file work off the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
