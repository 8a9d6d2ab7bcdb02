//! Where a `dev` cluster lives, and how this user's command line finds it: both go when it ends.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use crate::{
    cli::{
        exit::Failure,
        identity::{self, ClientFile},
        output,
    },
    durable,
    net::{connector, tls},
};

/// First line of a default that `dev` made: it may be replaced when its cluster is gone.
const MARK: &str = "# Made by `hodei-node dev`, which takes it away again.\n";

/// A directory that is removed when dropped.
pub struct Place {
    path: PathBuf,
    /// Whether the directory itself was made here, or only what is in it.
    made: bool,
}

impl Place {
    /// The given directory, which has to be empty or missing, or a temporary one.
    pub fn make(given: Option<&Path>) -> Result<Self, Failure> {
        let path = match given {
            Some(path) => std::path::absolute(path).map_err(|error| Failure::bad_input(error.to_string()))?,
            None => env::temp_dir().join(format!("hodei-dev-{}", Uuid::new_v4().simple())),
        };
        let fail = |error: io::Error| Failure::bad_input(format!("cannot use {}: {error}", path.display()));
        let made = durable::make_directory(&path).map_err(fail)?;
        if fs::read_dir(&path).map_err(fail)?.next().is_some() {
            return Err(Failure::bad_input(format!("{} is not empty", path.display())));
        }
        Ok(Self { path, made })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let removed = if self.made { fs::remove_dir_all(&self.path) } else { empty(&self.path) };
        if let Err(error) = removed {
            output::note(format_args!("warning: {} is left behind: {error}", self.path.display()));
        }
    }
}

fn empty(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(())
}

/// This user's default, taken away when dropped.
pub struct ClientDefault {
    path: PathBuf,
    text: String,
}

impl ClientDefault {
    /// Makes a cluster this user's default where there is none; says what to do otherwise.
    pub async fn set(servers: &[String], identity: &Path) -> Option<Self> {
        let export = || {
            output::note(format_args!(
                "use it with: export HODEI_SERVER={} HODEI_IDENTITY={}",
                servers.join(","),
                identity.display()
            ));
        };
        let path = match identity::client_file_path() {
            Some(path) if is_free(&path).await => path,
            _ => {
                export();
                return None;
            }
        };
        let file = ClientFile { servers: servers.to_vec(), identity: Some(identity.to_owned()) };
        let written = toml::to_string(&file).map_err(io::Error::other).and_then(|body| {
            let text = format!("{MARK}{body}");
            path.parent().map_or(Ok(false), durable::make_directory)?;
            durable::write(&path, text.as_bytes(), durable::PUBLIC)?;
            Ok(text)
        });
        match written {
            Ok(text) => Some(Self { path, text }),
            Err(error) => {
                output::note(format_args!("warning: cannot write {}: {error}", path.display()));
                export();
                None
            }
        }
    }
}

impl Drop for ClientDefault {
    fn drop(&mut self) {
        // What somebody else has written since is theirs.
        if fs::read_to_string(&self.path).is_ok_and(|now| now == self.text)
            && let Err(error) = durable::remove(&self.path)
        {
            output::note(format_args!("warning: {} is left behind: {error}", self.path.display()));
        }
    }
}

/// There is no default, or one of a `dev` that was killed.
async fn is_free(path: &Path) -> bool {
    match fs::read_to_string(path) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(text) if text.starts_with(MARK) => match toml::from_str(&text) {
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
    fn a_place_is_empty_and_goes() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/b");
        let place = Place::make(Some(&path)).unwrap();
        fs::write(place.path().join("file"), "").unwrap();
        assert_eq!(Place::make(Some(&path)).err().unwrap().exit, 2);
        drop(place);
        assert!(!path.exists());

        let place = Place::make(Some(base.path())).err().unwrap();
        assert!(place.message.contains("is not empty"), "{place}");
    }

    #[tokio::test]
    async fn only_the_default_of_a_dead_dev_is_replaced() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("client.toml");
        assert!(is_free(&path).await);
        fs::write(&path, format!("{MARK}servers = [\"127.0.0.1:1\"]\nidentity = {:?}\n", base.path())).unwrap();
        assert!(is_free(&path).await);
        fs::write(&path, format!("{MARK}identity = \"/nowhere/admin\"\n")).unwrap();
        assert!(is_free(&path).await);
        fs::write(&path, "identity = \"/nowhere/admin\"\n").unwrap();
        assert!(!is_free(&path).await, "a user's own");
    }
}
