//! Until when each attempt may run. Data and rules only: every moment comes in as an argument.
//!
//! The agent notes its clock when it sends a heartbeat. A grant for heartbeat `n` moves an attempt's deadline to the
//! send time of `n` plus the attempt's `lost_after`; the leader counts from when it received `n`, which is later, so
//! the agent always gives up first. What is over is never revived.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{clock::Boot, key::AttemptKey};

/// More send times than this are not kept; an Assign stands on a heartbeat that is at most `lost_after / 3` old.
const SENT_KEPT: usize = 65_536;
/// Send times are kept at least this long.
const SENT_KEPT_FOR: Duration = Duration::from_secs(600);

/// Why an attempt may not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// The heartbeat that it stands on is not known (any more).
    #[error("the heartbeat it stands on is unknown")]
    UnknownHeartbeat,
    /// Its time had passed before it started.
    #[error("its lease had already run out")]
    TooLate,
}

#[derive(Debug)]
struct Lease {
    lost_after: Duration,
    deadline: Boot,
    state: Holding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holding {
    Running,
    /// Refused or past its deadline: it must not run.
    Over,
    /// Its tree is gone; listed in heartbeats until its end is acknowledged.
    Ended,
}

/// Send times of heartbeats, and the deadline of each attempt.
#[derive(Debug, Default)]
pub struct LeaseTable {
    sent: VecDeque<(u64, Boot)>,
    held: BTreeMap<AttemptKey, Lease>,
}

impl LeaseTable {
    /// Heartbeat `sequence` is sent now. Sequences grow.
    pub fn sent(&mut self, sequence: u64, now: Boot) {
        debug_assert!(self.sent.back().is_none_or(|(last, _)| *last < sequence), "heartbeat sequences grow");
        self.sent.push_back((sequence, now));
        let keep = self.held.values().map(|lease| lease.lost_after).max().unwrap_or_default().max(SENT_KEPT_FOR);
        while self.sent.len() > SENT_KEPT || self.sent.front().is_some_and(|(_, at)| at.plus(keep) < now) {
            self.sent.pop_front();
        }
    }

    /// Takes up an attempt that stands on heartbeat `sequence`.
    pub fn admit(
        &mut self,
        key: AttemptKey,
        sequence: u64,
        lost_after: Duration,
        now: Boot,
    ) -> Result<Boot, NotAdmitted> {
        let deadline = self.send_time(sequence).ok_or(NotAdmitted::UnknownHeartbeat)?.plus(lost_after);
        if deadline <= now {
            return Err(NotAdmitted::TooLate);
        }
        self.held.insert(key, Lease { lost_after, deadline, state: Holding::Running });
        Ok(deadline)
    }

    /// Takes over an attempt that runs until `deadline`, granted to an earlier process.
    pub fn adopt(&mut self, key: AttemptKey, lost_after: Duration, deadline: Boot) {
        self.held.insert(key, Lease { lost_after, deadline, state: Holding::Running });
    }

    /// The leader granted `key` for heartbeat `sequence`. Returns its deadline, if that has moved.
    pub fn extend(&mut self, key: AttemptKey, sequence: u64, now: Boot) -> Option<Boot> {
        let sent = if crate::armed!("bug::lease-counts-from-the-answer") { now } else { self.send_time(sequence)? };
        let lease = self.held.get_mut(&key)?;
        let deadline = sent.plus(lease.lost_after);
        let over = lease.state != Holding::Running || lease.deadline <= now;
        if (over && !crate::armed!("bug::lease-revived")) || deadline <= lease.deadline {
            return None;
        }
        lease.deadline = deadline;
        Some(deadline)
    }

    /// Until when `key` may run, if it may run now.
    #[must_use]
    pub fn deadline(&self, key: AttemptKey, now: Boot) -> Option<Boot> {
        let lease = self.held.get(&key)?;
        (lease.state == Holding::Running && lease.deadline > now).then_some(lease.deadline)
    }

    /// The leader refused `key`: it may not run any more.
    pub fn refuse(&mut self, key: AttemptKey) {
        if let Some(lease) = self.held.get_mut(&key)
            && lease.state == Holding::Running
        {
            lease.state = Holding::Over;
        }
    }

    /// Marks everything whose deadline has passed.
    pub fn expire(&mut self, now: Boot) {
        for lease in self.held.values_mut() {
            if lease.state == Holding::Running && lease.deadline <= now {
                lease.state = Holding::Over;
            }
        }
    }

    /// What must be killed: over, and not yet seen to have ended.
    pub fn over(&self) -> impl Iterator<Item = AttemptKey> + '_ {
        self.held.iter().filter(|(_, lease)| lease.state == Holding::Over).map(|(key, _)| *key)
    }

    /// The tree of `key` is gone. Returns whether it had lost its lease before.
    pub fn ended(&mut self, key: AttemptKey) -> bool {
        self.held
            .get_mut(&key)
            .is_some_and(|lease| std::mem::replace(&mut lease.state, Holding::Ended) == Holding::Over)
    }

    /// The attempt is forgotten.
    pub fn forget(&mut self, key: AttemptKey) {
        self.held.remove(&key);
    }

    /// The earliest deadline of what runs.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Boot> {
        self.held.values().filter(|lease| lease.state == Holding::Running).map(|lease| lease.deadline).min()
    }

    /// The shortest `lost_after` held, ended attempts included: they too must be kept from being declared lost.
    #[must_use]
    pub fn shortest(&self) -> Option<Duration> {
        self.held.values().map(|lease| lease.lost_after).min()
    }

    fn send_time(&self, sequence: u64) -> Option<Boot> {
        let at = self.sent.binary_search_by_key(&sequence, |(sent, _)| *sent).ok()?;
        Some(self.sent[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(attempt: u32) -> AttemptKey {
        AttemptKey { job: uuid::Uuid::nil(), attempt, fence: 7 }
    }

    fn at(seconds: u64) -> Boot {
        Boot(Duration::from_secs(seconds))
    }

    const LOST_AFTER: Duration = Duration::from_secs(10);

    fn table() -> LeaseTable {
        let mut table = LeaseTable::default();
        table.sent(1, at(100));
        table.sent(2, at(103));
        table
    }

    #[test]
    fn an_attempt_runs_until_the_send_time_of_its_heartbeat_plus_lost_after() {
        let mut table = table();
        assert_eq!(table.admit(key(1), 1, LOST_AFTER, at(105)), Ok(at(110)));
        assert_eq!(table.deadline(key(1), at(109)), Some(at(110)));
        assert_eq!(table.deadline(key(1), at(110)), None);
        table.expire(at(109));
        assert_eq!(table.over().count(), 0);
        table.expire(at(110));
        assert_eq!(table.over().collect::<Vec<_>>(), [key(1)]);
    }

    #[test]
    fn a_grant_counts_from_when_its_heartbeat_was_sent_not_from_when_it_arrives() {
        let mut table = table();
        table.admit(key(1), 1, LOST_AFTER, at(104)).unwrap();
        table.extend(key(1), 2, at(109));
        assert_eq!(table.next_deadline(), Some(at(113)));
        // An older grant that arrives late takes nothing back.
        table.extend(key(1), 1, at(109));
        assert_eq!(table.next_deadline(), Some(at(113)));
        // One for a heartbeat that was never sent gives nothing.
        table.extend(key(1), 99, at(109));
        assert_eq!(table.next_deadline(), Some(at(113)));
    }

    #[test]
    fn what_is_adopted_keeps_its_deadline_until_a_heartbeat_of_its_new_process_is_granted() {
        let mut table = table();
        table.adopt(key(1), LOST_AFTER, at(106));
        assert_eq!(table.deadline(key(1), at(105)), Some(at(106)));
        assert_eq!(table.extend(key(1), 2, at(105)), Some(at(113)));
        assert_eq!(table.extend(key(1), 2, at(105)), None, "it has not moved");
        table.adopt(key(2), LOST_AFTER, at(104));
        assert_eq!(table.extend(key(2), 2, at(104)), None, "too late");
        table.expire(at(104));
        assert_eq!(table.over().collect::<Vec<_>>(), [key(2)]);
    }

    #[test]
    fn what_is_over_is_never_revived() {
        let mut table = table();
        table.admit(key(1), 1, LOST_AFTER, at(104)).unwrap();
        // The grant arrives after the deadline, before anybody looked.
        table.extend(key(1), 2, at(111));
        table.expire(at(111));
        assert_eq!(table.deadline(key(1), at(111)), None);
        table.admit(key(2), 2, LOST_AFTER, at(104)).unwrap();
        table.refuse(key(2));
        table.extend(key(2), 2, at(104));
        assert_eq!(table.deadline(key(2), at(104)), None);
        assert_eq!(table.over().count(), 2);
    }

    #[test]
    fn too_late_and_unknown_heartbeats_are_not_admitted() {
        let mut table = table();
        assert_eq!(table.admit(key(1), 1, LOST_AFTER, at(110)), Err(NotAdmitted::TooLate));
        assert_eq!(table.admit(key(1), 3, LOST_AFTER, at(104)), Err(NotAdmitted::UnknownHeartbeat));
        assert_eq!(table.shortest(), None);
    }

    #[test]
    fn an_ended_attempt_is_not_killed_but_still_sets_the_pace() {
        let mut table = table();
        table.admit(key(1), 1, LOST_AFTER, at(104)).unwrap();
        assert!(!table.ended(key(1)));
        table.expire(at(200));
        table.refuse(key(1));
        assert_eq!(table.over().count(), 0);
        assert_eq!(table.shortest(), Some(LOST_AFTER));
        table.forget(key(1));
        assert_eq!(table.shortest(), None);
    }

    #[test]
    fn send_times_are_bounded() {
        let mut table = LeaseTable::default();
        for sequence in 1..=70_000 {
            table.sent(sequence, at(1));
        }
        assert_eq!(table.sent.len(), SENT_KEPT);
        table.sent(70_001, at(1_000));
        assert_eq!(table.sent.len(), 1);
    }
}
