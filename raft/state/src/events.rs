//! What happened: the newest events, in the order of the log, for whoever follows or resumes.
//!
//! Events are part of the state: `apply` writes them like everything else, so that every node keeps the same ones under
//! the same positions. An event's position is the log index of the entry that made it, and its place among the events
//! of that entry.
//!
//! # How they are kept
//!
//! Submissions must stay cheap, so that events share rows: as many as fit one, across entries, one after the other, each
//! with what its index and time are more than those before it. The newest row stays open: it is appended to in place, and
//! hashed only once it is full, or asked for. What shares a row follows from the log alone, never from when a node was
//! restarted or asked.
//!
//! The newest [`KEPT`] events are kept, and what else is in the oldest row. The position of the newest one dropped is
//! known, so that a reader who missed any is told, and only such a reader.

use std::{ops::Bound, sync::Arc};

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::{
    codec::{self, CodecError, MAX_ROW},
    ids::{Caller, JobId, Millis, NodeId, Role, SessionId, TokenId, WorkerId},
    job::{JobState, Reason, StartFailure, TakenBack},
    rows::RowKey,
    table::{Dirty, hash_row, start},
};

/// So many events are kept at least. All nodes must agree on it.
pub const KEPT: u64 = 20_000;

/// Where an event stands: after all of an older entry, and after those of its own entry with a smaller offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventPosition {
    /// Log index.
    pub index: u64,
    /// 0, 1, 2 … within the entry.
    pub offset: u32,
}

/// An event with its place and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurred {
    /// Resume after it.
    pub position: EventPosition,
    /// The stamp of its entry.
    pub at: Millis,
    /// What happened.
    pub event: Event,
}

/// What happened. Small: what can be looked up is not in it. New kinds go to the end.
#[allow(missing_docs, reason = "fields bear the names of what they hold")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The cluster was made.
    ClusterInitialised,
    /// A node enrolled; the token's use names the token.
    NodeJoined { node: NodeId },
    /// A node started, and said where it is.
    NodeStarted { node: NodeId },
    /// A node was removed for good.
    NodeRemoved { node: NodeId, by: Caller },
    /// Every member can read commands of this level.
    FeatureLevelRaised { level: u32, by: Caller },
    /// A token was made.
    TokenCreated { token: TokenId, role: Role, by: Caller },
    /// A token let somebody in.
    TokenUsed { token: TokenId, issued: Caller },
    /// A token was made void.
    TokenRevoked { token: TokenId, by: Caller },
    /// A job is in the queue.
    JobSubmitted { job: JobId, by: Caller },
    /// A job was given to a worker.
    JobScheduled { job: JobId, attempt: u32, worker: WorkerId },
    /// Its process runs.
    JobStarted { job: JobId, attempt: u32, worker: WorkerId },
    /// It is to be cancelled.
    JobCancelRequested { job: JobId, by: Caller },
    /// An attempt's lease ran out; what became of the job is said next.
    AttemptLost { job: JobId, attempt: u32, worker: WorkerId },
    /// An attempt ended, and the job is in the queue again.
    JobRequeued { job: JobId, attempt: u32, worker: WorkerId, end: End },
    /// A job ended; without a worker, before it had one.
    JobEnded { job: JobId, attempt: u32, worker: Option<WorkerId>, state: JobState, end: End },
    /// Finished jobs were removed.
    JobsRemoved { jobs: u32, by: Caller },
    /// An agent process took over its worker.
    WorkerRegistered { worker: WorkerId, session: SessionId },
    /// Its stream is with this node.
    WorkerAttached { worker: WorkerId, node: NodeId },
    /// Its stream broke.
    WorkerDetached { worker: WorkerId },
    /// Its agent process ended for good.
    WorkerClosed { worker: WorkerId },
    /// It gets no more jobs.
    WorkerDrained { worker: WorkerId, by: Caller, deadline: Option<Millis>, requeue: bool },
    /// The deadline of its drain has passed: what it still runs is taken back.
    WorkerDrainOverdue { worker: WorkerId },
    /// It gets jobs again.
    WorkerUndrained { worker: WorkerId, by: Caller },
    /// It was removed for good.
    WorkerRemoved { worker: WorkerId, by: Caller, force: bool },
    /// It gets no jobs until then, because it has lost so many sessions and attempts; or for longer than was said before.
    WorkerSetAside { worker: WorkerId, until: Millis, sessions: u32, attempts: u32 },
    /// It is set aside no more: its time is over, or somebody wants it back.
    WorkerSetAsideEnded { worker: WorkerId, by: Option<Caller> },
    /// An attempt is to make room for a job of higher priority.
    JobPreempted { job: JobId, attempt: u32, worker: WorkerId, for_job: JobId },
    /// An attempt is given a secret, in this version.
    SecretUsed { job: JobId, attempt: u32, worker: WorkerId, name: String, version: u64 },
    /// A node had lost what it had promised and goes on as another one.
    NodeReplaced { node: NodeId, replacement: NodeId },
    /// A node goes on alone: the others were lost for good, and with them what only they knew.
    ClusterRecovered { survivor: NodeId },
}

/// Why an attempt ended, in short: the job's own row says it at length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// See [`Reason::OutOfMemory`].
    OutOfMemory,
    /// See [`Reason::WorkerLost`].
    WorkerLost,
    /// See [`Reason::NotProvisioned`].
    NotProvisioned,
    /// See [`Reason::Cancelled`].
    Cancelled,
    /// See [`Reason::Timeout`].
    Timeout,
    /// See [`Reason::CouldNotStart`].
    CouldNotStart(StartFailure),
    /// See [`Reason::TakenBack`].
    TakenBack(TakenBack),
}

impl From<&Reason> for End {
    fn from(reason: &Reason) -> Self {
        match reason {
            Reason::Exited { code } => Self::Exited(*code),
            Reason::Signaled { signal } => Self::Signaled(*signal),
            Reason::OutOfMemory => Self::OutOfMemory,
            Reason::WorkerLost { .. } => Self::WorkerLost,
            Reason::NotProvisioned { .. } => Self::NotProvisioned,
            Reason::Cancelled { .. } => Self::Cancelled,
            Reason::Timeout { .. } => Self::Timeout,
            Reason::CouldNotStart { cause, .. } => Self::CouldNotStart(*cause),
            Reason::TakenBack { why, .. } => Self::TakenBack(*why),
        }
    }
}

impl Event {
    /// The job that it is about.
    #[must_use]
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::JobSubmitted { job, .. }
            | Self::JobScheduled { job, .. }
            | Self::JobStarted { job, .. }
            | Self::JobCancelRequested { job, .. }
            | Self::AttemptLost { job, .. }
            | Self::JobRequeued { job, .. }
            | Self::JobPreempted { job, .. }
            | Self::SecretUsed { job, .. }
            | Self::JobEnded { job, .. } => Some(*job),
            _ => None,
        }
    }

    /// The worker that it is about.
    #[must_use]
    pub fn worker(&self) -> Option<WorkerId> {
        match self {
            Self::JobScheduled { worker, .. }
            | Self::JobStarted { worker, .. }
            | Self::AttemptLost { worker, .. }
            | Self::JobRequeued { worker, .. }
            | Self::WorkerRegistered { worker, .. }
            | Self::WorkerAttached { worker, .. }
            | Self::WorkerDetached { worker }
            | Self::WorkerClosed { worker }
            | Self::WorkerDrained { worker, .. }
            | Self::WorkerDrainOverdue { worker }
            | Self::WorkerUndrained { worker, .. }
            | Self::WorkerRemoved { worker, .. }
            | Self::WorkerSetAside { worker, .. }
            | Self::WorkerSetAsideEnded { worker, .. }
            | Self::JobPreempted { worker, .. }
            | Self::SecretUsed { worker, .. }
            | Self::TokenUsed { issued: Caller::Agent(worker), .. } => Some(*worker),
            Self::JobEnded { worker, .. } => *worker,
            _ => None,
        }
    }
}

/// Events after a position are not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("events up to {}.{} are not kept any more", newest_dropped.index, newest_dropped.offset)]
pub struct Compacted {
    /// The newest one that is gone: whoever resumes after it, or later, misses nothing.
    pub newest_dropped: EventPosition,
}

/// A row that no event is appended to any more.
#[derive(Debug)]
struct Row {
    hash: u128,
    bytes: Box<[u8]>,
    count: u32,
}

/// The newest row.
#[derive(Clone, Debug)]
struct Open {
    /// The position of its first event.
    key: EventPosition,
    bytes: Vec<u8>,
    count: u32,
    /// Position and time of its newest event.
    newest: (EventPosition, Millis),
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events {
    /// By the position of their first event.
    rows: OrdMap<EventPosition, Arc<Row>>,
    sum: u128,
    /// Shared with clones of the state until it is appended to.
    open: Option<Arc<Open>>,
    kept: u64,
    /// The entry that is being applied.
    index: u64,
}

impl Events {
    /// What is appended from here on belongs to this entry.
    pub(crate) fn begin(&mut self, index: u64) {
        self.index = index;
    }

    /// Appends an event, and drops what is too old; returns the newest one dropped.
    pub(crate) fn append(&mut self, event: &Event, at: Millis, dirty: &mut Dirty) -> Option<EventPosition> {
        let index = self.index;
        let mut open = self.open.take().unwrap_or_else(|| Arc::new(self.reopen(index)));
        self.kept += 1;
        if Arc::make_mut(&mut open).push(index, at, event) {
            dirty.insert(row_key(open.key));
            self.open = Some(open);
            return None;
        }
        let mut next = Open::new(open.following(index));
        let fits = next.push(index, at, event);
        debug_assert!(fits, "an event fits a row of its own");
        self.seal(&open);
        dirty.insert(row_key(next.key));
        self.open = Some(Arc::new(next));
        self.drop_oldest(dirty)
    }

    /// The row to go on with in a replica that was rebuilt: its newest, or the first of all.
    fn reopen(&mut self, index: u64) -> Open {
        let Some((key, row)) = self.rows.get_max().map(|(key, row)| (*key, Arc::clone(row))) else {
            return Open::new(EventPosition { index, offset: 0 });
        };
        self.rows.remove(&key);
        self.sum = self.sum.wrapping_sub(row.hash);
        let newest = decode(key, &row.bytes).ok().and_then(|events| Some((events.last()?.position, events.last()?.at)));
        let newest = newest.expect("only rows that decode, and hold an event, are kept");
        Open { key, bytes: row.bytes.to_vec(), count: row.count, newest }
    }

    /// Nothing is appended to this row any more.
    fn seal(&mut self, open: &Open) {
        let hash = hash_row(row_key(open.key), &open.bytes);
        self.sum = self.sum.wrapping_add(hash);
        let row = Row { hash, bytes: open.bytes.as_slice().into(), count: open.count };
        self.rows.insert(open.key, Arc::new(row));
    }

    fn drop_oldest(&mut self, dirty: &mut Dirty) -> Option<EventPosition> {
        let mut dropped = None;
        while let Some((key, row)) = self.rows.get_min() {
            let (key, row) = (*key, Arc::clone(row));
            if self.kept - u64::from(row.count) < KEPT {
                break;
            }
            dropped = decode(key, &row.bytes).ok().and_then(|events| Some(events.last()?.position));
            self.sum = self.sum.wrapping_sub(row.hash);
            self.kept -= u64::from(row.count);
            self.rows.remove(&key);
            dirty.insert(row_key(key));
        }
        dropped
    }

    /// Takes a row as it was stored; false: it was there already.
    pub(crate) fn load(&mut self, key: EventPosition, bytes: &[u8]) -> Result<bool, CodecError> {
        let count = u32::try_from(decode(key, bytes)?.len()).unwrap_or(u32::MAX);
        if count == 0 {
            return Err(CodecError::Empty);
        }
        let hash = hash_row(row_key(key), bytes);
        self.sum = self.sum.wrapping_add(hash);
        self.kept += u64::from(count);
        Ok(self.rows.insert(key, Arc::new(Row { hash, bytes: bytes.into(), count })).is_none())
    }

    /// The rows from `from` on; `from` may be a row of any table.
    pub(crate) fn encoded_from(&self, from: RowKey) -> impl Iterator<Item = (RowKey, Vec<u8>)> + '_ {
        let own = if let RowKey::Events(index, offset) = from { Some(EventPosition { index, offset }) } else { None };
        let first = self.rows.get_min().map(|(key, _)| row_key(*key));
        let sealed = start(own, first, from).map(|start| self.rows.range((start, Bound::Unbounded)));
        let sealed = sealed.into_iter().flatten().map(|(key, row)| (row_key(*key), row.bytes.to_vec()));
        let open = self.open.iter().map(|open| (row_key(open.key), open.bytes.clone()));
        sealed.chain(open.filter(move |(key, _)| *key >= from))
    }

    pub(crate) fn hash(&self) -> u128 {
        let open = self.open.as_ref().map_or(0, |open| hash_row(row_key(open.key), &open.bytes));
        self.sum.wrapping_add(open)
    }

    pub(crate) fn newest(&self) -> Option<EventPosition> {
        if let Some(open) = &self.open {
            return Some(open.newest.0);
        }
        let (key, row) = self.rows.get_max()?;
        Some(decode(*key, &row.bytes).ok()?.last()?.position)
    }

    pub(crate) fn kept(&self) -> u64 {
        self.kept
    }

    /// Events after a position, oldest first. The cost is that of the rows looked at.
    pub(crate) fn after(&self, position: EventPosition) -> impl Iterator<Item = Occurred> + '_ {
        // The row that holds the position begins at or before it.
        let first = self.rows.range(..=position).next_back().map_or(position, |(key, _)| *key);
        let sealed = self.rows.range(first..).map(|(key, row)| (*key, &row.bytes[..]));
        let rows = sealed.chain(self.open.iter().map(|open| (open.key, &open.bytes[..])));
        let events = rows.flat_map(|(key, bytes)| decode(key, bytes).expect("only rows that decode are kept"));
        events.skip_while(move |occurred| occurred.position <= position)
    }
}

impl Open {
    fn new(key: EventPosition) -> Self {
        Self { key, bytes: codec::begin(), count: 0, newest: (key, Millis(0)) }
    }

    /// The place of an event of this entry, after all that are here. An index never falls; where it seemed to, the event
    /// would count for the newest entry.
    fn following(&self, index: u64) -> EventPosition {
        let (newest, _) = self.newest;
        if self.count == 0 {
            self.key
        } else if index > newest.index {
            EventPosition { index, offset: 0 }
        } else {
            EventPosition { index: newest.index, offset: newest.offset.saturating_add(1) }
        }
    }

    /// Appends an event; false: the row is full.
    fn push(&mut self, index: u64, at: Millis, event: &Event) -> bool {
        let position = self.following(index);
        let (newest, then) = self.newest;
        if self.count == 20 && crate::armed!("bug::event-skipped") {
            self.newest = (position, at.max(then));
            self.count += 1;
            return true;
        }
        let end = self.bytes.len();
        codec::append(&mut self.bytes, &(position.index - newest.index, at.0.saturating_sub(then.0)));
        codec::append(&mut self.bytes, event);
        if self.bytes.len() > MAX_ROW {
            self.bytes.truncate(end);
            return false;
        }
        self.newest = (position, at.max(then));
        self.count += 1;
        true
    }
}

fn row_key(key: EventPosition) -> RowKey {
    RowKey::Events(key.index, key.offset)
}

fn decode(key: EventPosition, bytes: &[u8]) -> Result<Vec<Occurred>, CodecError> {
    let mut rest = codec::body(bytes)?;
    let mut events: Vec<Occurred> = Vec::new();
    let (mut position, mut at) = (key, Millis(0));
    while !rest.is_empty() {
        let (entries, millis): (u64, u64) = codec::next(&mut rest)?;
        at = at.plus(millis);
        position = match entries {
            _ if events.is_empty() => key,
            0 => EventPosition { offset: position.offset.saturating_add(1), ..position },
            more => EventPosition { index: position.index.saturating_add(more), offset: 0 },
        };
        events.push(Occurred { position, at, event: codec::next(&mut rest)? });
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;

    /// Ids of a real length.
    const ID: u128 = 0x0199_a1b2_c3d4_7e5f_8a9b_0000_0000_0000;

    fn submitted(job: u128) -> Event {
        Event::JobSubmitted { job: JobId(ID | job), by: Caller::User(UserId(ID)) }
    }

    /// As many events per entry as `per_entry` says, up to `count`; what was dropped, and what the write-behind would hold.
    fn filled(count: u64, per_entry: u64) -> (Events, EventPosition, Dirty) {
        let (mut events, mut dirty, mut dropped) = (Events::default(), Dirty::new(), EventPosition::default());
        for at in 0..count {
            events.begin(10 + at / per_entry);
            dropped = events.append(&submitted(at.into()), Millis(at), &mut dirty).unwrap_or(dropped);
        }
        (events, dropped, dirty)
    }

    #[test]
    fn the_newest_are_kept_and_none_between() {
        for per_entry in [1, 7, 500] {
            let count = 3 * KEPT + 5;
            let (events, dropped, dirty) = filled(count, per_entry);
            let read: Vec<_> = events.after(dropped).collect();
            assert!((KEPT..KEPT + 200).contains(&(read.len() as u64)), "{}", read.len());
            assert_eq!(events.kept(), read.len() as u64);
            let jobs = read.iter().map(|one| one.event.job().unwrap().0 ^ ID);
            assert!(jobs.eq(u128::from(count) - read.len() as u128..count.into()), "a gap");
            // What is stored is what is kept.
            let stored: Vec<_> = events.encoded_from(RowKey::Meta).collect();
            let row = |key: &RowKey| events.encoded_from(*key).next().filter(|(found, _)| found == key);
            assert!(dirty.iter().filter_map(row).eq(stored.iter().cloned()));
            let mut again = Events::default();
            for (key, bytes) in stored {
                let RowKey::Events(index, offset) = key else { panic!("{key:?}") };
                assert!(bytes.len() <= MAX_ROW && again.load(EventPosition { index, offset }, &bytes).unwrap());
            }
            assert_eq!((again.hash(), again.kept()), (events.hash(), events.kept()));
        }
    }

    #[test]
    fn whoever_resumes_misses_and_doubles_none() {
        let (events, ..) = filled(1_000, 300);
        let all: Vec<_> = events.after(EventPosition::default()).collect();
        assert_eq!(all.len(), 1_000);
        for (at, occurred) in all.iter().enumerate().step_by(37) {
            assert!(events.after(occurred.position).eq(all[at + 1..].iter().cloned()));
        }
        let between = EventPosition { index: 10, offset: u32::MAX };
        assert_eq!(events.after(between).next().unwrap().position, EventPosition { index: 11, offset: 0 });
    }

    #[test]
    fn a_row_goes_on_where_a_replica_was_rebuilt_within_an_entry() {
        let (mut events, _, mut dirty) = filled(90, 100);
        let mut rebuilt = Events::default();
        for (key, bytes) in events.encoded_from(RowKey::Meta) {
            let RowKey::Events(index, offset) = key else { panic!("{key:?}") };
            rebuilt.load(EventPosition { index, offset }, &bytes).unwrap();
        }
        for one in [&mut events, &mut rebuilt] {
            one.begin(10);
            for job in 0..50 {
                one.append(&submitted(job), Millis(1), &mut dirty);
            }
        }
        assert_eq!(events.hash(), rebuilt.hash());
        assert!(events.encoded_from(RowKey::Meta).eq(rebuilt.encoded_from(RowKey::Meta)));
    }

    #[test]
    fn a_submission_costs_little_room() {
        let (events, ..) = filled(1_000, 50);
        let bytes: usize = events.encoded_from(RowKey::Meta).map(|(key, row)| key.to_bytes().len() + row.len()).sum();
        assert!(bytes <= 60 * 1_000, "{bytes}");
    }
}
