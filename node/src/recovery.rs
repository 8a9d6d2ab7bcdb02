//! A node goes on alone, with what it has: the way on when a majority was lost for good.
//!
//! Nobody is left who could say what was committed, so an operator decides, and says so
//! (`hodei-node recover --accept-data-loss`). The new replica is written to `recovering/` first, and its being complete
//! noted there; only then do its parts take the places of the old ones, which go to `damaged/`. Whatever interrupts that,
//! the next start of the node, or of `recover`, brings it to its end, or throws away what was not complete.

use std::{fs, io, path::Path, sync::Arc};

use hodei_raft::{Remains, Storage};
use hodei_state::ids::{Millis, NodeId};
use rustls::ClientConfig;

use crate::{
    cli::exit::Failure,
    clock,
    data_dir::{DataDir, Identity},
    durable,
    net::{
        connector::{self, ConnectError},
        tls,
    },
    peers::book::Book,
    replacement,
};

/// Where the new replica is made.
const RECOVERING: &str = "recovering";
/// There once all of it is on disk.
const COMPLETE: &str = "recovering/complete";
/// What takes the place of what. `db/` has no successor: it is made again from the snapshot.
const PARTS: [&str; 3] = ["db", "wal", "snapshots"];

/// A member besides this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its id.
    pub node: NodeId,
    /// Where it was last known to be.
    pub address: String,
}

/// Reads what is left. Off the runtime.
///
/// # Errors
/// The disk refuses, or nothing is left of the state.
pub async fn look(dir: &DataDir) -> Result<Remains, Failure> {
    let path = dir.path().to_owned();
    let read = tokio::task::spawn_blocking(move || Remains::read(&path, &Storage::default())).await;
    read.map_err(|error| Failure::other(error.to_string()))?.map_err(|error| Failure::other(error.to_string()))
}

/// The other members, and where they were last known to be.
///
/// # Errors
/// `peers.toml` cannot be read.
pub fn others(dir: &DataDir, remains: &Remains, me: NodeId) -> Result<Vec<Other>, Failure> {
    let book = dir.read_toml::<Book>("peers.toml")?.unwrap_or_default();
    let present = remains.state().members().filter(|member| member.id != me && member.removed_at.is_none());
    let other = |id: NodeId, address: &str| Other { node: id, address: book.address(id).unwrap_or(address).to_owned() };
    Ok(present.map(|member| other(member.id, &member.address)).collect())
}

/// Those of them that still answer: a cluster that has them must not be made a second time.
pub async fn alive(others: &[Other], tls: &Arc<ClientConfig>) -> Vec<Other> {
    let asked = others.iter().map(|other| async move {
        let answer = connector::connect(&other.address, &tls::node_name(other.node), tls.clone()).await;
        // Who does not accept this node's certificate is there, too.
        matches!(answer, Ok(_) | Err(ConnectError::Identity(_))).then(|| other.clone())
    });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

/// Makes the directory that of a cluster with this one member. Off the runtime.
///
/// # Errors
/// The state does not let this member go on, or the disk refuses.
pub async fn go_on_alone(dir: &DataDir, identity: &Identity, remains: Remains) -> Result<(), Failure> {
    let (into, me) = (dir.join(RECOVERING), identity.node_id);
    let wall = Millis(u64::try_from(clock::unix_seconds()).unwrap_or_default().saturating_mul(1_000));
    discard(dir)?;
    let written = tokio::task::spawn_blocking(move || remains.write(&into, me, wall)).await;
    written.map_err(|error| Failure::other(error.to_string()))?.map_err(|error| Failure::other(error.to_string()))?;
    // Nobody is to be greeted any more, nor asked for another id.
    replacement::forget(dir)?;
    dir.write_toml("peers.toml", &Book::default())?;
    dir.write(COMPLETE, b"", durable::PUBLIC)?;
    resume(dir)
}

/// Brings a recovery to its end that was complete, and forgets one that was not.
///
/// # Errors
/// Where the directory cannot be written.
pub fn resume(dir: &DataDir) -> Result<(), Failure> {
    if dir.join(COMPLETE).exists() {
        install(dir).map_err(|error| dir.not_writable(&error))?;
        tracing::warn!("this node goes on alone, with what it had");
    }
    discard(dir)
}

fn install(dir: &DataDir) -> io::Result<()> {
    for part in PARTS {
        let new = dir.join(RECOVERING).join(part);
        let replaced = new.exists();
        if replaced || part == "db" {
            replacement::put_away(dir, &[part])?;
        }
        if replaced {
            fs::rename(&new, dir.join(part))?;
            durable::sync_directory(Path::new(dir.path()))?;
        }
    }
    Ok(())
}

fn discard(dir: &DataDir) -> Result<(), Failure> {
    match fs::remove_dir_all(dir.join(RECOVERING)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(dir.not_writable(&error)),
        _ => Ok(()),
    }
}
