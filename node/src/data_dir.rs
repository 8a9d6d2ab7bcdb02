//! A node's data directory: locked by one process, and of one cluster for ever.
//!
//! ```text
//! lock             held while a process uses the directory
//! identity.toml    who this node is; written last, so that what lacks it is not prepared
//! peers.toml       where the other members were last known to be
//! pki/             ca.pem ca.key node.pem node.key secrets.key; enrolment.toml while joining
//! admin/           the first administrator: ca.pem cert.pem key.pem (on the founder)
//! wal/ db/ snapshots/ payloads/ logs/
//! ```

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    ops::Deref,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use hodei_state::ids::{ClusterId, NodeId, UserId};
use serde::{Deserialize, Serialize};

use crate::{cli::exit::Failure, durable, files::Files};

/// What errors call it.
const WHAT: &str = "data directory";

/// What preparing a directory writes before `identity.toml`.
const PREPARED: [&str; 9] = [
    "pki/ca.pem",
    "pki/ca.key",
    "pki/node.pem",
    "pki/node.key",
    "pki/secrets.key",
    "pki/enrolment.toml",
    "admin/ca.pem",
    "admin/cert.pem",
    "admin/key.pem",
];

/// What may lie in a directory that is not prepared: what an attempt to prepare it has left, and what a new file system
/// brings along.
const UNPREPARED: [&str; 7] =
    ["lock", "pki", "admin", "peers.toml", ".peers.toml.new", ".identity.toml.new", "lost+found"];

/// A data directory that this process alone uses. Dereferences to its files.
#[derive(Debug)]
pub struct DataDir {
    files: Files,
    /// It and those above it that this process made, innermost first.
    made: Vec<PathBuf>,
    /// Released when dropped.
    _lock: File,
}

/// Who a node is: `identity.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its cluster.
    #[serde(with = "text")]
    pub cluster_id: ClusterId,
    /// Its id there.
    pub node_id: NodeId,
    /// How often it has been started; orders its addresses.
    #[serde(default)]
    pub start_counter: u64,
    /// Whether a log was ever begun: one that is missing afterwards was lost, and must not be begun anew.
    #[serde(default)]
    pub log_begun: bool,
    /// On the founder, until the cluster's first command is committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founder: Option<Founder>,
}

impl Identity {
    /// Counts a start, where the cluster knows of `known` of them: more than this file does where an older copy of it was put
    /// back. Two starts with one number would let the older address stand.
    pub fn count_start(&mut self, known: u64) {
        self.start_counter = self.start_counter.max(known) + 1;
    }
}

/// What the first command of a cluster needs beside the node's own credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founder {
    /// The first administrator.
    #[serde(with = "text")]
    pub admin: UserId,
    /// SHA-256 of their key in base 32.
    pub admin_key: String,
}

/// Ids as text in TOML.
mod text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Deref for DataDir {
    type Target = Files;

    fn deref(&self) -> &Files {
        &self.files
    }
}

impl DataDir {
    /// Makes the directory where it is missing, locks it, and keeps everybody else out of it.
    ///
    /// # Errors
    /// Bad input: not writable, somebody else's, or in use by another process.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let fail = |error: io::Error| Files::new(WHAT, path).not_writable(&error);
        check_ours(path)?;
        let made = durable::make_directory(path).map_err(fail)?;
        loop {
            let lock = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(durable::SECRET)
                .open(path.join("lock"))
                .map_err(fail)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Failure::bad_input(format!(
                        "the data directory {} is in use by another process",
                        path.display()
                    )));
                }
                Err(TryLockError::Error(error)) => return Err(fail(error)),
            }
            // A process that gave up removes its lock file; a lock on a file that has no name any more locks nobody out.
            let held = lock.metadata().map_err(fail)?.ino();
            if fs::metadata(path.join("lock")).is_ok_and(|named| named.ino() == held) {
                make_private(path)?;
                return Ok(Self { files: Files::new(WHAT, path), made, _lock: lock });
            }
        }
    }

    /// Who the node is; `None`: the directory is not prepared.
    ///
    /// # Errors
    /// Where it cannot be read or understood.
    pub fn identity(&self) -> Result<Option<Identity>, Failure> {
        self.read_toml("identity.toml")
    }

    /// Writes who the node is. After this the directory is prepared.
    ///
    /// # Errors
    /// Bad input: not writable.
    pub fn write_identity(&self, identity: &Identity) -> Result<(), Failure> {
        self.write_toml("identity.toml", identity)
    }

    /// Takes away what an attempt to prepare the directory has left, after a definite refusal: nothing was written then.
    /// Only what this program writes is touched; the directory may hold somebody else's files.
    pub fn discard(self) {
        // Best effort: there is an error to report already, and leftovers do no harm.
        for name in PREPARED {
            let _ = durable::remove(&self.join(name));
        }
        // These succeed only for empty directories.
        let _ = fs::remove_dir(self.join("pki"));
        let _ = fs::remove_dir(self.join("admin"));
        let _ = durable::remove(&self.join("lock"));
        durable::unmake_directories(&self.made);
    }
}

/// Refuses a directory that was prepared once and has lost who it is, and one that is somebody else's: an agent's, or
/// anything that holds files which are not of this program. It comes before anything is written or cleaned up there.
fn check_ours(path: &Path) -> Result<(), Failure> {
    let refuse = |why: &str| Err(Failure::bad_input(format!("the data directory {} {why}", path.display())));
    // One that is not there yet is nobody's; one that cannot be read is refused where it is written to.
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    if path.join("identity.toml").exists() {
        return Ok(());
    }
    if path.join("wal").exists() {
        return refuse("holds a log but no identity.toml: it is damaged");
    }
    if path.join("attempts").exists() {
        return refuse("is that of an agent");
    }
    let mut names = entries.flatten().map(|entry| entry.file_name());
    let foreign = names.find(|name| !UNPREPARED.iter().any(|known| name == *known));
    foreign.map_or(Ok(()), |name| refuse(&format!("is not empty, it holds {}", name.display())))
}

/// Takes the directory away from everybody but its owner; what lies below may be readable by itself.
fn make_private(path: &Path) -> Result<(), Failure> {
    let made = fs::metadata(path).and_then(|found| {
        let mut permissions = found.permissions();
        if permissions.mode() & 0o077 == 0 {
            return Ok(());
        }
        permissions.set_mode(0o700);
        fs::set_permissions(path, permissions)
    });
    made.map_err(|error| {
        Failure::bad_input(format!("the data directory {} cannot be made private: {error}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let founder = Founder { admin: UserId(7), admin_key: "abc".into() };
        Identity { cluster_id: ClusterId(5), node_id: 1, start_counter: 3, log_begun: true, founder: Some(founder) }
    }

    #[test]
    fn a_directory_is_used_by_one() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("n1");
        let first = DataDir::open(&path).unwrap();
        let second = DataDir::open(&path).unwrap_err();
        assert_eq!(second.exit, 2);
        assert!(second.message.ends_with("is in use by another process"), "{second}");
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn somebody_elses_directory_is_refused_and_left_alone() {
        for (name, why) in [("attempts", "of an agent"), ("important", "it holds important"), ("wal", "is damaged")] {
            let base = tempfile::tempdir().unwrap();
            let path = base.path();
            fs::create_dir(path.join("pki")).unwrap();
            fs::write(path.join("pki/ca.pem"), "theirs").unwrap();
            drop(DataDir::open(path).unwrap());
            fs::remove_file(path.join("lock")).unwrap();
            fs::create_dir(path.join(name)).unwrap();
            let failure = DataDir::open(path).unwrap_err();
            assert_eq!(failure.exit, 2);
            assert!(failure.message.contains(why), "{failure}");
            assert!(!path.join("lock").exists());
            assert_eq!(fs::read_to_string(path.join("pki/ca.pem")).unwrap(), "theirs");
        }
    }

    #[test]
    fn an_identity_can_be_read_back() {
        let base = tempfile::tempdir().unwrap();
        let dir = DataDir::open(base.path()).unwrap();
        assert_eq!(dir.identity().unwrap(), None);
        dir.write_identity(&identity()).unwrap();
        assert_eq!(dir.identity().unwrap(), Some(identity()));
        dir.write("identity.toml", b"cluster_id = 7", durable::PUBLIC).unwrap();
        assert!(dir.identity().unwrap_err().message.contains("is damaged"));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_bad_input() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("file"), "").unwrap();
        let failure = DataDir::open(&base.path().join("file/n1")).unwrap_err();
        assert_eq!(failure.exit, 2);
        assert!(failure.message.contains("is not writable"), "{failure}");
    }

    #[test]
    fn a_directory_that_others_could_read_is_made_private() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("n1");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let _dir = DataDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn what_is_discarded_leaves_nothing() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/b/n1");
        let dir = DataDir::open(&path).unwrap();
        dir.write("pki/node.key", b"secret", durable::SECRET).unwrap();
        dir.discard();
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }
}
