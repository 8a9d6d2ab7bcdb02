//! Jobs as they are printed. The JSON is stable: `docs` names its fields, and a spec in it is a job file again.

use hodei_proto::v1::{Attempt, Job, JobSpec, JobState, LogEnd, OutputPolicy, Reason, Score, command};
use serde_json::{Map, Value, json};

use crate::{
    cli::output::{self, Output},
    jobfile::units::DurationText,
};

mod story;

/// One job.
pub struct One(pub Job);

/// Several jobs.
pub struct Many(pub Vec<Job>);

impl Output for One {
    fn table(&self) -> String {
        let job = &self.0;
        let attempt = if job.attempt == 0 { String::new() } else { job.attempt.to_string() };
        let log = log(job).map(|log| format!("{} lines, {} dropped", log.lines, log.dropped));
        let rows = [
            ("id", job.id.clone()),
            ("name", job.name.clone()),
            ("state", state(job.state()).to_owned()),
            ("reason", job.reason.as_ref().map(reason_text).unwrap_or_default()),
            ("attempt", attempt),
            ("worker", job.worker_id.clone()),
            ("command", job.spec.as_ref().map(command_text).unwrap_or_default()),
            ("retry of", job.retry_of.clone()),
            ("cancel", job.cancel.as_ref().map(story::cancel_text).unwrap_or_default()),
            ("waits till", time(job.not_before_ms)),
            ("submitted", time(job.submitted_at_ms)),
            ("started", time(job.started_at_ms)),
            ("finished", time(job.finished_at_ms)),
            ("log", log.unwrap_or_default()),
        ];
        let shown = rows.into_iter().filter(|(_, value)| !value.is_empty());
        let mut lines: Vec<_> = shown.map(|(name, value)| format!("{name:<11}{value}")).collect();
        if !job.attempts.is_empty() {
            lines.push(String::new());
            let rows = job.attempts.iter().map(story::row);
            lines.push(output::table(
                ["ATTEMPT", "WORKER", "SESSION", "ASSIGNED", "STARTED", "ENDED", "HOW", "THEN"],
                rows,
            ));
        }
        lines.join("\n")
    }

    fn json(&self) -> Value {
        json(&self.0)
    }

    fn quiet(&self) -> String {
        self.0.id.clone()
    }
}

impl Output for Many {
    fn table(&self) -> String {
        let rows = self.0.iter().map(|job| {
            [
                output::short(&job.id),
                job.name.clone(),
                state(job.state()).to_owned(),
                job.reason.as_ref().map(reason_text).unwrap_or_default(),
                job.attempt.to_string(),
                output::short(&job.worker_id),
                time(job.submitted_at_ms),
            ]
        });
        output::table(["ID", "NAME", "STATE", "REASON", "ATTEMPT", "WORKER", "SUBMITTED"], rows)
    }

    fn json(&self) -> Value {
        self.0.iter().map(json).collect()
    }

    fn quiet(&self) -> String {
        self.0.iter().map(|job| job.id.as_str()).collect::<Vec<_>>().join("\n")
    }
}

fn time(ms: i64) -> String {
    output::time_text(ms).unwrap_or_default()
}

/// A job as JSON; what is absent is null.
pub fn json(job: &Job) -> Value {
    let log = log(job);
    json!({
        "id": job.id,
        "name": text(&job.name),
        "state": state(job.state()),
        "reason": job.reason.as_ref().map(reason),
        "attempt": job.attempt,
        "exit_code": job.exit_code,
        "worker_id": text(&job.worker_id),
        "submitted_at": output::time(job.submitted_at_ms),
        "started_at": output::time(job.started_at_ms),
        "finished_at": output::time(job.finished_at_ms),
        "log_lines": log.map(|log| log.lines),
        "log_dropped": log.map(|log| log.dropped),
        "cancel_requested": job.cancel_requested,
        "cancel": job.cancel.as_ref().map(|cancel| {
            json!({ "by": cancel.by, "reason": text(&cancel.reason), "at": output::time(cancel.at_ms) })
        }),
        "retry_of": text(&job.retry_of),
        "not_before": output::time(job.not_before_ms),
        "retries_used": job.retries_used.as_ref().map(|used| {
            json!({
                "infrastructure": used.infrastructure,
                "failure": used.failure,
                "timeout": used.timeout,
                "preemption": used.preemption,
            })
        }),
        "attempts": job.attempts.iter().map(attempt).collect::<Value>(),
        "spec": job.spec.as_ref().map(spec),
    })
}

/// The figures of the newest attempt's log, once they are known.
fn log(job: &Job) -> Option<LogEnd> {
    job.attempts.last().and_then(|attempt| attempt.log)
}

/// An attempt as JSON.
pub fn attempt(attempt: &Attempt) -> Value {
    json!({
        "number": attempt.number,
        "worker_id": text(&attempt.worker_id),
        "session_id": text(&attempt.session_id),
        "fence": attempt.fence,
        "ended_by": text(&attempt.ended_by),
        "next": attempt.next.as_ref().map(|next| {
            json!({ "kind": next.kind, "budget": text(&next.budget), "not_before": output::time(next.not_before_ms) })
        }),
        "taken_back": text(&attempt.taken_back),
        "preempted_for": text(&attempt.preempted_for),
        "reason": attempt.reason.as_ref().map(reason),
        "assigned_at": output::time(attempt.assigned_at_ms),
        "started_at": output::time(attempt.started_at_ms),
        "finished_at": output::time(attempt.finished_at_ms),
        "choice": attempt.choice.as_ref().map(|choice| {
            json!({ "candidates": choice.candidates, "score": choice.score.as_ref().map(score) })
        }),
    })
}

/// What a worker scored, as JSON.
pub fn score(score: &Score) -> Value {
    json!({
        "total": score.total,
        "bin_packing": score.bin_packing,
        "spread": score.spread,
        "load": score.load,
        "affinity": score.affinity,
        "reliability": score.reliability,
    })
}

/// The spelling of a state.
pub fn state(state: JobState) -> &'static str {
    match state {
        JobState::Pending => "Pending",
        JobState::Scheduled => "Scheduled",
        JobState::Running => "Running",
        JobState::Succeeded => "Succeeded",
        JobState::Failed => "Failed",
        JobState::Cancelled => "Cancelled",
        JobState::Timeout => "Timeout",
        JobState::Unspecified => "Unknown",
    }
}

/// `{kind, …}` with what belongs to the kind.
pub fn reason(reason: &Reason) -> Value {
    let mut fields = Map::from_iter([("kind".to_owned(), json!(reason.kind))]);
    let mut add = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    add("exit_code", json!(reason.exit_code));
    add("signal", json!(reason.signal));
    add("by", json!(text(&reason.by)));
    add("message", json!(text(&reason.message)));
    add("deadline", json!(text(&reason.deadline)));
    add("cause", json!(text(&reason.cause)));
    Value::Object(fields)
}

/// A reason in a few words.
pub fn reason_text(reason: &Reason) -> String {
    let with =
        |kind: &str| if reason.message.is_empty() { kind.to_owned() } else { format!("{kind}: {}", reason.message) };
    match reason.kind.as_str() {
        "exited" => format!("exit code {}", reason.exit_code.unwrap_or_default()),
        "signaled" => format!("signal {}", reason.signal.unwrap_or_default()),
        "out_of_memory" => "out of memory".to_owned(),
        "worker_lost" => with("worker lost"),
        "not_provisioned" => with("not provisioned"),
        "cancelled" => with("cancelled"),
        "taken_back" => with(&ended_as("taken back", reason)),
        "timeout" => "timed out".to_owned(),
        "could_not_start" => with("could not start"),
        other => with(other),
    }
}

/// What happened, with how the process ended where it had one.
fn ended_as(what: &str, reason: &Reason) -> String {
    match (reason.exit_code, reason.signal) {
        (Some(code), _) => format!("{what} (exit code {code})"),
        (None, Some(signal)) => format!("{what} (signal {signal})"),
        (None, None) => what.to_owned(),
    }
}

fn command_text(spec: &JobSpec) -> String {
    match spec.command.as_ref().and_then(|command| command.kind.as_ref()) {
        Some(command::Kind::Shell(shell)) => {
            // A first word with `=` would be an assignment.
            let first = if shell.cmd.contains('=') { quoted(&shell.cmd) } else { word(&shell.cmd) };
            std::iter::once(first).chain(shell.args.iter().map(|arg| word(arg))).collect::<Vec<_>>().join(" ")
        }
        Some(command::Kind::Script(script)) => {
            let first = script.content.lines().next().unwrap_or_default();
            format!("script: {}", first.escape_debug())
        }
        None => String::new(),
    }
}

/// One word of a command as a shell reads it; as it is where that is the same.
fn word(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { quoted(word) }
}

/// In quotes; what a terminal does not show as itself, escaped.
fn quoted(word: &str) -> String {
    let hidden = |c: char| !matches!(c, '\'' | '"' | '\\') && c.escape_debug().len() > 1;
    if !word.chars().any(hidden) {
        return format!("'{}'", word.replace('\'', "'\\''"));
    }
    let escaped = word.chars().map(|c| match c {
        '\n' => "\\n".to_owned(),
        '\t' => "\\t".to_owned(),
        '\r' => "\\r".to_owned(),
        '\'' | '\\' => format!("\\{c}"),
        c if c.is_ascii() && hidden(c) => format!("\\x{:02x}", u32::from(c)),
        c if hidden(c) => format!("\\U{:08x}", u32::from(c)),
        c => c.to_string(),
    });
    format!("$'{}'", escaped.collect::<String>())
}

/// A spec in the words of a job file.
pub fn spec(spec: &JobSpec) -> Value {
    let constraint =
        |c: &hodei_proto::v1::Constraint| json!({ "attribute": c.attribute, "operator": c.operator, "value": c.value });
    let resources = spec.resources.clone().unwrap_or_default();
    let retry = spec.retry.clone().unwrap_or_default();
    let preferences = spec.preferences.iter().map(|preference| {
        let mut value = preference.constraint.as_ref().map_or(json!({}), constraint);
        value["weight"] = json!(preference.weight);
        value
    });
    let policy = if spec.output_policy() == OutputPolicy::Drop { "drop" } else { "block" };
    json!({
        "name": text(&spec.name),
        "command": spec.command.as_ref().and_then(|command| command.kind.as_ref()).map(command_json),
        "env": spec.env,
        "resources": {
            "cpu_cores": cores(resources.cpu_millis),
            "memory_mb": number(resources.memory_mb),
            "storage_mb": number(resources.storage_mb),
            "gpu": resources.gpu,
            "architecture": text(&resources.architecture),
        },
        "timeout": duration(spec.timeout_ms),
        "priority": spec.priority,
        "labels": spec.labels,
        "lost_after": duration(spec.lost_after_ms),
        "retry": {
            "infrastructure": retry.infrastructure,
            "failure": retry.failure,
            "exit_codes": retry.exit_codes,
            "timeout": retry.timeout,
            "preemption": retry.preemption,
            "backoff_initial": duration(retry.backoff_initial_ms),
            "backoff_max": duration(retry.backoff_max_ms),
            "max_attempts": (retry.max_attempts > 0).then_some(retry.max_attempts),
        },
        "grace_period": duration(spec.grace_period_ms),
        "output_policy": policy,
        "constraints": spec.constraints.iter().map(constraint).collect::<Value>(),
        "preferences": preferences.collect::<Value>(),
        "depends_on": spec.depends_on,
        "array": spec.array.as_ref().map(|array| json!({ "count": array.count, "max_parallel": array.max_parallel })),
        "image": text(&spec.image),
        "secrets": spec.secrets.iter().map(|s| json!({ "name": s.name, "env": text(&s.env) })).collect::<Value>(),
        "user": text(&spec.user),
        "working_directory": text(&spec.working_directory),
        "preemptible": spec.preemptible,
    })
}

fn command_json(kind: &command::Kind) -> Value {
    match kind {
        command::Kind::Shell(shell) => json!({ "shell": { "cmd": shell.cmd, "args": shell.args } }),
        command::Kind::Script(script) => {
            json!({ "script": { "interpreter": text(&script.interpreter), "content": script.content } })
        }
    }
}

fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn number(number: u64) -> Option<u64> {
    (number > 0).then_some(number)
}

fn duration(ms: u64) -> Option<String> {
    (ms > 0).then(|| DurationText(ms).to_string())
}

/// A decimal number of cores; thousandths have an exact shortest form.
fn cores(millis: u64) -> Value {
    match millis {
        0 => Value::Null,
        millis if millis % 1_000 == 0 => json!(millis / 1_000),
        #[allow(clippy::cast_precision_loss, reason = "at most a thousand million, far below 2^53")]
        millis => json!(millis as f64 / 1_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobfile;

    /// What is printed can be submitted again.
    #[test]
    fn a_printed_spec_is_a_job_file() {
        let text = r#"
            name = "x y"
            timeout = "90s"
            lost_after = "30s"
            [command.script]
            content = "echo hi"
            [env]
            A = "1"
            [resources]
            cpu_cores = 1.25
            memory_mb = "2GiB"
            [retry]
            failure = 2
            [[constraints]]
            attribute = "label.zone"
            operator = "="
            value = "a"
        "#;
        let spec = jobfile::parse(text).unwrap().into_spec();
        let again = jobfile::parse(&super::spec(&spec).to_string()).unwrap().into_spec();
        assert_eq!(again, spec);
    }

    #[test]
    fn a_command_can_be_copied() {
        let text = |words: &[&str]| {
            let (cmd, args) = words.split_first().unwrap();
            let command = json!({ "command": { "shell": { "cmd": cmd, "args": args } } });
            command_text(&jobfile::parse(&command.to_string()).unwrap().into_spec())
        };
        assert_eq!(text(&["make", "-j4", "CC=gcc", "a/b.c", "grün"]), "make -j4 CC=gcc a/b.c grün");
        assert_eq!(text(&["sh", "-c", "echo \"$A\" \\ b"]), r#"sh -c 'echo "$A" \ b'"#);
        assert_eq!(text(&["echo", "it's", "", "~", "*"]), r"echo 'it'\''s' '' '~' '*'");
        assert_eq!(text(&["A=1", "x"]), "'A=1' x");
        assert_eq!(text(&["echo", "a\n'b'\\\u{1b}\u{202e}"]), r"echo $'a\n\'b\'\\\x1b\U0000202e'");
    }

    #[test]
    fn what_is_absent_is_null() {
        let job = json(&Job { id: "i".into(), state: JobState::Pending.into(), ..Job::default() });
        for field in ["name", "reason", "exit_code", "worker_id", "started_at", "finished_at", "log_lines", "spec"] {
            assert_eq!(job[field], Value::Null, "{field}");
        }
        assert_eq!((job["state"].as_str(), job["attempt"].as_u64()), (Some("Pending"), Some(0)));
    }
}
