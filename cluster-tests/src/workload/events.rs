//! Streams of events: of everything, or of some kinds, from the first event on, resumed on another node where they break.

use std::time::Duration;

use hodei_proto::v1::{EventPosition, ExecutionEvent, ExecutionEventStreamRequest};
use rand::rngs::SmallRng;
use tonic::Status;

use super::jobs;
use crate::{
    history::{Event, Note, Place, Subscribe, Through},
    run::field::{Field, Pace, Seat},
};

/// Before a stream that broke is resumed.
const PAUSE: Duration = Duration::from_millis(200);
/// A stream that says nothing for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(4);

/// A kind of event and a group of kinds: what somebody asks for who looks for ends and for workers.
pub const SOME: &[&str] = &["job_ended", "worker"];

/// Follows to the end, at first on the node of this seat: events of these kinds, or all.
pub async fn follow(field: Field, first: usize, pace: Pace, kinds: &[&str]) {
    let (proc, mut rng) = field.process();
    let kinds: Vec<String> = kinds.iter().map(|&kind| kind.to_owned()).collect();
    let mut after = None;
    let seats = field.seats();
    let mut seat = seats[first % seats.len()];
    while !field.is_over() {
        let filter = Subscribe { after, kinds: kinds.clone(), ..Subscribe::default() };
        field.history().note(proc, "", Note::Subscribe(filter));
        let _ = Reader { field: &field, proc, rng: &mut rng, pace, kinds: &kinds }.read(seat, &mut after).await;
        Field::pause(&mut rng, PAUSE).await;
        seat = field.elsewhere(seat.id, &mut rng);
    }
}

struct Reader<'a> {
    field: &'a Field,
    proc: u32,
    rng: &'a mut SmallRng,
    pace: Pace,
    kinds: &'a [String],
}

impl Reader<'_> {
    async fn read(self, seat: Seat, after: &mut Option<Place>) -> Result<(), Status> {
        let Self { field, proc, rng, pace, kinds } = self;
        let position = after.map(|(index, offset)| EventPosition { index, offset });
        let request =
            ExecutionEventStreamRequest { after: position, follow: true, kinds: kinds.to_vec(), ..Default::default() };
        let mut client = field.client(seat, proc).jobs();
        let answer = tokio::time::timeout(SILENCE, client.execution_event_stream(request)).await;
        let mut stream = answer.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner();
        while !field.is_over() {
            field.rest(rng, pace).await;
            let Ok(message) = tokio::time::timeout(SILENCE, stream.message()).await else { return Ok(()) };
            let Some(message) = message? else { return Ok(()) };
            for event in &message.events {
                if let Some(position) = &event.position {
                    let at = (position.index, position.offset);
                    field.history().note(proc, &event.job_id, Note::Event(told(event, at)));
                    *after = Some(at);
                }
            }
            if let Some(through) = &message.through {
                let at = (through.index, through.offset);
                field.history().note(proc, "", Note::Through(Through { at }));
                *after = Some(at);
            }
            if let (Some(after), true) = (*after, kinds.is_empty()) {
                field.told(proc, after);
            }
        }
        Ok(())
    }
}

fn told(event: &ExecutionEvent, at: Place) -> Event {
    Event {
        at,
        kind: event.kind.clone(),
        attempt: event.attempt,
        worker: event.worker_id.clone(),
        state: jobs::state(event.state),
    }
}
