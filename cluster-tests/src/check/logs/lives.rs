//! When each attempt lived, and what may have taken lines of its log away.
//!
//! An attempt lives from when it is scheduled to when it is told to have ended; its log is safe some time after that, within
//! which its agent may still have to deliver what its gateway could not keep. A fault of its worker within these bounds may
//! take lines away, and so may a node's leaving those that it had taken before. Nothing else does.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    super::{
        events::{EventLog, LAG_NS},
        timeline::{self, Stretch},
    },
    Attempt,
};
use crate::history::{At, Event, Evidence, MarkKind, Note, Record};

/// How long after an attempt's end its agent may still have lines that nobody else has: the product waits for it so long.
const SAFE_NS: u64 = 60_000_000_000;
/// How long after a fault nodes may take to serve each other again.
const RECOVERED_NS: u64 = 10_000_000_000;

/// What is known of an attempt.
struct Life<'a> {
    /// Empty where nobody says it.
    worker: &'a str,
    from_ns: u64,
    /// Absent: nobody has seen it end.
    to_ns: Option<u64>,
}

/// A node that was a member and is none in the end.
struct Gone {
    /// Since something was done to it.
    from_ns: u64,
    /// It is certainly no member any more.
    left_ns: u64,
}

/// See the module.
pub(super) struct Lives<'a> {
    lives: HashMap<Attempt<'a>, Life<'a>>,
    faults: Vec<Stretch<'a>>,
    gone: BTreeMap<u64, Gone>,
    told: Told<'a>,
}

/// What the events say, where they say everything from the beginning.
#[derive(Default)]
struct Told<'a> {
    /// What happened up to then is told.
    by_ns: Option<u64>,
    scheduled: BTreeSet<Attempt<'a>>,
    started: HashMap<Attempt<'a>, At>,
    /// Attempts whose leases ran out, or that a later session of their workers found dead: nobody knows what they printed.
    lost: BTreeSet<Attempt<'a>>,
}

impl<'a> Lives<'a> {
    pub(super) fn of(evidence: &'a Evidence) -> Self {
        let log = EventLog::of(evidence);
        let faults = timeline::faults(evidence).0;
        let gone = gone(evidence, &faults);
        Self { lives: lives(evidence, &log), gone, faults, told: Told::of(evidence, &log) }
    }

    /// Members that are none in the end, of which one may still have been asked then.
    pub(super) fn is_gone(&self, node: u64) -> bool {
        self.gone.contains_key(&node)
    }

    /// Those of them that may have been none by then.
    pub(super) fn may_have_left(&self, node: u64, by_ns: u64) -> bool {
        self.gone.get(&node).is_some_and(|gone| gone.from_ns <= by_ns)
    }

    /// Whether the watchdog of an attempt may have been killed by then, and its agent at the same time: the watchdog keeps what
    /// the agent has not yet taken.
    pub(super) fn may_end_unheard(&self, attempt: Attempt<'_>, by_ns: u64) -> bool {
        let Some(life) = self.lives.get(&attempt).filter(|life| !life.worker.is_empty()) else { return true };
        self.faults.iter().any(|stretch| {
            let of_worker = stretch.fault.workers.iter().any(|worker| worker == life.worker);
            let kills = KILLS_WATCHDOGS.iter().any(|kind| stretch.fault.kind.starts_with(kind));
            of_worker && kills && meets(stretch, life.from_ns, by_ns)
        })
    }

    /// Whether lines of an attempt may be gone by then. Nobody knows of one of which nobody says where it ran.
    pub(super) fn may_lack(&self, attempt: Attempt<'_>, by_ns: u64) -> bool {
        let Some(life) = self.lives.get(&attempt).filter(|life| !life.worker.is_empty()) else { return true };
        let safe_ns = life.to_ns.map_or(u64::MAX, |to| to.saturating_add(SAFE_NS)).min(by_ns);
        let harms = |stretch: &Stretch<'_>| {
            let of_worker = stretch.fault.workers.iter().any(|worker| worker == life.worker);
            of_worker && meets(stretch, life.from_ns, safe_ns)
        };
        self.faults.iter().any(harms) || self.gone.values().any(|gone| gone.may_have(Some(life), by_ns))
    }

    /// Whether a node may have been unable to say what it holds of an attempt to another one, which was asked for it, at
    /// any time of these.
    pub(super) fn may_miss(
        &self,
        attempt: Attempt<'_>,
        missing: u64,
        asked: Option<u64>,
        (from, to): (u64, u64),
    ) -> bool {
        let names = |stretch: &Stretch<'_>| {
            let named = || stretch.fault.nodes.iter().chain(&stretch.fault.minority);
            named().any(|node| *node == missing || Some(*node) == asked)
        };
        let from = from.saturating_sub(RECOVERED_NS);
        let gone = self.gone.get(&missing).is_some_and(|gone| gone.may_have(self.lives.get(&attempt), to));
        gone || self.faults.iter().any(|stretch| names(stretch) && meets(stretch, from, to))
    }

    /// Whether a node may have lost what it had of an attempt and had not yet made durable.
    pub(super) fn may_forget(&self, attempt: Attempt<'_>, by_ns: u64) -> bool {
        let life = self.lives.get(&attempt);
        let from = life.map_or(0, |life| life.from_ns);
        let forgets = |stretch: &Stretch<'_>| FORGETS.iter().any(|kind| stretch.fault.kind.starts_with(kind));
        self.faults.iter().any(|stretch| forgets(stretch) && meets(stretch, from, by_ns))
            || self.gone.values().any(|gone| gone.may_have(life, by_ns))
    }

    /// Whether the events tell that there was such an attempt; nothing where they do not say everything by then.
    pub(super) fn was_scheduled(&self, attempt: Attempt<'_>, by_ns: u64) -> Option<bool> {
        self.told.by_ns.filter(|told| by_ns <= *told).map(|_| self.told.scheduled.contains(&attempt))
    }

    /// The same of its loss, which is told before its end.
    pub(super) fn was_lost(&self, attempt: Attempt<'_>, by_ns: u64) -> Option<bool> {
        let has_ended = self.lives.get(&attempt).is_some_and(|life| life.to_ns.is_some());
        let told = self.told.by_ns.filter(|told| has_ended || by_ns <= *told);
        told.map(|_| self.told.lost.contains(&attempt))
    }

    /// Where it is told that its process ran.
    pub(super) fn started(&self, attempt: Attempt<'_>) -> Option<At> {
        self.told.started.get(&attempt).copied()
    }
}

/// Faults by which a node loses what it has written and not yet synced: its power is cut, or its disk does not take it.
const FORGETS: [&str; 4] = ["power", "sync_fails", "full", "read_only"];

/// Faults in which watchdogs die, or guardians, after which watchdogs end.
const KILLS_WATCHDOGS: [&str; 3] = ["agent_killed_with_watchdogs", "watchdog::", "guardian::"];

/// Whether a fault is on at any time of these.
fn meets(stretch: &Stretch<'_>, from_ns: u64, to_ns: u64) -> bool {
    stretch.from_ns <= to_ns && stretch.to_ns.is_none_or(|end| from_ns <= end)
}

impl Gone {
    /// It may have taken with it what it held of such an attempt.
    fn may_have(&self, life: Option<&Life<'_>>, by_ns: u64) -> bool {
        self.from_ns <= by_ns && life.is_none_or(|life| life.from_ns <= self.left_ns)
    }
}

/// Since when each node that is no member in the end was about to be none.
fn gone(evidence: &Evidence, faults: &[Stretch<'_>]) -> BTreeMap<u64, Gone> {
    let members: BTreeSet<u64> = timeline::members(evidence).unwrap_or_default().iter().copied().collect();
    let mut last: BTreeMap<u64, Option<u64>> = BTreeMap::new();
    for (at, note) in evidence.notes() {
        let Note::Cluster(now) = note else { continue };
        for node in now.nodes.iter().filter(|node| !members.contains(node)) {
            last.insert(*node, None);
        }
        for (_, left) in last.iter_mut().filter(|(node, left)| left.is_none() && !now.nodes.contains(node)) {
            *left = Some(evidence.record(at).t_ns);
        }
    }
    let left = last.into_iter().filter_map(|(node, left)| Some((node, left?)));
    // It is a member no more shortly after what drove it out is over.
    let gone = left.map(|(node, left_ns)| {
        let own = faults.iter().filter(|stretch| stretch.fault.nodes.contains(&node));
        let from = own.filter(|stretch| meets(stretch, left_ns.saturating_sub(RECOVERED_NS), left_ns));
        (node, Gone { from_ns: from.map(|stretch| stretch.from_ns).min().unwrap_or(left_ns), left_ns })
    });
    gone.collect()
}

/// Every attempt that somebody has seen, or was told of.
fn lives<'a>(evidence: &'a Evidence, log: &EventLog<'a>) -> HashMap<Attempt<'a>, Life<'a>> {
    let mut lives: HashMap<Attempt<'a>, Life<'a>> = HashMap::new();
    let mut begins = |attempt: Attempt<'a>, t_ns: u64, worker: &'a str| {
        let life = lives.entry(attempt).or_insert(Life { worker, from_ns: t_ns, to_ns: None });
        life.from_ns = life.from_ns.min(t_ns);
        if life.worker.is_empty() {
            life.worker = worker;
        }
    };
    for told in log.events.values().filter(|told| told.event.kind == "job_scheduled") {
        begins((told.job, told.event.attempt), evidence.record(told.at).t_ns, &told.event.worker);
    }
    let marks = || {
        evidence.notes().filter_map(|(at, note)| match note {
            Note::Witness(mark) => Some((evidence.record(at), mark)),
            _ => None,
        })
    };
    for (Record { key, t_ns, .. }, mark) in marks().filter(|(_, mark)| mark.mark == MarkKind::Start) {
        begins((key, mark.attempt), *t_ns, &mark.worker);
    }
    let ends = log.events.values().filter(|told| ["job_requeued", "job_ended"].contains(&told.event.kind.as_str()));
    for told in ends {
        if let Some(life) = lives.get_mut(&(told.job, told.event.attempt)) {
            life.to_ns = Some(evidence.record(told.at).t_ns);
        }
    }
    // Whose end was told may live on, if it was frozen.
    for (Record { key, t_ns, .. }, mark) in marks() {
        if let Some(life) = lives.get_mut(&(key.as_str(), mark.attempt)) {
            life.to_ns = life.to_ns.map(|to| to.max(*t_ns));
        }
    }
    lives
}

impl<'a> Told<'a> {
    fn of(evidence: &Evidence, log: &EventLog<'a>) -> Self {
        let [((0, 0), _)] = log.covered()[..] else { return Self::default() };
        let over = evidence.records().next_back().map_or(0, |(_, record)| record.t_ns);
        let registered: BTreeSet<(&str, u64)> =
            log.events.values().map(|told| told.event).filter_map(registered).collect();
        let mut all = Self { by_ns: over.checked_sub(LAG_NS), ..Self::default() };
        for told in log.events.values() {
            let attempt = (told.job, told.event.attempt);
            match told.event.kind.as_str() {
                "job_scheduled" => drop(all.scheduled.insert(attempt)),
                "job_started" => drop(all.started.insert(attempt, told.at)),
                "attempt_lost" => drop(all.lost.insert(attempt)),
                "job_requeued" | "job_ended" if registered.contains(&(&told.event.worker, told.event.at.0)) => {
                    all.lost.insert(attempt);
                }
                _ => {}
            }
        }
        all
    }
}

fn registered(event: &Event) -> Option<(&str, u64)> {
    (event.kind == "worker_registered").then_some((event.worker.as_str(), event.at.0))
}
