//! What goes where, as users see it: constraints, weights, and why a job waits.

use std::time::{Duration, Instant};

use cluster_tests::{Cluster, wait};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// Asks until a worker is heard of as it should be: heartbeats and streams come when they come.
async fn explained(cluster: &Cluster, node: usize, job: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let found = std::cell::RefCell::new(Value::Null);
    wait::until_true(what, SOON, || async {
        let answer = cluster.cli_at(node).json(&["job", "explain", job]).await;
        let fits = wanted(&answer);
        *found.borrow_mut() = answer;
        fits
    })
    .await;
    found.into_inner()
}

#[tokio::test]
async fn every_node_says_why_a_job_waits_and_where_it_runs() {
    let mut cluster = Cluster::start(3).await;
    let job = cluster.submit(&["--constraint", "label.zone in a,b", "--cpu", "0.5"], &["sleep", "300"]).await;
    for node in 0..3 {
        let answer = explained(&cluster, node, &job, "the leader answers", |answer| answer["heard"] == true).await;
        assert_eq!((&answer["standing"], &answer["blocker"]), (&"pending".into(), &"no_worker".into()), "{answer}");
        assert_eq!((&answer["ahead"], &answer["start"]["kind"]), (&0.into(), &"unknown".into()), "{answer}");
    }

    cluster.agent(&[0], &["--label", "zone=c"]).await;
    let answer = explained(&cluster, 1, &job, "the worker is judged", |answer| answer["blocker"] == "none_suits").await;
    let verdict = &answer["workers"][0];
    assert_eq!((&verdict["verdict"], &verdict["constraint"]["actual"]), (&"constraint".into(), &"c".into()));

    cluster.agent(&[1], &["--label", "zone=b"]).await;
    cluster.wait_state(&job, "Running").await;
    for node in 0..3 {
        let answer = cluster.cli_at(node).json(&["job", "explain", &job]).await;
        assert_eq!(answer["standing"], "running");
        assert_eq!(answer["attempt"]["choice"]["candidates"], 1, "{answer}");
    }
    let shown = cluster.cli().ok(&["job", "explain", &job]).await;
    assert!(shown.contains("the best of 1 that it fitted on"), "{shown}");
    cluster.cli().ok(&["job", "cancel", &job]).await;
    explained(&cluster, 2, &job, "the job has ended", |answer| answer["reason"]["kind"] == "cancelled").await;
    cluster.cli().run(&["job", "explain", "nosuchjob"]).await.expect(1);
}

#[tokio::test]
async fn the_weights_decide_and_only_administrators_change_them() {
    let mut cluster = Cluster::one().await;
    for zone in ["zone=a", "zone=b"] {
        cluster.agent(&[0], &["--label", zone, "--capacity", "4"]).await;
    }
    let cli = cluster.cli();
    let weights = cli.json(&["scheduler", "set", "--bin-packing", "0", "--load", "0", "--spread", "500"]).await;
    assert_eq!(weights, cli.json(&["scheduler", "get"]).await);
    assert_eq!((&weights["weights"]["spread"], &weights["weights"]["affinity"]), (&500.into(), &200.into()));
    cli.run(&["scheduler", "set", "--spread", "1001"]).await.expect(2);
    cli.run(&["scheduler", "set"]).await.expect(2);

    let mut workers = Vec::new();
    for _ in 0..2 {
        let job = cluster.submit(&[], &["sleep", "300"]).await;
        workers.push(cluster.wait_state(&job, "Running").await["worker_id"].clone());
    }
    assert_ne!(workers[0], workers[1], "spread over both");
    // A preference outweighs what little load there is.
    let preferred = cluster.submit(&["--prefer", "label.zone=b:10"], &["true"]).await;
    let preferred = cluster.wait_state(&preferred, "Succeeded").await;
    let zone = cluster.wait_worker(preferred["worker_id"].as_str().unwrap_or_default(), |_| true).await;
    assert_eq!(zone["labels"]["zone"], "b");
}

#[tokio::test]
async fn a_short_lease_does_not_turn_preferences_off_nor_does_a_silent_worker_hold_jobs_up() {
    let mut cluster = Cluster::start(3).await;
    let mut agents = Vec::new();
    for (gateway, zone) in [(0, "zone=a"), (1, "zone=b")] {
        agents.push(cluster.agent(&[gateway], &["--label", zone, "--capacity", "2"]).await);
    }
    let [other, preferred] = [0, 1].map(|at| cluster.agents[agents[at]].worker.clone());
    // What runs there keeps the one worker's heartbeats young. The other sends one every three seconds, of which a third of
    // this lease is less.
    cluster.submit(&["--lost-after", "5s", "--constraint", "label.zone=a"], &["sleep", "300"]).await;
    let options = ["--lost-after", "5s", "--prefer", "label.zone=b:10"];
    let dry_run = [&["job", "submit", "--dry-run", "--output", "json"], &options[..], &["--", "true"]].concat();
    let would_wait = || async {
        let answer: Value = serde_json::from_str(&cluster.cli().ok(&dry_run).await).unwrap();
        answer["blocker"] == "awaits_better"
    };
    for _ in 0..6 {
        wait::until_true("the heartbeat of the better worker is too old", SOON, would_wait).await;
        let begun = Instant::now();
        let job = cluster.submit(&options, &["true"]).await;
        let job = cluster.wait_state(&job, "Succeeded").await;
        // It has half a second to answer, which a machine that is very busy may take.
        let waited = begun.elapsed() >= Duration::from_millis(500);
        assert!(job["worker_id"] == preferred.as_str() || waited, "{job}");
    }

    // One that is not there any more is asked, and waited for, in vain.
    let frozen = cluster.agents[agents[1]].pid().expect("it runs");
    kill(frozen, Signal::SIGSTOP).unwrap();
    wait::until_true("the heartbeat of the better worker is too old", SOON, would_wait).await;
    for _ in 0..3 {
        let term = cluster.wait_status(0).await["term"].clone();
        let job = cluster.submit(&options, &["true"]).await;
        let job = cluster.wait_state(&job, "Succeeded").await;
        assert_eq!((&job["worker_id"], &job["attempt"]), (&other.as_str().into(), &1.into()), "{job}");
        // A leader that has just been elected does not know it yet.
        assert!(!would_wait().await || cluster.wait_status(0).await["term"] != term, "nobody waits for it again");
    }

    kill(frozen, Signal::SIGCONT).unwrap();
    let preferred_again = || async {
        let job = cluster.submit(&options, &["true"]).await;
        cluster.wait_state(&job, "Succeeded").await["worker_id"] == preferred.as_str()
    };
    wait::until_true("it is preferred again", SOON, preferred_again).await;
}

#[tokio::test]
async fn a_higher_priority_takes_the_room_of_a_job_that_allows_it() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[0, 1, 2], &["--capacity", "1"]).await;
    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    // Whoever runs holds the directory: two at once would be told.
    let lock = dir.path().join("running");
    let script =
        format!("trap 'rmdir {0}; exit 3' TERM; mkdir {0} || exit 9; echo up; sleep 300 & wait", lock.display());
    let victim = cluster.submit(&["--preemptible", "--retry-preemption", "1"], &["bash", "-c", &script]).await;
    cluster.wait_state(&victim, "Running").await;
    wait::until_true("it is ready to be stopped", SOON, || async { lock.exists() }).await;

    let brief = format!("mkdir {0} || exit 9; sleep 1; rmdir {0}", lock.display());
    let urgent = cluster.submit(&["--priority", "1"], &["bash", "-c", &brief]).await;
    let urgent = cluster.wait_state(&urgent, "Succeeded").await;
    assert_eq!(urgent["attempt"], 1, "{urgent}");
    let job = cluster.wait_job(&victim, "it runs again", |job| job["state"] == "Running" && job["attempt"] == 2).await;
    let first = &job["attempts"][0];
    assert_eq!((&first["taken_back"], &first["preempted_for"]), (&"preempted".into(), &urgent["id"]), "{first}");
    let events = cluster.cli_at(2).ok(&["events", "--kind", "job_preempted", "--output", "json"]).await;
    let event: Value = serde_json::from_str(&events).unwrap();
    assert_eq!(
        (&event["job_id"], &event["for_job_id"]),
        (&victim.as_str().into(), &urgent["id"]),
        "one event: {events}"
    );
    assert_eq!((&event["attempt"], &event["worker_id"]), (&1.into(), &first["worker_id"]));
    assert_eq!(first["reason"]["kind"], "taken_back");
    assert_eq!((&first["reason"]["cause"], &first["reason"]["exit_code"]), (&"preempted".into(), &3.into()), "{first}");
    assert_eq!((&first["next"]["kind"], &first["next"]["budget"]), (&"retry".into(), &"preemption".into()));
    assert_eq!(job["retries_used"]["preemption"], 1);

    // Its budget is spent: it runs in peace.
    let next = cluster.submit(&["--priority", "1"], &["true"]).await;
    let answer = explained(&cluster, 1, &next, "it waits", |answer| answer["blocker"] == "no_room").await;
    assert_eq!(answer["workers"][0]["held_by"][0].as_str(), Some(victim.as_str()), "{answer}");
    cluster.cli().run(&["job", "wait", &next, &victim, "--timeout", "300ms"]).await.expect(124);
    cluster.cli().ok(&["job", "cancel", &victim]).await;
    cluster.cli().run(&["job", "wait", &next, &victim, "--timeout", "1m"]).await.expect(130);
}

#[tokio::test]
async fn the_story_of_each_attempt_is_told_and_what_failed_is_tried_again_as_a_new_job() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[0], &[]).await;
    let options = ["--name", "flaky", "--retry-failure", "1", "--retry-exit-codes", "5", "--retry-backoff", "50ms"];
    let job = cluster.submit(&options, &["bash", "-c", "exit 5"]).await;
    cluster.cli().run(&["job", "wait", &job, "--timeout", "1m"]).await.expect(5);
    let told = cluster.job(&job).await;
    let next =
        |at: usize| (told["attempts"][at]["next"]["kind"].clone(), told["attempts"][at]["next"]["budget"].clone());
    assert_eq!(next(0), ("retry".into(), "failure".into()), "{told}");
    assert_eq!(next(1), ("spent".into(), "failure".into()), "{told}");
    assert!(told["attempts"][0]["next"]["not_before"].is_string() && told["attempts"][0]["ended_by"] == "result");
    let shown = cluster.cli().ok(&["job", "get", &job]).await;
    assert!(shown.contains("again (failure), not before") && shown.contains("no retries left (failure)"), "{shown}");

    let again = cluster.cli_at(1).json(&["job", "retry", "flaky"]).await;
    assert_eq!(again["retry_of"].as_str(), Some(job.as_str()));
    let id = again["id"].as_str().unwrap_or_default();
    cluster.cli().run(&["job", "wait", id, "--timeout", "1m"]).await.expect(5);
    assert_eq!(cluster.job(id).await["retry_of"].as_str(), Some(job.as_str()));
    assert_eq!(cluster.job(&job).await["state"], "Failed", "what has ended stays so");

    let done = cluster.submit(&[], &["true"]).await;
    cluster.wait_state(&done, "Succeeded").await;
    cluster.cli().run(&["job", "retry", &done]).await.expect(1);

    let missing = cluster.submit(&[], &["/no/such/command"]).await;
    cluster.cli().run(&["job", "wait", &missing, "--timeout", "1m"]).await.expect(127);
    let shown = cluster.cli().ok(&["job", "get", &missing]).await;
    assert!(shown.contains("command not found"), "{shown}");
    let text = cluster.submit(&[], &["/etc/passwd"]).await;
    cluster.cli().run(&["job", "wait", &text, "--timeout", "1m"]).await.expect(126);
    let reason = cluster.job(&text).await["reason"].clone();
    assert_eq!((&reason["kind"], &reason["cause"]), (&"could_not_start".into(), &"not_permitted".into()), "{reason}");
    let signal = cluster.submit(&[], &["bash", "-c", "kill -USR1 $$"]).await;
    cluster.cli().run(&["job", "wait", &signal, "--timeout", "1m"]).await.expect(128 + 10);
}

#[tokio::test]
async fn a_dry_run_checks_and_shows_and_submits_nothing() {
    let mut cluster = Cluster::start(3).await;
    let agent = cluster.agent(&[0], &["--capacity", "1", "--label", "zone=a"]).await;
    let worker = cluster.agents[agent].worker.clone();
    let cli = cluster.cli();
    let args = ["job", "submit", "-f", "-", "--dry-run", "--output", "json"];
    let dry_run = async |file: &str| cli.run_with_input(&args, Some(file)).await;
    let fits =
        "name: x\ncommand: {shell: {cmd: 'true'}}\nconstraints: [{attribute: label.zone, operator: '=', value: a}]\n";
    let worker = Value::from(worker);
    wait::until_true("the worker has been heard of", SOON, async || {
        let answer: Value = serde_json::from_slice(&dry_run(fits).await.expect(0).stdout).unwrap();
        assert_eq!(answer["standing"], "not_submitted", "{answer}");
        answer["chosen_worker_id"] == worker
    })
    .await;
    let nowhere = fits.replace("value: a", "value: b");
    let answer: Value = serde_json::from_slice(&dry_run(&nowhere).await.expect(0).stdout).unwrap();
    assert_eq!(answer["blocker"], "none_suits", "{answer}");
    // Said by the server: nobody else knows.
    let secret = format!("{fits}secrets: [{{name: nothing}}]\n");
    let output = dry_run(&secret).await.expect(2);
    assert!(output.stderr.contains("secrets[0].name: expected the name of a secret"), "{}", output.stderr);
    let output = dry_run("command: {shell: {cmd: ''}}\n").await.expect(2);
    assert!(output.stderr.contains("command.shell.cmd"), "{}", output.stderr);
    assert_eq!(cli.json(&["job", "list"]).await, Value::Array(Vec::new()));
}

#[tokio::test]
async fn the_queue_is_told_by_what_blocks_it_on_every_node() {
    let mut cluster = Cluster::start(3).await;
    cluster.submit(&["--name", "first"], &["true"]).await;
    let answer = cluster.cli_at(1).json(&["queue"]).await;
    assert_eq!((&answer["pending"], &answer["blocked"][0]["blocker"]), (&1.into(), &"no_worker".into()), "{answer}");
    assert_eq!(answer["classes"][0]["first_name"], "first");
    cluster.agent(&[0], &["--capacity", "1"]).await;
    let queue = async |node: usize| cluster.cli_at(node).json(&["queue"]).await;
    wait::until_true("it is done", SOON, async || queue(0).await["pending"] == 0).await;

    let holder = cluster.submit(&["--timeout", "10m"], &["sleep", "300"]).await;
    cluster.wait_state(&holder, "Running").await;
    for options in [&["--gpu", "1"][..], &["--gpu", "1", "--priority", "-2"], &["--constraint", "label.zone = x"], &[]]
    {
        cluster.submit(options, &["true"]).await;
    }
    for node in 0..3 {
        let answer = queue(node).await;
        let blocked = answer["blocked"].as_array().unwrap();
        let blocked: Vec<_> = blocked.iter().map(|one| (one["blocker"].as_str().unwrap(), &one["jobs"])).collect();
        let (one, two) = (Value::from(1), Value::from(2));
        assert_eq!(blocked, [("none_suits", &one), ("too_small", &two), ("no_room", &one)], "{answer}");
        assert_eq!((&answer["running"], &answer["used"]["slots"], &answer["heard"]), (&one, &one, &true.into()));
        assert_eq!((&answer["classes"][0]["lowest_priority"], &answer["classes"][0]["jobs"]), (&(-2).into(), &two));
        assert!(answer["oldest_submitted_at"].is_string());
    }
    let text = cluster.cli().ok(&["queue"]).await;
    assert!(
        text.contains("the workers that are what it asks for are too small") && text.contains("1 of 1 slots"),
        "{text}"
    );
    assert_eq!(cluster.cli().ok(&["queue", "--stale", "--output", "quiet"]).await.trim(), "4");
}
