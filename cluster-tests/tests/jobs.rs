//! Jobs as users handle them: cancel, time out, name, wait, and get wrong.

use std::{fs, time::Duration};

use cluster_tests::{Cli, Cluster, client::shell, wait};
use hodei_proto::v1::{JobSelector, JobSpec, ListJobsRequest, QueueJobRequest, Resources, WatchJobsRequest};
use nix::sys::signal::Signal;
use serde_json::Value;
use tonic::Code;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn cancel_ends_pending_and_running_jobs_and_their_whole_group() {
    let mut cluster = Cluster::start(3).await;
    let pending = cluster.submit(&[], &["true"]).await;
    cluster.cli().ok(&["job", "cancel", &pending]).await;
    let job = cluster.job(&pending).await;
    assert_eq!((&job["state"], &job["attempt"]), (&"Cancelled".into(), &0.into()), "a pending job ends at once");
    cluster.cli().run(&["job", "wait", &pending]).await.expect(130);

    cluster.agent(&[0], &[]).await;
    // A grandchild that ignores SIGTERM, and a parent that waits for it.
    let script = "(trap '' TERM; exec sleep 300) & echo started; wait";
    let mut run = cluster.cli_at(2).spawn("run", &["job", "run", "--", "bash", "-c", script]);
    wait::until_true("the job has started", SOON, || async { run.stdout() == b"started\n" }).await;
    assert!(!cluster.job_processes().is_empty());
    // Ctrl-C cancels.
    run.signal(Signal::SIGINT);
    assert_eq!(run.exit(SOON).await.code(), Some(130), "{}", run.stderr_text());
    let job = cluster.wait_state("last", "Cancelled").await;
    assert_eq!(job["reason"]["kind"], "cancelled");
    wait::until_true("nothing of the job is left", SOON, || async { cluster.job_processes().is_empty() }).await;

    // A job that has ended cannot be cancelled any more, and its state never changes.
    let done = cluster.submit(&[], &["true"]).await;
    cluster.wait_state(&done, "Succeeded").await;
    cluster.cli().run(&["job", "cancel", &done]).await;
    assert_eq!(cluster.job(&done).await["state"], "Succeeded");
}

#[tokio::test]
async fn a_timeout_ends_the_whole_group() {
    let mut cluster = Cluster::one().await;
    cluster.agent(&[0], &[]).await;
    let args = ["job", "run", "--timeout", "2s", "--", "bash", "-c", "echo begun; sleep 300 & sleep 300"];
    let output = cluster.cli().run(&args).await.expect(124);
    assert_eq!(output.text(), "begun", "what it printed is kept");
    let job = cluster.wait_state("last", "Timeout").await;
    assert_eq!(job["reason"]["kind"], "timeout");
    wait::until_true("nothing of the job is left", SOON, || async { cluster.job_processes().is_empty() }).await;
}

#[tokio::test]
async fn a_bad_job_file_names_the_field_and_submits_nothing() {
    let cluster = Cluster::one().await;
    let cli = cluster.cli();
    let cases = [
        (r#"{"command": {"shell": {"cmd": "true"}}, "colour": "red"}"#, "colour"),
        (r#"{"command": {"shell": {"cmd": "true"}}, "resources": {"memory_mb": "lots"}}"#, "resources.memory_mb"),
        (r#"{"command": {"shell": {"cmd": "true"}}, "resources": {"cpu_cores": -1}}"#, "resources.cpu_cores"),
        (r#"{"command": {"shell": {"cmd": ""}}}"#, "command"),
        (r#"{"name": "nothing to do"}"#, "command"),
        ("[command.shell]\ncmd = \"true\"\nargs = 5\n", "command.shell.args"),
        ("timeout = \"soon\"\n[command.shell]\ncmd = \"true\"\n", "timeout"),
        ("name = [broken\n", ""),
    ];
    for (file, field) in cases {
        let output = cli.run_with_input(&["job", "submit", "-f", "-"], Some(file)).await.expect(2);
        assert!(output.stderr.contains(field), "{field} is not named: {}", output.stderr);
    }
    cli.run(&["job", "submit", "-f", "/no/such/file.toml"]).await.expect(2);
    let long = "x".repeat(129);
    cli.run(&["job", "submit", "--name", &long, "--", "true"]).await.expect(2);
    for name in ["last", "cafe0123"] {
        cli.run(&["job", "submit", "--name", name, "--", "true"]).await.expect(2);
    }
    assert_eq!(cli.json(&["job", "list"]).await, Value::Array(Vec::new()));
}

#[tokio::test]
async fn the_server_refuses_what_the_command_line_would() {
    let cluster = Cluster::one().await;
    let client = cluster.client(0);
    let named = |name: String| JobSpec { name, ..shell("true", &[]) };
    let wanting = |resources| JobSpec { resources: Some(resources), ..shell("true", &[]) };
    let cases = [
        (JobSpec::default(), "command"),
        (shell("", &[]), "command"),
        (named("x".repeat(129)), "name"),
        (named("deadbeef".to_owned()), "name"),
        (wanting(Resources { cpu_millis: u64::MAX, ..Resources::default() }), "resources.cpu"),
        (wanting(Resources { memory_mb: u64::MAX, ..Resources::default() }), "resources.memory"),
        (shell("true", &[&"x".repeat(2 << 20)]), ""),
        (JobSpec { lost_after_ms: 4_999, ..shell("true", &[]) }, "lost_after"),
    ];
    for (spec, field) in cases {
        let status = client.submit(spec, SOON).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
        assert!(status.message().contains(field), "{field} is not named: {status:?}");
    }
    let id = client.submit_as("not an id", shell("true", &[]), SOON).await.unwrap_err();
    assert_eq!(id.code(), Code::InvalidArgument);
    let listed = client.jobs().list_jobs(ListJobsRequest::default()).await.unwrap().into_inner();
    assert!(listed.jobs.is_empty(), "something was written");
}

#[tokio::test]
async fn job_files_in_toml_and_json_say_the_same() {
    let mut cluster = Cluster::one().await;
    cluster.agent(&[0], &[]).await;
    let toml = r#"
        name = "from-toml"
        timeout = "1m"
        priority = 3
        [command.script]
        content = "echo $GREETING from $(basename $0 | wc -l) script; false; echo never reached"
        [env]
        GREETING = "hello"
        [labels]
        team = "ci"
        [resources]
        memory_mb = 16
    "#;
    let json = r#"{"name": "from-json", "timeout": "1m", "priority": 3,
        "command": {"script": {"interpreter": "/bin/sh", "content": "echo hello; exit 5"}},
        "env": {"GREETING": "hello"}, "labels": {"team": "ci"}, "resources": {"memory_mb": 16}}"#;
    let cli = cluster.cli();
    let submit = ["job", "submit", "-f", "-", "--output", "quiet"];
    let first = cli.run_with_input(&submit, Some(toml)).await.expect(0).text();
    let second = cli.run_with_input(&submit, Some(json)).await.expect(0).text();
    // `set -e` of the default interpreter ends the first at `false`.
    assert_eq!(cluster.wait_state(&first, "Failed").await["exit_code"], 1);
    assert_eq!(cluster.wait_state(&second, "Failed").await["exit_code"], 5);
    assert_eq!(cli.ok(&["job", "logs", "from-toml"]).await, "hello from 1 script");
    let (a, b) = (cluster.job(&first).await["spec"].clone(), cluster.job(&second).await["spec"].clone());
    for field in ["timeout", "priority", "env", "labels", "resources"] {
        assert_eq!(a[field], b[field], "{field}");
        assert!(!a[field].is_null(), "{field} is part of the JSON");
    }
}

#[tokio::test]
async fn the_same_submission_twice_is_one_job() {
    let cluster = Cluster::start(3).await;
    let id = Uuid::now_v7().to_string();
    for node in 0..3 {
        assert_eq!(cluster.client(node).submit_as(&id, shell("true", &["x"]), SOON).await.unwrap(), id);
    }
    let other = cluster.client(1).submit_as(&id, shell("true", &["y"]), SOON).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);

    let with_key = |spec| QueueJobRequest {
        id: Uuid::now_v7().to_string(),
        spec: Some(spec),
        idempotency_key: "nightly-2026-11-20".to_owned(),
    };
    let first = cluster.client(0).jobs().queue_job(with_key(shell("true", &[]))).await.unwrap().into_inner();
    let again = cluster.client(2).jobs().queue_job(with_key(shell("true", &[]))).await.unwrap().into_inner();
    assert_eq!((first.existing, again.existing), (false, true));
    assert_eq!(first.id, again.id);
    let other = cluster.client(1).jobs().queue_job(with_key(shell("false", &[]))).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
    let named = other.message().contains("nightly-2026-11-20") && other.message().contains(&first.id);
    assert!(named, "{}", other.message());

    let flags = ["--idempotency-key", "from-the-shell"];
    let once = cluster.submit(&flags, &["true"]).await;
    assert_eq!(cluster.submit(&flags, &["true"]).await, once);
    let mismatch = [&["job", "submit", "--output", "json"], &flags[..], &["--", "false"]].concat();
    let refused: Value = serde_json::from_str(&cluster.cli().run(&mismatch).await.expect(1).stderr).unwrap();
    assert_eq!((&refused["code"], &refused["field"]), (&"payload_mismatch".into(), &"idempotency_key".into()));
    assert_eq!(cluster.cli().json(&["job", "list"]).await.as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_person_names_jobs_in_short_ways() {
    let cluster = Cluster::start(3).await;
    let cli = cluster.cli();
    let first = cluster.submit(&["--name", "build", "--label", "team=a"], &["true"]).await;
    let second = cluster.submit(&["--name", "build", "--label", "team=b"], &["true"]).await;
    let get = async |selector: &str| cli.run(&["job", "get", selector, "--output", "quiet"]).await;
    assert_eq!(get(&first).await.expect(0).text(), first);
    assert_eq!(get("build").await.expect(0).text(), second, "the newest of that name");
    assert_eq!(get("last").await.expect(0).text(), second);
    assert_eq!(get(&first[first.len() - 8..]).await.expect(0).text(), first);
    get("no-such-job").await.expect(1);
    // Errors travel in headers, which have bounds.
    let refused = get(&"x".repeat(100_000)).await.expect(1);
    assert!(refused.stderr.starts_with("error: no job") && refused.stderr.len() < 2_000, "{}", refused.stderr);
    get(&Uuid::now_v7().to_string()).await.expect(1);

    let listed = async |args: &[&str]| {
        let jobs = cli.json(&[&["job", "list"], args].concat()).await;
        jobs.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&[]).await, [second.clone(), first.clone()], "newest first");
    assert_eq!(listed(&["--label", "team=a"]).await, std::slice::from_ref(&first));
    assert_eq!(listed(&["--limit", "1"]).await, std::slice::from_ref(&second));
    cli.ok(&["job", "cancel", &first]).await;
    assert_eq!(listed(&["--state", "Pending"]).await, [second]);
    assert_eq!(listed(&["--state", "Cancelled"]).await, std::slice::from_ref(&first));

    let job = cluster.job(&first).await;
    let mut fields: Vec<_> = job.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    for field in [
        "attempt",
        "exit_code",
        "finished_at",
        "id",
        "log_dropped",
        "log_lines",
        "name",
        "reason",
        "spec",
        "started_at",
        "state",
        "submitted_at",
        "worker_id",
    ] {
        assert!(fields.contains(&field), "{field} is missing in {fields:?}");
    }
    assert!(job["started_at"].is_null() && job["worker_id"].is_null(), "absent values are null");
    assert!(job["submitted_at"].as_str().unwrap().ends_with('Z'), "times are RFC 3339 in UTC");
}

#[tokio::test]
async fn a_watch_tells_every_change_until_the_end() {
    let mut cluster = Cluster::start(3).await;
    let job = cluster.submit(&[], &["true"]).await;
    let request = WatchJobsRequest { jobs: vec![JobSelector { text: job.clone() }] };
    let mut watch = cluster.client(2).jobs().watch_jobs(request).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap().job.unwrap();
    assert_eq!(first.state().as_str_name(), "JOB_STATE_PENDING");
    cluster.agent(&[0], &[]).await;
    let mut states = Vec::new();
    while let Some(event) = watch.message().await.unwrap() {
        states.push(event.job.unwrap().state());
    }
    assert!(states.is_sorted(), "{states:?}");
    assert_eq!(states.last().unwrap().as_str_name(), "JOB_STATE_SUCCEEDED");
}

#[tokio::test]
async fn wait_gives_the_first_failure_in_the_order_given() {
    let mut cluster = Cluster::one().await;
    cluster.agent(&[0], &[]).await;
    let good = cluster.submit(&[], &["true"]).await;
    let three = cluster.submit(&[], &["bash", "-c", "sleep 0.3; exit 3"]).await;
    let four = cluster.submit(&[], &["bash", "-c", "exit 4"]).await;
    let cli = cluster.cli();
    cli.run(&["job", "wait", &good, &three, &four]).await.expect(3);
    cli.run(&["job", "wait", &four, &three]).await.expect(4);
    cli.run(&["job", "wait", &good]).await.expect(0);
}

#[tokio::test]
async fn every_verb_has_help_with_an_example_and_bad_usage_exits_2() {
    let dir = tempfile::tempdir().unwrap();
    let cli = Cli::nobody(dir.path());
    for verb in [
        "dev",
        "init",
        "join",
        "run",
        "token create",
        "token list",
        "token revoke",
        "job run",
        "job submit",
        "job list",
        "job get",
        "job logs",
        "job cancel",
        "job wait",
        "worker list",
        "cluster status",
        "cluster members",
        "cluster remove",
        "cluster transfer-leader",
    ] {
        let words: Vec<_> = verb.split(' ').chain(["--help"]).collect();
        let output = cli.run(&words).await.expect(0);
        assert!(output.text().contains(&format!("hodei-node {verb}")), "{verb}: no usage");
        assert!(output.text().to_lowercase().contains("example"), "{verb}: no example");
    }
    cli.run(&["job", "frobnicate"]).await.expect(2);
    cli.run(&["job", "run"]).await.expect(2);
    fs::write(dir.path().join("file"), "").unwrap();
    cli.run(&["run", "--data-dir", "file/below"]).await.expect(2);
}
