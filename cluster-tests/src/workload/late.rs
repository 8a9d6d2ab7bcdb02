//! Results that come too late, from agents that speak the protocol by hand (S4).
//!
//! Each round has two agents, which alone may take the jobs of the round. The first one takes them, says that they run, and
//! falls silent until they are lost and the second one has them. Then both report how the jobs ended, and not alike, the
//! first one again and again, each time at another node. Nothing is ever executed.

use std::time::Duration;

use hodei_proto::v1::{
    self as wire, Attach, AttemptRef, AttemptStatus, Constraint, JobResult, JobSpec, JobStarted, LogEnd, NodeMessage,
    Reason, RegisterRequest, WorkerHeartbeat, WorkerMessage, attempt_status::Phase, node_message::Kind,
    worker_message::Kind as Said,
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, interval, sleep, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use uuid::Uuid;

use super::{
    identities::{self, Agent},
    jobs,
};
use crate::{
    history::{Attempted, Capacity, Note, Reply, Request, Submit},
    run::field::{DEADLINE, Field, Seat, within},
};

/// The longest that the last rounds take: the bounds below, one after the other, in each that may begin then.
pub const ROUNDS_END: Duration = Duration::from_secs(90 * (1 + FURTHER as u64));
/// The label of a round's agents.
const LABEL: &str = "label.round";
/// Jobs of a round.
const JOBS: usize = 3;
/// For the first agent to get them.
const TAKES: Duration = Duration::from_secs(6);
/// For them to be lost, by their leases, and to be given to the second one.
const LOST: Duration = Duration::from_secs(20);
/// For both to have said how they ended.
const TOLD: Duration = Duration::from_secs(8);
/// Between two rounds, and before somebody tries elsewhere.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two heartbeats.
const BEAT: Duration = Duration::from_millis(400);
/// A node that answers no heartbeat for so long is left.
const SILENCE: Duration = Duration::from_millis(2_500);
/// How often a job is cancelled that nobody will run, and the first pause between; the next one is twice as long.
const CANCELS: u32 = 4;
const CANCEL_AGAIN: Duration = Duration::from_secs(2);
/// Rounds after everything else has become quiet.
const FURTHER: u32 = 2;
/// How often the late one tries.
const TIMES: u32 = 2;
/// The exit codes that the second agent reports, and the first one too late.
const RIGHT: i32 = 0;
const WRONG: i32 = 3;

/// What keeps other jobs from the agents of this workload.
#[must_use]
pub fn elsewhere() -> Constraint {
    Constraint { attribute: LABEL.to_owned(), operator: "not_exists".to_owned(), value: String::new() }
}

/// One round after the other, until the end; and until somebody was too late, or has tried so often in vain.
pub async fn report(field: Field) {
    let (proc, mut rng) = field.process();
    let (mut was_late, mut further) = (false, 0);
    while !field.is_quiet() || !was_late && further < FURTHER {
        further += u32::from(field.is_quiet());
        let name = Uuid::now_v7().to_string();
        let first = Hand::new(&field, proc, &name, &mut rng).await;
        let second = Hand::new(&field, proc, &name, &mut rng).await;
        if let (Some(mut first), Some(mut second)) = (first, second) {
            was_late |= round(&field, proc, &mut rng, &name, [&mut first, &mut second]).await;
            for hand in [first, second] {
                identities::remove(&field, proc, hand.agent.key(), &mut rng).await;
            }
        }
        Field::pause(&mut rng, PAUSE).await;
    }
}

/// Whether somebody came too late.
async fn round(field: &Field, proc: u32, rng: &mut SmallRng, name: &str, [first, second]: [&mut Hand; 2]) -> bool {
    let submitting = async {
        let mut rng = SmallRng::from_rng(rng);
        let mut ids = Vec::new();
        for _ in 0..JOBS {
            let id = Uuid::now_v7().to_string();
            let _ = submit(field, proc, field.any(&mut rng), &id, name).await;
            ids.push(id);
        }
        ids
    };
    let begun = Instant::now();
    let (ids, line) = tokio::join!(submitting, first.hold(field, begun + TAKES, |held| held.len() == JOBS));
    // It is not heard of any more.
    drop(line);
    let late = std::mem::take(&mut first.held);
    let has = |held: &[AttemptRef]| late.iter().all(|old| held.iter().any(|new| is_newer(new, old)));
    let line = second.hold(field, Instant::now() + LOST, has).await;
    for attempt in &late {
        // Tells that another fence is out.
        let _ = jobs::get(field, proc, field.any(rng), &attempt.job_id, false).await;
    }
    let mut was_late = false;
    if !late.is_empty() && line.is_some() {
        (was_late, ()) = tokio::join!(first.repeat(field, &late), second.finish(field, line));
    }
    let mut left = Vec::new();
    for id in ids {
        let view = jobs::get(field, proc, field.any(rng), &id, false).await;
        if !view.is_ok_and(|view| view.state.is_some_and(crate::history::JobState::is_terminal)) {
            left.push(id);
        }
    }
    give_up(field, proc, rng, left).await;
    was_late
}

fn is_newer(new: &AttemptRef, old: &AttemptRef) -> bool {
    new.job_id == old.job_id && new.attempt > old.attempt
}

async fn submit(field: &Field, proc: u32, seat: Seat, id: &str, name: &str) -> Result<String, Status> {
    let constraint = Constraint { attribute: LABEL.to_owned(), operator: "=".to_owned(), value: name.to_owned() };
    let spec = JobSpec { constraints: vec![constraint], ..jobs::nothing() };
    let needs = Capacity { reserved: true, ..Capacity::default() };
    jobs::queue_as(field, proc, seat, id, spec, Submit { payload: name.to_owned(), needs, ..Submit::default() }).await
}

/// Nobody will run these any more. Of unknown outcomes a job may not have many, or nobody can judge it.
async fn give_up(field: &Field, proc: u32, rng: &mut SmallRng, mut left: Vec<String>) {
    for time in 0..CANCELS {
        for id in std::mem::take(&mut left) {
            match jobs::cancel(field, proc, field.any(rng), &id).await {
                Err(status) if status.code() != Code::NotFound => left.push(id),
                _ => {}
            }
        }
        if left.is_empty() {
            return;
        }
        sleep(CANCEL_AGAIN * 2_u32.pow(time)).await;
    }
}

/// An agent of which this program is the hand.
struct Hand {
    agent: Agent,
    proc: u32,
    rng: SmallRng,
    session: String,
    stream: u64,
    sequence: u64,
    /// What it was told to run, and has said to run.
    held: Vec<AttemptRef>,
}

/// A stream that stands.
struct Line {
    seat: Seat,
    say: mpsc::Sender<WorkerMessage>,
    hear: Streaming<NodeMessage>,
    beat: Interval,
    heard: Instant,
}

impl Line {
    fn say(&self, kind: Said) -> Result<(), Status> {
        self.say.try_send(WorkerMessage { kind: Some(kind) }).map_err(|_| Status::unavailable("nobody listens"))
    }
}

impl Hand {
    /// Somebody who is let in, with a session.
    async fn new(field: &Field, proc: u32, name: &str, rng: &mut SmallRng) -> Option<Self> {
        let mut agent = identities::let_in(field, proc, rng).await?;
        let session = Uuid::now_v7().to_string();
        let slots = Capacity { slots: JOBS as u64, cpu_millis: u64::MAX, memory_mb: u64::MAX, reserved: true };
        field.history().note(proc, agent.id(), Note::Worker(slots));
        let registration = RegisterRequest {
            session_id: session.clone(),
            capacity: Some(wire::Capacity { slots: JOBS as u32, ..wire::Capacity::default() }),
            labels: [("round".to_owned(), name.to_owned())].into(),
            ..RegisterRequest::default()
        };
        for _ in 0..3 {
            if agent.register(field, proc, field.any(rng), registration.clone()).await.is_ok() {
                let (proc, rng) = field.process();
                return Some(Self { agent, proc, rng, session, stream: 0, sequence: 0, held: Vec::new() });
            }
        }
        None
    }

    /// Stays with one node after the other until it holds enough; what it then has is a stream that stands.
    async fn hold(&mut self, field: &Field, by: Instant, enough: impl Fn(&[AttemptRef]) -> bool) -> Option<Line> {
        while Instant::now() < by {
            if let Ok(mut line) = self.attach(field).await {
                let serving = async {
                    while !enough(&self.held) {
                        self.step(&mut line).await?;
                    }
                    Ok::<_, Status>(())
                };
                if let Ok(Ok(())) = timeout_at(by, serving).await {
                    return Some(line);
                }
            }
            Field::pause(&mut self.rng, PAUSE).await;
        }
        None
    }

    /// Reports attempts that are not its own any more: that is, again and again, each time at another node.
    /// Gives whether one was refused.
    async fn repeat(&mut self, field: &Field, late: &[AttemptRef]) -> bool {
        let by = Instant::now() + TOLD;
        let mut was_refused = false;
        for time in 0..TIMES {
            if time > 0 && field.is_quiet() && was_refused {
                break;
            }
            sleep(Duration::from_millis(self.rng.random_range(0..600))).await;
            let Ok(Ok(mut line)) = timeout_at(by, self.attach(field)).await else { continue };
            for attempt in late {
                match self.report(field, &mut line, attempt, WRONG).await {
                    Ok(counts) => was_refused |= !counts,
                    Err(_) => break,
                }
            }
        }
        was_refused
    }

    /// Reports what it holds until nothing is left.
    async fn finish(&mut self, field: &Field, mut line: Option<Line>) {
        let by = Instant::now() + TOLD;
        let until = Instant::now() + Duration::from_millis(self.rng.random_range(0..900));
        while let Some(on) = line.as_mut()
            && let Ok(Ok(_)) = timeout_at(until, self.step(on)).await
        {}
        while let Some(attempt) = self.held.first().cloned().filter(|_| Instant::now() < by) {
            let Some(mut on) = line.take() else {
                line = timeout_at(by, self.attach(field)).await.ok().and_then(Result::ok);
                continue;
            };
            if self.report(field, &mut on, &attempt, RIGHT).await.is_ok() {
                self.held.retain(|held| *held != attempt);
                line = Some(on);
            }
        }
    }

    /// A new stream, with any node.
    async fn attach(&mut self, field: &Field) -> Result<Line, Status> {
        let seat = field.any(&mut self.rng);
        self.stream += 1;
        let status = |attempt: &AttemptRef| AttemptStatus {
            attempt: Some(attempt.clone()),
            phase: Phase::Running.into(),
            last_sequence: 0,
        };
        let attempts = self.held.iter().map(status).collect();
        let attach = Attach { session_id: self.session.clone(), stream: self.stream, attempts };
        let (say, said) = mpsc::channel(64);
        let mut client = self.agent.at(seat);
        let opening = client.worker_stream(ReceiverStream::new(said));
        let (hear, beat, heard) = (async { within(opening).await }, interval(BEAT), Instant::now());
        let _ = say.try_send(WorkerMessage { kind: Some(Said::Attach(attach)) });
        let hear = hear.await?.into_inner();
        let mut line = Line { seat, say, hear, beat, heard };
        let attached = async {
            while !matches!(self.step(&mut line).await?, Some(Kind::Attached(_))) {}
            Ok::<_, Status>(())
        };
        timeout(DEADLINE, attached).await.map_err(|_| Status::deadline_exceeded("not attached"))??;
        Ok(line)
    }

    /// Says that it lives, or hears a message and does what it says.
    async fn step(&mut self, line: &mut Line) -> Result<Option<Kind>, Status> {
        let message = tokio::select! {
            _ = line.beat.tick() => {
                if !self.held.is_empty() && line.heard.elapsed() > SILENCE {
                    return Err(Status::unavailable("heartbeats are not answered"));
                }
                self.heartbeat(line)?;
                return Ok(None);
            }
            message = line.hear.message() => message?,
        };
        line.heard = Instant::now();
        let kind = message.ok_or_else(|| Status::unavailable("the stream ended"))?.kind;
        match &kind {
            Some(Kind::RunJob(run)) if run.session_id == self.session => {
                if let Some(attempt) = run.attempt.clone() {
                    if !self.held.contains(&attempt) {
                        self.held.push(attempt.clone());
                    }
                    line.say(Said::JobStarted(JobStarted { attempt: Some(attempt), pid: 1 }))?;
                    self.heartbeat(line)?;
                }
            }
            Some(Kind::KeepAlive(_)) => self.heartbeat(line)?,
            Some(Kind::Release(release)) => self.held.retain(|held| Some(held) != release.attempt.as_ref()),
            _ => {}
        }
        Ok(kind)
    }

    fn heartbeat(&mut self, line: &Line) -> Result<(), Status> {
        self.sequence += 1;
        let (session_id, attempts) = (self.session.clone(), self.held.clone());
        line.say(Said::Heartbeat(WorkerHeartbeat { session_id, sequence: self.sequence, attempts, stats: None }))
    }

    /// Says how an attempt ended, recorded: it counts where the end is acknowledged, and not where the attempt is told to
    /// be none of this agent's. Of the same attempt nothing may be said twice on one stream, or answers could not be told
    /// apart. Gives whether it counts.
    async fn report(
        &mut self,
        field: &Field,
        line: &mut Line,
        attempt: &AttemptRef,
        exit_code: i32,
    ) -> Result<bool, Status> {
        let asked = Attempted { attempt: attempt.attempt, fence: attempt.fence, exit_code: Some(exit_code) };
        let open = field.history().invoke(self.proc, line.seat.id, &attempt.job_id, Request::Result(asked));
        match self.tell(line, attempt, exit_code).await {
            Ok(None) => {
                open.ok(Reply::Result, None);
                Ok(true)
            }
            Ok(Some(why)) => {
                open.refused("released", &why);
                Ok(false)
            }
            Err(status) => {
                // It ended the stream, not this.
                open.unanswered(&status);
                Err(status)
            }
        }
    }

    /// Why it does not count, if it does not. Both are followed by the end of the matter, which is waited for: the cluster
    /// is to come to its decision although this agent's node knows better already.
    async fn tell(&mut self, line: &mut Line, attempt: &AttemptRef, exit_code: i32) -> Result<Option<String>, Status> {
        let reason = Reason { kind: "exited".to_owned(), exit_code: Some(exit_code), ..Reason::default() };
        let (id, log) = (Some(attempt.clone()), Some(LogEnd::default()));
        line.say(Said::JobResult(JobResult { attempt: id.clone(), reason: Some(reason), log }))?;
        let by = Instant::now() + DEADLINE;
        let mut released = None;
        loop {
            let heard =
                timeout_at(by, self.step(line)).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("late")));
            match heard {
                Ok(Some(Kind::Release(release))) if release.attempt == id => released = Some(release.reason),
                Ok(Some(Kind::Ack(ack))) if ack.attempt == id && ack.ended => return Ok(released),
                Err(status) if released.is_none() => return Err(status),
                Err(_) => return Ok(released),
                Ok(_) => {}
            }
        }
    }
}
