//! What must happen, and by when, once faults are healed (L1 to L8).
//!
//! Faults are healed when the last open one ends; one that is permanent need not. What has too little time before the next fault is
//! not judged; what nobody looked at in time is unknown.
//!
//! | | bound | from |
//! | --- | --- | --- |
//! | L1 | a majority names one leader ≤ 3 s | each time that faults are healed |
//! | L2 | a job is terminal ≤ 10 s + its run time, and the time for which every slot was taken | each time that leaves so much of it, or its acknowledgement |
//! | L3 | all nodes have one state ≤ 10 s, and a fresh write and read passes on each | the last time; the second part, each |
//! | L4 | with a minority dead for good, new jobs are scheduled ≤ 10 s | their acknowledgement |
//! | L5 | beside a worker with a free slot a job that needs no more is scheduled ≤ 1 s | both are there, and no fault is |
//! | L6 | ≤ 2 changes of leader in 30 s | one node is cut off one way |
//! | L7 | a node without a majority serves nothing that needs one, and answers with a clear error inside the deadline (what is said on a stream has none) | asked while it is cut off |
//! | L8 | a reader of a log that goes on gets more of it ≤ 5 s | a new leader is known |

mod minority;
mod queue;
mod readers;
mod settled;

use std::collections::HashMap;

use super::{
    Judge,
    sights::{self, Sights},
    timeline::{self, Polled, Stretch},
};
use crate::history::{Effect, Evidence, JobState, Op, Reply, Request, Submit};

pub(super) const SECOND: u64 = 1_000_000_000;
/// L1.
const LEADER: u64 = 3 * SECOND;
/// L2, L3, L4.
const SETTLED: u64 = 10 * SECOND;
/// L6.
const ONE_WAY: u64 = 30 * SECOND;
/// A history with what most of the parts need.
pub(super) struct Scene<'a> {
    pub(super) evidence: &'a Evidence,
    pub(super) faults: Vec<Stretch<'a>>,
    /// When faults were healed, and until when there was no further one.
    heals: Vec<(u64, u64)>,
    polls: Vec<Polled<'a>>,
    members: &'a [u64],
    end_ns: u64,
}

impl<'a> Scene<'a> {
    fn of(evidence: &'a Evidence) -> Self {
        let faults = timeline::faults(evidence).0;
        Self {
            heals: heals(&faults),
            polls: timeline::polls(evidence).collect(),
            members: timeline::members(evidence).unwrap_or_default(),
            end_ns: evidence.records().next_back().map_or(0, |(_, record)| record.t_ns),
            faults,
            evidence,
        }
    }

    /// When the last faults were healed, if nothing came after.
    fn healed(&self) -> Option<u64> {
        self.heals.last().filter(|(_, until)| *until == u64::MAX).map(|(at, _)| *at)
    }

    fn polls_within(&self, from_ns: u64, to_ns: u64) -> impl Iterator<Item = &Polled<'a>> {
        let first = self.polls.partition_point(|polled| polled.t_ns < from_ns);
        self.polls[first..].iter().take_while(move |polled| polled.t_ns <= to_ns)
    }
}

fn heals(faults: &[Stretch<'_>]) -> Vec<(u64, u64)> {
    // What a moment changes about how many faults are open; those without an end never are, but they end the quiet.
    let mut edges: Vec<(u64, isize)> = Vec::new();
    for stretch in faults {
        let ends = !stretch.fault.permanent || stretch.to_ns.is_some();
        edges.push((stretch.from_ns, isize::from(ends)));
        edges.extend(stretch.to_ns.map(|to| (to, -1)));
    }
    // At one time, what begins keeps what ends from being the last.
    edges.sort_unstable_by_key(|&(t_ns, change)| (t_ns, -change));
    let (mut open, mut heals): (isize, Vec<(u64, u64)>) = (0, Vec::new());
    for (t_ns, change) in edges {
        open += change;
        if change < 0 && open == 0 {
            heals.push((t_ns, u64::MAX));
        } else if let Some((_, until)) = heals.last_mut().filter(|(_, until)| change >= 0 && *until == u64::MAX) {
            *until = t_ns;
        }
    }
    heals
}

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let scene = Scene::of(evidence);
    let mut judged = Vec::new();
    for (name, part) in PARTS {
        let before = judge.judged;
        part(&scene, judge);
        let count = judge.judged - before;
        if count > 0 {
            judge.part(name);
            judged.push(format!("{name} {count}"));
        }
    }
    judge.remark(judged.join(", "));
}

type Part = fn(&Scene<'_>, &mut Judge<'_>);

const PARTS: [(&str, Part); 8] = [
    ("L1", leader),
    ("L2", settled::terminal),
    ("L3", settled::alike),
    ("L4", majority),
    ("L5", queue::check),
    ("L6", one_way),
    ("L7", minority::check),
    ("L8", readers::check),
];

fn leader(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    for &(healed, until) in scene.heals.iter().filter(|(healed, until)| until - healed >= LEADER) {
        if scene.members.is_empty() || scene.end_ns < healed + LEADER {
            judge.unknown(format!("L1: nobody looked for 3 s after faults were healed at {healed}"));
            continue;
        }
        judge.judged(1);
        let mut says: HashMap<u64, (u64, u64)> = HashMap::new();
        let agreed = scene.polls_within(healed, healed + LEADER).any(|Polled { node, poll, .. }| {
            match poll.leader {
                Some(leader) => says.insert(*node, (poll.term, leader)),
                None => says.remove(node),
            };
            let told = says.get(node);
            let agree = says.values().filter(|other| Some(*other) == told && told.is_some()).count();
            agree * 2 > scene.members.len()
        });
        if !agreed {
            let until = if until == u64::MAX { "nothing happened since".to_owned() } else { format!("until {until}") };
            judge.invalid(format!("L1: 3 s after faults were healed at {healed} no majority names a leader ({until})"));
        }
    }
}

/// Acknowledged jobs that are meant to end, with when they were acknowledged.
fn runnable<'a>(evidence: &'a Evidence) -> impl Iterator<Item = (Op<'a>, &'a Submit, u64)> {
    evidence.ops().filter_map(|op| match (op.request, op.reply()) {
        (Request::Submit(submit), Some(Reply::Submit(done))) if submit.run_ms.is_some() && done.job == op.key => {
            Some((op, submit, op.to_ns?))
        }
        _ => None,
    })
}

fn majority(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    let dead = scene.faults.iter().filter(|stretch| stretch.fault.permanent && !stretch.fault.nodes.is_empty());
    let sights = sights::sights(scene.evidence);
    dead.for_each(|stretch| goes_on_without(scene, &sights, stretch, judge));
}

fn goes_on_without(scene: &Scene<'_>, sights: &Sights<'_>, dead: &Stretch<'_>, judge: &mut Judge<'_>) {
    let line = judge.line(dead.at);
    let mut any = false;
    for (op, _, acknowledged) in runnable(scene.evidence).filter(|(op, ..)| op.from_ns > dead.from_ns) {
        // One that ends has no other fault beside it; one that does not, has those before it.
        let healed = scene.healed().filter(|_| dead.to_ns.is_none()).unwrap_or(0);
        let by = acknowledged.max(healed) + SETTLED;
        if dead.to_ns.is_some_and(|to| to < by) {
            continue;
        }
        let mut of_job = sights.get(op.key).into_iter().flatten();
        let placed = of_job.find(|sight| sight.view.state != JobState::Pending);
        if placed.is_none() && scene.end_ns < by {
            continue;
        }
        any = true;
        judge.judged(1);
        if placed.is_none_or(|sight| scene.evidence.record(sight.at).t_ns > by) {
            let text = format!("job {} was not scheduled within 10 s", op.key);
            judge.invalid(format!("L4: {line}, {}: with a minority dead, {text}", judge.line(op.invoked)));
        }
    }
    if !any {
        judge.unknown(format!("L4: {line}: no job was submitted after a minority had died"));
    }
}

fn one_way(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    let leaders = timeline::leaders(scene.evidence);
    for stretch in scene.faults.iter().filter(|stretch| stretch.fault.effect == Effect::OneWay) {
        judge.judged(1);
        let until = stretch.to_ns.unwrap_or(u64::MAX).min(stretch.from_ns + ONE_WAY);
        let changes = leaders.iter().filter(|(t_ns, ..)| stretch.from_ns < *t_ns && *t_ns <= until).count();
        if changes > 2 {
            let line = judge.line(stretch.at);
            judge.invalid(format!("L6: {line}: {changes} changes of leader while a node was cut off one way"));
        }
    }
}
