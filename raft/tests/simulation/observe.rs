//! Looks at the running nodes after a step, reading of their logs only what is new.

use std::{collections::BTreeMap, ops::RangeInclusive};

use futures::FutureExt;
use hodei_raft::{
    Leadership, Position,
    log_store::{LogStore, entry},
    seam::sim::SimFs,
    types::{Entry, LogId},
    wal::{EntryId, Vote},
};
use openraft::{RaftLogReader, storage::RaftLogStorage};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    check::{Change, NodeId, Seen},
    node::{Host, Up},
    world::World,
};

/// What was seen of each node before.
#[derive(Default)]
pub struct Observer {
    /// Does not look into entries.
    blind: bool,
    logs: BTreeMap<NodeId, Shape>,
    before: BTreeMap<NodeId, Seen>,
    /// Snapshots that came from another node.
    pub installs: u64,
    /// Logs that were purged behind a snapshot.
    pub purges: u64,
    /// Entries that were taken back.
    pub truncations: u64,
}

/// A log, as runs of one term each.
#[derive(Clone, Debug, Default)]
struct Shape {
    life: u64,
    purged: Option<EntryId>,
    last: Option<EntryId>,
    /// The last entry of each term.
    ends: Vec<EntryId>,
}

impl Observer {
    pub fn new(blind: bool) -> Self {
        Self { blind, ..Self::default() }
    }

    /// Shows the checker every node that runs.
    pub fn step(&mut self, world: &mut World) -> Result<(), String> {
        let up: Vec<NodeId> = world.up();
        for id in up {
            let seen = self.see(&world.hosts[&id]);
            let before = self.before.get(&id);
            if before.is_some_and(|before| is_same(before, &seen)) {
                continue;
            }
            world.trace.line(|| line(&seen));
            world.checker.observe(&seen).map_err(|violation| violation.to_string())?;
            self.before.insert(id, Seen { change: None, ..seen });
        }
        Ok(())
    }

    fn see(&mut self, host: &Host) -> Seen {
        let Up { handle, log } = host.up.as_ref().expect("only nodes that run are looked at");
        let mut log = log.clone();
        let (purged, change) = self.read(host.id, host.life, &mut log);
        let vote = at_once(log.read_vote()).map(|vote| Vote {
            term: vote.leader_id.term,
            node: vote.leader_id.voted_for,
            committed: vote.committed,
        });
        let leading = match *handle.leadership().borrow() {
            Leadership::Leading { term } | Leadership::Preparing { term } => Some(term),
            Leadership::Following { .. } => None,
        };
        let status = handle.status();
        let id = |position: Position| {
            (position != Position::default()).then_some(EntryId { term: position.term, index: position.index })
        };
        Seen {
            node: host.id,
            life: host.life,
            vote,
            leads: leading.is_some() && leading == vote.map(|vote| vote.term),
            committed: id(status.committed),
            applied: id(status.applied),
            hash: status.hash,
            purged,
            change,
        }
    }

    fn read(&mut self, node: NodeId, life: u64, log: &mut LogStore<SimFs>) -> (Option<EntryId>, Option<Change>) {
        let state = at_once(log.get_log_state());
        let (purged, last) = (state.last_purged_log_id.map(|id| entry::id(&id)), state.last_log_id);
        let begin = purged.map_or(0, |purged| purged.index + 1);
        let last = last.map(|id| entry::id(&id)).filter(|last| last.index >= begin);
        let known = self.logs.entry(node).or_default();
        if known.life != life {
            *known = Shape { life, ..Shape::default() };
        }
        let ends = last.map_or_else(Vec::new, |last| {
            let ends = at_once(log.get_key_log_ids(range(EntryId { term: 0, index: begin }, last)));
            ends.iter().map(entry::id).collect()
        });
        let now = Shape { life, purged, last, ends };
        let jumped = purged.is_some_and(|purged| known.last.max(known.purged).is_none_or(|last| last < purged));
        self.installs += u64::from(known.purged < purged && jumped && known.life == life);
        self.purges += u64::from(known.purged < purged && !jumped);
        let from = now.differs_from(known);
        let end = known.last.map_or(0, |last| last.index + 1);
        self.truncations += u64::from(from < end && !jumped);
        let changed = from < end || last.is_some_and(|last| last.index >= from);
        *known = now;
        let change = changed.then(|| {
            let entries = last.filter(|last| last.index >= from).map_or_else(Vec::new, |last| {
                let entries: Vec<Entry> = at_once(log.try_get_log_entries(from..=last.index));
                assert_eq!(entries.len() as u64, last.index + 1 - from, "node {node} lacks entries from {from} on");
                let digest = |entry| if self.blind { 0 } else { xxh3_64(&entry::encode(entry).to_bytes()) };
                entries.iter().map(|entry| (entry::id(&entry.log_id), digest(entry))).collect()
            });
            Change { from, entries }
        });
        (purged, change)
    }
}

impl Shape {
    /// The first index that is not the same here as it was.
    fn differs_from(&self, known: &Self) -> u64 {
        let begin = self.purged.map_or(0, |purged| purged.index + 1);
        let (Some(last), Some(was)) = (self.last, known.last) else { return begin };
        let both = last.index.min(was.index);
        let mut same = begin;
        let mut ends: Vec<u64> = self.ends.iter().chain(&known.ends).map(|end| end.index.min(both)).collect();
        ends.sort_unstable();
        for end in ends.into_iter().filter(|end| *end >= begin) {
            if self.term(end) != known.term(end) {
                return same;
            }
            same = end + 1;
        }
        same
    }

    fn term(&self, index: u64) -> Option<u64> {
        self.ends.iter().find(|end| end.index >= index).map(|end| end.term)
    }
}

fn range(from: EntryId, to: EntryId) -> RangeInclusive<LogId> {
    entry::log_id(from)..=entry::log_id(to)
}

/// What reads from the simulated disk or from memory never waits.
fn at_once<T>(read: impl Future<Output = std::io::Result<T>>) -> T {
    read.now_or_never().expect("it does not wait").expect("the simulated disk can be read")
}

fn is_same(before: &Seen, now: &Seen) -> bool {
    now.change.is_none()
        && (before.life, before.vote, before.leads, before.committed, before.applied, before.hash, before.purged)
            == (now.life, now.vote, now.leads, now.committed, now.applied, now.hash, now.purged)
}

fn line(seen: &Seen) -> String {
    let id = |id: Option<EntryId>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let vote = seen.vote.map_or_else(String::new, |vote| {
        format!("{}{}{}", vote.term, if vote.committed { "!" } else { "?" }, vote.node)
    });
    let change = seen.change.as_ref().map_or_else(String::new, |change| {
        let (count, digest) = change.entries.iter().fold((0, 0), |(count, sum), (_, digest)| (count + 1, digest ^ sum));
        format!(" from {}: {count} entries {digest:016x}", change.from)
    });
    format!(
        "n{}.{} vote {vote}{} committed {} applied {} {:08x} purged {}{change}",
        seen.node,
        seen.life,
        if seen.leads { " leads" } else { "" },
        id(seen.committed),
        id(seen.applied),
        seen.hash as u32,
        id(seen.purged),
    )
}
