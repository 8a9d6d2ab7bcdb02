//! S13: after things have settled, nothing is left over of attempts that do not live: no container, process or cgroup,
//! nor anybody who watches over one.
//!
//! An inventory must have been taken after the last fault and the last submission, or the verdict is unknown; and before it
//! one while jobs ran, which found something of theirs.

use std::collections::{BTreeMap, HashSet};

use super::{Judge, sights};
use crate::history::{Evidence, Found, Note, Request};

/// What every attempt that runs has on its machine; the first two are what inventories always looked for.
pub(crate) const OF_EACH: [&str; 4] = ["process", "directory", "watchdog", "guardian"];

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let sights = sights::sights(evidence);
    let mut latest = None;
    let mut unsettled = None;
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, note) in evidence.notes() {
        match note {
            Note::Inventory(inventory) if inventory.busy => {
                let is_ours = |found: &&Found| sights.keys().any(|job| found.owner.starts_with(job));
                let ours = inventory.found.iter().filter(|found| latest.is_none() && is_ours(found));
                ours.for_each(|found| *seen.entry(&found.what).or_default() += 1);
            }
            Note::Inventory(inventory) => {
                latest = Some(at);
                judge.judged(1);
                let live: HashSet<_> = inventory.live.iter().map(String::as_str).collect();
                for attempt in &live {
                    let of_job = attempt.split_once('/').and_then(|(job, _)| sights.get(job)).into_iter().flatten();
                    let ended = of_job.clone().find(|sight| sight.at < at && sight.view.state.is_terminal());
                    if let Some(ended) = ended {
                        let lines = (judge.line(ended.at), judge.line(at));
                        judge.invalid(format!("{}, {}: {attempt} is said to live, and has ended", lines.0, lines.1));
                    }
                }
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
    let wanted = &evidence.run().inventories;
    let wanted = if wanted.is_empty() { OF_EACH[..2].to_vec() } else { wanted.iter().map(String::as_str).collect() };
    for what in wanted.into_iter().filter(|what| !seen.contains_key(what)) {
        judge.lacks("S13", &format!("no inventory found a {what} while jobs ran"));
    }
    judge.remark(format!("found while jobs ran: {seen:?}"));
    let submitted = evidence.ops().filter(|op| matches!(op.request, Request::Submit(_))).map(|op| op.invoked);
    let unsettled = unsettled.into_iter().chain(submitted).max();
    if let (Some(latest), Some(unsettled)) = (latest, unsettled)
        && latest < unsettled
    {
        judge.unknown(format!("{}: no inventory was taken after this", judge.line(unsettled)));
    }
}
