//! Opening: what is on disk, how far it can be trusted, and from where the state is rebuilt.

use std::{path::Path, sync::Arc, time::Duration};

use openraft::{RaftLogReader, storage::RaftLogStorage};

use super::{LogDurable, Machine, Replica, Snapshots, WriteBehind, files, payloads::Payloads, sled_store::SledStore};
use crate::{
    error::StartError,
    seam::blocking,
    types::{LogId, TypeConfig},
};

/// How the machine keeps its files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Of the store, if there is to be one.
    pub(crate) sled_cache: Option<u64>,
    pub(crate) write_interval: Duration,
    pub(crate) snapshot_floor: u64,
}

/// The opened machine and its shared parts.
pub(crate) struct Opened {
    pub(crate) machine: Machine,
    pub(crate) replica: Arc<Replica>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) behind: WriteBehind,
}

/// Opens what lies under `dir`; the log is already open and only read.
pub(crate) async fn open<L>(
    dir: &Path,
    log: &mut L,
    durable: LogDurable,
    options: Options,
) -> Result<Opened, StartError>
where
    L: RaftLogStorage<TypeConfig>,
{
    let (db, snapshot_dir, payload_dir) = (dir.join("db"), dir.join("snapshots"), dir.join("payloads"));
    let opened = blocking({
        let (db, payload_dir) = (db.clone(), payload_dir.clone());
        move || {
            files::create_dir(&payload_dir)?;
            files::remove_temporary(&payload_dir)?;
            let snapshots = Snapshots::open(&snapshot_dir)?;
            let opened = options.sled_cache.map(|cache| SledStore::open(&db, cache)).transpose()?;
            std::io::Result::Ok((snapshots, opened))
        }
    })
    .await;
    let (snapshots, opened) = opened.flatten().map_err(StartError::io("opening the state's files"))?;
    let (mut store, mut loaded) = opened.map_or((None, None), |(store, loaded)| (Some(store), loaded));
    if let (Some((held, _)), Some(cache)) = (&loaded, options.sled_cache)
        && !log_knows(log, held.applied, snapshots.current_id()).await?
    {
        tracing::warn!(applied = ?held.applied, "the stored state is not of this log; it is rebuilt");
        drop(store);
        store = Some(SledStore::recreate(&db, cache).map_err(StartError::io("recreating the state's store"))?);
        loaded = None;
    }
    let (held, log_bytes) = loaded.unwrap_or_default();
    check_rebuildable(log, held.applied, &snapshots).await?;

    let replica = Arc::new(Replica::new(held, Payloads::new(payload_dir), options.snapshot_floor));
    replica.set_log_bytes(log_bytes);
    let snapshots = Arc::new(snapshots);
    let behind = WriteBehind::spawn(store, replica.clone(), snapshots.clone(), durable.clone(), options.write_interval)
        .map_err(StartError::io("starting the write-behind thread"))?;
    let machine = Machine::new(replica.clone(), snapshots.clone(), behind.stage(), durable);
    Ok(Opened { machine, replica, snapshots, behind })
}

/// Whether `applied` is an entry of this very history: in the log by term and index, the entry that the log was purged
/// through, or the snapshot's.
async fn log_knows<L>(log: &mut L, applied: Option<LogId>, snapshot: Option<LogId>) -> Result<bool, StartError>
where
    L: RaftLogStorage<TypeConfig>,
{
    let Some(applied) = applied else { return Ok(true) };
    let state = log.get_log_state().await.map_err(StartError::io("reading the log"))?;
    if Some(applied) == state.last_purged_log_id || Some(applied) == snapshot {
        return Ok(true);
    }
    if state.last_purged_log_id.is_some_and(|purged| applied.index() <= purged.index()) {
        return Ok(false);
    }
    let mut reader = log.get_log_reader().await;
    let entries = reader
        .try_get_log_entries(applied.index()..=applied.index())
        .await
        .map_err(StartError::io("reading the log"))?;
    Ok(entries.first().is_some_and(|entry| entry.log_id == applied))
}

/// State or snapshot must reach to where the log begins. A snapshot that is damaged anywhere, or that the log does not
/// reach back to, is not kept: a new one takes its place, made of the state.
async fn check_rebuildable<L>(log: &mut L, applied: Option<LogId>, snapshots: &Snapshots) -> Result<(), StartError>
where
    L: RaftLogStorage<TypeConfig>,
{
    let purged = log.get_log_state().await.map_err(StartError::io("reading the log"))?.last_purged_log_id;
    if let Some((meta, file)) = snapshots.current() {
        let needed = meta.last_log_id > applied;
        let checked = blocking(move || if needed { file.load().map(drop) } else { file.verify() }).await.flatten();
        if let Err(error) = checked {
            tracing::warn!(%error, "the snapshot is damaged and is not used");
            snapshots.discard();
        } else if meta.last_log_id < purged {
            tracing::warn!(last = ?meta.last_log_id, "the snapshot is older than the log's beginning and is not used");
            snapshots.discard();
        }
    }
    if purged > applied.max(snapshots.current_id()) {
        return Err(StartError::Unrebuildable(format!(
            "the log begins after {}, and no intact state or snapshot reaches it",
            purged.map_or_else(String::new, |id| id.to_string())
        )));
    }
    Ok(())
}
