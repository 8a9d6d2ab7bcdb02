//! The log of a job is what the job wrote: every byte, in order, on every node, whenever one asks.

use std::{fs, time::Duration};

use cluster_tests::{
    Cluster, cli,
    client::{STDERR, STDOUT},
    wait,
};

const SOON: Duration = Duration::from_secs(30);

/// Bytes that a careless log plane spoils: every value, NUL, CR, invalid UTF-8, a line far over 64 KiB, empty lines,
/// and no newline at the end.
fn nasty() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
    bytes.extend(b"\n\n\r\n\xff\xfe\x00middle\n");
    bytes.extend(std::iter::repeat_n(b'x', 200_000));
    bytes.extend(b"\nlast line without its newline");
    bytes
}

#[tokio::test]
async fn every_byte_on_every_node_before_during_and_after_the_run() {
    let mut cluster = Cluster::start(3).await;
    let (out, err, gate) = (cluster.dir().join("out"), cluster.dir().join("err"), cluster.dir().join("gate"));
    let (out_bytes, err_bytes) = (nasty(), b"warning\n\xc3\x28 not UTF-8\n".repeat(300));
    fs::write(&out, &out_bytes).unwrap();
    fs::write(&err, &err_bytes).unwrap();
    let script = format!(
        "cat {}; while [ ! -e {} ]; do sleep 0.02; done; cat {} >&2",
        out.display(),
        gate.display(),
        err.display()
    );

    // Before: there is no agent yet, so the job cannot have begun.
    let job = cluster.submit(&[], &["bash", "-c", &script]).await;
    let before: Vec<_> = (0..3).map(|node| (cluster.client(node), job.clone())).collect();
    let before: Vec<_> =
        before.into_iter().map(|(client, job)| tokio::spawn(async move { client.follow(&job).await })).collect();
    cluster.agent(&[0], &[]).await;
    cluster.wait_state(&job, "Running").await;
    // During: the job waits at the gate.
    let during: Vec<_> = (0..3).map(|node| (cluster.client(node), job.clone())).collect();
    let during: Vec<_> =
        during.into_iter().map(|(client, job)| tokio::spawn(async move { client.follow(&job).await })).collect();
    fs::write(&gate, "").unwrap();

    let mut logs = Vec::new();
    for task in before.into_iter().chain(during) {
        logs.push(task.await.unwrap().unwrap());
    }
    cluster.wait_state(&job, "Succeeded").await;
    for node in 0..3 {
        logs.push(cluster.client(node).follow(&job).await.unwrap());
    }
    for (i, log) in logs.iter().enumerate() {
        assert!(log.bytes(STDOUT) == out_bytes, "subscriber {i}: standard output differs");
        assert!(log.bytes(STDERR) == err_bytes, "subscriber {i}: standard error differs");
        assert!(log.is_contiguous(), "subscriber {i}: a hole or a repetition");
        let end = log.ends.last().unwrap_or_else(|| panic!("subscriber {i}: no end record"));
        let figures = end.log.as_ref().unwrap_or_else(|| panic!("subscriber {i}: no figures"));
        assert!(end.complete, "subscriber {i}: incomplete");
        assert_eq!((figures.lines, figures.dropped), (log.entries.len() as u64, 0), "subscriber {i}");
        assert_eq!(figures.bytes, (out_bytes.len() + err_bytes.len()) as u64, "subscriber {i}");
        assert!(log.job.is_some(), "subscriber {i}: no terminal state");
    }

    for node in 0..3 {
        let output = cluster.cli_at(node).run(&["job", "logs", &job]).await.expect(0);
        assert!(output.stdout == out_bytes, "the command line on node {node} changed standard output");
        assert!(output.stderr.contains("warning\n"), "standard error goes to standard error");
    }
}

#[tokio::test]
async fn tail_shows_the_last_entries_and_an_empty_log_nothing() {
    let mut cluster = Cluster::one().await;
    cluster.agent(&[0], &[]).await;
    let cli = cluster.cli();

    let job = cluster.submit(&["--name", "counting"], &["seq", "1", "50"]).await;
    cluster.wait_state(&job, "Succeeded").await;
    assert_eq!(cli.ok(&["job", "logs", "counting", "--tail", "3"]).await, "48\n49\n50");
    assert_eq!(cli.ok(&["job", "logs", "last"]).await.lines().count(), 50);
    assert_eq!(cluster.job(&job).await["log_lines"], 50);

    let silent = cluster.submit(&[], &["true"]).await;
    let output = cli.run(&["job", "logs", "-f", &silent]).await.expect(0);
    assert!(output.stdout.is_empty());
}

#[tokio::test]
async fn the_log_of_every_attempt_can_be_had() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[0], &[]).await;
    let retry = ["--retry-failure", "2", "--retry-backoff", "1ms"];
    let job = cluster.submit(&retry, &["bash", "-c", "echo attempt; echo $HODEI_ATTEMPT; exit 3"]).await;
    cluster.wait_state(&job, "Failed").await;
    let cli = cluster.cli_at(1);
    let logs = async |args: &[&str]| cli.run(&[&["job", "logs", &job][..], args].concat()).await;
    assert_eq!(logs(&[]).await.expect(0).text(), "attempt\n3");
    for number in ["1", "2", "3"] {
        assert_eq!(logs(&["--attempt", number]).await.expect(0).text(), format!("attempt\n{number}"));
        assert_eq!(logs(&["--attempt", number, "--tail", "1"]).await.expect(0).text(), number);
    }
    assert_eq!(logs(&["-f", "--attempt", "2"]).await.expect(3).text(), "attempt\n2\nattempt\n3");
    for more in [&["--attempt", "4"][..], &["--attempt", "4", "-f"]] {
        let refused = logs(more).await.expect(1);
        assert!(refused.stderr.contains("has no attempt 4: its newest is 3"), "{}", refused.stderr);
    }
    logs(&["--attempt", "0"]).await.expect(2);
}

#[tokio::test]
async fn following_ends_with_the_jobs_own_exit_code() {
    let mut cluster = Cluster::one().await;
    cluster.agent(&[0], &[]).await;
    let job = cluster.submit(&[], &["bash", "-c", "echo so far; exit 3"]).await;
    let output = cluster.cli().run(&["job", "logs", "-f", &job]).await.expect(3);
    assert_eq!(output.text(), "so far");
    // Without -f it is a look at the file, and a look succeeds.
    cluster.cli().run(&["job", "logs", &job]).await.expect(0);
    cluster.cli().run(&["job", "wait", &job]).await.expect(3);
}

#[tokio::test]
async fn output_on_a_node_that_is_down_is_not_passed_over() {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[2], &[]).await;
    let job = cluster.submit(&[], &["bash", "-c", "echo kept; exit 3"]).await;
    cluster.wait_state(&job, "Failed").await;
    // Until its end is acknowledged the agent has the log, too, and would bring it to another node.
    let attempts = cluster.agents[0].data.join("attempts");
    let forgotten = || async { fs::read_dir(&attempts).is_ok_and(|mut left| left.next().is_none()) };
    wait::until_true("the agent forgets the attempt", SOON, forgotten).await;
    cluster.nodes[2].kill();
    cluster.leader_other_than(Some(2)).await;

    let output = cluster.cli_at(0).run(&["job", "logs", &job]).await.expect(69);
    assert!(output.stderr.contains("do not answer"), "{}", output.stderr);
    assert!(output.stdout.is_empty(), "{}", output.text());

    let mut following = cluster.cli_at(0).spawn("follow", &["job", "logs", "-f", &job]);
    wait::until_true("it says what is missing", SOON, || async { following.stderr_text().contains("do not answer") })
        .await;
    cluster.nodes[2].restart().await;
    let status = following.exit(SOON).await;
    assert_eq!((cli::exit_code(status), following.stdout_text().as_str()), (3, "kept\n"));
    cluster.cli_at(0).run(&["job", "logs", &job]).await.expect(0);
}
