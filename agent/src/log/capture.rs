//! Reads the pipes of a job into its spool.

use std::{fs, io, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures::StreamExt as _;
use hodei_proto::v1::LogEnd;
use tokio::{net::unix::pipe::Receiver, task::spawn_blocking, time::Instant};
use tokio_util::{
    codec::{BytesCodec, FramedRead},
    sync::CancellationToken,
};

use super::{
    Log,
    batch::{Batcher, STDERR, STDOUT},
    split::Splitter,
    spool::Writer,
};
use crate::clock::wall_ms;

/// A line waits at most this long for others to share its batch.
const BATCH_DELAY: Duration = Duration::from_millis(100);
/// What is read from a pipe at once.
const CHUNK: usize = 64 << 10;
/// A disk that takes no more is asked again after this.
const DISK_RETRY: Duration = Duration::from_secs(1);

/// What becomes of output that the spool has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

type Pipe = FramedRead<Receiver, BytesCodec>;

struct Stream {
    kind: u32,
    pipe: Option<Pipe>,
    splitter: Splitter,
}

impl Stream {
    fn new(kind: u32, pipe: Receiver) -> Self {
        let pipe = FramedRead::with_capacity(pipe, BytesCodec::new(), CHUNK);
        Self { kind, pipe: Some(pipe), splitter: Splitter::default() }
    }

    /// The next bytes; `None` when this stream has ended. Never resolves afterwards.
    async fn next(&mut self) -> Option<BytesMut> {
        let Some(pipe) = &mut self.pipe else { return std::future::pending().await };
        match pipe.next().await {
            Some(Ok(chunk)) => Some(chunk),
            Some(Err(_)) | None => {
                self.pipe = None;
                None
            }
        }
    }
}

impl<F: Fn() + Send> Capture<F> {
    /// Runs until both pipes have ended or are given up, makes the spool durable and returns the figures.
    pub async fn run(mut self, stdout: Receiver, stderr: Receiver) -> io::Result<LogEnd> {
        let (mut out, mut err) = (Stream::new(STDOUT, stdout), Stream::new(STDERR, stderr));
        let mut batcher = Batcher::default();
        let mut due = None::<Instant>;
        while out.pipe.is_some() || err.pipe.is_some() {
            self.wait_for_space().await;
            tokio::select! {
                chunk = out.next() => self.take(&mut batcher, &mut out, chunk),
                chunk = err.next() => self.take(&mut batcher, &mut err, chunk),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    batcher.flush(wall_ms());
                }
                () = self.give_up.cancelled() => break,
            }
            self.write(&mut batcher).await;
            due = batcher.is_open().then(|| due.unwrap_or_else(|| Instant::now() + BATCH_DELAY));
        }
        for stream in [&mut out, &mut err] {
            let kind = stream.kind;
            stream.splitter.finish(|entry| batcher.push(kind, entry, wall_ms()));
        }
        batcher.flush(wall_ms());
        self.write(&mut batcher).await;
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

    fn take(&self, batcher: &mut Batcher, stream: &mut Stream, chunk: Option<BytesMut>) {
        let (kind, now) = (stream.kind, wall_ms());
        let drops = self.when_full == WhenFull::Drop && !self.log.has_space();
        let mut emit = |entry: &[u8]| if drops { batcher.drop_entry() } else { batcher.push(kind, entry, now) };
        match chunk {
            Some(chunk) => stream.splitter.feed(&chunk, emit),
            None => stream.splitter.finish(&mut emit),
        }
    }

    /// Puts closed batches on disk, then lets the session have them.
    async fn write(&mut self, batcher: &mut Batcher) {
        let batches = batcher.take_full();
        if batches.is_empty() {
            return;
        }
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
        let gone = self.log.publish(batches, placed);
        (self.published)();
        if !gone.is_empty() {
            blocking(move || gone.iter().for_each(|path| drop(fs::remove_file(path)))).await;
        }
    }
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(act).await.expect("the runtime outlives its jobs, and file work does not panic")
}
