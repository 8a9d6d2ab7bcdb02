//! Where a `dev` cluster lives, and how this user's command line finds it: both go when it ends.
//!
//! Where it could not take its directory with it, because it was killed, the next `dev` does. A cluster locks a file in its
//! directory, and every process that it starts holds that lock as well: while anything of it lives, nobody can have it.

use std::{
    env,
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use uuid::Uuid;

use crate::{
    cli::{
        client_file::{self, Made},
        exit::Failure,
        known_servers, output,
    },
    durable,
};

/// How directories are called that nobody has named.
const PREFIX: &str = "hodei-dev-";
/// Locked for as long as anything of its cluster lives.
const LOCK: &str = "dev.lock";

/// A directory that is removed when dropped.
pub struct Place {
    path: PathBuf,
    /// It and those above it that were made here, innermost first.
    made: Vec<PathBuf>,
    lock: File,
}

impl Place {
    /// The given directory, which has to be empty or missing, or a temporary one. What a dead `dev` has left in it, or in
    /// temporary directories, is taken away.
    pub fn make(given: Option<&Path>) -> Result<Self, Failure> {
        let path = match given {
            Some(path) => std::path::absolute(path).map_err(|error| Failure::bad_input(error.to_string()))?,
            None => {
                reclaim_below(&env::temp_dir());
                env::temp_dir().join(format!("{PREFIX}{}", Uuid::new_v4().simple()))
            }
        };
        let fail = |error: io::Error| Failure::bad_input(format!("cannot use {}: {error}", path.display()));
        let made = durable::make_directory(&path).map_err(fail)?;
        made.iter().try_for_each(|dir| pass_through(dir)).map_err(fail)?;
        reclaim(&path);
        if fs::read_dir(&path).map_err(fail)?.next().is_some() {
            return Err(Failure::bad_input(format!("{} is not empty", path.display())));
        }
        let lock = lock(&path).map_err(fail)?;
        Ok(Self { path, made, lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What every process of the cluster inherits.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let removed = empty(&self.path);
        durable::unmake_directories(&self.made);
        if let Err(error) = removed {
            output::note(format_args!("warning: {} is left behind: {error}", self.path.display()));
        }
    }
}

/// Root's jobs may run as other users, who have to come to their working directories below it; they cannot list it.
fn pass_through(dir: &Path) -> io::Result<()> {
    if nix::unistd::geteuid().is_root() { fs::set_permissions(dir, Permissions::from_mode(0o711)) } else { Ok(()) }
}

/// It is locked before it bears the name by which others look for it.
fn lock(dir: &Path) -> io::Result<File> {
    let temporary = dir.join("dev.lock.new");
    let file = OpenOptions::new().write(true).create_new(true).mode(durable::SECRET).open(&temporary)?;
    file.try_lock().map_err(io::Error::from)?;
    fs::rename(temporary, dir.join(LOCK))?;
    Ok(file)
}

/// Takes away this user's temporary directories whose cluster is gone.
fn reclaim_below(base: &Path) {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    for path in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)).map(|e| e.path()) {
        // A link, or somebody else's directory in a place where everybody may write, is not looked into.
        let own = fs::symlink_metadata(&path)
            .is_ok_and(|meta| meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw());
        if own && reclaim(&path) && fs::remove_dir(&path).is_ok() {
            output::note(format_args!("removed {}, which a `dev` that was killed had left", path.display()));
        }
    }
}

/// Takes away what a cluster that is gone has left in a directory; what is not of its making stays. Returns whether there
/// was one.
fn reclaim(dir: &Path) -> bool {
    let Ok(lock) = File::open(dir.join(LOCK)) else { return false };
    if lock.try_lock().is_err() {
        return false;
    }
    let numbered = |name: &str, of: &str| name.strip_prefix(of).is_some_and(|number| number.parse::<u16>().is_ok());
    let process = |name: &str| numbered(name, "node") || numbered(name, "agent");
    let made = |name: &str| process(name) || name.strip_suffix(".log").is_some_and(process) || name == "config";
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if made(&entry.file_name().to_string_lossy()) {
            // What stays is found by the next one: the lock goes last.
            let _ = remove(&entry);
        }
    }
    fs::remove_file(dir.join(LOCK)).is_ok()
}

fn remove(entry: &fs::DirEntry) -> io::Result<()> {
    if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }
}

fn empty(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        remove(&entry?)?;
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
            && let Err(error) = known_servers::forget(&self.path).and_then(|()| durable::remove(&self.path))
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
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);

        fs::write(base.path().join("file"), "").unwrap();
        let place = Place::make(Some(base.path())).err().unwrap();
        assert!(place.message.contains("is not empty"), "{place}");
    }

    #[test]
    fn what_the_dead_have_left_goes_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let place = Place::make(Some(&base.path().join(name))).unwrap();
            fs::create_dir(place.path().join("node1")).unwrap();
            fs::write(place.path().join("node1.log"), "").unwrap();
            place
        };
        let killed = |place: Place| {
            let path = place.path().to_owned();
            // Only the lock goes with a process that is killed.
            let place = std::mem::ManuallyDrop::new(place);
            place.lock.unlock().unwrap();
            path
        };
        let living = make("hodei-dev-living");
        let dead = killed(make("hodei-dev-dead"));
        let kept = killed(make("hodei-dev-kept"));
        fs::write(kept.join("notes"), "mine").unwrap();
        fs::create_dir(base.path().join("hodei-dev-strange")).unwrap();
        reclaim_below(base.path());
        assert!(living.path().join("node1").exists() && !dead.exists());
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 1, "what is not dev's own stays");
        assert!(base.path().join("hodei-dev-strange").exists());
        // The same directory again.
        let again = killed(make("given"));
        drop(Place::make(Some(&again)).unwrap());
    }
}
