//! The search for an order, over any model.

use std::{collections::HashSet, hash::Hash};

/// A sequential object.
pub trait Model {
    /// What it holds.
    type State: Clone + Eq + Hash;
    /// What can be done with it, together with what was answered.
    type Op;

    /// Before anything was done.
    fn first(&self) -> Self::State;

    /// What it holds afterwards, if the answer is right in this state.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;
}

/// An operation in real time.
#[derive(Clone, Debug)]
pub struct Concurrent<O> {
    /// When it was asked.
    pub from: u64,
    /// When it was answered. Nothing: it may take effect at any time after it was asked, or never.
    pub to: Option<u64>,
    /// What was done and answered.
    pub op: O,
}

/// Whether there is an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// There is.
    Yes,
    /// There is none.
    No {
        /// Operations of which one had to come next where the longest order that was found ends.
        stuck: Vec<usize>,
    },
    /// The bound on steps was reached.
    GaveUp,
}

/// A bit per operation.
type Set = u64;

/// The search as it stands.
struct Search<'a, M: Model> {
    model: &'a M,
    ops: &'a [Concurrent<M::Op>],
    /// Those that were answered and must be taken.
    required: Set,
    seen: HashSet<(Set, M::State)>,
    steps: usize,
    /// The most answered operations that were taken, and what was outstanding then.
    best: (u32, Vec<usize>),
}

/// Looks for an order of at most 64 operations, in at most `steps` steps.
///
/// # Panics
/// On more operations.
pub fn linearizable<M: Model>(model: &M, ops: &[Concurrent<M::Op>], steps: usize) -> Answered {
    assert!(ops.len() <= 64, "{} operations", ops.len());
    let required = ops.iter().enumerate().filter(|(_, op)| op.to.is_some()).fold(0, |set, (at, _)| set | 1 << at);
    let mut search = Search { model, ops, required, seen: HashSet::new(), steps, best: (0, Vec::new()) };
    match search.extend(0, &model.first()) {
        Some(true) => Answered::Yes,
        Some(false) => Answered::No { stuck: search.best.1 },
        None => Answered::GaveUp,
    }
}

impl<M: Model> Search<'_, M> {
    /// Whether the operations that are not in `taken` can follow `state`; nothing: too many steps.
    fn extend(&mut self, taken: Set, state: &M::State) -> Option<bool> {
        let outstanding = self.required & !taken;
        if outstanding == 0 {
            return Some(true);
        }
        if !self.seen.insert((taken, state.clone())) {
            return Some(false);
        }
        self.steps = self.steps.checked_sub(1)?;
        // What was asked after another one was answered comes after it.
        let limit = bits(outstanding).filter_map(|at| self.ops[at].to).min().unwrap_or(u64::MAX);
        let next: Vec<usize> = bits(!taken).take_while(|&at| at < self.ops.len()).collect();
        let next: Vec<usize> = next.into_iter().filter(|&at| self.ops[at].from <= limit).collect();
        self.note_progress(taken, &next);
        for at in next {
            if let Some(state) = self.model.step(state, &self.ops[at].op)
                && self.extend(taken | 1 << at, &state)?
            {
                return Some(true);
            }
        }
        Some(false)
    }

    fn note_progress(&mut self, taken: Set, next: &[usize]) {
        let done = (taken & self.required).count_ones();
        if done >= self.best.0 || self.best.1.is_empty() {
            let outstanding = next.iter().copied().filter(|&at| self.required & 1 << at != 0);
            self.best = (done, outstanding.collect());
        }
    }
}

/// The positions of the bits that are set.
fn bits(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(at)
    })
}
