//! Clocks. Leases and timeouts run on CLOCK_BOOTTIME, because it goes on while the machine is suspended; the wall
//! clock only labels log lines.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment on this machine's boot-time clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Boot(pub Duration);

impl Boot {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux since 2.6.39 has CLOCK_BOOTTIME");
        Self(Duration::from(now))
    }

    /// This moment and `by` more.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }

    /// How long until this moment; zero once it has passed.
    #[must_use]
    pub fn until(self, now: Self) -> Duration {
        self.0.saturating_sub(now.0)
    }
}

/// Sleeps until `moment`. The runtime's timer stands still during a suspension, so it is asked again every second.
pub async fn sleep_until(moment: Boot) {
    loop {
        let left = moment.until(Boot::now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(1))).await;
    }
}

/// Unix milliseconds, informative.
#[must_use]
pub fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
