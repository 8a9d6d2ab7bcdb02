//! How long an agent that comes back waits for what may be stopped or stuck, before jobs that are well pay for it.
//!
//! All attempts are looked after at once, under one patience. It ends early where a job was found whose lease would run
//! out: such a job goes on only once this agent has a session, and that is opened once, for all attempts together. So
//! half of what is left of the shortest lease is for waiting, the other half for the session and its first heartbeat.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock::Boot;

/// The most. What says nothing for so long is stopped or stuck.
const MOST: Duration = Duration::from_secs(5);
/// The least, however short a lease: what is only slow is not to be killed for it.
const LEAST: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub struct Patience {
    begun: Instant,
    until: Mutex<Instant>,
}

impl Patience {
    /// Begins now.
    #[must_use]
    pub fn new() -> Self {
        let begun = Instant::now();
        Self { begun, until: Mutex::new(begun + MOST) }
    }

    /// A job lives, and is killed then, unless its lease is extended.
    pub fn spare(&self, deadline: Boot) {
        let half = Instant::now() + deadline.until(Boot::now()) / 2;
        let mut until = self.until.lock();
        *until = half.max(self.begun + LEAST).min(*until);
    }

    /// How much of it is left.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.until.lock().saturating_duration_since(Instant::now())
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_lease_that_was_found_decides_within_bounds() {
        let patience = Patience::new();
        assert!(patience.left() > Duration::from_secs(4));
        patience.spare(Boot::now().plus(Duration::from_secs(60)));
        assert!(patience.left() > Duration::from_secs(4), "a long lease has time");
        patience.spare(Boot::now().plus(Duration::from_secs(4)));
        let left = patience.left();
        assert!(left > Duration::from_secs(1) && left <= Duration::from_secs(2), "{left:?}");
        patience.spare(Boot::now().plus(Duration::from_secs(60)));
        assert!(patience.left() <= Duration::from_secs(2), "it never grows");
        patience.spare(Boot::now());
        assert!(patience.left() <= LEAST);
        let patience = Patience::new();
        patience.spare(Boot::now());
        assert!(patience.left() > Duration::ZERO, "what is only slow has its moment");
    }
}
