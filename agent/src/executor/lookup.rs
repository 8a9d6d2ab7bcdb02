//! Finds the program that a job names, in the job's own PATH.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

use crate::watchdog::{process::User, wire::NotStarted};

/// Resolves `name` as execvp does, but tells "not found" from "not permitted" and never falls back to a shell's rules.
/// A name with a slash is taken as it is, relative to `dir`. Programs that `user` may not execute, by the bits of their mode
/// and of the directories above, come last: access lists are the kernel's to know, which has the last word at the start.
pub fn program(name: &str, path: &str, dir: &Path, user: Option<&User>) -> Result<PathBuf, NotStarted> {
    if name.contains('/') {
        let found = dir.join(name);
        return check(&found).map(|()| found).map_err(|why| why.naming(name));
    }
    let (mut refused, mut doubtful) = (None, None);
    for entry in path.split(':') {
        let found = dir.join(entry).join(name);
        match check(&found) {
            Ok(()) if user.is_none_or(|user| may_execute(user, &found)) => return Ok(found),
            Ok(()) => doubtful = doubtful.or(Some(found)),
            Err(Found::Nothing) => {}
            Err(why) => refused = Some(why),
        }
    }
    doubtful.ok_or_else(|| refused.unwrap_or(Found::Nothing).naming(name))
}

fn may_execute(user: &User, path: &Path) -> bool {
    let permits = |meta: &fs::Metadata| {
        let class = match meta {
            _ if meta.uid() == user.uid => 6,
            _ if meta.gid() == user.gid || user.groups.contains(&meta.gid()) => 3,
            _ => 0,
        };
        meta.mode() >> class & 1 == 1
    };
    user.uid == 0 || path.ancestors().all(|part| fs::metadata(part).is_ok_and(|meta| permits(&meta)))
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
        let cause = |name: &str| program(name, path, Path::new("/"), None).map_err(|error| error.obstacle);
        assert_eq!(cause("absent"), Err(Obstacle::NotFound));
        assert_eq!(cause("plain"), Err(Obstacle::NotPermitted));
        assert_eq!(cause(path), Err(Obstacle::NotPermitted));
        assert_eq!(program("sh", "/nowhere:/bin", Path::new("/"), None).unwrap(), Path::new("/bin/sh"));
        assert_eq!(program("./plain", "", dir.path(), None).unwrap_err().obstacle, Obstacle::NotPermitted);
    }

    #[test]
    fn what_a_user_may_not_execute_comes_last() {
        let dir = tempfile::tempdir().unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(dir.path(), 0o755);
        let [closed, open] = ["closed", "open"].map(|name| dir.path().join(name));
        for (place, mode) in [(&closed, 0o700), (&open, 0o755)] {
            fs::create_dir(place).unwrap();
            fs::write(place.join("tool"), "").unwrap();
            set(&place.join("tool"), 0o755);
            set(place, mode);
        }
        let me = fs::metadata(dir.path()).unwrap();
        let other = User { uid: me.uid() + 1, gid: me.gid() + 1, groups: Vec::new() };
        let path = format!("{}:{}", closed.display(), open.display());
        let found = |path: &str, user: Option<&User>| program("tool", path, Path::new("/"), user).unwrap();
        assert_eq!(found(&path, None), closed.join("tool"));
        assert_eq!(found(&path, Some(&other)), open.join("tool"));
        let alike = User { groups: vec![me.gid()], ..other.clone() };
        set(&closed, 0o710);
        assert_eq!(found(&path, Some(&alike)), closed.join("tool"));
        // Nowhere else: the kernel says why not, or knows better.
        set(&closed, 0o700);
        assert_eq!(found(&closed.display().to_string(), Some(&other)), closed.join("tool"));
    }
}
