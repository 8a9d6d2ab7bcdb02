//! S7, over all operations: positions in the log follow real time.
//!
//! What was asked after another operation was answered must have been read at its position or later, and a new job after
//! one that was acknowledged before lies later. One index has one term, and terms grow with the index. Stale reads do not go
//! back on one node.

use std::collections::{BTreeMap, HashMap};

use super::{Judge, sights, timeline};
use crate::history::{At, Evidence, Op, Reply};

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let placed = |op: Op<'_>| op.reply().is_some() && op.position.is_some() && sights::is_linearizable(op.request);
    let ops: Vec<_> = evidence.ops().filter(|op| placed(*op)).collect();
    judge.judged(ops.len());
    real_time(judge, &ops);
    terms(evidence, judge);
    without_a_position(evidence, judge);
    each_node(evidence, judge);
}

/// What nobody can compare is not shown to be new. Histories of whole runs only: others may leave positions out.
fn without_a_position(evidence: &Evidence, judge: &mut Judge<'_>) {
    if !evidence.run().promises.iter().any(|promise| promise == "S7") {
        return;
    }
    for op in evidence.ops().filter(|op| op.position.is_none() && sights::is_linearizable(op.request)) {
        let tells = match op.reply() {
            Some(Reply::Get(view)) => view.state.is_some(),
            Some(Reply::Submit(_) | Reply::List(_) | Reply::Cancel(_) | Reply::RevokeToken | Reply::Revoke) => true,
            _ => false,
        };
        if tells {
            judge.judged(1);
            let line = judge.line(op.returned.unwrap_or(op.invoked));
            judge.invalid(format!("{line}: {} was answered without a position", op.request.name()));
        }
    }
}

/// No read of a node shows less than an earlier one, stale ones included, as long as its process lives.
fn each_node(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut starts: HashMap<u64, Vec<(u64, u64)>> = HashMap::new();
    for polled in timeline::polls(evidence) {
        starts.entry(polled.node).or_default().push((polled.t_ns, polled.poll.start));
    }
    let mut reads: BTreeMap<u64, Vec<Op<'_>>> = BTreeMap::new();
    for op in evidence.ops().filter(|op| op.position.is_some() && matches!(op.reply(), Some(Reply::Get(_)))) {
        // Of whom nobody knows which node it is, nobody knows which reads are its own.
        if let Some(node) = op.node {
            reads.entry(node).or_default().push(op);
        }
    }
    for (node, reads) in reads {
        let none = Vec::new();
        let starts = starts.get(&node).unwrap_or(&none);
        let start = |at: usize| starts.get(at).map(|(_, start)| *start);
        let after = |t_ns: u64| starts.partition_point(|(at, _)| *at < t_ns);
        let mut answered: Vec<_> = reads.iter().collect();
        answered.sort_by_key(|op| op.to_ns);
        let mut answered = answered.into_iter().peekable();
        let mut newest: Option<&Op<'_>> = None;
        for op in &reads {
            while let Some(earlier) = answered.next_if(|earlier| earlier.precedes(op)) {
                newest = newest.filter(|newest| newest.position >= earlier.position).or(Some(earlier));
            }
            judge.judged(usize::from(!sights::is_linearizable(op.request)));
            let Some(earlier) = newest.filter(|newest| op.position < newest.position) else { continue };
            let before = after(earlier.to_ns.unwrap_or(0)).checked_sub(1).and_then(start);
            if before.is_some() && before == start(after(op.to_ns.unwrap_or(u64::MAX))) {
                tell(judge, earlier, op, "on the same node before");
            }
        }
    }
}

fn real_time(judge: &mut Judge<'_>, ops: &[Op<'_>]) {
    let mut answered: Vec<_> = ops.iter().collect();
    answered.sort_by_key(|op| op.to_ns);
    let mut answered = answered.into_iter().peekable();
    // Of all that were answered so far, the one that saw most, and the newest write.
    let (mut seen, mut written): (Option<&Op<'_>>, Option<&Op<'_>>) = (None, None);
    for op in ops {
        while let Some(earlier) = answered.next_if(|earlier| earlier.precedes(op)) {
            if seen.is_none_or(|seen| seen.position < earlier.position) {
                seen = Some(earlier);
            }
            if makes(earlier) && written.is_none_or(|written| written.position < earlier.position) {
                written = Some(earlier);
            }
        }
        if let Some(earlier) = seen.filter(|earlier| op.position < earlier.position) {
            tell(judge, earlier, op, "before");
        } else if let Some(earlier) = written.filter(|earlier| makes(op) && op.position == earlier.position) {
            tell(judge, earlier, op, "with");
        }
    }
}

/// Whether it certainly wrote something new.
fn makes(op: &Op<'_>) -> bool {
    matches!(op.reply(), Some(Reply::Submit(done)) if !done.existing)
}

fn tell(judge: &mut Judge<'_>, earlier: &Op<'_>, op: &Op<'_>, how: &str) {
    let at = |op: &Op<'_>| judge.line(op.returned.unwrap_or(op.invoked));
    let place = |op: &Op<'_>| op.position.map_or_else(String::new, |(term, index)| format!("{term}.{index}"));
    let (name, key) = (op.request.name(), op.key);
    let text = format!("{name} {key:?} was answered at {}, {how} {}", place(op), place(earlier));
    judge.invalid(format!("{}, {}: {text}, which was answered before it was asked", at(earlier), at(op)));
}

/// Positions of all records, stale reads included.
fn terms(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut terms: BTreeMap<u64, (u64, At)> = BTreeMap::new();
    for (at, record) in evidence.records() {
        if let (Some(term), Some(index)) = (record.term, record.index) {
            let (known, first) = *terms.entry(index).or_insert((term, at));
            if known != term {
                let lines = (judge.line(first), judge.line(at));
                judge.invalid(format!("{}, {}: index {index} has terms {known} and {term}", lines.0, lines.1));
            }
        }
    }
    for ((index, (term, at)), (next, (later, then))) in terms.iter().zip(terms.iter().skip(1)) {
        if later < term {
            let lines = (judge.line(*at), judge.line(*then));
            let text = format!("index {next} has term {later}, index {index} had {term}");
            judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
        }
    }
}
