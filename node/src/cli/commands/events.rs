//! `events`: what happened, and what happens, over whatever servers there are, each event once and in order.

use std::{str::FromStr, time::Duration};

use hodei_proto::v1::{
    EventPosition, ExecutionEvent, ExecutionEventStreamRequest, ExecutionEventStreamResponse, Identity, JobSelector,
    JobState, Role, job_execution_service_client::JobExecutionServiceClient,
};
use serde_json::{Map, Value, json};
use tokio::time::sleep;
use tonic::Streaming;

use super::job::{reason, reason_text, state};
use crate::{
    cli::{
        Global,
        client::Client,
        exit::{CommandResult, Failure, code},
        output::{self, Format},
    },
    error,
};

/// Between attempts to go on.
const RETRY: Duration = Duration::from_millis(100);

/// Show what happened, oldest first: the newest 20,000 events or more are kept.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each event has a position, INDEX.OFFSET: where to resume, on any node.\nWith --output json each line is one event.\n\nExample:\n  hodei-node events -f --since 1042.3 --kind worker"
)]
pub struct Args {
    /// Go on until interrupted, through outages too
    #[arg(long, short)]
    follow: bool,
    /// Only what came after this position: INDEX.OFFSET as printed, INDEX for all of that log entry, or `now`
    #[arg(long, value_name = "POSITION")]
    since: Option<Since>,
    /// Only events of this job: its id, name, last digits, or `last`
    #[arg(long, value_name = "ID")]
    job: Option<String>,
    /// Only events of this worker: its id, last digits, or host
    #[arg(long, value_name = "ID")]
    worker: Option<String>,
    /// Only events of this kind, or of a group: job, worker, node, token, secret; may be repeated
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<String>,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    After(EventPosition),
    Now,
}

impl FromStr for Since {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected a position such as 1042.3, a log index such as 1042, or now";
        if text == "now" {
            return Ok(Self::Now);
        }
        let (index, offset) = match text.split_once('.') {
            Some((index, offset)) => (index, offset.parse().map_err(|_| EXPECTED)?),
            None => (text, u32::MAX),
        };
        Ok(Self::After(EventPosition { index: index.parse().map_err(|_| EXPECTED)?, offset }))
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        tokio::select! {
            result = self.show(global) => result,
            () = output::reader_gone() => Ok(0),
        }
    }

    async fn show(self, global: &Global) -> CommandResult {
        let client = Client::new(global)?;
        let mut request = self.request();
        let mut told = false;
        loop {
            let read = match open(&client, &request).await {
                Ok(mut stream) => read(&mut stream, &mut request, global.output, &mut told).await,
                Err(failure) => Err(failure),
            };
            match read {
                Ok(End::Unread) => return Ok(0),
                Ok(End::OfStream) if !self.follow => return Ok(0),
                Ok(End::OfStream) => {}
                Err(failure) if !self.follow || failure.exit != code::UNREACHABLE => return Err(failure),
                Err(failure) => {
                    if !std::mem::replace(&mut told, true) {
                        output::note(format_args!("hodei: lost the connection ({failure}); trying again"));
                    }
                }
            }
            client.next_server();
            sleep(RETRY).await;
        }
    }

    fn request(&self) -> ExecutionEventStreamRequest {
        ExecutionEventStreamRequest {
            after: match self.since {
                Some(Since::After(position)) => Some(position),
                _ => None,
            },
            now: self.since == Some(Since::Now),
            follow: self.follow,
            job: self.job.clone().map(|text| JobSelector { text }),
            worker: self.worker.clone().unwrap_or_default(),
            kinds: self.kinds.clone(),
        }
    }
}

async fn open(
    client: &Client,
    request: &ExecutionEventStreamRequest,
) -> Result<Streaming<ExecutionEventStreamResponse>, Failure> {
    client
        .open(None, |conn| {
            let request = conn.request(request.clone());
            async move {
                let client = JobExecutionServiceClient::new(conn.channel);
                client.max_decoding_message_size(hodei_raft::MAX_MESSAGE).execution_event_stream(request).await
            }
        })
        .await
}

/// Why nothing more is printed.
enum End {
    OfStream,
    /// Whoever read the output has gone.
    Unread,
}

/// Prints events until the stream ends, and notes where to go on.
async fn read(
    stream: &mut Streaming<ExecutionEventStreamResponse>,
    request: &mut ExecutionEventStreamRequest,
    format: Format,
    told: &mut bool,
) -> Result<End, Failure> {
    loop {
        match stream.message().await {
            Ok(Some(answer)) => {
                *told = false;
                for event in &answer.events {
                    if !output::line_to_reader(&line(event, format))? {
                        return Ok(End::Unread);
                    }
                    (request.after, request.now) = (event.position, false);
                }
                if answer.through.is_some() {
                    (request.after, request.now) = (answer.through, false);
                }
            }
            Ok(None) => return Ok(End::OfStream),
            Err(status) => {
                let definite = error::detail(&status).is_some_and(|detail| {
                    [error::code::COMPACTED, error::code::REVOKED].contains(&detail.code.as_str())
                });
                let failure = Failure::from_status(&status);
                return Err(if definite { failure } else { Failure::unreachable(failure.message) });
            }
        }
    }
}

fn line(event: &ExecutionEvent, format: Format) -> String {
    match format {
        Format::Table => {
            let at = output::time_text(event.at_ms).unwrap_or_default();
            format!("{:<10} {at:<24} {:<20} {}", position(event), event.kind, text(event)).trim_end().to_owned()
        }
        Format::Json => json(event).to_string(),
        Format::Quiet => position(event),
    }
}

fn position(event: &ExecutionEvent) -> String {
    let position = event.position.unwrap_or_default();
    format!("{}.{}", position.index, position.offset)
}

/// What it is about, for people.
fn text(event: &ExecutionEvent) -> String {
    let mut words = Vec::new();
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            words.push(format!("{name} {value}"));
        }
    };
    let attempt = if event.attempt > 0 { format!("/{}", event.attempt) } else { String::new() };
    if !event.job_id.is_empty() {
        add("job", format!("{}{attempt}", output::short(&event.job_id)));
    }
    add("worker", output::short(&event.worker_id));
    add("for job", output::short(&event.for_job_id));
    if !event.secret.is_empty() {
        add("secret", format!("{} version {}", event.secret, event.secret_version));
    }
    add("node", number(event.node_id).map(|node| node.to_string()).unwrap_or_default());
    add("token", output::short(&event.token_id));
    add("session", output::short(&event.session_id));
    add("let in", event.issued.as_ref().map(party).unwrap_or_default());
    add("as", role(event));
    add("level", number(u64::from(event.feature_level)).map(|level| level.to_string()).unwrap_or_default());
    add("number", number(u64::from(event.jobs)).map(|jobs| jobs.to_string()).unwrap_or_default());
    if event.state() != JobState::Unspecified {
        add("is", state(event.state()).to_owned());
    }
    add("for", event.reason.as_ref().map(reason_text).unwrap_or_default());
    add("until", output::time_text(event.deadline_ms).unwrap_or_default());
    if let Some(aside) = &event.set_aside {
        add("until", output::time_text(aside.until_ms).unwrap_or_default());
        add("after", super::worker::losses(aside));
    }
    add("by", event.by.as_ref().map(party).unwrap_or_default());
    if event.requeue {
        add("its jobs", "requeued".to_owned());
    }
    if event.force {
        add("by", "force".to_owned());
    }
    words.join(", ")
}

/// An event as JSON: what every event may have, null where it does not, and what only its kind has.
fn json(event: &ExecutionEvent) -> Value {
    let at = event.position.unwrap_or_default();
    let mut value = json!({
        "position": position(event),
        "index": at.index,
        "offset": at.offset,
        "at": output::time(event.at_ms),
        "kind": event.kind,
        "by": event.by.as_ref().map(output::party),
        "job_id": word(&event.job_id),
        "attempt": number(u64::from(event.attempt)),
        "worker_id": word(&event.worker_id),
        "node_id": number(event.node_id),
        "token_id": word(&event.token_id),
    });
    if let Value::Object(fields) = &mut value {
        add_own(fields, event);
    }
    value
}

fn add_own(fields: &mut Map<String, Value>, event: &ExecutionEvent) {
    let mut add = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    match event.kind.as_str() {
        "job_ended" => {
            add("state", json!(state(event.state())));
            add("reason", json!(event.reason.as_ref().map(reason)));
        }
        "job_preempted" => add("for_job_id", json!(word(&event.for_job_id))),
        "secret_used" => {
            add("secret", json!(word(&event.secret)));
            add("version", json!(event.secret_version));
        }
        "job_requeued" => add("reason", json!(event.reason.as_ref().map(reason))),
        "jobs_removed" => add("jobs", json!(event.jobs)),
        "token_created" => add("role", json!(word(&role(event)))),
        "token_used" => add("issued", json!(event.issued.as_ref().map(output::party))),
        "feature_level_raised" => add("feature_level", json!(event.feature_level)),
        "worker_registered" => add("session_id", json!(word(&event.session_id))),
        "worker_drained" => {
            add("deadline", output::time(event.deadline_ms));
            add("requeue", json!(event.requeue));
        }
        "worker_set_aside" => {
            let aside = event.set_aside.unwrap_or_default();
            add("until", output::time(aside.until_ms));
            add("lost_sessions", json!(aside.sessions));
            add("lost_attempts", json!(aside.attempts));
        }
        "worker_removed" => add("force", json!(event.force)),
        _ => {}
    }
}

fn party(who: &Identity) -> String {
    let id = if who.role() == Role::Node { who.id.clone() } else { output::short(&who.id) };
    output::party(&Identity { id, ..who.clone() })
}

/// What a token grants; empty where it is about none.
fn role(event: &ExecutionEvent) -> String {
    if event.role() == Role::Unspecified { String::new() } else { output::role(event.role()).to_owned() }
}

fn word(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn number(number: u64) -> Option<u64> {
    (number > 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_printed() {
        let after = |index, offset| Ok(Since::After(EventPosition { index, offset }));
        assert_eq!("1042.3".parse(), after(1_042, 3));
        assert_eq!("1042".parse(), after(1_042, u32::MAX));
        assert_eq!("now".parse(), Ok(Since::Now));
        for wrong in ["", "x", "1.", ".1", "1.x", "-1", "1.2.3"] {
            assert!(wrong.parse::<Since>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn events_are_told() {
        let event = ExecutionEvent {
            position: Some(EventPosition { index: 7, offset: 1 }),
            kind: "worker_removed".into(),
            worker_id: "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b".into(),
            by: Some(Identity { role: Role::Admin.into(), id: "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f0000".into() }),
            force: true,
            ..ExecutionEvent::default()
        };
        assert_eq!(text(&event), "worker 2e3f4a5b, by admin/2e3f0000, by force");
        let value = json(&event);
        assert_eq!(
            (&value["position"], &value["force"], &value["job_id"]),
            (&"7.1".into(), &true.into(), &Value::Null)
        );
        assert_eq!(line(&event, Format::Quiet), "7.1");
    }
}
