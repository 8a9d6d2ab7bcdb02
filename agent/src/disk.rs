//! Files that must be whole or absent after a crash, and are not taken for whole where they are not: sealed ([`seal`]).

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use serde::de::DeserializeOwned;

use crate::seal;

/// Writes `bytes`, sealed, to `path` through a temporary file: durable, mode 0600, never half written.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&seal::seal(bytes))?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    sync_dir(parent(path))
}

/// Makes the entries of a directory durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Creates a directory with the given mode, and its parents; one that exists is left as it is.
pub fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// The same without a sync: of use only as long as the machine runs.
pub fn write_for_now(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, seal::seal(bytes))?;
    fs::rename(temporary, path)
}

/// Reads a sealed file that may be absent. One that is not as it was written is an error of kind `InvalidData` that names it.
pub fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(sealed) => match seal::unseal(&sealed) {
            Some(content) => Ok(Some(content.to_vec())),
            None => Err(damaged(path, seal::BROKEN)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same of one that holds JSON.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let text = read_if_there(path)?;
    text.map(|text| serde_json::from_slice(&text).map_err(|error| damaged(path, &error.to_string()))).transpose()
}

/// That a file is not what was written.
#[must_use]
pub fn damaged(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged: {why}", path.display()))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
