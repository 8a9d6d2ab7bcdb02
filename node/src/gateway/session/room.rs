//! When an agent is sent away because this node cannot keep its logs: its disk is full, or broken, and another node's may not
//! be. Its heartbeats would go on here, but nobody could read what its jobs print.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hodei_state::{State, ids::WorkerId};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Ended, Session};

/// For so long nothing could be kept before an agent is sent away.
const PATIENCE: Duration = Duration::from_secs(1);
/// What fails more rarely than this is not one failure. An agent repeats what was not kept every two seconds.
const APART: Duration = Duration::from_secs(5);
/// An agent is sent away no more often: where no node has room, it must not go round in circles.
const AGAIN: Duration = Duration::from_secs(30);

/// How long entries could not be kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Room {
    /// The first time, and the last.
    lacking: Option<(Instant, Instant)>,
}

impl Room {
    /// An entry could not be kept. Returns whether that has been so for too long.
    fn lacks(&mut self, now: Instant) -> bool {
        let first = match self.lacking {
            Some((first, last)) if now < last + APART => first,
            _ => now,
        };
        self.lacking = Some((first, now));
        now >= first + PATIENCE
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
    /// Takes up that what the agent sent could not be kept.
    pub(super) fn lacks_room(&mut self, state: &State, now: Instant) -> Result<(), Ended> {
        let has_choice = state.members().filter(|member| member.removed_at.is_none()).count() > 1;
        if self.room.lacks(now) && has_choice && self.gateway.sent_away.send(self.on.worker, now) {
            return Err(Ended::NoRoom);
        }
        Ok(())
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
        assert!(!room.lacks(at(0)) && !room.lacks(at(900)) && room.lacks(at(1_000)));
        // Much later it begins anew.
        assert!(!room.lacks(at(9_000)) && !room.lacks(at(9_900)) && room.lacks(at(11_900)));
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
