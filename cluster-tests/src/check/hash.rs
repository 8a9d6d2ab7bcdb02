//! S12: nodes that have applied the same entries at the same feature level have the same state.
//!
//! Every node that is to serve must have been compared with another one, or the verdict is unknown.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Judge,
    timeline::{self, Polled},
};
use crate::history::Evidence;

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    // The first poll of each node, by index and level.
    let mut hashes: BTreeMap<(u64, u32), Vec<Polled<'_>>> = BTreeMap::new();
    for polled in timeline::polls(evidence).filter(|polled| !polled.poll.hash.is_empty()) {
        let alike = hashes.entry((polled.poll.applied, polled.poll.feature_level)).or_default();
        judge.judged(usize::from(!alike.is_empty()));
        if let Some(first) = alike.first().filter(|first| first.poll.hash != polled.poll.hash) {
            let lines = (judge.line(first.at), judge.line(polled.at));
            let text = format!("nodes {} and {} differ at index {}", first.node, polled.node, polled.poll.applied);
            judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
        }
        if alike.iter().all(|other| other.node != polled.node) {
            alike.push(polled);
        }
    }
    let compared: BTreeSet<_> =
        hashes.values().filter(|alike| alike.len() > 1).flatten().map(|polled| polled.node).collect();
    let members = timeline::members(evidence).unwrap_or_default();
    if !hashes.is_empty() && members.len() > 1 {
        for node in members.iter().filter(|node| !compared.contains(node)) {
            judge.unknown(format!("the state of node {node} was never compared with another one's"));
        }
    }
}
