//! Workers that come and go as an operator wants: drained, taken back into service, removed.

use super::{Context, Result};
use crate::{
    command::DrainWorker,
    events::Event,
    flapping::{Flaps, SetAside},
    ids::{Caller, Millis, WorkerId},
    job::{Attempt, EndedBy, Reason, TakenBack},
    outcome::{Outcome, Refusal},
    registry::{Drain, Worker, WorkerState},
    state::State,
    validate::check,
};

/// The longest deadline of a drain.
const MAX_DEADLINE_MS: u64 = 366 * 24 * 3_600_000;

impl State {
    /// No more jobs for this worker, over reconnections and restarts of its agent. What runs there may end, or is taken
    /// back: at once, or after a deadline.
    pub(super) fn drain_worker(&mut self, context: Context, wish: &DrainWorker) -> Result {
        let in_bounds = wish.deadline_ms.is_none_or(|ms| (1..=MAX_DEADLINE_MS).contains(&ms));
        check(in_bounds, "deadline", "1 ms to 366 days")?;
        let worker = self.serving_worker(wish.worker)?;
        if worker.drain.is_some_and(|drain| drain.nonce == wish.nonce) {
            return Ok(Outcome::Unchanged);
        }
        if let Caller::Agent(_) = context.caller {
            // Late, it must not drain the process after the one that asked.
            let session = wish.session.unwrap_or_default();
            if session != worker.session {
                return Err(Refusal::StaleSession { session });
            }
            if worker.drain.is_some_and(|drain| !matches!(drain.by, Caller::Agent(_))) {
                // What an operator wants of it goes further.
                return Ok(Outcome::Unchanged);
            }
        }
        let at = self.stamp();
        let deadline = wish.deadline_ms.map(|ms| at.plus(ms));
        let drain = Drain { nonce: wish.nonce, by: context.caller, at, deadline, requeue: wish.requeue };
        let mut worker = Worker { drain: Some(drain), ..worker.clone() };
        if worker.serves() {
            worker.state = WorkerState::Draining;
        }
        self.put_worker(worker);
        if wish.requeue {
            self.take_back(wish.worker);
        }
        let DrainWorker { worker, requeue, .. } = *wish;
        self.emit(&Event::WorkerDrained { worker, by: context.caller, deadline, requeue });
        Ok(Outcome::Done)
    }

    /// The deadline of a drain has passed, by the stamp of this very command: what still runs is taken back.
    pub(super) fn drain_overdue(&mut self, id: WorkerId, nonce: u128) -> Result {
        let worker = self.serving_worker(id)?;
        let stamp = self.stamp();
        let passed = |drain: &Drain| drain.nonce == nonce && drain.deadline.is_some_and(|due| due <= stamp);
        let Some(drain) = worker.drain.filter(passed) else {
            return Err(Refusal::OutOfDate { why: "the worker is drained otherwise, or not at all".to_string() });
        };
        if drain.requeue {
            return Ok(Outcome::Unchanged);
        }
        let worker = Worker { drain: Some(Drain { requeue: true, ..drain }), ..worker.clone() };
        self.put_worker(worker);
        self.take_back(id);
        self.emit(&Event::WorkerDrainOverdue { worker: id });
        Ok(Outcome::Done)
    }

    /// The worker gets jobs again, and what it has lost is forgotten. An agent that is ending takes none, whoever wants it
    /// to.
    pub(super) fn undrain_worker(&mut self, context: Context, id: WorkerId) -> Result {
        let worker = self.serving_worker(id)?;
        let (drained, set_aside) = (worker.drain.is_some(), worker.set_aside.is_some());
        if worker.drain.is_some_and(|drain| matches!(drain.by, Caller::Agent(_))) {
            return Err(Refusal::WorkerEnding { worker: id });
        }
        if !drained && !set_aside {
            return Ok(Outcome::Unchanged);
        }
        let flaps = if set_aside { Flaps::default() } else { worker.flaps.clone() };
        let mut worker = Worker { drain: None, set_aside: None, flaps, ..worker.clone() };
        if worker.state == WorkerState::Draining {
            worker.state = self.attached(&worker);
        }
        self.put_worker(worker);
        if drained {
            self.emit(&Event::WorkerUndrained { worker: id, by: context.caller });
        }
        if set_aside {
            self.emit(&Event::WorkerSetAsideEnded { worker: id, by: Some(context.caller) });
        }
        Ok(Outcome::Done)
    }

    /// A worker has been set aside for long enough, by the stamp of this very command.
    pub(super) fn set_aside_over(&mut self, id: WorkerId) -> Result {
        let worker = self.serving_worker(id)?;
        let stamp = self.stamp();
        match worker.set_aside {
            None => return Ok(Outcome::Unchanged),
            Some(set_aside) if set_aside.until > stamp => {
                return Err(Refusal::OutOfDate { why: "the worker is set aside for longer".to_string() });
            }
            Some(_) => {}
        }
        let worker = Worker { set_aside: None, ..worker.clone() };
        self.put_worker(worker);
        self.emit(&Event::WorkerSetAsideEnded { worker: id, by: None });
        Ok(Outcome::Done)
    }

    /// Tells what came of a worker's flap.
    pub(super) fn tell_set_aside(&mut self, worker: WorkerId, set_aside: Option<SetAside>) {
        if let Some(SetAside { until, sessions, attempts, .. }) = set_aside {
            self.emit(&Event::WorkerSetAside { worker, until, sessions, attempts });
        }
    }

    /// Removes a worker for good, whether it ever opened a session or only enrolled. Live attempts are in the way,
    /// unless by force: then their leases are extended no more, and their expiry frees them.
    pub(super) fn remove_worker(&mut self, context: Context, id: WorkerId, force: bool) -> Result {
        let who = Caller::Agent(id);
        let Some(identity) = self.identity(who) else {
            return Err(Refusal::UnknownWorker { worker: id });
        };
        if identity.revoked_at.is_some() {
            return Ok(Outcome::Unchanged);
        }
        let live = self.live_attempts(id).count();
        if live > 0 && !force {
            return Err(Refusal::WorkerBusy { worker: id, live: u32::try_from(live).unwrap_or(u32::MAX) });
        }
        let now = self.stamp();
        self.revoke(who, now);
        if let Some(worker) = self.worker(id) {
            let worker = removed(worker.clone(), live == 0, now);
            self.put_worker(worker);
        }
        if crate::armed!("bug::removal-frees-attempts") {
            let live: Vec<Attempt> = self.live_attempts(id).cloned().collect();
            for attempt in live {
                let reason = Reason::WorkerLost { message: "its worker was removed".to_string() };
                self.end_attempt(attempt, EndedBy::Expiry, reason, None);
            }
        }
        self.take_back(id);
        self.emit(&Event::WorkerRemoved { worker: id, by: context.caller, force });
        Ok(Outcome::Done)
    }

    /// All live attempts of a worker are to be stopped and their jobs put back.
    fn take_back(&mut self, id: WorkerId) {
        let live: Vec<Attempt> = self.live_attempts(id).filter(|one| one.taken_back.is_none()).cloned().collect();
        for attempt in live {
            self.put_attempt(Attempt { taken_back: Some(TakenBack::Drained), ..attempt });
        }
    }

    fn serving_worker(&self, id: WorkerId) -> std::result::Result<&Worker, Refusal> {
        let worker = self.worker(id).ok_or(Refusal::UnknownWorker { worker: id })?;
        if worker.removed_at.is_some() { Err(Refusal::WorkerRemoved { worker: id }) } else { Ok(worker) }
    }
}

fn removed(worker: Worker, idle: bool, now: Millis) -> Worker {
    let state = if idle { WorkerState::Terminated } else { WorkerState::Terminating };
    Worker { state, gateway: None, removed_at: Some(now), set_aside: None, ..worker }
}
