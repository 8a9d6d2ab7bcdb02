//! What a transcript shows, with names in place of ids.

use std::{error::Error, fmt::Write as _};

use hodei_state::{
    Changes, Grants, Plan, SelectError, State,
    backlog::{Backlog, ClassStatus},
    command::Command,
    events::{EventPosition, Occurred},
    explain::{Blocker, Explanation, Lack, Standing, Start, Verdict},
    flapping::Loss,
    ids::{AttemptRef, Millis},
    job::{Attempt, Job, Next, Reason, RetriesUsed},
    outcome::Outcome,
    registry::Worker,
    score::Choice,
    spec::{Constraint, Resources},
};

use super::{names, parse::Arguments};

pub(super) fn outcome(outcome: &Outcome) -> String {
    names::shorten(&match outcome {
        Outcome::Refused(refusal) => format!("refused: {refusal}"),
        Outcome::Assigned { attempt } => format!("assigned {}", reference(attempt)),
        Outcome::SessionOpened { owned } => format!("session opened, owns {}", references(owned)),
        Outcome::Submitted { job, existing } => format!("submitted {job}{}", if *existing { ", existing" } else { "" }),
        other => format!("{other:?}"),
    })
}

pub(super) fn command(command: &Command) -> String {
    names::shorten(&match command {
        Command::Assign { job, attempt, on, heartbeat, .. } => {
            format!("assign {job}/{attempt} to {}/{} on heartbeat {heartbeat}", on.worker, on.session)
        }
        Command::AttemptLost { attempt } => format!("lost {}", reference(attempt)),
        Command::AttemptOverdue { attempt } => format!("overdue {}", reference(attempt)),
        Command::DrainOverdue { worker, nonce } => format!("drain {nonce} of {worker} is overdue"),
        Command::SetAsideOver { worker } => format!("{worker} is set aside no more"),
        Command::Preempt { attempt, for_job } => format!("preempt {} for {for_job}", reference(attempt)),
        Command::RemoveJobs { jobs } => format!("remove {jobs:?}"),
        other => format!("{other:?}"),
    })
}

pub(super) fn commands(commands: &[Command]) -> String {
    commands.iter().map(|one| command(one) + "\n").collect()
}

pub(super) fn plan_rest(plan: &Plan, now: u64) -> String {
    let mut shown = String::new();
    for worker in &plan.ask_heartbeat {
        writeln!(shown, "ask {} for a heartbeat", names::shorten(&worker.to_string())).unwrap();
    }
    for job in &plan.held {
        writeln!(shown, "hold {}", names::shorten(&job.to_string())).unwrap();
    }
    if let Some(at) = plan.wake_at {
        writeln!(shown, "plan again in {} ms", at.0 - now).unwrap();
    }
    shown
}

pub(super) fn grants(grants: &Grants) -> String {
    let Grants { sequence, extended, refused } = grants;
    names::shorten(&format!("heartbeat {sequence}: extended {}, refused {}", references(extended), references(refused)))
}

pub(super) fn changes(changes: &Changes, state: &State) -> String {
    let keys = changes.keys.iter();
    keys.map(|key| {
        let row = state.row(*key);
        let key = names::shorten(&format!("{key:?}"));
        if row.is_some() { format!("{key}\n") } else { format!("{key} removed\n") }
    })
    .collect()
}

/// Lines that only look.
pub(super) fn query(state: &State, arguments: &Arguments<'_>) -> Result<String, Box<dyn Error>> {
    let shown = match arguments.line.name.as_str() {
        "job" => state.job(names::job(arguments.word(0)?)?).map_or("no such job".to_string(), |one| job(state, one)),
        "worker" => {
            let found = state.worker(names::worker(arguments.word(0)?)?);
            found.map_or("no such worker".to_string(), |one| worker(state, one))
        }
        "workers" => {
            let removed = state.workers().filter(|worker| worker.removed_at.is_some()).count();
            format!("{} workers, {removed} of them removed", state.workers().count())
        }
        "counts" => format!("{:?}", state.counts()),
        "pending" => state.pending().map(|job| format!("{}\n", job.id)).collect(),
        "list" => state.jobs_newest_first(None).map(|job| format!("{} {:?}\n", job.id, job.state)).collect(),
        "find" => {
            let caller = names::caller(arguments.text("by").unwrap_or("u1"))?;
            match state.find_job(arguments.word(0)?, caller) {
                Ok(job) => job.to_string(),
                Err(error @ SelectError::Ambiguous(_)) => format!("{error}: {error:?}"),
                Err(error) => error.to_string(),
            }
        }
        "token" | "tokens" => state
            .tokens()
            .map(|token| {
                let revoked = if token.revoked_at.is_some() { " revoked" } else { "" };
                format!("{} {} {}/{} used{revoked}\n", token.id, token.role, token.used, token.uses)
            })
            .collect(),
        "weights" => format!("{:?}", state.weights()),
        "set-aside" => format!("{:?}", state.set_aside_policy()),
        "why" => {
            let id = arguments.attempt(arguments.word(0)?)?;
            state.attempt(id.job, id.attempt).map_or("no such attempt".to_string(), |attempt| {
                let Choice { candidates, score } = attempt.choice;
                format!("{} of {candidates}: {score:?}", attempt.worker)
            })
        }
        "secrets" => secrets(state),
        "members" => members(state),
        "events" => events(state, arguments)?,
        "segments" => {
            let attempt = arguments.attempt(arguments.word(0)?)?;
            let segments = state.segments(attempt.job, attempt.attempt);
            segments
                .map(|segment| {
                    format!("segment {} from {} on {:?}\n", segment.number, segment.first_sequence, segment.holders)
                })
                .collect()
        }
        "only-holder" => {
            let node = names::node(arguments.word(0)?)?;
            let (count, some) = state.only_holder_of(node, 2);
            let some: Vec<_> = some.iter().map(|(job, attempt)| format!("{job}/{attempt}")).collect();
            format!("{count} attempts, the newest {}", some.join(" "))
        }
        "revoked" => {
            let revoked = |name: &&str| -> Result<String, Box<dyn Error>> {
                Ok(format!("{name} {}\n", state.is_revoked(names::caller(name)?)))
            };
            arguments.words().iter().map(revoked).collect::<Result<String, _>>()?
        }
        name => return Err(format!("unknown command {name}").into()),
    };
    Ok(names::shorten(&shown))
}

pub(super) fn explanation(explanation: &Explanation, now: u64) -> String {
    let Explanation { standing, ahead, blocker, chosen, start, workers, heard } = explanation;
    let span = |at: &Millis| format!("in {} ms", at.0.saturating_sub(now));
    let mut shown = match standing {
        Standing::Placed { attempt, worker, running, choice, .. } => {
            let (is, score) = (if *running { "running" } else { "scheduled" }, choice.score.total());
            format!("{is} as {} on {worker}, which scored {score} among {}", reference(attempt), choice.candidates)
        }
        Standing::Ended { state, reason, .. } => format!("{state:?}: {}", self::reason(reason)),
        other => format!("{other:?}"),
    };
    match blocker {
        Some(Blocker::Backoff { until }) => write!(shown, ", backoff ends {}", span(until)).unwrap(),
        Some(Blocker::SetAside { until }) => write!(shown, ", set aside, the first until {}", span(until)).unwrap(),
        Some(blocker) => write!(shown, ", {blocker:?}").unwrap(),
        None => {}
    }
    ahead.iter().for_each(|ahead| write!(shown, ", {ahead} ahead").unwrap());
    match start {
        Some(Start::AfterBackoff(at)) => write!(shown, ", starts after its backoff {}", span(at)).unwrap(),
        Some(Start::ByTimeouts(at)) => write!(shown, ", starts by time-outs {}", span(at)).unwrap(),
        Some(start) => write!(shown, ", starts {start:?}").unwrap(),
        None => {}
    }
    chosen.iter().for_each(|worker| write!(shown, " on {worker}").unwrap());
    shown.push_str(if *heard { "\n" } else { ", heartbeats unknown\n" });
    for (worker, verdict) in workers {
        let verdict = match verdict {
            Verdict::Fits(score) => format!("fits, score {}", score.total()),
            Verdict::Avoided(score) => format!("has just failed it, score {}", score.total()),
            Verdict::Unheard { age, score, awaited } => {
                let awaited = if *awaited { ", awaited" } else { "" };
                format!("fits, score {}, newest heartbeat {age:?}{awaited}", score.total())
            }
            Verdict::NoRoom { lacks, held_by, free_by } => {
                format!("{}, held by {held_by:?}, free {:?}", self::lacks(lacks), free_by.as_ref().map(span))
            }
            Verdict::TooSmall(lacks) => format!("too small: {}", self::lacks(lacks)),
            Verdict::Constraint { constraint: Constraint { attribute, operator, value }, actual } => {
                format!("{attribute} {operator} {value} does not hold of {actual:?}")
            }
            Verdict::SetAside(aside) => {
                let (sessions, attempts) = (aside.sessions, aside.attempts);
                format!("set aside, ends {}, for {sessions} sessions {attempts} attempts", span(&aside.until))
            }
            other => format!("{other:?}"),
        };
        writeln!(shown, "  {worker} {verdict}").unwrap();
    }
    names::shorten(&shown)
}

pub(super) fn backlog(backlog: &Backlog, now: u64) -> String {
    let Backlog { counts, priorities, oldest, blocked, classes, left_off, capacity, used, workers, heard } = backlog;
    let age = |at: &Millis| format!("{} ms ago", now.saturating_sub(at.0));
    let mut shown = format!("{} pending, {} scheduled, {} running", counts.pending, counts.scheduled, counts.running);
    oldest.iter().for_each(|at| write!(shown, ", oldest {}", age(at)).unwrap());
    write!(shown, ", by priority {priorities:?}").unwrap();
    shown.push_str(if *heard { "\n" } else { ", heartbeats unknown\n" });
    for (blocker, jobs) in blocked {
        writeln!(shown, "  {jobs} {blocker:?}").unwrap();
    }
    for class in classes {
        let ClassStatus { jobs, resources, constraints, priorities, first, blocker, others, behind, start, .. } = class;
        let Resources { cpu_millis, memory_mb, gpu, .. } = resources;
        let (asks, constraints) = (format!("cpu {cpu_millis} memory {memory_mb} gpu {gpu}"), constraints.len());
        write!(
            shown,
            "  class of {jobs}, {asks}, {constraints} constraints, priorities {priorities:?}, first {first} "
        )
        .unwrap();
        writeln!(shown, "{blocker:?} starts {start:?}, others {others:?}, {behind} behind").unwrap();
    }
    let (taken, all) = (used.slots, capacity.slots);
    writeln!(shown, "  {taken} of {all} slots, {} of {} cpu, {workers:?}", used.cpu_millis, capacity.cpu_millis)
        .unwrap();
    if *left_off != (0, 0) {
        writeln!(shown, "  left off: {left_off:?}").unwrap();
    }
    names::shorten(&shown)
}

fn lacks(lacks: &[Lack]) -> String {
    let lacks: Vec<_> =
        lacks.iter().map(|Lack { what, needed, there }| format!("{there} of {needed} {what}")).collect();
    lacks.join(", ")
}

/// events [since=INDEX.OFFSET]
fn events(state: &State, arguments: &Arguments<'_>) -> Result<String, Box<dyn Error>> {
    let (index, offset) = arguments.text("since").and_then(|since| since.split_once('.')).unwrap_or(("0", "0"));
    let since = EventPosition { index: index.parse()?, offset: offset.parse()? };
    match state.events_after(since) {
        Ok(events) => Ok(events
            .map(|Occurred { position, at, event }| {
                format!("{}.{} at {}: {event:?}\n", position.index, position.offset, at.0)
            })
            .collect()),
        Err(compacted) => Ok(compacted.to_string()),
    }
}

fn members(state: &State) -> String {
    let cluster = state.cluster().map_or("no cluster\n".to_string(), |cluster| {
        format!("cluster of level {}, next node n{}\n", cluster.feature_level, cluster.next_node_id)
    });
    let members = state.members().map(|member| {
        let removed = match (member.removed_at, member.replaced_by) {
            (_, Some(by)) => format!(" replaced by n{by}"),
            (Some(_), None) => " removed".to_owned(),
            (None, None) => String::new(),
        };
        let (id, address, counter) = (member.id, &member.address, member.start_counter);
        format!("n{id} {address} start {counter} level {}{removed}\n", member.feature_level)
    });
    cluster + &members.collect::<String>()
}

fn job(state: &State, job: &Job) -> String {
    let mut shown = format!("{} {:?}", job.id, job.state);
    if let Some(reason) = &job.reason {
        write!(shown, ": {}", self::reason(reason)).unwrap();
    }
    if let Some(cancel) = &job.cancel {
        write!(shown, ", cancel requested by {}", cancel.by).unwrap();
    }
    if let Some(until) = job.not_before {
        write!(shown, ", not before {}", until.0).unwrap();
    }
    if let Some(worker) = job.avoid {
        write!(shown, ", avoids {worker}").unwrap();
    }
    let used = job.retries;
    if used != RetriesUsed::default() {
        let RetriesUsed { infrastructure, failure, timeout, preemption } = used;
        write!(shown, ", retries {infrastructure} infrastructure {failure} failure {timeout} timeout").unwrap();
        if preemption > 0 {
            write!(shown, " {preemption} preemption").unwrap();
        }
    }
    if let Some(of) = &job.retry_of {
        write!(shown, ", retry of {of}").unwrap();
    }
    shown.push('\n');
    for attempt in state.attempts(job.id) {
        writeln!(shown, "  {}", self::attempt(attempt)).unwrap();
    }
    shown
}

fn attempt(attempt: &Attempt) -> String {
    let Attempt { id, worker, session, heartbeat, .. } = attempt;
    let mut shown = format!("{} on {worker}/{session} heartbeat {heartbeat}", reference(id));
    if attempt.started_at.is_some() {
        shown.push_str(", started");
    }
    if attempt.overdue_at.is_some() {
        shown.push_str(", overdue");
    }
    if let Some(why) = attempt.taken_back {
        write!(shown, ", taken back: {why:?}").unwrap();
    }
    match &attempt.end {
        Some(end) => {
            write!(shown, ", ended by {:?}: {}", end.by, reason(&end.reason)).unwrap();
            match end.next {
                Next::End => {}
                Next::Retry { budget, not_before: None } => write!(shown, "; retry from {budget:?}").unwrap(),
                Next::Retry { budget, not_before: Some(at) } => {
                    write!(shown, "; retry from {budget:?}, not before {}", at.0).unwrap();
                }
                Next::PutBack => shown.push_str("; put back"),
                Next::Spent { budget } => write!(shown, "; {budget:?} is spent").unwrap(),
                Next::MaxAttempts => shown.push_str("; may not be tried again"),
            }
        }
        None => shown.push_str(", live"),
    }
    shown
}

fn reason(reason: &Reason) -> String {
    match reason {
        Reason::Cancelled { by, reason, exit_code, signal } => {
            format!("cancelled by {by} ({reason}), exit {exit_code:?}, signal {signal:?}")
        }
        other => format!("{other:?}"),
    }
}

fn worker(state: &State, worker: &Worker) -> String {
    let gateway = worker.gateway.map_or("no gateway".to_string(), |node| format!("gateway n{node}"));
    let live: Vec<_> = state.live_attempts(worker.id).map(|attempt| reference(&attempt.id)).collect();
    let recent =
        if worker.recent == Worker::RECENT_BEST { String::new() } else { format!(", recent {}", worker.recent) };
    let drain = worker.drain.map_or(String::new(), |drain| {
        let deadline = drain.deadline.map_or(String::new(), |due| format!(" until {}", due.0));
        format!(", drained by {}{deadline}{}", drain.by, if drain.requeue { ", requeued" } else { "" })
    });
    let removed = if worker.removed_at.is_some() { ", removed" } else { "" };
    let aside = set_aside(worker);
    format!(
        "{} {:?} session {} stream {} {gateway}, {} of {} slots, {} of {} cpu, live [{}]{recent}{drain}{aside}{removed}",
        worker.id,
        worker.state,
        worker.session,
        worker.stream,
        worker.used.slots,
        worker.capacity.slots,
        worker.used.cpu_millis,
        worker.capacity.cpu_millis,
        live.join(" ")
    )
}

fn set_aside(worker: &Worker) -> String {
    let flaps = &worker.flaps;
    let lost = |what: Loss| flaps.recent.iter().filter(|flap| flap.loss == what).count();
    let (sessions, attempts) = (lost(Loss::Session), lost(Loss::Attempt));
    let mut shown = match sessions + attempts {
        0 => String::new(),
        _ => format!(", lost {sessions} sessions {attempts} attempts"),
    };
    if let Some(aside) = worker.set_aside {
        let (sessions, attempts) = (aside.sessions, aside.attempts);
        write!(shown, ", set aside until {} for {sessions} sessions {attempts} attempts", aside.until.0).unwrap();
    }
    shown
}

fn reference(attempt: &AttemptRef) -> String {
    format!("{}/{}@{}", attempt.job, attempt.attempt, attempt.fence)
}

fn references(attempts: &[AttemptRef]) -> String {
    let attempts: Vec<_> = attempts.iter().map(reference).collect();
    format!("[{}]", attempts.join(" "))
}

fn secrets(state: &State) -> String {
    let mut shown = String::new();
    for secret in state.secrets() {
        let (sealed, past) = (state.sealed(secret.id).len(), secret.past.len());
        let (name, version, id) = (&secret.name, secret.version, secret.id);
        writeln!(shown, "{name} version {version} is {id}, {sealed} bytes, {past} before").unwrap();
    }
    for used in state.secret_uses() {
        let given: Vec<_> = used.secrets.iter().map(|(name, version)| format!("{name} {version}")).collect();
        writeln!(shown, "{} on {} of {}: {}", reference(&used.attempt), used.worker, used.owner, given.join(", "))
            .unwrap();
    }
    names::shorten(&shown)
}
