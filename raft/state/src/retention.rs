//! Which finished jobs are to go. Decided by the leader, carried out by `RemoveJobs`.

use crate::{apply::MAX_REMOVALS, command::Command, ids::Millis, state::State};

/// How long finished jobs are kept: what is older than `age_ms`, and the oldest beyond `count`, go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Since their end.
    pub age_ms: u64,
    /// How many.
    pub count: u64,
}

impl Default for Retention {
    /// Seven days, 100,000 jobs.
    fn default() -> Self {
        Self { age_ms: 7 * 24 * 3_600_000, count: 100_000 }
    }
}

/// The next removals, oldest end first, at most a thousand; `None`: nothing to remove. The cost is that of what goes.
#[must_use]
pub fn retention(state: &State, now: Millis, keep: Retention) -> Option<Command> {
    let finished = &state.indexes.finished;
    let too_many = (finished.len() as u64).saturating_sub(keep.count);
    let jobs: Vec<_> = finished
        .iter()
        .take(MAX_REMOVALS)
        .zip(0u64..)
        .take_while(|((at, _), place)| *place < too_many || at.plus(keep.age_ms) <= now)
        .map(|((_, job), _)| *job)
        .collect();
    (!jobs.is_empty()).then_some(Command::RemoveJobs { jobs })
}
