//! How a command ends: the exit codes, in one place, and the one line on standard error that goes with them.

use std::fmt;

use tonic::{Code, Status};

use crate::error;

/// Exit codes of all commands. What a job's own process or a following command returns is passed as a plain number.
pub mod code {
    /// Anything that has no code of its own; unknown ids too.
    pub const FAILURE: u8 = 1;
    /// Bad usage or bad input.
    pub const BAD_INPUT: u8 = 2;
    /// No quorum, or nobody reachable, within the deadline.
    pub const UNREACHABLE: u8 = 69;
    /// The request may or may not have taken effect.
    pub const UNKNOWN: u8 = 75;
    /// Not allowed.
    pub const NOT_ALLOWED: u8 = 77;
    /// `job …`: failed for a reason of the infrastructure.
    pub const INFRASTRUCTURE: u8 = 125;
}

/// What a command's `run` returns: the exit code, or why there is nothing better than a line on standard error.
pub type CommandResult = Result<u8, Failure>;

/// Why a command failed: one line for a person, one code for a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The process's exit code.
    pub exit: u8,
    /// Printed after `error: `.
    pub message: String,
}

impl Failure {
    /// A failure without a code of its own.
    pub fn other(message: impl Into<String>) -> Self {
        Self { exit: code::FAILURE, message: message.into() }
    }

    /// Bad usage or bad input; nothing was written.
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self { exit: code::BAD_INPUT, message: message.into() }
    }

    /// No quorum or nobody reachable within the deadline; not done.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self { exit: code::UNREACHABLE, message: message.into() }
    }

    /// May or may not have been done.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self { exit: code::UNKNOWN, message: message.into() }
    }

    /// Not allowed.
    pub fn not_allowed(message: impl Into<String>) -> Self {
        Self { exit: code::NOT_ALLOWED, message: message.into() }
    }

    /// An answer that is definite: the cluster, or the node that was asked, said no.
    #[must_use]
    pub fn from_status(status: &Status) -> Self {
        let detail = error::detail(status);
        let exit = match (status.code(), detail.as_ref().map(|detail| detail.code.as_str())) {
            (_, Some(error::code::OUTCOME_UNKNOWN)) => code::UNKNOWN,
            (Code::InvalidArgument, Some(error::code::AMBIGUOUS)) => code::FAILURE,
            (Code::InvalidArgument, _) => code::BAD_INPUT,
            (Code::PermissionDenied | Code::Unauthenticated, _) => code::NOT_ALLOWED,
            (Code::Unavailable, _) => code::UNREACHABLE,
            _ => code::FAILURE,
        };
        let mut message = status.message().to_owned();
        if message.is_empty() {
            message = format!("the node answered {}", status.code());
        }
        if let Some(detail) = detail.filter(|detail| !detail.candidates.is_empty()) {
            message = format!("{message}: {}", detail.candidates.join(", "));
        }
        Self { exit, message }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definite_answers_have_the_codes_of_the_manual() {
        let exit = |status: Status| Failure::from_status(&status).exit;
        assert_eq!(exit(error::invalid("name", "at most 128 bytes")), 2);
        assert_eq!(exit(error::not_allowed("user may not")), 77);
        assert_eq!(exit(error::unauthenticated("no certificate")), 77);
        assert_eq!(exit(error::not_found(error::code::UNKNOWN_JOB, "no job")), 1);
        assert_eq!(exit(error::no_quorum("1 of 3")), 69);
        assert_eq!(exit(error::outcome_unknown("deadline")), 75);
        assert_eq!(exit(error::ambiguous("two jobs", vec!["a".into()])), 1);
    }
}
