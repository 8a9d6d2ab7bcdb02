//! When an agent is sent away because this node cannot keep its logs: its disk is full, or broken, and another node's may not
//! be. Its heartbeats would go on here, but nobody could read what its jobs print.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hodei_state::ids::WorkerId;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Attempt, Ended, Session};
use crate::logs::hub::Open;

/// For so long nothing of a log could be kept before its agent is sent away.
const PATIENCE: Duration = Duration::from_secs(1);
/// A node sends an agent away no more often: where none has room, it must not go round and round.
const AGAIN: Duration = Duration::from_secs(30);

/// How long nothing of a log could be kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room {
    lacking: Option<Lack>,
}

#[derive(Clone, Copy, Debug)]
struct Lack {
    since: Instant,
    /// The last entry that was kept before.
    durable: u64,
}

impl Room {
    /// What came after the entry `durable` could not be kept. Returns whether that has been so for too long: an agent is asked
    /// for it every two seconds, and until it is kept nothing else becomes durable.
    fn lacks(&mut self, durable: u64, now: Instant) -> bool {
        let since = self.lacking.filter(|lack| lack.durable == durable).map_or(now, |lack| lack.since);
        self.lacking = Some(Lack { since, durable });
        now >= since + PATIENCE
    }
}

/// Whom a node has sent away lately.
#[derive(Clone, Debug, Default)]
pub struct SentAway(Arc<Mutex<HashMap<WorkerId, Instant>>>);

impl SentAway {
    /// Whether to send a worker away now; it is noted, then.
    fn send(&self, worker: WorkerId, now: Instant) -> bool {
        let mut sent = self.0.lock();
        sent.retain(|_, at| now < *at + AGAIN);
        let first = !sent.contains_key(&worker);
        if first {
            sent.insert(worker, now);
        }
        first
    }
}

impl Session {
    /// Opens this node's copy of an attempt's log, unless it is open. One that has failed is opened anew, which may tell that
    /// less is there than was handed to it.
    pub(super) async fn open_again(&mut self, attempt: &mut Attempt, open: Open, now: Instant) -> Result<(), Ended> {
        let before = attempt.file.as_ref().map(|file| file.progress());
        if before.is_some_and(|before| !before.failed) {
            return Ok(());
        }
        self.open_log(attempt, open).await;
        if before.is_none() && !attempt.cannot_open {
            return Ok(());
        }
        let durable = before.map_or(0, |before| before.durable);
        if attempt.room.lacks(durable, now) && self.has_choice() && self.gateway.sent_away.send(self.on.worker, now) {
            return Err(Ended::NoRoom);
        }
        Ok(())
    }

    fn has_choice(&self) -> bool {
        let state = self.gateway.handle.view().state;
        state.members().filter(|member| member.removed_at.is_none()).count() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_for_a_second_is_too_long_and_what_failed_once_is_not() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut room = Room::default();
        assert!(!room.lacks(7, at(0)) && !room.lacks(7, at(900)) && room.lacks(7, at(1_000)));
        // Where something was kept meanwhile it begins anew.
        assert!(!room.lacks(8, at(12_900)) && !room.lacks(9, at(14_900)) && room.lacks(9, at(15_900)));
    }

    #[test]
    fn an_agent_is_not_sent_round_in_circles() {
        let begun = Instant::now();
        let sent = SentAway::default();
        let [one, other] = [1, 2].map(WorkerId);
        assert!(sent.send(one, begun) && !sent.send(one, begun + AGAIN / 2) && sent.send(other, begun));
        assert!(sent.send(one, begun + AGAIN));
    }
}
