//! `queue`: what waits, and for what.

use hodei_proto::v1::{
    BlockedCount, Capacity, GetQueueStatusRequest, GetQueueStatusResponse, QueueClass,
    scheduler_service_client::SchedulerServiceClient,
};
use serde_json::{Value, json};

use super::{
    job::explain::{blocker_text, start_text},
    worker::{capacity, cores},
};
use crate::{
    cli::{
        Global,
        client::Client,
        exit::CommandResult,
        output::{self, Output},
    },
    jobfile::Constraint,
};

/// Show how many jobs wait and what for, what runs, and what of the workers' capacity is taken.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Jobs that ask the same of a worker are one class. In JSON, each `blocker` is one of those of `job explain`, or\n`behind`: there is room for some jobs of the class, and the others come after them.\n\nExample:\n  hodei-node queue --output json"
)]
pub struct Args {
    /// Read what one node knows, without asking the others
    #[arg(long)]
    stale: bool,
}

/// The queue as it is printed.
struct Queue(GetQueueStatusResponse);

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        let message = GetQueueStatusRequest { stale: self.stale };
        let answer = Client::new(global)?
            .read(|conn| {
                let request = conn.request(message);
                async move { SchedulerServiceClient::new(conn.channel).get_queue_status(request).await }
            })
            .await?;
        output::print(global.output, &Queue(answer))?;
        Ok(0)
    }
}

impl Output for Queue {
    fn table(&self) -> String {
        let answer = &self.0;
        let mut lines = vec![
            format!("{:<11}{}{}", "pending", answer.pending, age_text(answer)),
            format!("{:<11}{}", "scheduled", answer.scheduled),
            format!("{:<11}{}", "running", answer.running),
            format!("{:<11}{}", "workers", workers_text(answer)),
            format!("{:<11}{}", "taken", taken_text(answer)),
        ];
        if answer.priorities.len() > 1 {
            let each = answer.priorities.iter().map(|one| format!("{} of {}", one.jobs, one.priority));
            lines.push(format!("{:<11}{}", "priorities", each.collect::<Vec<_>>().join(", ")));
        }
        if !answer.blocked.is_empty() {
            let rows = answer.blocked.iter().map(|one| [one.jobs.to_string(), why_text(one)]);
            lines.push(format!("\n{}", output::table(["JOBS", "WAIT BECAUSE"], rows)));
        }
        if !answer.classes.is_empty() {
            let header = ["JOBS", "PRIORITY", "ASK FOR", "FIRST", "NAME", "WHY THE FIRST WAITS", "ITS START"];
            lines.push(format!("\n{}", output::table(header, answer.classes.iter().map(class_row))));
        }
        if answer.classes_left_off > 0 {
            lines.push(format!("and {} more kinds of jobs", answer.classes_left_off));
        }
        if answer.jobs_not_judged > 0 {
            lines.push(format!("why {} more jobs wait was not looked into", answer.jobs_not_judged));
        }
        if !answer.heard {
            lines.push("(the leader was not reached: who has been heard of lately is not known)".to_owned());
        }
        lines.join("\n")
    }

    fn json(&self) -> Value {
        let answer = &self.0;
        let workers = answer.workers.unwrap_or_default();
        json!({
            "pending": answer.pending,
            "scheduled": answer.scheduled,
            "running": answer.running,
            "as_of": output::time(answer.as_of_ms),
            "oldest_submitted_at": output::time(answer.oldest_submitted_at_ms),
            "priorities": answer.priorities.iter().map(|one| json!({ "priority": one.priority, "jobs": one.jobs })).collect::<Value>(),
            "blocked": answer.blocked.iter().map(blocked).collect::<Value>(),
            "classes": answer.classes.iter().map(class).collect::<Value>(),
            "classes_left_off": answer.classes_left_off,
            "jobs_not_judged": answer.jobs_not_judged,
            "capacity": answer.capacity.as_ref().map(capacity),
            "used": answer.used.as_ref().map(capacity),
            "workers": {
                "ready": workers.ready,
                "draining": workers.draining,
                "set_aside": workers.set_aside,
                "absent": workers.absent,
            },
            "heard": answer.heard,
        })
    }

    fn quiet(&self) -> String {
        self.0.pending.to_string()
    }
}

fn blocked(one: &BlockedCount) -> Value {
    json!({ "blocker": word(&one.blocker), "jobs": one.jobs, "until": output::time(one.until_ms) })
}

fn class(class: &QueueClass) -> Value {
    let resources = class.resources.clone().unwrap_or_default();
    let constraints = class
        .constraints
        .iter()
        .map(|one| json!({ "attribute": one.attribute, "operator": one.operator, "value": one.value }));
    json!({
        "jobs": class.jobs,
        "highest_priority": class.highest_priority,
        "lowest_priority": class.lowest_priority,
        "resources": {
            "cpu_millis": resources.cpu_millis,
            "memory_mb": resources.memory_mb,
            "storage_mb": resources.storage_mb,
            "gpu": resources.gpu,
            "architecture": word(&resources.architecture),
        },
        "constraints": constraints.collect::<Value>(),
        "first_job_id": class.first_job_id,
        "first_name": word(&class.first_name),
        "first_submitted_at": output::time(class.first_submitted_at_ms),
        "blocker": word(&class.blocker),
        "others_blocker": word(&class.others_blocker),
        "behind": class.behind,
        "start": { "kind": class.start, "at": output::time(class.start_at_ms) },
    })
}

fn class_row(class: &QueueClass) -> [String; 7] {
    let priority = match (class.highest_priority, class.lowest_priority) {
        (highest, lowest) if highest == lowest => highest.to_string(),
        (highest, lowest) => format!("{highest} to {lowest}"),
    };
    [
        class.jobs.to_string(),
        priority,
        asks_text(class),
        output::short(&class.first_job_id),
        class.first_name.clone(),
        blocker_text(&class.blocker).to_owned(),
        start_text(&class.start, class.start_at_ms),
    ]
}

/// What a class asks for: nothing but a slot, or more.
fn asks_text(class: &QueueClass) -> String {
    let resources = class.resources.clone().unwrap_or_default();
    let amounts = [
        (resources.cpu_millis > 0, format!("{} cores", cores(resources.cpu_millis))),
        (resources.memory_mb > 0, format!("{} MB of memory", resources.memory_mb)),
        (resources.storage_mb > 0, format!("{} MB of storage", resources.storage_mb)),
        (resources.gpu > 0, format!("{} GPUs", resources.gpu)),
        (!resources.architecture.is_empty(), resources.architecture.clone()),
    ];
    let amounts = amounts.into_iter().filter(|(asked, _)| *asked).map(|(_, text)| text);
    let constraints = class.constraints.iter().map(|one| {
        let (attribute, operator, value) = (one.attribute.clone(), one.operator.clone(), one.value.clone());
        Constraint { attribute, operator, value }.to_string()
    });
    let all: Vec<_> = amounts.chain(constraints).collect();
    if all.is_empty() { "a slot".to_owned() } else { all.join(", ") }
}

fn age_text(answer: &GetQueueStatusResponse) -> String {
    if answer.oldest_submitted_at_ms == 0 {
        return String::new();
    }
    let age = answer.as_of_ms.saturating_sub(answer.oldest_submitted_at_ms);
    let seconds = u64::try_from(age).unwrap_or(0) / 1_000;
    format!(", the oldest for {}", output::span_text(seconds * 1_000))
}

fn why_text(one: &BlockedCount) -> String {
    match output::time_text(one.until_ms) {
        Some(until) => format!("{}, the first until {until}", blocker_text(&one.blocker)),
        None => blocker_text(&one.blocker).to_owned(),
    }
}

fn workers_text(answer: &GetQueueStatusResponse) -> String {
    let workers = answer.workers.unwrap_or_default();
    let kinds = [
        (workers.ready, "take jobs"),
        (workers.draining, "draining"),
        (workers.set_aside, "set aside"),
        (workers.absent, "without a stream"),
    ];
    let shown = kinds.iter().enumerate().filter(|(at, (count, _))| *at == 0 || *count > 0);
    shown.map(|(_, (count, what))| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
}

/// What is taken of what there is, of each kind that there is.
fn taken_text(answer: &GetQueueStatusResponse) -> String {
    let (all, used): (Capacity, Capacity) = (answer.capacity.unwrap_or_default(), answer.used.unwrap_or_default());
    let kinds = [
        (true, format!("{} of {} slots", used.slots, all.slots)),
        (all.cpu_millis > 0, format!("{} of {} cores", cores(used.cpu_millis), cores(all.cpu_millis))),
        (all.memory_mb > 0, format!("{} of {} MB of memory", used.memory_mb, all.memory_mb)),
        (all.storage_mb > 0, format!("{} of {} MB of storage", used.storage_mb, all.storage_mb)),
        (all.gpu > 0, format!("{} of {} GPUs", used.gpu, all.gpu)),
    ];
    kinds.into_iter().filter(|(there, _)| *there).map(|(_, text)| text).collect::<Vec<_>>().join(", ")
}

fn word(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use hodei_proto::v1::{Resources, WorkerCounts};

    use super::*;

    #[test]
    fn what_waits_and_why_is_told() {
        let resources = Some(Resources { cpu_millis: 2_500, gpu: 1, ..Resources::default() });
        let class = QueueClass {
            jobs: 7,
            resources,
            blocker: "too_small".into(),
            start: "unknown".into(),
            ..Default::default()
        };
        let answer = GetQueueStatusResponse {
            pending: 8,
            as_of_ms: 100_500,
            oldest_submitted_at_ms: 10_000,
            blocked: vec![BlockedCount { blocker: "too_small".into(), jobs: 7, until_ms: 0 }],
            classes: vec![class],
            workers: Some(WorkerCounts { ready: 1, set_aside: 2, ..Default::default() }),
            capacity: Some(Capacity { slots: 4, cpu_millis: 8_000, ..Default::default() }),
            ..Default::default()
        };
        let text = Queue(answer.clone()).table();
        for part in
            ["8, the oldest for 1m 30s", "1 take jobs, 2 set aside", "0 of 4 slots, 0 of 8 cores", "2.5 cores, 1 GPUs"]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let value = Queue(answer).json();
        assert_eq!(
            (&value["classes"][0]["blocker"], &value["blocked"][0]["until"]),
            (&"too_small".into(), &Value::Null)
        );
        assert_eq!(value["classes"][0]["others_blocker"], Value::Null);
    }
}
