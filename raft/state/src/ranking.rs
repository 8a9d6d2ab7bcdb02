//! The workers that the jobs of one class fit on, best first, kept in step with what a plan gives away.
//!
//! A class is ranked once per plan, which costs O(workers); from then on each of its jobs takes the best one, and every
//! assignment costs O(log workers) for each class that is looked at again.

use std::{cmp::Reverse, collections::BTreeSet};

use crate::{
    fit,
    ids::Mono,
    liveness::Hearing,
    registry::{Capacity, SessionRef, Worker},
    score::{Choice, Score, Weights, score, standing},
    spec::JobSpec,
};

/// A worker with what this plan has left of it.
pub(crate) struct Candidate<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) free: Capacity,
    /// Sequence and age of its newest confirmed heartbeat.
    pub(crate) heartbeat: Option<(u64, u64)>,
    /// Until when it is worth a wait, should that heartbeat be too old to stand on.
    pub(crate) awaited_until: Option<Mono>,
    /// What of its score does not depend on the job.
    standing: Score,
}

impl<'a> Candidate<'a> {
    pub(crate) fn new(worker: &'a Worker, weights: &Weights, hearing: Option<&Hearing>, now: Mono) -> Self {
        let on = SessionRef { worker: worker.id, session: worker.session };
        let usage = hearing.and_then(|hearing| hearing.usage(on));
        Self {
            worker,
            free: worker.free(),
            heartbeat: hearing.and_then(|hearing| hearing.heartbeat(on, now)),
            awaited_until: hearing.and_then(|hearing| hearing.awaited_until(on, now)),
            standing: standing(weights, worker, usage),
        }
    }

    /// The heartbeat that an Assign may stand on: a third of the lease old at most, so that most of it is still to come.
    pub(crate) fn fresh(&self, spec: &JobSpec) -> Option<u64> {
        let (sequence, age) = self.heartbeat?;
        (age <= spec.lost_after_ms / 3 || crate::armed!("bug::old-heartbeat-taken")).then_some(sequence)
    }

    pub(crate) fn score(&self, weights: &Weights, spec: &JobSpec) -> Score {
        let needed = Capacity::needed(&spec.resources);
        score(weights, self.standing, self.worker, &self.free, &needed, fit::preferences(spec))
    }
}

/// See the module's text. Candidates are named by their place among those of the plan.
#[derive(Debug, Default)]
pub(crate) struct Ranking {
    best: BTreeSet<(Reverse<i64>, usize)>,
    /// Those that fit, but whose heartbeat is too old to stand on.
    pub(crate) stale: Vec<usize>,
    /// Those of them that are worth a wait.
    awaited: BTreeSet<(Reverse<i64>, usize)>,
    /// What stands in `best` or `awaited` for each candidate.
    scores: Vec<Option<i64>>,
    /// How many of the plan's assignments it has followed.
    followed: usize,
}

impl Ranking {
    /// Ranks all candidates for the class of this spec; `assigned` is how many assignments the plan has made.
    pub(crate) fn new(candidates: &[Candidate<'_>], weights: &Weights, spec: &JobSpec, assigned: usize) -> Self {
        let mut ranking = Self { scores: vec![None; candidates.len()], followed: assigned, ..Self::default() };
        let needed = Capacity::needed(&spec.resources);
        for (at, candidate) in candidates.iter().enumerate() {
            if candidate.free.holds(&needed) && fit::suits(spec, candidate.worker) {
                if candidate.fresh(spec).is_none() {
                    ranking.stale.push(at);
                }
                ranking.insert(at, candidate, weights, spec);
            }
        }
        ranking
    }

    /// Takes up what was given away since it was last looked at: the candidates of all assignments, in order.
    pub(crate) fn follow(
        &mut self,
        assigned: &[usize],
        candidates: &[Candidate<'_>],
        weights: &Weights,
        spec: &JobSpec,
    ) {
        let needed = Capacity::needed(&spec.resources);
        for &at in &assigned[self.followed..] {
            if let Some(score) = self.scores[at].take() {
                self.best.remove(&(Reverse(score), at));
                self.awaited.remove(&(Reverse(score), at));
                if candidates[at].free.holds(&needed) {
                    self.insert(at, &candidates[at], weights, spec);
                }
            }
        }
        self.followed = assigned.len();
    }

    fn insert(&mut self, at: usize, candidate: &Candidate<'_>, weights: &Weights, spec: &JobSpec) {
        let ranked = match candidate.fresh(spec) {
            Some(_) => &mut self.best,
            None if candidate.awaited_until.is_some() => &mut self.awaited,
            None => return,
        };
        let score = candidate.score(weights, spec).total();
        self.scores[at] = Some(score);
        ranked.insert((Reverse(score), at));
    }

    /// Candidates, best first; among equals the first.
    pub(crate) fn best(&self) -> impl Iterator<Item = usize> + '_ {
        self.best.iter().map(|&(_, at)| at)
    }

    /// Those that would be better than this one of the best, once they are heard of again, and are worth a wait for that;
    /// best first.
    pub(crate) fn better(&self, than: usize) -> impl Iterator<Item = usize> + '_ {
        let score = self.scores[than];
        self.awaited.iter().take_while(move |(Reverse(awaited), _)| Some(*awaited) > score).map(|&(_, at)| at)
    }

    /// What is kept of the choice of a candidate.
    pub(crate) fn choice(&self, candidate: &Candidate<'_>, weights: &Weights, spec: &JobSpec) -> Choice {
        let candidates = u32::try_from(self.best.len()).unwrap_or(u32::MAX);
        Choice { candidates, score: candidate.score(weights, spec) }
    }
}
