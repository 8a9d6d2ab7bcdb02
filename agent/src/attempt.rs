//! One attempt as this process knows it, and what it still has to tell the node.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hodei_proto::v1::{
    AttemptRef, AttemptStatus, JobResult, JobStarted, LogResume, WorkerMessage, attempt_status::Phase as WirePhase,
    worker_message::Kind,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    key::AttemptKey,
    log::{Log, Taken, Wanted, addressed},
};

/// A released attempt whose late lines nobody takes is forgotten after this.
const KEEP_RELEASED: Duration = Duration::from_secs(600);

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The intent is being written, the process made.
    Starting,
    /// It has a process.
    Running,
    /// It has none any more.
    Ended,
}

/// What its executor is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Go on.
    No,
    /// SIGTERM, then SIGKILL after the grace period.
    Cancel {
        /// Given by whoever cancelled.
        reason: String,
        /// Between the two signals.
        grace: Duration,
    },
    /// The agent ends: the attempt gets SIGTERM, its grace period and SIGKILL, and is handed back.
    HandBack {
        /// The longest grace period.
        within: Duration,
    },
}

struct State {
    phase: Phase,
    pid: u32,
    tell_started: bool,
    result: Option<JobResult>,
    tell_result: bool,
    released: Option<Instant>,
}

/// One attempt.
pub struct Attempt {
    /// Its key.
    pub key: AttemptKey,
    /// The same for the wire.
    pub wire: AttemptRef,
    /// Its output.
    pub log: Arc<Log>,
    /// The GPUs that are its own while it lives.
    pub gpus: Vec<String>,
    state: Mutex<State>,
    stop: watch::Sender<Stop>,
}

/// What comes next on the stream for an attempt.
pub enum Next {
    /// Send this; there may be more.
    Message(WorkerMessage),
    /// Its log must be read from disk first.
    Read(Wanted),
    /// Nothing for now.
    Nothing,
}

impl Attempt {
    /// One that is about to start.
    #[must_use]
    pub fn starting(key: AttemptKey, gpus: Vec<String>) -> Self {
        Self { gpus, ..Self::new(key, Log::new(), Phase::Starting, None) }
    }

    /// One that goes on under this process.
    #[must_use]
    pub fn adopted(key: AttemptKey, log: Log, pid: u32, gpus: Vec<String>) -> Self {
        let this = Self { gpus, ..Self::new(key, log, Phase::Running, None) };
        this.state.lock().pid = pid;
        this
    }

    /// One found on disk, ended, with its result where it got that far.
    #[must_use]
    pub fn recovered(key: AttemptKey, log: Log, result: Option<JobResult>) -> Self {
        Self::new(key, log, Phase::Ended, result)
    }

    fn new(key: AttemptKey, log: Log, phase: Phase, result: Option<JobResult>) -> Self {
        let tell_result = result.is_some();
        let state = State { phase, pid: 0, tell_started: false, result, tell_result, released: None };
        Self {
            key,
            wire: key.to_wire(),
            log: Arc::new(log),
            gpus: Vec::new(),
            state: Mutex::new(state),
            stop: watch::Sender::new(Stop::No),
        }
    }

    /// How far it has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    /// Whether its result is known and nobody has taken the attempt away.
    #[must_use]
    pub fn has_result(&self) -> bool {
        self.state.lock().result.is_some()
    }

    /// It has a process.
    pub fn started(&self, pid: u32) {
        let mut state = self.state.lock();
        state.phase = Phase::Running;
        state.pid = pid;
        state.tell_started = true;
    }

    /// It has ended, and this result is on disk.
    pub fn ended(&self, result: JobResult) {
        let mut state = self.state.lock();
        state.phase = Phase::Ended;
        state.tell_started = false;
        state.tell_result = state.released.is_none();
        state.result = Some(result);
    }

    /// It is over, and nobody knows how; perhaps something of it is left. Its lease must run out.
    pub fn given_up(&self) {
        let mut state = self.state.lock();
        state.phase = Phase::Ended;
        state.tell_started = false;
    }

    /// Whether more time is to be asked for.
    #[must_use]
    pub fn wants_time(&self) -> bool {
        let state = self.state.lock();
        state.phase != Phase::Ended || state.result.is_some()
    }

    /// The node asked again whether it runs.
    pub fn asked_again(&self) {
        let mut state = self.state.lock();
        state.tell_started = state.phase == Phase::Running;
        state.tell_result = state.result.is_some() && state.released.is_none();
    }

    /// A new stream: tells again what nobody has acknowledged.
    pub fn attached(&self) {
        self.log.detach();
        self.asked_again();
    }

    /// The start is committed.
    pub fn start_known(&self) {
        self.state.lock().tell_started = false;
    }

    /// It is none of ours any more; only late lines are still of use.
    pub fn release(&self) {
        let mut state = self.state.lock();
        state.released.get_or_insert_with(Instant::now);
        state.tell_started = false;
        state.tell_result = false;
    }

    /// Released, ended, and nothing left that anybody wants.
    #[must_use]
    pub fn is_done_for(&self) -> bool {
        let state = self.state.lock();
        let Some(released) = state.released else { return false };
        state.phase == Phase::Ended && (self.log.all_durable() || released.elapsed() > KEEP_RELEASED)
    }

    /// Asks its executor to stop it. A later request does not take back an earlier one, but hands back at once.
    pub fn stop(&self, stop: Stop) {
        self.stop.send_if_modified(|current| {
            let hands_back = |stop: &Stop| matches!(stop, Stop::HandBack { .. });
            let newer = *current == Stop::No || (hands_back(&stop) && !hands_back(current));
            if newer {
                *current = stop;
            }
            newer
        });
    }

    /// For its executor.
    #[must_use]
    pub fn stops(&self) -> watch::Receiver<Stop> {
        let mut stops = self.stop.subscribe();
        // What was asked for before the process was made counts too.
        stops.mark_changed();
        stops
    }

    /// For Attach.
    #[must_use]
    pub fn status(&self) -> AttemptStatus {
        let phase = match self.phase() {
            Phase::Starting => WirePhase::Starting,
            Phase::Running => WirePhase::Running,
            Phase::Ended => WirePhase::Ended,
        };
        AttemptStatus { attempt: Some(self.wire.clone()), phase: phase.into(), last_sequence: self.log.last_sequence() }
    }

    /// The next message about it: its start, its end, then its output.
    #[must_use]
    pub fn next(&self) -> Next {
        if let Some(kind) = self.next_event() {
            return Next::Message(WorkerMessage { kind: Some(kind) });
        }
        let attempt = Some(self.wire.clone());
        let kind = match self.log.take() {
            Taken::Batch(batch) => Kind::LogBatch(addressed(batch, &self.wire)),
            Taken::Resume(first_available) => Kind::LogResume(LogResume { attempt, first_available }),
            Taken::Read(wanted) => return Next::Read(wanted),
            Taken::Nothing => return Next::Nothing,
        };
        Next::Message(WorkerMessage { kind: Some(kind) })
    }

    fn next_event(&self) -> Option<Kind> {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.tell_started) {
            return Some(Kind::JobStarted(JobStarted { attempt: Some(self.wire.clone()), pid: state.pid }));
        }
        if std::mem::take(&mut state.tell_result) {
            return state.result.clone().map(Kind::JobResult);
        }
        None
    }
}
