//! What must hold of the replicas at every step: S11 and S12, judged from observations alone.
//!
//! An observation ([`Seen`]) says what one node has at one step, and of its log only what is new. The checker keeps a
//! mirror of each log and what it learnt over time, so that a step costs as much as it changed.

use std::collections::BTreeMap;

use hodei_raft::wal::{EntryId, Lsn, Vote};

/// A node's number.
pub type NodeId = u64;

/// What one node has at one step.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub node: NodeId,
    /// Grows with each start: what is in memory begins anew.
    pub life: u64,
    pub vote: Option<Vote>,
    /// It leads in its vote's term, as far as it knows.
    pub leads: bool,
    pub committed: Option<EntryId>,
    pub applied: Option<EntryId>,
    /// Of the state at `applied`.
    pub hash: u128,
    pub purged: Option<EntryId>,
    /// How the log differs from the last observation in this life: what it has from there on.
    pub change: Option<Change>,
}

/// The log from an index on.
#[derive(Clone, Debug, Default)]
pub struct Change {
    pub from: u64,
    /// Each with a digest of its content.
    pub entries: Vec<(EntryId, u64)>,
}

/// What must never be seen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("election safety: nodes {first} and {second} were both elected in term {term}")]
    TwoLeaders { term: u64, first: NodeId, second: NodeId },
    #[error("log matching: entry {id} of node {node} is another one elsewhere, or follows another one")]
    LogsDiffer { node: NodeId, id: EntryId },
    #[error("leader completeness: node {node} leads in term {term} without the committed entry {missing}")]
    LeaderLacks { node: NodeId, term: u64, missing: EntryId },
    #[error("committed: node {node} has {found} committed, where {committed} was before")]
    CommittedDiffers { node: NodeId, found: EntryId, committed: EntryId },
    #[error("committed: node {node} removed the committed entry {removed} from its log")]
    CommittedRemoved { node: NodeId, removed: EntryId },
    #[error("monotonic vote: node {node} went from {before:?} to {now:?}")]
    VoteWentBack { node: NodeId, before: Vote, now: Option<Vote> },
    #[error("monotonic commit: node {node} went from {before} to {now:?}")]
    CommitWentBack { node: NodeId, before: EntryId, now: Option<EntryId> },
    #[error("monotonic applied: node {node} went from {before} to {now:?}")]
    AppliedWentBack { node: NodeId, before: EntryId, now: Option<EntryId> },
    #[error("applied: node {node} applied {applied}, which is not committed there")]
    AppliedUncommitted { node: NodeId, applied: EntryId },
    #[error("state: nodes {first} and {second} have different states after entry {applied}")]
    StatesDiffer { first: NodeId, second: NodeId, applied: EntryId },
    #[error(
        "durability: node {node} restarted with record {found} and vote {found_vote:?}, after it had promised record {promised} and vote {promised_vote:?}"
    )]
    Forgot { node: NodeId, promised: Lsn, promised_vote: Option<Vote>, found: Lsn, found_vote: Option<Vote> },
}

#[derive(Debug, Default)]
struct Mirror {
    life: u64,
    vote: Option<Vote>,
    committed: Option<EntryId>,
    applied: Option<EntryId>,
    purged: Option<EntryId>,
    /// Index to term and digest.
    log: BTreeMap<u64, (u64, u64)>,
    /// The terms in which it was seen to lead.
    led: Option<u64>,
    promised: Option<(Lsn, Option<Vote>)>,
}

#[derive(Clone, Copy, Debug)]
struct Committed {
    term: u64,
    digest: u64,
    /// No leader of a later term may lack it.
    since_term: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Checker {
    nodes: BTreeMap<NodeId, Mirror>,
    elected: BTreeMap<u64, NodeId>,
    /// Index and term to digest and the term of the entry before.
    entries: BTreeMap<(u64, u64), (u64, Option<u64>)>,
    committed: BTreeMap<u64, Committed>,
    states: BTreeMap<u64, (EntryId, u128, NodeId)>,
    /// How often there was something to compare.
    pub compared: Compared,
}

/// What was found on more than one node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compared {
    pub entries: u64,
    pub states: u64,
    pub leaders: u64,
}

impl Checker {
    /// The terms in which somebody was elected.
    pub fn elections(&self) -> usize {
        self.elected.len()
    }

    /// Times that somebody else than before was elected.
    pub fn changes(&self) -> usize {
        let elected: Vec<NodeId> = self.elected.values().copied().collect();
        elected.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    /// The last entry known to be committed anywhere.
    pub fn last_committed(&self) -> u64 {
        self.committed.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// From now on, this much of a node's log must survive anything.
    pub fn promised(&mut self, node: NodeId, lsn: Lsn, vote: Option<Vote>) {
        self.nodes.entry(node).or_default().promised = Some((lsn, vote));
    }

    /// A node found this when it opened its log.
    pub fn restarted(&mut self, node: NodeId, found: Lsn, found_vote: Option<Vote>) -> Result<(), Violation> {
        let promised = &mut self.nodes.entry(node).or_default().promised;
        if let Some((promised, promised_vote)) = *promised
            && (found < promised || rank(found_vote) < rank(promised_vote))
        {
            return Err(Violation::Forgot { node, promised, promised_vote, found, found_vote });
        }
        *promised = Some((found, found_vote));
        Ok(())
    }

    /// Takes in what one node has at this step.
    pub fn observe(&mut self, seen: &Seen) -> Result<(), Violation> {
        let mut mirror = self.nodes.remove(&seen.node).unwrap_or_default();
        if seen.life != mirror.life {
            mirror = Mirror { life: seen.life, promised: mirror.promised, ..Mirror::default() };
        }
        let result = self.take(&mut mirror, seen);
        self.nodes.insert(seen.node, mirror);
        result
    }

    fn take(&mut self, mirror: &mut Mirror, seen: &Seen) -> Result<(), Violation> {
        let node = seen.node;
        if let Some(before) = mirror.vote
            && (rank(seen.vote) < rank(mirror.vote) || seen.vote.is_some_and(|now| is_second(before, now)))
        {
            return Err(Violation::VoteWentBack { node, before, now: seen.vote });
        }
        mirror.vote = seen.vote;
        if let Some(vote) = seen.vote.filter(|vote| vote.committed) {
            let first = *self.elected.entry(vote.term).or_insert(vote.node);
            if first != vote.node {
                return Err(Violation::TwoLeaders { term: vote.term, first, second: vote.node });
            }
        }
        self.log(mirror, seen)?;
        self.commit(mirror, seen)?;
        self.state(mirror, seen)?;
        self.lead(mirror, seen)
    }

    /// Log matching, by induction: the same entry follows the same entry.
    fn log(&mut self, mirror: &mut Mirror, seen: &Seen) -> Result<(), Violation> {
        let node = seen.node;
        mirror.purged = seen.purged;
        if let Some(change) = &seen.change {
            let removed = mirror.log.split_off(&change.from);
            for (id, digest) in &change.entries {
                let before = mirror.log.get(&id.index.wrapping_sub(1)).map(|(term, _)| *term);
                let before = before.or(seen.purged.filter(|at| at.index + 1 == id.index).map(|at| at.term));
                let known = self.entries.entry((id.index, id.term)).or_insert((*digest, before));
                let follows = known.1.is_none() || before.is_none() || known.1 == before;
                if known.0 != *digest || !follows {
                    return Err(Violation::LogsDiffer { node, id: *id });
                }
                known.1 = known.1.or(before);
                self.compared.entries += 1;
                mirror.log.insert(id.index, (id.term, *digest));
            }
            let floor = mirror.committed.map_or(0, |committed| committed.index + 1);
            let purged = seen.purged.map_or(0, |purged| purged.index + 1);
            let lost = removed.range(purged..floor.max(purged)).find(|(index, was)| mirror.log.get(index) != Some(was));
            if let Some((index, (term, _))) = lost {
                return Err(Violation::CommittedRemoved { node, removed: EntryId { term: *term, index: *index } });
            }
        }
        if let Some(purged) = seen.purged {
            mirror.log = mirror.log.split_off(&(purged.index + 1));
        }
        Ok(())
    }

    fn commit(&mut self, mirror: &mut Mirror, seen: &Seen) -> Result<(), Violation> {
        let node = seen.node;
        if let Some(before) = mirror.committed
            && seen.committed.is_none_or(|now| now.index < before.index || (now.index == before.index && now != before))
        {
            return Err(Violation::CommitWentBack { node, before, now: seen.committed });
        }
        let Some(now) = seen.committed.filter(|now| Some(*now) != mirror.committed) else { return Ok(()) };
        let from = mirror.committed.map_or(0, |before| before.index + 1);
        let since_term = seen.vote.map_or(now.term, |vote| vote.term);
        for (index, (term, digest)) in mirror.log.range(from..=now.index) {
            let found = EntryId { term: *term, index: *index };
            let of_all = Committed { term: *term, digest: *digest, since_term };
            let known = self.committed.entry(*index).or_insert(of_all);
            if known.term != *term || known.digest != *digest {
                let committed = EntryId { term: known.term, index: *index };
                return Err(Violation::CommittedDiffers { node, found, committed });
            }
        }
        if let Some(known) = self.committed.get(&now.index).filter(|known| known.term != now.term) {
            let committed = EntryId { term: known.term, index: now.index };
            return Err(Violation::CommittedDiffers { node, found: now, committed });
        }
        mirror.committed = Some(now);
        Ok(())
    }

    fn state(&mut self, mirror: &mut Mirror, seen: &Seen) -> Result<(), Violation> {
        let node = seen.node;
        if let Some(before) = mirror.applied
            && seen.applied.is_none_or(|now| now.index < before.index || (now.index == before.index && now != before))
        {
            return Err(Violation::AppliedWentBack { node, before, now: seen.applied });
        }
        let is_new = seen.applied != mirror.applied;
        mirror.applied = seen.applied;
        let Some(applied) = seen.applied else { return Ok(()) };
        if seen.committed.is_none_or(|committed| committed.index < applied.index) {
            return Err(Violation::AppliedUncommitted { node, applied });
        }
        let (id, hash, first) = *self.states.entry(applied.index).or_insert((applied, seen.hash, node));
        if id != applied || hash != seen.hash {
            return Err(Violation::StatesDiffer { first, second: node, applied });
        }
        self.compared.states += u64::from(is_new && first != node);
        Ok(())
    }

    fn lead(&mut self, mirror: &mut Mirror, seen: &Seen) -> Result<(), Violation> {
        let Some(vote) = seen.vote.filter(|_| seen.leads) else { return Ok(()) };
        if mirror.led == Some(vote.term) {
            return Ok(());
        }
        mirror.led = Some(vote.term);
        self.compared.leaders += 1;
        let from = seen.purged.map_or(0, |purged| purged.index + 1);
        let must = self.committed.range(from..).filter(|(_, committed)| committed.since_term < vote.term);
        for (index, committed) in must {
            if mirror.log.get(index) != Some(&(committed.term, committed.digest)) {
                let missing = EntryId { term: committed.term, index: *index };
                return Err(Violation::LeaderLacks { node: seen.node, term: vote.term, missing });
            }
        }
        Ok(())
    }
}

/// A vote for somebody else in the same term; only who was elected may take the place of whom the node voted for.
fn is_second(before: Vote, now: Vote) -> bool {
    now.term == before.term && now.node != before.node && before.committed == now.committed
}

/// Votes grow by term, and within a term by being granted.
fn rank(vote: Option<Vote>) -> Option<(u64, bool)> {
    vote.map(|vote| (vote.term, vote.committed))
}
