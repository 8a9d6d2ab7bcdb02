//! The nodes that a user's default cluster has beside those that stand in their file: `~/.config/hodei/servers.toml`.
//!
//! Every answer names all members ([`SERVERS_KEY`](crate::net::SERVERS_KEY)). What a client of the default cluster hears in this way is kept beside the
//! user's own file, which is never changed, and asked after the servers that stand there. So who ran `init` on the first
//! node finds the others when that one is down. Servers that were given by flag or variable are asked alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::durable;

/// More than a cluster has, and than an answer is believed.
const MOST: usize = 16;

/// What was heard, and where it is kept.
#[derive(Clone, Debug)]
pub struct KnownServers {
    path: PathBuf,
    kept: Kept,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// The servers of the user's file when this was heard: with others there, it is of another cluster.
    of: Vec<String>,
    /// All members.
    servers: Vec<String>,
}

impl KnownServers {
    /// What is kept beside the user's file, if it is of the same servers.
    #[must_use]
    pub fn beside(client_file: &Path, configured: &[String]) -> Self {
        let path = path(client_file);
        let kept = fs::read_to_string(&path).ok().and_then(|text| toml::from_str::<Kept>(&text).ok());
        let kept = kept.filter(|kept| kept.of == configured);
        let fresh = || Kept { of: configured.to_vec(), servers: Vec::new() };
        Self { path, kept: kept.unwrap_or_else(fresh) }
    }

    /// The servers that stand in the user's file and then the others.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        let mut all = self.kept.of.clone();
        all.extend(self.kept.servers.iter().filter(|server| !self.kept.of.contains(server)).cloned());
        all
    }

    /// Takes over what an answer named. Returns whether that is something new, to be [kept](Self::keep).
    pub fn learn(&mut self, named: &str) -> bool {
        let named: Vec<_> =
            named.split(',').take(MOST).filter_map(|one| super::identity::with_default_port(one).ok()).collect();
        if named.is_empty() || named == self.kept.servers {
            return false;
        }
        self.kept.servers = named;
        true
    }

    /// Writes it down. Blocks on the disk.
    ///
    /// # Errors
    /// Whatever the file system says: the next invocation hears it again.
    pub fn keep(&self) -> io::Result<()> {
        let text = toml::to_string(&self.kept).map_err(io::Error::other)?;
        durable::write(&self.path, text.as_bytes(), durable::PUBLIC)
    }
}

/// Takes away what is kept beside a user's file.
///
/// # Errors
/// Whatever the file system says; that there is nothing is fine.
pub fn forget(client_file: &Path) -> io::Result<()> {
    durable::remove(&path(client_file))
}

fn path(client_file: &Path) -> PathBuf {
    client_file.with_file_name("servers.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_is_known_until_the_file_names_others() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("client.toml");
        let configured = ["a:1".to_owned()];
        let mut known = KnownServers::beside(&file, &configured);
        assert_eq!(known.all(), ["a:1"]);
        assert!(known.learn("b:1,a:1,c:1") && !known.learn("b:1,a:1,c:1") && !known.learn(" , "));
        known.keep().unwrap();
        assert_eq!(KnownServers::beside(&file, &configured).all(), ["a:1", "b:1", "c:1"]);
        assert!(known.learn("a:1,c:1"), "one was removed");
        known.keep().unwrap();
        assert_eq!(KnownServers::beside(&file, &configured).all(), ["a:1", "c:1"]);
        assert_eq!(KnownServers::beside(&file, &["z:1".to_owned()]).all(), ["z:1"]);
        for _ in 0..2 {
            forget(&file).unwrap();
            assert_eq!(KnownServers::beside(&file, &configured).all(), ["a:1"]);
        }
    }
}
