//! What was going on when: faults, the leader, what nodes told.

use std::collections::{BTreeMap, HashMap};

use crate::history::{At, Effect, Evidence, Fault, Note, Phase, Poll};

/// A fault from its beginning to its end.
#[derive(Clone, Copy, Debug)]
pub struct Stretch<'a> {
    /// The record of its beginning.
    pub at: At,
    /// As it began.
    pub fault: &'a Fault,
    /// When it began.
    pub from_ns: u64,
    /// When it ended, if it did.
    pub to_ns: Option<u64>,
    /// It ended without having come to what it was for.
    pub missed: bool,
}

/// All faults in the order in which they began, and ends of what never began.
pub fn faults(evidence: &Evidence) -> (Vec<Stretch<'_>>, Vec<At>) {
    let mut stretches: Vec<Stretch<'_>> = Vec::new();
    let mut open: HashMap<&str, usize> = HashMap::new();
    let mut odd = Vec::new();
    for (at, note) in evidence.notes() {
        let Note::Fault(fault) = note else { continue };
        let record = evidence.record(at);
        match fault.phase {
            Phase::Begin => {
                if open.insert(&record.key, stretches.len()).is_some() {
                    odd.push(at);
                }
                stretches.push(Stretch { at, fault, from_ns: record.t_ns, to_ns: None, missed: false });
            }
            Phase::End => match open.remove(record.key.as_str()) {
                Some(stretch) => {
                    stretches[stretch].to_ns = Some(record.t_ns);
                    stretches[stretch].missed = fault.missed;
                }
                None => odd.push(at),
            },
        }
    }
    (stretches, odd)
}

/// When each worker's machine stood still: from, to.
pub fn frozen(evidence: &Evidence) -> HashMap<&str, Vec<(u64, u64)>> {
    let mut frozen: HashMap<&str, Vec<(u64, u64)>> = HashMap::new();
    for stretch in faults(evidence).0.iter().filter(|stretch| stretch.fault.effect == Effect::Freeze) {
        for worker in &stretch.fault.workers {
            frozen.entry(worker).or_default().push((stretch.from_ns, stretch.to_ns.unwrap_or(u64::MAX)));
        }
    }
    frozen
}

/// A poll of a node.
#[derive(Clone, Copy, Debug)]
pub struct Polled<'a> {
    /// Its record.
    pub at: At,
    /// When.
    pub t_ns: u64,
    /// Of which node.
    pub node: u64,
    /// What it said.
    pub poll: &'a Poll,
}

/// All polls in the order of time.
pub fn polls(evidence: &Evidence) -> impl Iterator<Item = Polled<'_>> {
    evidence.notes().filter_map(|(at, note)| match note {
        Note::Poll(poll) => {
            let record = evidence.record(at);
            Some(Polled { at, t_ns: record.t_ns, node: record.node?, poll })
        }
        _ => None,
    })
}

/// Terms with their leaders, by when somebody first said so.
pub fn leaders(evidence: &Evidence) -> Vec<(u64, u64, u64)> {
    let mut first: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for polled in polls(evidence) {
        if let Some(leader) = polled.poll.leader {
            first.entry(polled.poll.term).or_insert((polled.t_ns, leader));
        }
    }
    first.into_iter().map(|(term, (t_ns, leader))| (t_ns, term, leader)).collect()
}

/// The nodes that are to serve in the end.
pub fn members(evidence: &Evidence) -> Option<&[u64]> {
    evidence.notes().rev().find_map(|(_, note)| match note {
        Note::Cluster(members) => Some(members.nodes.as_slice()),
        _ => None,
    })
}
