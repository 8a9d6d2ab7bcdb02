//! One log on this node's disk: appended by the writer thread alone, read by anybody at any offset.
//!
//! A file of the log plane is this node's copy of an attempt's log; a cache file holds what was pulled from another
//! node and is nobody's copy, so it is never synced and does not outlive its readers. What readers wait for is the
//! [`Progress`]: how far the file is written, and what it adds up to so far.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use hodei_proto::v1::LogBatch;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{
    entries,
    frame::{self, FILE_HEADER, FRAME_HEADER, Header, LogKey},
    tally::{Continues, Tally},
};

/// How far a log has come on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are written and may be read.
    pub len: u64,
    /// What they add up to.
    pub tally: Tally,
    /// Every entry up to here is synced …
    pub durable: u64,
    /// … which is so many bytes.
    pub durable_len: u64,
    /// A write or a sync failed: nothing more will come to this file while it is open.
    pub failed: bool,
}

/// See the module.
pub struct LogFile {
    key: LogKey,
    path: PathBuf,
    file: File,
    kind: Kind,
    progress: watch::Sender<Progress>,
    /// Woken on progress beside the watch: the gateway that appends, which looks at many files at once.
    listener: Mutex<Option<Arc<Notify>>>,
    /// The directory entry is synced together with the first data.
    named: OnceLock<()>,
    /// See [`LogFile::give_up`].
    is_cut: AtomicBool,
}

/// Whether a file is this node's copy of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A copy: synced, kept.
    Copy,
    /// Pulled for readers: not synced, removed with the last of them.
    Cache,
}

impl LogFile {
    /// Opens or creates a file; blocking. A torn or damaged tail is cut off: what stood there is wanted again from the
    /// agent, which keeps it until the attempt's end is acknowledged.
    ///
    /// # Errors
    /// The file cannot be read, created or cut, or is another log's.
    pub fn open(path: &Path, key: LogKey, kind: Kind) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let progress = recover(&file, key, path)?;
        let named = OnceLock::new();
        if progress.durable > 0 {
            // Written by an earlier process: in the page cache at least, and synced before anything is promised again.
            file.sync_all()?;
        }
        Ok(Self {
            key,
            path: path.to_owned(),
            file,
            kind,
            progress: watch::Sender::new(progress),
            listener: Mutex::new(None),
            named,
            is_cut: AtomicBool::new(false),
        })
    }

    /// Whose log it is.
    #[must_use]
    pub fn key(&self) -> LogKey {
        self.key
    }

    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Whether what was not durable has been cut off; its progress still counts that. Who reads it has to open it anew.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    /// Waits until nothing more comes to it.
    pub async fn failed(&self) {
        // The sender is here.
        let _ = self.watch().wait_for(|progress| progress.failed).await;
    }

    /// The same as [`LogFile::progress`], to wait for.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Has `listener` woken on each progress from here on, in place of the one before.
    pub fn listen(&self, listener: Arc<Notify>) {
        *self.listener.lock() = Some(listener);
    }

    /// Appends what is new of `batch`; blocking; the writer thread only. Returns whether there is something to sync.
    pub(super) fn append(&self, batch: LogBatch, flags: u32, buffer: &mut Vec<u8>) -> bool {
        let mut progress = self.progress();
        if progress.failed {
            return false;
        }
        let Continues::With(batch) = progress.tally.continues(batch) else {
            return false;
        };
        buffer.clear();
        frame::write(&batch, flags, buffer);
        hodei_state::failpoint!("segment::before-write");
        if let Err(error) = self.file.write_all_at(buffer, progress.len) {
            tracing::error!(path = %self.path.display(), %error, "cannot write a log segment");
            self.update(|progress| progress.failed = true);
            return false;
        }
        progress.len += buffer.len() as u64;
        progress.tally.add(&batch);
        self.update(|current| (current.len, current.tally) = (progress.len, progress.tally));
        if hodei_state::armed!("bug::line-durable-before-synced") {
            self.update(|current| current.durable = current.tally.last_sequence);
        }
        self.kind == Kind::Copy
    }

    /// Makes durable what is written; blocking; the sync thread only.
    pub(super) fn sync(&self) {
        if self.is_cut.load(Ordering::Relaxed) {
            // An append may have been under way when it was given up. What stood before that is gone.
            return;
        }
        let Progress { len, tally, failed, .. } = self.progress();
        hodei_state::failpoint!("segment::before-fsync");
        let synced = self.file.sync_data().and_then(|()| self.sync_name());
        hodei_state::failpoint!("segment::after-fsync");
        match synced {
            Ok(()) => self.update(|progress| {
                (progress.durable, progress.durable_len) = (tally.last_sequence.max(progress.durable), len);
            }),
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "cannot sync a log segment");
                if !failed {
                    self.give_up();
                }
            }
        }
    }

    /// After a failed sync the kernel takes the pages for clean, whether they are on the disk or not: who opens the file again
    /// would find them there and take them for durable. They are cut off, and wanted again from the agent. Blocking.
    pub(crate) fn give_up(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
        let durable = self.progress().durable_len;
        if let Err(error) = self.file.set_len(durable) {
            tracing::error!(path = %self.path.display(), %error, "cannot cut a log segment to what is durable");
        }
        // Only now: whoever sees it opens the file again.
        self.update(|progress| progress.failed = true);
    }

    fn sync_name(&self) -> io::Result<()> {
        if self.named.get().is_none() {
            for directory in self.path.ancestors().skip(1).take(2) {
                File::open(directory)?.sync_all()?;
            }
            self.named.get_or_init(|| ());
        }
        Ok(())
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
        if let Some(listener) = &*self.listener.lock() {
            listener.notify_one();
        }
    }

    /// The offset of the first frame that holds an entry at or after `sequence`, from a known frame on; blocking.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn seek(&self, from: u64, sequence: u64) -> io::Result<u64> {
        let end = self.progress().len;
        let mut offset = from.max(FILE_HEADER);
        let mut bytes = [0; FRAME_HEADER];
        while offset < end {
            self.file.read_exact_at(&mut bytes, offset)?;
            let header = Header::read(&bytes).ok_or_else(|| self.damaged(offset))?;
            if header.first_sequence + u64::from(header.count) > sequence {
                break;
            }
            offset += header.frame_len();
        }
        Ok(offset)
    }

    /// Whole frames from `offset` on, about `max` bytes of them and at least one; blocking. Returns them with the offset
    /// behind them.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn read(&self, offset: u64, max: usize) -> io::Result<(Vec<LogBatch>, u64)> {
        let end = self.progress().len;
        let mut offset = offset.max(FILE_HEADER);
        let mut batches = Vec::new();
        let mut want = max;
        while offset < end && batches.is_empty() {
            let available = usize::try_from(end - offset).unwrap_or(usize::MAX);
            let mut bytes = vec![0; want.min(available)];
            self.file.read_exact_at(&mut bytes, offset)?;
            let mut at = 0;
            while let Some(header) = Header::read(&bytes[at..])
                && at + FRAME_HEADER + header.len <= bytes.len()
            {
                let (_, batch) = frame::read(&bytes[at..]).ok_or_else(|| self.damaged(offset))?;
                batches.push(batch);
                at += FRAME_HEADER + header.len;
                offset += header.frame_len();
            }
            if batches.is_empty() {
                // One frame is larger than what was read of it.
                if bytes.len() == available {
                    return Err(self.damaged(offset));
                }
                want = want.saturating_mul(4);
            }
        }
        Ok((batches, offset))
    }

    fn damaged(&self, offset: u64) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged at {offset}", self.path.display()))
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        if self.kind == Kind::Cache
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "cannot remove a cached log");
        }
    }
}

/// Reads through a file and cuts off what is not whole. An empty or torn header begins the file anew.
fn recover(file: &File, key: LogKey, path: &Path) -> io::Result<Progress> {
    const CHUNK: usize = 1 << 20;
    let expected = frame::file_header(key);
    let size = file.metadata()?.len();
    let mut header = vec![0; expected.len().min(usize::try_from(size).unwrap_or(usize::MAX))];
    file.read_exact_at(&mut header, 0)?;
    if header != expected {
        if !expected.starts_with(&header) && header.iter().any(|&byte| byte != 0) {
            let message = format!("{} does not begin as the log of attempt {}", path.display(), key.attempt);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        file.set_len(0)?;
        file.write_all_at(&expected, 0)?;
        return Ok(Progress { len: FILE_HEADER, ..Progress::default() });
    }
    let mut progress = Progress { len: FILE_HEADER, ..Progress::default() };
    let mut want = CHUNK;
    while progress.len < size {
        let available = usize::try_from(size - progress.len).unwrap_or(usize::MAX);
        let mut bytes = vec![0; want.min(available)];
        file.read_exact_at(&mut bytes, progress.len)?;
        let mut at = 0;
        while let Some((header, batch)) = frame::read(&bytes[at..]) {
            let Continues::With(batch) = progress.tally.continues(batch) else { break };
            progress.tally.add(&batch);
            at += FRAME_HEADER + header.len;
            progress.len += header.frame_len();
        }
        let larger = Header::read(&bytes[at..]).is_some_and(|header| at + FRAME_HEADER + header.len > bytes.len());
        match (at, larger || bytes.len() - at < FRAME_HEADER) {
            (_, true) if bytes.len() < available => want = if at == 0 { want.saturating_mul(4) } else { CHUNK },
            _ => break,
        }
    }
    if progress.len < size {
        tracing::warn!(path = %path.display(), at = progress.len, of = size, "cut off the torn tail of a log segment");
        file.set_len(progress.len)?;
    }
    (progress.durable, progress.durable_len) = (progress.tally.last_sequence, progress.len);
    Ok(progress)
}

/// Bound on what `entries` may carry, checked where batches come in.
const _: () = assert!(entries::MAX_BATCH_BYTES < u32::MAX as usize);

#[cfg(test)]
mod tests;
