//! Somebody who speaks to a node with a damaged file before anybody knows under which id it goes on: whatever it then says
//! must be true.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::jobs;
use crate::run::field::{Field, Seat};

/// Before it is asked again: it is to be met in the moment in which it begins to serve.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks what the node itself has, and then what is newest, until it has said so or it is too late.
pub async fn ask(field: Field, seat: Seat, by: Instant) {
    let (proc, _) = field.process();
    while Instant::now() < by {
        let job = field.newest();
        if let Some(job) = &job {
            let _ = jobs::get(&field, proc, seat, job, true).await;
        }
        if jobs::list(&field, proc, seat).await.is_ok() {
            if let Some(job) = &job {
                let _ = jobs::get(&field, proc, seat, job, false).await;
            }
            return;
        }
        sleep(PAUSE).await;
    }
}
