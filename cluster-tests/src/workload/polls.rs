//! What nodes say about themselves, ten times a second.

use std::time::Duration;

use hodei_proto::v1::{Position, StatusRequest, StatusResponse};

use crate::{
    history::{Body, Note, Poll, Record},
    run::field::{Field, Seat},
};

const EVERY: Duration = Duration::from_millis(100);
/// A node that does not answer in time is asked again.
const PATIENCE: Duration = Duration::from_secs(1);

/// Polls the node of each seat until the end, at first those that are there now.
pub async fn poll(field: Field, index: usize) {
    let (proc, _) = field.process();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !field.is_over() {
        every.tick().await;
        let Some(seat) = field.seats().get(index).copied() else { return };
        let mut client = field.client(seat, proc).cluster();
        if let Ok(Ok(said)) = tokio::time::timeout(PATIENCE, client.status(StatusRequest {})).await {
            // What an earlier start of it said would count for this one.
            if field.seats().get(index) == Some(&seat) {
                let said = said.into_inner();
                if let Some(leader) = said.leader {
                    field.leads(said.term, leader);
                }
                field.history().push(|t_ns| record(t_ns, proc, seat, &said));
                field.polled(said.answered_by, said.applied_index, &said.state_hash);
            }
        }
    }
}

fn record(t_ns: u64, proc: u32, seat: Seat, said: &StatusResponse) -> Record {
    let id = |position: &Option<Position>| position.as_ref().map(|at| (at.term, at.index));
    let poll = Poll {
        start: u64::from(seat.starts),
        term: said.term,
        leader: said.leader,
        last_log: id(&said.last_log),
        committed: id(&said.committed),
        applied: said.applied_index,
        applied_term: said.applied.as_ref().map(|at| at.term),
        hash: said.state_hash.clone(),
        feature_level: said.feature_level,
    };
    Record { node: Some(said.answered_by), ..Record::new(t_ns, proc, "", Body::Note(Note::Poll(poll))) }
}
