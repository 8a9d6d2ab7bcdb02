//! What the cluster looks like from here, and changes of who leads and who belongs to it.

use std::time::Duration;

use hodei_proto::v1::{NodeStatus, RemoveRequest, RemoveResponse, StatusResponse, TransferLeaderResponse};
use hodei_raft::MembershipError;
use hodei_state::{
    State,
    command::Command,
    ids::{Caller, NodeId},
    registry::Member,
};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;

use super::Shared;
use crate::{error, peers::hello};

/// Between looks at a membership that is being changed.
const LOOK: Duration = Duration::from_millis(20);
/// Attempts that a refusal names whose output would be lost.
const LOGS_NAMED: usize = 3;

impl Shared {
    /// Local knowledge: needs no quorum, and says whether there is one.
    pub(super) async fn status(&self) -> StatusResponse {
        self.ask_again().await;
        let (view, raft) = (self.handle.view(), self.handle.status());
        let nodes = self.nodes(&view.state);
        let cluster = view.state.cluster();
        let mut warnings = Vec::new();
        let voters = nodes.iter().filter(|node| node.role == "voter").count();
        if voters > 0 && voters % 2 == 0 {
            warnings.push(even("voters", voters));
        }
        let leader = self.leader(&raft);
        if leader.is_none() {
            warnings.push(format!("no quorum: this is what node {} knows by itself", self.myself.node));
        }
        StatusResponse {
            cluster_id: cluster.map(|cluster| cluster.id.to_string()).unwrap_or_default(),
            leader,
            term: raft.term,
            applied_index: raft.applied.index,
            nodes,
            answered_by: self.myself.node,
            quorum: leader.is_some(),
            feature_level: view.state.feature_level(),
            state_hash: format!("{:032x}", raft.hash),
            warnings,
            applied: Some(super::position(raft.applied)),
            committed: Some(super::position(raft.committed)),
            last_log: Some(super::position(raft.last_log)),
        }
    }

    /// Nobody is called healthy, or leader, for what was heard of them before they died.
    pub(super) async fn ask_again(&self) {
        let applied = self.handle.status().applied.index;
        hello::ask_again(&self.peers, &self.myself, applied, self.healthy).await;
    }

    /// Who leads, as long as a majority stands behind it as far as can be known here: a follower knows by having heard
    /// of the leader lately, a leader by having heard of a majority.
    pub(super) fn leader(&self, raft: &hodei_raft::Status) -> Option<NodeId> {
        let heard = |leader| leader == self.myself.node || self.peers.heard_within(leader, self.healthy);
        let majority = || raft.voters.iter().filter(|&&voter| heard(voter)).count() * 2 > raft.voters.len();
        let stands = |leader| heard(leader) && (leader != self.myself.node || majority());
        raft.leader.filter(|&leader| raft.quorum && stands(leader))
    }

    /// The members that are not removed, as seen from here.
    pub(super) fn nodes(&self, state: &State) -> Vec<NodeStatus> {
        let raft = self.handle.status();
        let members = state.members().filter(|member| member.removed_at.is_none());
        members.map(|member| self.node(member, raft.voters.contains(&member.id), raft.applied.index)).collect()
    }

    fn node(&self, member: &Member, voter: bool, applied: u64) -> NodeStatus {
        let own = member.id == self.myself.node;
        let seen = self.peers.sighting(member.id);
        let version = seen.as_ref().map_or(&member.version, |seen| &seen.version);
        NodeStatus {
            id: member.id,
            address: self.address(member),
            role: if voter { "voter" } else { "learner" }.to_owned(),
            healthy: own || self.peers.heard_within(member.id, self.healthy),
            applied_index: if own { applied } else { seen.as_ref().map_or(0, |seen| seen.applied_index) },
            version: if own { env!("CARGO_PKG_VERSION").to_owned() } else { version.clone() },
            heard_ms_ago: if own {
                Some(0)
            } else {
                seen.map(|seen| u64::try_from(seen.at.elapsed().as_millis()).unwrap_or(u64::MAX))
            },
        }
    }

    /// The newest known: a Hello is heard before it is committed.
    fn address(&self, member: &Member) -> String {
        if member.id == self.myself.node {
            return self.myself.address.clone();
        }
        self.peers.book().borrow().address(member.id).unwrap_or(&member.address).to_owned()
    }

    /// Removes a member for good. Its place in the Raft membership follows by the reconcile loop; returns once that has
    /// happened, since until then its vote may be needed, and whoever asked for this stops it next.
    pub(super) async fn remove(
        &self,
        caller: Caller,
        request: RemoveRequest,
        by: Instant,
    ) -> Result<RemoveResponse, Status> {
        let node = request.node_id;
        if !request.lose_logs {
            keeps_no_log_alone(&self.handle.read(by).await.map_err(error::read)?.state, node)?;
        }
        let (_, position) = self.commit(caller, Command::RemoveNode { node }, by).await?;
        timeout_at(by, self.votes_no_more(node)).await.map_err(|_| {
            error::outcome_unknown(format!(
                "node {node} is removed, but still has a vote: keep it running, and repeat this"
            ))
        })?;
        let mut warnings = vec![format!(
            "node {node} has held the key of the cluster's CA: if it is no longer trusted, the CA has to be rotated"
        )];
        let left = self.handle.view().state.members().filter(|member| member.removed_at.is_none()).count();
        if left > 0 && left % 2 == 0 {
            warnings.push(even("members", left));
        }
        Ok(RemoveResponse { warnings, position: Some(position) })
    }

    /// Resolves once Raft goes on without a node. Itself, a node cannot see more than that the change has begun.
    async fn votes_no_more(&self, node: NodeId) {
        loop {
            let now = self.handle.status();
            if !now.counts_in(node) && (!now.changing || node == self.myself.node) {
                return;
            }
            sleep(LOOK).await;
        }
    }

    /// Returns once another node leads; any node may be asked.
    pub(super) async fn transfer_leader(
        &self,
        to: Option<NodeId>,
        by: Instant,
    ) -> Result<TransferLeaderResponse, Status> {
        if let Some(to) = to
            && !self.handle.status().voters.contains(&to)
        {
            return Err(error::not_found(error::code::UNKNOWN_NODE, format!("node {to} is no voter")));
        }
        let transferred = timeout_at(by, self.handle.transfer_leader(to)).await;
        let led =
            transferred.map_err(|_| error::outcome_unknown("no other leader is known yet"))?.map_err(membership)?;
        Ok(TransferLeaderResponse { leader: led.leader, term: led.term })
    }
}

/// Until logs have a second copy, one of them goes with the node.
fn keeps_no_log_alone(state: &State, node: NodeId) -> Result<(), Status> {
    let (count, some) = state.only_holder_of(node, LOGS_NAMED);
    if !state.is_member(node) || count == 0 {
        return Ok(());
    }
    let named: Vec<_> = some.iter().map(|(job, attempt)| format!("{job}/{attempt}")).collect();
    let what = if count == 1 { "1 attempt".to_owned() } else { format!("{count} attempts") };
    let more = if count > named.len() { ", …" } else { "" };
    Err(error::failed_precondition(format!(
        "node {node} holds the only copy of the output of {what}, which would be lost with it (the newest: {}{more}); \
         --lose-logs removes it all the same",
        named.join(", ")
    )))
}

fn even(what: &str, count: usize) -> String {
    format!("an even number of {what}: {count} survive no more failures than {}", count - 1)
}

/// A change of membership or leadership that did not happen.
fn membership(error: MembershipError) -> Status {
    match error {
        MembershipError::NoQuorum(why) => error::no_quorum(why),
        MembershipError::NotLeader { .. } => error::no_quorum(error),
        MembershipError::InProgress | MembershipError::Stopped => error::unavailable(error.to_string()),
        MembershipError::Refused(why) => error::failed_precondition(why),
        MembershipError::OtherLeads { .. } => error::done_otherwise(error.to_string()),
        MembershipError::Unknown(why) => error::outcome_unknown(why),
    }
}
