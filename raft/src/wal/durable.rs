//! Up to where the log is durable, and waiting for it.

use std::{io, sync::Arc};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::{EntryId, Lsn};

/// Up to where the log is durable and marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DurablePoint {
    /// The last durable record.
    pub lsn: Lsn,
    /// The last entry of the log as of that record, or its purge point.
    pub last: Option<EntryId>,
}

/// Lets others wait until the log is durable through something. Clones share what they see.
#[derive(Clone, Debug)]
pub struct Durable {
    shared: Arc<Shared>,
    watch: watch::Receiver<DurablePoint>,
}

#[derive(Debug)]
struct Shared {
    /// The point, and whether the log has closed.
    state: Mutex<(DurablePoint, bool)>,
    moved: Condvar,
}

pub(super) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the log is closed")
}

impl Durable {
    /// The point now.
    #[must_use]
    pub fn now(&self) -> DurablePoint {
        self.shared.state.lock().0
    }

    /// Changes of the point; the sender goes away when the log closes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<DurablePoint> {
        self.watch.clone()
    }

    /// Waits on a thread until `reached`.
    ///
    /// # Errors
    /// If the log closes before.
    pub fn wait_blocking(&self, reached: impl Fn(&DurablePoint) -> bool) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        while !reached(&state.0) {
            if state.1 {
                return Err(closed());
            }
            self.shared.moved.wait(&mut state);
        }
        Ok(())
    }

    /// Waits in a task until `reached`.
    ///
    /// # Errors
    /// If the log closes before.
    pub async fn wait(&self, reached: impl Fn(&DurablePoint) -> bool) -> io::Result<()> {
        match self.watch.clone().wait_for(reached).await {
            Ok(_) => Ok(()),
            Err(_) => Err(closed()),
        }
    }
}

/// The publishing side of [`Durable`].
pub(super) struct Publisher {
    shared: Arc<Shared>,
    watch: watch::Sender<DurablePoint>,
}

/// A log that is durable up to here, and its publisher.
pub(super) fn durable(point: DurablePoint) -> (Publisher, Durable) {
    let shared = Arc::new(Shared { state: Mutex::new((point, false)), moved: Condvar::new() });
    let (sender, watch) = watch::channel(point);
    (Publisher { shared: shared.clone(), watch: sender }, Durable { shared, watch })
}

impl Publisher {
    pub(super) fn publish(&self, point: DurablePoint) {
        self.shared.state.lock().0 = point;
        self.shared.moved.notify_all();
        self.watch.send_replace(point);
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.shared.state.lock().1 = true;
        self.shared.moved.notify_all();
    }
}
