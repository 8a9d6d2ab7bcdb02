//! What must hold of every state, checked as a whole in tests after each command. What `apply` relies on is also checked
//! when a state is rebuilt from its rows, at less cost.

use std::fmt;

use crate::{
    codec,
    ids::Caller,
    job::{Attempt, EndedBy, Job, JobState},
    registry::{Worker, WorkerState},
    state::State,
};

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything that is wrong with the state; nothing, in any state that `apply` can make.
#[must_use]
pub fn check(state: &State) -> Vec<Violation> {
    let mut found = Findings(Vec::new());
    check_rows(state, &mut found);
    for (_, job) in state.jobs.iter() {
        check_job(state, job, &mut found);
    }
    for (_, attempt) in state.attempts.iter() {
        check_attempt(state, attempt, &mut found);
    }
    for (_, segment) in state.segments.iter() {
        let known = state.attempt(segment.job, segment.attempt).is_some();
        found.check(known, || format!("segment {} of {} has no attempt", segment.number, segment.job));
    }
    check_secrets(state, &mut found);
    check_queue(state, &mut found);
    check_workers(state, &mut found);
    check_parties(state, &mut found);
    check_events(state, &mut found);
    found.0
}

struct Findings(Vec<Violation>);

impl Findings {
    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Violation(what()));
        }
    }
}

/// Rows are small, and say all: hash and indexes follow from them.
fn check_rows(state: &State, found: &mut Findings) {
    let rows: Vec<_> = state.rows().collect();
    found.check(rows.is_sorted_by(|a, b| a.0 < b.0), || "rows are not in key order".to_string());
    for (key, bytes) in &rows {
        found.check(bytes.len() <= codec::MAX_ROW, || format!("row {key:?} has {} bytes", bytes.len()));
    }
    match State::from_rows(rows) {
        Err(corrupt) => found.check(false, || format!("not rebuilt: {corrupt}")),
        Ok(rebuilt) => {
            found.check(rebuilt.hash() == state.hash(), || "the rolling hash is not that of the rows".to_string());
            found.check(rebuilt.indexes == state.indexes, || "the indexes do not follow from the rows".to_string());
        }
    }
}

fn check_job(state: &State, job: &Job, found: &mut Findings) {
    let id = job.id;
    let terminal = job.state.is_terminal();
    found.check(job.reason.is_some() == terminal, || format!("job {id} is {:?}, reason {:?}", job.state, job.reason));
    found.check(job.finished_at.is_some() == terminal, || format!("job {id}: finished_at does not fit"));
    let attempts: Vec<_> = state.attempts(id).collect();
    let numbers = attempts.iter().map(|attempt| attempt.id.attempt).eq(1..=job.attempt);
    found.check(numbers, || format!("job {id} has not exactly the attempts 1 to {}", job.attempt));
    // Fences grow: an external system that keeps the highest turns every older attempt away.
    let fences = attempts.is_sorted_by(|a, b| a.id.fence <= b.id.fence);
    found.check(fences, || format!("fences of job {id} do not grow"));
    let live: Vec<_> = attempts.iter().filter(|attempt| attempt.is_live()).collect();
    let placed = matches!(job.state, JobState::Scheduled | JobState::Running);
    let expected = usize::from(placed);
    found.check(live.len() == expected, || format!("job {id} is {:?} with {} live attempts", job.state, live.len()));
    let newest = live.iter().all(|attempt| attempt.id.attempt == job.attempt);
    found.check(newest, || format!("an old attempt of job {id} is live"));
    if let (JobState::Running | JobState::Scheduled, Some(attempt)) = (job.state, live.first()) {
        let running = job.state == JobState::Running;
        found.check(attempt.started_at.is_some() == running, || {
            format!("job {id} is {:?} unlike its attempt", job.state)
        });
    }
    let cancelled = job.cancel.is_none() || job.state != JobState::Pending;
    found.check(cancelled, || format!("job {id} is pending although it was cancelled"));
    if let Some(spec) = state.spec(id) {
        let used = [
            (job.retries.infrastructure, spec.retry.infrastructure),
            (job.retries.failure, spec.retry.failure),
            (job.retries.timeout, spec.retry.timeout),
            (job.retries.preemption, spec.retry.preemption),
        ];
        found.check(used.iter().all(|(used, budget)| used <= budget), || format!("job {id} overdrew a retry budget"));
    }
}

fn check_attempt(state: &State, attempt: &Attempt, found: &mut Findings) {
    let id = attempt.id;
    // One that has ended may outlive its worker, which was removed then.
    let known = state.worker(attempt.worker).is_some();
    let gone = !attempt.is_live() && state.is_revoked(Caller::Agent(attempt.worker));
    found.check(known || gone, || format!("attempt {id:?} is on no worker"));
    if let Some(end) = &attempt.end {
        found.check(end.at >= attempt.assigned_at, || format!("attempt {id:?} ended before it was assigned"));
        // Only a later session can have found it dead, and sessions never come back.
        let session = state.worker(attempt.worker).map(|worker| worker.session);
        let later = end.by != EndedBy::Dead || session != Some(attempt.session);
        found.check(later, || format!("attempt {id:?} was found dead by its own session"));
    }
}

/// The queue is what sorting all pending jobs would make of it.
fn check_queue(state: &State, found: &mut Findings) {
    let stamp = state.stamp();
    let jobs = state.jobs.iter().map(|(_, job)| job).filter(|job| job.state == JobState::Pending);
    let (waiting, queued): (Vec<_>, Vec<_>) = jobs.partition(|job| job.not_before.is_some_and(|until| until > stamp));
    let mut orders: Vec<_> =
        queued.iter().filter_map(|job| state.spec(job.id).map(|spec| crate::index::order(job, &spec))).collect();
    orders.sort_unstable();
    let expected: Vec<_> = orders.into_iter().filter_map(|order| state.queued_job(order)).map(|job| job.id).collect();
    let pending: Vec<_> = state.pending().map(|job| job.id).collect();
    found.check(pending.starts_with(&expected), || format!("the queue is {pending:?}, not {expected:?}"));
    found.check(pending.len() == expected.len() + waiting.len(), || "jobs in backoff are missing".to_string());
}

fn check_workers(state: &State, found: &mut Findings) {
    for worker in state.workers() {
        let id = worker.id;
        let live = state.live_attempts(id).count();
        found.check(worker.used == state.taken(id), || format!("worker {id}: what is used is not what is taken"));
        let fits = match worker.state {
            WorkerState::Ready | WorkerState::Terminated => live == 0,
            WorkerState::Busy | WorkerState::Terminating => live > 0,
            WorkerState::Draining => worker.drain.is_some(),
            _ => true,
        };
        found.check(fits, || format!("worker {id} is {:?} with {live} live attempts", worker.state));
        let attached = worker.serves() || worker.state == WorkerState::Draining;
        found.check(!attached || worker.gateway.is_some(), || format!("worker {id} is ready at no gateway"));
        let drained = worker.drain.is_none() || !worker.serves();
        found.check(drained, || format!("worker {id} takes jobs although it is drained"));
        let gone = matches!(worker.state, WorkerState::Terminating | WorkerState::Terminated);
        let revoked = state.is_revoked(Caller::Agent(id));
        found.check(worker.removed_at.is_none() || (gone && revoked), || format!("worker {id} is not quite removed"));
        found.check(worker.recent <= Worker::RECENT_BEST, || format!("worker {id} fares better than well"));
        let in_order = worker.flaps.recent.is_sorted_by(|a, b| a.at <= b.at) && worker.flaps.recent.len() <= 16;
        found.check(in_order, || format!("worker {id}: its flaps are not in order"));
        let reason = worker.set_aside.is_none_or(|aside| aside.until > aside.since && worker.removed_at.is_none());
        found.check(reason, || format!("worker {id} is set aside for no time, or although it is gone"));
        found.check(!worker.past_sessions.contains(&worker.session), || format!("worker {id}: its session is over"));
    }
}

fn check_secrets(state: &State, found: &mut Findings) {
    for secret in state.secrets() {
        let whole = state.sealed(secret.id).len() == secret.len as usize;
        found.check(whole, || format!("secret {} is not whole", secret.name));
    }
    let (named, all) = (state.secrets().count(), state.secrets.len());
    found.check(named == all, || format!("{all} secrets, {named} of them by name"));
    let orphan = state.secret_parts.iter().find(|((id, _), _)| state.secret(*id).is_none());
    found.check(orphan.is_none(), || "a part of a secret that does not exist".to_string());
}

/// What is kept are the newest events, each at its place.
fn check_events(state: &State, found: &mut Findings) {
    let all = state.events_after(state.newest_dropped_event()).map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    found.check(all.len() as u64 == state.events.kept(), || "events are miscounted".to_string());
    let in_order = all.is_sorted_by(|a, b| {
        let next = a.position.index == b.position.index && a.position.offset.checked_add(1) == Some(b.position.offset);
        a.at <= b.at && (next || (a.position.index < b.position.index && b.position.offset == 0))
    });
    found.check(in_order, || "events are not at their places".to_string());
}

fn check_parties(state: &State, found: &mut Findings) {
    let Some(cluster) = state.cluster() else {
        return;
    };
    for member in state.members() {
        let id = member.id;
        found.check(id < cluster.next_node_id, || format!("node {id} was not handed out"));
        let revoked = state.is_revoked(Caller::Node(id));
        found.check(revoked == member.removed_at.is_some(), || format!("node {id}: revoked unlike removed"));
        let heir = member.replaced_by.and_then(|id| state.member(id));
        let taken = heir.is_some_and(|heir| heir.replaces.is_some_and(|(node, _)| node == id) && heir.id > id);
        let fits = member.replaced_by.is_none() || (taken && member.removed_at.is_some());
        found.check(fits, || format!("node {id} was replaced by {:?}", member.replaced_by));
        let speaks = member.removed_at.is_some() || member.feature_level >= cluster.feature_level;
        found.check(speaks, || format!("node {id} cannot read what the cluster writes"));
    }
    let served = state.members().any(|member| member.removed_at.is_none());
    found.check(served, || "the cluster has no member".to_string());
    for token in state.tokens() {
        let used = state.token_uses(token.id).count();
        // One that is being forgotten has lost some of its uses already.
        let all = used == token.used as usize || (token.forgotten_at() <= state.stamp() && used < token.used as usize);
        found.check(all && token.used <= token.uses, || format!("token {} is overused", token.id));
        let used_up = token.used_up_at.is_some() == (token.used == token.uses);
        found.check(used_up, || format!("token {}: used up unlike its uses", token.id));
    }
}
