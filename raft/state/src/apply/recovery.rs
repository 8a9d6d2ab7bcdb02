//! A member goes on alone, after the others were lost for good.

use super::{Context, Result};
use crate::{
    events::Event,
    ids::{Millis, NodeId},
    job::{Job, JobState},
    liveness::lease_ms,
    outcome::{Outcome, Refusal},
    registry::Cluster,
    spec::JobSpec,
    state::State,
};

/// Node ids that are left out: those that were lost may have given out some that the survivor knows nothing of.
const SKIPPED_IDS: NodeId = 1_000;

impl State {
    /// The others are removed: should one of them come back, nobody listens to it. What they had placed, and this member
    /// has not heard of, may still run for the length of a lease: no job is placed before that has passed
    /// ([`State::held_back`]), so that two attempts of it never overlap.
    pub(super) fn recover(&mut self, context: Context, survivor: NodeId) -> Result {
        let cluster = self.cluster().ok_or(Refusal::WrongClusterState)?.clone();
        if self.member(survivor).is_none_or(|member| member.removed_at.is_some()) {
            return Err(Refusal::UnknownNode { node: survivor });
        }
        self.put_cluster(Cluster {
            recovered_at: Some(self.stamp()),
            next_node_id: cluster.next_node_id.saturating_add(SKIPPED_IDS),
            ..cluster
        });
        self.emit(&Event::ClusterRecovered { survivor });
        let gone = |id: NodeId, removed: Option<Millis>| id != survivor && removed.is_none();
        let lost: Vec<NodeId> =
            self.members().filter(|member| gone(member.id, member.removed_at)).map(|member| member.id).collect();
        for node in lost {
            self.remove_node(context, node)?;
        }
        let pending: Vec<Job> = self.pending().cloned().collect();
        pending.into_iter().for_each(|job| self.update_job(job));
        Ok(Outcome::Done)
    }

    /// A job as it may enter the queue: after a recovery, not before a lease that nobody left knows of has run out.
    pub(crate) fn held_back(&self, job: Job, spec: &JobSpec) -> Job {
        let recovered = self.cluster().and_then(|cluster| cluster.recovered_at);
        let until = recovered.map(|at| at.plus(lease_ms(spec.lost_after_ms))).filter(|until| *until > self.stamp());
        match until {
            Some(until) if job.state == JobState::Pending => Job { not_before: job.not_before.max(Some(until)), ..job },
            _ => job,
        }
    }
}
