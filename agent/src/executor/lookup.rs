//! Finds the program that a job names, in the job's own PATH.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

use crate::watchdog::wire::NotStarted;

/// Resolves `name` as execvp does, but tells "not found" from "not permitted" and never falls back to a shell's rules.
/// A name with a slash is taken as it is, relative to `dir`.
pub fn program(name: &str, path: &str, dir: &Path) -> Result<PathBuf, NotStarted> {
    if name.contains('/') {
        let found = dir.join(name);
        return check(&found).map(|()| found).map_err(|why| why.naming(name));
    }
    let mut refused = None;
    for entry in path.split(':') {
        let found = dir.join(entry).join(name);
        match check(&found) {
            Ok(()) => return Ok(found),
            Err(Found::Nothing) => {}
            Err(why) => refused = Some(why),
        }
    }
    Err(refused.unwrap_or(Found::Nothing).naming(name))
}

enum Found {
    Nothing,
    NotExecutable,
}

impl Found {
    fn naming(self, name: &str) -> NotStarted {
        match self {
            Self::Nothing => NotStarted::not_found(format!("{name}: command not found")),
            Self::NotExecutable => NotStarted::not_permitted(format!("{name}: permission denied")),
        }
    }
}

fn check(path: &Path) -> Result<(), Found> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(Found::NotExecutable),
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => Err(Found::NotExecutable),
        Ok(_) => access(path, AccessFlags::X_OK).map_err(|_| Found::NotExecutable),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(Found::NotExecutable),
        Err(_) => Err(Found::Nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watchdog::wire::Obstacle;

    #[test]
    fn tells_not_found_from_not_permitted() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("plain"), "").unwrap();
        let path = dir.path().to_str().unwrap();
        let cause = |name: &str| program(name, path, Path::new("/")).map_err(|error| error.obstacle);
        assert_eq!(cause("absent"), Err(Obstacle::NotFound));
        assert_eq!(cause("plain"), Err(Obstacle::NotPermitted));
        assert_eq!(cause(path), Err(Obstacle::NotPermitted));
        assert_eq!(program("sh", "/nowhere:/bin", Path::new("/")).unwrap(), Path::new("/bin/sh"));
        assert_eq!(program("./plain", "", dir.path()).unwrap_err().obstacle, Obstacle::NotPermitted);
    }
}
