//! Removes finished jobs by age and number.

use std::time::Duration;

use hodei_raft::Handle;
use hodei_state::{Retention, retention};
use tokio::time::{Instant, sleep};

/// Between looks; what is due then goes in batches, one after the other.
const EVERY: Duration = Duration::from_secs(60);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs for as long as the leadership of `term` lasts.
pub async fn run(handle: Handle, term: u64) {
    loop {
        sleep(EVERY).await;
        loop {
            // By the newest stamp, which lags behind in a cluster where nothing happens; so does this then.
            let state = handle.view().state;
            let Some(command) = retention(&state, state.stamp(), Retention::default()) else { break };
            if let Err(error) = handle.propose_in_term(term, vec![command], Instant::now() + PROPOSE_TIMEOUT).await {
                tracing::debug!(%error, "finished jobs are not removed yet");
                break;
            }
        }
    }
}
