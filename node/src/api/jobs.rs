//! `JobExecutionService`: submit, ask, cancel, watch.

mod events;
mod list;
mod watch;

use hodei_proto::v1::{
    CancelJobRequest, CancelJobResponse, ExecutionEventStreamRequest, ExecutionEventStreamResponse, GetJobRequest,
    GetJobResponse, JobEnd, JobSelector, ListJobsRequest, ListJobsResponse, QueueJobRequest, QueueJobResponse,
    RetryJobRequest, RetryJobResponse, WatchJobsRequest, WatchJobsResponse,
    job_execution_service_server::JobExecutionService,
};
use hodei_raft::{Handle, View};
use hodei_state::{
    SelectError, State,
    command::{Command, Envelope},
    ids::{Caller, JobId},
    outcome::{Outcome, Refusal},
};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    convert::{from_proto, to_proto},
    error,
    logs::hub::Hub,
    server::{auth, deadline},
};

/// Serves `JobExecutionService`.
#[derive(Clone)]
pub struct Jobs {
    handle: Handle,
    /// Owns the tasks of watches.
    hub: Hub,
}

impl Jobs {
    /// Over this state.
    #[must_use]
    pub fn new(handle: Handle, hub: Hub) -> Self {
        Self { handle, hub }
    }

    async fn view(&self, stale: bool, by: Instant) -> Result<View, Status> {
        if stale { Ok(self.handle.view()) } else { self.handle.read(by).await.map_err(error::read) }
    }
}

/// The job that a selector names.
///
/// # Errors
/// It names none, several, or nothing that could be one.
pub fn select(state: &State, selector: Option<&JobSelector>, caller: Caller) -> Result<JobId, Status> {
    let text = selector.map_or("", |selector| selector.text.as_str());
    state.find_job(text, caller).map_err(|why| match why {
        SelectError::Unknown => error::not_found(error::code::UNKNOWN_JOB, format!("no job {text:?}")),
        SelectError::Malformed => {
            error::invalid("job", "a job's id, its name, at least four of its last hex digits, or `last`")
        }
        SelectError::Ambiguous(candidates) => {
            let candidates = candidates.iter().map(ToString::to_string).collect();
            error::ambiguous(format!("several jobs end in {text:?}"), candidates)
        }
    })
}

/// A job as it is told to clients. Its command is absent where the payload is not (or no longer) on this node.
pub async fn describe(handle: &Handle, state: &State, job: JobId) -> Option<hodei_proto::v1::Job> {
    let row = state.job(job)?;
    let spec = state.spec(job);
    let execution = match &spec {
        Some(spec) => handle
            .execution(spec)
            .await
            .inspect_err(|error| tracing::warn!(%job, %error, "cannot read what a job executes"))
            .ok(),
        None => None,
    };
    Some(to_proto::job(row, state.attempts(job), spec.as_ref().map(|spec| (spec, execution.as_ref()))))
}

/// The last word on a job.
pub async fn job_end(handle: &Handle, job: JobId) -> Option<JobEnd> {
    let View { state, position } = handle.view();
    let job = describe(handle, &state, job).await?;
    Some(JobEnd { job: Some(job), position: Some(to_proto::position(position.term, position.index)) })
}

#[tonic::async_trait]
impl JobExecutionService for Jobs {
    async fn queue_job(&self, request: Request<QueueJobRequest>) -> Result<Response<QueueJobResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        let submission = from_proto::submission(request.into_inner())?;
        let (id, key) = (submission.job, submission.idempotency_key.clone());
        let command = Command::SubmitJob(Box::new(submission));
        hodei_state::failpoint!("submit::before-commit");
        let reply = self.handle.propose(Envelope { caller, command }, by).await.map_err(error::propose)?;
        hodei_state::failpoint!("submit::before-answer");
        let position = Some(to_proto::position(reply.position.term, reply.position.index));
        match reply.outcome {
            Outcome::Submitted { job, existing } => {
                Ok(Response::new(QueueJobResponse { id: job.to_string(), existing, position }))
            }
            Outcome::Refused(Refusal::PayloadMismatch { job }) if job != id => {
                Err(error::key_mismatch(&key.unwrap_or_default(), job))
            }
            Outcome::Refused(refusal) => Err(error::refusal(&refusal)),
            other => Err(error::internal(format!("a submission came to {other:?}"))),
        }
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        let request = request.into_inner();
        let View { state, position } = self.view(request.stale, by).await?;
        let id = select(&state, request.job.as_ref(), caller)?;
        let job = describe(&self.handle, &state, id).await;
        let position = Some(to_proto::position(position.term, position.index));
        Ok(Response::new(GetJobResponse { job, position }))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        let by = deadline::of(&request);
        let query = list::Query::parse(request.into_inner())?;
        let view = self.view(query.stale, by).await?;
        list::page(&self.handle, view, query).await.map(Response::new)
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<CancelJobResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        let request = request.into_inner();
        let View { state, .. } = self.view(false, by).await?;
        let job = select(&state, request.job.as_ref(), caller)?;
        let command = Command::CancelJob { job, reason: request.reason };
        let reply = self.handle.propose(Envelope { caller, command }, by).await.map_err(error::propose)?;
        let position = Some(to_proto::position(reply.position.term, reply.position.index));
        match reply.outcome {
            Outcome::CancelAccepted { job, state } => Ok(Response::new(CancelJobResponse {
                id: job.to_string(),
                state: to_proto::state(state).into(),
                position,
            })),
            Outcome::Refused(refusal) => Err(error::refusal(&refusal)),
            other => Err(error::internal(format!("a request to cancel came to {other:?}"))),
        }
    }

    async fn retry_job(&self, request: Request<RetryJobRequest>) -> Result<Response<RetryJobResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        let request = request.into_inner();
        let job: JobId = from_proto::id(&request.id, "id")?;
        let View { state, .. } = self.view(false, by).await?;
        let of = select(&state, request.job.as_ref(), caller)?;
        let command = Command::RetryJob { job, of };
        let reply = self.handle.propose(Envelope { caller, command }, by).await.map_err(error::propose)?;
        let position = Some(to_proto::position(reply.position.term, reply.position.index));
        match reply.outcome {
            Outcome::Submitted { job, existing } => {
                let (id, retry_of) = (job.to_string(), of.to_string());
                Ok(Response::new(RetryJobResponse { id, retry_of, existing, position }))
            }
            Outcome::Refused(refusal) => Err(error::refusal(&refusal)),
            other => Err(error::internal(format!("a retry came to {other:?}"))),
        }
    }

    type ExecutionEventStreamStream = ReceiverStream<Result<ExecutionEventStreamResponse, Status>>;

    async fn execution_event_stream(
        &self,
        request: Request<ExecutionEventStreamRequest>,
    ) -> Result<Response<Self::ExecutionEventStreamStream>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        let View { state, position } = self.view(false, by).await?;
        let request = request.into_inner();
        events::has_come(&request, position.index)?;
        let query = events::Query::parse(&state, request, caller)?;
        Ok(Response::new(ReceiverStream::new(events::serve(&self.handle, &self.hub, state, query)?)))
    }

    type WatchJobsStream = ReceiverStream<Result<WatchJobsResponse, Status>>;

    async fn watch_jobs(&self, request: Request<WatchJobsRequest>) -> Result<Response<Self::WatchJobsStream>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        let selectors = request.into_inner().jobs;
        if selectors.is_empty() || selectors.len() > watch::MAX_JOBS {
            return Err(error::invalid("jobs", "1 to 1,000 jobs"));
        }
        let View { state, .. } = self.view(false, by).await?;
        let jobs = selectors.iter().map(|selector| select(&state, Some(selector), caller)).collect::<Result<_, _>>()?;
        Ok(Response::new(ReceiverStream::new(watch::serve(&self.handle, &self.hub, jobs))))
    }
}
