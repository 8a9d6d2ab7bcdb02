//! Streams of events: of everything, from the first event on, resumed on another node where they break.

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

/// Follows to the end, at first on the node of this seat.
pub async fn follow(field: Field, first: usize, pace: Pace) {
    let (proc, mut rng) = field.process();
    let mut after = None;
    let mut seat = field.seats()[first];
    while !field.is_over() {
        let filter = Subscribe { after, ..Subscribe::default() };
        field.history().note(proc, "", Note::Subscribe(filter));
        let _ = Reader { field: &field, proc, rng: &mut rng, pace }.read(seat, &mut after).await;
        Field::pause(&mut rng, PAUSE).await;
        seat = field.any(&mut rng);
    }
}

struct Reader<'a> {
    field: &'a Field,
    proc: u32,
    rng: &'a mut SmallRng,
    pace: Pace,
}

impl Reader<'_> {
    async fn read(self, seat: Seat, after: &mut Option<Place>) -> Result<(), Status> {
        let Self { field, proc, rng, pace } = self;
        let position = after.map(|(index, offset)| EventPosition { index, offset });
        let request = ExecutionEventStreamRequest { after: position, follow: true, ..Default::default() };
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
