//! `SchedulerService`: the queue in numbers, the workers, what goes where and why.

use hodei_proto::v1::{
    ConfigureSchedulerRequest, ConfigureSchedulerResponse, GetAvailableWorkersRequest, GetAvailableWorkersResponse,
    GetQueueStatusRequest, GetQueueStatusResponse, GetSchedulerConfigRequest, GetSchedulerConfigResponse,
    GetSchedulingDecisionRequest, GetSchedulingDecisionResponse, WorkerAttempt,
    scheduler_service_server::SchedulerService,
};
use hodei_raft::{Handle, View};
use hodei_state::{
    SelectWorkerError, State,
    command::Envelope,
    ids::WorkerId,
    outcome::Outcome,
    registry::{Worker, WorkerState},
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::{
    api::explain::Explainer,
    convert::{from_proto, to_proto},
    error,
    server::{auth, deadline},
};

/// Attempts of one worker that are listed.
const MAX_ATTEMPTS: usize = 10_000;
const EXPECTED_WORKER: &str = "a worker's id, at least four of its last hex digits, or its host's name";

/// Serves `SchedulerService`.
#[derive(Clone)]
pub struct Scheduler {
    handle: Handle,
    explainer: Explainer,
}

impl Scheduler {
    /// Over this state.
    #[must_use]
    pub fn new(handle: Handle, explainer: Explainer) -> Self {
        Self { handle, explainer }
    }

    async fn view(&self, stale: bool, by: Instant) -> Result<View, Status> {
        if stale { Ok(self.handle.view()) } else { self.handle.read(by).await.map_err(error::read) }
    }
}

/// The worker that a text names.
///
/// # Errors
/// It names none, several, or nothing that could be one.
pub fn select<'a>(state: &'a State, text: &str) -> Result<&'a Worker, Status> {
    let found = state.find_worker(text).map_err(|why| match why {
        SelectWorkerError::Unknown => error::not_found(error::code::UNKNOWN_WORKER, format!("no worker {text:?}")),
        SelectWorkerError::Malformed => error::invalid("worker", EXPECTED_WORKER),
        SelectWorkerError::Ambiguous(candidates) => {
            let candidates = candidates.iter().map(ToString::to_string).collect();
            error::ambiguous(format!("{text:?} fits several workers"), candidates)
        }
    })?;
    state.worker(found).ok_or_else(|| error::internal("a worker was found and is not there"))
}

fn describe(state: &State, worker: &Worker) -> hodei_proto::v1::Worker {
    let running = state.live_attempts(worker.id).count();
    hodei_proto::v1::Worker { running: u32::try_from(running).unwrap_or(u32::MAX), ..to_proto::worker(worker) }
}

fn attempts(state: &State, worker: WorkerId) -> Vec<WorkerAttempt> {
    let live = state.live_attempts(worker).take(MAX_ATTEMPTS);
    live.map(|attempt| to_proto::worker_attempt(attempt, state.spec(attempt.id.job).and_then(|spec| spec.name)))
        .collect()
}

#[tonic::async_trait]
impl SchedulerService for Scheduler {
    async fn get_queue_status(
        &self,
        request: Request<GetQueueStatusRequest>,
    ) -> Result<Response<GetQueueStatusResponse>, Status> {
        let by = deadline::of(&request);
        self.explainer.queue(request.into_inner(), by).await.map(Response::new)
    }

    async fn get_available_workers(
        &self,
        request: Request<GetAvailableWorkersRequest>,
    ) -> Result<Response<GetAvailableWorkersResponse>, Status> {
        let by = deadline::of(&request);
        let request = request.into_inner();
        let View { state, position } = self.view(request.stale, by).await?;
        let workers = if request.worker.is_empty() {
            let shown = |worker: &&Worker| request.all || worker.state != WorkerState::Terminated;
            state.workers().filter(shown).map(|worker| describe(&state, worker)).collect()
        } else {
            let worker = select(&state, &request.worker)?;
            vec![hodei_proto::v1::Worker { attempts: attempts(&state, worker.id), ..describe(&state, worker) }]
        };
        Ok(Response::new(GetAvailableWorkersResponse {
            workers,
            position: Some(to_proto::position(position.term, position.index)),
        }))
    }

    async fn get_scheduling_decision(
        &self,
        request: Request<GetSchedulingDecisionRequest>,
    ) -> Result<Response<GetSchedulingDecisionResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        self.explainer.answer(request.into_inner(), caller, by).await.map(Response::new)
    }

    async fn get_scheduler_config(
        &self,
        request: Request<GetSchedulerConfigRequest>,
    ) -> Result<Response<GetSchedulerConfigResponse>, Status> {
        let by = deadline::of(&request);
        let View { state, position } = self.view(request.into_inner().stale, by).await?;
        Ok(Response::new(GetSchedulerConfigResponse {
            weights: Some(to_proto::weights(&state.weights())),
            set_aside: Some(to_proto::set_aside_policy(&state.set_aside_policy())),
            position: Some(to_proto::position(position.term, position.index)),
        }))
    }

    async fn configure_scheduler(
        &self,
        request: Request<ConfigureSchedulerRequest>,
    ) -> Result<Response<ConfigureSchedulerResponse>, Status> {
        let (caller, by) = (auth::caller(&request)?, deadline::of(&request));
        let command = from_proto::scheduler_change(&request.into_inner());
        let reply = self.handle.propose(Envelope { caller, command }, by).await.map_err(error::propose)?;
        if let Outcome::Refused(refusal) = reply.outcome {
            return Err(error::refusal(&refusal));
        }
        // This node may not have applied it yet; the change itself is done in any case.
        let View { state, position } = self.handle.read(by).await.map_err(error::outcome_unknown)?;
        Ok(Response::new(ConfigureSchedulerResponse {
            weights: Some(to_proto::weights(&state.weights())),
            set_aside: Some(to_proto::set_aside_policy(&state.set_aside_policy())),
            position: Some(to_proto::position(position.term, position.index)),
        }))
    }
}
