//! What a person may type for a job or a worker.

use crate::{
    ids::{Caller, JobId, WorkerId},
    index::{hash_name, reverse_digits},
    state::State,
};

/// So many candidates are listed for an ambiguous suffix.
const CANDIDATES: usize = 20;

/// Why a text selects no worker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectWorkerError {
    /// No worker has this id, suffix or host name.
    #[error("no such worker")]
    Unknown,
    /// Several have this suffix or host name: these, at most 20.
    #[error("{} or more workers are called this", .0.len())]
    Ambiguous(Vec<WorkerId>),
    /// The text could not select any.
    #[error("expected a worker's id, at least four of its last hex digits, or its host's name")]
    Malformed,
}

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

    /// The worker that a text names: a full id, a suffix of at least four hex digits, or the name of its host. Those
    /// that were removed count only where no other fits. Looks at all workers, of which there are few.
    ///
    /// # Errors
    /// Where it names none, or several.
    pub fn find_worker(&self, selector: &str) -> Result<WorkerId, SelectWorkerError> {
        if let Ok(id) = selector.parse::<WorkerId>() {
            return self.workers.contains(&id).then_some(id).ok_or(SelectWorkerError::Unknown);
        }
        if selector.is_empty() {
            return Err(SelectWorkerError::Malformed);
        }
        let suffix = (4..=32).contains(&selector.len()) && selector.bytes().all(|byte| byte.is_ascii_hexdigit());
        let suffix = suffix.then(|| selector.to_ascii_lowercase());
        let fits = |id: WorkerId, hostname: &str| {
            hostname == selector || suffix.as_ref().is_some_and(|suffix| format!("{:032x}", id.0).ends_with(suffix))
        };
        let fitting: Vec<_> = self.workers().filter(|worker| fits(worker.id, &worker.hostname)).collect();
        let serving: Vec<_> = fitting.iter().filter(|worker| worker.removed_at.is_none()).collect();
        match (&serving[..], &fitting[..]) {
            ([only], _) => Ok(only.id),
            ([], [only]) => Ok(only.id),
            ([], []) => Err(SelectWorkerError::Unknown),
            ([], many) => Err(SelectWorkerError::Ambiguous(many.iter().take(CANDIDATES).map(|one| one.id).collect())),
            (many, _) => Err(SelectWorkerError::Ambiguous(many.iter().take(CANDIDATES).map(|one| one.id).collect())),
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
