//! S16: every injected damage is repaired, or the node quarantines itself or exits; it is never silent.
//!
//! What the driver says is checked against what else was seen: an exit has a code other than zero and an error code, a
//! quarantined node serves nothing until the run says that it is among those that serve again, and a repaired node was
//! seen, before it was damaged again, with a state that another node has at the same index. In a run somebody must have got
//! the newest state from it before it was known as whom it serves: whether that was right, others judge (S1, S7).

use std::collections::HashMap;

use super::{Judge, sights, timeline};
use crate::{
    history::{At, Damage, DamageClass, DamageEnd, Evidence, Note},
    nemesis::{self, Class},
};

/// See the module.
pub(super) fn check(evidence: &Evidence, judge: &mut Judge<'_>) {
    let seen = Seen::of(evidence);
    let mut open: HashMap<&str, Injected<'_>> = HashMap::new();
    let mut counts = [0_usize; 4];
    for (at, note) in evidence.notes() {
        let record = evidence.record(at);
        match note {
            Note::Damage(damage) => {
                judge.judged(1);
                let node = record.node.unwrap_or(0);
                open.insert(&record.key, Injected { at, t_ns: record.t_ns, node, damage });
            }
            Note::DamageEnd(end) => match open.remove(record.key.as_str()) {
                Some(injected) => {
                    counts[end.class as usize] += 1;
                    injected.judge(judge, &seen, at, record.t_ns, end);
                }
                None => judge.unknown(format!("{}: the end of a damage that nobody did", judge.line(at))),
            },
            _ => {}
        }
    }
    let mut open: Vec<_> = open.into_values().collect();
    open.sort_by_key(|injected| injected.at);
    for injected in open {
        judge.invalid(format!("{}: nobody knows what became of {}", judge.line(injected.at), injected.what()));
    }
    all_done(evidence, judge);
    let [repaired, quarantined, exited, silent] = counts;
    if counts != [0; 4] {
        judge.remark(format!("{repaired} repaired, {quarantined} quarantined, {exited} exited, {silent} silent"));
    }
}

/// A fault that damages files and finds none to damage proves nothing.
fn all_done(evidence: &Evidence, judge: &mut Judge<'_>) {
    let damages = |name: &str| nemesis::kinds().any(|kind| kind.class == Class::Damage && kind.name == name);
    let faults = timeline::faults(evidence).0;
    let faults = faults.iter().filter(|stretch| !stretch.missed && damages(&stretch.fault.kind)).count();
    let done = evidence.notes().filter(|(_, note)| matches!(note, Note::Damage(_))).count();
    if done < faults {
        judge.unknown(format!("{faults} faults were to damage files, and {done} did"));
    }
}

/// A damage that was done.
struct Injected<'a> {
    at: At,
    t_ns: u64,
    node: u64,
    damage: &'a Damage,
}

impl Injected<'_> {
    fn what(&self) -> String {
        let Damage { file, how, offset } = self.damage;
        format!("{how} of {file} at {offset} on node {}", self.node)
    }

    fn judge(&self, judge: &mut Judge<'_>, seen: &Seen, at: At, t_ns: u64, end: &DamageEnd) {
        let (lines, what) = (format!("{}, {}", judge.line(self.at), judge.line(at)), self.what());
        let wrong = match end.class {
            DamageClass::Silent => "went unnoticed".to_owned(),
            DamageClass::Exited if matches!(end.exit_code, None | Some(0)) => {
                "had it end as if all were well".to_owned()
            }
            DamageClass::Exited if !end.code.starts_with("HODEI-") => "had it end without an error code".to_owned(),
            DamageClass::Quarantined => match seen.served(self.node, self.t_ns, t_ns) {
                Some(served) => format!("quarantined it, and {}: it served", judge.line(served)),
                None => return self.met(judge, seen, &lines, t_ns),
            },
            DamageClass::Repaired if !seen.agreed(self.node, self.t_ns) => {
                let text = format!("{what} was repaired, and nobody compared the node with another one");
                return judge.unknown(format!("{lines}: {text}"));
            }
            DamageClass::Repaired => return self.met(judge, seen, &lines, t_ns),
            DamageClass::Exited => return,
        };
        judge.invalid(format!("{lines}: {what} {wrong}"));
    }

    /// What a node serves that nobody asked is not known.
    fn met(&self, judge: &mut Judge<'_>, seen: &Seen, lines: &str, told_ns: u64) {
        if seen.is_run && !seen.met(self.t_ns, told_ns) {
            judge.unknown(format!("{lines}: nobody asked it anything after {} before it was known again", self.what()));
        }
    }
}

/// What was seen of each node, in the order of time.
#[derive(Default)]
struct Seen {
    /// Whether the history is that of a whole run.
    is_run: bool,
    /// When it had a state that another node had, too.
    agreed: HashMap<u64, Vec<u64>>,
    /// When it was asked for the newest state and answered.
    served: HashMap<u64, Vec<(u64, At)>>,
    /// When somebody asked a node that may have had another id by then, and got an answer.
    met: Vec<u64>,
    /// When it was damaged.
    damaged: HashMap<u64, Vec<u64>>,
    /// When it was said to be among those that serve.
    member: HashMap<u64, Vec<u64>>,
}

impl Seen {
    fn of(evidence: &Evidence) -> Self {
        let is_run = evidence.run().promises.iter().any(|promise| promise == "S16");
        let mut seen = Self { is_run, ..Self::default() };
        for op in evidence.ops().filter(|op| op.reply().is_some() && sights::is_linearizable(op.request)) {
            let at = op.returned.unwrap_or(op.invoked);
            match op.node {
                Some(node) => seen.served.entry(node).or_default().push((op.from_ns, at)),
                None => seen.met.push(op.from_ns),
            }
        }
        for (at, note) in evidence.notes() {
            let record = evidence.record(at);
            match note {
                Note::Damage(_) => seen.damaged.entry(record.node.unwrap_or(0)).or_default().push(record.t_ns),
                Note::Cluster(members) => {
                    for &node in &members.nodes {
                        seen.member.entry(node).or_default().push(record.t_ns);
                    }
                }
                _ => {}
            }
        }
        // Two nodes at most are remembered of those that had a state: enough to find another one.
        let mut having: HashMap<(u64, u32, &str), Vec<u64>> = HashMap::new();
        let polls = || timeline::polls(evidence).filter(|polled| !polled.poll.hash.is_empty());
        for polled in polls() {
            let nodes = having.entry((polled.poll.applied, polled.poll.feature_level, &polled.poll.hash)).or_default();
            if nodes.len() < 2 && !nodes.contains(&polled.node) {
                nodes.push(polled.node);
            }
        }
        for polled in polls() {
            if having[&(polled.poll.applied, polled.poll.feature_level, polled.poll.hash.as_str())].len() > 1 {
                seen.agreed.entry(polled.node).or_default().push(polled.t_ns);
            }
        }
        seen
    }

    /// Whether the node was seen to agree with another one after this damage and before the next.
    fn agreed(&self, node: u64, from_ns: u64) -> bool {
        let next = first_after(self.damaged.get(&node), from_ns).unwrap_or(u64::MAX);
        first_after(self.agreed.get(&node), from_ns).is_some_and(|agreed| agreed < next)
    }

    /// Whether the node that was damaged then answered somebody before it was known as whom. No other is damaged meanwhile.
    fn met(&self, from_ns: u64, told_ns: u64) -> bool {
        first_after(Some(&self.met), from_ns).is_some_and(|met| met < told_ns)
    }

    /// Where the node answered after this damage, until it was said to serve again after the verdict.
    fn served(&self, node: u64, from_ns: u64, told_ns: u64) -> Option<At> {
        let back = first_after(self.member.get(&node), told_ns).unwrap_or(u64::MAX);
        let served = self.served.get(&node)?;
        let next = served.partition_point(|(t_ns, _)| *t_ns <= from_ns);
        served.get(next).filter(|(t_ns, _)| *t_ns < back).map(|(_, at)| *at)
    }
}

fn first_after(times: Option<&Vec<u64>>, t_ns: u64) -> Option<u64> {
    let times = times?;
    times.get(times.partition_point(|time| *time <= t_ns)).copied()
}
