//! When a reader that gets nothing is sent elsewhere: this node is cut off from where its log may go on.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::hub::Ledger;

/// For so long nothing comes before a reader is sent elsewhere. An election takes less as a rule.
pub const ALONE: Duration = Duration::from_secs(2);
/// The same at the gateway of the log's worker: lines may come here and nowhere else, and who is sent away without a majority
/// cannot come back.
pub const ALONE_AT_GATEWAY: Duration = Duration::from_secs(10);
/// Between looks for a majority.
const LOOK: Duration = Duration::from_millis(500);

/// While a reader waits here.
pub struct Contact {
    came: Instant,
}

impl Contact {
    /// A reader begins to wait.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { came: now }
    }

    /// Something came for it.
    pub fn came(&mut self, now: Instant) {
        self.came = now;
    }

    /// Waits until nothing has come for so long, and no leader speaks for a majority. May be dropped and begun again.
    pub async fn lost(&self, ledger: &dyn Ledger, patience: Duration) {
        sleep_until(self.came + patience).await;
        while ledger.has_quorum() {
            sleep(LOOK).await;
        }
    }
}
