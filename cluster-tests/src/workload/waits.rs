//! Clients that submit a job and wait for its end as `job wait` does: at another node where the stream breaks or falls silent.

use std::time::Duration;

use hodei_proto::v1::{JobSelector, WatchJobsRequest};
use tonic::Status;
use uuid::Uuid;

use super::jobs;
use crate::{
    client::shell,
    history::{Body, JobState, Note, Record},
    run::field::{Field, Seat},
};

/// Between two jobs of a client, and before a stream is opened again.
const PAUSE: Duration = Duration::from_millis(500);
/// A stream that says nothing for so long may be dead, or its job waits: another node is asked.
const SILENCE: Duration = Duration::from_secs(4);
/// How long a job runs, in milliseconds: so that its end is not all that there is to be told.
const RUNS_MS: u64 = 300;

/// One job after the other, until nothing new is to be begun; each to its end.
pub async fn for_ends(field: Field) {
    let (proc, mut rng) = field.process();
    while !field.is_quiet() {
        let id = Uuid::now_v7().to_string();
        let spec = jobs::patient(shell("sleep", &["0.3"]));
        let mut seat = field.any(&mut rng);
        if jobs::queue(&field, proc, seat, &id, None, spec, ("wait", Some(RUNS_MS))).await.is_ok() {
            while !field.is_over() && !matches!(watch(&field, proc, seat, &id).await, Ok(true)) {
                Field::pause(&mut rng, PAUSE).await;
                seat = field.elsewhere(seat.id, &mut rng);
            }
        }
        Field::pause(&mut rng, PAUSE).await;
    }
}

/// Whether the stream told the job's end.
async fn watch(field: &Field, proc: u32, seat: Seat, id: &str) -> Result<bool, Status> {
    let request = WatchJobsRequest { jobs: vec![JobSelector { text: id.to_owned() }] };
    let mut client = field.client(seat, proc).jobs();
    let silent = |_| Status::deadline_exceeded("it is silent");
    let mut stream = tokio::time::timeout(SILENCE, client.watch_jobs(request)).await.map_err(silent)??.into_inner();
    while let Some(told) = tokio::time::timeout(SILENCE, stream.message()).await.map_err(silent)?? {
        let Some(job) = &told.job else { continue };
        let (view, position) = (jobs::view(job), told.position);
        let is_over = view.state.is_some_and(JobState::is_terminal);
        field.history().push(|t_ns| Record {
            node: seat.id,
            term: position.as_ref().map(|at| at.term),
            index: position.as_ref().map(|at| at.index),
            ..Record::new(t_ns, proc, id, Body::Note(Note::Watched(view)))
        });
        if is_over {
            return Ok(true);
        }
    }
    Ok(false)
}
