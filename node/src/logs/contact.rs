//! When a reader that gets nothing is sent elsewhere: this node is cut off from where its log may go on.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::hub::Ledger;

/// For so long nothing comes, and no majority is reached, before a reader is sent elsewhere. An election takes less as a rule.
pub const ALONE: Duration = Duration::from_secs(2);
/// Nothing comes for so long before a majority is looked for, and it has so long to answer.
const LOOK: Duration = Duration::from_secs(1);

/// While a reader waits here.
pub struct Contact {
    came: Instant,
    /// Since when no majority has been reached.
    alone: Option<Instant>,
}

impl Contact {
    /// A reader begins to wait.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { came: now, alone: None }
    }

    /// Something came for it.
    pub fn came(&mut self, now: Instant) {
        self.came = now;
    }

    /// Waits until nothing has come, and no majority has been reached, for so long. May be dropped and begun again.
    pub async fn lost(&mut self, ledger: &dyn Ledger, patience: Duration) {
        loop {
            sleep_until(self.came + LOOK).await;
            let begun = Instant::now();
            if ledger.reaches_majority(begun + LOOK).await {
                self.alone = None;
            } else {
                let alone = *self.alone.get_or_insert(begun);
                if Instant::now() >= self.came.max(alone) + patience {
                    return;
                }
            }
            sleep(LOOK / 2).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tokio::time::timeout;

    use super::*;
    use crate::testing::Replica;

    #[tokio::test(start_paused = true)]
    async fn a_majority_that_is_away_for_a_moment_is_waited_for() {
        let replica = Replica::new();
        let mut contact = Contact::new(Instant::now());
        let within = async |contact: &mut Contact, seconds| {
            timeout(Duration::from_secs(seconds), contact.lost(&replica, ALONE)).await.is_ok()
        };
        assert!(!within(&mut contact, 60).await, "there is a majority");
        replica.is_alone.store(true, Ordering::Relaxed);
        assert!(!within(&mut contact, 1).await, "for a second there is none");
        replica.is_alone.store(false, Ordering::Relaxed);
        assert!(!within(&mut contact, 60).await, "it is back");
        replica.is_alone.store(true, Ordering::Relaxed);
        assert!(!within(&mut contact, 1).await);
        contact.came(Instant::now());
        assert!(!within(&mut contact, 1).await, "something came");
        assert!(within(&mut contact, 2).await, "nothing for two seconds");
    }
}
