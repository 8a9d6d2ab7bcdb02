//! What is kept of what happened, and what a reader is told who comes too late.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod random;

use hodei_state::{
    State,
    command::{Command, Envelope},
    events::{Compacted, EventPosition, KEPT},
    ids::{Caller, Millis, SessionId, WorkerId},
    invariants,
    registry::SessionRef,
};

#[test]
fn who_missed_any_is_told_and_nobody_else() {
    let mut state = State::new();
    let mut index = 0;
    for envelope in random::setup() {
        index += 1;
        state.apply(index, 0, Millis(index), &envelope);
    }
    let worker = SessionRef { worker: WorkerId(1), session: SessionId(1) };
    for stream in 2..KEPT + 5_000 {
        index += 1;
        let command = Command::AttachWorker { worker, stream, gateway: 1 };
        state.apply(index, 0, Millis(index), &Envelope { caller: Caller::Node(1), command });
    }
    let newest_dropped = state.newest_dropped_event();
    assert!(newest_dropped > EventPosition::default());
    for too_early in [EventPosition::default(), EventPosition { index: newest_dropped.index - 1, ..newest_dropped }] {
        assert_eq!(state.events_after(too_early).map(drop), Err(Compacted { newest_dropped }));
    }
    let kept = state.events_after(newest_dropped).unwrap();
    let entries: Vec<_> = kept.map(|event| event.position.index).collect();
    assert!(entries.len() as u64 >= KEPT && entries.iter().copied().eq(newest_dropped.index + 1..=index));
    assert_eq!(state.newest_event(), EventPosition { index, offset: 0 });
    assert_eq!(state.events_after(state.newest_event()).unwrap().count(), 0);

    let rebuilt = State::from_rows(state.rows()).unwrap();
    assert_eq!((rebuilt.hash(), rebuilt.newest_dropped_event()), (state.hash(), newest_dropped));
    assert_eq!(invariants::check(&rebuilt), []);
}
