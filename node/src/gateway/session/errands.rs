//! What has to be committed on behalf of the agent.

use futures::FutureExt as _;
use hodei_state::{
    command::{Command, Envelope, PlaceSegment},
    ids::{AttemptRef, Caller},
    outcome::Outcome,
};
use tokio::time::Instant;

use super::{Ended, PROPOSE_TIMEOUT, Session};
use crate::{convert::from_proto, gateway::attempt::Errand};

/// What was proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Started,
    Declined,
    /// And whether it says where the log lies.
    Result {
        places: bool,
    },
    Place,
}

/// A proposal is over.
pub(super) struct Finished {
    id: AttemptRef,
    what: What,
    /// `None`: not done, or unknown.
    outcome: Option<Outcome>,
}

impl Session {
    /// Begins the proposals that are due for an attempt.
    pub(super) fn run_errands(&mut self, id: AttemptRef, now: Instant) {
        let holder = self.gateway.handle.node_id();
        let here = PlaceSegment { holder, first_sequence: 1 };
        let by = self.on;
        let mut begun = Vec::new();
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if attempt.started.begin(now) {
            begun.push((What::Started, Command::JobStarted { attempt: id, by, segment: None }));
        }
        if attempt.declined.begin(now) {
            let reason = attempt.decline_reason.clone();
            begun.push((What::Declined, Command::JobDeclined { attempt: id, by, reason }));
        }
        if attempt.result.begin(now) {
            match result(attempt.report.clone(), by.worker.into()) {
                Some((reason, log)) => {
                    let places = attempt.result_places_log() && attempt.place != Errand::Running;
                    if places {
                        attempt.place = Errand::Running;
                    }
                    let segment = places.then_some(here);
                    begun.push((What::Result { places }, Command::JobResult { attempt: id, by, reason, log, segment }));
                }
                None => attempt.result = Errand::Settled,
            }
        }
        if attempt.place.begin(now) {
            begun.push((What::Place, Command::PlaceLog { attempt: id, segment: here }));
        }
        for (what, command) in begun {
            self.propose(id, what, command);
        }
    }

    fn propose(&mut self, id: AttemptRef, what: What, command: Command) {
        let handle = self.gateway.handle.clone();
        let caller = if what == What::Place { Caller::Node(handle.node_id()) } else { self.on.worker.into() };
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let errand = async move {
            hodei_state::failpoint!("report::before-commit");
            let reply = handle.propose(Envelope { caller, command }, deadline).await;
            let outcome = match reply {
                Ok(reply) => {
                    // What follows is decided on this node's state, which must know of it.
                    handle.wait_applied(reply.position.index, deadline).await.ok().map(|()| reply.outcome)
                }
                Err(error) => {
                    tracing::debug!(job = %id.job, attempt = id.attempt, ?what, %error, "a report is not committed yet");
                    None
                }
            };
            Finished { id, what, outcome }
        };
        self.errands.push(errand.boxed());
    }

    /// Takes up what became of a proposal. A refusal settles it as well: the state will not hear of it again.
    pub(super) async fn finished(&mut self, Finished { id, what, outcome }: Finished) -> Result<(), Ended> {
        hodei_state::failpoint!("report::after-commit");
        let now = Instant::now();
        let Some(attempt) = self.attempts.get_mut(&id) else { return Ok(()) };
        if let Some(Outcome::Refused(refusal)) = &outcome {
            tracing::info!(job = %id.job, attempt = id.attempt, ?what, %refusal, "a report was refused");
        }
        let settle = |errand: &mut Errand| match outcome {
            Some(_) => *errand = Errand::Settled,
            None => errand.failed(now),
        };
        match what {
            What::Started => settle(&mut attempt.started),
            What::Declined => settle(&mut attempt.declined),
            What::Place => settle(&mut attempt.place),
            What::Result { places } => {
                settle(&mut attempt.result);
                let refused = matches!(outcome, None | Some(Outcome::Refused(_)));
                match (places, refused) {
                    (true, true) => attempt.place.failed(now),
                    (true, false) => attempt.place = Errand::Settled,
                    (false, _) => {}
                }
            }
        }
        let state = self.gateway.handle.view().state;
        self.pump(&state, id, now).await
    }
}

/// The core's words for what the agent reported. What the core does not know counts as an end for reasons of the
/// infrastructure: an agent of a later version must not leave its job running for ever.
fn result(
    report: Option<hodei_proto::v1::JobResult>,
    by: Caller,
) -> Option<(hodei_state::job::Reason, hodei_state::job::LogEnd)> {
    let report = report?;
    let log = from_proto::log_end(report.log.as_ref());
    let reason = report.reason.unwrap_or_default();
    let reason = from_proto::reason(reason, by).unwrap_or_else(|bad| hodei_state::job::Reason::WorkerLost {
        message: format!("the agent's report is not understood: {bad}"),
    });
    Some((reason, log))
}
