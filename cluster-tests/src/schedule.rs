//! Which faults a run sees and when: made from a seed, written down, and read again for a replay.

use rand::{
    Rng as _, SeedableRng as _,
    rngs::SmallRng,
    seq::{IndexedRandom as _, IteratorRandom as _},
};
use serde::{Deserialize, Serialize};

use crate::nemesis::{self, Class, Kind};

/// Between two rounds, in milliseconds: what must happen after faults are healed is looked at.
const CALM_MS: u64 = 12_000;
/// From the death of a process at a named place to the next one, at least.
const POINTS_APART_MS: u64 = 3_000;
/// From the beginning of a fault to that of the next one.
const APART_MS: std::ops::RangeInclusive<u64> = 1_500..=5_000;

/// What every run under a fault gives something to judge of.
const ALWAYS: &[&str] = &[
    "S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S11", "S12", "S13", "S14", "S15", "S17", "L1", "L2",
    "L3", "L5",
];
/// Kinds after which another node leads.
const DEPOSING: &[&str] = &[
    "isolate_leader",
    "unplug_leader",
    "kill_leader",
    "dead_leader",
    "stop_leader",
    "pause_leader",
    "frozen_leader",
    "power_leader",
    "halves",
];
/// Kinds that cut a node off one way.
const ONE_WAY: &[&str] = &["leader_mute", "leader_deaf", "follower_mute", "follower_deaf"];
/// Kinds that leave nodes that run without a majority.
const PARTING: &[&str] =
    &["isolate_leader", "isolate_follower", "halves", "all_cut", "kill_majority", "pause_majority"];
/// Operations that must end well in any run; and one more in each second.
const OPERATIONS: usize = 50;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which.
    pub kind: String,
    /// When it begins, in milliseconds after the warm-up.
    pub at_ms: u64,
    /// How long it lasts.
    pub for_ms: u64,
    /// Where its own choices come from.
    pub seed: u64,
}

/// A run, before it is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What it is called.
    pub scenario: String,
    /// Where everything else comes from.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// How many agents.
    pub agents: usize,
    /// Nodes take snapshots every few kilobytes of log, and followers that lag are sent them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub small_logs: bool,
    /// In the order in which they begin.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Each of these kinds once, in an order that the seed chooses, in rounds of up to `overlap` faults at a time. Kinds that
    /// are to be judged by themselves are alone in their round. Every other seed has small logs: runs are too short for others
    /// to see a snapshot.
    #[must_use]
    pub fn of(scenario: &str, seed: u64, nodes: usize, kinds: &[&'static Kind], overlap: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut steps = Vec::new();
        let mut at_ms = 0;
        let mut rounds: Vec<Vec<&Kind>> = Vec::new();
        for &kind in kinds {
            let open = rounds.last_mut().filter(|round| round.len() < overlap && !kind.alone && !round[0].alone);
            match open {
                Some(round) => round.push(kind),
                None => rounds.push(vec![kind]),
            }
        }
        for round in rounds {
            let mut end = at_ms;
            if round[0].class == Class::Points {
                // Over as soon as somebody has died; the next one waits for that.
                let (kind, for_ms) = (round[0].name.to_owned(), *round[0].lasts_ms.end());
                steps.push(Step { kind, at_ms, for_ms, seed: rng.random() });
                at_ms += POINTS_APART_MS;
                continue;
            }
            for kind in round {
                let for_ms = rng.random_range(kind.lasts_ms.clone());
                steps.push(Step { kind: kind.name.to_owned(), at_ms, for_ms, seed: rng.random() });
                end = end.max(at_ms + for_ms);
                at_ms += rng.random_range(APART_MS);
            }
            at_ms = end + CALM_MS;
        }
        let small_logs = seed.is_multiple_of(2) || kinds.iter().any(|kind| kind.class == Class::Points);
        Self { scenario: scenario.to_owned(), seed, nodes, agents: 2, small_logs, steps }
    }

    /// What keeps it from being run anywhere.
    ///
    /// # Errors
    /// If it names a kind that there is not, or that takes more nodes than it has.
    pub fn check(&self) -> Result<(), String> {
        if ![3, 5].contains(&self.nodes) || self.agents == 0 {
            return Err(format!("{} nodes and {} agents: 3 or 5, and one at least", self.nodes, self.agents));
        }
        for Step { kind: name, .. } in &self.steps {
            let kind = nemesis::kinds().find(|kind| kind.name == name.as_str());
            let kind = kind.ok_or_else(|| format!("there is no kind of fault {name:?}: see --list"))?;
            if kind.nodes > self.nodes {
                return Err(format!("{name} takes {} nodes, and there are {}", kind.nodes, self.nodes));
            }
        }
        Ok(())
    }

    /// Whether a fault sets clocks.
    #[must_use]
    pub fn needs_clocks(&self) -> bool {
        let sets = |step: &Step| nemesis::kinds().any(|kind| kind.class == Class::Clock && kind.name == step.kind);
        self.steps.iter().any(sets)
    }

    /// Whether processes have to have failpoints: to die at named places, or for small logs.
    #[must_use]
    pub fn needs_failpoints(&self) -> bool {
        self.small_logs || self.has_points()
    }

    /// Whether somebody dies at a named place.
    #[must_use]
    pub fn has_points(&self) -> bool {
        let names = |step: &Step| nemesis::kinds().any(|kind| kind.class == Class::Points && kind.name == step.kind);
        self.steps.iter().any(names)
    }

    /// Whether a fault acts upon whoever leads.
    #[must_use]
    pub fn hits_leader(&self) -> bool {
        let names = |step: &Step| step.kind.ends_with("_leader") || step.kind.starts_with("leader_");
        self.changes_leader() || self.steps.iter().any(names)
    }

    /// Whether a fault leaves the others no choice but to elect another leader.
    #[must_use]
    pub fn changes_leader(&self) -> bool {
        self.steps.iter().any(|step| DEPOSING.contains(&step.kind.as_str()))
    }

    /// What it gives checkers to judge beyond what every run does.
    fn extras(&self) -> impl Iterator<Item = &'static str> {
        let of = |class: Class| nemesis::kinds().filter(move |kind| kind.class == class);
        let has = |kind: &Kind| self.steps.iter().any(|step| step.kind == kind.name);
        let parts = nemesis::kinds().any(|kind| PARTING.contains(&kind.name) && has(kind));
        let damages = of(Class::Damage).any(has);
        let dead = of(Class::Process).any(|kind| kind.name.starts_with("dead_") && has(kind));
        let one_way = of(Class::Network).any(|kind| ONE_WAY.contains(&kind.name) && has(kind));
        let extras = [(damages, "S16"), (dead, "L4"), (one_way, "L6"), (parts, "L7")];
        extras.into_iter().filter_map(|(there, name)| there.then_some(name))
    }

    /// What must hold, and of which its run must give something to judge.
    pub fn promises(&self) -> impl Iterator<Item = &'static str> {
        ALWAYS.iter().copied().chain(self.extras())
    }

    /// How many operations must end well at least.
    #[must_use]
    pub fn least_operations(&self) -> usize {
        let ends = self.steps.iter().map(|step| step.at_ms + step.for_ms).max().unwrap_or(0);
        OPERATIONS + usize::try_from(ends / 1_000).unwrap_or(0)
    }

    /// How many nodes may join while it runs: at most one for each fault of membership.
    #[must_use]
    pub fn joins(&self) -> usize {
        let joins =
            |step: &Step| nemesis::kinds().any(|kind| kind.class == Class::Membership && kind.name == step.kind);
        self.steps.iter().filter(|step| joins(step)).count()
    }

    /// The same and, at last and by itself, a fault after which another node leads: a run without one proves little.
    ///
    /// # Panics
    /// If there is no such kind.
    #[must_use]
    pub fn deposing(mut self) -> Self {
        // Of runs with one seed each has its own.
        let salt = self.scenario.bytes().fold(0_u64, |salt, byte| salt.rotate_left(7) ^ u64::from(byte));
        let mut rng = SmallRng::seed_from_u64(self.seed ^ salt);
        let fits = |kind: &&Kind| DEPOSING.contains(&kind.name);
        let kind = nemesis::kinds().filter(fits).choose(&mut rng).expect("some kinds depose the leader");
        let at_ms = self.steps.iter().map(|step| step.at_ms + step.for_ms + CALM_MS).max().unwrap_or(0);
        let for_ms = rng.random_range(kind.lasts_ms.clone());
        self.steps.push(Step { kind: kind.name.to_owned(), at_ms, for_ms, seed: rng.random() });
        self
    }

    /// So many faults of any kind that suits so many nodes and takes no binaries of its own. The last one has another node lead.
    #[must_use]
    pub fn random(seed: u64, nodes: usize, faults: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x5eed);
        let fitting: Vec<&'static Kind> =
            nemesis::kinds().filter(|kind| kind.nodes <= nodes && kind.class != Class::Points).collect();
        let kinds: Vec<_> = (1..faults).filter_map(|_| fitting.choose(&mut rng).copied()).collect();
        Self::of("random", seed, nodes, &kinds, 3).deposing()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_runs_have_another_leader_and_kinds_that_are_named_exist() {
        let named = DEPOSING.iter().chain(PARTING).chain(ONE_WAY);
        named.for_each(|name| assert!(nemesis::kinds().any(|kind| kind.name == *name), "{name}"));
        for seed in 0..100 {
            let plan = Plan::random(seed, 3, 6);
            assert!(plan.steps.len() == 6 && plan.changes_leader() && plan.hits_leader(), "{plan:?}");
        }
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let plan = |nodes| Plan::of("all", 1, nodes, &nemesis::kinds().collect::<Vec<_>>(), 2);
        assert_eq!(plan(5).check(), Ok(()));
        let mut other = plan(5);
        other.steps[3].kind = "no_such".to_owned();
        for (plan, why) in
            [(plan(3), "takes 5 nodes, and there are 3"), (plan(4), "3 or 5"), (other, "no kind of fault \"no_such\"")]
        {
            let said = plan.check().unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
