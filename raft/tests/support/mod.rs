//! What the storage tests share: a model of the log, and workloads from a seed.

#![allow(clippy::unwrap_used, dead_code, reason = "each test uses a part of this, and a test's helpers may panic")]

pub mod machine;
pub mod sim;

use std::collections::BTreeMap;

use bytes::Bytes;
use hodei_raft::{
    seam::{Entropy, Fs, sim::SeededEntropy},
    wal::{EntryId, Lsn, Record, Vote, recover::Opened},
};

/// What a log holds, kept in the plainest way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub lsn: Lsn,
    pub vote: Option<Vote>,
    pub purged: Option<EntryId>,
    pub entries: BTreeMap<u64, (u64, Bytes)>,
}

impl Model {
    pub fn apply(&mut self, record: &Record) {
        self.lsn += 1;
        match record {
            Record::Append { id, body } => {
                assert!(self.entries.insert(id.index, (id.term, body.to_bytes())).is_none());
            }
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Truncate { from } => drop(self.entries.split_off(from)),
            Record::Purge { upto } => {
                self.entries = self.entries.split_off(&(upto.index + 1));
                self.purged = Some(*upto);
            }
        }
    }

    pub fn last(&self) -> Option<EntryId> {
        self.entries.last_key_value().map(|(index, (term, _))| EntryId { term: *term, index: *index }).or(self.purged)
    }

    /// The index that an entry appended now must have.
    pub fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    /// What an opened log holds.
    pub fn of<F: Fs>(opened: &Opened<F>) -> Self {
        let recovered = &opened.recovered;
        let entries = opened.index.plan(opened.index.range()).unwrap().read().unwrap();
        let entries = entries.into_iter().map(|(id, body)| (id.index, (id.term, body))).collect();
        let model = Self { lsn: recovered.lsn, vote: recovered.vote, purged: recovered.purged, entries };
        assert_eq!(model.last(), recovered.last);
        model
    }
}

/// The log after each record: `states(records)[lsn]`.
pub fn states<'r>(from: &Model, records: impl IntoIterator<Item = &'r Record>) -> Vec<Model> {
    let mut states = vec![from.clone()];
    for record in records {
        let mut next = states.last().unwrap().clone();
        next.apply(record);
        states.push(next);
    }
    states
}

pub fn append(term: u64, index: u64, len: usize) -> Record {
    let body: Vec<u8> = (0..len).map(|at| (term * 31 + index * 7 + at as u64) as u8).collect();
    Record::Append { id: EntryId { term, index }, body: Bytes::from(body).into() }
}

pub fn vote(term: u64, node: u64, committed: bool) -> Record {
    Record::Vote(Vote { term, node, committed })
}

/// A random workload that could be Raft's: terms grow, truncation comes with a new term, purges stay behind the end.
pub struct Workload {
    pub random: SeededEntropy,
    pub model: Model,
    term: u64,
    /// The largest entry, in bytes.
    pub largest: u64,
    left: u64,
}

impl Workload {
    pub fn new(seed: u64, largest: u64) -> Self {
        Self { random: SeededEntropy::new(seed), model: Model::default(), term: 1, largest, left: 0 }
    }

    /// Goes on from what a log was found to hold.
    pub fn resume(&mut self, model: Model) {
        self.term = self.term.max(model.vote.map_or(1, |vote| vote.term)) + 1;
        self.model = model;
    }

    pub fn record(&mut self) -> Record {
        let record = match self.random.below(20) {
            0 | 1 => {
                self.term += self.random.below(2);
                vote(self.term, self.random.below(3), self.random.below(2) == 0)
            }
            2 if !self.model.entries.is_empty() => {
                self.term += 1;
                let back = self.random.below(self.model.entries.len().min(6) as u64);
                Record::Truncate { from: self.model.next() - back }
            }
            3 if self.model.last().is_some() => self.purge(),
            _ => {
                let len = self.random.below(self.largest) as usize;
                append(self.term, self.model.next(), len)
            }
        };
        self.model.apply(&record);
        record
    }

    fn purge(&mut self) -> Record {
        let last = self.model.last().unwrap();
        if self.random.below(8) == 0 {
            // As after installing a snapshot: beyond the end.
            return Record::Purge { upto: EntryId { term: self.term, index: last.index + 1 + self.random.below(5) } };
        }
        let keep = self.random.below(8).min(self.model.entries.len() as u64) as usize;
        let upto =
            self.model.entries.iter().nth_back(keep).map(|(index, (term, _))| EntryId { term: *term, index: *index });
        Record::Purge { upto: upto.or(self.model.purged).unwrap_or(last) }
    }

    pub fn group(&mut self) -> Vec<Record> {
        (0..1 + self.random.below(5)).map(|_| self.record()).collect()
    }

    /// One record of the sequence that [`Workload::group`] gives in pieces.
    pub fn record_in_group(&mut self) -> Record {
        if self.left == 0 {
            self.left = 1 + self.random.below(5);
        }
        self.left -= 1;
        self.record()
    }
}

/// A sub-seed.
pub fn split(seed: u64, part: u64) -> u64 {
    SeededEntropy::new(seed ^ part.wrapping_mul(0x5851_f42d_4c95_7f2d)).next_u64()
}
