//! The agent's directory: `lock`, `place`, `pki/`, `state`, `attempts/<job>-<n>/{intent,process,spool-*,result}` and
//! `work/<job>-<n>/`, the jobs' private directories. One process at a time holds it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{disk, error::Exit, key::AttemptKey};

/// What may lie in a directory that no agent has used yet: a lock that was taken, and what a new file system brings along.
const UNUSED: [&str; 3] = ["lock", PLACE, "lost+found"];

/// Where this directory is, as far as it can be told from a copy.
const PLACE: &str = "place";

/// A directory that this process holds.
pub struct DataDir {
    root: PathBuf,
    /// Held as long as this lives.
    _lock: File,
}

/// The two directories of an attempt.
#[derive(Clone, Debug)]
pub struct AttemptDirs {
    /// What the agent keeps of it.
    pub record: PathBuf,
    /// The job's own.
    pub private: PathBuf,
}

impl AttemptDirs {
    /// `<job>-<n>`.
    #[must_use]
    pub fn name(&self) -> String {
        self.record.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// What is remembered between processes.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Remembered {
    /// Addresses of all nodes, as the last gateway named them.
    peers: Vec<String>,
}

impl DataDir {
    /// Creates what is missing, takes the lock, and keeps everybody else out.
    pub fn open(root: &Path) -> Result<Self, Exit> {
        let failed = |error: &io::Error| Exit::bad_input(format!("data directory {}: {error}", root.display()));
        disk::make_dir(root, mode()).map_err(|error| failed(&error))?;
        let root = root.canonicalize().map_err(|error| failed(&error))?;
        check_ours(&root)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(root.join("lock"));
        let lock = lock.map_err(|error| failed(&error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Exit::bad_input(format!("data directory {}: in use by another process", root.display())));
            }
            Err(TryLockError::Error(error)) => return Err(failed(&error)),
        }
        make_private(&root).map_err(|error| failed(&error))?;
        check_place(&root)?;
        let dir = Self { root, _lock: lock };
        disk::make_dir(&dir.attempts(), 0o700).map_err(|error| failed(&error))?;
        disk::make_dir(&dir.work(), 0o711).map_err(|error| failed(&error))?;
        Ok(dir)
    }

    /// Certificates and keys.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// One directory per attempt.
    #[must_use]
    pub fn attempts(&self) -> PathBuf {
        self.root.join("attempts")
    }

    /// The jobs' private directories.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// The directories of one attempt.
    #[must_use]
    pub fn of(&self, key: AttemptKey) -> AttemptDirs {
        let name = key.dir_name();
        AttemptDirs { record: self.attempts().join(&name), private: self.work().join(name) }
    }

    /// Addresses remembered from an earlier process.
    #[must_use]
    pub fn peers(&self) -> Vec<String> {
        let remembered = disk::read_json::<Remembered>(&self.root.join("state")).unwrap_or_else(|error| {
            tracing::warn!(%error, "the nodes' addresses are forgotten; those that were given are asked");
            None
        });
        remembered.unwrap_or_default().peers
    }

    /// Remembers addresses. Blocking.
    pub fn remember_peers(&self, peers: &[String]) -> io::Result<()> {
        let text = serde_json::to_vec(&Remembered { peers: peers.to_vec() }).map_err(io::Error::other)?;
        disk::write_durably(&self.root.join("state"), &text)
    }
}

/// Refuses a directory that is a node's, and one that is not an agent's yet and holds somebody else's files.
fn check_ours(root: &Path) -> Result<(), Exit> {
    let refuse = |why: String| Err(Exit::bad_input(format!("data directory {}: {why}", root.display())));
    if root.join("identity.toml").exists() || root.join("wal").exists() {
        return refuse("it is that of a node".to_owned());
    }
    if root.join("attempts").exists() {
        return Ok(());
    }
    let Ok(entries) = fs::read_dir(root) else { return refuse("it cannot be read".to_owned()) };
    let foreign =
        entries.flatten().map(|entry| entry.file_name()).find(|name| !UNUSED.iter().any(|known| name == *known));
    foreign.map_or(Ok(()), |name| refuse(format!("it is not empty, it holds {}", name.display())))
}

/// What tells a copy from the directory itself.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// `/etc/machine-id`; empty where there is none.
    machine: String,
    /// The directory's inode. Devices are numbered anew when a machine starts.
    inode: u64,
}

/// Refuses a copy. Two agents with one identity would take the worker from each other, and its jobs with it, for as long as
/// both run; neither the cluster nor they could tell which one is meant.
fn check_place(root: &Path) -> Result<(), Exit> {
    let failed = |error: io::Error| Exit::bad_input(format!("data directory {}: {error}", root.display()));
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_owned();
    let here = Place { machine, inode: fs::metadata(root).map_err(failed)?.ino() };
    let file = root.join(PLACE);
    match disk::read_json::<Place>(&file).map_err(failed)? {
        Some(known) if known == here => Ok(()),
        Some(known) => {
            let from = if known.machine == here.machine { "elsewhere on this machine" } else { "another machine" };
            Err(Exit::bad_input(format!(
                "data directory {}: it was copied or moved from {from}, and an agent may still run there with the same \
                 identity; if none does nor ever will, remove {}",
                root.display(),
                file.display()
            )))
        }
        None => {
            let text = serde_json::to_vec(&here).map_err(io::Error::other).map_err(failed)?;
            disk::write_durably(&file, &text).map_err(failed)
        }
    }
}

/// What the directory is for others: nothing. Where jobs may run as other users, these may pass through to a private
/// directory that is theirs, but read nothing.
fn mode() -> u32 {
    if nix::unistd::geteuid().is_root() { 0o711 } else { 0o700 }
}

/// Takes away what others may do in a directory that was there before, but for what [`mode`] leaves them.
fn make_private(root: &Path) -> io::Result<()> {
    let mut permissions = fs::metadata(root)?.permissions();
    if permissions.mode() & 0o777 == mode() {
        return Ok(());
    }
    permissions.set_mode(mode());
    fs::set_permissions(root, permissions)
}

/// Removes a directory in two steps, so that a crash in between leaves nothing that looks like an attempt. Blocking.
pub fn discard(dir: &Path) {
    let Some(name) = dir.file_name() else { return };
    let trash = dir.with_file_name(format!(".gone-{}", name.to_string_lossy()));
    let gone = fs::rename(dir, &trash).and_then(|()| fs::remove_dir_all(&trash));
    if let Err(error) = gone
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "cannot remove a directory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let refused = DataDir::open(dir.path()).err().unwrap();
        assert!(refused.message.contains("in use"), "{refused}");
        first.remember_peers(&["a:1".into()]).unwrap();
        drop(first);
        assert_eq!(DataDir::open(dir.path()).unwrap().peers(), ["a:1"]);
    }

    #[test]
    fn a_copy_is_refused_until_somebody_says_that_it_is_none() {
        let parent = tempfile::tempdir().unwrap();
        let (original, copy) = (parent.path().join("original"), parent.path().join("copy"));
        drop(DataDir::open(&original).unwrap());
        fs::create_dir_all(copy.join("attempts")).unwrap();
        fs::copy(original.join(PLACE), copy.join(PLACE)).unwrap();
        let refused = DataDir::open(&copy).err().unwrap();
        assert!(refused.message.contains("copied or moved from elsewhere on this machine"), "{refused}");
        fs::remove_file(copy.join(PLACE)).unwrap();
        drop(DataDir::open(&copy).unwrap());
        drop(DataDir::open(&original).unwrap());
        let away = Place { machine: "another".to_owned(), inode: fs::metadata(&copy).unwrap().ino() };
        disk::write_durably(&copy.join(PLACE), &serde_json::to_vec(&away).unwrap()).unwrap();
        assert!(DataDir::open(&copy).err().unwrap().message.contains("from another machine"));
        // Its name may change.
        fs::rename(&original, parent.path().join("renamed")).unwrap();
        DataDir::open(&parent.path().join("renamed")).unwrap();
    }

    #[test]
    fn somebody_elses_directory_is_refused() {
        for (name, why) in [("identity.toml", "of a node"), ("important", "it holds important")] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(name), "").unwrap();
            let refused = DataDir::open(dir.path()).err().unwrap();
            assert!(refused.message.contains(why), "{refused}");
        }
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path()).unwrap());
        fs::write(dir.path().join("notes"), "").unwrap();
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_that_others_could_read_is_made_private() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let _held = DataDir::open(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o7777, mode());
    }
}
