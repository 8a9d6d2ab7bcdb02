//! The run did what it was made for: enough operations, the faults that it promised, on the leader, with a change of
//! leader. What did not happen proves nothing: it makes a run unknown, and so rejected. What its driver saw go wrong, such as
//! a node that does not come back or a client that does not end, makes it invalid.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    CHECKERS, Judge,
    timeline::{self, Polled, Stretch},
};
use crate::{
    history::{Evidence, Note, Outcome, Run},
    nemesis::{self, Kind},
};

/// How long after a fault a node may still end by it: the next write to a disk that has failed may come then.
const AFTERMATH: u64 = 2_000_000_000;

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let run = evidence.run();
    if !evidence.notes().any(|(_, note)| matches!(note, Note::Run(_))) {
        judge.unknown("nobody says what this run is and what it must have done");
    }
    for name in run.requires.iter().filter(|name| CHECKERS.iter().all(|checker| checker.name != name.as_str())) {
        judge.unknown(format!("the run requires {name}, and there is no such checker"));
    }
    let [mut ok, mut fail, mut info] = [0; 3];
    for op in evidence.ops() {
        *match op.outcome {
            Outcome::Ok(_) => &mut ok,
            Outcome::Fail(_) => &mut fail,
            Outcome::Info => &mut info,
        } += 1;
    }
    judge.judged(ok);
    if ok < run.least_operations {
        judge.unknown(format!("{ok} operations ended well, the floor is {}", run.least_operations));
    }
    let (faults, odd) = timeline::faults(evidence);
    by_themselves(evidence, judge, &faults);
    for at in odd {
        judge.unknown(format!("{}: a fault begins twice, or ends without a beginning", judge.line(at)));
    }
    for stretch in faults.iter().filter(|stretch| stretch.to_ns.is_none() && !stretch.fault.permanent) {
        judge.unknown(format!("{}: {} was never healed", judge.line(stretch.at), stretch.fault.kind));
    }
    for (at, note) in evidence.notes() {
        if let Note::Violation(violation) = note {
            judge.invalid(format!("{}: {}", judge.line(at), violation.what));
        }
    }
    let kinds = kinds(judge, run, &faults);
    let changes = leaders(evidence, judge, run, &faults);
    judge.remark(format!("ok {ok}, fail {fail}, info {info}; {changes} changes of leader; faults: {kinds}"));
}

/// A node that ends in no fault of its own has met something that it does not survive, however fast it is back.
fn by_themselves(evidence: &Evidence, judge: &mut Judge<'_>, faults: &[Stretch<'_>]) {
    // Whoever comes to a place first dies there.
    let names = |stretch: &Stretch<'_>, node| stretch.fault.nodes.contains(&node) || stretch.fault.kind.contains("::");
    let mut last: HashMap<u64, Polled<'_>> = HashMap::new();
    for polled in timeline::polls(evidence) {
        let Some(before) = last.insert(polled.node, polled).filter(|last| last.poll.start != polled.poll.start) else {
            continue;
        };
        let near = |stretch: &Stretch<'_>| {
            stretch.from_ns <= polled.t_ns && stretch.to_ns.is_none_or(|to_ns| to_ns + AFTERMATH >= before.t_ns)
        };
        let of_it: Vec<_> = faults.iter().filter(|stretch| near(stretch) && names(stretch, polled.node)).collect();
        if of_it.iter().any(|stretch| may_end(stretch)) {
            continue;
        }
        let why =
            of_it.first().map_or_else(String::new, |fault| format!(" in {}, which nodes survive", fault.fault.kind));
        let lines = (judge.line(before.at), judge.line(polled.at));
        judge.invalid(format!("{}, {}: node {} ended by itself{why}", lines.0, lines.1, polled.node));
    }
}

/// Of kinds that there were once nobody knows.
fn may_end(stretch: &Stretch<'_>) -> bool {
    nemesis::kinds().find(|kind| kind.name == stretch.fault.kind).is_none_or(Kind::ends_nodes)
}

fn kinds(judge: &mut Judge<'_>, run: &Run, faults: &[Stretch<'_>]) -> String {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for stretch in faults.iter().filter(|stretch| !stretch.missed) {
        *kinds.entry(&stretch.fault.kind).or_default() += 1;
    }
    for kind in run.least_faults.iter().filter(|kind| !kinds.contains_key(kind.as_str())) {
        judge.unknown(format!("there was no {kind}"));
    }
    if kinds.is_empty() {
        return "none".to_owned();
    }
    kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
}

fn leaders(evidence: &Evidence, judge: &mut Judge<'_>, run: &Run, faults: &[Stretch<'_>]) -> usize {
    let leaders = timeline::leaders(evidence);
    let changes = leaders.windows(2).filter(|pair| pair[0].2 != pair[1].2).count();
    if run.changes_leader && changes == 0 {
        judge.unknown("the leader never changed");
    }
    let hit = |stretch: &Stretch<'_>| {
        let known = leaders.iter().filter(|(t_ns, ..)| *t_ns <= stretch.from_ns).max_by_key(|(_, term, _)| *term);
        let targets: HashSet<_> = stretch.fault.nodes.iter().collect();
        known.is_some_and(|(.., leader)| targets.contains(leader))
    };
    if run.hits_leader && !faults.iter().filter(|stretch| !stretch.missed).any(hit) {
        judge.unknown("no fault hit the leader");
    }
    changes
}
