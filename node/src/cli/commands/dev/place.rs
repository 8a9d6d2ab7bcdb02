//! Where a `dev` cluster lives, and how this user's command line finds it: both go when it ends.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use crate::{
    cli::{
        client_file::{self, Made},
        exit::Failure,
        output,
    },
    durable,
};

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
        match client_file::make_default(client_file::DEV, servers, identity).await {
            Made::Default { path, text } => return Some(Self { path, text }),
            Made::Taken => {}
            Made::Impossible(why) => output::note(format_args!("warning: {why}")),
        }
        output::note(format_args!(
            "use it with: export HODEI_SERVER={} HODEI_IDENTITY={}",
            servers.join(","),
            identity.display()
        ));
        None
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
}
