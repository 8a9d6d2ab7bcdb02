//! How a command ends: the exit codes, in one place, and the one line on standard error that goes with them.

use std::fmt;

use serde_json::json;
use tonic::{Code, Status};

use super::output::{self, Format};
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

/// Bytes of a word in a message. Paths and what jobs are called are shorter, as a rule.
const LONGEST_WORD: usize = 1_024;

/// What a command's `run` returns: the exit code, or why there is nothing better than a line on standard error.
pub type CommandResult = Result<u8, Failure>;

/// Why a command failed: one line for a person, one code for a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The process's exit code.
    pub exit: u8,
    /// Printed after `error: `.
    pub message: String,
    /// What kind of failure, for programs: one of [`error::code`], or `usage`, `unreachable`, `failed`.
    pub code: String,
    /// The field or flag that is wrong, where it is one.
    pub field: Option<String>,
}

impl Failure {
    /// A failure of any kind.
    pub fn new(exit: u8, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { exit, message: readable(message.into()), code: code.into(), field: None }
    }

    /// The same with this code.
    #[must_use]
    pub fn coded(self, code: impl Into<String>) -> Self {
        Self { code: code.into(), ..self }
    }

    /// The same of this field.
    #[must_use]
    pub fn of(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()).filter(|field| !field.is_empty()), ..self }
    }

    /// Says it on standard error: for people as lines, for programs as one JSON object.
    pub fn tell(&self, format: Format) {
        if format == Format::Json {
            let object = json!({ "code": self.code, "message": self.message, "field": self.field });
            return output::note(object);
        }
        output::note(format_args!("error: {self}"));
    }

    /// A failure without a code of its own.
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(code::FAILURE, "failed", message)
    }

    /// Bad usage or bad input; nothing was written.
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self::new(code::BAD_INPUT, error::code::INVALID_ARGUMENT, message)
    }

    /// No quorum or nobody reachable within the deadline; not done.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(code::UNREACHABLE, "unreachable", message)
    }

    /// May or may not have been done.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(code::UNKNOWN, error::code::OUTCOME_UNKNOWN, message)
    }

    /// Not allowed.
    pub fn not_allowed(message: impl Into<String>) -> Self {
        Self::new(code::NOT_ALLOWED, error::code::NOT_ALLOWED, message)
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
        let Some(detail) = detail else { return Self::new(exit, kind(exit), message) };
        if !detail.candidates.is_empty() {
            message = format!("{message}: {}", detail.candidates.join(", "));
        }
        Self::new(exit, detail.code, message).of(detail.field)
    }
}

/// Nobody reads a hundred kilobytes that were an argument: words that are too long lose their ends.
fn readable(message: String) -> String {
    if message.len() <= LONGEST_WORD {
        return message;
    }
    let words = message.split_inclusive(char::is_whitespace).map(|word| match word.len() {
        0..=LONGEST_WORD => word.to_owned(),
        _ => {
            let space = word.chars().next_back().filter(|last| last.is_whitespace());
            let kept = &word[..word.floor_char_boundary(LONGEST_WORD)];
            format!("{kept}…{}", space.map(String::from).unwrap_or_default())
        }
    });
    words.collect()
}

/// Of a failure that only its exit code is known of.
fn kind(exit: u8) -> &'static str {
    match exit {
        code::BAD_INPUT => error::code::INVALID_ARGUMENT,
        code::UNREACHABLE => "unreachable",
        code::UNKNOWN => error::code::OUTCOME_UNKNOWN,
        code::NOT_ALLOWED => error::code::NOT_ALLOWED,
        _ => "failed",
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
    fn a_long_word_loses_its_end() {
        let long = "ö".repeat(60_000);
        let said = Failure::other(format!("no job {long}\nusage: {long}")).message;
        assert!(said.len() < 2_200 && said.starts_with("no job öö") && said.contains("…\nusage: öö"), "{said}");
        assert_eq!(Failure::other("no job öö\n x").message, "no job öö\n x");
        let status = error::invalid(&*long, &*long);
        assert!(
            status.message().len() < 1_100 && error::detail(&status).is_some_and(|detail| detail.field.len() < 1_100)
        );
    }

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
