//! The key of an attempt.

use std::fmt;

use hodei_proto::v1::AttemptRef;
use uuid::Uuid;

/// One attempt of one job with its fence; an [`AttemptRef`] that has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptKey {
    /// The job.
    pub job: Uuid,
    /// 1, 2, 3 …
    pub attempt: u32,
    /// The log index of its Assign.
    pub fence: u64,
}

impl AttemptKey {
    /// From the wire; `None` where it names no attempt.
    #[must_use]
    pub fn from_wire(wire: Option<&AttemptRef>) -> Option<Self> {
        let wire = wire?;
        let job = Uuid::try_parse(&wire.job_id).ok()?;
        (wire.attempt > 0).then_some(Self { job, attempt: wire.attempt, fence: wire.fence })
    }

    /// For the wire.
    #[must_use]
    pub fn to_wire(self) -> AttemptRef {
        AttemptRef { job_id: self.job.to_string(), attempt: self.attempt, fence: self.fence }
    }

    /// The name of its directories: `<job>-<attempt>`.
    #[must_use]
    pub fn dir_name(self) -> String {
        format!("{}-{}", self.job, self.attempt)
    }
}

impl fmt::Display for AttemptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.job, self.attempt)
    }
}
