//! What is left of a replica, and a replica of one voter made of it: the way on when a majority was lost for good.
//!
//! The newest state that is whole, from `db/` or `snapshots/`, and on top of it what the log still holds without a gap,
//! whether it was committed or not: nobody is left who could tell. The new replica begins with a snapshot, far beyond
//! what the lost nodes may have written, so that no fence is ever given out twice, and with an empty log.

use std::{collections::BTreeMap, fs, io, path::Path, sync::Arc};

use bytes::Bytes;
use hodei_state::{
    State,
    command::{Command, Envelope},
    ids::{Caller, Millis, NodeId},
    outcome::Outcome,
};
use openraft::{EntryPayload, Membership, alias::StoredMembershipOf};

use super::{
    Commands, Held, Payloads, Snapshots,
    files::{self, sync_dir},
    sled_store::SledStore,
    snapshot::{self, SnapshotFile},
};
use crate::{
    config::Storage,
    error::StartError,
    handle::Position,
    log_store::entry,
    seam::{RealFs, SystemEntropy},
    types::{Entry, TypeConfig},
    wal::{self, EntryId, Record, Vote, Wal, salvage},
};

/// Log indexes that are left out: more than a majority can have written while this node knew nothing of it.
const SKIPPED: u64 = 1 << 32;

/// What can be read of a replica that does not run.
pub struct Remains {
    held: Held,
    payloads: Payloads,
    damage: Vec<String>,
    /// The newest term that it has heard of.
    term: u64,
}

impl std::fmt::Debug for Remains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remains").field("applied", &self.held.applied).field("damage", &self.damage).finish()
    }
}

impl Remains {
    /// Reads what lies under `dir`, and leaves it as it is. Blocking; the directory must not be in use.
    ///
    /// # Errors
    /// The disk refuses, or nothing is left from which a state could be made.
    pub fn read(dir: &Path, storage: &Storage) -> Result<Self, StartError> {
        let log = salvage::salvage(&RealFs, &dir.join("wal"))?;
        let mut damage = log.damage;
        let held = newest(dir, storage, &mut damage)?;
        let known = held.as_ref().and_then(|held| held.applied);
        let mut held = held.unwrap_or_default();
        let payloads = Payloads::new(dir.join("payloads"));
        for (id, body) in following(&log.stretches, known.as_ref().map(entry::id)) {
            let replayed = entry::decode(id, body).map_err(io::Error::other);
            if let Err(error) = replayed.and_then(|entry| replay(&mut held, &payloads, &entry)) {
                damage.push(error.to_string());
                break;
            }
        }
        if held.state.cluster().is_none() {
            damage.push("nothing of a cluster's state is left".to_owned());
            return Err(StartError::Unrebuildable(damage.join("; ")));
        }
        let missing = hodei_state::payload_digests(&held.state).filter(|digest| !payloads.holds(digest)).count();
        if missing > 0 {
            damage.push(format!("{missing} bodies of jobs are missing: those jobs cannot run"));
        }
        let applied = held.applied.map_or(0, |id| Position::from(id).term);
        let term = log.vote.map_or(0, |vote| vote.term).max(applied);
        Ok(Self { held, payloads, damage, term })
    }

    /// The state as it will be, but for what going on alone changes.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.held.state
    }

    /// The last entry in it.
    #[must_use]
    pub fn position(&self) -> Position {
        self.held.applied.map_or_else(Position::default, Position::from)
    }

    /// What is damaged or missing, in words for the operator.
    #[must_use]
    pub fn damage(&self) -> &[String] {
        &self.damage
    }

    /// Writes the log and the snapshot of a replica with `survivor` as its only voter below `into`, durably, and the bodies
    /// of jobs to where they belong. What was read stays as it is. Blocking.
    ///
    /// # Errors
    /// The state does not let this member go on, or the disk refuses.
    pub fn write(mut self, into: &Path, survivor: NodeId, wall: Millis) -> Result<Position, StartError> {
        let term = self.term + 1;
        let id = EntryId { term, index: self.position().index + SKIPPED };
        let last = entry::log_id(id);
        let recover = Envelope { caller: Caller::Node(survivor), command: Command::Recover { survivor } };
        match self.held.state.apply(id.index, 0, wall, &recover) {
            Outcome::Refused(refusal) => return Err(StartError::Unrebuildable(refusal.to_string())),
            _ => drop(self.held.state.take_changes()),
        }
        self.held.applied = Some(last);
        let alone = Membership::new_with_defaults(vec![[survivor].into()], []);
        self.held.membership = Arc::new(StoredMembershipOf::<TypeConfig>::new(Some(last), alone));
        self.write_snapshot(&into.join("snapshots")).map_err(StartError::io("writing the snapshot"))?;
        let vote = Vote { term, node: survivor, committed: false };
        write_log(&into.join("wal"), vec![Record::Vote(vote), Record::Purge { upto: id }])?;
        sync_dir(into).map_err(StartError::io("syncing the directory"))?;
        Ok(last.into())
    }

    fn write_snapshot(&self, dir: &Path) -> io::Result<()> {
        files::create_dir(self.payloads.dir())?;
        self.payloads.flush()?;
        let snapshots = Snapshots::open(dir)?;
        let digests = hodei_state::payload_digests(&self.held.state).filter(|digest| self.payloads.holds(digest));
        snapshot::write(&snapshots.path_of(self.held.applied), &self.held, digests.collect())?;
        sync_dir(dir)
    }
}

/// The newest whole state of those that are stored.
fn newest(dir: &Path, storage: &Storage, damage: &mut Vec<String>) -> Result<Option<Held>, StartError> {
    let stored = SledStore::read(&dir.join("db"), storage.sled_cache);
    let stored = stored.unwrap_or_else(|error| {
        damage.push(format!("the stored state is in doubt: {error}"));
        None
    });
    let snapshots = dir.join("snapshots");
    if !snapshots.is_dir() {
        return Ok(stored);
    }
    let mut found: Vec<Held> = stored.into_iter().collect();
    for entry in fs::read_dir(&snapshots).map_err(StartError::io("reading the snapshots"))? {
        let path = entry.map_err(StartError::io("reading the snapshots"))?.path();
        if path.extension().is_none_or(|extension| extension != "snap") {
            continue;
        }
        match SnapshotFile::open(&path).and_then(|(_, snapshot)| snapshot.load()) {
            Ok(held) => found.push(held),
            Err(error) => damage.push(format!("snapshot {} is damaged: {error}", path.display())),
        }
    }
    Ok(found.into_iter().max_by_key(|held| held.applied))
}

/// What the log holds after `known` without a gap, from its newest stretch that leads there.
fn following(
    stretches: &[BTreeMap<u64, (EntryId, Bytes)>],
    known: Option<EntryId>,
) -> impl Iterator<Item = (EntryId, &Bytes)> {
    let first = known.map_or(0, |known| known.index + 1);
    let leads_there =
        |entries: &&BTreeMap<u64, (EntryId, Bytes)>| match known.map(|known| (known, entries.get(&known.index))) {
            Some((known, Some((id, _)))) => *id == known,
            _ => entries.contains_key(&first),
        };
    let entries = stretches.iter().rev().find(leads_there);
    let from_there = entries.into_iter().flat_map(move |entries| entries.range(first..));
    (first..).zip(from_there).map_while(|(due, (index, (id, body)))| (due == *index).then_some((*id, body)))
}

/// Applies an entry, whose membership does not count any more.
fn replay(held: &mut Held, payloads: &Payloads, entry: &Entry) -> io::Result<()> {
    if let EntryPayload::Normal(batch) = &entry.payload {
        Commands::read(entry.log_id, batch)?.apply(&mut held.state, payloads);
    }
    held.applied = Some(entry.log_id);
    Ok(())
}

/// A new log of these records, durable on return.
fn write_log(dir: &Path, records: Vec<Record>) -> Result<(), StartError> {
    let (wal, _) = Wal::open(&RealFs, dir, &wal::Options::default(), Arc::new(SystemEntropy))?;
    let written = wal.submit(records, None, None).and_then(|lsn| wal.durable().wait_blocking(|point| point.lsn >= lsn));
    wal.close();
    written.map_err(StartError::io("writing the log"))
}
