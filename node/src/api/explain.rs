//! Why a job waits, or is where it is, and what the whole queue waits for: asked on any node, answered with what the leader
//! has heard of workers.

use std::{sync::Arc, time::Duration};

use hodei_proto::v1::{
    GetQueueStatusRequest, GetQueueStatusResponse, GetSchedulingDecisionRequest, GetSchedulingDecisionResponse,
    JobSelector, peer_service_client::PeerServiceClient,
};
use hodei_raft::{Dialer, Handle, Leadership, View};
use hodei_state::{
    Hearing, Now,
    backlog::backlog,
    explain::{Subject, explain},
    ids::{Caller, JobId, Mono, NodeId},
    spec::JobSpec,
    validate,
};
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::jobs::select;
use crate::{
    convert::{self, explanation, from_proto},
    error,
    leader::door::Door,
};

/// For the leader to answer; without it the answer is what the state alone says.
const ASK_LEADER: Duration = Duration::from_secs(2);

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Explainer {
    handle: Handle,
    door: Door,
    dialer: Arc<dyn Dialer>,
}

/// What is asked about, checked.
enum Asked {
    Job(JobId),
    Spec(Box<JobSpec>),
}

impl Explainer {
    /// Over this state, and whoever leads.
    #[must_use]
    pub fn new(handle: Handle, door: Door, dialer: Arc<dyn Dialer>) -> Self {
        Self { handle, door, dialer }
    }

    /// Answers a user's question.
    ///
    /// # Errors
    /// Bad input, an unknown job, no quorum.
    pub async fn answer(
        &self,
        request: GetSchedulingDecisionRequest,
        caller: Caller,
        by: Instant,
    ) -> Result<GetSchedulingDecisionResponse, Status> {
        let view = self.handle.read(by).await.map_err(error::read)?;
        let asked = match (&request.job, &request.spec) {
            (Some(job), None) => Asked::Job(select(&view.state, Some(job), caller)?),
            (None, Some(_)) => {
                let spec = checked(&request)?;
                // What `apply` would refuse.
                view.state.check_secrets(&spec).map_err(|refusal| error::refusal(&refusal))?;
                Asked::Spec(Box::new(spec))
            }
            _ => return Err(error::invalid("job", "a job or a spec, one of both")),
        };
        let leadership = *self.handle.leadership().borrow();
        if let Leadership::Following { leader: Some(leader) } = leadership {
            let job = if let Asked::Job(id) = &asked { Some(JobSelector { text: id.to_string() }) } else { None };
            let request = GetSchedulingDecisionRequest { job, ..request };
            if let Ok(Some(answer)) =
                timeout(ASK_LEADER.min(by.saturating_duration_since(Instant::now())), self.ask(leader, request)).await
            {
                return Ok(answer);
            }
        }
        self.explain(view, &asked).await
    }

    /// Answers another node, if this one leads.
    ///
    /// # Errors
    /// This node does not lead; an unknown job.
    pub async fn answer_peer(
        &self,
        request: GetSchedulingDecisionRequest,
        by: Instant,
    ) -> Result<GetSchedulingDecisionResponse, Status> {
        self.check_leading()?;
        let asked = match &request.job {
            Some(job) => Asked::Job(from_proto::id(&job.text, "job")?),
            None => Asked::Spec(Box::new(checked(&request)?)),
        };
        let view = self.handle.read(by).await.map_err(error::read)?;
        self.explain(view, &asked).await
    }

    /// What the whole queue waits for.
    ///
    /// # Errors
    /// No quorum, unless `stale`.
    pub async fn queue(&self, request: GetQueueStatusRequest, by: Instant) -> Result<GetQueueStatusResponse, Status> {
        if request.stale {
            return Ok(self.backlog(&self.handle.view()).await);
        }
        let view = self.handle.read(by).await.map_err(error::read)?;
        let leadership = *self.handle.leadership().borrow();
        if let Leadership::Following { leader: Some(leader) } = leadership
            && let Some(channel) = self.dialer.channel(leader)
        {
            let within = ASK_LEADER.min(by.saturating_duration_since(Instant::now()));
            match timeout(within, PeerServiceClient::new(channel).queue_status(request)).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => tracing::debug!(leader, %status, "the leader says nothing of the queue"),
                Err(_) => tracing::debug!(leader, "the leader does not answer"),
            }
        }
        Ok(self.backlog(&view).await)
    }

    /// The same for another node, if this one leads.
    ///
    /// # Errors
    /// This node does not lead.
    pub async fn queue_for_peer(&self, by: Instant) -> Result<GetQueueStatusResponse, Status> {
        self.check_leading()?;
        let view = self.handle.read(by).await.map_err(error::read)?;
        Ok(self.backlog(&view).await)
    }

    async fn backlog(&self, view: &View) -> GetQueueStatusResponse {
        let (hearing, now) = self.heard(view).await;
        let found = backlog(&view.state, hearing.as_ref(), now);
        convert::backlog::response(view, &found, now)
    }

    /// What the leader has heard, and its clocks, where this node leads.
    async fn heard(&self, view: &View) -> (Option<Hearing>, Now) {
        match self.door.heard().await {
            Some((hearing, now)) => (Some(hearing), now),
            // Without a leader's clocks: the newest stamp is now, or a little earlier.
            None => (None, Now { mono: Mono(0), stamp: view.state.stamp() }),
        }
    }

    fn check_leading(&self) -> Result<(), Status> {
        match *self.handle.leadership().borrow() {
            Leadership::Leading { .. } => Ok(()),
            _ => Err(error::unavailable("this node does not lead")),
        }
    }

    async fn ask(
        &self,
        leader: NodeId,
        request: GetSchedulingDecisionRequest,
    ) -> Option<GetSchedulingDecisionResponse> {
        let channel = self.dialer.channel(leader)?;
        let limit = hodei_raft::MAX_MESSAGE;
        let answer = PeerServiceClient::new(channel).max_decoding_message_size(limit).explain(request).await;
        answer
            .inspect_err(|status| tracing::debug!(leader, %status, "the leader explains nothing"))
            .ok()
            .map(tonic::Response::into_inner)
    }

    async fn explain(&self, view: View, asked: &Asked) -> Result<GetSchedulingDecisionResponse, Status> {
        let (hearing, now) = self.heard(&view).await;
        let (subject, id) = match asked {
            Asked::Job(id) => (Subject::Job(*id), Some(*id)),
            Asked::Spec(spec) => (Subject::Spec(spec), None),
        };
        let found = explain(&view.state, hearing.as_ref(), now, subject);
        let unknown = || error::not_found(error::code::UNKNOWN_JOB, "the job was removed");
        Ok(explanation::response(&view, id, &found.ok_or_else(unknown)?))
    }
}

fn checked(request: &GetSchedulingDecisionRequest) -> Result<JobSpec, Status> {
    let spec = request.spec.clone().unwrap_or_default();
    let spec = from_proto::spec(spec)?;
    validate::supported(&spec).map_err(from_proto::Bad::from)?;
    Ok(spec)
}
