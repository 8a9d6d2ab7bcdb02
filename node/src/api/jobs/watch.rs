//! `WatchJobs`: the named jobs now, and again whenever one of them changes, until all are terminal.

use futures::{StreamExt as _, stream::FuturesUnordered};
use hodei_proto::v1::WatchJobsResponse;
use hodei_raft::{Handle, Topic, View};
use hodei_state::{ids::JobId, job::Job};
use tokio::sync::mpsc;
use tonic::Status;

use super::describe;
use crate::{convert::to_proto, error, logs::hub::Hub};

/// Jobs of one watch.
pub const MAX_JOBS: usize = 1_000;
/// Answers that may wait for the client.
const QUEUE: usize = 16;

/// Begins a watch.
#[must_use]
pub fn serve(handle: &Handle, hub: &Hub, jobs: Vec<JobId>) -> mpsc::Receiver<Result<WatchJobsResponse, Status>> {
    let (answers, receiver) = mpsc::channel(QUEUE);
    let (handle, stop) = (handle.clone(), hub.stop().clone());
    hub.spawn(async move {
        let mut watches: FuturesUnordered<_> = jobs.into_iter().map(|job| watch(&handle, job, &answers)).collect();
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    let _ = answers.try_send(Err(error::unavailable("the node is stopping")));
                    return;
                }
                () = answers.closed() => return,
                ended = watches.next() => if !matches!(ended, Some(Ok(()))) { return },
            }
        }
    });
    receiver
}

/// The client went away, or was sent an error.
struct Over;

async fn watch(
    handle: &Handle,
    job: JobId,
    answers: &mpsc::Sender<Result<WatchJobsResponse, Status>>,
) -> Result<(), Over> {
    let mut changes = handle.subscribe(Topic::Job(job));
    let mut sent: Option<Job> = None;
    loop {
        changes.borrow_and_update();
        let View { state, position } = handle.view();
        let Some(row) = state.job(job) else {
            let _ = answers.send(Err(error::not_found(error::code::UNKNOWN_JOB, format!("no job {job}")))).await;
            return Err(Over);
        };
        if sent.as_ref() != Some(row) {
            let job = describe(handle, &state, job).await;
            let position = Some(to_proto::position(position.term, position.index));
            answers.send(Ok(WatchJobsResponse { job, position })).await.map_err(|_| Over)?;
            sent = Some(row.clone());
        }
        if row.state.is_terminal() {
            return Ok(());
        }
        changes.changed().await.map_err(|_| Over)?;
    }
}
