//! gRPC errors: one constructor per kind, and the details that travel with them.
//!
//! Every refusal that Hodei words itself carries an [`ErrorDetail`] in the binary metadata entry [`DETAIL_KEY`]: a
//! stable code, and whether the request certainly had no effect (`not_done`). What carries none was worded by a
//! transport on the way; whether such a request had an effect is unknown.

use hodei_proto::v1::ErrorDetail;
use hodei_raft::{NotDone, ProposeError, ReadError};
use hodei_state::{
    events::Compacted,
    ids::{Caller, JobId},
    outcome::Refusal,
};
use prost::Message as _;
use tonic::{
    Code, Status,
    metadata::{BinaryMetadataKey, MetadataMap, MetadataValue},
};

/// The metadata entry of a status that holds its encoded [`ErrorDetail`].
pub const DETAIL_KEY: &str = "hodei-error-bin";

/// Bytes of a text in a status.
const LONGEST_TEXT: usize = 1_024;

/// Stable codes of [`ErrorDetail::code`] that clients decide by.
pub mod code {
    /// Bad input; `field` and `expected` say where and what.
    pub const INVALID_ARGUMENT: &str = "invalid_argument";
    /// No majority, or no leader known, within the deadline: not done.
    pub const NO_QUORUM: &str = "no_quorum";
    /// The request may or may not have taken effect.
    pub const OUTCOME_UNKNOWN: &str = "outcome_unknown";
    /// The caller's role does not allow it.
    pub const NOT_ALLOWED: &str = "not_allowed";
    /// No valid identity was shown.
    pub const UNAUTHENTICATED: &str = "unauthenticated";
    /// The caller's identity was revoked or removed, or never existed.
    pub const REVOKED: &str = "revoked";
    /// The calling node was removed from the cluster.
    pub const REMOVED: &str = "removed";
    /// No such job.
    pub const UNKNOWN_JOB: &str = "unknown_job";
    /// The job has no such attempt.
    pub const UNKNOWN_ATTEMPT: &str = "unknown_attempt";
    /// No such worker.
    pub const UNKNOWN_WORKER: &str = "unknown_worker";
    /// No such secret.
    pub const UNKNOWN_SECRET: &str = "unknown_secret";
    /// No such node.
    pub const UNKNOWN_NODE: &str = "unknown_node";
    /// A selector fits several jobs; `candidates` lists them.
    pub const AMBIGUOUS: &str = "ambiguous";
    /// An id or idempotency key was used with another payload.
    pub const PAYLOAD_MISMATCH: &str = "payload_mismatch";
    /// Events after the position asked for are not kept any more.
    pub const COMPACTED: &str = "compacted";
    /// The client does not read what it asked for.
    pub const TOO_SLOW: &str = "too_slow";
    /// The state does not permit it (now).
    pub const REFUSED: &str = "refused";
    /// The token is unknown, expired, used up, revoked or for another role.
    pub const TOKEN: &str = "token_refused";
    /// The node is stopping or not ready to serve yet.
    pub const NOT_READY: &str = "not_ready";
    /// A bug or a local fault of the node; its log says more.
    pub const INTERNAL: &str = "internal";
}

/// A status with details.
#[must_use]
pub fn with_detail(code: Code, message: impl Into<String>, detail: &ErrorDetail) -> Status {
    let mut metadata = MetadataMap::new();
    let detail = ErrorDetail { field: short(&detail.field), expected: short(&detail.expected), ..detail.clone() };
    metadata.insert_bin(BinaryMetadataKey::from_static(DETAIL_KEY), MetadataValue::from_bytes(&detail.encode_to_vec()));
    Status::with_metadata(code, short(&message.into()), metadata)
}

/// A status travels in headers, whose length is bounded, and repeats what the caller sent, whose length is not.
fn short(text: &str) -> String {
    if text.len() <= LONGEST_TEXT {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(LONGEST_TEXT)])
}

/// The details of a status, where it carries any.
#[must_use]
pub fn detail(status: &Status) -> Option<ErrorDetail> {
    let bytes = status.metadata().get_bin(DETAIL_KEY)?.to_bytes().ok()?;
    ErrorDetail::decode(bytes).ok()
}

fn refused(grpc: Code, code: &str, message: impl Into<String>) -> Status {
    with_detail(grpc, message, &ErrorDetail { code: code.into(), not_done: true, ..Default::default() })
}

/// Bad input: the field's path and what was expected there. Nothing was written.
#[must_use]
pub fn invalid(field: impl Into<String>, expected: impl Into<String>) -> Status {
    let (field, expected) = (field.into(), expected.into());
    let message = format!("{field}: expected {expected}");
    let code = code::INVALID_ARGUMENT.into();
    with_detail(
        Code::InvalidArgument,
        message,
        &ErrorDetail { code, not_done: true, field, expected, ..Default::default() },
    )
}

/// There is nothing by that name. `code` is one of [`code`].
#[must_use]
pub fn not_found(code: &str, message: impl Into<String>) -> Status {
    refused(Code::NotFound, code, message)
}

/// A selector fits several jobs.
#[must_use]
pub fn ambiguous(message: impl Into<String>, candidates: Vec<String>) -> Status {
    let code = code::AMBIGUOUS.into();
    with_detail(Code::InvalidArgument, message, &ErrorDetail { code, not_done: true, candidates, ..Default::default() })
}

/// The caller is known and may not do this.
#[must_use]
pub fn not_allowed(message: impl Into<String>) -> Status {
    refused(Code::PermissionDenied, code::NOT_ALLOWED, message)
}

/// The caller showed no identity, or not one of this cluster, or one that is no longer valid.
#[must_use]
pub fn unauthenticated(message: impl Into<String>) -> Status {
    refused(Code::Unauthenticated, code::UNAUTHENTICATED, message)
}

/// The caller's identity is void: revoked, removed, or none of this cluster's.
#[must_use]
pub fn revoked(caller: Caller) -> Status {
    let message = format!("{caller} is not, or no longer, a party of this cluster");
    let code = if matches!(caller, Caller::Node(_)) { code::REMOVED } else { code::REVOKED };
    refused(Code::Unauthenticated, code, message)
}

/// The state does not permit it, and repeating it will not help by itself.
#[must_use]
pub fn failed_precondition(message: impl Into<String>) -> Status {
    refused(Code::FailedPrecondition, code::REFUSED, message)
}

/// Events that were asked for are not kept any more; says from where on they are.
#[must_use]
pub fn compacted(compacted: &Compacted) -> Status {
    refused(Code::OutOfRange, code::COMPACTED, compacted.to_string())
}

/// The client does not read its stream.
#[must_use]
pub fn too_slow(message: impl Into<String>) -> Status {
    refused(Code::ResourceExhausted, code::TOO_SLOW, message)
}

/// Not done: no majority or no leader within the deadline. The message begins with `no quorum`.
#[must_use]
pub fn no_quorum(why: impl std::fmt::Display) -> Status {
    refused(Code::Unavailable, code::NO_QUORUM, format!("no quorum: {why}"))
}

/// Not done: this node cannot serve the request now, another one may.
#[must_use]
pub fn unavailable(message: impl Into<String>) -> Status {
    refused(Code::Unavailable, code::NOT_READY, message)
}

/// Something was done, but not what was asked for.
#[must_use]
pub fn done_otherwise(message: impl Into<String>) -> Status {
    let detail = ErrorDetail { code: code::REFUSED.into(), not_done: false, ..Default::default() };
    with_detail(Code::FailedPrecondition, message, &detail)
}

/// The request may or may not have taken effect; repeating it with the same id is safe.
#[must_use]
pub fn outcome_unknown(why: impl std::fmt::Display) -> Status {
    let detail = ErrorDetail { code: code::OUTCOME_UNKNOWN.into(), not_done: false, ..Default::default() };
    with_detail(Code::DeadlineExceeded, format!("outcome unknown: {why}"), &detail)
}

/// A bug or a local fault. The caller learns nothing of it but that it happened; the log says what.
#[must_use]
pub fn internal(what: impl std::fmt::Display) -> Status {
    tracing::error!(%what, "internal error while serving a request");
    let detail = ErrorDetail { code: code::INTERNAL.into(), not_done: false, ..Default::default() };
    with_detail(Code::Internal, "internal error; the node's log says more", &detail)
}

/// A command that was not, or perhaps not, carried out.
#[must_use]
pub fn propose(error: ProposeError) -> Status {
    match error {
        ProposeError::Unknown(why) => outcome_unknown(why),
        ProposeError::NotDone(why) => match why {
            NotDone::NoQuorum(_) | NotDone::NoLeader => refused(Code::Unavailable, code::NO_QUORUM, why.to_string()),
            NotDone::TooLarge { limit, .. } => invalid("request", format!("at most {limit} bytes")),
            NotDone::LeadershipOver { .. } | NotDone::Overloaded | NotDone::Stopped => unavailable(why.to_string()),
        },
    }
}

/// A linearizable read that was not possible.
#[must_use]
pub fn read(error: ReadError) -> Status {
    match error {
        ReadError::NoQuorum(why) => no_quorum(why),
        ReadError::Stopped => unavailable("the node is stopping"),
    }
}

/// An idempotency key that stands for another job.
#[must_use]
pub fn key_mismatch(key: &str, job: JobId) -> Status {
    let message =
        format!("idempotency_key {key:?}: used before, for job {job}, which was submitted with other content");
    let detail = ErrorDetail {
        code: code::PAYLOAD_MISMATCH.into(),
        not_done: true,
        field: "idempotency_key".into(),
        expected: "a new key, or the same content".into(),
        ..Default::default()
    };
    with_detail(Code::AlreadyExists, message, &detail)
}

/// A command that the state refused, in the words of the core.
#[must_use]
pub fn refusal(refusal: &Refusal) -> Status {
    use Refusal as R;
    let message = refusal.to_string();
    match refusal {
        R::Invalid { field, expected } => invalid(field.clone(), expected.clone()),
        R::CallerRevoked { caller } => revoked(*caller),
        R::NotAllowed { .. } => not_allowed(message),
        R::UnknownJob { .. } => not_found(code::UNKNOWN_JOB, message),
        R::UnknownWorker { .. } => not_found(code::UNKNOWN_WORKER, message),
        R::UnknownNode { .. } => not_found(code::UNKNOWN_NODE, message),
        R::PayloadMismatch { .. } | R::JobRemoved { .. } => {
            refused(Code::AlreadyExists, code::PAYLOAD_MISMATCH, message)
        }
        R::TokenUnknown | R::TokenExpired | R::TokenUsed | R::TokenRevoked | R::TokenRole | R::NonceReused => {
            refused(Code::PermissionDenied, code::TOKEN, message)
        }
        R::QueueFull { .. } => refused(Code::ResourceExhausted, code::REFUSED, message),
        R::WorkerBusy { .. } => {
            failed_precondition(format!("{message}; drain it first, or remove it all the same with --force"))
        }
        _ => failed_precondition(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_survive_the_metadata() {
        let status = invalid("resources.cpu_cores", "at most 1024");
        let detail = detail(&status).unwrap();
        assert_eq!((detail.field.as_str(), detail.not_done), ("resources.cpu_cores", true));
        assert_eq!(status.message(), "resources.cpu_cores: expected at most 1024");
    }

    #[test]
    fn a_status_of_the_transport_has_no_details() {
        assert!(detail(&Status::unavailable("tcp connect error")).is_none());
    }
}
