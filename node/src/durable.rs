//! Files that must be whole and must not be forgotten: identity, keys, addresses.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// For keys and tokens.
pub const SECRET: u32 = 0o600;
/// For everything else.
pub const PUBLIC: u32 = 0o644;

/// Writes a file so that after a crash there is either the old one or the new one, and after return the new one:
/// a temporary file beside it, fsync, rename, fsync of the directory.
///
/// # Errors
/// Whatever the file system says; the old file is untouched then.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = parent(path)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let temporary = directory.join(format!(".{name}.new"));
    // One that a crash left behind may have another mode.
    remove(&temporary)?;
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The first error is the one to tell.
        let _ = remove(&temporary);
    }
    written?;
    sync_directory(directory)
}

/// Removes a file; one that is not there is fine.
///
/// # Errors
/// Whatever else the file system says.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a directory that only its owner may enter, and its parents, durably. Returns those that were not there before,
/// innermost first.
///
/// # Errors
/// Whatever the file system says.
pub fn make_directory(path: &Path) -> io::Result<Vec<PathBuf>> {
    if path.is_dir() {
        return Ok(Vec::new());
    }
    let above = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut made = above.map_or_else(|| Ok(Vec::new()), make_directory)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_directory(parent(path)?)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(made),
        Err(error) => return Err(error),
    }
    made.insert(0, path.to_owned());
    Ok(made)
}

/// Takes away directories that [`make_directory`] has made, as far as they are empty.
pub fn unmake_directories(made: &[PathBuf]) {
    for directory in made {
        if fs::remove_dir(directory).is_err() {
            return;
        }
    }
}

/// Makes the names in a directory durable.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn parent(path: &Path) -> io::Result<&Path> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/key");
        let made = make_directory(path.parent().unwrap()).unwrap();
        assert_eq!(made, [dir.path().join("a/b"), dir.path().join("a")]);
        assert!(make_directory(path.parent().unwrap()).unwrap().is_empty());
        write(&path, b"one", PUBLIC).unwrap();
        fs::write(path.parent().unwrap().join(".key.new"), "left by a crash").unwrap();
        write(&path, b"two", SECRET).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, SECRET);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        unmake_directories(&made);
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        unmake_directories(&made);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
