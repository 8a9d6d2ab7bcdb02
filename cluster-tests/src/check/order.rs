//! S7, over all operations: positions in the log follow real time.
//!
//! What was asked after another operation was answered must have been read at its position or later, and a new job after
//! one that was acknowledged before lies later. One index has one term, and terms grow with the index.

use std::collections::BTreeMap;

use super::{Judge, sights};
use crate::history::{At, Evidence, Op, Reply};

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let placed = |op: Op<'_>| op.reply().is_some() && op.position.is_some() && sights::is_linearizable(op.request);
    let ops: Vec<_> = evidence.ops().filter(|op| placed(*op)).collect();
    judge.judged(ops.len());
    real_time(judge, &ops);
    terms(evidence, judge);
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
