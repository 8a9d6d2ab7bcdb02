//! What goes to the node: a message is chosen only when the connection has room for it, heartbeats first, then what
//! the attempts have to say, in turn.

use std::{sync::Arc, time::Duration};

use hodei_proto::v1::{WorkerHeartbeat, WorkerMessage, worker_message::Kind};
use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, sleep_until},
};

use super::Shared;
use crate::{
    attempt::Attempt,
    log::Wanted,
    roster::{Heartbeat, Outgoing},
};

/// Between two heartbeats where nothing happens and no lease asks for more.
const INTERVAL: Duration = Duration::from_secs(3);
/// Changes within this time share a heartbeat.
const CHANGES_APART: Duration = Duration::from_millis(20);
/// A spool that cannot be read is asked again after this.
const DISK_RETRY: Duration = Duration::from_secs(1);

/// Feeds the stream until it takes no more.
pub async fn pump(shared: Arc<Shared>, messages: mpsc::Sender<WorkerMessage>) {
    let mut last = None;
    while let Ok(room) = messages.reserve().await {
        room.send(next(&shared, &mut last).await);
    }
}

async fn next(shared: &Arc<Shared>, last: &mut Option<Instant>) -> WorkerMessage {
    loop {
        let due = heartbeat_at(shared, *last);
        if Instant::now() >= due {
            *last = Some(Instant::now());
            return heartbeat(shared);
        }
        match shared.roster.next() {
            Outgoing::Message(message) => return message,
            Outgoing::Read(attempt, wanted) => read_back(shared, attempt, wanted),
            Outgoing::Nothing => {
                tokio::select! {
                    () = shared.roster.woken() => {}
                    () = sleep_until(due) => {}
                }
            }
        }
    }
}

fn heartbeat_at(shared: &Shared, last: Option<Instant>) -> Instant {
    let now = Instant::now();
    let Some(last) = last else { return now };
    match shared.roster.heartbeat_due() {
        Heartbeat::Asked => now,
        Heartbeat::Changed => last + CHANGES_APART,
        Heartbeat::Regular => last + shared.leases.shortest().map_or(INTERVAL, |shortest| (shortest / 6).min(INTERVAL)),
    }
}

/// The clock is read before the message leaves: a deadline that counts from here is never too late.
fn heartbeat(shared: &Shared) -> WorkerMessage {
    crate::failpoint!("agent::before-heartbeat");
    let sequence = shared.next_sequence();
    let attempts = shared.roster.take_heartbeat();
    shared.leases.sent(sequence);
    let stats = shared.metrics.current();
    let heartbeat = WorkerHeartbeat { session_id: shared.id.clone(), sequence, attempts, stats };
    WorkerMessage { kind: Some(Kind::Heartbeat(heartbeat)) }
}

fn read_back(shared: &Arc<Shared>, attempt: Arc<Attempt>, wanted: Wanted) {
    let roster = Arc::clone(&shared.roster);
    shared.tasks.spawn(async move {
        let from = wanted.from;
        loop {
            let again = wanted.clone();
            match spawn_blocking(move || again.read()).await {
                Ok(Ok(batches)) => break attempt.log.replayed(from, batches),
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                    // It was given up in the meantime, or the attempt is forgotten.
                    break attempt.log.replayed(from, Vec::new());
                }
                Ok(Err(error)) => tracing::error!(attempt = %attempt.key, %error, "cannot read a spool"),
                Err(_) => return,
            }
            tokio::time::sleep(DISK_RETRY).await;
        }
        roster.ready(&attempt);
    });
}
