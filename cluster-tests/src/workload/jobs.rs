//! Clients that submit jobs, look at them, cancel some and repeat what they got no answer to.

use std::time::Duration;

use hodei_proto::v1::{
    self as wire, CancelJobRequest, GetJobRequest, JobSelector, JobSpec, ListJobsRequest, ListJobsResponse, Position,
    QueueJobRequest,
};
use rand::{Rng as _, rngs::SmallRng};
use tonic::Status;
use uuid::Uuid;

use super::late;
use crate::{
    Client,
    client::shell,
    history::{AttemptView, CancelAccepted, Get, JobState, JobView, Listed, Reply, Request, Submit, Submitted},
    run::field::{Field, Seat, within},
};

/// Between two jobs of a client.
const PAUSE: Duration = Duration::from_millis(250);
/// How often a submission without an answer is repeated.
const REPEATS: u32 = 3;
/// How often a client looks at a job of its own. With the others' looks it stays below what can be judged.
const LOOKS: u32 = 6;
/// The attempts that infrastructure may cost a job before it fails: none of them is to fail for faults.
const ATTEMPTS: u32 = 100;

/// A job that does nothing, with as many attempts as it takes.
#[must_use]
pub fn nothing() -> JobSpec {
    patient(shell("true", &[]))
}

/// The same job, with the shortest lease and with as many attempts as it takes, for agents that run jobs.
#[must_use]
pub fn patient(spec: JobSpec) -> JobSpec {
    let retry = wire::Retry {
        infrastructure: Some(ATTEMPTS),
        backoff_initial_ms: 100,
        backoff_max_ms: 1_000,
        ..wire::Retry::default()
    };
    let constraints = vec![late::elsewhere()];
    JobSpec { lost_after_ms: 5_000, retry: Some(retry), constraints, ..spec }
}

/// One after the other, until the end.
pub async fn submit(field: Field) {
    let (proc, mut rng) = field.process();
    while !field.is_quiet() {
        let client = Asker { field: &field, proc };
        let id = Uuid::now_v7().to_string();
        let key = rng.random_bool(0.2).then(|| format!("key-{proc}-{}", rng.random_range(0..1_000_000)));
        if client.submit(&mut rng, &id, key.as_deref()).await {
            client.look(&mut rng, &id).await;
        }
        Field::pause(&mut rng, PAUSE).await;
    }
}

struct Asker<'a> {
    field: &'a Field,
    proc: u32,
}

impl Asker<'_> {
    /// Until there is a definite answer, or it has asked often enough. Sometimes asks again all the same.
    async fn submit(&self, rng: &mut SmallRng, id: &str, key: Option<&str>) -> bool {
        let mut accepted = false;
        for _ in 0..REPEATS {
            let seat = self.field.any(rng);
            match queue(self.field, self.proc, seat, id, key, nothing(), ("true", Some(0))).await {
                Ok(_) if accepted || !rng.random_bool(0.1) => return true,
                Ok(_) => accepted = true,
                Err(_) => Field::pause(rng, PAUSE).await,
            }
        }
        accepted
    }

    async fn look(&self, rng: &mut SmallRng, id: &str) {
        let cancels = rng.random_bool(0.15);
        for look in 0..rng.random_range(0..LOOKS) {
            let seat = self.field.any(rng);
            if cancels && look == 1 {
                let _ = cancel(self.field, self.proc, seat, id).await;
                continue;
            }
            let view = get(self.field, self.proc, seat, id, rng.random_bool(0.1)).await;
            if view.is_ok_and(|view| view.state.is_some_and(JobState::is_terminal)) && rng.random_bool(0.7) {
                return;
            }
            Field::pause(rng, PAUSE / 2).await;
        }
    }
}

fn selector(id: &str) -> JobSelector {
    JobSelector { text: id.to_owned() }
}

/// Asks for a job to be cancelled, recorded.
///
/// # Errors
/// The answer.
pub async fn cancel(field: &Field, proc: u32, seat: Seat, id: &str) -> Result<(), Status> {
    let open = field.history().invoke(proc, seat.id, id, Request::Cancel);
    let request = CancelJobRequest { job: Some(selector(id)), reason: "a test's wish".to_owned() };
    let mut client = field.client(seat, proc).jobs();
    let answer = within(client.cancel_job(Field::ask(request))).await.map(tonic::Response::into_inner);
    open.answer(&answer, |done| {
        let state = state(done.state).unwrap_or(JobState::Pending);
        (Reply::Cancel(CancelAccepted { state }), done.position)
    });
    answer.map(drop)
}

/// Submits a job, recorded; `payload` tells payloads apart, and how long the job runs, if it is meant to end.
///
/// # Errors
/// The answer.
pub async fn queue(
    field: &Field,
    proc: u32,
    seat: Seat,
    id: &str,
    key: Option<&str>,
    spec: JobSpec,
    (payload, run_ms): (&str, Option<u64>),
) -> Result<String, Status> {
    let idempotency_key = key.map(str::to_owned);
    let asked = Submit { payload: payload.to_owned(), idempotency_key, run_ms, ..Submit::default() };
    queue_as(field, proc, seat, id, spec, asked).await
}

/// The same, with all that is recorded of it.
///
/// # Errors
/// The answer.
pub async fn queue_as(
    field: &Field,
    proc: u32,
    seat: Seat,
    id: &str,
    spec: JobSpec,
    asked: Submit,
) -> Result<String, Status> {
    let idempotency_key = asked.idempotency_key.clone().unwrap_or_default();
    let open = field.history().invoke(proc, seat.id, id, Request::Submit(asked));
    let message = QueueJobRequest { id: id.to_owned(), spec: Some(spec), idempotency_key };
    let mut client = field.client(seat, proc).jobs();
    let answer = within(client.queue_job(Field::ask(message))).await.map(tonic::Response::into_inner);
    open.answer(&answer, |done| {
        (Reply::Submit(Submitted { job: done.id.clone(), existing: done.existing }), done.position)
    });
    answer.map(|done| done.id).inspect(|id| field.accepted(id))
}

/// Reads a job, recorded.
///
/// # Errors
/// The answer, except that a job that is not there has no state.
pub async fn get(field: &Field, proc: u32, seat: Seat, id: &str, stale: bool) -> Result<JobView, Status> {
    let open = field.history().invoke(proc, seat.id, id, Request::Get(Get { stale }));
    let request = GetJobRequest { job: Some(selector(id)), stale };
    let mut client = field.client(seat, proc).jobs();
    let answer = within(client.get_job(Field::ask(request))).await.map(tonic::Response::into_inner);
    let answer = match answer {
        // Where it was read, such an answer does not say.
        Err(status) if status.code() == tonic::Code::NotFound => Ok((JobView::default(), None)),
        answer => answer.map(|got| (got.job.as_ref().map(view).unwrap_or_default(), got.position)),
    };
    open.answer(&answer, |(view, position)| (Reply::Get(view.clone()), *position));
    answer.map(|(view, _)| view)
}

/// All jobs of a node, recorded.
///
/// # Errors
/// The answer.
pub async fn list(field: &Field, proc: u32, seat: Seat) -> Result<Vec<wire::Job>, Status> {
    let open = field.history().invoke(proc, seat.id, "", Request::List(Get::default()));
    let answer = pages(&field.client(seat, proc)).await;
    open.answer(&answer, |(jobs, position)| {
        (Reply::List(Listed { jobs: jobs.iter().map(|job| job.id.clone()).collect() }), *position)
    });
    answer.map(|(jobs, _)| jobs)
}

/// All jobs, by as many pages as it takes, and where the last of them was read.
///
/// # Errors
/// The answer.
pub async fn pages(client: &Client) -> Result<(Vec<wire::Job>, Option<Position>), Status> {
    let mut jobs = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListJobsRequest { limit: 10_000, page_token, ..ListJobsRequest::default() };
        let mut client = client.jobs().max_decoding_message_size(64 << 20);
        let page = within(client.list_jobs(Field::ask(request))).await?.into_inner();
        let ListJobsResponse { jobs: of_page, position, next_page_token } = page;
        jobs.extend(of_page);
        if next_page_token.is_empty() {
            return Ok((jobs, position));
        }
        page_token = next_page_token;
    }
}

/// What a job's description says.
pub(super) fn view(job: &wire::Job) -> JobView {
    let attempt = |attempt: &wire::Attempt| AttemptView {
        number: attempt.number,
        fence: attempt.fence,
        worker: attempt.worker_id.clone(),
    };
    JobView {
        state: state(job.state),
        attempt: job.attempt,
        exit_code: job.exit_code,
        attempts: job.attempts.iter().map(attempt).collect(),
    }
}

/// As the wire spells it.
#[must_use]
pub fn state(state: i32) -> Option<JobState> {
    Some(match wire::JobState::try_from(state).ok()? {
        wire::JobState::Unspecified => return None,
        wire::JobState::Pending => JobState::Pending,
        wire::JobState::Scheduled => JobState::Scheduled,
        wire::JobState::Running => JobState::Running,
        wire::JobState::Succeeded => JobState::Succeeded,
        wire::JobState::Failed => JobState::Failed,
        wire::JobState::Cancelled => JobState::Cancelled,
        wire::JobState::Timeout => JobState::Timeout,
    })
}
