//! How an end is told: `Reason` in `job.proto`.

use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

use hodei_proto::v1::Reason;
use serde::{Deserialize, Serialize};

use crate::watchdog::wire::{NotStarted, Obstacle};

/// What made an attempt end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// Its main process ended by itself.
    Itself,
    /// Somebody cancelled it, for this reason.
    Cancelled(String),
    /// Its own timeout passed.
    Timeout,
    /// The agent had to end before it.
    HandedBack,
    /// Its lease was refused or ran out.
    LeaseLost,
    /// Its watchdog has lost its guardian.
    Unguarded,
}

/// The reason of an attempt that ran. The exit code or signal is kept, whatever the cause.
#[must_use]
pub fn reason(cause: Cause, status: ExitStatus, out_of_memory: bool) -> Reason {
    let reason = Reason { exit_code: status.code(), signal: status.signal(), ..Reason::default() };
    let (kind, message, deadline) = match cause {
        Cause::Itself if out_of_memory && killed(status) => ("out_of_memory", String::new(), ""),
        Cause::Itself if status.signal().is_some() => ("signaled", String::new(), ""),
        Cause::Itself => ("exited", String::new(), ""),
        Cause::Cancelled(why) => ("cancelled", why, ""),
        Cause::Timeout => ("timeout", String::new(), "timeout"),
        Cause::HandedBack => ("worker_lost", "the agent was stopped".to_owned(), ""),
        Cause::LeaseLost => ("worker_lost", "the lease was lost".to_owned(), ""),
        Cause::Unguarded => ("worker_lost", "the guardian of its watchdog died".to_owned(), ""),
    };
    Reason { kind: kind.to_owned(), message, deadline: deadline.to_owned(), ..reason }
}

/// Killed itself, or, as shells report it, a process of its own that it waited for.
fn killed(status: ExitStatus) -> bool {
    status.signal() == Some(9) || status.code() == Some(137)
}

/// The reason of an attempt that never had a process.
#[must_use]
pub fn could_not_start(why: NotStarted) -> Reason {
    let cause = match why.obstacle {
        Obstacle::NotFound => "not_found",
        Obstacle::NotPermitted => "not_permitted",
        Obstacle::Other => "other",
        Obstacle::NoSecret => "no_secret",
        Obstacle::NoDirectory => "no_directory",
        Obstacle::TooLate | Obstacle::Unclear | Obstacle::NoWatchdog => return lost(why.message),
    };
    let (kind, cause) = ("could_not_start".to_owned(), cause.to_owned());
    Reason { kind, cause, message: why.message, ..Reason::default() }
}

/// The reason of an attempt of which nobody knows how it ended, only that nothing of it is left.
#[must_use]
pub fn lost(message: impl Into<String>) -> Reason {
    Reason { kind: "worker_lost".to_owned(), message: message.into(), ..Reason::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_that_dies_is_no_fault_of_the_jobs() {
        let told = |obstacle| could_not_start(NotStarted { obstacle, message: "why".to_owned() });
        for obstacle in [Obstacle::TooLate, Obstacle::Unclear, Obstacle::NoWatchdog] {
            assert_eq!(told(obstacle).kind, "worker_lost", "{obstacle:?}");
        }
        assert_eq!(
            (told(Obstacle::Other).kind, told(Obstacle::NoSecret).cause),
            ("could_not_start".to_owned(), "no_secret".to_owned())
        );
    }

    #[test]
    fn the_exit_code_is_kept_whatever_the_cause() {
        let exited = reason(Cause::Itself, ExitStatus::from_raw(7 << 8), false);
        assert_eq!((exited.kind.as_str(), exited.exit_code, exited.signal), ("exited", Some(7), None));
        let killed = reason(Cause::Itself, ExitStatus::from_raw(9), false);
        assert_eq!((killed.kind.as_str(), killed.exit_code, killed.signal), ("signaled", None, Some(9)));
        let cancelled = reason(Cause::Cancelled("enough".into()), ExitStatus::from_raw(0), false);
        assert_eq!((cancelled.kind.as_str(), cancelled.exit_code), ("cancelled", Some(0)));
        for status in [9, 137 << 8] {
            assert_eq!(reason(Cause::Itself, ExitStatus::from_raw(status), true).kind, "out_of_memory");
        }
        assert_eq!(reason(Cause::Itself, ExitStatus::from_raw(3 << 8), true).exit_code, Some(3));
        assert_eq!(reason(Cause::Timeout, ExitStatus::from_raw(15), false).deadline, "timeout");
    }
}
