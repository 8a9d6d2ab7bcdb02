//! The defaults of this user, `~/.config/hodei/client.toml`: where the cluster is and who they are there.
//!
//! `init`, `enroll` and `dev` write it where there is none. One that `dev` wrote bears a mark: `dev` takes it away when
//! it ends, and where it could not, anybody may replace it once its cluster does not answer any more.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{exit::Failure, identity};
use crate::{
    durable,
    net::{connector, tls},
};

/// First line of a default that `dev` made.
pub const DEV: &str = "# Made by `hodei-node dev`, which takes it away again.\n";

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// host:port of nodes.
    #[serde(default)]
    pub servers: Vec<String>,
    /// A directory with ca.pem, cert.pem and key.pem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<PathBuf>,
}

/// What came of making a cluster this user's default.
#[derive(Debug)]
pub enum Made {
    /// It is.
    Default {
        /// The file.
        path: PathBuf,
        /// All of its text.
        text: String,
    },
    /// Something else is, and stays so.
    Taken,
    /// There is no home, or it cannot be written: a warning.
    Impossible(String),
}

/// `$XDG_CONFIG_HOME/hodei`, by default below `~/.config`; `None`: there is no home.
#[must_use]
pub fn config_dir() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
    Some(base.join("hodei"))
}

/// The file.
#[must_use]
pub fn path() -> Option<PathBuf> {
    Some(config_dir()?.join("client.toml"))
}

/// Reads the user's file; one that does not exist is empty.
///
/// # Errors
/// Bad input, where it cannot be read or understood.
pub fn read(path: &Path) -> Result<ClientFile, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text)
            .map_err(|error| Failure::bad_input(format!("{}: {}", path.display(), error.message()))),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(ClientFile::default())
        }
        // Flags and environment still work.
        Err(error) => Err(Failure::bad_input(format!(
            "cannot read {}: {error}; give both --server and --identity to do without it",
            path.display()
        ))),
    }
}

/// Makes a cluster this user's default where there is none. `head` is the file's first line, or empty.
pub async fn make_default(head: &str, servers: &[String], identity: &Path) -> Made {
    let Some(path) = path() else {
        return Made::Impossible("no home directory: no default is written".into());
    };
    if !is_free(&path).await {
        return Made::Taken;
    }
    let file = ClientFile { servers: servers.to_vec(), identity: Some(identity.to_owned()) };
    let written = toml::to_string(&file).map_err(io::Error::other).and_then(|body| {
        let text = format!("{head}{body}");
        path.parent().map_or(Ok(Vec::new()), durable::make_directory)?;
        durable::write(&path, text.as_bytes(), durable::PUBLIC)?;
        Ok(text)
    });
    match written {
        Ok(text) => Made::Default { path, text },
        Err(error) => Made::Impossible(format!("cannot write {}: {error}", path.display())),
    }
}

/// There is no default, or one of a `dev` that was killed.
async fn is_free(path: &Path) -> bool {
    match fs::read_to_string(path) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(text) if text.starts_with(DEV) => match toml::from_str(&text) {
            Ok(file) => !answers(&file).await,
            Err(_) => false,
        },
        Ok(_) => false,
    }
}

/// Whether any of the servers is there and of the identity's cluster; a port may be another's by now.
async fn answers(file: &ClientFile) -> bool {
    let Some(tls) = file.identity.as_deref().and_then(|identity| identity::read_identity(identity).ok()) else {
        return false;
    };
    for server in &file.servers {
        if connector::connect(server, tls::ANY_NODE, tls.clone()).await.is_ok() {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("client.toml");
        assert_eq!(read(&path).unwrap(), ClientFile::default());
        assert_eq!(read(&path.join("below/a/file")).unwrap(), ClientFile::default());
        fs::write(&path, b"identity = '\xff'").unwrap();
        for _ in 0..2 {
            let failure = read(&path).unwrap_err();
            assert!(failure.exit == 2 && failure.message.contains("client.toml: "), "{failure}");
            fs::remove_file(&path).ok();
            fs::create_dir(&path).ok();
        }
    }

    #[tokio::test]
    async fn only_the_default_of_a_dead_dev_is_replaced() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("client.toml");
        assert!(is_free(&path).await);
        fs::write(&path, format!("{DEV}servers = [\"127.0.0.1:1\"]\nidentity = {:?}\n", base.path())).unwrap();
        assert!(is_free(&path).await);
        fs::write(&path, format!("{DEV}identity = \"/nowhere/admin\"\n")).unwrap();
        assert!(is_free(&path).await);
        fs::write(&path, "identity = \"/nowhere/admin\"\n").unwrap();
        assert!(!is_free(&path).await, "a user's own");
    }
}
