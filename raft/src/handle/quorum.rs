//! Whether a majority was heard from lately. A leader that was cut off goes on leading until it hears otherwise; what it
//! appends then has an unknown outcome. Asking first turns most of that into "not done".

use std::time::Duration;

use openraft::{Instant as _, RaftMetrics, alias::WatchReceiverOf, async_runtime::watch::WatchReceiver};

use crate::types::TypeConfig;

/// Looks at openraft's metrics.
#[derive(Clone)]
pub(crate) struct Quorum {
    metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    patience: Duration,
}

impl Quorum {
    /// `patience`: silence of the majority for longer means that there is none.
    pub(crate) fn new(metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>, patience: Duration) -> Self {
        Self { metrics, patience }
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

    /// For anybody: whether the leader, or this node as a leader, seems to have a majority.
    pub(crate) fn present(&self) -> bool {
        let (leads, led) = {
            let metrics = self.metrics.borrow_watched();
            (metrics.current_leader == Some(metrics.id), metrics.current_leader.is_some())
        };
        if leads { self.refusal().is_none() } else { led }
    }
}
