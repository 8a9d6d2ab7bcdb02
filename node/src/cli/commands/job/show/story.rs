//! The story of a job, attempt by attempt.

use hodei_proto::v1::{Attempt, CancelRequest};

use super::{reason_text, time};
use crate::cli::output;

/// One attempt as a row: where, when, how it ended and what came of that.
pub fn row(attempt: &Attempt) -> [String; 8] {
    [
        attempt.number.to_string(),
        output::short(&attempt.worker_id),
        output::short(&attempt.session_id),
        time(attempt.assigned_at_ms),
        time(attempt.started_at_ms),
        time(attempt.finished_at_ms),
        how(attempt),
        then(attempt),
    ]
}

fn how(attempt: &Attempt) -> String {
    let Some(reason) = &attempt.reason else {
        return match attempt.taken_back.as_str() {
            "" => String::new(),
            "preempted" => format!("is to make room for {}", output::short(&attempt.preempted_for)),
            _ => "is to be given back".to_owned(),
        };
    };
    let freed = match attempt.ended_by.as_str() {
        // What its worker reports needs no mention.
        "result" | "" => "",
        "declined" => " (declined)",
        "expiry" => " (by expiry)",
        "dead" => " (seen dead by its next session)",
        _ => " (otherwise)",
    };
    reason_text(reason) + freed
}

fn then(attempt: &Attempt) -> String {
    let Some(next) = &attempt.next else { return String::new() };
    let budget = &next.budget;
    match next.kind.as_str() {
        "retry" => match output::time_text(next.not_before_ms) {
            Some(at) => format!("again ({budget}), not before {at}"),
            None => format!("again ({budget})"),
        },
        "put_back" => "again, at no cost".to_owned(),
        "spent" => format!("no retries left ({budget})"),
        "max_attempts" => "no attempts left".to_owned(),
        _ => String::new(),
    }
}

/// Who cancelled, and why.
pub fn cancel_text(cancel: &CancelRequest) -> String {
    let because = if cancel.reason.is_empty() { String::new() } else { format!(": {}", cancel.reason) };
    format!("asked for by {}{because}", cancel.by)
}
