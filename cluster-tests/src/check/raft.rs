//! S11, as polls of the nodes show it: one leader per term, one entry per index among what is committed, leaders that have
//! all that was committed before, and terms, commits, what logs hold of them, and applied indices that never go back.

use std::collections::{BTreeMap, HashMap};

use super::{
    Judge,
    timeline::{self, Polled},
};
use crate::history::{At, Evidence};

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let polls: Vec<_> = timeline::polls(evidence).collect();
    judge.judged(polls.len());
    election_safety(judge, &polls);
    log_matching(judge, &polls);
    leader_completeness(judge, &polls);
    monotonic(judge, &polls);
}

fn election_safety(judge: &mut Judge<'_>, polls: &[Polled<'_>]) {
    let mut leaders: HashMap<u64, (u64, At)> = HashMap::new();
    for Polled { at, poll, .. } in polls {
        let Some(leader) = poll.leader else { continue };
        let (known, first) = *leaders.entry(poll.term).or_insert((leader, *at));
        if known != leader {
            let lines = (judge.line(first), judge.line(*at));
            judge.invalid(format!("{}, {}: term {} has leaders {known} and {leader}", lines.0, lines.1, poll.term));
        }
    }
}

fn log_matching(judge: &mut Judge<'_>, polls: &[Polled<'_>]) {
    let mut terms: BTreeMap<u64, (u64, At)> = BTreeMap::new();
    for Polled { at, node, poll, .. } in polls {
        let applied = poll.applied_term.map(|term| (term, poll.applied));
        for (term, index) in poll.committed.into_iter().chain(applied) {
            let (known, first) = *terms.entry(index).or_insert((term, *at));
            if known != term {
                let lines = (judge.line(first), judge.line(*at));
                let text = format!("the committed entry {index} has term {term} on node {node}, and {known}");
                judge.invalid(format!("{}, {}: {text}", lines.0, lines.1));
            }
        }
        if poll.committed.is_some_and(|(_, index)| poll.applied > index) {
            judge.invalid(format!("{}: node {node} has applied more than is committed", judge.line(*at)));
        }
    }
}

/// At the first sight of a leader as such, its log holds all that was seen to be committed before.
fn leader_completeness(judge: &mut Judge<'_>, polls: &[Polled<'_>]) {
    let mut committed: Option<((u64, u64), At)> = None;
    let mut newest_term = 0;
    for Polled { at, node, poll, .. } in polls {
        if poll.leader == Some(*node)
            && poll.term > newest_term
            && let Some(last) = poll.last_log
        {
            newest_term = poll.term;
            if let Some(((term, index), first)) = committed.filter(|(id, _)| last.1 < id.1 && id.0 < poll.term) {
                let lines = (judge.line(first), judge.line(*at));
                let text = format!("node {node} leads term {} with a log that ends at {}", poll.term, last.1);
                judge.invalid(format!("{}, {}: {text}; {index} of term {term} was committed", lines.0, lines.1));
            }
        }
        if let Some(id) = poll.committed.filter(|id| committed.is_none_or(|(known, _)| known.1 < id.1)) {
            committed = Some((id, *at));
        }
    }
}

/// Terms are durable; what is committed and applied is known anew after each start.
fn monotonic(judge: &mut Judge<'_>, polls: &[Polled<'_>]) {
    let mut last: HashMap<u64, &Polled<'_>> = HashMap::new();
    for polled in polls {
        let Some(before) = last.insert(polled.node, polled) else { continue };
        let (old, new) = (before.poll, polled.poll);
        let same = old.start == new.start;
        let index = |id: Option<(u64, u64)>| id.map_or(0, |(_, index)| index);
        // A follower may know that an entry is committed for a moment before its log has it.
        let held = index(old.committed).min(index(old.last_log));
        for (what, back) in [
            ("term", new.term < old.term),
            ("commit index", same && new.committed.is_some() && index(new.committed) < index(old.committed)),
            ("log behind a commit", same && new.last_log.is_some() && index(new.last_log) < held),
            ("applied index", same && new.applied < old.applied),
        ] {
            if back {
                let lines = (judge.line(before.at), judge.line(polled.at));
                judge.invalid(format!("{}, {}: the {what} of node {} goes back", lines.0, lines.1, polled.node));
            }
        }
    }
}
