//! What to do about one attempt, given what the state says of it and what the agent says: a decision over plain data.

use std::time::Duration;

use hodei_state::{
    State,
    ids::AttemptRef,
    job::{EndedBy, TakenBack},
    registry::SessionRef,
};
use tokio::time::Instant;

/// An order that is not answered is repeated after this.
pub const REPEAT_RUN: Duration = Duration::from_secs(1);
/// A request to cancel takes effect slowly (the grace period), but must not be lost.
pub const REPEAT_CANCEL: Duration = Duration::from_secs(5);

/// What the state says of an attempt that concerns this session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Truth {
    /// Live, and this session's.
    Owned {
        /// Its start is committed.
        started: bool,
        /// It is to be stopped, because its job was cancelled or it is taken back: reason and grace period.
        cancel: Option<(String, u64)>,
    },
    /// It ended with a result of its session.
    Reported,
    /// It was freed without a result: lost, or declined.
    Freed,
    /// It is another session's, and live.
    Foreign,
    /// There is no such attempt, or its job was removed.
    Unknown,
}

impl Truth {
    /// What `state` says of `id` to the session `on`.
    #[must_use]
    pub fn of(state: &State, on: SessionRef, id: AttemptRef) -> Self {
        let attempt = state.attempt(id.job, id.attempt).filter(|attempt| attempt.id == id);
        let Some(attempt) = attempt else { return Self::Unknown };
        match &attempt.end {
            Some(end) if end.by == EndedBy::Result => Self::Reported,
            Some(_) => Self::Freed,
            None if (attempt.worker, attempt.session) != (on.worker, on.session) => Self::Foreign,
            None => {
                let grace = state.spec(id.job).map_or(0, |spec| spec.grace_period_ms);
                let cancelled = state.job(id.job).and_then(|job| job.cancel.as_ref());
                let cancelled = cancelled.map(|cancel| cancel.reason.clone());
                let taken_back = attempt.taken_back.map(|why| match why {
                    TakenBack::Drained => "its worker is drained".to_owned(),
                    TakenBack::Preempted { for_job } => format!("it makes room for job {for_job}"),
                });
                let cancel = cancelled.or(taken_back).map(|reason| (reason, grace));
                Self::Owned { started: attempt.started_at.is_some(), cancel }
            }
        }
    }
}

/// What the agent says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Said {
    /// Nothing: it does not have it, as far as is known.
    #[default]
    Nothing,
    /// The intent is written.
    Starting,
    /// The process runs.
    Running,
    /// The result is on its disk.
    Ended,
}

/// What it was told on this stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// To run it.
    pub run: Option<Instant>,
    /// To cancel it.
    pub cancel: Option<Instant>,
    /// That it is none of this session's any more.
    pub released: bool,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing before this time, or at all.
    Nothing(Option<Instant>),
    /// Tell it to run the attempt.
    Run,
    /// Tell it to cancel the attempt.
    Cancel {
        /// The reason given.
        reason: String,
        /// Between SIGTERM and SIGKILL.
        grace_period_ms: u64,
    },
    /// Propose that the process runs: the agent says so, and the state does not know.
    Started,
    /// Tell it that the attempt is none of its session's any more.
    Release(&'static str),
    /// Tell it to forget the attempt: nobody will ever ask for its log.
    Forget(&'static str),
}

/// See the module.
#[must_use]
pub fn decide(truth: &Truth, said: Said, told: Told, now: Instant) -> Action {
    let due = |last: Option<Instant>, every: Duration| last.is_none_or(|last| now >= last + every);
    match (truth, said) {
        // Its result is under way, or known: only its log is still of interest.
        (Truth::Owned { .. } | Truth::Reported, Said::Ended) => Action::Nothing(None),
        // An agent that does not have it declines it, unless it is told to run it first.
        (Truth::Owned { cancel: Some((reason, grace_period_ms)), .. }, _) if due(told.cancel, REPEAT_CANCEL) => {
            Action::Cancel { reason: reason.clone(), grace_period_ms: *grace_period_ms }
        }
        (Truth::Owned { cancel: Some(_), .. }, _) => Action::Nothing(told.cancel.map(|at| at + REPEAT_CANCEL)),
        (Truth::Owned { started: false, .. }, Said::Running) => Action::Started,
        // The same order for an attempt that its session once reported to run and does not list any more: the agent
        // starts no attempt twice, and its answer settles the matter.
        (Truth::Owned { .. }, Said::Nothing | Said::Starting) if due(told.run, REPEAT_RUN) => Action::Run,
        (Truth::Owned { .. }, Said::Nothing | Said::Starting) => Action::Nothing(told.run.map(|at| at + REPEAT_RUN)),
        (Truth::Owned { .. }, Said::Running) | (_, Said::Nothing) => Action::Nothing(None),
        (Truth::Unknown, _) => Action::Forget("the cluster does not know it"),
        (Truth::Reported | Truth::Freed | Truth::Foreign, _) if told.released => Action::Nothing(None),
        (Truth::Reported, _) => Action::Release("its result is known"),
        (Truth::Freed, _) => Action::Release("it was given up"),
        (Truth::Foreign, _) => Action::Release("another session owns it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(started: bool) -> Truth {
        Truth::Owned { started, cancel: None }
    }

    fn cancelled() -> Truth {
        Truth::Owned { started: false, cancel: Some(("enough".into(), 10)) }
    }

    #[test]
    fn every_pair_has_its_action() {
        let now = Instant::now();
        let later = now + Duration::from_millis(1);
        let run = Told { run: Some(now), ..Told::default() };
        let cancel = Told { cancel: Some(now), ..Told::default() };
        let released = Told { released: true, ..Told::default() };
        let none = Told::default();
        let to_cancel = Action::Cancel { reason: "enough".into(), grace_period_ms: 10 };
        let cases = [
            (owned(false), Said::Nothing, none, Action::Run),
            (owned(false), Said::Nothing, run, Action::Nothing(Some(now + REPEAT_RUN))),
            (owned(false), Said::Starting, none, Action::Run),
            (owned(false), Said::Running, run, Action::Started),
            (owned(true), Said::Running, run, Action::Nothing(None)),
            (owned(true), Said::Nothing, none, Action::Run),
            (owned(false), Said::Ended, none, Action::Nothing(None)),
            (cancelled(), Said::Nothing, none, to_cancel.clone()),
            (cancelled(), Said::Running, none, to_cancel),
            (cancelled(), Said::Running, cancel, Action::Nothing(Some(now + REPEAT_CANCEL))),
            (cancelled(), Said::Ended, none, Action::Nothing(None)),
            (Truth::Reported, Said::Ended, none, Action::Nothing(None)),
            (Truth::Reported, Said::Nothing, none, Action::Nothing(None)),
            (Truth::Reported, Said::Running, none, Action::Release("its result is known")),
            (Truth::Freed, Said::Running, none, Action::Release("it was given up")),
            (Truth::Freed, Said::Ended, none, Action::Release("it was given up")),
            (Truth::Freed, Said::Running, released, Action::Nothing(None)),
            (Truth::Foreign, Said::Starting, none, Action::Release("another session owns it")),
            (Truth::Foreign, Said::Nothing, none, Action::Nothing(None)),
            (Truth::Unknown, Said::Ended, none, Action::Forget("the cluster does not know it")),
            (Truth::Unknown, Said::Nothing, none, Action::Nothing(None)),
        ];
        for (truth, said, told, expected) in cases {
            assert_eq!(decide(&truth, said, told, later), expected, "{truth:?} {said:?} {told:?}");
        }
    }

    #[test]
    fn orders_are_repeated_until_they_are_answered() {
        let now = Instant::now();
        let told = Told { run: Some(now), ..Told::default() };
        assert_eq!(decide(&owned(false), Said::Nothing, told, now + REPEAT_RUN), Action::Run);
        let told = Told { cancel: Some(now), ..Told::default() };
        assert!(matches!(decide(&cancelled(), Said::Running, told, now + REPEAT_CANCEL), Action::Cancel { .. }));
    }

    #[test]
    fn the_state_is_read_as_it_concerns_the_session() {
        use crate::testing::{ADMIN, JOB, ON, Replica};
        use hodei_state::{
            command::Command,
            ids::{Caller, SessionId},
            job::LogEnd,
        };

        let replica = Replica::new();
        let id = replica.assigned();
        let truth = |on| Truth::of(&replica.state(), on, id);
        assert_eq!(truth(ON), owned(false));
        assert_eq!(truth(SessionRef { session: SessionId(1), ..ON }), Truth::Foreign);
        let stale = AttemptRef { fence: id.fence + 1, ..id };
        assert_eq!(Truth::of(&replica.state(), ON, stale), Truth::Unknown);
        replica.done(Caller::Admin(ADMIN), Command::CancelJob { job: JOB, reason: "enough".into() });
        assert!(matches!(truth(ON), Truth::Owned { started: false, cancel: Some(_) }));
        replica.result(id, LogEnd::default());
        assert_eq!(truth(ON), Truth::Reported);
    }
}
