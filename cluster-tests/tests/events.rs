//! What happened is told by every node, once and in order, and on another one when one is gone.

use std::{collections::BTreeSet, process::Stdio, time::Duration};

use cluster_tests::{Cluster, client::Client, wait};
use hodei_proto::v1::{
    EventPosition, ExecutionEvent, ExecutionEventStreamRequest, job_execution_service_client::JobExecutionServiceClient,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};
use tonic::transport::Channel;

const SOON: Duration = Duration::from_secs(40);

fn place(event: &ExecutionEvent) -> (u64, u32) {
    event.position.map_or((0, 0), |position| (position.index, position.offset))
}

/// Follows on one node from a position until `enough` or until the stream breaks.
async fn follow(
    client: JobExecutionServiceClient<Channel>,
    after: Option<EventPosition>,
    enough: impl Fn(&[ExecutionEvent]) -> bool,
) -> Vec<ExecutionEvent> {
    let mut seen = Vec::new();
    let request = ExecutionEventStreamRequest { after, follow: true, ..Default::default() };
    let mut stream = wait::until("the node serves", SOON, || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.execution_event_stream(request).await.ok() }
    })
    .await
    .into_inner();
    while !enough(&seen) {
        match timeout(SOON, stream.message()).await.expect("events come") {
            Ok(Some(answer)) => seen.extend(answer.events),
            _ => break,
        }
    }
    seen
}

async fn submit_many(cluster: &Cluster, count: usize) -> BTreeSet<String> {
    let mut jobs = BTreeSet::new();
    for _ in 0..count {
        jobs.insert(cluster.submit(&[], &["true"]).await);
    }
    jobs
}

#[tokio::test]
async fn events_are_resumed_on_another_node_without_a_gap_or_a_repetition() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[0, 1], &[]).await;
    let leader = cluster.leader().await;
    let followed = (leader + 1) % 3;
    let other = (leader + 2) % 3;

    let jobs: fn(&Client) -> JobExecutionServiceClient<Channel> = Client::jobs;
    let first = tokio::spawn(follow(jobs(&cluster.client(followed)), None, |_| false));
    let mut submitted = submit_many(&cluster, 8).await;
    cluster.nodes[followed].kill();
    let before = timeout(SOON, first).await.expect("the stream breaks").unwrap();
    assert!(!before.is_empty());
    submitted.extend(submit_many(&cluster, 8).await);
    for job in &submitted {
        cluster.wait_state(job, "Succeeded").await;
    }
    // The leader goes as well, and comes back with the first one from their disks.
    cluster.nodes[leader].kill();
    cluster.nodes[followed].restart().await;
    let wanted = submitted.len();
    let after = before.last().and_then(|event| event.position);
    let ended = |events: &[ExecutionEvent]| events.iter().filter(|event| event.kind == "job_ended").count();
    let missing = wanted - ended(&before);
    let rest = follow(jobs(&cluster.client(other)), after, |seen| ended(seen) >= missing).await;

    let told: Vec<_> = before.iter().chain(&rest).collect();
    let places: Vec<_> = told.iter().map(|event| place(event)).collect();
    assert!(places.is_sorted_by(|a, b| a < b), "repeated or out of order: {places:?}");
    for job in &submitted {
        let of_job: Vec<_> =
            told.iter().filter(|event| &event.job_id == job).map(|event| event.kind.as_str()).collect();
        assert_eq!(of_job, ["job_submitted", "job_scheduled", "job_started", "job_ended"], "{job}");
    }
    // Every node has the same history, whatever it has been through.
    cluster.nodes[leader].restart().await;
    let newest = *places.last().unwrap();
    let reference: Vec<_> = told.iter().map(|event| (place(event), event.kind.clone())).collect();
    for node in 0..3 {
        let all =
            follow(jobs(&cluster.client(node)), None, |seen| seen.last().is_some_and(|event| place(event) >= newest))
                .await;
        let all: Vec<_> = all.iter().map(|event| (place(event), event.kind.clone())).collect();
        assert_eq!(all[..reference.len()], reference, "node {node}");
    }
}

#[tokio::test]
async fn the_command_shows_what_was_asked_for() {
    let mut cluster = Cluster::one().await;
    let agent = cluster.agent(&[0], &[]).await;
    let worker = cluster.agents[agent].worker.clone();
    let cli = cluster.cli();
    let follower = cli.spawn("events", &["events", "-f", "--since", "now", "--kind", "worker_drained"]);
    let job = cluster.submit(&["--name", "one"], &["bash", "-c", "exit 3"]).await;
    cluster.wait_state(&job, "Failed").await;

    let events =
        |text: String| -> Vec<Value> { text.lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
    let of_job = events(cli.ok(&["events", "--job", "one", "--output", "json"]).await);
    let kinds: Vec<_> = of_job.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["job_submitted", "job_scheduled", "job_started", "job_ended"]);
    assert_eq!((&of_job[3]["state"], &of_job[3]["reason"]["exit_code"]), (&"Failed".into(), &3.into()));
    assert_eq!(of_job[3]["worker_id"], worker.as_str());
    assert!(of_job[0]["by"].as_str().unwrap().starts_with("admin/"), "{}", of_job[0]);
    let since = of_job[2]["position"].as_str().unwrap();
    let rest = cli.ok(&["events", "--since", since, "--job", &job, "--output", "quiet"]).await;
    assert_eq!(rest, of_job[3]["position"].as_str().unwrap());

    // Who drained it, who was let in, and for what.
    wait::until_true("the follower has begun", SOON, || async {
        cli.run(&["worker", "drain", &worker]).await.expect(0);
        cli.run(&["worker", "undrain", &worker]).await.expect(0);
        follower.stdout_text().contains("worker_drained")
    })
    .await;
    let of_worker = events(cli.ok(&["events", "--worker", &worker, "--kind", "worker", "--output", "json"]).await);
    let drained = of_worker.iter().find(|event| event["kind"] == "worker_undrained").expect("it was undrained");
    assert!(drained["by"].as_str().unwrap().starts_with("admin/"));
    let used = events(cli.ok(&["events", "--kind", "token_used", "--output", "json"]).await);
    assert!(used.iter().any(|event| event["issued"] == format!("agent/{worker}").as_str()), "{used:?}");

    cli.run(&["events", "--kind", "nonsense"]).await.expect(2);
    cli.run(&["events", "--since", "soon"]).await.expect(2);
    let ahead = cli.run(&["events", "-f", "--since", "99999999"]).await.expect(2);
    assert!(ahead.stderr.contains("since: expected a position of this log, whose newest entry is"), "{}", ahead.stderr);
    cli.run(&["events", "--job", "no-such-job"]).await.expect(1);
}

#[tokio::test]
async fn following_ends_with_its_reader() {
    let mut cluster = Cluster::one().await;
    ends_with_its_reader(&cluster, &["events", "-f"], "cluster_initialised").await;
    cluster.agent(&[0], &[]).await;
    let job = cluster.submit(&[], &["bash", "-c", "echo first; sleep 300"]).await;
    ends_with_its_reader(&cluster, &["job", "logs", "-f", &job], "first").await;
}

async fn ends_with_its_reader(cluster: &Cluster, args: &[&str], expected: &str) {
    let mut command = tokio::process::Command::from(cluster.cli().command(args));
    let mut following = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("the binary is built");
    // As `head -1` does, and nothing happens afterwards that could be written in vain.
    let mut output = BufReader::new(following.stdout.take().expect("it is piped")).lines();
    let first = timeout(SOON, output.next_line()).await.expect("a line comes").expect("it can be read");
    assert!(first.is_some_and(|line| line.contains(expected)));
    drop(output);
    let status = timeout(SOON, following.wait()).await.expect("it ends").expect("it is a child");
    assert!(status.success(), "{status}");
}
