//! What this node knows of itself and the others; local, without asking anybody.

use std::time::Duration;

use hodei_state::ids::NodeId;
use openraft::{Instant as _, async_runtime::watch::WatchReceiver};

use super::{Handle, Position};

/// See [`Handle::status`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node_id: NodeId,
    /// Who leads in this term, as far as is known here; none if nothing was heard of it for two election time-outs.
    pub leader: Option<NodeId>,
    /// The current term.
    pub term: u64,
    /// What is applied here.
    pub applied: Position,
    /// What is known here to be committed; never before `applied`.
    pub committed: Position,
    /// The end of the log here.
    pub last_log: Position,
    /// The last entry in the newest snapshot here.
    pub snapshot_index: u64,
    /// The last entry whose changes the local store durably holds; what is after it is replayed at a start.
    pub stored_index: u64,
    /// The log begins after this.
    pub purged_index: u64,
    /// Voters of the newest membership known here.
    pub voters: Vec<NodeId>,
    /// Learners of it.
    pub learners: Vec<NodeId>,
    /// A change of membership is under way: it has further steps, or is not known here to be committed.
    pub changing: bool,
    /// The change under way is half done: its first step is committed, and its second is due, be it because the leader
    /// that began it is gone.
    pub half_changed: bool,
    /// Whether a majority seems to be there.
    pub quorum: bool,
    /// What the leader knows of the others; empty elsewhere.
    pub peers: Vec<PeerStatus>,
    /// Hash of the state at `applied`.
    pub hash: u128,
}

impl Status {
    /// Whether a node is a voter or a learner.
    #[must_use]
    pub fn counts_in(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }
}

/// What the leader knows of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Which.
    pub node: NodeId,
    /// Its log agrees with the leader's up to here.
    pub matched_index: u64,
    /// How long ago it answered.
    pub heard: Option<Duration>,
}

impl Handle {
    /// See [`Status`].
    #[must_use]
    pub fn status(&self) -> Status {
        let (applied, hash) = self.inner.replica.with(|held| (held.applied, held.state.hash()));
        let leader = self.inner.quorum.leader();
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = &metrics.membership_config;
        let heartbeat = |node: &NodeId| metrics.heartbeat.as_ref()?.get(node).copied().flatten();
        let peers =
            metrics.replication.iter().flatten().filter(|(node, _)| **node != metrics.id).map(|(node, matched)| {
                PeerStatus {
                    node: *node,
                    matched_index: matched.map_or(0, |id| id.index()),
                    heard: heartbeat(node).map(|heard| heard.elapsed()),
                }
            });
        let committed = metrics.local_committed.max(applied);
        let (joint, pending) = (membership.get_joint_config().len() > 1, *membership.log_id() > applied);
        Status {
            node_id: metrics.id,
            // Of the same term as `term`.
            leader: leader.filter(|&leader| metrics.current_leader == Some(leader)),
            term: metrics.current_term,
            applied: applied.map(Position::from).unwrap_or_default(),
            committed: committed.map(Position::from).unwrap_or_default(),
            // After the above: while it leads its log only grows, and no committed entry ever goes.
            last_log: self.inner.log.last().map(Position::from).unwrap_or_default(),
            snapshot_index: metrics.snapshot.map_or(0, |id| id.index()),
            stored_index: self.inner.behind.written(),
            purged_index: metrics.purged.map_or(0, |id| id.index()),
            voters: membership.voter_ids().collect(),
            learners: membership.membership().learner_ids().collect(),
            changing: joint || pending,
            half_changed: joint && !pending,
            quorum: leader.is_some(),
            peers: peers.collect(),
            hash,
        }
    }
}
