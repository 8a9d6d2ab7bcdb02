//! The two threads that touch log files for writing, so that no disk ever stalls the runtime.
//!
//! The writer puts batches into files as they come, which readers see at once; the syncer makes durable, at most every
//! [`SYNC_INTERVAL`], what was written meanwhile, so that a hundred logs that each write a line share the wait.

use std::{collections::HashMap, io, sync::Arc, thread, time::Duration};

use hodei_proto::v1::LogBatch;
use parking_lot::{Condvar, Mutex};
use tokio::sync::mpsc;

use super::{file::LogFile, frame::LogKey};

/// How long written lines may wait for others to be synced with.
pub const SYNC_INTERVAL: Duration = Duration::from_millis(25);
/// Batches that may wait for the writer; senders wait beyond.
const QUEUE: usize = 256;

/// Hands batches to the writer thread. The threads end when the last clone is dropped and everything is synced.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Append>,
}

struct Append {
    file: Arc<LogFile>,
    batch: LogBatch,
    flags: u32,
}

/// The node is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log writer has stopped")]
pub struct Stopped;

impl Writer {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start() -> io::Result<Self> {
        let (queue, appends) = mpsc::channel(QUEUE);
        let dirty = Arc::new(Dirty::default());
        let to_sync = dirty.clone();
        thread::Builder::new().name("log-sync".into()).spawn(move || sync(&to_sync))?;
        thread::Builder::new().name("log-write".into()).spawn(move || write(appends, &dirty))?;
        Ok(Self { queue })
    }

    /// Queues a batch. Whether and when it is written shows in the file's progress.
    ///
    /// # Errors
    /// The writer has stopped.
    pub async fn append(&self, file: Arc<LogFile>, batch: LogBatch, flags: u32) -> Result<(), Stopped> {
        self.queue.send(Append { file, batch, flags }).await.map_err(|_| Stopped)
    }
}

/// Files with something to sync; bounded by the number of open files.
#[derive(Default)]
struct Dirty {
    state: Mutex<DirtyState>,
    changed: Condvar,
}

#[derive(Default)]
struct DirtyState {
    files: HashMap<LogKey, Arc<LogFile>>,
    ended: bool,
}

fn write(mut appends: mpsc::Receiver<Append>, dirty: &Dirty) {
    let mut buffer = Vec::new();
    while let Some(Append { file, batch, flags }) = appends.blocking_recv() {
        if file.append(batch, flags, &mut buffer) {
            let mut state = dirty.state.lock();
            if state.files.insert(file.key(), file).is_none() {
                dirty.changed.notify_one();
            }
        }
    }
    dirty.state.lock().ended = true;
    dirty.changed.notify_one();
}

fn sync(dirty: &Dirty) {
    loop {
        let (files, ended) = {
            let mut state = dirty.state.lock();
            while state.files.is_empty() && !state.ended {
                dirty.changed.wait(&mut state);
            }
            if !state.ended {
                let deadline = std::time::Instant::now() + SYNC_INTERVAL;
                while !state.ended && !dirty.changed.wait_until(&mut state, deadline).timed_out() {}
            }
            (std::mem::take(&mut state.files), state.ended)
        };
        for file in files.values() {
            file.sync();
        }
        if ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use hodei_state::ids::JobId;

    use super::{
        super::{entries::tests::lines, file::Kind},
        *,
    };

    #[tokio::test]
    async fn what_is_appended_becomes_durable() {
        let dir = tempfile::tempdir().unwrap();
        let key = LogKey { job: JobId(1), attempt: 1 };
        let file = Arc::new(LogFile::open(&dir.path().join("log"), key, Kind::Copy).unwrap());
        let writer = Writer::start().unwrap();
        for sequence in 1..=100 {
            writer.append(file.clone(), lines(sequence, &["x\n"]), 0).await.unwrap();
        }
        let mut progress = file.watch();
        progress.wait_for(|progress| progress.durable == 100).await.unwrap();
    }
}
