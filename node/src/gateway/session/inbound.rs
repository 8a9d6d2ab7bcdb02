//! What the agent says, one function per message.

use std::time::Duration;

use hodei_proto::v1::{self, worker_message::Kind};
use hodei_state::ids::AttemptRef;
use tokio::time::{Instant, timeout};

use super::{Attempt, Ended, Said, Session, Truth};
use crate::{
    convert::{from_proto, to_proto},
    gateway::{attempt::PLACE_DELAY, relay::Down},
    logs::{entries, frame::FLAG_LATE, hub::Open},
};

/// A disk that takes nothing for so long gets the batch later: the agent keeps it.
const APPEND_TIMEOUT: Duration = Duration::from_secs(1);
/// Holes are asked for at most this often.
const HOLE_PAUSE: Duration = Duration::from_millis(200);

impl Session {
    pub(super) async fn take(&mut self, kind: Kind) -> Result<(), Ended> {
        match kind {
            Kind::Heartbeat(heartbeat) => self.heartbeat(heartbeat).await,
            Kind::LogBatch(batch) => self.log_batch(batch).await,
            Kind::LogResume(resume) => self.log_resume(&resume).await,
            Kind::JobStarted(started) => {
                self.reported(started.attempt.as_ref(), |attempt| attempt.said = Said::Running).await
            }
            Kind::JobDeclined(declined) => {
                let now = Instant::now();
                self.reported(declined.attempt.as_ref(), |attempt| {
                    attempt.said = Said::Nothing;
                    attempt.decline_reason = declined.reason;
                    attempt.declined.want(now);
                })
                .await
            }
            Kind::JobResult(result) => {
                let id = result.attempt.clone();
                self.reported(id.as_ref(), |attempt| attempt.reported(result, Instant::now())).await
            }
            // Usage travels with heartbeats; a stream attaches once.
            Kind::Stats(_) | Kind::Attach(_) => Ok(()),
        }
    }

    /// Notes what the agent says of an attempt and does what follows from it.
    async fn reported(&mut self, id: Option<&v1::AttemptRef>, note: impl FnOnce(&mut Attempt)) -> Result<(), Ended> {
        let Some(id) = self.known(id) else { return Ok(()) };
        let now = Instant::now();
        note(self.attempts.entry(id).or_insert_with(|| Attempt::new(id, now)));
        self.watch(id.job);
        let state = self.gateway.handle.view().state;
        self.pump(&state, id, now).await
    }

    fn known(&self, id: Option<&v1::AttemptRef>) -> Option<AttemptRef> {
        from_proto::attempt(id)
            .inspect_err(|bad| tracing::warn!(worker = %self.on.worker, %bad, "the agent names no attempt"))
            .ok()
    }

    async fn heartbeat(&mut self, heartbeat: v1::WorkerHeartbeat) -> Result<(), Ended> {
        if heartbeat.session_id != self.on.session.to_string() {
            return Ok(());
        }
        let changed = self.reported.as_ref() != Some(&heartbeat.attempts);
        if changed {
            self.reported = Some(heartbeat.attempts.clone());
        }
        let urgent = changed || std::mem::take(&mut self.asked);
        self.enlisted.heartbeat(heartbeat, urgent).await;
        Ok(())
    }

    pub(super) async fn order(&mut self, order: Down) -> Result<(), Ended> {
        match order {
            Down::AskHeartbeat => {
                self.asked = true;
                self.send(v1::node_message::Kind::KeepAlive(v1::KeepAlive {})).await
            }
            Down::Grants(session, grants) if session == self.on.session => {
                self.send(v1::node_message::Kind::LeaseExtended(grants)).await
            }
            Down::Grants(..) => Ok(()),
        }
    }

    async fn log_batch(&mut self, batch: v1::LogBatch) -> Result<(), Ended> {
        let Some(id) = self.known(batch.attempt.as_ref()) else { return Ok(()) };
        // What is not here was acknowledged to its end; this is a repetition that crossed the acknowledgement.
        let Some(mut attempt) = self.attempts.remove(&id) else { return Ok(()) };
        let result = match entries::check(&batch) {
            Ok(()) => self.append(&mut attempt, batch, false).await,
            Err(error) => {
                tracing::warn!(worker = %self.on.worker, job = %id.job, %error, "dropped a batch");
                Ok(())
            }
        };
        self.attempts.insert(id, attempt);
        result
    }

    /// `stands_for_missing`: it is a gap record for what the agent no longer has. Gap records of an agent stand for what has
    /// no number, and have their place like any line.
    async fn append(
        &mut self,
        attempt: &mut Attempt,
        batch: v1::LogBatch,
        stands_for_missing: bool,
    ) -> Result<(), Ended> {
        let now = Instant::now();
        let last = entries::last_sequence(&batch);
        attempt.known_last = attempt.known_last.max(last);
        self.open_again(attempt, Open::OrCreate, now).await?;
        let Some(file) = attempt.file.clone().filter(|file| !file.progress().failed) else { return Ok(()) };
        if last < attempt.next {
            return Ok(());
        }
        let stands = stands_for_missing && !entries::leaves_hole(&batch, attempt.next);
        if batch.first_sequence > attempt.next && !stands {
            return self.ask_again(attempt, now).await;
        }
        let state = self.gateway.handle.view().state;
        let flags = if Truth::of(&state, self.on, attempt.id) == Truth::Freed { FLAG_LATE } else { 0 };
        if let Ok(Ok(())) = timeout(APPEND_TIMEOUT, self.gateway.hub.append(&file, batch, flags)).await {
            attempt.next = last + 1;
            attempt.log_activity = now;
            attempt.place.want(now + PLACE_DELAY);
        }
        Ok(())
    }

    /// Entries are missing before the one that came.
    async fn ask_again(&mut self, attempt: &mut Attempt, now: Instant) -> Result<(), Ended> {
        if now < attempt.log_activity + HOLE_PAUSE {
            return Ok(());
        }
        attempt.log_activity = now;
        let id = Some(to_proto::attempt_ref(&attempt.id));
        let wanted = v1::LogWanted { attempt: id, from_sequence: attempt.next };
        self.send(v1::node_message::Kind::LogWanted(wanted)).await
    }

    /// The agent no longer has what was asked for: a gap stands for it from here on.
    async fn log_resume(&mut self, resume: &v1::LogResume) -> Result<(), Ended> {
        let Some(id) = self.known(resume.attempt.as_ref()) else { return Ok(()) };
        let Some(mut attempt) = self.attempts.remove(&id) else { return Ok(()) };
        self.open_again(&mut attempt, Open::OrCreate, Instant::now()).await?;
        let result = if resume.first_available > attempt.next {
            tracing::warn!(job = %id.job, from = attempt.next, to = resume.first_available, "a part of a log is lost");
            let now_ms = i64::try_from(self.gateway.handle.view().state.stamp().0).unwrap_or(i64::MAX);
            let gap = entries::gap(attempt.next, resume.first_available, now_ms);
            self.append(&mut attempt, gap, true).await
        } else {
            Ok(())
        };
        self.attempts.insert(id, attempt);
        result
    }
}
