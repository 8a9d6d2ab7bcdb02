//! Snapshots: one file each, whole or absent, built beside the running state machine.
//!
//! A [`Builder`] holds a clone of the state (persistent maps: taking it costs nothing) and writes it on a blocking
//! thread, after the log is durable through it and after every payload that it refers to is durable. The file appears
//! by rename. Only the newest is kept; an older one lives on while somebody still sends it.

pub(crate) mod format;

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft::{
    RaftSnapshotBuilder,
    alias::{SnapshotMetaOf, SnapshotOf},
};
use parking_lot::Mutex;

use self::format::{HeaderV1, Reader};
use super::{
    LogDurable,
    behind::Stage,
    files,
    payloads::{Building, PayloadDigest},
    replica::{Held, Replica},
};
use crate::{
    codec::StoredMembershipV1,
    seam::blocking,
    types::{LogId, TypeConfig},
};

/// How long a build waits for the log to become durable through the state that it holds.
const LOG_PATIENCE: Duration = Duration::from_secs(30);

/// An open snapshot file. It can be read even after the file has made room for a newer one.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    pub(crate) len: u64,
    pub(crate) digests: Arc<Vec<PayloadDigest>>,
}

impl SnapshotFile {
    /// Opens a file and checks its start. Blocking.
    pub(crate) fn open(path: &Path) -> io::Result<(SnapshotMetaOf<TypeConfig>, Self)> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let (mut reader, header) = Reader::open(&file)?;
        let digests = reader.digests(&header)?;
        Ok((header.meta()?, Self { file: Arc::new(file), path: path.to_owned(), len, digests: Arc::new(digests) }))
    }

    /// Reads and checks the whole of it. Blocking.
    pub(crate) fn load(&self) -> io::Result<Held> {
        let file = File::open(&self.path)?;
        let (mut reader, header) = Reader::open(file)?;
        reader.digests(&header)?;
        let meta = header.meta()?;
        let state = reader.state(&header)?;
        Ok(Held { state, applied: meta.last_log_id, membership: Arc::new(meta.last_membership) })
    }

    /// Reads the whole of it and checks each block, without making a state of it. Blocking.
    pub(crate) fn verify(&self) -> io::Result<()> {
        let (mut reader, header) = Reader::open(File::open(&self.path)?)?;
        reader.digests(&header)?;
        reader.verify()
    }
}

/// The directory and the newest snapshot in it.
pub(crate) struct Snapshots {
    dir: PathBuf,
    current: Mutex<Option<(SnapshotMetaOf<TypeConfig>, SnapshotFile)>>,
    /// Names the pins of builds and transfers.
    next_token: AtomicU64,
}

impl Snapshots {
    /// Finds the newest snapshot whose start is whole; what is half written or damaged at its start is removed.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        files::create_dir(dir)?;
        files::remove_temporary(dir)?;
        let mut found: Vec<(SnapshotMetaOf<TypeConfig>, SnapshotFile)> = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "snap") {
                continue;
            }
            match SnapshotFile::open(&path) {
                Ok(snapshot) => found.push(snapshot),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "passing over a damaged snapshot");
                }
            }
        }
        found.sort_by_key(|(meta, _)| meta.last_log_id);
        Ok(Self { dir: dir.to_owned(), current: Mutex::new(found.pop()), next_token: AtomicU64::new(1) })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn current(&self) -> Option<(SnapshotMetaOf<TypeConfig>, SnapshotFile)> {
        self.current.lock().clone()
    }

    pub(crate) fn current_id(&self) -> Option<LogId> {
        self.current.lock().as_ref().and_then(|(meta, _)| meta.last_log_id)
    }

    /// Forgets a snapshot that turned out to be of no use. Its file goes when there is another one.
    pub(crate) fn discard(&self) {
        *self.current.lock() = None;
    }

    pub(crate) fn token(&self) -> u64 {
        self.next_token.fetch_add(1, Ordering::Relaxed)
    }

    /// Payloads that the kept snapshot refers to.
    pub(crate) fn digests(&self) -> HashSet<PayloadDigest> {
        self.current.lock().iter().flat_map(|(_, file)| file.digests.iter().copied()).collect()
    }

    pub(crate) fn path_of(&self, id: Option<LogId>) -> PathBuf {
        let (index, term) = id.map_or((0, 0), |id| (id.index(), **id.committed_leader_id()));
        self.dir.join(format!("{index:020}-{term}.snap"))
    }

    /// Makes a synced file under another name the newest snapshot, durably, and removes older ones. Blocking.
    pub(crate) fn adopt(&self, written: &Path, id: Option<LogId>) -> io::Result<SnapshotFile> {
        let path = self.path_of(id);
        if written != path {
            fs::rename(written, &path)?;
            files::sync_dir(&self.dir)?;
        }
        let (meta, file) = SnapshotFile::open(&path)?;
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|(newest, _)| newest.last_log_id > meta.last_log_id) {
            return Ok(file);
        }
        *current = Some((meta, file.clone()));
        drop(current);
        self.remove_others(&path)?;
        Ok(file)
    }

    fn remove_others(&self, kept: &Path) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path != kept && path.extension().is_some_and(|extension| extension == "snap") {
                fs::remove_file(path)?;
            }
        }
        files::sync_dir(&self.dir)
    }
}

/// Writes a state that refers to these payloads into a new file, and syncs it; the directory is the caller's. Blocking.
pub(super) fn write(path: &Path, held: &Held, mut digests: Vec<PayloadDigest>) -> io::Result<()> {
    digests.sort_unstable();
    digests.dedup();
    let header = HeaderV1 {
        last: held.applied.map(Into::into),
        membership: StoredMembershipV1::from(&*held.membership),
        hash: held.state.hash(),
        payloads: digests.len() as u64,
    };
    format::write(File::create(path)?, &header, &digests, &held.state).map(drop)
}

/// Builds one snapshot of the state as it was when the builder was made.
pub(crate) struct Builder {
    pub(super) held: Held,
    /// Spares its payloads until the snapshot itself does.
    #[expect(dead_code, reason = "it is there to be dropped")]
    pub(super) building: Building,
    pub(super) replica: Arc<Replica>,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) stage: Stage,
    pub(super) log: LogDurable,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
        let applied = self.held.applied;
        if let Some(applied) = applied.filter(|applied| self.snapshots.current_id() < Some(*applied)) {
            let waited = tokio::time::timeout(LOG_PATIENCE, self.log.through(applied)).await;
            waited.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the log does not become durable"))??;
        }
        let file = self.write().await?;
        hodei_state::failpoint!("snapshot::after-build");
        self.replica.snapshot_taken(file.len);
        self.stage.collect();
        let meta =
            SnapshotMetaOf::<TypeConfig> { last_log_id: applied, last_membership: (*self.held.membership).clone() };
        Ok(SnapshotOf::<TypeConfig, _> { meta, snapshot: file })
    }
}

impl Builder {
    async fn write(&self) -> io::Result<SnapshotFile> {
        self.stage.payloads_durable().await?;
        let (held, snapshots) = (self.held.clone(), self.snapshots.clone());
        blocking(move || {
            let temporary = snapshots.path_of(held.applied).with_extension("tmp");
            hodei_state::failpoint!("snapshot::before-write");
            write(&temporary, &held, hodei_state::payload_digests(&held.state).collect())?;
            hodei_state::failpoint!("snapshot::before-rename");
            snapshots.adopt(&temporary, held.applied)
        })
        .await?
    }
}
