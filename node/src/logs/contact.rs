//! Whether a node that has nothing to send to a reader may be cut off from where the log goes on.

use std::time::Duration;

use hodei_raft::Leadership;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// For so long nothing comes and no leader is known before a reader is sent elsewhere. An election takes less as a rule.
const ALONE: Duration = Duration::from_secs(2);

/// What this node knows of a leader, while a reader waits here.
pub struct Contact {
    leadership: watch::Receiver<Leadership>,
    /// Since when none has been known.
    alone: Option<Instant>,
    /// When something came last.
    came: Instant,
}

impl Contact {
    /// A reader begins to wait.
    #[must_use]
    pub fn new(leadership: watch::Receiver<Leadership>, now: Instant) -> Self {
        Self { leadership, alone: None, came: now }
    }

    /// Something came for it.
    pub fn came(&mut self, now: Instant) {
        self.came = now;
    }

    /// Waits until no leader has been known, and nothing has come, for too long. May be dropped and begun again.
    pub async fn lost(&mut self) {
        loop {
            let is_alone = matches!(*self.leadership.borrow_and_update(), Leadership::Following { leader: None });
            self.alone = is_alone.then(|| self.alone.unwrap_or_else(Instant::now));
            let until = self.alone.map(|since| since.max(self.came) + ALONE);
            tokio::select! {
                changed = self.leadership.changed() => if changed.is_err() {
                    // The replica is gone: the node stops.
                    std::future::pending::<()>().await;
                },
                () = sleep_until(until.unwrap_or(self.came)), if until.is_some() => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{error::Elapsed, sleep, timeout};

    use super::*;

    async fn within(contact: &mut Contact, ms: u64) -> Result<(), Elapsed> {
        timeout(Duration::from_millis(ms), contact.lost()).await
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_lost_once_nobody_leads_and_nothing_comes_for_two_seconds() {
        let leadership = watch::Sender::new(Leadership::Following { leader: Some(2) });
        let mut contact = Contact::new(leadership.subscribe(), Instant::now());
        assert!(within(&mut contact, 60_000).await.is_err(), "somebody leads");
        leadership.send_replace(Leadership::Following { leader: None });
        assert!(within(&mut contact, 1_900).await.is_err());
        contact.came(Instant::now());
        assert!(within(&mut contact, 1_900).await.is_err(), "something came");
        leadership.send_replace(Leadership::Preparing { term: 2 });
        assert!(within(&mut contact, 60_000).await.is_err(), "this node leads");
        leadership.send_replace(Leadership::Following { leader: None });
        let begun = Instant::now();
        let change = async {
            sleep(Duration::from_secs(1)).await;
            leadership.send_replace(Leadership::Following { leader: None });
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = contact.lost() => assert_eq!(begun.elapsed(), ALONE),
            () = change => {}
        }
    }
}
