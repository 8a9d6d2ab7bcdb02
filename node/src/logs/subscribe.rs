//! One client's view of a job's logs: history, then live, attempt after attempt, until the job ends.

use std::{io, sync::Arc, time::Duration};

use hodei_proto::v1::{AttemptLogEnd, LogBatch, LogEvent, LogNotice, SubscribeLogsRequest, log_event::Kind};
use hodei_state::{
    State,
    ids::{AttemptRef, JobId, NodeId},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tonic::Status;

pub use super::contact::ALONE;
use super::{
    contact::{ALONE_AT_GATEWAY, Contact, SILENT_GATEWAY},
    entries,
    file::{LogFile, Progress},
    frame::LogKey,
    hub::{Hub, blocking},
    source::{Feed, place::live_gateway},
    tally::Tally,
    verdict::{Patience, Situation, Verdict, is_awaited, is_gone, may_come, verdict},
};
use crate::{convert::to_proto, error};

/// Events that may wait for a slow client; the rest stays in the file.
const QUEUE: usize = 16;
/// Bytes read from a file at once.
const CHUNK: usize = 256 << 10;

/// Begins to serve a client. The job must exist in the state as it is applied here.
#[must_use]
pub fn serve(hub: &Hub, job: JobId, request: &SubscribeLogsRequest) -> mpsc::Receiver<Result<LogEvent, Status>> {
    let (events, receiver) = mpsc::channel(QUEUE);
    let subscriber = Subscriber {
        hub: hub.clone(),
        job,
        follow: request.follow,
        since_ms: request.since_ms,
        tail: request.tail,
        next: request.from_sequence.max(1),
        contact: Contact::new(hub.alone(), Instant::now()),
        events,
    };
    let (stop, attempt) = (hub.stop().clone(), request.attempt);
    hub.spawn(async move {
        let events = subscriber.events.clone();
        tokio::select! {
            () = stop.cancelled() => {
                let _ = events.try_send(Err(error::unavailable("the node is stopping")));
            }
            _ = subscriber.run(attempt) => {}
        }
    });
    receiver
}

/// Where in a file somebody reads.
#[derive(Default)]
pub struct Cursor {
    file: Option<Arc<LogFile>>,
    offset: u64,
}

impl Cursor {
    /// The next frames that hold entries from `next` on; empty at the end of what is written. A file other than the last
    /// one is entered where `next` lies in it.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub async fn read(&mut self, file: &Arc<LogFile>, next: u64) -> io::Result<Vec<LogBatch>> {
        if !self.file.as_ref().is_some_and(|current| Arc::ptr_eq(current, file)) {
            let seeking = file.clone();
            self.offset = blocking(move || seeking.seek(0, next)).await?;
            self.file = Some(file.clone());
        }
        if self.offset >= file.progress().len {
            return Ok(Vec::new());
        }
        let (reading, offset) = (file.clone(), self.offset);
        let (batches, offset) = blocking(move || reading.read(offset, CHUNK)).await?;
        self.offset = offset;
        Ok(batches)
    }
}

struct Subscriber {
    hub: Hub,
    job: JobId,
    follow: bool,
    since_ms: i64,
    tail: u64,
    next: u64,
    contact: Contact,
    events: mpsc::Sender<Result<LogEvent, Status>>,
}

/// The client went away, or was sent an error: nothing more to do.
struct Over;

impl Subscriber {
    async fn run(mut self, attempt: u32) -> Result<(), Over> {
        let mut job = self.hub.ledger().watch_job(self.job);
        let mut attempt = self.first_attempt(attempt);
        loop {
            job.borrow_and_update();
            let Some((newest, terminal)) = self.job_now() else {
                return self.fail(error::not_found(error::code::UNKNOWN_JOB, format!("no job {}", self.job))).await;
            };
            if attempt <= newest {
                self.read_attempt(attempt).await?;
                (attempt, self.next, self.tail) = (attempt + 1, 1, 0);
                if self.follow {
                    continue;
                }
            } else if self.follow && !terminal {
                tokio::select! {
                    changed = job.changed() => changed.map_err(|_| Over)?,
                    () = self.contact.lost(ALONE) => return self.cut_off().await,
                    () = self.events.closed() => return Err(Over),
                }
                continue;
            }
            return self.end().await;
        }
    }

    /// With `follow` all attempts from the first on, or from the newest where only its last entries are wanted;
    /// otherwise the newest.
    fn first_attempt(&self, asked: u32) -> u32 {
        let newest = self.job_now().map_or(0, |(newest, _)| newest);
        match asked {
            0 if self.follow && self.tail == 0 => 1,
            0 => newest.max(1),
            asked => asked,
        }
    }

    fn job_now(&self) -> Option<(u32, bool)> {
        let state = self.hub.ledger().state();
        state.job(self.job).map(|job| (job.attempt, job.state.is_terminal()))
    }

    async fn end(&self) -> Result<(), Over> {
        match self.job_now() {
            Some((_, true)) => match self.hub.ledger().describe(self.job).await {
                Some(end) => self.send(Kind::JobEnd(end)).await,
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    async fn read_attempt(&mut self, attempt: u32) -> Result<(), Over> {
        let key = LogKey { job: self.job, attempt };
        let source = self.hub.source(key);
        let mut job = self.hub.ledger().watch_job(self.job);
        let mut reading = Reading {
            key,
            feed: source.feed(),
            progress: None,
            cursor: Cursor::default(),
            pulled: 0,
            patience: Patience::new(Instant::now()),
            positioned: self.tail == 0,
        };
        loop {
            job.borrow_and_update();
            let feed = reading.look();
            let state = self.hub.ledger().state();
            let now = self.advance(&mut reading, &feed, &state).await?;
            let impatient = match now {
                Verdict::End { complete, missing, gone } => {
                    return self.attempt_end(key, &state, complete, &missing, gone).await;
                }
                Verdict::Stop { missing } if missing.is_empty() => return Ok(()),
                Verdict::Stop { missing } => return self.notice_missing(&missing).await,
                Verdict::Wait { impatient } => impatient,
            };
            let until = reading.patience.until();
            let alone = self.may_be_alone(key, &state);
            if let Some(silent) = self.out_of_reach(&feed, key, &state) {
                let why = format!("the log goes on at node {silent}, which cannot be read from this one");
                return self.fail(error::unavailable(why)).await;
            }
            tokio::select! {
                _ = job.changed() => {}
                changed = reading.feed.changed() => changed.map_err(|_| Over)?,
                () = grown(&mut reading.progress) => {}
                () = sleep_until(until), if impatient => {}
                () = self.contact.lost(alone), if self.follow => return self.cut_off().await,
                () = self.events.closed() => return Err(Over),
            }
        }
    }

    /// Sends what there is and says what to do next.
    async fn advance(&mut self, reading: &mut Reading, feed: &Feed, state: &State) -> Result<Verdict, Over> {
        let attempt = state.attempt(self.job, reading.key.attempt);
        let end = attempt.and_then(|attempt| attempt.end.as_ref());
        if end.is_some() {
            reading.patience.ended(Instant::now());
        }
        if feed.broken.is_some() {
            reading.patience.broke(Instant::now());
        }
        let awaited = attempt.is_some_and(|attempt| is_awaited(state, attempt, &feed.missing)) && feed.broken.is_none();
        reading.patience.allow(self.follow, awaited);
        // Of a lost attempt only what was asked after its end was known says what all have.
        let is_of_now = feed.ended || end.is_none_or(|end| end.log.is_some());
        let (settled, asked_all) = (feed.settled && is_of_now, feed.asked_all && is_of_now);
        if !reading.positioned {
            if !settled && !reading.patience.is_over(Instant::now()) {
                return Ok(Verdict::Wait { impatient: true });
            }
            let last = feed.file.as_ref().map_or(0, |file| file.progress().tally.last_sequence);
            self.next = self.next.max((last + 1).saturating_sub(self.tail));
            reading.positioned = true;
        }
        let fence = attempt.map_or(0, |attempt| attempt.id.fence);
        let tally = match &feed.file {
            Some(file) => self.drain(file, reading, fence).await?,
            None => Some(Tally::default()),
        };
        // Where the rest could not be read any more, it counts as what has yet to come, and be it the last entry.
        let settled = settled && tally.is_some();
        let figures = end.and_then(|end| end.log.as_ref());
        let before_last = figures.map_or(u64::MAX, |figures| figures.last_sequence.saturating_sub(1));
        let unread = Tally { last_sequence: before_last.min(self.next - 1), ..Tally::default() };
        let tally = tally.unwrap_or(unread);
        if attempt.is_none() {
            // Removed while it was read.
            return Ok(Verdict::End { complete: false, missing: Vec::new(), gone: None });
        }
        let (follow, missing, broken) = (self.follow, feed.missing.as_slice(), feed.broken.is_some());
        let gone = attempt.is_some_and(|attempt| is_gone(state, attempt, asked_all, missing));
        // After whatever was sent just now. What never comes is not waited for.
        let never_comes = gone && attempt.is_some_and(|attempt| !may_come(state, attempt, missing));
        let patience_over = never_comes || reading.patience.is_over(Instant::now());
        let verdict = verdict(&Situation { end, tally, settled, missing, gone, broken, follow, patience_over });
        match (&verdict, &feed.broken) {
            (Verdict::End { complete: false, .. } | Verdict::Stop { .. }, Some(why)) => {
                // Others may have it, and could give it to a node that can keep it.
                let status = error::unavailable(format!("this node cannot keep what it reads of the log: {why}"));
                self.fail(status).await.and(Err(Over))
            }
            _ => Ok(verdict),
        }
    }

    /// Sends everything from `next` on. Returns what the file added up to before its end was reached; nothing where the file
    /// was cut to what is durable before that.
    async fn drain(&mut self, file: &Arc<LogFile>, reading: &mut Reading, fence: u64) -> Result<Option<Tally>, Over> {
        let key = reading.key;
        let attempt = to_proto::attempt_ref(&AttemptRef { job: key.job, attempt: key.attempt, fence });
        loop {
            let tally = file.progress().tally;
            let batches = match reading.cursor.read(file, self.next).await {
                Ok(batches) if batches.is_empty() => return Ok(Some(tally)),
                Ok(batches) => batches,
                Err(_) if file.is_cut() => return Ok(None),
                Err(error) => return self.fail(error::internal(error)).await.and(Err(Over)),
            };
            let next = self.next;
            for batch in batches {
                let Some(batch) = entries::from_sequence(batch, self.next) else { continue };
                self.next = entries::last_sequence(&batch) + 1;
                let batch = if self.since_ms > 0 { entries::since(batch, self.since_ms) } else { Some(batch) };
                if let Some(batch) = batch {
                    self.send(Kind::Batch(LogBatch { attempt: Some(attempt.clone()), ..batch })).await?;
                    self.since_ms = 0;
                }
            }
            if self.next > next {
                // However long the client took for it.
                reading.patience.came(Instant::now());
                self.contact.came(Instant::now());
            }
        }
    }

    async fn attempt_end(
        &self,
        key: LogKey,
        state: &State,
        complete: bool,
        missing: &[NodeId],
        gone: Option<u64>,
    ) -> Result<(), Over> {
        let attempt = state.attempt(key.job, key.attempt);
        let end = attempt.and_then(|attempt| attempt.end.as_ref());
        let event = AttemptLogEnd {
            attempt: attempt.map(|attempt| to_proto::attempt_ref(&attempt.id)),
            complete,
            log: end.and_then(|end| end.log.as_ref()).map(to_proto::log_end),
            missing_holders: missing.iter().map(ToString::to_string).collect(),
            gone: gone.is_some(),
            lost: gone.unwrap_or_default(),
            reason: end.map(|end| to_proto::reason(&end.reason)),
        };
        self.send(Kind::AttemptEnd(event)).await
    }

    async fn notice_missing(&self, missing: &[NodeId]) -> Result<(), Over> {
        let nodes: Vec<String> = missing.iter().map(ToString::to_string).collect();
        let text = format!("parts of the log are on nodes that do not answer: {}", nodes.join(", "));
        self.send(Kind::Notice(LogNotice { text })).await
    }

    async fn send(&self, kind: Kind) -> Result<(), Over> {
        self.events.send(Ok(LogEvent { kind: Some(kind) })).await.map_err(|_| Over)
    }

    /// How long a reader is kept without a majority. Who is sent away cannot come back before there is one.
    fn may_be_alone(&self, key: LogKey, state: &State) -> Duration {
        let is_gateway = live_gateway(state, key) == Some(self.hub.node());
        let lease = state.spec(key.job).filter(|_| is_gateway).map(|spec| Duration::from_millis(spec.lost_after_ms));
        lease.map_or(ALONE, |lease| lease.clamp(ALONE, ALONE_AT_GATEWAY))
    }

    /// The gateway of a running attempt, where it has not answered this node for too long. Another one may reach it, unless its
    /// agent has died with it. Each time that it was asked in vain the feed has changed; in between others are asked.
    fn out_of_reach(&self, feed: &Feed, key: LogKey, state: &State) -> Option<NodeId> {
        let silent = feed.silent.filter(|silent| self.follow && live_gateway(state, key) == Some(silent.gateway))?;
        (silent.asked >= self.contact.quiet_since(silent.since) + SILENT_GATEWAY).then_some(silent.gateway)
    }

    async fn cut_off(&self) -> Result<(), Over> {
        let why = "this node reaches no majority or lags behind it, and may be cut off from where the log goes on";
        self.fail(error::unavailable(why)).await
    }

    async fn fail(&self, status: Status) -> Result<(), Over> {
        let _ = self.events.send(Err(status)).await;
        Err(Over)
    }
}

/// One attempt's log while it is read.
struct Reading {
    key: LogKey,
    feed: watch::Receiver<Feed>,
    progress: Option<watch::Receiver<Progress>>,
    cursor: Cursor,
    /// See [`Feed`].
    pulled: u64,
    patience: Patience,
    /// Where `tail` begins is known.
    positioned: bool,
}

impl Reading {
    /// What the source offers now; everything after it counts as a change.
    fn look(&mut self) -> Feed {
        let feed = self.feed.borrow_and_update().clone();
        // What this node cannot keep comes again and again.
        if std::mem::replace(&mut self.pulled, feed.pulled) != feed.pulled && feed.broken.is_none() {
            self.patience.came(Instant::now());
        }
        self.progress = feed.file.as_ref().map(|file| {
            let mut progress = file.watch();
            progress.borrow_and_update();
            progress
        });
        feed
    }
}

/// The file has grown; never, where there is none.
async fn grown(progress: &mut Option<watch::Receiver<Progress>>) {
    if let Some(progress) = progress
        && progress.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}
