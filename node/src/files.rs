//! Small files of one directory that must be whole and must not be forgotten, sealed ([`seal`]), with errors that name the
//! directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{cli::exit::Failure, durable, seal};

/// The files below one directory.
#[derive(Clone, Debug)]
pub struct Files {
    /// What the directory is called in errors, for example `data directory`.
    what: &'static str,
    path: PathBuf,
}

impl Files {
    /// The files below `path`, which errors call `what`.
    #[must_use]
    pub fn new(what: &'static str, path: &Path) -> Self {
        Self { what, path: path.to_owned() }
    }

    /// A path below the directory.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// That the directory cannot be written.
    #[must_use]
    pub fn not_writable(&self, error: &io::Error) -> Failure {
        Failure::bad_input(format!("the {} {} is not writable: {error}", self.what, self.path.display()))
    }

    /// Writes one file durably and sealed, making its directory.
    ///
    /// # Errors
    /// Bad input: not writable.
    pub fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), Failure> {
        let path = self.join(name);
        let made = path.parent().map_or(Ok(Vec::new()), durable::make_directory);
        made.and_then(|_| durable::write(&path, &seal::seal(bytes), mode)).map_err(|error| self.not_writable(&error))
    }

    /// Reads one text file; `None` where it does not exist.
    ///
    /// # Errors
    /// Where it cannot be read, or is not as it was written.
    pub fn read(&self, name: &str) -> Result<Option<String>, Failure> {
        let path = self.join(name);
        let damaged = |why: &str| Failure::other(format!("{} is damaged: {why}", path.display()));
        let sealed = match fs::read(&path) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::other(format!("cannot read {}: {error}", path.display()))),
        };
        let text = seal::unseal(&sealed).ok_or_else(|| damaged(seal::BROKEN))?;
        String::from_utf8(text.to_vec()).map(Some).map_err(|_| damaged("it is not text"))
    }

    /// Reads one TOML file; `None` where it does not exist.
    ///
    /// # Errors
    /// Where it cannot be read or understood.
    pub fn read_toml<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Failure> {
        let Some(text) = self.read(name)? else { return Ok(None) };
        toml::from_str(&text)
            .map(Some)
            .map_err(|error| Failure::other(format!("{} is damaged: {}", self.join(name).display(), error.message())))
    }

    /// Writes one TOML file durably.
    ///
    /// # Errors
    /// Bad input: not writable.
    pub fn write_toml<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Failure> {
        let text = toml::to_string(value).map_err(|error| Failure::other(format!("{name}: {error}")))?;
        self.write(name, text.as_bytes(), durable::PUBLIC)
    }
}
