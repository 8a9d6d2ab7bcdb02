//! S11, as polls of the nodes show it: one leader per term, one entry per index among what is committed, which holds for
//! whatever positions clients are told, leaders that have all that was committed before, and terms, commits, what logs hold
//! of them, and applied indices that never go back. Nor do terms leap: nobody begins one without a majority's word.

use std::collections::{BTreeMap, HashMap};

use super::{
    Judge,
    timeline::{self, Polled},
};
use crate::history::{At, Body, Evidence, Note};

/// So many terms may pass from one leader to the next. Elections that nobody wins are rare, and no two were ever seen in a
/// row; who is cut off for seconds and begins terms all the same gets much further.
const LEAP: u64 = 6;

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let polls: Vec<_> = timeline::polls(evidence).collect();
    judge.judged(polls.len());
    election_safety(judge, &polls);
    log_matching(evidence, judge, &polls);
    leader_completeness(judge, &polls);
    monotonic(judge, &polls);
    leaps(judge, &polls);
}

/// Terms rise by elections, for which a majority has to be willing.
fn leaps(judge: &mut Judge<'_>, polls: &[Polled<'_>]) {
    let led = polls.iter().filter(|polled| polled.poll.leader.is_some());
    let mut terms: Vec<(u64, At)> = led.map(|polled| (polled.poll.term, polled.at)).collect();
    terms.sort_unstable();
    terms.dedup_by_key(|(term, _)| *term);
    for (&(before, first), &(term, at)) in terms.iter().zip(terms.iter().skip(1)) {
        if term - before > LEAP {
            let lines = (judge.line(first), judge.line(at));
            judge.invalid(format!("{}, {}: from term {before} the next one with a leader is {term}", lines.0, lines.1));
        }
    }
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

fn log_matching(evidence: &Evidence, judge: &mut Judge<'_>, polls: &[Polled<'_>]) {
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
    let committed = polls.iter().filter_map(|polled| polled.poll.committed).map(|(_, index)| index).max();
    let Some(committed) = committed else { return };
    for (at, record) in evidence.records() {
        let (index, term) = match (&record.body, record.index) {
            (Body::Ok(_) | Body::Note(Note::Watched(_)), Some(index)) => (index, record.term),
            (Body::Note(Note::Event(event)), _) => (event.at.0, None),
            (Body::Note(Note::Through(through)), _) => (through.at.0, None),
            _ => continue,
        };
        if index > committed {
            judge.invalid(format!("{}: {index} was told, and {committed} is all that is committed", judge.line(at)));
        }
        if let (Some(term), Some((known, first))) = (term, terms.get(&index))
            && term != *known
        {
            let lines = (judge.line(*first), judge.line(at));
            judge.invalid(format!("{}, {}: {index} was told with term {term}, not {known}", lines.0, lines.1));
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
