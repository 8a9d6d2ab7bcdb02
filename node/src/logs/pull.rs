//! Serving this node's copies to other nodes.

use std::sync::Arc;

use hodei_proto::v1::{LogMark, PullLogRequest, PullLogResponse, pull_log_response::Kind};
use hodei_state::State;
use tokio::sync::mpsc;
use tonic::Status;

use super::{
    entries,
    file::LogFile,
    frame::LogKey,
    hub::{Hub, Open},
    subscribe::Cursor,
};
use crate::convert::from_proto;

/// Answers that may wait for a slow reader.
const QUEUE: usize = 16;

/// Begins to serve a log; the answers come until the reader goes, the log is closed or the node stops.
///
/// # Errors
/// The request names no log.
pub fn serve(hub: &Hub, request: &PullLogRequest) -> Result<mpsc::Receiver<Result<PullLogResponse, Status>>, Status> {
    let job = from_proto::id(&request.job_id, "job_id")?;
    let (answers, receiver) = mpsc::channel(QUEUE);
    let puller = Puller {
        hub: hub.clone(),
        key: LogKey { job, attempt: request.attempt },
        next: request.from_sequence.max(1),
        follow: request.follow,
        answers,
    };
    let stop = hub.stop().clone();
    hub.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            _ = puller.run() => {}
        }
    });
    Ok(receiver)
}

struct Puller {
    hub: Hub,
    key: LogKey,
    next: u64,
    follow: bool,
    answers: mpsc::Sender<Result<PullLogResponse, Status>>,
}

/// The reader went away, or an error was sent: nothing more to do.
struct Over;

impl Puller {
    async fn run(mut self) -> Result<(), Over> {
        let file = match self.hub.copy(self.key, Open::Existing).await {
            Ok(Some(file)) => file,
            Ok(None) => return self.mark(LogMark { unknown: true, ..LogMark::default() }).await,
            Err(error) => return self.fail(&error).await,
        };
        let mut job = self.hub.ledger().watch_job(self.key.job);
        let mut progress = file.watch();
        let mut cursor = Cursor::default();
        let mut marked = None;
        loop {
            job.borrow_and_update();
            progress.borrow_and_update();
            let state = self.hub.ledger().state();
            self.drain(&file, &mut cursor).await?;
            let closed = is_closed(&state, self.key, self.next);
            let mark = LogMark { last_sequence: self.next - 1, closed, unknown: false };
            if marked != Some(mark) {
                self.mark(mark).await?;
                marked = Some(mark);
            }
            if closed || !self.follow {
                return Ok(());
            }
            if file.progress().failed {
                // What comes goes to a file that is opened anew; who asks again reads that one.
                return self.fail(&std::io::Error::other("this node's disk does not take the log")).await;
            }
            tokio::select! {
                _ = progress.changed() => {}
                _ = job.changed() => {}
                () = self.answers.closed() => return Err(Over),
            }
        }
    }

    async fn drain(&mut self, file: &Arc<LogFile>, cursor: &mut Cursor) -> Result<(), Over> {
        loop {
            match cursor.read(file, self.next).await {
                Ok(batches) if batches.is_empty() => return Ok(()),
                Ok(batches) => {
                    for batch in batches {
                        let Some(batch) = entries::from_sequence(batch, self.next) else { continue };
                        self.next = entries::last_sequence(&batch) + 1;
                        hodei_state::failpoint!("segment::before-forward");
                        self.send(Kind::Batch(batch)).await?;
                    }
                }
                Err(error) => return self.fail(&error).await,
            }
        }
    }

    async fn send(&self, kind: Kind) -> Result<(), Over> {
        self.answers.send(Ok(PullLogResponse { kind: Some(kind) })).await.map_err(|_| Over)
    }

    async fn mark(&self, mark: LogMark) -> Result<(), Over> {
        self.send(Kind::Mark(mark)).await
    }

    async fn fail(&self, error: &std::io::Error) -> Result<(), Over> {
        let _ = self.answers.send(Err(crate::error::internal(error))).await;
        Err(Over)
    }
}

/// Whether nothing more can come: the attempt's figures are known and reached, or the job was removed.
fn is_closed(state: &State, key: LogKey, next: u64) -> bool {
    let Some(attempt) = state.attempt(key.job, key.attempt) else { return state.job(key.job).is_none() };
    let figures = attempt.end.as_ref().and_then(|end| end.log.as_ref());
    figures.is_some_and(|figures| next > figures.last_sequence)
}
