//! Workers as they are printed. The JSON is stable.

use hodei_proto::v1::{Capacity, JobState, Worker, WorkerAttempt, WorkerDrain, WorkerSetAside};
use serde_json::{Value, json};

use crate::cli::output::{self, Output};

/// One worker, with what it runs.
pub struct One(pub Worker);

/// Several workers.
pub struct Many(pub Vec<Worker>);

impl Output for One {
    fn table(&self) -> String {
        let worker = &self.0;
        let rows = [
            ("id", worker.id.clone()),
            ("state", state(worker)),
            ("drain", worker.drain.as_ref().map(drain_text).unwrap_or_default()),
            ("set aside", worker.set_aside.as_ref().map(set_aside_text).unwrap_or_default()),
            ("removed", time(worker.removed_at_ms)),
            ("host", worker.hostname.clone()),
            ("version", worker.version.clone()),
            ("system", [worker.architecture.as_str(), &worker.kernel].join(" ").trim().to_owned()),
            ("labels", labels(worker)),
            ("capacity", worker.capacity.as_ref().map(capacity_text).unwrap_or_default()),
            ("free", worker.free.as_ref().map(capacity_text).unwrap_or_default()),
            ("recent", format!("{}.{} % succeeded", worker.recent / 10, worker.recent % 10)),
            ("provider", worker.provider.clone()),
            ("gateway", worker.gateway.map(|node| node.to_string()).unwrap_or_default()),
            ("registered", time(worker.registered_at_ms)),
        ];
        let shown = rows.into_iter().filter(|(_, value)| !value.is_empty());
        let shown = shown.map(|(name, value)| format!("{name:<12}{value}")).collect::<Vec<_>>().join("\n");
        if worker.attempts.is_empty() {
            return shown;
        }
        let attempts = worker.attempts.iter().map(|attempt| {
            let id = attempt.attempt.clone().unwrap_or_default();
            let since = if attempt.started_at_ms > 0 { attempt.started_at_ms } else { attempt.assigned_at_ms };
            [output::short(&id.job_id), attempt.name.clone(), id.attempt.to_string(), doing(attempt), time(since)]
        });
        format!("{shown}\n\n{}", output::table(["JOB", "NAME", "ATTEMPT", "STATE", "SINCE"], attempts))
    }

    fn json(&self) -> Value {
        let mut value = json(&self.0);
        value["attempts"] = self.0.attempts.iter().map(attempt).collect();
        value
    }

    fn quiet(&self) -> String {
        self.0.id.clone()
    }
}

impl Output for Many {
    fn table(&self) -> String {
        let rows = self.0.iter().map(|worker| {
            let free = worker.free.unwrap_or_default();
            let all = worker.capacity.unwrap_or_default();
            [
                output::short(&worker.id),
                state(worker),
                format!("{}/{}", free.slots, all.slots),
                format!("{}/{}", cores(free.cpu_millis), cores(all.cpu_millis)),
                format!("{}/{}", free.memory_mb, all.memory_mb),
                worker.gateway.map(|node| node.to_string()).unwrap_or_default(),
                worker.hostname.clone(),
                worker.version.clone(),
                labels(worker),
            ]
        });
        let header = ["ID", "STATE", "FREE", "CPU", "MEMORY MB", "GATEWAY", "HOST", "VERSION", "LABELS"];
        output::table(header, rows)
    }

    fn json(&self) -> Value {
        self.0.iter().map(json).collect()
    }

    fn quiet(&self) -> String {
        self.0.iter().map(|worker| worker.id.as_str()).collect::<Vec<_>>().join("\n")
    }
}

/// A worker as JSON; what is absent is null.
fn json(worker: &Worker) -> Value {
    json!({
        "id": worker.id,
        "state": worker.state,
        "capacity": worker.capacity.as_ref().map(capacity),
        "free": worker.free.as_ref().map(capacity),
        "running": worker.running,
        "labels": worker.labels,
        "gateway": worker.gateway,
        "provider": text(&worker.provider),
        "version": text(&worker.version),
        "hostname": text(&worker.hostname),
        "architecture": text(&worker.architecture),
        "kernel": text(&worker.kernel),
        "session_id": text(&worker.session_id),
        "registered_at": output::time(worker.registered_at_ms),
        "removed_at": output::time(worker.removed_at_ms),
        "recent": worker.recent,
        "drain": worker.drain.as_ref().map(drain),
        "set_aside": worker.set_aside.as_ref().map(set_aside),
    })
}

/// The same as JSON.
#[must_use]
pub fn set_aside(aside: &WorkerSetAside) -> Value {
    json!({
        "since": output::time(aside.since_ms),
        "until": output::time(aside.until_ms),
        "lost_sessions": aside.sessions,
        "lost_attempts": aside.attempts,
    })
}

/// A capacity as JSON.
#[must_use]
pub fn capacity(capacity: &Capacity) -> Value {
    json!({
        "slots": capacity.slots,
        "cpu_millis": capacity.cpu_millis,
        "memory_mb": capacity.memory_mb,
        "storage_mb": capacity.storage_mb,
        "gpu": capacity.gpu,
    })
}

fn drain(drain: &WorkerDrain) -> Value {
    json!({
        "by": by(drain),
        "at": output::time(drain.at_ms),
        "deadline": output::time(drain.deadline_ms),
        "requeue": drain.requeue,
    })
}

fn attempt(attempt: &WorkerAttempt) -> Value {
    let id = attempt.attempt.clone().unwrap_or_default();
    json!({
        "job_id": id.job_id,
        "name": text(&attempt.name),
        "attempt": id.attempt,
        "fence": id.fence,
        "state": if attempt.state() == JobState::Running { "Running" } else { "Scheduled" },
        "taken_back": attempt.taken_back,
        "assigned_at": output::time(attempt.assigned_at_ms),
        "started_at": output::time(attempt.started_at_ms),
    })
}

/// Where it stands, in a word or two.
fn state(worker: &Worker) -> String {
    match (&worker.drain, worker.running) {
        (Some(_), 0) if worker.removed_at_ms == 0 => format!("{}, drained", worker.state),
        (Some(_), running) if worker.removed_at_ms == 0 => format!("{}, {running} to go", worker.state),
        _ if worker.set_aside.is_some() => format!("{}, set aside", worker.state),
        _ => worker.state.clone(),
    }
}

/// Until when a worker is set aside, and why.
#[must_use]
pub fn set_aside_text(aside: &WorkerSetAside) -> String {
    format!("until {}, after {}", time(aside.until_ms), losses(aside))
}

/// What a worker had lost when it was set aside.
#[must_use]
pub fn losses(aside: &WorkerSetAside) -> String {
    let kinds = [(aside.sessions, "session"), (aside.attempts, "attempt")];
    let lost = kinds.iter().filter(|(count, _)| *count > 0);
    let lost = lost.map(|(count, what)| format!("{count} lost {what}{}", if *count == 1 { "" } else { "s" }));
    lost.collect::<Vec<_>>().join(" and ")
}

fn doing(attempt: &WorkerAttempt) -> String {
    let state = if attempt.state() == JobState::Running { "Running" } else { "Scheduled" };
    if attempt.taken_back { format!("{state}, taken back") } else { state.to_owned() }
}

fn drain_text(drain: &WorkerDrain) -> String {
    let jobs = match (drain.requeue, output::time_text(drain.deadline_ms)) {
        (true, _) => "its jobs are requeued".to_owned(),
        (false, Some(deadline)) => format!("its jobs may run until {deadline}"),
        (false, None) => "its jobs may run to their end".to_owned(),
    };
    format!("by {} at {}: {jobs}", by(drain), time(drain.at_ms))
}

fn by(drain: &WorkerDrain) -> String {
    drain.by.as_ref().map(output::party).unwrap_or_default()
}

fn capacity_text(capacity: &Capacity) -> String {
    let Capacity { slots, cpu_millis, memory_mb, storage_mb, gpu } = *capacity;
    let gpu = if gpu > 0 { format!(", {gpu} GPUs") } else { String::new() };
    format!("{slots} slots, {} cores, {memory_mb} MB of memory, {storage_mb} MB of storage{gpu}", cores(cpu_millis))
}

/// A decimal number of cores.
#[must_use]
pub fn cores(millis: u64) -> String {
    let text = format!("{}.{:03}", millis / 1_000, millis % 1_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn labels(worker: &Worker) -> String {
    worker.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

fn time(ms: i64) -> String {
    output::time_text(ms).unwrap_or_default()
}

fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_null() {
        let value = One(Worker { id: "i".into(), state: "Ready".into(), ..Worker::default() }).json();
        for field in ["gateway", "provider", "hostname", "removed_at", "drain", "set_aside", "capacity"] {
            assert_eq!(value[field], Value::Null, "{field}");
        }
        assert_eq!(value["attempts"], json!([]));
    }

    #[test]
    fn a_drain_says_what_it_waits_for() {
        let drain = Some(WorkerDrain { at_ms: 1_700_000_000_000, requeue: true, ..WorkerDrain::default() });
        let worker = Worker { state: "Draining".into(), drain, running: 2, ..Worker::default() };
        assert_eq!(state(&worker), "Draining, 2 to go");
        assert_eq!(state(&Worker { running: 0, ..worker.clone() }), "Draining, drained");
        assert!(One(worker).table().contains("its jobs are requeued"));
    }

    #[test]
    fn who_is_set_aside_says_why() {
        let aside = WorkerSetAside { until_ms: 1_700_000_000_000, sessions: 1, attempts: 2, ..Default::default() };
        let worker = Worker { state: "Ready".into(), set_aside: Some(aside), ..Worker::default() };
        assert_eq!(state(&worker), "Ready, set aside");
        assert!(One(worker.clone()).table().contains(", after 1 lost session and 2 lost attempts"));
        assert_eq!(json(&worker)["set_aside"]["lost_attempts"], 2);
    }

    #[test]
    fn cores_are_decimal() {
        assert_eq!([0, 250, 2_000, 12_500].map(cores), ["0", "0.25", "2", "12.5"]);
    }
}
