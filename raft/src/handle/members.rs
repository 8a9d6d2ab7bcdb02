//! Who belongs to the cluster, one change at a time. Only the leader can change that.

use std::{collections::BTreeSet, time::Duration};

use super::{Handle, Leadership};
use crate::{error::MembershipError, types::TypeConfig};
use hodei_state::ids::NodeId;
use openraft::{
    ChangeMembers,
    async_runtime::watch::WatchReceiver,
    errors::{ChangeMembershipError, ClientWriteError, Fatal, InitializeError, RaftError},
};

/// For one change, confirmed by a majority.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

impl Handle {
    /// Makes this node the first, and so far only, voter. Succeeds again where it had been done before.
    pub async fn initialize(&self) -> Result<(), MembershipError> {
        let members = BTreeSet::from([self.node_id()]);
        match self.inner.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(error)) => Err(MembershipError::Refused(error.to_string())),
            Err(RaftError::Fatal(_)) => Err(MembershipError::Stopped),
        }
    }

    /// Lets a node listen. Returns once that is committed; [`Handle::status`] tells when the node has caught up.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), MembershipError> {
        let changed = tokio::time::timeout(CHANGE_TIMEOUT, self.inner.raft.add_learner(node, (), false)).await;
        self.changed(changed.map(|result| result.map(drop)))
    }

    /// Lets a learner vote. The caller has seen that it caught up.
    pub async fn promote(&self, node: NodeId) -> Result<(), MembershipError> {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([node]))).await
    }

    /// Takes a node out, voter or learner. Where it is this node itself, leadership is handed over first and the change
    /// is left to the successor: [`MembershipError::NotLeader`] says who that is.
    pub async fn remove_member(&self, node: NodeId) -> Result<(), MembershipError> {
        let (voter, alone) = {
            let metrics = self.inner.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let voters: BTreeSet<NodeId> = metrics.membership_config.voter_ids().collect();
            if metrics.membership_config.get_node(&node).is_none() {
                return Ok(());
            }
            (voters.contains(&node), voters.len() == 1)
        };
        if voter && alone {
            return Err(MembershipError::Refused("the last voter cannot be removed".to_owned()));
        }
        if voter && node == self.node_id() {
            return self.leave_it_to(None).await;
        }
        if voter {
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([node]))).await
        } else {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([node]))).await
        }
    }

    /// Has a learner vote in place of a voter, in one change. The caller has seen that the learner caught up. Where the voter
    /// is this node itself, it is as in [`Handle::remove_member`].
    pub async fn swap(&self, old: NodeId, new: NodeId) -> Result<(), MembershipError> {
        if old == self.node_id() {
            return self.leave_it_to(None).await;
        }
        let mut voters: BTreeSet<NodeId> = {
            let metrics = self.inner.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.voter_ids().collect()
        };
        voters.remove(&old);
        voters.insert(new);
        self.change(ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// Takes the second step of a change that somebody else began. Where this node is not to vote after it, leadership goes
    /// to one that is, and the step is left to that: [`MembershipError::NotLeader`].
    pub async fn finish_change(&self) -> Result<(), MembershipError> {
        let next: BTreeSet<NodeId> = {
            let metrics = self.inner.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().get_joint_config().last().cloned().unwrap_or_default()
        };
        if !next.contains(&self.node_id()) {
            let mut refused = MembershipError::Refused("no voter is left".to_owned());
            for node in next {
                // Whoever does not answer cannot go on with it.
                match self.leave_it_to(Some(node)).await {
                    Err(error @ MembershipError::Refused(_)) => refused = error,
                    over => return over,
                }
                if self.leader() != Some(self.node_id()) {
                    return Err(MembershipError::NotLeader { leader: self.leader() });
                }
            }
            return Err(refused);
        }
        // To add nobody is the second step alone.
        self.change(ChangeMembers::AddVoterIds(BTreeSet::new())).await
    }

    /// Hands leadership over, because this node is not to vote after the change: its successor makes it.
    async fn leave_it_to(&self, to: Option<NodeId>) -> Result<(), MembershipError> {
        self.transfer_leader(to).await?;
        Err(MembershipError::NotLeader { leader: self.leader() })
    }

    async fn change(&self, change: ChangeMembers<NodeId, ()>) -> Result<(), MembershipError> {
        let changed = tokio::time::timeout(CHANGE_TIMEOUT, self.inner.raft.change_membership(change, false)).await;
        self.changed(changed.map(|result| result.map(drop)))
    }

    fn changed<T>(
        &self,
        changed: Result<Result<T, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>, tokio::time::error::Elapsed>,
    ) -> Result<T, MembershipError> {
        let error = match changed {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(RaftError::APIError(error))) => error,
            Ok(Err(RaftError::Fatal(Fatal::StorageError(_) | Fatal::Panicked | Fatal::Stopped))) => {
                return Err(MembershipError::Stopped);
            }
            Err(_) => return Err(MembershipError::Unknown("the change is not confirmed by a majority".to_owned())),
        };
        Err(match error {
            ClientWriteError::ForwardToLeader(_) => MembershipError::NotLeader { leader: self.leader() },
            ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
            ) => MembershipError::InProgress,
            ClientWriteError::LogEntryDiscarded(_) => {
                MembershipError::NoQuorum("leadership changed in between".to_owned())
            }
            other => MembershipError::Refused(other.to_string()),
        })
    }

    /// Who leads, as far as this node knows; itself as soon as it is elected.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        match *self.inner.leadership.borrow() {
            Leadership::Following { leader } => leader,
            Leadership::Preparing { .. } | Leadership::Leading { .. } => Some(self.node_id()),
        }
    }
}
