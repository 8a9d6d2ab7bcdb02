//! S15: once it is acknowledged that an identity was removed or revoked, no call of it is served.
//!
//! Calls are those that the log decides, or of nodes that are known to have applied the removal.

use std::collections::HashMap;

use super::Judge;
use crate::history::{Evidence, Op, Reply, Request};

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
}
