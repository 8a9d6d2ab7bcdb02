//! `job explain`: why a job waits, or is where it is.

use hodei_proto::v1::{
    GetSchedulingDecisionRequest, GetSchedulingDecisionResponse, Score, WorkerVerdict,
    scheduler_service_client::SchedulerServiceClient,
};
use serde_json::{Value, json};

use super::{job_help, selector, show};
use crate::{
    cli::{
        Global,
        client::Client,
        commands::worker::{set_aside, set_aside_text},
        exit::{CommandResult, Failure},
        output::{self, Output},
    },
    jobfile::Constraint,
};

/// Show why a job waits, what each worker is to it, and when it is expected to start; or where it runs and why there.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  hodei-node job explain nightly\n\nIn JSON, `standing` is pending, scheduled, running or ended; `blocker` is null or one of backoff, no_worker,\nnone_suits, too_small, draining, none_takes_jobs, set_aside, no_room, preempting, heartbeat, awaits_better, avoids;\n`start.kind` is now, after_backoff, by_timeouts or unknown; each worker has a `verdict`: fits, avoided,\nunheard, no_room, takes_none, set_aside, too_small, architecture or constraint."
)]
pub struct Args {
    #[arg(value_name = "ID", help = job_help!())]
    job: String,
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let request = GetSchedulingDecisionRequest { job: selector(&self.job), spec: None };
        let answer = explain(&Client::new(global)?, request).await?;
        output::print(global.output, &Explained(answer))?;
        Ok(0)
    }
}

/// What the cluster says of a job, or of a spec that is not submitted.
///
/// # Errors
/// As of any read.
pub async fn explain(
    client: &Client,
    request: GetSchedulingDecisionRequest,
) -> Result<GetSchedulingDecisionResponse, Failure> {
    client
        .read(|conn| {
            let request = conn.request(request.clone());
            async move {
                let client = SchedulerServiceClient::new(conn.channel);
                client.max_decoding_message_size(hodei_raft::MAX_MESSAGE).get_scheduling_decision(request).await
            }
        })
        .await
}

/// An explanation as it is printed.
pub struct Explained(pub GetSchedulingDecisionResponse);

impl Output for Explained {
    fn table(&self) -> String {
        let answer = &self.0;
        let mut lines = Vec::new();
        let mut add = |name: &str, value: String| {
            if !value.is_empty() {
                lines.push(format!("{name:<11}{value}"));
            }
        };
        add("id", answer.job_id.clone());
        add("standing", answer.standing.replace('_', " "));
        add("because", because(answer));
        add("ahead", ahead(answer));
        add("start", start_text(&answer.start, answer.start_at_ms));
        if let Some(attempt) = &answer.attempt {
            add("attempt", attempt.number.to_string());
            add("worker", attempt.worker_id.clone());
            let choice = attempt.choice.unwrap_or_default();
            let among = format!("the best of {} that it fitted on; ", choice.candidates);
            add("chosen", among + &choice.score.as_ref().map(score_text).unwrap_or_default());
        }
        add("ended", output::time_text(answer.ended_at_ms).unwrap_or_default());
        if !answer.workers.is_empty() {
            let rows = answer.workers.iter().map(|worker| {
                let chosen = if worker.worker_id == answer.chosen_worker_id { "*" } else { "" };
                [chosen.to_owned(), output::short(&worker.worker_id), worker.hostname.clone(), verdict_text(worker)]
            });
            lines.push(String::new());
            lines.push(output::table(["", "WORKER", "HOST", "WHAT IT IS TO THE JOB"], rows));
        }
        if answer.workers_left_off > 0 {
            lines.push(format!("and {} more", answer.workers_left_off));
        }
        if !answer.heard {
            lines.push("(the leader was not reached: who has been heard of lately is not known)".to_owned());
        }
        lines.join("\n")
    }

    fn json(&self) -> Value {
        json(&self.0)
    }

    fn quiet(&self) -> String {
        let answer = &self.0;
        if answer.blocker.is_empty() { answer.standing.clone() } else { answer.blocker.clone() }
    }
}

/// An explanation as JSON; what is absent is null.
pub fn json(answer: &GetSchedulingDecisionResponse) -> Value {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let start = text(&answer.start).map(|kind| json!({ "kind": kind, "at": output::time(answer.start_at_ms) }));
    json!({
        "job_id": text(&answer.job_id),
        "standing": answer.standing,
        "attempt": answer.attempt.as_ref().map(show::attempt),
        "reason": answer.reason.as_ref().map(show::reason),
        "ended_at": output::time(answer.ended_at_ms),
        "ahead": answer.ahead,
        "blocker": text(&answer.blocker),
        "backoff_until": output::time(answer.backoff_until_ms),
        "chosen_worker_id": text(&answer.chosen_worker_id),
        "start": start,
        "workers": answer.workers.iter().map(worker_json).collect::<Value>(),
        "workers_left_off": answer.workers_left_off,
        "heard": answer.heard,
    })
}

fn worker_json(worker: &WorkerVerdict) -> Value {
    let lacks =
        worker.lacks.iter().map(|lack| json!({ "what": lack.what, "needed": lack.needed, "there": lack.there }));
    let constraint = worker.constraint.as_ref().map(|constraint| {
        json!({
            "attribute": constraint.attribute,
            "operator": constraint.operator,
            "value": constraint.value,
            "actual": worker.actual,
        })
    });
    json!({
        "worker_id": worker.worker_id,
        "hostname": worker.hostname,
        "verdict": worker.verdict,
        "score": worker.score.as_ref().map(show::score),
        "lacks": lacks.collect::<Value>(),
        "held_by": worker.held_by,
        "free_by": output::time(worker.free_by_ms),
        "state": (!worker.state.is_empty()).then_some(&worker.state),
        "constraint": constraint,
        "heard_ms_ago": worker.heard_ms_ago,
        "awaited": worker.awaited,
        "set_aside": worker.set_aside.as_ref().map(set_aside),
    })
}

fn because(answer: &GetSchedulingDecisionResponse) -> String {
    if answer.blocker.is_empty() && answer.chosen_worker_id.is_empty() {
        return answer.reason.as_ref().map(show::reason_text).unwrap_or_default();
    }
    blocker_text(&answer.blocker).to_owned()
}

/// What a blocker means.
pub fn blocker_text(blocker: &str) -> &str {
    match blocker {
        "backoff" => "it waits before its next attempt",
        "no_worker" => "there is no worker",
        "none_suits" => "no worker is what it asks for",
        "too_small" => "the workers that are what it asks for are too small",
        "draining" => "the workers that it would fit on are being drained",
        "none_takes_jobs" => "the workers that it would fit on take no jobs now",
        "set_aside" => "the workers that it would fit on are set aside for a while",
        "no_room" => "others hold what it needs",
        "preempting" => "jobs of lower priority are being ended to make room for it",
        "heartbeat" => "a worker that it fits on has to be heard of again first",
        "awaits_better" => "a better worker has half a second to be heard of again; otherwise it goes to the next best",
        "avoids" => "it has just failed where there is room, and another worker may yet answer",
        "behind" => "others that ask the same come first, and take what room there is",
        "" => "nothing is in its way",
        other => other,
    }
}

fn ahead(answer: &GetSchedulingDecisionResponse) -> String {
    match answer.ahead {
        None => String::new(),
        Some(0) => "nobody".to_owned(),
        Some(count) if count >= hodei_state::explain::MAX_AHEAD => format!("{count} jobs or more"),
        Some(1) => "1 job".to_owned(),
        Some(count) => format!("{count} jobs"),
    }
}

/// When a job is expected to start.
pub fn start_text(start: &str, at_ms: i64) -> String {
    let at = output::time_text(at_ms).unwrap_or_default();
    match start {
        "now" => "now".to_owned(),
        "after_backoff" => format!("{at}, when its backoff has passed"),
        "by_timeouts" => format!("{at} at the latest, when time-outs will have made room"),
        "unknown" => "not known".to_owned(),
        other => other.to_owned(),
    }
}

fn verdict_text(worker: &WorkerVerdict) -> String {
    let score = || worker.score.as_ref().map(score_text).unwrap_or_default();
    let lacks = || {
        let lacks = worker.lacks.iter().map(|lack| format!("{} of {} {}", lack.there, lack.needed, lack.what));
        lacks.collect::<Vec<_>>().join(", ")
    };
    match worker.verdict.as_str() {
        "fits" => format!("fits; {}", score()),
        "avoided" => format!("has just failed it; {}", score()),
        "unheard" => match worker.heard_ms_ago {
            Some(ms) => format!("fits, but was last heard of {} s ago; {}", ms / 1_000, score()),
            None => format!("fits, but was not heard of yet; {}", score()),
        },
        "no_room" => {
            let held: Vec<_> = worker.held_by.iter().map(|job| output::short(job)).collect();
            let by = output::time_text(worker.free_by_ms).map(|at| format!(", free by {at}")).unwrap_or_default();
            format!("free: {}; held by {}{by}", lacks(), held.join(" "))
        }
        "set_aside" => {
            let aside = worker.set_aside.as_ref().map(set_aside_text).unwrap_or_default();
            format!("set aside {aside}")
        }
        "takes_none" => format!("takes no jobs: {}", worker.state),
        "too_small" => format!("too small: {}", lacks()),
        "constraint" | "architecture" => {
            let constraint = worker.constraint.clone().unwrap_or_default();
            let (attribute, operator, value) = (constraint.attribute, constraint.operator, constraint.value);
            let shown = Constraint { attribute, operator, value };
            match &worker.actual {
                Some(actual) => format!("not {shown}: it is {actual}"),
                None => format!("not {shown}: it has none"),
            }
        }
        other => other.to_owned(),
    }
}

fn score_text(score: &Score) -> String {
    let parts = [
        ("bin packing", score.bin_packing),
        ("spread", score.spread),
        ("load", score.load),
        ("affinity", score.affinity),
        ("reliability", score.reliability),
    ];
    let parts: Vec<_> =
        parts.iter().filter(|(_, part)| *part != 0).map(|(name, part)| format!("{name} {part}")).collect();
    format!("score {} ({})", score.total, parts.join(", "))
}
