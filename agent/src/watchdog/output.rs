//! The output of a job as its watchdog keeps it, whichever agent reads it.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use nix::errno::Errno;

use crate::{
    disk,
    log::{
        mask::{self, Mask},
        progress::Progress,
        store,
    },
    seal,
};

/// What a job may still write, after its tree has ended, through somebody outside of it who holds its pipe.
const REST: u64 = 4 << 20;

/// Standard output and standard error, each a pipe and what was moved from it; and how far their reader has come.
#[derive(Debug)]
pub struct Output {
    /// Read ends.
    pub pipes: [OwnedFd; 2],
    /// Memory; see [`crate::log::store`].
    pub stores: [File; 2],
    /// Memory; see [`crate::log::progress`].
    pub progress: File,
    /// Memory: what must not be seen in it; see [`crate::log::mask`].
    pub mask: File,
}

/// What is needed of it before there is a process.
pub struct Memory {
    stores: [File; 2],
    progress: File,
    mask: File,
}

impl Memory {
    /// Nothing yet, and what must not be seen in it.
    pub fn new(masked: &[CString]) -> io::Result<Self> {
        let mask = mask::write(masked.iter().map(CString::as_bytes))?;
        Ok(Self { stores: [store::memory()?, store::memory()?], progress: store::memory()?, mask })
    }

    /// Of a process with these read ends.
    #[must_use]
    pub fn of(self, stdout: OwnedFd, stderr: OwnedFd) -> Output {
        Output { pipes: [stdout, stderr], stores: self.stores, progress: self.progress, mask: self.mask }
    }
}

impl Output {
    /// To be sent.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 6] {
        let ([out, err], [kept_out, kept_err]) = (&self.pipes, &self.stores);
        [out.as_fd(), err.as_fd(), kept_out.as_fd(), kept_err.as_fd(), self.progress.as_fd(), self.mask.as_fd()]
    }

    /// As they arrived.
    #[must_use]
    pub fn received(descriptors: Vec<OwnedFd>) -> Option<Self> {
        let [out, err, kept_out, kept_err, progress, mask] = <[OwnedFd; 6]>::try_from(descriptors).ok()?;
        let stores = [kept_out.into(), kept_err.into()];
        Some(Self { pipes: [out, err], stores, progress: progress.into(), mask: mask.into() })
    }

    /// Writes what no agent has put into a spool to files in `dir`; the job has ended, and no agent reads it any more.
    /// Returns how far the spool goes. May be repeated.
    pub fn leave(&self, dir: &Path) -> io::Result<Progress> {
        let (progress, mask) = (Progress::read(&self.progress)?, Mask::read(&self.mask)?);
        for (at, name) in REST_FILES.into_iter().enumerate() {
            let (store, taken) = (&self.stores[at], progress.taken[at]);
            drain(&self.pipes[at], store)?;
            let mut rest = vec![0; usize::try_from(store.metadata()?.len().saturating_sub(taken)).unwrap_or_default()];
            store.read_exact_at(&mut rest, taken)?;
            mask.apply(&mut rest);
            if !rest.is_empty() {
                let mut how = OpenOptions::new();
                let file = how.write(true).create(true).truncate(true).mode(0o600).open(dir.join(name))?;
                file.write_all_at(&seal::seal(&rest), 0)?;
                file.sync_all()?;
            }
        }
        Ok(progress)
    }
}

/// Moves what is left in a pipe.
fn drain(pipe: &OwnedFd, store: &File) -> io::Result<()> {
    let begun = store.metadata()?.len();
    let mut moved = begun;
    while moved < begun + REST {
        match store::move_into(pipe, store, moved) {
            Ok(0) | Err(Errno::EAGAIN) => break,
            Ok(more) => moved += more,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What was left of standard output and standard error.
const REST_FILES: [&str; 2] = ["rest-out", "rest-err"];

/// What [`Output::leave`] has left. An error of kind `InvalidData` where it is damaged.
pub fn left(dir: &Path) -> io::Result<[Vec<u8>; 2]> {
    let read = |name: &str| Ok::<_, io::Error>(disk::read_if_there(&dir.join(name))?.unwrap_or_default());
    let [out, err] = REST_FILES;
    Ok([read(out)?, read(err)?])
}
