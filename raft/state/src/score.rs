//! How good a place a worker is for a job, among those that it fits on: a sum of considerations, each from 0 to 1,000
//! (affinity from -1,000) times its weight. Integers only, so that every replica and every test computes the same.
//!
//! | consideration | 1,000 where |
//! | --- | --- |
//! | bin packing | the worker is full once it has the job: the mean over what it offers (slots, cores, memory, …) |
//! | spread | no slot of it is taken before the job comes |
//! | load | its machine is idle, by the newest heartbeat; 500 where nothing is known |
//! | affinity | all preferences of the job hold of it (see `fit`) |
//! | reliability | the newest attempts on it have succeeded ([`Worker::recent`]) |
//!
//! Without the last, a worker that fails whatever it is given would attract all jobs, because it is always free.
//!
//! Weights are part of the replicated state. By default jobs are packed, unless a machine is busy, attempts on it failed
//! lately, or the job prefers another.

use serde::{Deserialize, Serialize};

use crate::{
    fit,
    registry::{Capacity, Worker},
    spec::Preference,
    validate::{Invalid, check},
};

/// What counts fully.
const FULL: u64 = 1_000;
/// The largest weight.
const MAX_WEIGHT: u32 = 1_000;

/// How much each consideration counts, 0 to 1,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    /// For workers that will be full: others stay free, for large jobs or to be taken down.
    pub bin_packing: u32,
    /// For workers with few attempts.
    pub spread: u32,
    /// For machines that have little to do.
    pub load: u32,
    /// For workers that the job prefers.
    pub affinity: u32,
    /// For workers on which attempts succeed.
    pub reliability: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self { bin_packing: 100, spread: 0, load: 50, affinity: 200, reliability: 100 }
    }
}

/// New weights; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightsChange {
    /// See [`Weights`].
    pub bin_packing: Option<u32>,
    /// See [`Weights`].
    pub spread: Option<u32>,
    /// See [`Weights`].
    pub load: Option<u32>,
    /// See [`Weights`].
    pub affinity: Option<u32>,
    /// See [`Weights`].
    pub reliability: Option<u32>,
}

impl WeightsChange {
    /// Whether it changes anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The weights after the change.
    ///
    /// # Errors
    /// A weight that is out of bounds.
    pub fn of(&self, weights: Weights) -> Result<Weights, Invalid> {
        let weights = Weights {
            bin_packing: self.bin_packing.unwrap_or(weights.bin_packing),
            spread: self.spread.unwrap_or(weights.spread),
            load: self.load.unwrap_or(weights.load),
            affinity: self.affinity.unwrap_or(weights.affinity),
            reliability: self.reliability.unwrap_or(weights.reliability),
        };
        for (name, weight) in [
            ("bin_packing", weights.bin_packing),
            ("spread", weights.spread),
            ("load", weights.load),
            ("affinity", weights.affinity),
            ("reliability", weights.reliability),
        ] {
            check(weight <= MAX_WEIGHT, &format!("weights.{name}"), "0 to 1,000")?;
        }
        Ok(weights)
    }
}

/// What a worker scored for a job: each consideration times its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// See [`Weights`].
    pub bin_packing: i32,
    /// See [`Weights`].
    pub spread: i32,
    /// See [`Weights`].
    pub load: i32,
    /// See [`Weights`].
    pub affinity: i32,
    /// See [`Weights`].
    pub reliability: i32,
}

impl Score {
    /// Higher is better.
    #[must_use]
    pub fn total(&self) -> i64 {
        let parts = [self.bin_packing, self.spread, self.load, self.affinity, self.reliability];
        parts.into_iter().map(i64::from).sum()
    }
}

/// Why an attempt is where it is: kept with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Workers that it would have fitted on.
    pub candidates: u32,
    /// What the chosen one scored.
    pub score: Score,
}

/// What the machine of a worker is doing, as its agent sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Thousandths of a core in use.
    pub cpu_used_millis: u64,
    /// MiB.
    pub memory_used_mb: u64,
    /// MiB; 0: not known.
    pub memory_total_mb: u64,
}

/// What does not depend on the job: load and reliability.
pub(crate) fn standing(weights: &Weights, worker: &Worker, usage: Option<Usage>) -> Score {
    let load = usage.map_or(FULL / 2, |usage| FULL - busy(usage, &worker.capacity));
    Score {
        load: weighted(weights.load, load),
        reliability: weighted(weights.reliability, u64::from(worker.recent)),
        ..Score::default()
    }
}

/// The share of the machine that is in use: of its cores or of its memory, whichever is more.
fn busy(usage: Usage, capacity: &Capacity) -> u64 {
    share(usage.cpu_used_millis, capacity.cpu_millis).max(share(usage.memory_used_mb, usage.memory_total_mb))
}

/// The whole score of a worker that has `free` left, for a job that takes `needed` of it.
pub(crate) fn score(
    weights: &Weights,
    standing: Score,
    worker: &Worker,
    free: &Capacity,
    needed: &Capacity,
    preferences: &[Preference],
) -> Score {
    let affinity = fit::affinity(preferences, worker) * i64::from(weights.affinity);
    Score {
        bin_packing: weighted(weights.bin_packing, filled(&worker.capacity, &free.minus(needed))),
        spread: weighted(weights.spread, share(u64::from(free.slots), u64::from(worker.capacity.slots))),
        affinity: i32::try_from(affinity).unwrap_or_default(),
        ..standing
    }
}

/// How full a worker is with so much left: the mean over what it offers at all.
fn filled(capacity: &Capacity, left: &Capacity) -> u64 {
    let offers = [
        (u64::from(left.slots), u64::from(capacity.slots)),
        (left.cpu_millis, capacity.cpu_millis),
        (left.memory_mb, capacity.memory_mb),
        (left.storage_mb, capacity.storage_mb),
        (u64::from(left.gpu), u64::from(capacity.gpu)),
    ];
    let offered = offers.iter().filter(|(_, all)| *all > 0);
    let (sum, count) = offered.fold((0, 0), |(sum, count), (left, all)| (sum + FULL - share(*left, *all), count + 1));
    u64::checked_div(sum, count).unwrap_or(0)
}

/// Thousandths of `all`; none of nothing.
fn share(part: u64, all: u64) -> u64 {
    part.min(all).saturating_mul(FULL).checked_div(all).unwrap_or(0)
}

fn weighted(weight: u32, value: u64) -> i32 {
    // At most a million: bounds of weights are checked when they are set.
    i32::try_from(u64::from(weight) * value).unwrap_or(i32::MAX)
}
