//! The outline of a log: what must hold between one record and the next.
//!
//! The writer and recovery both advance a [`Shape`] record by record, so both judge by the same rules.

use std::ops::Range;

use super::{EntryId, Lsn, Vote, record::Record};

/// A log up to some LSN, in a few numbers. A segment's header carries the one that it continues from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The last record.
    pub lsn: Lsn,
    /// The hash over all history up to that record; of an empty log, a random number that no other log shares.
    pub chain: u128,
    /// The newest vote.
    pub vote: Option<Vote>,
    /// Everything up to here has been purged.
    pub purged: Option<EntryId>,
    /// The indexes of the entries that are present.
    pub live: Range<u64>,
}

/// A record that cannot follow the ones before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An entry that would leave a hole.
    #[error("entry {found} where {expected} must follow")]
    Hole {
        /// The index that must come next.
        expected: u64,
        /// The entry that came.
        found: EntryId,
    },
    /// A purge behind an earlier one.
    #[error("a purge up to {found} after one up to {purged}")]
    Purged {
        /// The earlier purge point.
        purged: EntryId,
        /// The later one.
        found: EntryId,
    },
}

impl Shape {
    /// An empty log whose chain starts from `genesis`.
    #[must_use]
    pub fn empty(genesis: u128) -> Self {
        Self { lsn: 0, chain: genesis, vote: None, purged: None, live: 0..0 }
    }

    /// The index that must come next, if the log fixes it: an empty, never purged log may begin anywhere.
    #[must_use]
    pub fn next_index(&self) -> Option<u64> {
        if self.live.is_empty() { self.purged.map(|purged| purged.index + 1) } else { Some(self.live.end) }
    }

    /// Advances over a record whose chain hash is `chain`.
    ///
    /// # Errors
    /// If the record cannot follow; the shape is then unchanged.
    pub fn accept(&mut self, record: &Record, chain: u128) -> Result<(), Violation> {
        match record {
            Record::Append { id, .. } => self.append(*id)?,
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Truncate { from } => self.live = clip(&self.live, self.live.start..*from),
            Record::Purge { upto } => self.purge(*upto)?,
        }
        self.lsn += 1;
        self.chain = chain;
        Ok(())
    }

    fn append(&mut self, id: EntryId) -> Result<(), Violation> {
        match self.next_index() {
            Some(expected) if expected != id.index => Err(Violation::Hole { expected, found: id }),
            _ => {
                let start = if self.live.is_empty() { id.index } else { self.live.start };
                self.live = start..id.index + 1;
                Ok(())
            }
        }
    }

    fn purge(&mut self, upto: EntryId) -> Result<(), Violation> {
        if let Some(purged) = self.purged.filter(|purged| purged.index > upto.index) {
            return Err(Violation::Purged { purged, found: upto });
        }
        self.purged = Some(upto);
        self.live = clip(&self.live, upto.index + 1..u64::MAX);
        Ok(())
    }
}

/// The part of `range` inside `window`; empty ranges stay where the cut was made.
pub(crate) fn clip(range: &Range<u64>, window: Range<u64>) -> Range<u64> {
    let start = range.start.max(window.start);
    start..range.end.min(window.end).max(start)
}
