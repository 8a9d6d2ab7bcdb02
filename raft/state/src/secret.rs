//! Secrets as rows of the state: what is sealed, never what it seals.
//!
//! A secret's value is sealed by the node that takes it, with a key that lies on the voters' disks and nowhere in the
//! state. It is kept in parts, because rows are small. Each `put` is a version of its own, under an id of its own, to
//! which the seal is bound. Whatever attempt is given secrets leaves a [`SecretUse`] behind, which outlives its job.

use serde::{Deserialize, Serialize};

use crate::ids::{AttemptRef, Caller, Millis, SecretId, WorkerId};

/// The largest value, in bytes.
pub const MAX_VALUE: usize = 64 * 1024;
/// What sealing may add to a value.
pub const MAX_SEAL: usize = 64;
/// Secrets at once.
pub const MAX_SECRETS: usize = 1_000;
/// Bytes of all sealed values together.
pub const MAX_BYTES: u64 = 16 << 20;
/// Uses that are remembered; beyond that the oldest go.
pub const MAX_USES: usize = 100_000;
/// Bytes of one part.
pub(crate) const PART: usize = 2_048;
/// Versions by which a repeated `put` is recognised.
pub(crate) const MAX_PAST: usize = 16;

/// A secret's newest version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// The version's id: made anew for each `put`.
    pub id: SecretId,
    /// By which jobs name it.
    pub name: String,
    /// 1, 2, 3 … as long as the secret exists.
    pub version: u64,
    /// Tells which key it is sealed with.
    pub key: [u8; 8],
    /// Bytes of the sealed value, which lie in parts of their own.
    pub len: u32,
    /// First version.
    pub created_at: Millis,
    /// This version.
    pub put_at: Millis,
    /// Who gave it.
    pub put_by: Caller,
    /// Ids of earlier versions, newest last.
    pub past: Vec<SecretId>,
}

/// A stretch of a sealed value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretPart {
    /// In the order of the parts' numbers they are the sealed value.
    pub bytes: Vec<u8>,
}

/// An attempt was assigned that is given secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretUse {
    /// Which attempt.
    pub attempt: AttemptRef,
    /// Where it was to run.
    pub worker: WorkerId,
    /// Who had submitted the job.
    pub owner: Caller,
    /// When.
    pub at: Millis,
    /// Name and version of each.
    pub secrets: Vec<(String, u64)>,
}
