//! When a job is to be ended, and why: the rules alone. Every moment comes in as an argument.

use std::time::Duration;

use crate::{clock::Boot, executor::outcome::Cause};

/// A killed tree that is still there is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// SIGTERM.
    Terminate,
    /// SIGKILL, for the whole tree.
    Kill,
}

/// What stands against a running job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// The lease.
    deadline: Boot,
    timeout: Option<Boot>,
    grace: Duration,
    kill_at: Option<Boot>,
    terminate: bool,
    cause: Cause,
}

impl Fate {
    /// Of a process that starts now.
    #[must_use]
    pub fn new(deadline: Boot, timeout: Option<Duration>, grace: Duration, now: Boot) -> Self {
        let timeout = timeout.map(|timeout| now.plus(timeout));
        Self { deadline, timeout, grace, kill_at: None, terminate: false, cause: Cause::Itself }
    }

    /// Until when it may run.
    #[must_use]
    pub fn deadline(&self) -> Boot {
        self.deadline
    }

    /// What made it end, if it ended now.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// The lease was extended. The grant was given in time, however late its news is read; what has been found to be over
    /// stays so.
    pub fn extend(&mut self, to: Boot) {
        self.deadline = self.deadline.max(to);
    }

    /// Somebody cancelled it.
    pub fn cancel(&mut self, reason: String, grace: Duration, now: Boot) {
        if self.cause == Cause::Itself {
            self.cause = Cause::Cancelled(reason);
            self.terminate = true;
            self.kill_at = Some(now.plus(grace)).filter(|_| !crate::armed!("bug::cancel-never-kills"));
        }
    }

    /// The agent ends, and can wait for so long. What ends it already goes on to do so.
    pub fn hand_back(&mut self, within: Duration, now: Boot) {
        if self.cause == Cause::Itself {
            self.cause = Cause::HandedBack;
            self.terminate = true;
            self.kill_at = Some(now.plus(self.grace.min(within)));
        }
    }

    /// It is to end at once. A lost lease is what counts most, a lost guardian least.
    pub fn kill(&mut self, cause: Cause, now: Boot) {
        if self.cause == Cause::Itself || (self.cause != Cause::LeaseLost && cause != Cause::Unguarded) {
            self.cause = cause;
        }
        self.kill_at = Some(now);
    }

    /// What is to be done now.
    pub fn due(&mut self, now: Boot) -> Option<Due> {
        if now >= self.deadline && self.cause != Cause::LeaseLost && !crate::armed!("bug::deadline-passed-over") {
            self.kill(Cause::LeaseLost, now);
        }
        if self.kill_at.is_none() && self.timeout.is_some_and(|timeout| now >= timeout) {
            self.cause = Cause::Timeout;
            self.terminate = true;
            self.kill_at = Some(now.plus(self.grace));
        }
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill_at = Some(now.plus(KILL_AGAIN));
            self.terminate = false;
            return Some(Due::Kill);
        }
        std::mem::take(&mut self.terminate).then_some(Due::Terminate)
    }

    /// When something is due next.
    #[must_use]
    pub fn next(&self) -> Boot {
        let deadline = (self.cause != Cause::LeaseLost).then_some(self.deadline);
        let timeout = self.timeout.filter(|_| self.kill_at.is_none());
        deadline.into_iter().chain(timeout).chain(self.kill_at).min().unwrap_or(self.deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Boot {
        Boot(Duration::from_secs(seconds))
    }

    const GRACE: Duration = Duration::from_secs(10);

    fn fate(timeout: Option<u64>) -> Fate {
        Fate::new(at(100), timeout.map(Duration::from_secs), GRACE, at(0))
    }

    #[test]
    fn it_is_killed_at_its_deadline_and_again_while_it_is_there() {
        let mut fate = fate(None);
        assert_eq!((fate.due(at(99)), fate.next()), (None, at(100)));
        assert_eq!(fate.due(at(100)), Some(Due::Kill));
        assert_eq!((fate.due(at(100)), fate.next()), (None, at(101)));
        assert_eq!(fate.due(at(101)), Some(Due::Kill));
        assert_eq!(*fate.cause(), Cause::LeaseLost);
    }

    #[test]
    fn an_extension_moves_the_deadline_forward_only_and_revives_nothing() {
        let mut fate = fate(None);
        fate.extend(at(120));
        fate.extend(at(110));
        assert_eq!((fate.due(at(119)), fate.next()), (None, at(120)));
        assert_eq!(fate.due(at(120)), Some(Due::Kill));
        fate.extend(at(200));
        assert_eq!(fate.due(at(121)), Some(Due::Kill));
    }

    #[test]
    fn a_cancellation_asks_first_and_a_timeout_does_not_undo_it() {
        let mut fate = fate(Some(5));
        fate.cancel("enough".into(), GRACE, at(1));
        assert_eq!((fate.due(at(1)), fate.next()), (Some(Due::Terminate), at(11)));
        assert_eq!(fate.due(at(6)), None);
        fate.cancel("again".into(), Duration::ZERO, at(7));
        assert_eq!(fate.due(at(7)), None);
        assert_eq!(fate.due(at(11)), Some(Due::Kill));
        assert_eq!(*fate.cause(), Cause::Cancelled("enough".into()));
    }

    #[test]
    fn a_timeout_asks_first_and_the_lease_comes_before_its_grace() {
        let mut fate = fate(Some(95));
        assert_eq!((fate.due(at(95)), fate.cause()), (Some(Due::Terminate), &Cause::Timeout));
        assert_eq!(fate.next(), at(100));
        assert_eq!((fate.due(at(100)), fate.cause()), (Some(Due::Kill), &Cause::LeaseLost));
    }

    #[test]
    fn what_is_handed_back_ends_at_once() {
        let mut fate = fate(None);
        fate.cancel("enough".into(), GRACE, at(1));
        fate.kill(Cause::HandedBack, at(2));
        assert_eq!((fate.due(at(2)), fate.cause()), (Some(Due::Kill), &Cause::HandedBack));
        fate.kill(Cause::LeaseLost, at(3));
        fate.kill(Cause::HandedBack, at(3));
        assert_eq!((fate.due(at(3)), fate.cause()), (Some(Due::Kill), &Cause::LeaseLost));
    }

    #[test]
    fn what_lost_its_guardian_ends_at_once_for_the_reason_that_it_had_before() {
        let mut lost = fate(None);
        lost.kill(Cause::Unguarded, at(1));
        assert_eq!((lost.due(at(1)), lost.cause()), (Some(Due::Kill), &Cause::Unguarded));
        let mut cancelled = fate(None);
        cancelled.cancel("enough".into(), GRACE, at(1));
        cancelled.kill(Cause::Unguarded, at(2));
        assert_eq!((cancelled.due(at(2)), cancelled.cause()), (Some(Due::Kill), &Cause::Cancelled("enough".into())));
    }

    #[test]
    fn what_is_handed_back_has_its_grace_period_as_far_as_the_agent_can_wait() {
        for (within, killed) in [(30, 12), (4, 6)] {
            let mut fate = Fate::new(at(60), None, GRACE, at(0));
            fate.hand_back(Duration::from_secs(within), at(2));
            assert_eq!((fate.due(at(2)), fate.cause()), (Some(Due::Terminate), &Cause::HandedBack));
            assert_eq!((fate.due(at(killed - 1)), fate.due(at(killed))), (None, Some(Due::Kill)));
        }
        let mut fate = Fate::new(at(60), None, GRACE, at(0));
        fate.cancel("wished".to_owned(), Duration::from_secs(5), at(1));
        fate.hand_back(Duration::from_secs(1), at(2));
        assert_eq!((fate.due(at(2)), fate.cause()), (Some(Due::Terminate), &Cause::Cancelled("wished".to_owned())));
        assert_eq!((fate.due(at(5)), fate.due(at(6))), (None, Some(Due::Kill)));
    }
}
