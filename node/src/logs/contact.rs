//! When a reader that gets nothing is sent elsewhere: this node is cut off from where its log may go on.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::hub::Ledger;

/// For so long nothing comes, and no majority is reached, before a reader is sent elsewhere. An election takes less as a rule.
pub const ALONE: Duration = Duration::from_secs(2);
/// The same at the gateway of the log's worker, at most: without a majority lines may come here and nowhere else, until the
/// agent has gone on to another gateway, or its lease is over.
pub const ALONE_AT_GATEWAY: Duration = Duration::from_secs(15);
/// For so long nothing comes, and the log's gateway is asked in vain, before a reader is sent elsewhere. An agent that can has
/// left a gateway that is dead by then.
pub const SILENT_GATEWAY: Duration = Duration::from_secs(15);
/// For a majority to answer, and from the beginning of one look for it to that of the next.
const LOOK: Duration = Duration::from_secs(1);

/// Since when no majority has been reached, if so.
pub type Alone = watch::Sender<Option<Instant>>;

/// Looks for a majority while anybody wants to know. One for all readers of a node.
pub async fn look(ledger: Arc<dyn Ledger>, alone: Alone) {
    loop {
        let begun = Instant::now();
        if alone.receiver_count() == 0 {
            // Whoever comes next is not to suffer from what was once.
            alone.send_replace(None);
        } else {
            let is_reached = ledger.reaches_majority(begun + LOOK).await;
            alone.send_if_modified(|since| {
                let before = *since;
                *since = if is_reached { None } else { before.or(Some(begun)) };
                *since != before
            });
        }
        sleep_until(begun + LOOK).await;
    }
}

/// While a reader waits here.
pub struct Contact {
    came: Instant,
    alone: watch::Receiver<Option<Instant>>,
}

impl Contact {
    /// A reader begins to wait.
    #[must_use]
    pub fn new(alone: &Alone, now: Instant) -> Self {
        Self { came: now, alone: alone.subscribe() }
    }

    /// Something came for it.
    pub fn came(&mut self, now: Instant) {
        self.came = now;
    }

    /// Since when nothing has come and something else has held.
    #[must_use]
    pub fn quiet_since(&self, since: Instant) -> Instant {
        since.max(self.came)
    }

    /// Waits until nothing has come, and no majority has been reached, for so long. May be dropped and begun again.
    pub async fn lost(&mut self, patience: Duration) {
        loop {
            let since = *self.alone.borrow_and_update();
            let until = since.map(|since| self.quiet_since(since) + patience);
            tokio::select! {
                changed = self.alone.changed() => if changed.is_err() {
                    // The hub that the reader keeps has a sender, too.
                    std::future::pending::<()>().await;
                },
                () = sleep_until(until.unwrap_or(self.came)), if until.is_some() => return,
            }
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
        let (replica, alone) = (Replica::new(), Alone::new(None));
        let mut contact = Contact::new(&alone, Instant::now());
        let looking = tokio::spawn(look(Arc::new(replica.clone()), alone.clone()));
        // Whatever else the reader has to look at meanwhile.
        let within = async |contact: &mut Contact, seconds: u64| {
            for _ in 0..seconds * 10 {
                if timeout(Duration::from_millis(100), contact.lost(ALONE)).await.is_ok() {
                    return true;
                }
            }
            false
        };
        assert!(!within(&mut contact, 60).await, "there is a majority");
        for _ in 0..5 {
            replica.is_alone.store(true, Ordering::Relaxed);
            assert!(!within(&mut contact, 1).await, "for a second there is none");
            replica.is_alone.store(false, Ordering::Relaxed);
            assert!(!within(&mut contact, 5).await, "it is back");
        }
        replica.is_alone.store(true, Ordering::Relaxed);
        for _ in 0..10 {
            assert!(!within(&mut contact, 1).await);
            contact.came(Instant::now());
        }
        assert!(within(&mut contact, 3).await, "nothing has come for two seconds");
        drop(contact);
        sleep_until(Instant::now() + 2 * LOOK).await;
        assert_eq!(*alone.borrow(), None, "nobody asks");
        looking.abort();
    }
}
