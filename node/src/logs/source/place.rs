//! What the state says of where a log lies, and what tells that this has changed.

use hodei_proto::v1;
use hodei_state::{
    State,
    ids::{NodeId, WorkerId},
};
use tokio::sync::watch;

use crate::{
    convert::to_proto,
    logs::{file::LogFile, frame::LogKey, hub::Hub},
};

/// What the state says of a log: a change of it may mean another place to read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Who holds something, in the order in which to ask.
    pub(super) holders: Vec<NodeId>,
    /// The last one to whom it was given.
    pub(super) last: Option<NodeId>,
    /// Whose attempt it is.
    pub(super) worker: Option<WorkerId>,
    /// Whether it has ended.
    pub(super) ended: bool,
    /// The figures that it ended with; a lost one has none.
    pub(super) figures: Option<v1::LogEnd>,
}

impl Place {
    pub(super) fn of(state: &State, key: LogKey) -> Self {
        let attempt = state.attempt(key.job, key.attempt);
        let worker = attempt.map(|attempt| attempt.worker);
        let gateway = gateway(state, key);
        let end = attempt.and_then(|attempt| attempt.end.as_ref());
        let figures = end.and_then(|end| end.log.as_ref()).map(to_proto::log_end);
        let mut segments: Vec<_> = state.segments(key.job, key.attempt).collect();
        segments.reverse();
        let newest_first =
            segments.iter().flat_map(|segment| segment.holders.iter().rev().map(|holder| state.heir(*holder)));
        let mut holders: Vec<NodeId> = Vec::new();
        for node in newest_first {
            if !holders.contains(&node) {
                holders.push(node);
            }
        }
        // Stable: the gateway first, the others as they were.
        holders.sort_by_key(|node| Some(*node) != gateway);
        let last = segments.first().and_then(|segment| segment.holders.last()).map(|holder| state.heir(*holder));
        Self { holders, last, worker, ended: end.is_some(), figures }
    }

    /// Whether nobody knows how much there is of the log: its attempt was lost.
    pub(super) fn is_lost(&self) -> bool {
        self.ended && self.figures.is_none()
    }

    /// Whether that is where new lines of a running attempt come: the worker's gateway or, before that is known to have
    /// begun a copy, the last one that had. With another one nobody stays once it has given what it has.
    pub(super) fn grows_at(&self, holder: NodeId) -> bool {
        self.holders.first() == Some(&holder)
    }

    /// Whether a file holds everything up to the last entry.
    pub(super) fn is_reached(&self, file: &LogFile) -> bool {
        let progress = file.progress();
        !progress.failed && self.figures.as_ref().is_some_and(|end| progress.tally.last_sequence >= end.last_sequence)
    }
}

/// To whom an attempt's worker speaks, as far as the state says.
fn gateway(state: &State, key: LogKey) -> Option<NodeId> {
    let attempt = state.attempt(key.job, key.attempt)?;
    state.worker(attempt.worker)?.gateway
}

/// The same of one that runs.
pub(in crate::logs) fn live_gateway(state: &State, key: LogKey) -> Option<NodeId> {
    state.attempt(key.job, key.attempt).filter(|attempt| attempt.end.is_none())?;
    gateway(state, key)
}

/// What wakes a source: the job and, once the attempt exists, its worker.
pub(super) struct Wakes {
    job: watch::Receiver<u64>,
    worker: Option<watch::Receiver<u64>>,
}

impl Wakes {
    pub(super) fn new(hub: &Hub, key: LogKey) -> Self {
        Self { job: hub.ledger().watch_job(key.job), worker: None }
    }

    /// What the state says now; whatever comes after it counts as a change.
    pub(super) fn look(&mut self, hub: &Hub, key: LogKey) -> Place {
        self.job.borrow_and_update();
        if let Some(worker) = &mut self.worker {
            worker.borrow_and_update();
        }
        let place = Place::of(&hub.ledger().state(), key);
        match (place.worker, &self.worker) {
            (Some(worker), None) => {
                self.worker = Some(hub.ledger().watch_worker(worker));
                Place::of(&hub.ledger().state(), key)
            }
            _ => place,
        }
    }

    pub(super) async fn changed(&mut self) {
        let worker = async {
            match &mut self.worker {
                Some(worker) => worker.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        let open = tokio::select! {
            changed = self.job.changed() => changed.is_ok(),
            open = worker => open,
        };
        if !open {
            // The replica is gone: the node stops, and this task with it.
            std::future::pending::<()>().await;
        }
    }
}
