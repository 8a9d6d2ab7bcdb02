//! One output stream of a job on its way from the pipe to the spool.
//!
//! Bytes move from the pipe to a file in memory in one system call that a killed agent either has made or has not, and
//! are read from there. The watchdog keeps both, so nothing is lost and nothing comes twice when another agent goes on:
//! it knows from [`super::progress`] how much of the file is in the spool.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, SpliceFFlags, fallocate, splice},
    sys::memfd::{MFdFlags, memfd_create},
};
use tokio::io::unix::AsyncFd;

use crate::watchdog::socket;

/// What is moved and read at once.
const CHUNK: usize = 64 << 10;
/// What is in the spool is given up in pieces of this size.
const GIVE_UP: u64 = 1 << 20;

/// Memory as a file.
pub fn memory() -> io::Result<File> {
    Ok(File::from(memfd_create(c"hodei-output", MFdFlags::MFD_CLOEXEC)?))
}

/// See the module.
pub struct Store {
    pipe: Option<AsyncFd<OwnedFd>>,
    file: File,
    /// In the file.
    moved: u64,
    /// Handed out by [`Store::next`].
    read: u64,
    given_up: u64,
    buffer: Vec<u8>,
}

impl Store {
    /// The rest of a stream, of which the first `taken` bytes are in the spool. The pipe must not block.
    pub fn open(pipe: OwnedFd, file: File, taken: u64) -> io::Result<Self> {
        let moved = file.metadata()?.len();
        let pipe = Some(socket::readable(pipe)?);
        Ok(Self { pipe, file, moved, read: taken.min(moved), given_up: 0, buffer: vec![0; CHUNK] })
    }

    /// Whether more may come.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.pipe.is_some() || self.read < self.moved
    }

    /// The next bytes; `None` when the stream has ended. Never resolves afterwards. Nothing is lost where it is dropped.
    pub async fn next(&mut self) -> Option<&[u8]> {
        while self.read == self.moved {
            let Some(pipe) = &mut self.pipe else { return std::future::pending().await };
            match fill(pipe, &self.file, self.moved).await {
                Ok(0) => {
                    self.pipe = None;
                    return None;
                }
                Ok(moved) => self.moved += moved,
                Err(error) => {
                    tracing::error!(%error, "a job's output cannot be read");
                    self.pipe = None;
                    return None;
                }
            }
        }
        let wanted = usize::try_from(self.moved - self.read).unwrap_or(CHUNK).min(CHUNK);
        let chunk = &mut self.buffer[..wanted];
        if let Err(error) = self.file.read_exact_at(chunk, self.read) {
            tracing::error!(%error, "a job's output cannot be read back");
            self.pipe = None;
            self.read = self.moved;
            return None;
        }
        self.read += wanted as u64;
        Some(chunk)
    }

    /// The first `taken` bytes are in the spool; their memory may go.
    pub fn taken(&mut self, taken: u64) {
        let upto = taken - taken % GIVE_UP;
        let Ok(len) = i64::try_from(upto.saturating_sub(self.given_up)) else { return };
        let Ok(from) = i64::try_from(self.given_up) else { return };
        if len > 0 {
            let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            if let Err(error) = fallocate(&self.file, how, from, len) {
                tracing::debug!(%error, "cannot give memory back");
            }
            self.given_up = upto;
        }
    }
}

/// Moves what there is; 0 at the end.
async fn fill(pipe: &AsyncFd<OwnedFd>, file: &File, at: u64) -> io::Result<u64> {
    loop {
        let mut ready = pipe.readable().await?;
        let moved = ready.try_io(|pipe| match move_into(pipe.get_ref(), file, at) {
            Err(Errno::EINTR) => Err(io::ErrorKind::WouldBlock.into()),
            moved => Ok(moved?),
        });
        match moved {
            Ok(moved) => return moved,
            Err(_would_block) => {}
        }
    }
}

/// Moves what is in a pipe to `at` in a file in memory.
pub fn move_into(pipe: &OwnedFd, file: &File, at: u64) -> Result<u64, Errno> {
    let mut offset = i64::try_from(at).map_err(|_| Errno::EFBIG)?;
    let how = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
    let moved = splice(pipe.as_fd(), None, file.as_fd(), Some(&mut offset), CHUNK, how)?;
    Ok(moved as u64)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use nix::{fcntl::OFlag, unistd::pipe2};

    use super::*;

    async fn read(store: &mut Store, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend_from_slice(store.next().await.unwrap());
        }
        all
    }

    #[tokio::test]
    async fn another_reader_goes_on_where_the_spool_ends() {
        let (pipe, end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let (file, mut end) = (memory().unwrap(), File::from(end));
        let (again, kept) = (pipe.try_clone().unwrap(), file.try_clone().unwrap());
        let mut first = Store::open(pipe, file, 0).unwrap();
        end.write_all(b"onetwo").unwrap();
        assert_eq!(read(&mut first, 6).await, b"onetwo");
        // It is killed; only "one" is in the spool.
        drop(first);
        end.write_all(b"three").unwrap();
        let mut second = Store::open(again, kept, 3).unwrap();
        assert_eq!(read(&mut second, 8).await, b"twothree");
        drop(end);
        assert!(second.next().await.is_none() && !second.is_open());
    }

    #[tokio::test]
    async fn memory_is_given_back_once_it_is_in_the_spool() {
        let (pipe, end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let mut store = Store::open(pipe, memory().unwrap(), 0).unwrap();
        let mut end = File::from(end);
        let (chunk, mut total) = (vec![7; 60_000], 0);
        for _ in 0..100 {
            end.write_all(&chunk).unwrap();
            total += read(&mut store, chunk.len()).await.len() as u64;
            store.taken(total);
        }
        let held = std::os::unix::fs::MetadataExt::blocks(&store.file.metadata().unwrap()) * 512;
        assert!(held <= 2 * GIVE_UP, "{held} of {total} bytes are still held");
    }
}
