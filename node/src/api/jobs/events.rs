//! `ExecutionEventStream`: what happened, and then what happens.
//!
//! Nothing is queued for a reader: each page is read from the state as it is then, from the position that the reader has
//! come to. One that is slower than events are dropped learns that it missed some, in the words for everybody else who
//! resumes too late; one that reads nothing is dropped itself.

use std::time::Duration;

use hodei_proto::v1::{ExecutionEventStreamRequest, ExecutionEventStreamResponse};
use hodei_raft::{Handle, Topic};
use hodei_state::{
    State,
    events::{Event, EventPosition},
    ids::{Caller, JobId, WorkerId},
};
use tokio::{sync::mpsc, time::timeout};
use tonic::Status;

use crate::{
    api::scheduler,
    convert::events::{self, KINDS, is_of, kind},
    error,
    logs::hub::Hub,
};

/// Answers that may wait for the client, beside its dismissal.
const QUEUE: usize = 4;
/// Events looked at for one answer.
const LOOKS: usize = 1_000;
/// Events of one answer.
const PAGE: usize = 250;
/// A reader that takes nothing for so long is dropped.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked for.
pub struct Query {
    caller: Caller,
    after: EventPosition,
    follow: bool,
    job: Option<JobId>,
    worker: Option<WorkerId>,
    kinds: Vec<String>,
}

/// Refuses a position that the log has not come to: whoever waited there would miss what comes before it, and would not
/// be told of a mistake, or of another cluster's position.
///
/// # Errors
/// That.
pub fn has_come(request: &ExecutionEventStreamRequest, newest: u64) -> Result<(), Status> {
    let ahead = request.after.is_some_and(|after| after.index > newest) && !request.now;
    if ahead {
        Err(error::invalid("since", format!("a position of this log, whose newest entry is {newest}")))
    } else {
        Ok(())
    }
}

impl Query {
    /// Checks a request against the state: what it names must be there, or may have been.
    ///
    /// # Errors
    /// The first field that is wrong; a selector that names nothing, or several.
    pub fn parse(state: &State, request: ExecutionEventStreamRequest, caller: Caller) -> Result<Self, Status> {
        for wanted in &request.kinds {
            if !KINDS.iter().any(|kind| is_of(kind, wanted)) {
                return Err(error::invalid(
                    "kinds",
                    format!("job, worker, node, token, secret, or one of {}", KINDS.join(", ")),
                ));
            }
        }
        // Events outlive what they are about: a whole id is taken as it is.
        let job = match &request.job {
            None => None,
            Some(selector) => Some(match selector.text.parse() {
                Ok(id) => id,
                Err(_) => super::select(state, Some(selector), caller)?,
            }),
        };
        let worker = match request.worker.as_str() {
            "" => None,
            text => Some(match text.parse() {
                Ok(id) => id,
                Err(_) => scheduler::select(state, text)?.id,
            }),
        };
        let after = match request.after {
            _ if request.now => state.newest_event(),
            Some(after) => EventPosition { index: after.index, offset: after.offset },
            None => state.newest_dropped_event(),
        };
        Ok(Self { caller, after, follow: request.follow, job, worker, kinds: request.kinds })
    }

    fn selects(&self, event: &Event) -> bool {
        let kind = kind(event);
        // As of the lists of both.
        let for_admins = is_of(kind, "token") || is_of(kind, "secret");
        let may_see = matches!(self.caller, Caller::Admin(_)) || !for_admins;
        may_see
            && self.job.is_none_or(|job| event.job() == Some(job))
            && self.worker.is_none_or(|worker| event.worker() == Some(worker))
            && (self.kinds.is_empty() || self.kinds.iter().any(|wanted| is_of(kind, wanted)))
    }

    /// The next answer, and whether there may be more.
    fn page(&self, state: &State, after: EventPosition) -> Result<(ExecutionEventStreamResponse, bool), Status> {
        let all = state.events_after(after).map_err(|compacted| error::compacted(&compacted))?;
        let (mut through, mut looks, mut page) = (after, 0, Vec::new());
        let mut more = false;
        for occurred in all {
            if looks == LOOKS || page.len() == PAGE {
                more = true;
                break;
            }
            looks += 1;
            through = occurred.position;
            if self.selects(&occurred.event) {
                page.push(events::event(&occurred));
            }
        }
        Ok((ExecutionEventStreamResponse { events: page, through: Some(events::position(through)) }, more))
    }
}

/// Begins a stream. Without `follow` it ends with the newest event of `state`.
///
/// # Errors
/// What was asked for is not kept any more.
pub fn serve(
    handle: &Handle,
    hub: &Hub,
    state: State,
    query: Query,
) -> Result<mpsc::Receiver<Result<ExecutionEventStreamResponse, Status>>, Status> {
    // Said at once, and not in the stream.
    query.page(&state, query.after)?;
    let (answers, receiver) = mpsc::channel(QUEUE + 1);
    let (handle, stop) = (handle.clone(), hub.stop().clone());
    hub.spawn(async move {
        let told = tokio::select! {
            () = stop.cancelled() => Err(error::unavailable("the node is stopping")),
            told = tell(&handle, state, query, &answers) => told,
        };
        if let Err(status) = told {
            let _ = answers.try_send(Err(status));
        }
    });
    Ok(receiver)
}

type Answers = mpsc::Sender<Result<ExecutionEventStreamResponse, Status>>;

/// Until the reader goes, or the stream has to end for this reason.
async fn tell(handle: &Handle, state: State, query: Query, answers: &Answers) -> Result<(), Status> {
    let mut changes = handle.subscribe(Topic::Events);
    let (mut after, mut kept) = (query.after, (!query.follow).then_some(state));
    loop {
        changes.borrow_and_update();
        let (answer, more) = match &kept {
            Some(state) => query.page(state, after)?,
            None => {
                let state = handle.view().state;
                if state.is_revoked(query.caller) {
                    return Err(error::revoked(query.caller));
                }
                query.page(&state, after)?
            }
        };
        let through = answer.through.unwrap_or_default();
        after = EventPosition { index: through.index, offset: through.offset };
        // Progress without events is told where much was looked at, so that whoever resumes need not look again.
        if (!answer.events.is_empty() || more) && !send(answers, answer).await? {
            return Ok(());
        }
        if more {
            continue;
        }
        if kept.take().is_some() {
            return Ok(());
        }
        tokio::select! {
            () = answers.closed() => return Ok(()),
            changed = changes.changed() => changed.map_err(|_| error::unavailable("the node is stopping"))?,
        }
    }
}

/// One place is always left for the dismissal. False: the reader is gone.
async fn send(answers: &Answers, answer: ExecutionEventStreamResponse) -> Result<bool, Status> {
    match timeout(PATIENCE, answers.reserve_many(2)).await {
        Ok(Ok(mut places)) => {
            if let Some(place) = places.next() {
                place.send(Ok(answer));
            }
            Ok(true)
        }
        Ok(Err(_)) => Ok(false),
        Err(_) => Err(error::too_slow("nothing was read for half a minute: resume where you are")),
    }
}
