//! What the agent is told.

use std::time::Duration;

use hodei_proto::v1::{self, node_message::Kind};
use hodei_state::{State, ids::AttemptRef};
use tokio::time::{Instant, timeout};

use super::{Ended, Said, Session, Truth};
use crate::{
    convert::to_proto,
    gateway::reconcile::{Action, decide},
    logs::hub::Open,
};

/// For a payload to be read from disk.
const EXECUTION_TIMEOUT: Duration = Duration::from_secs(2);

impl Session {
    /// Brings one attempt forward: tells the agent what it has to know, and proposes what the state has to know.
    pub(super) async fn pump(&mut self, state: &State, id: AttemptRef, now: Instant) -> Result<(), Ended> {
        self.check_current(state)?;
        let Some(attempt) = self.attempts.get_mut(&id) else { return Ok(()) };
        let truth = Truth::of(state, self.on, id);
        attempt.learn(state, &truth, self.gateway.handle.node_id(), now);
        let action = decide(&truth, attempt.said, attempt.told, now);
        attempt.quiet_until = match action {
            Action::Nothing(until) => until,
            _ => None,
        };
        self.carry_out(state, id, action, now).await?;
        self.run_errands(id, now);
        self.ask_for_log(id, now).await?;
        self.acknowledge(id).await?;
        let over = self.attempts.get(&id).is_some_and(|attempt| {
            attempt.is_over() || (attempt.said == Said::Nothing && !matches!(truth, Truth::Owned { .. }))
        });
        if over {
            self.attempts.remove(&id);
        }
        Ok(())
    }

    async fn carry_out(&mut self, state: &State, id: AttemptRef, action: Action, now: Instant) -> Result<(), Ended> {
        let wire = Some(to_proto::attempt_ref(&id));
        let session_id = self.on.session.to_string();
        let Some(attempt) = self.attempts.get_mut(&id) else { return Ok(()) };
        let kind = match action {
            Action::Nothing(_) => return Ok(()),
            Action::Started => {
                attempt.started.want(now);
                return Ok(());
            }
            Action::Run => {
                attempt.told.run = Some(now);
                attempt.quiet_until = Some(now + crate::gateway::reconcile::REPEAT_RUN);
                match self.run_job(state, id).await {
                    Some(run) => Kind::RunJob(run),
                    None => return Ok(()),
                }
            }
            Action::Cancel { reason, grace_period_ms } => {
                attempt.told.cancel = Some(now);
                attempt.quiet_until = Some(now + crate::gateway::reconcile::REPEAT_CANCEL);
                Kind::Cancel(v1::CancelAttempt { attempt: wire, session_id, reason, grace_period_ms })
            }
            Action::Release(reason) => {
                attempt.told.released = true;
                Kind::Release(v1::Release { attempt: wire, reason: reason.into() })
            }
            Action::Forget(reason) => {
                attempt.said = Said::Nothing;
                let last = attempt.known_last;
                self.send(Kind::Release(v1::Release { attempt: wire.clone(), reason: reason.into() })).await?;
                Kind::Ack(v1::Ack { attempt: wire, received: last, durable: last, started: true, ended: true })
            }
        };
        self.send(kind).await
    }

    async fn run_job(&mut self, state: &State, id: AttemptRef) -> Option<v1::RunJob> {
        let (spec, attempt) = (state.spec(id.job)?, state.attempt(id.job, id.attempt)?);
        let execution = match timeout(EXECUTION_TIMEOUT, self.gateway.handle.execution(&spec)).await {
            Ok(Ok(execution)) => execution,
            Ok(Err(error)) => {
                tracing::error!(job = %id.job, %error, "cannot read what a job executes");
                return None;
            }
            Err(_) => return None,
        };
        let (secrets, missing_secret) = match self.secrets(state, &spec) {
            Ok(secrets) => (secrets, String::new()),
            Err(missing) => (Vec::new(), missing),
        };
        hodei_state::failpoint!("gateway::before-run");
        Some(v1::RunJob {
            attempt: Some(to_proto::attempt_ref(&id)),
            session_id: self.on.session.to_string(),
            spec: Some(to_proto::spec(&spec, Some(&execution))),
            heartbeat: attempt.heartbeat,
            lost_after_ms: spec.lost_after_ms,
            secrets,
            missing_secret,
        })
    }

    /// Asks again for what a log is known to lack.
    async fn ask_for_log(&mut self, id: AttemptRef, now: Instant) -> Result<(), Ended> {
        if self.attempts.get(&id).is_none_or(|attempt| attempt.wanted(now).is_none()) {
            return Ok(());
        }
        let Some(mut attempt) = self.attempts.remove(&id) else { return Ok(()) };
        self.open_again(&mut attempt, Open::Existing, now).await?;
        attempt.log_activity = now;
        let wanted = v1::LogWanted { attempt: Some(to_proto::attempt_ref(&id)), from_sequence: attempt.next };
        self.attempts.insert(id, attempt);
        self.send(Kind::LogWanted(wanted)).await
    }

    pub(super) async fn acknowledge_all(&mut self) -> Result<(), Ended> {
        let ids: Vec<AttemptRef> = self.attempts.keys().copied().collect();
        for id in ids {
            self.acknowledge(id).await?;
            if self.attempts.get(&id).is_some_and(super::Attempt::is_over) {
                self.attempts.remove(&id);
            }
        }
        Ok(())
    }

    async fn acknowledge(&mut self, id: AttemptRef) -> Result<(), Ended> {
        let ack = self.attempts.get_mut(&id).and_then(|attempt| {
            let ack = attempt.acknowledgement()?;
            attempt.acknowledge(&ack);
            Some(ack)
        });
        match ack {
            Some(ack) => {
                hodei_state::failpoint!("gateway::before-acknowledge");
                self.send(Kind::Ack(ack)).await
            }
            None => Ok(()),
        }
    }
}
