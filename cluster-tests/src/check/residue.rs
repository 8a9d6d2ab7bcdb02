//! S13: after things have settled, nothing is left over of attempts that do not live: no container, process or cgroup.
//!
//! An inventory must have been taken after the last fault and the last submission, or the verdict is unknown.

use std::collections::HashSet;

use super::Judge;
use crate::history::{Evidence, Found, Note, Request};

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let mut latest = None;
    let mut unsettled = None;
    for (at, note) in evidence.notes() {
        match note {
            Note::Inventory(inventory) => {
                latest = Some(at);
                judge.judged(1);
                let live: HashSet<_> = inventory.live.iter().map(String::as_str).collect();
                for Found { what, id, owner } in
                    inventory.found.iter().filter(|found| !live.contains(found.owner.as_str()))
                {
                    let of =
                        if owner.is_empty() { "nobody".to_owned() } else { format!("{owner}, which does not live") };
                    judge.invalid(format!("{}: {what} {id} is left over, of {of}", judge.line(at)));
                }
            }
            Note::Fault(_) => unsettled = Some(at),
            _ => {}
        }
    }
    let submitted = evidence.ops().filter(|op| matches!(op.request, Request::Submit(_))).map(|op| op.invoked);
    let unsettled = unsettled.into_iter().chain(submitted).max();
    if let (Some(latest), Some(unsettled)) = (latest, unsettled)
        && latest < unsettled
    {
        judge.unknown(format!("{}: no inventory was taken after this", judge.line(unsettled)));
    }
}
