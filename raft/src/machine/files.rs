//! Files that are whole or absent after a power cut.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Makes the directory's entries durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Creates a directory, its parents too, and makes it durable.
pub(crate) fn create_dir(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    sync_dir(dir)?;
    dir.parent().map_or(Ok(()), sync_dir)
}

/// Writes a file under a temporary name, syncs it and renames it. The caller syncs the directory.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// From so many files on, one sync of the file system costs less than one per file.
const MANY: usize = 32;

/// Writes files so that each is whole or absent, and durable on return. All lie in `dir`.
pub(crate) fn write_all_synced(dir: &Path, files: &[(PathBuf, &[u8])]) -> io::Result<()> {
    if files.len() < MANY {
        for (path, bytes) in files {
            write_synced(path, bytes)?;
        }
        return sync_dir(dir);
    }
    for (path, bytes) in files {
        fs::write(path.with_extension("tmp"), bytes)?;
    }
    nix::unistd::syncfs(File::open(dir)?)?;
    for (path, _) in files {
        fs::rename(path.with_extension("tmp"), path)?;
    }
    sync_dir(dir)
}

/// Removes what a crash left half written.
pub(crate) fn remove_temporary(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_files_are_whole_and_leave_nothing_behind() {
        for count in [3, MANY + 1] {
            let dir = tempfile::tempdir().unwrap();
            let files: Vec<(PathBuf, &[u8])> =
                (0..count).map(|n| (dir.path().join(format!("{n:03}")), b"content".as_slice())).collect();
            write_all_synced(dir.path(), &files).unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), count);
            assert!(files.iter().all(|(path, bytes)| fs::read(path).unwrap() == *bytes));
        }
    }

    #[test]
    fn what_a_crash_left_half_written_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.tmp"), b"x").unwrap();
        fs::write(dir.path().join("b"), b"x").unwrap();
        remove_temporary(dir.path()).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["b"]);
    }
}
