//! Following a job's output over whatever servers there are, each line once and in order.
//!
//! A stream that breaks is opened again on the next server, from the entry after the last one printed. That goes on
//! until the job ends or the user has enough: an outage of the cluster is no reason to give up.

use std::{io, time::Duration};

use hodei_proto::v1::{
    AttemptLogEnd, Job, LogBatch, LogEvent, SubscribeLogsRequest, log_event::Kind,
    log_stream_service_client::LogStreamServiceClient,
};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    time::sleep,
};
use tonic::{Code, Status, Streaming};

use super::selector;
use crate::{
    cli::{
        client::Client,
        exit::{Failure, code},
        output,
    },
    error,
    logs::entries::{self, GAP, STDERR},
};

/// Between attempts to go on.
const RETRY: Duration = Duration::from_millis(100);
/// Between looks for nodes that hold what is missing.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How following came to its end.
pub enum Followed {
    /// The job is terminal.
    Ended(Box<Job>),
    /// Everything there is was printed; the job goes on.
    Printed,
    /// Everything within reach was printed; the rest is on nodes that do not answer. Only without `follow`.
    Lacking,
}

/// What is wanted of a job's output.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The job's selector.
    pub job: String,
    /// Which attempt's, with `follow` from it on; 0: the newest, with `follow` all.
    pub attempt: u32,
    /// Go on until the job ends.
    pub follow: bool,
    /// The last n entries of what there is.
    pub tail: u64,
    /// Only from this time on, Unix milliseconds; 0: all.
    pub since_ms: i64,
}

/// Prints a job's output.
pub struct Follower<'a> {
    client: &'a Client,
    wanted: Wanted,
    /// Where to go on: attempt (0: not known yet) and sequence.
    attempt: u32,
    next: u64,
    /// Told once per outage.
    told: bool,
    /// Told of this attempt that its output is out of reach (0: of none).
    told_missing: u32,
    /// Something was out of reach.
    lacking: bool,
    sinks: Sinks,
}

impl<'a> Follower<'a> {
    /// From the beginning.
    #[must_use]
    pub fn new(client: &'a Client, wanted: Wanted) -> Self {
        let sinks = Sinks::default();
        Self { client, wanted, attempt: 0, next: 1, told: false, told_missing: 0, lacking: false, sinks }
    }

    /// Prints until the job ends or, without `follow`, until everything there is was printed.
    ///
    /// # Errors
    /// A definite refusal; without `follow`, that nobody answers; that the output cannot be written.
    pub async fn run(&mut self) -> Result<Followed, Failure> {
        loop {
            let mut stream = match self.open().await {
                Ok(stream) => stream,
                Err(failure) if self.wanted.follow && failure.exit == code::UNREACHABLE => {
                    self.tell(&failure.message);
                    sleep(RETRY).await;
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            match self.read(&mut stream).await? {
                Step::Done(_) if self.lacking => return Ok(Followed::Lacking),
                Step::Done(followed) => return Ok(followed),
                Step::Missing => {
                    self.client.next_server();
                    sleep(LOOK_AGAIN).await;
                }
                Step::Broken(why) => {
                    self.tell(&why);
                    self.client.next_server();
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn open(&self) -> Result<Streaming<LogEvent>, Failure> {
        let begun = self.attempt > 0;
        let message = SubscribeLogsRequest {
            job: selector(&self.wanted.job),
            attempt: if begun { self.attempt } else { self.wanted.attempt },
            follow: self.wanted.follow,
            from_sequence: self.next,
            tail: if begun { 0 } else { self.wanted.tail },
            since_ms: if begun { 0 } else { self.wanted.since_ms },
        };
        self.client
            .open(None, |conn| {
                let request = conn.request(message.clone());
                async move {
                    let client = LogStreamServiceClient::new(conn.channel);
                    client.max_decoding_message_size(hodei_raft::MAX_MESSAGE).subscribe_logs(request).await
                }
            })
            .await
    }

    async fn read(&mut self, stream: &mut Streaming<LogEvent>) -> Result<Step, Failure> {
        loop {
            let event = match stream.message().await {
                Ok(Some(LogEvent { kind: Some(kind) })) => kind,
                Ok(Some(LogEvent { kind: None })) => continue,
                Ok(None) if self.wanted.follow => return Ok(Step::Broken("the stream ended early".to_owned())),
                Ok(None) => return Ok(Step::Done(Followed::Printed)),
                Err(status) if is_definite(&status) => return Err(Failure::from_status(&status)),
                Err(status) => return Ok(Step::Broken(status.message().to_owned())),
            };
            self.told = false;
            match event {
                Kind::Batch(batch) => self.print(&batch).await?,
                Kind::AttemptEnd(end) => {
                    let number = end.attempt.as_ref().map_or(self.attempt, |attempt| attempt.attempt);
                    if !end.complete {
                        self.tell_incomplete(number, &end);
                    }
                    // Lines that are known to exist are worth waiting for; of a lost attempt there may be none.
                    let missing = !end.missing_holders.is_empty() && !end.gone;
                    if missing && self.wanted.follow && end.log.is_some() {
                        if self.attempt > 0 && self.attempt != number {
                            (self.attempt, self.next) = (number, 1);
                        }
                        return Ok(Step::Missing);
                    }
                    self.lacking |= missing && !self.wanted.follow;
                    if self.wanted.follow {
                        (self.attempt, self.next) = (number + 1, 1);
                    } else if self.attempt != number {
                        (self.attempt, self.next) = (number, 1);
                    }
                }
                Kind::Notice(notice) => {
                    output::note(format_args!("hodei: {}", notice.text));
                    self.lacking |= !self.wanted.follow;
                }
                Kind::JobEnd(end) => {
                    let job = end.job.ok_or_else(|| Failure::other("the node's answer is damaged"))?;
                    return Ok(Step::Done(Followed::Ended(Box::new(job))));
                }
            }
        }
    }

    async fn print(&mut self, batch: &LogBatch) -> Result<(), Failure> {
        if entries::check(batch).is_err() {
            return Err(Failure::other("the node sent a damaged batch of log entries"));
        }
        let number = batch.attempt.as_ref().map_or(self.attempt, |attempt| attempt.attempt);
        if number != self.attempt {
            (self.attempt, self.next) = (number, 1);
        }
        for entry in entries::entries(batch).filter(|entry| entry.sequence >= self.next) {
            match entry.kind {
                GAP => tell_gap(entry.lost()),
                kind => self.sinks.write(kind == STDERR, entry.data).await?,
            }
        }
        self.next = self.next.max(entries::last_sequence(batch) + 1);
        self.sinks.flush().await
    }

    fn tell(&mut self, why: &str) {
        if !std::mem::replace(&mut self.told, true) {
            output::note(format_args!("hodei: lost the connection ({why}); trying again"));
        }
    }

    fn tell_incomplete(&mut self, attempt: u32, end: &AttemptLogEnd) {
        let missing = &end.missing_holders;
        if missing.is_empty() {
            output::note(format_args!("hodei: the output of attempt {attempt} may be incomplete"));
        } else if end.gone {
            let what = match end.lost {
                0 => "some".to_owned(),
                1 => "the last line".to_owned(),
                lines => format!("the last {lines} lines"),
            };
            let nodes = missing.join(", ");
            output::note(format_args!(
                "hodei: lost with nodes that have left the cluster ({nodes}): {what} of the output of attempt {attempt}"
            ));
        } else if std::mem::replace(&mut self.told_missing, attempt) != attempt {
            let nodes = missing.join(", ");
            output::note(format_args!("hodei: output of attempt {attempt} is on nodes that do not answer: {nodes}"));
        }
    }
}

fn tell_gap(lost: u64) {
    match lost {
        0 => output::note(format_args!("hodei: output may be lost here, nobody knows how much")),
        1 => output::note(format_args!("hodei: a line of output is lost here")),
        lines => output::note(format_args!("hodei: {lines} lines of output are lost here")),
    }
}

enum Step {
    Done(Followed),
    Broken(String),
    /// What comes next is on nodes that do not answer.
    Missing,
}

fn is_definite(status: &Status) -> bool {
    let detail = error::detail(status);
    detail.is_some() && !matches!(status.code(), Code::Unavailable | Code::Internal | Code::DeadlineExceeded)
}

/// Standard output and standard error. A reader that went away is not written to any more; the job goes on.
#[derive(Default)]
struct Sinks {
    out: Vec<u8>,
    err: Vec<u8>,
    out_gone: bool,
    err_gone: bool,
}

impl Sinks {
    /// The order within a batch is kept between the two streams as well.
    async fn write(&mut self, stderr: bool, bytes: &[u8]) -> Result<(), Failure> {
        let other = if stderr { &self.out } else { &self.err };
        if !other.is_empty() {
            self.flush().await?;
        }
        let buffer = if stderr { &mut self.err } else { &mut self.out };
        buffer.extend_from_slice(bytes);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        put(tokio::io::stdout(), &mut self.out, &mut self.out_gone).await?;
        put(tokio::io::stderr(), &mut self.err, &mut self.err_gone).await
    }
}

async fn put(mut sink: impl AsyncWrite + Unpin, bytes: &mut Vec<u8>, gone: &mut bool) -> Result<(), Failure> {
    if bytes.is_empty() {
        return Ok(());
    }
    let written = if *gone {
        Ok(())
    } else {
        match sink.write_all(bytes).await {
            Ok(()) => sink.flush().await,
            Err(error) => Err(error),
        }
    };
    bytes.clear();
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            *gone = true;
            Ok(())
        }
        written => written.map_err(|error| Failure::other(format!("cannot write the output: {error}"))),
    }
}
