//! What was going on when: faults, the leader, what nodes told.

use std::collections::{BTreeMap, HashMap};

use crate::history::{At, Effect, Evidence, Fault, Note, Phase, Poll};

/// How long what was frozen may live on once its machine wakes up.
const WAKE_NS: u64 = 100_000_000;
/// How long it may take from waking a machine up to telling so.
const TOLD_NS: u64 = 1_000_000_000;

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

/// When what stood still on each worker's machine may live on: from, to. A machine has woken up when anything on it writes a
/// mark, which is shortly before the end is told; at the latest then.
pub fn wakes(evidence: &Evidence) -> HashMap<&str, Vec<(u64, u64)>> {
    let mut wakes = frozen(evidence);
    let mut woken: HashMap<(&str, usize), u64> = HashMap::new();
    for (at, note) in evidence.notes() {
        let Note::Witness(mark) = note else { continue };
        let t_ns = evidence.record(at).t_ns;
        for (number, (from, to)) in wakes.get(mark.worker.as_str()).into_iter().flatten().enumerate() {
            if (to.saturating_sub(TOLD_NS).max(*from)..=*to).contains(&t_ns) {
                woken.entry((&mark.worker, number)).or_insert(t_ns);
            }
        }
    }
    for (worker, stretches) in &mut wakes {
        for (number, (from, to)) in stretches.iter_mut().enumerate() {
            *from = woken.get(&(*worker, number)).copied().unwrap_or(*to);
            *to = from.saturating_add(WAKE_NS);
        }
    }
    wakes
}

/// Whether a time lies in a stretch of a worker's.
pub fn within(stretches: &HashMap<&str, Vec<(u64, u64)>>, worker: &str, t_ns: u64) -> bool {
    let stretches = stretches.get(worker).into_iter().flatten();
    stretches.into_iter().any(|(from, to)| (from..=to).contains(&&t_ns))
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
    members_at(evidence, u64::MAX - LEARNS)
}

/// Who goes on under another id after a fault says so as soon as it answers.
const LEARNS: u64 = 2_000_000_000;

/// The nodes that were to serve from a time on.
pub fn members_at(evidence: &Evidence, t_ns: u64) -> Option<&[u64]> {
    evidence.notes().rev().find_map(|(at, note)| match note {
        Note::Cluster(members) if evidence.record(at).t_ns <= t_ns + LEARNS => Some(members.nodes.as_slice()),
        _ => None,
    })
}
