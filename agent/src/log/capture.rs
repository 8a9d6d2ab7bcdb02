//! Reads the output of a job into its spool.

use std::{
    fs::{self, File},
    io,
    sync::Arc,
    time::Duration,
};

use hodei_proto::v1::LogEnd;
use serde::{Deserialize, Serialize};
use tokio::{task::spawn_blocking, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Log,
    batch::{Batcher, STDERR, STDOUT},
    mask::{Mask, Masker},
    progress::Progress,
    split::Splitter,
    spool::Writer,
    store::Store,
};
use crate::{clock::wall_ms, watchdog::Output};

/// A line waits at most this long for others to share its batch.
const BATCH_DELAY: Duration = Duration::from_millis(100);
/// A disk that takes no more is asked again after this.
const DISK_RETRY: Duration = Duration::from_secs(1);

/// What becomes of output that the spool has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenFull {
    /// The job waits.
    Block,
    /// Lines are dropped and counted.
    Drop,
}

/// One attempt's capture. `published` is called after each batch that the session may take.
pub struct Capture<F> {
    /// Where it goes.
    pub log: Arc<Log>,
    /// Its file.
    pub writer: Writer,
    /// See [`WhenFull`].
    pub when_full: WhenFull,
    /// Wakes the session.
    pub published: F,
    /// Set once the job's main process has ended: from then on nothing may hold up the rest.
    pub ended: CancellationToken,
    /// Set when the pipes are to be given up, whoever still holds them.
    pub give_up: CancellationToken,
}

struct Stream {
    kind: u32,
    store: Store,
    cutter: Cutter,
}

/// From bytes to entries in which no secret stands.
struct Cutter {
    masker: Masker,
    splitter: Splitter,
}

impl Cutter {
    fn feed(&mut self, chunk: &[u8], emit: impl FnMut(&[u8])) {
        let Self { masker, splitter } = self;
        masker.feed(chunk, |bytes| splitter.feed(bytes, emit));
    }

    fn finish(&mut self, mut emit: impl FnMut(&[u8])) {
        let Self { masker, splitter } = self;
        masker.finish(|bytes| splitter.feed(bytes, &mut emit));
        splitter.finish(emit);
    }
}

impl<F: Fn() + Send> Capture<F> {
    /// Runs until both streams have ended or are given up, makes the spool durable and returns the figures. Goes on where
    /// an earlier agent has come to.
    pub async fn run(mut self, output: Output) -> io::Result<LogEnd> {
        let Output { pipes: [out, err], stores: [kept_out, kept_err], progress: file, mask } = output;
        let mask = Mask::read(&mask)?;
        let begun = Progress::read(&file)?;
        let mut batcher = Batcher::resume(&begun);
        let begun = if crate::armed!("bug::handed-over-lines-doubled") { Progress::default() } else { begun };
        let stream = |kind: u32, store: io::Result<Store>| {
            let (masker, splitter) = (Masker::new(mask.clone()), Splitter::default());
            io::Result::Ok(Stream { kind, store: store?, cutter: Cutter { masker, splitter } })
        };
        let mut out = stream(STDOUT, Store::open(out, kept_out, begun.taken[0]))?;
        let mut err = stream(STDERR, Store::open(err, kept_err, begun.taken[1]))?;
        let mut due = None::<Instant>;
        while out.store.is_open() || err.store.is_open() {
            self.wait_for_space().await;
            tokio::select! {
                chunk = out.store.next() => self.take(&mut batcher, out.kind, &mut out.cutter, chunk),
                chunk = err.store.next() => self.take(&mut batcher, err.kind, &mut err.cutter, chunk),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    batcher.flush(wall_ms());
                }
                () = self.give_up.cancelled() => break,
            }
            if self.write(&mut batcher, &file).await? {
                out.store.taken(batcher.progress().taken[0]);
                err.store.taken(batcher.progress().taken[1]);
            }
            due = batcher.is_open().then(|| due.unwrap_or_else(|| Instant::now() + BATCH_DELAY));
        }
        for stream in [&mut out, &mut err] {
            let kind = stream.kind;
            stream.cutter.finish(|entry| batcher.push(kind, entry, wall_ms()));
        }
        batcher.flush(wall_ms());
        self.write(&mut batcher, &file).await?;
        crate::failpoint!("spool::before-fsync");
        let mut writer = self.writer;
        blocking(move || writer.sync()).await?;
        Ok(batcher.figures())
    }

    async fn wait_for_space(&self) {
        if self.when_full == WhenFull::Block && !self.ended.is_cancelled() && !self.log.has_space() {
            tokio::select! {
                () = self.log.space() => {}
                () = self.ended.cancelled() => {}
            }
        }
    }

    fn take(&self, batcher: &mut Batcher, kind: u32, cutter: &mut Cutter, chunk: Option<&[u8]>) {
        let now = wall_ms();
        let drops = self.when_full == WhenFull::Drop && !self.log.has_space();
        let mut emit =
            |entry: &[u8]| if drops { batcher.drop_entry(kind, entry) } else { batcher.push(kind, entry, now) };
        match chunk {
            Some(chunk) => cutter.feed(chunk, emit),
            None => cutter.finish(&mut emit),
        }
    }

    /// Puts closed batches on disk, notes how far they go, then lets the session have them. Returns whether there were any.
    async fn write(&mut self, batcher: &mut Batcher, progress: &File) -> io::Result<bool> {
        let batches = batcher.take_full();
        if batches.is_empty() {
            return Ok(false);
        }
        crate::failpoint!("spool::before-write");
        let batches = Arc::new(batches);
        let placed = loop {
            let mut writer = std::mem::replace(&mut self.writer, Writer::new("".as_ref()).0);
            let mine = Arc::clone(&batches);
            let (writer, result) = blocking(move || {
                let result = writer.append(&mine);
                (writer, result)
            })
            .await;
            self.writer = writer;
            match result {
                Ok(placed) => break placed,
                Err(error) => {
                    tracing::error!(%error, "cannot write a job's output to disk; it waits");
                    tokio::time::sleep(DISK_RETRY).await;
                }
            }
        };
        let batches = Arc::try_unwrap(batches).expect("the writer has given its share back");
        crate::failpoint!("spool::after-write");
        batcher.progress().write(progress)?;
        crate::failpoint!("spool::before-publish");
        let gone = self.log.publish(batches, placed);
        (self.published)();
        if !gone.is_empty() {
            blocking(move || gone.iter().for_each(|path| drop(fs::remove_file(path)))).await;
        }
        Ok(true)
    }
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(act).await.expect("the runtime outlives its jobs, and file work does not panic")
}
