//! What the node says, one function per message. Nothing here waits.

use std::{sync::Arc, time::Duration};

use hodei_proto::v1::{Ack, AttemptRef, CancelAttempt, LeaseExtended, LogWanted, Release, RunJob, node_message::Kind};
use tokio::time::Instant;

use super::Shared;
use crate::{
    attempt::Stop,
    data_dir::discard,
    executor::secrets::Secrets,
    key::AttemptKey,
    roster::{Admission, Heartbeat},
};

/// Where a RunJob does not say.
const LOST_AFTER: Duration = Duration::from_secs(120);
/// Where a CancelAttempt does not say.
const GRACE_PERIOD: Duration = Duration::from_secs(10);

/// Acts on a message of the newest stream.
pub fn obey(shared: &Arc<Shared>, kind: Kind) {
    match kind {
        Kind::RunJob(run) => run_job(shared, run),
        Kind::Cancel(cancel) => cancel_attempt(shared, cancel),
        Kind::Ack(ack) => acknowledged(shared, &ack),
        Kind::KeepAlive(_) => shared.roster.heartbeat(Heartbeat::Asked),
        Kind::LeaseExtended(grants) => lease_extended(shared, &grants),
        Kind::Drain(_) => shared.roster.drain(),
        Kind::LogWanted(wanted) => log_wanted(shared, &wanted),
        Kind::Release(release) => released(shared, &release),
        Kind::Attached(_) => {}
    }
}

/// Grants and orders for another session are not for this process.
fn run_job(shared: &Arc<Shared>, run: RunJob) {
    let Some(key) = AttemptKey::from_wire(run.attempt.as_ref()) else { return };
    if run.session_id != shared.id && !crate::armed!("bug::other-sessions-run-obeyed") {
        return;
    }
    crate::failpoint!("agent::before-admit");
    let gpus = run.spec.as_ref().and_then(|spec| spec.resources.as_ref()).map_or(0, |wanted| wanted.gpu);
    let Admission::New(attempt) = shared.roster.admit(key, gpus) else { return };
    let Some(spec) = run.spec else {
        return shared.roster.decline(key, "the request names no job");
    };
    let lost_after = duration_or(run.lost_after_ms, LOST_AFTER);
    if let Err(why) = shared.leases.admit(key, run.heartbeat, lost_after) {
        return shared.roster.decline(key, why.to_string());
    }
    // It stands on a heartbeat that the leader has just confirmed, answered or not.
    *shared.answered.lock() = Instant::now();
    tracing::info!(attempt = %key, name = spec.name, "starting");
    crate::failpoint!("agent::after-admit");
    let executor = Arc::clone(&shared.executor);
    let secrets = Secrets::new(run.secrets, run.missing_secret);
    shared.tasks.spawn(async move { executor.run(attempt, spec, secrets, lost_after).await });
}

fn cancel_attempt(shared: &Shared, cancel: CancelAttempt) {
    let Some(key) = AttemptKey::from_wire(cancel.attempt.as_ref()) else { return };
    if cancel.session_id != shared.id {
        return;
    }
    match shared.roster.get(key) {
        Some(attempt) => {
            let grace = duration_or(cancel.grace_period_ms, GRACE_PERIOD);
            attempt.stop(Stop::Cancel { reason: cancel.reason, grace });
        }
        // Its RunJob may still come; then it is declined again.
        None => shared.roster.decline_unseen(key, "cancelled before it started"),
    }
}

fn acknowledged(shared: &Shared, ack: &Ack) {
    let Some(attempt) = AttemptKey::from_wire(ack.attempt.as_ref()).and_then(|key| shared.roster.get(key)) else {
        return;
    };
    attempt.log.acknowledged(ack.received, ack.durable);
    if ack.started {
        attempt.start_known();
    }
    if (ack.ended && attempt.has_result()) || attempt.is_done_for() {
        forget(shared, attempt.key);
    } else {
        shared.roster.ready(&attempt);
    }
}

fn lease_extended(shared: &Shared, grants: &LeaseExtended) {
    *shared.answered.lock() = Instant::now();
    let keys =
        |refs: &[AttemptRef]| refs.iter().filter_map(|wire| AttemptKey::from_wire(Some(wire))).collect::<Vec<_>>();
    crate::failpoint!("agent::before-extend");
    shared.leases.answered(grants.sequence, &keys(&grants.extended), &keys(&grants.refused));
}

fn log_wanted(shared: &Shared, wanted: &LogWanted) {
    if let Some(attempt) = AttemptKey::from_wire(wanted.attempt.as_ref()).and_then(|key| shared.roster.get(key)) {
        attempt.log.wanted(wanted.from_sequence);
        shared.roster.ready(&attempt);
    }
}

/// What runs is killed by the watchdog; its late lines are still delivered.
fn released(shared: &Shared, release: &Release) {
    let Some(key) = AttemptKey::from_wire(release.attempt.as_ref()) else { return };
    shared.leases.refuse(key);
    if let Some(attempt) = shared.roster.get(key) {
        tracing::info!(attempt = %key, reason = release.reason, "released");
        attempt.release();
        if attempt.is_done_for() {
            forget(shared, key);
        }
    }
}

/// Forgets released attempts that nobody wants anything of any more.
pub fn sweep(shared: &Shared) {
    let done = shared.roster.all().into_iter().filter(|attempt| attempt.is_done_for());
    done.for_each(|attempt| forget(shared, attempt.key));
}

fn forget(shared: &Shared, key: AttemptKey) {
    crate::failpoint!("agent::before-forget");
    if shared.roster.forget(key) {
        shared.leases.forget(key);
        let record = shared.dir.of(key).record;
        shared.tasks.spawn_blocking(move || discard(&record));
    }
}

fn duration_or(ms: u64, default: Duration) -> Duration {
    if ms == 0 { default } else { Duration::from_millis(ms) }
}
