//! How a job's end is told to a shell.

use hodei_proto::v1::{Job, JobState};

use crate::cli::exit::code;

pub const TIMED_OUT: u8 = 124;
const COULD_NOT_START: u8 = 126;
const NOT_FOUND: u8 = 127;
pub const CANCELLED: u8 = 130;

/// Whether nothing can change any more.
pub fn is_over(job: &Job) -> bool {
    matches!(job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled | JobState::Timeout)
}

/// The exit code for a job that has ended: its own, 128+n for a signal, or the conventional one for its reason.
pub fn exit_code(job: &Job) -> u8 {
    let reason = job.reason.clone().unwrap_or_default();
    match reason.kind.as_str() {
        // As a shell sees it: the low eight bits.
        "exited" => reason.exit_code.unwrap_or_default().to_le_bytes()[0],
        "signaled" => reason.signal.unwrap_or_default().saturating_add(128).to_le_bytes()[0],
        "out_of_memory" => 128 + 9,
        "timeout" => TIMED_OUT,
        "cancelled" => CANCELLED,
        "could_not_start" if reason.cause == "not_found" => NOT_FOUND,
        "could_not_start" => COULD_NOT_START,
        _ if job.state() == JobState::Succeeded => 0,
        _ => code::INFRASTRUCTURE,
    }
}

#[cfg(test)]
mod tests {
    use hodei_proto::v1::Reason;

    use super::*;

    fn code_of(kind: &str, exit_code: Option<i32>, signal: Option<i32>, cause: &str) -> u8 {
        let reason = Reason { kind: kind.into(), exit_code, signal, cause: cause.into(), ..Reason::default() };
        super::exit_code(&Job { reason: Some(reason), state: JobState::Failed.into(), ..Job::default() })
    }

    #[test]
    fn ends_have_the_codes_of_the_manual() {
        assert_eq!(code_of("exited", Some(0), None, ""), 0);
        assert_eq!(code_of("exited", Some(7), None, ""), 7);
        assert_eq!(code_of("signaled", None, Some(9), ""), 137);
        assert_eq!(code_of("out_of_memory", None, None, ""), 137);
        assert_eq!(code_of("timeout", None, None, ""), 124);
        assert_eq!(code_of("cancelled", Some(143), None, ""), 130);
        assert_eq!(code_of("could_not_start", None, None, "not_found"), 127);
        assert_eq!(code_of("could_not_start", None, None, "not_permitted"), 126);
        assert_eq!(code_of("worker_lost", None, None, ""), 125);
        assert_eq!(code_of("not_provisioned", None, None, ""), 125);
    }
}
