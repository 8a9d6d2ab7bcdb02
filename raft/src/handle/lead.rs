//! Who leads, and what a leader does before it says so.
//!
//! Elected is not leading yet. A new leader first applies its own first entry, so that it knows every command that was
//! ever acknowledged; then it asks the members for their wall clocks and fixes the base of its stamps,
//! `max(last stamp, lower median of a majority's clocks)`, so that one wrong clock cannot move time. Only then is
//! [`Leadership::Leading`] published and the coalescer accepts commands.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use hodei_state::ids::{Millis, Mono, NodeId};
use openraft::{ServerState, alias::WatchReceiverOf, async_runtime::watch::WatchReceiver, metrics::RaftServerMetrics};
use tokio::sync::watch;

use super::propose;
use crate::{
    machine::Replica,
    network::{
        peers::Peers,
        wire::{ProbeRequestV1, ProbeResponseV1},
    },
    seam::Clock,
    types::TypeConfig,
};

/// This node's part in the cluster, as far as commands are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// Another node leads, or nobody is known to.
    Following {
        /// Who.
        leader: Option<NodeId>,
    },
    /// Elected, but not ready: commands wait.
    Preparing {
        /// The term of the leadership to be.
        term: u64,
    },
    /// Takes commands. Everything decided now is decided for this term.
    Leading {
        /// The term of this leadership.
        term: u64,
    },
}

/// A leadership that takes commands, and its clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reign {
    pub(crate) term: u64,
    base: Millis,
    since: Mono,
}

impl Reign {
    /// The stamp for an entry proposed now.
    pub(crate) fn now(&self, clock: &dyn Clock) -> Millis {
        self.base.plus(clock.mono().0.saturating_sub(self.since.0))
    }
}

/// One question for a clock.
const PROBE_TIMEOUT: Duration = Duration::from_millis(250);

/// Watches openraft and publishes what it means. One task.
pub(crate) struct Leader {
    pub(crate) metrics: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) peers: Peers,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) reign: watch::Sender<Option<Reign>>,
    pub(crate) leadership: watch::Sender<Leadership>,
}

impl Leader {
    /// Runs until openraft stops.
    pub(crate) async fn run(mut self) {
        loop {
            let now = self.observe();
            self.publish(now);
            if let Leadership::Preparing { term } = now {
                let (replica, peers, mut metrics) = (self.replica.clone(), self.peers.clone(), self.metrics.clone());
                let voters: Vec<NodeId> = self.voters();
                tokio::select! {
                    base = prepare(&replica, &peers, &*self.clock, &voters, term) => {
                        hodei_state::failpoint!("lead::before-leading");
                        self.reign.send_replace(Some(Reign { term, base, since: self.clock.mono() }));
                        self.publish(self.observe());
                    }
                    changed = until_changed(&mut metrics, term, peers.me) => if !changed { return },
                }
                if self.observe() == now {
                    continue;
                }
            }
            if self.metrics.changed().await.is_err() {
                self.reign.send_replace(None);
                return;
            }
        }
    }

    fn observe(&self) -> Leadership {
        let metrics = self.metrics.borrow_watched();
        let term = metrics.vote.leader_id.term;
        let leads = metrics.state == ServerState::Leader && metrics.vote.committed;
        match *self.reign.borrow() {
            Some(reign) if leads && reign.term == term => Leadership::Leading { term },
            _ if leads => Leadership::Preparing { term },
            _ => Leadership::Following { leader: metrics.current_leader.filter(|leader| *leader != self.peers.me) },
        }
    }

    fn publish(&self, now: Leadership) {
        if !matches!(now, Leadership::Leading { .. }) {
            self.reign.send_if_modified(|reign| reign.take().is_some());
        }
        self.leadership.send_if_modified(|published| std::mem::replace(published, now) != now);
    }

    fn voters(&self) -> Vec<NodeId> {
        self.metrics.borrow_watched().membership_config.voter_ids().collect()
    }
}

/// Resolves when this node no longer leads in `term`; false: openraft has stopped.
async fn until_changed(
    metrics: &mut WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    term: u64,
    me: NodeId,
) -> bool {
    loop {
        {
            let now = metrics.borrow_watched();
            let leads = now.vote.committed && now.vote.leader_id.term == term && now.vote.leader_id.voted_for == me;
            if !leads || now.state != ServerState::Leader {
                return true;
            }
        }
        if metrics.changed().await.is_err() {
            return false;
        }
    }
}

/// Waits for the first entry of `term` to be applied, then for a majority's clocks.
async fn prepare(replica: &Replica, peers: &Peers, clock: &dyn Clock, voters: &[NodeId], term: u64) -> Millis {
    let mut applied = replica.applied();
    let own_entry = applied.wait_for(|applied| applied.is_some_and(|id| **id.committed_leader_id() >= term)).await;
    // The sender is the replica itself.
    drop(own_entry);
    if hodei_state::armed!("bug::own-clock-taken") {
        return replica.stamp().max(clock.wall());
    }
    loop {
        if let Some(median) = majority_clock(peers, clock, voters).await {
            return replica.stamp().max(median);
        }
        tokio::time::sleep(propose::PAUSE).await;
    }
}

/// The lower median of the first majority of clocks to answer. None: a majority did not answer.
async fn majority_clock(peers: &Peers, clock: &dyn Clock, voters: &[NodeId]) -> Option<Millis> {
    let needed = voters.len() / 2 + 1;
    let mut clocks = Vec::with_capacity(needed);
    if voters.contains(&peers.me) || voters.is_empty() {
        clocks.push(clock.wall());
    }
    let others = voters.iter().copied().filter(|id| *id != peers.me);
    let mut asked: FuturesUnordered<_> = others.map(|id| probe(peers, id, u64::MAX, PROBE_TIMEOUT)).collect();
    while clocks.len() < needed {
        if let Some(answer) = asked.next().await? {
            clocks.push(Millis(answer.wall_clock));
        }
    }
    clocks.sort_unstable();
    clocks.get((clocks.len() - 1) / 2).copied()
}

/// Asks a peer about itself.
pub(crate) async fn probe(peers: &Peers, node: NodeId, hashes_from: u64, timeout: Duration) -> Option<ProbeResponseV1> {
    let question = ProbeRequestV1 { hashes_from };
    let answer = peers.call(node, timeout, &question, |mut client, request| async move { client.probe(request).await });
    answer.await.inspect_err(|error| tracing::debug!(node, %error, "a probe was not answered")).ok()
}
