//! What was asked, answered, done and seen, with times: the evidence that checkers judge.
//!
//! A history is a sequence of [`Record`]s. Operations ([`Request`]) are invoked and then end as `ok` (took effect),
//! `fail` (certainly did not) or `info` (nobody knows; it may still take effect). Everything else is a [`Note`]: what the
//! run is, faults, polls of nodes, messages of streams, lines of witnesses, what was left over. All times are of one
//! clock, since all processes share the machine.
//!
//! A run is kept as a folder, and every file `*.jsonl` in it is a part of its history: what clients saw is usually in
//! `history.jsonl`, what was done to the cluster in `schedule.jsonl`, what was gathered afterwards (witnesses) where it
//! suits. The parts are put together by time, so that it does not matter who wrote what where, and when. A [`Seal`] at the
//! end says which parts there are and how long they are, so that none is lost or added unseen.
//!
//! - [`History`] collects records of concurrent clients and writes them down.
//! - [`Evidence`] is a history as a whole, from memory or from files, with each answer at its question.
//! - [`check`](crate::check) judges evidence, and nothing but evidence: what is read again from files gets the same verdict.

mod evidence;
mod note;
mod operation;
mod record;

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use hodei_proto::v1::{ErrorDetail, Position};
use prost::Message as _;
use tonic::{Code, Status};

pub use self::{
    evidence::{At, Evidence, Malformed, Op, Outcome},
    note::*,
    operation::*,
    record::{Body, Kind, Record},
};

/// Nanoseconds of `CLOCK_MONOTONIC`.
///
/// # Panics
/// Never: every Linux has this clock.
#[must_use]
pub fn now_ns() -> u64 {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    let now = nix::time::clock_gettime(clock).expect("every Linux has a monotonic clock");
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}

/// Collects records of concurrent clients.
#[derive(Debug, Default)]
pub struct History {
    records: Mutex<Vec<Record>>,
    sealed: AtomicBool,
}

/// An operation that was asked and not yet answered. Dropped without an answer, it is one whose outcome nobody knows.
#[derive(Debug)]
#[must_use = "the answer belongs into the history, too"]
pub struct Open<'a> {
    history: &'a History,
    proc: u32,
    key: String,
    f: &'static str,
}

impl History {
    /// Records that process `proc` asks `node`, if it is known which one that is, and gives what takes the answer.
    ///
    /// # Panics
    /// If another client panicked while adding a record.
    pub fn invoke(&self, proc: u32, node: Option<u64>, key: &str, request: Request) -> Open<'_> {
        let open = Open { history: self, proc, key: key.to_owned(), f: request.name() };
        self.push(|t_ns| Record { node, ..Record::new(t_ns, proc, key, Body::Invoke(request)) });
        open
    }

    /// Records what was seen or done.
    ///
    /// # Panics
    /// If another client panicked while adding a record.
    pub fn note(&self, proc: u32, key: &str, note: Note) {
        self.push(|t_ns| Record::new(t_ns, proc, key, Body::Note(note)));
    }

    /// Adds records with times of their own, such as those of witnesses.
    ///
    /// # Panics
    /// If another client panicked while adding a record.
    pub fn extend(&self, records: impl IntoIterator<Item = Record>) {
        let mut all = self.lock();
        if !self.sealed.load(Ordering::Relaxed) {
            all.extend(records);
        }
    }

    /// Adds what is made of the time at which it is added.
    ///
    /// # Panics
    /// If another client panicked while adding a record.
    pub fn push(&self, record: impl FnOnce(u64) -> Record) {
        let mut records = self.lock();
        // Stamped under the lock: the order of lines is the order of times.
        let record = record(now_ns());
        if !self.sealed.load(Ordering::Relaxed) {
            records.push(record);
        }
    }

    /// Ends it with what is made of the number of records: what comes later is left out.
    ///
    /// # Panics
    /// If another client panicked while adding a record.
    pub fn seal(&self, seal: impl FnOnce(usize) -> (u32, Note)) {
        let mut records = self.lock();
        let (proc, note) = seal(records.len());
        records.push(Record::new(now_ns(), proc, "", Body::Note(note)));
        self.sealed.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().expect("adding a record does not panic")
    }

    /// Keys of the operations `f` that ended in `kind`.
    ///
    /// # Panics
    /// If a client panicked while adding a record.
    #[must_use]
    pub fn keys(&self, f: &str, kind: Kind) -> BTreeSet<String> {
        let matches = |record: &&Record| match &record.body {
            Body::Invoke(request) => (kind, f) == (Kind::Invoke, request.name()),
            Body::Ok(reply) => (kind, f) == (Kind::Ok, reply.name()),
            Body::Fail(failure) => (kind, f) == (Kind::Fail, &failure.f),
            Body::Info(failure) => (kind, f) == (Kind::Info, &failure.f),
            Body::Note(_) => false,
        };
        self.lock().iter().filter(matches).map(|record| record.key.clone()).collect()
    }

    /// What was recorded so far, as evidence.
    ///
    /// # Errors
    /// If answers do not belong to questions.
    ///
    /// # Panics
    /// If a client panicked while adding a record.
    pub fn evidence(&self) -> Result<Evidence, Malformed> {
        Evidence::of(self.lock().clone())
    }

    /// Writes one JSON object per line to a file.
    ///
    /// # Errors
    /// Those of the file.
    ///
    /// # Panics
    /// If a client panicked while adding a record.
    pub fn write(&self, to: &Path) -> io::Result<()> {
        let mut to = BufWriter::new(File::create(to)?);
        for record in self.lock().iter() {
            serde_json::to_writer(&mut to, record)?;
            to.write_all(b"\n")?;
        }
        to.flush()
    }
}

impl Open<'_> {
    /// Records the answer to a gRPC call; `reply` translates what came and where it was read.
    pub fn answer<T>(self, answer: &Result<T, Status>, reply: impl FnOnce(&T) -> (Reply, Option<Position>)) {
        match answer {
            Ok(answer) => {
                let (reply, position) = reply(answer);
                self.ok(reply, position);
            }
            Err(status) => self.failed(status),
        }
    }

    /// It took effect.
    pub fn ok(self, reply: Reply, position: Option<Position>) {
        debug_assert_eq!(reply.name(), self.f, "the answer is to the question");
        let (term, index) = (position.map(|at| at.term), position.map(|at| at.index));
        self.end(Body::Ok(reply), term, index);
    }

    /// It took no effect, or nobody knows, as the status says.
    pub fn failed(self, status: &Status) {
        let detail = detail(status);
        let not_done = detail.as_ref().map_or_else(|| certainly_not_done(status), |detail| detail.not_done);
        let code = detail.map_or_else(|| format!("{:?}", status.code()), |detail| detail.code);
        let failure = Failure { f: self.f.to_owned(), code, message: status.message().to_owned() };
        self.end(if not_done { Body::Fail(failure) } else { Body::Info(failure) }, None, None);
    }

    /// Nobody knows whether it took effect: what failed is not the answer to it, whatever that says of itself.
    pub fn unanswered(self, status: &Status) {
        let code = detail(status).map_or_else(|| format!("{:?}", status.code()), |detail| detail.code);
        let failure = Failure { f: self.f.to_owned(), code, message: status.message().to_owned() };
        self.end(Body::Info(failure), None, None);
    }

    /// It took no effect, as somebody said in words of the protocol.
    pub fn refused(self, code: &str, message: &str) {
        let failure = Failure { f: self.f.to_owned(), code: code.to_owned(), message: message.to_owned() };
        self.end(Body::Fail(failure), None, None);
    }

    fn end(self, body: Body, term: Option<u64>, index: Option<u64>) {
        let Self { history, proc, key, .. } = self;
        history.push(|t_ns| Record { term, index, ..Record::new(t_ns, proc, &key, body) });
    }
}

/// What the product says about an error, where it was the product that said it.
fn detail(status: &Status) -> Option<ErrorDetail> {
    let bytes = status.metadata().get_bin("hodei-error-bin")?.to_bytes().ok()?;
    ErrorDetail::decode(bytes).ok()
}

/// Whether an answer without details says that the request had no effect. Everything else is unknown, a broken
/// connection above all.
fn certainly_not_done(status: &Status) -> bool {
    [Code::InvalidArgument, Code::PermissionDenied, Code::Unauthenticated].contains(&status.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let history = History::default();
        let open = history.invoke(1, Some(2), "a", Request::Cancel);
        open.ok(Reply::Cancel(CancelAccepted { state: JobState::Cancelled }), Some(Position { term: 3, index: 4 }));
        history.invoke(1, Some(2), "b", Request::Cancel).failed(&Status::unknown("the connection broke"));
        history.invoke(1, Some(2), "c", Request::Cancel).failed(&Status::invalid_argument("no such thing"));
        let file = tempfile::NamedTempFile::new().unwrap();
        history.write(file.path()).unwrap();
        let read: Vec<_> = Evidence::read(file.path()).unwrap().records().map(|(_, record)| record.clone()).collect();
        assert_eq!(read, *history.lock());
        let keys = |kind| history.keys("cancel", kind).into_iter().collect::<String>();
        assert_eq!((keys(Kind::Ok), keys(Kind::Info), keys(Kind::Fail)), ("a".into(), "b".into(), "c".into()));
    }

    #[test]
    fn the_product_says_whether_it_was_done() {
        for not_done in [true, false] {
            let detail = ErrorDetail { code: "some".into(), not_done, ..ErrorDetail::default() };
            let mut status = Status::unavailable("words");
            let value = tonic::metadata::MetadataValue::from_bytes(&detail.encode_to_vec());
            status.metadata_mut().insert_bin("hodei-error-bin", value);
            let history = History::default();
            history.invoke(0, Some(1), "a", Request::Cancel).failed(&status);
            assert_eq!(history.keys("cancel", Kind::Fail).len(), usize::from(not_done));
        }
    }
}
