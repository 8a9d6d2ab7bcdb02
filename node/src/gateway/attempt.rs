//! One attempt as its gateway keeps it: what the agent said and was told, its log here, its result under way.
//!
//! Plain data and decisions; the session carries them out.

use std::{sync::Arc, time::Duration};

use hodei_proto::v1;
use hodei_state::{
    State,
    ids::{AttemptRef, NodeId},
    job::LogEnd,
};
use tokio::time::Instant;

use super::{
    reconcile::{Said, Told, Truth},
    session::Room,
};
use crate::{convert::to_proto, logs::file::LogFile};

/// The placement of a log waits so long for a result to travel with.
pub const PLACE_DELAY: Duration = Duration::from_millis(20);
/// What a log is known to lack is asked for again after so long without progress.
const REPEAT_WANTED: Duration = Duration::from_secs(2);
/// A proposal that failed is made again after this.
const RETRY: Duration = Duration::from_millis(200);

/// A proposal that has to be made once and be known to be committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Errand {
    /// Not yet asked for.
    #[default]
    Idle,
    /// To be proposed from this time on.
    Due(Instant),
    /// Under way.
    Running,
    /// Committed, or void.
    Settled,
}

impl Errand {
    /// Wanted from `at` on, unless that is so already.
    pub fn want(&mut self, at: Instant) {
        match self {
            Self::Idle => *self = Self::Due(at),
            Self::Due(due) => *due = at.min(*due),
            Self::Running | Self::Settled => {}
        }
    }

    /// Whether to propose it now; it is under way then.
    pub fn begin(&mut self, now: Instant) -> bool {
        let begin = matches!(self, Self::Due(due) if *due <= now);
        if begin {
            *self = Self::Running;
        }
        begin
    }

    /// The proposal failed: not done, or of unknown outcome, which for these is the same.
    pub fn failed(&mut self, now: Instant) {
        *self = Self::Due(now + RETRY);
    }

    fn due(self) -> Option<Instant> {
        match self {
            Self::Due(due) => Some(due),
            _ => None,
        }
    }
}

/// What the agent was last told of its log and its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// See `Ack` on the wire.
    pub received: u64,
    /// See `Ack` on the wire.
    pub durable: u64,
    /// See `Ack` on the wire.
    pub started: bool,
    /// See `Ack` on the wire.
    pub ended: bool,
}

/// See the module.
pub struct Attempt {
    /// Job, number and fence.
    pub id: AttemptRef,
    /// What the agent says of it.
    pub said: Said,
    /// What it was told.
    pub told: Told,
    /// Its start, to be committed.
    pub started: Errand,
    /// Its decline, to be committed, with the reason.
    pub declined: Errand,
    /// Why it was declined.
    pub decline_reason: String,
    /// Its result, to be committed.
    pub result: Errand,
    /// What the agent reported.
    pub report: Option<v1::JobResult>,
    /// Its log's place, to be committed.
    pub place: Errand,
    /// Its log here; `None` before its first batch on this stream.
    pub file: Option<Arc<LogFile>>,
    /// It could not be opened when that was tried last.
    pub cannot_open: bool,
    /// How long nothing of it could be kept.
    pub room: Room,
    /// The next entry to hand to the file.
    pub next: u64,
    /// The agent is known to have entries up to here.
    pub known_last: u64,
    /// When entries were asked for, or came, last.
    pub log_activity: Instant,
    /// The last acknowledgement.
    pub acknowledged: Acknowledged,
    /// An order is repeated then.
    pub quiet_until: Option<Instant>,
}

impl Attempt {
    /// One of which nothing is known but its name.
    #[must_use]
    pub fn new(id: AttemptRef, now: Instant) -> Self {
        Self {
            id,
            said: Said::Nothing,
            told: Told::default(),
            started: Errand::Idle,
            declined: Errand::Idle,
            decline_reason: String::new(),
            result: Errand::Idle,
            report: None,
            place: Errand::Idle,
            file: None,
            cannot_open: false,
            room: Room::default(),
            next: 1,
            known_last: 0,
            log_activity: now,
            acknowledged: Acknowledged::default(),
            quiet_until: None,
        }
    }

    /// Takes up what the state says about what has to be committed.
    pub fn learn(&mut self, state: &State, truth: &Truth, me: NodeId, now: Instant) {
        if !matches!(truth, Truth::Owned { started: false, .. }) {
            self.started = Errand::Settled;
        }
        // Where the agent has come back to an earlier holder, that is the last one again.
        let placed = state
            .segments(self.id.job, self.id.attempt)
            .any(|segment| segment.holders.last().is_some_and(|holder| state.heir(*holder) == me));
        if placed || *truth == Truth::Unknown {
            self.place = Errand::Settled;
        } else if self.place == Errand::Settled && self.known_last > 0 {
            // An earlier gateway spoke late. The end is not acknowledged before this node is the last holder again.
            self.place.failed(now);
        }
    }

    /// The agent reported the end.
    pub fn reported(&mut self, report: v1::JobResult, now: Instant) {
        self.said = Said::Ended;
        self.known_last = self.known_last.max(report.log.as_ref().map_or(0, |log| log.last_sequence));
        self.report = Some(report);
        self.result.want(now);
    }

    /// Whether the result is to say where the log lies: it will lie here, because the agent delivers it here.
    #[must_use]
    pub fn result_places_log(&self) -> bool {
        self.place != Errand::Settled && self.known_last > 0
    }

    /// The figures that the agent reported.
    #[must_use]
    pub fn figures(&self) -> Option<LogEnd> {
        let report = self.report.as_ref()?;
        Some(crate::convert::from_proto::log_end(report.log.as_ref()))
    }

    /// What may be acknowledged now; `None`: nothing new.
    #[must_use]
    pub fn acknowledgement(&self) -> Option<v1::Ack> {
        let progress = self.file.as_ref().map(|file| file.progress()).unwrap_or_default();
        let (received, durable) = (progress.tally.last_sequence, progress.durable);
        let last = self.figures().map(|figures| figures.last_sequence);
        let placed = self.place == Errand::Settled;
        let safe = |last: u64| {
            last == 0 || (durable >= last && placed) || hodei_state::armed!("bug::end-acknowledged-without-log")
        };
        let whole = last.is_some_and(safe);
        let now = Acknowledged {
            received,
            durable,
            started: self.started == Errand::Settled,
            ended: self.result == Errand::Settled && whole,
        };
        (now != self.acknowledged).then(|| v1::Ack {
            attempt: Some(to_proto::attempt_ref(&self.id)),
            received: now.received,
            durable: now.durable,
            started: now.started,
            ended: now.ended,
        })
    }

    /// The acknowledgement was sent.
    pub fn acknowledge(&mut self, ack: &v1::Ack) {
        let v1::Ack { received, durable, started, ended, .. } = *ack;
        self.acknowledged = Acknowledged { received, durable, started, ended };
    }

    /// The sequence to ask for again: the log is known to lack something, and nothing has come for a while.
    #[must_use]
    pub fn wanted(&self, now: Instant) -> Option<u64> {
        let due = self.wanted_at().is_some_and(|at| at <= now);
        due.then_some(self.next)
    }

    fn wanted_at(&self) -> Option<Instant> {
        // What was handed to a file that then failed is not in it, and nothing more may come that would show it.
        let lost = |file: &Arc<LogFile>| file.progress().failed && file.progress().durable < self.known_last;
        let lacks = self.next <= self.known_last || self.file.as_ref().is_some_and(lost);
        lacks.then(|| self.log_activity + REPEAT_WANTED)
    }

    /// When something is to be done about it, should nothing happen before.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let errands = [self.started, self.declined, self.result, self.place];
        errands.into_iter().filter_map(Errand::due).chain(self.wanted_at()).min()
    }

    /// Nothing more has to be done about it on this stream.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.acknowledged.ended || (self.declined == Errand::Settled && self.said == Said::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use hodei_state::{
        command::{Command, PlaceSegment},
        ids::Caller,
    };

    use super::*;
    use crate::testing::Replica;

    fn report(last_sequence: u64) -> v1::JobResult {
        let log = v1::LogEnd { last_sequence, lines: last_sequence, ..Default::default() };
        v1::JobResult { attempt: None, reason: None, log: Some(log) }
    }

    #[test]
    fn the_end_is_acknowledged_when_result_place_and_log_are_safe() {
        let now = Instant::now();
        let mut attempt = Attempt::new(AttemptRef::default(), now);
        attempt.reported(report(3), now);
        assert!(attempt.result_places_log() && attempt.acknowledgement().is_none());
        attempt.result = Errand::Settled;
        assert!(attempt.acknowledgement().is_none(), "the log is not here");
        assert_eq!(attempt.wanted(now + REPEAT_WANTED), Some(1));

        let mut silent = Attempt::new(AttemptRef::default(), now);
        silent.reported(report(0), now);
        assert!(!silent.result_places_log());
        silent.result = Errand::Settled;
        let ack = silent.acknowledgement().unwrap();
        assert!(ack.ended);
        silent.acknowledge(&ack);
        assert!(silent.acknowledgement().is_none() && silent.is_over());
    }

    #[test]
    fn the_end_is_not_acknowledged_while_another_node_is_the_last_holder() {
        let (replica, now, truth) = (Replica::new(), Instant::now(), Truth::Freed);
        let id = replica.assigned();
        let place = |holder| {
            let segment = PlaceSegment { holder, first_sequence: 1 };
            replica.done(Caller::Node(holder), Command::PlaceLog { attempt: id, segment });
        };
        let mut attempt = Attempt::new(id, now);
        attempt.reported(report(3), now);
        place(1);
        attempt.learn(&replica.state(), &truth, 1, now);
        assert_eq!(attempt.place, Errand::Settled);
        // Node 2 had the worker's stream in between, and its word comes while the worker has none.
        replica.detach(1);
        place(2);
        attempt.learn(&replica.state(), &truth, 1, now);
        assert!(attempt.place.begin(now + RETRY));
        attempt.place = Errand::Settled;
        replica.attach(2, 1);
        place(1);
        attempt.learn(&replica.state(), &truth, 1, now);
        assert_eq!(attempt.place, Errand::Settled);
    }

    #[test]
    fn an_errand_is_run_once_and_again_after_a_failure() {
        let now = Instant::now();
        let mut errand = Errand::default();
        assert!(!errand.begin(now));
        errand.want(now);
        assert!(errand.begin(now) && !errand.begin(now));
        errand.want(now);
        assert_eq!(errand, Errand::Running);
        errand.failed(now);
        assert!(!errand.begin(now) && errand.begin(now + RETRY));
    }
}
