//! What a person may type for a job.

use crate::{
    ids::{Caller, JobId},
    index::{hash_name, reverse_digits},
    state::State,
};

/// So many candidates are listed for an ambiguous suffix.
const CANDIDATES: usize = 20;

/// Why a text selects no job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// No job has this id, name or suffix.
    #[error("no such job")]
    Unknown,
    /// Several jobs have this suffix: these, newest id first, at most 20.
    #[error("{} or more jobs end like this", .0.len())]
    Ambiguous(Vec<JobId>),
    /// The text could not select any.
    #[error("expected a job's id, its name, at least four of its last hex digits, or `last`")]
    Malformed,
}

impl State {
    /// The job that a text names: a full id, an exact name (its newest job), a suffix of at least four hex digits that
    /// is unique, or `last` (the caller's newest job). Names cannot be mistaken for any of the others.
    ///
    /// # Errors
    /// Where it names none, or several.
    pub fn find_job(&self, selector: &str, caller: Caller) -> Result<JobId, SelectError> {
        if let Ok(id) = selector.parse::<JobId>() {
            return if self.jobs.contains(&id) { Ok(id) } else { Err(SelectError::Unknown) };
        }
        if selector == "last" {
            let newest = self.indexes.owners.get(&caller).and_then(|positions| positions.get_max());
            return newest
                .and_then(|position| self.indexes.submitted.get(position))
                .copied()
                .ok_or(SelectError::Unknown);
        }
        match selector.len() {
            0 => Err(SelectError::Malformed),
            _ if !selector.bytes().all(|byte| byte.is_ascii_hexdigit()) => self.find_by_name(selector),
            4..=32 => self.find_by_suffix(selector),
            _ => Err(SelectError::Malformed),
        }
    }

    fn find_by_name(&self, name: &str) -> Result<JobId, SelectError> {
        let hash = hash_name(name);
        let same_hash = self.indexes.names.range((hash, (0, 0))..=(hash, (u64::MAX, u32::MAX))).rev();
        let mut jobs = same_hash.filter_map(|(_, position)| self.indexes.submitted.get(position).copied());
        let bears_it = |job: &JobId| self.spec(*job).is_some_and(|spec| spec.name.as_deref() == Some(name));
        jobs.find(bears_it).ok_or(SelectError::Unknown)
    }

    fn find_by_suffix(&self, suffix: &str) -> Result<JobId, SelectError> {
        let digits = u128::from_str_radix(suffix, 16).map_err(|_| SelectError::Malformed)?;
        let free_bits = 128 - 4 * u32::try_from(suffix.len()).map_err(|_| SelectError::Malformed)?;
        let first = reverse_digits(digits);
        let last = first | 1u128.checked_shl(free_bits).map_or(u128::MAX, |bit| bit - 1);
        let mut found: Vec<JobId> = self
            .indexes
            .suffixes
            .range(first..=last)
            .take(CANDIDATES)
            .map(|&reversed| JobId(reverse_digits(reversed)))
            .collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        match found[..] {
            [] => Err(SelectError::Unknown),
            [only] => Ok(only),
            _ => Err(SelectError::Ambiguous(found)),
        }
    }
}
