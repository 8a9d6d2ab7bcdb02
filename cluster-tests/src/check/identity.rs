//! S15: once it is acknowledged that an identity was removed or revoked, no call of it is served. S17: a removal that
//! failed removes nobody.
//!
//! Calls are those that the log decides, or of nodes that are known to have applied the removal.

use std::collections::HashMap;

use super::Judge;
use crate::history::{Evidence, Op, Outcome, Reply, Request};

/// What nodes say to whom they do not know, or no longer: by a certificate, and by the log.
const VOID: [&str; 2] = ["revoked", "removed"];

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut void: HashMap<&str, Op<'_>> = HashMap::new();
    for op in evidence.ops() {
        if let (Request::Revoke, Some(Reply::Revoke)) = (op.request, op.reply()) {
            // The first acknowledgement counts.
            let first = void.entry(op.key).or_insert(op);
            if op.to_ns < first.to_ns {
                *first = op;
            }
        }
    }
    judge.judged(void.len());
    for op in evidence.ops() {
        let Request::Call(call) = op.request else { continue };
        if let (Some(revoked), Some(_)) = (void.get(op.key), op.reply())
            && revoked.precedes(&op)
        {
            let at = |op: &Op<'_>| judge.line(op.returned.unwrap_or(op.invoked));
            let node = op.node.map_or_else(String::new, |node| format!(" by node {node}"));
            let text = format!("{} was void, and its {} was served{node}", op.key, call.rpc);
            judge.invalid(format!("{}, {}: {text}", at(revoked), at(&op)));
        }
    }
    void_by_nobody(evidence, judge);
}

/// Whoever is turned away as void was removed by somebody whose wish may have been granted by then.
fn void_by_nobody(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut removed: HashMap<&str, u64> = HashMap::new();
    for op in evidence.ops() {
        if matches!(op.request, Request::Revoke) && !op.failed() {
            let since = removed.entry(op.key).or_insert(op.from_ns);
            *since = op.from_ns.min(*since);
        }
    }
    for op in evidence.ops() {
        let (Request::Call(call), Outcome::Fail(failure)) = (op.request, op.outcome) else { continue };
        let says_so = VOID.contains(&failure.code.as_str()) && failure.message.starts_with(&format!("{} ", op.key));
        let may_be = removed.get(op.key).is_some_and(|since| op.to_ns.is_none_or(|told| *since < told));
        judge.judged(usize::from(says_so));
        if says_so && !may_be {
            let line = judge.line(op.returned.unwrap_or(op.invoked));
            judge.invalid(format!(
                "{line}: {} was turned away as void, from {}, and nobody removed it",
                op.key, call.rpc
            ));
        }
    }
}
