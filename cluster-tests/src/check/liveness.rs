//! What must happen, and by when, once faults are healed (L1 to L8).
//!
//! Faults are healed when the last open one ends; one that is permanent need not. What has too little time before the next fault is
//! not judged; what nobody looked at in time is unknown.
//!
//! | | bound | from |
//! | --- | --- | --- |
//! | L1 | a majority names one leader ≤ 3 s | each time that faults are healed |
//! | L2 | a runnable job is terminal ≤ 10 s + its run time | the last time, or its acknowledgement |
//! | L3 | all nodes have one state ≤ 10 s, and a fresh write and read passes on each | the last time |
//! | L4 | with a minority dead for good, new jobs are scheduled ≤ 10 s | their acknowledgement |
//! | L5 | with a free slot and a job that needs no more, something is scheduled ≤ 1 s | both are there, and no fault is |
//! | L6 | ≤ 2 changes of leader in 30 s | one node is cut off one way |
//! | L7 | a node without a majority answers with a clear error inside the deadline (what is said on a stream has none) | asked while it is cut off |
//! | L8 | a reader of a log that goes on gets more of it ≤ 5 s | a new leader is known |

mod queue;
mod readers;

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    Judge,
    sights::{self, Sights},
    timeline::{self, Polled, Stretch},
};
use crate::history::{Body, Effect, Evidence, JobState, Note, Op, Outcome, Reply, Request, Submit};

pub(super) const SECOND: u64 = 1_000_000_000;
/// L1.
const LEADER: u64 = 3 * SECOND;
/// L2, L3, L4.
const SETTLED: u64 = 10 * SECOND;
/// L6.
const ONE_WAY: u64 = 30 * SECOND;
/// What a client may take beyond its deadline to see that it is over.
const SLACK: u64 = SECOND / 2;
/// What was unplugged is found out by: TCP repeats itself ever more rarely.
const FINDS_OUT: u64 = 10 * SECOND;

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
    ("L2", terminal),
    ("L3", alike),
    ("L4", majority),
    ("L5", queue::check),
    ("L6", one_way),
    ("L7", minority),
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

fn terminal(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    let healed = scene.healed();
    if healed.is_none() && !scene.faults.is_empty() {
        return;
    }
    let sights = sights::sights(scene.evidence);
    left(scene, &sights, judge);
    for (op, submit, acknowledged) in runnable(scene.evidence) {
        let from = acknowledged.max(healed.unwrap_or(0));
        let deadline = from + SETTLED + submit.run_ms.unwrap_or(0) * 1_000_000;
        let line = judge.line(op.invoked);
        let ended = sights.get(op.key).into_iter().flatten().find(|sight| sight.view.state.is_terminal());
        match ended.map(|sight| (sight, scene.evidence.record(sight.at).t_ns)) {
            Some((_, t_ns)) if t_ns <= deadline => judge.judged(1),
            Some((sight, t_ns)) => {
                judge.judged(1);
                let late = (t_ns - deadline) / 1_000_000;
                let text = format!("job {} ended {late} ms too late", op.key);
                judge.invalid(format!("L2: {line}, {}: {text}", judge.line(sight.at)));
            }
            None if scene.end_ns < deadline => {
                judge.unknown(format!("L2: {line}: nobody looked long enough for job {} to end", op.key));
            }
            None => {
                judge.judged(1);
                judge.invalid(format!("L2: {line}: job {} never ended", op.key));
            }
        }
    }
}

/// When all has come to rest no job is left, whatever was heard of its submission, and whoever was to run it.
fn left(scene: &Scene<'_>, sights: &Sights<'_>, judge: &mut Judge<'_>) {
    let settled = scene.evidence.notes().find(|(_, note)| matches!(note, Note::Inventory(_)));
    let Some((settled, _)) = settled else { return };
    for (job, sights) in sights {
        judge.judged(1);
        if !sights.iter().any(|sight| sight.view.state.is_terminal())
            && let Some(last) = sights.last()
        {
            let lines = (judge.line(last.at), judge.line(settled));
            judge.invalid(format!("L2: {}, {}: job {job} is {} when all has settled", lines.0, lines.1, last.view));
        }
    }
}

fn alike(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    let Some(healed) = scene.healed() else { return };
    let by = healed + SETTLED;
    judge.judged(1);
    let mut having: BTreeMap<(u64, u32, &str), HashSet<u64>> = BTreeMap::new();
    let mut polled = false;
    for Polled { node, poll, .. } in scene.polls_within(healed, by).filter(|polled| !polled.poll.hash.is_empty()) {
        polled = true;
        having.entry((poll.applied, poll.feature_level, &poll.hash)).or_default().insert(*node);
    }
    if !polled {
        judge.unknown(format!("L3: nobody compared states for 10 s after faults were healed at {healed}"));
    } else if !having.values().any(|nodes| scene.members.iter().all(|node| nodes.contains(node))) {
        judge.invalid(format!("L3: 10 s after faults were healed at {healed} the nodes never had one state"));
    }
    for &node in scene.members {
        let here = |op: &Op<'_>| op.node == Some(node) && healed <= op.from_ns && op.from_ns <= by;
        let in_time = |op: &Op<'_>| op.reply().is_some() && op.to_ns.is_some_and(|to| to <= by);
        let is_write = |op: &Op<'_>| matches!(op.request, Request::Submit(_));
        let is_read = |op: &Op<'_>| matches!(op.request, Request::Get(how) | Request::List(how) if !how.stale);
        for (what, wanted) in [("write", &is_write as &dyn Fn(&Op<'_>) -> bool), ("read", &is_read)] {
            let asked: Vec<_> = scene.evidence.ops().filter(|op| here(op) && wanted(op)).collect();
            match asked.last() {
                None => judge.unknown(format!("L3: nobody tried a fresh {what} on node {node} after {healed}")),
                Some(last) if !asked.iter().any(in_time) => {
                    let line = judge.line(last.invoked);
                    judge.invalid(format!("L3: {line}: no fresh {what} passes on node {node} 10 s after {healed}"));
                }
                Some(_) => {}
            }
        }
    }
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

fn minority(scene: &Scene<'_>, judge: &mut Judge<'_>) {
    let within = scene.evidence.run().deadline_ms * 1_000_000;
    let cut_off = scene.faults.iter().filter(|stretch| !stretch.fault.minority.is_empty());
    for stretch in cut_off {
        let to_ns = stretch.to_ns.unwrap_or(u64::MAX);
        let mut any = false;
        let asked = |op: &Op<'_>| {
            let there = op.node.is_some_and(|node| stretch.fault.minority.contains(&node));
            let has_deadline = !matches!(op.request, Request::Result(_));
            there
                && has_deadline
                && !is_starting(scene, op)
                && stretch.from_ns < op.from_ns
                && op.from_ns.saturating_add(within + SLACK) < to_ns
        };
        for op in scene.evidence.ops().filter(asked) {
            any = true;
            judge.judged(1);
            let line = judge.line(op.returned.unwrap_or(op.invoked));
            let took = op.to_ns.map(|to| to - op.from_ns);
            if took.is_none_or(|took| took > within + SLACK) {
                judge.invalid(format!(
                    "L7: {line}: {} on a node without a majority was not answered in time",
                    op.request.name()
                ));
            } else if !is_clear(scene, &op) && !was_unplugged(scene, &op) {
                judge.invalid(format!(
                    "L7: {line}: {} on a node without a majority got no clear error",
                    op.request.name()
                ));
            }
        }
        if !any && to_ns.saturating_sub(stretch.from_ns) > 2 * (within + SLACK) {
            judge.unknown(format!("L7: {}: nobody asked a node without a majority", judge.line(stretch.at)));
        }
    }
}

/// Whether the node that was asked had not said anything yet since it was started: nobody listens there.
fn is_starting(scene: &Scene<'_>, op: &Op<'_>) -> bool {
    let of_node = || scene.polls.iter().filter(|polled| Some(polled.node) == op.node);
    let next = of_node().find(|polled| polled.t_ns >= op.from_ns);
    next.is_some_and(|next| !of_node().any(|other| other.t_ns < op.from_ns && other.poll.start == next.poll.start))
}

/// Whether the connection over which it was asked may have been broken before, so that the node never heard of it.
fn was_unplugged(scene: &Scene<'_>, op: &Op<'_>) -> bool {
    let breaks = |stretch: &&Stretch<'_>| {
        stretch.fault.effect == Effect::Unplugged && op.node.is_some_and(|node| stretch.fault.nodes.contains(&node))
    };
    let found_out = |stretch: Stretch<'_>| stretch.to_ns.map_or(u64::MAX, |to| to.saturating_add(FINDS_OUT));
    scene.faults.iter().filter(breaks).any(|stretch| stretch.from_ns < op.from_ns && op.from_ns < found_out(*stretch))
}

/// An error of the product's own, which are in lower case; what transports say by themselves is not clear. An answer that
/// is no error is for others to judge.
fn is_clear(scene: &Scene<'_>, op: &Op<'_>) -> bool {
    if matches!(op.outcome, Outcome::Ok(_)) {
        return true;
    }
    let answer = op.returned.map(|at| &scene.evidence.record(at).body);
    let Some(Body::Fail(failure) | Body::Info(failure)) = answer else { return false };
    !failure.message.is_empty() && !failure.code.is_empty() && !failure.code.contains(|c: char| c.is_ascii_uppercase())
}
