//! Whether a majority was heard from lately. A leader that was cut off goes on leading until it hears otherwise; what it
//! appends then has an unknown outcome. Asking first turns most of that into "not done".

use std::{sync::Arc, time::Duration};

use hodei_state::ids::NodeId;

use openraft::{Instant as _, RaftMetrics, alias::WatchReceiverOf, async_runtime::watch::WatchReceiver};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::types::TypeConfig;

/// Looks at openraft's metrics, and at when this node last heard from a leader.
#[derive(Clone)]
pub(crate) struct Quorum {
    heard: Arc<Mutex<Option<Instant>>>,
    metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    patience: Duration,
}

impl Quorum {
    /// `patience`: silence of the majority for longer means that there is none.
    pub(crate) fn new(metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>, patience: Duration) -> Self {
        Self { heard: Arc::default(), metrics, patience }
    }

    /// For a leader: why it should not append, if so.
    pub(crate) fn refusal(&self) -> Option<String> {
        let metrics = self.metrics.borrow_watched();
        let alone = metrics.membership_config.voter_ids().all(|id| id == metrics.id);
        if alone {
            return None;
        }
        let silent = metrics.last_quorum_acked.map(|acked| acked.elapsed());
        match silent {
            Some(silent) if silent <= self.patience => None,
            Some(silent) => Some(format!("the leader has not heard from a majority for {} ms", silent.as_millis())),
            None => Some("the leader has not heard from a majority yet".to_owned()),
        }
    }

    /// A leader has spoken to this node. (openraft keeps naming a leader that has fallen silent: a pre-vote that fails
    /// changes no vote.)
    pub(crate) fn heard(&self) {
        *self.heard.lock() = Some(Instant::now());
    }

    /// For anybody: who leads, if a majority seems to be there.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let (me, leader) = {
            let metrics = self.metrics.borrow_watched();
            (metrics.id, metrics.current_leader?)
        };
        let present = if leader == me {
            self.refusal().is_none()
        } else {
            self.heard.lock().is_some_and(|heard| heard.elapsed() <= self.patience)
        };
        present.then_some(leader)
    }
}
