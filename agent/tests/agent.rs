//! The agent against fake nodes: real processes, real files, the real protocol.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::time::{Duration, Instant};

use fake::{Agent, Cluster, Dir, KIND, Manners, Node, printed_pid, script, shell, text, until_empty, until_gone};
use hodei_agent::key::AttemptKey;
use hodei_proto::v1::{
    CancelAttempt, KeepAlive, OutputPolicy, Release, attempt_status::Phase, node_message::Kind,
    update_worker_status_request::Wish,
};

#[tokio::test]
async fn output_arrives_byte_for_byte_and_the_attempt_is_forgotten() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let job = r"printf 'one\ntwo\n'; printf 'wrong\n' >&2; printf '\000\377\r\n\n'; printf 'no newline'; exit 7";
    let key = cluster.run(script(job)).await;
    let log = cluster.complete_log(0, key).await;
    assert_eq!(log.out, b"one\ntwo\n\x00\xff\r\n\nno newline");
    assert_eq!(log.err, b"wrong\n");
    assert_eq!((log.figures.lines, log.figures.dropped), (6, 0));
    let reason = cluster.result(key).await.reason.unwrap();
    assert_eq!((reason.kind.as_str(), reason.exit_code), ("exited", Some(7)));
    until_empty(&dir.path().join("attempts")).await;
    until_empty(&dir.path().join("work")).await;
}

#[tokio::test]
async fn a_job_sees_a_clean_environment_and_its_own_directory() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let mut job = script(
        "env | cut -d= -f1 | sort | tr '\\n' ' '; echo; echo $HODEI_FENCE $HODEI_ATTEMPT $A; pwd; cat; stat -c %a .hodei-script",
    );
    job.env.insert("A".into(), "b c".into());
    job.env.insert("HODEI_FENCE".into(), "forged".into());
    let key = cluster.run(job).await;
    let out = text(&cluster.complete_log(0, key).await.out);
    let lines: Vec<_> = out.lines().collect();
    let own = "A HODEI_ATTEMPT HODEI_FENCE HODEI_JOB_ID HODEI_WORKER_ID HOME LANG OLDPWD PATH PWD SHLVL _ ";
    assert_eq!(lines[0].replace("OLDPWD ", ""), own.replace("OLDPWD ", ""));
    assert_eq!(lines[1], "42 1 b c");
    assert!(lines[2].ends_with(&key.dir_name()), "{out}");
    assert_eq!(lines[3], "700");
}

#[tokio::test]
async fn when_the_node_dies_the_next_one_gets_the_whole_log() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let (first, second) = (Node::start(&cluster), Node::start(&cluster));
    let _agent = Agent::start(dir.path(), vec![first.address.clone()]);
    let key = cluster.run(script("for i in $(seq 150); do echo line $i; sleep 0.01; done; echo done >&2")).await;
    cluster.until("some output", |seen| (seen.logs.get(&(0, key))?.last >= 20).then_some(())).await;
    let died = Instant::now();
    drop(first);
    cluster.until("the other node has it", |seen| seen.attaches.iter().any(|(node, _)| *node == 1).then_some(())).await;
    assert!(died.elapsed() < Duration::from_secs(1), "a broken connection is replaced at once");
    let log = cluster.complete_log(1, key).await;
    let expected: String = (1..=150).map(|i| format!("line {i}\n")).collect();
    assert_eq!((text(&log.out), text(&log.err)), (expected, "done\n".to_owned()));
    let seen = cluster.seen.lock();
    assert_eq!(seen.registrations.len(), 1, "the session goes on");
    let streams: Vec<_> = seen.attaches.iter().map(|(_, attach)| attach.stream).collect();
    assert!(streams.is_sorted_by(|a, b| a < b), "{streams:?}");
    drop(seen);
    drop(second);
}

#[tokio::test]
async fn a_cancellation_ends_the_whole_group() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    // Neither the shell nor its child heeds SIGTERM; the child even has a session of its own where groups are permitted.
    let key = cluster.run(script("trap '' TERM; sleep 600 & echo $!; wait; wait")).await;
    let child = printed_pid(&cluster, key).await;
    let session_id = cluster.seen.lock().registrations[0].session_id.clone();
    let cancel =
        CancelAttempt { attempt: Some(key.to_wire()), session_id, reason: "enough".into(), grace_period_ms: 50 };
    cluster.say(Kind::Cancel(cancel)).await;
    let reason = cluster.result(key).await.reason.unwrap();
    assert_eq!((reason.kind.as_str(), reason.signal, reason.message.as_str()), ("cancelled", Some(9), "enough"));
    until_gone(child).await;
}

#[tokio::test]
async fn what_a_job_leaves_behind_ends_with_it() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let key = cluster.run(script("sleep 600 & echo $!")).await;
    let reason = cluster.result(key).await.reason.unwrap();
    assert_eq!(reason.exit_code, Some(0));
    until_gone(printed_pid(&cluster, key).await).await;
}

#[tokio::test]
async fn a_timeout_is_told_as_such() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let mut job = script("trap 'echo caught; exit 3' TERM; echo begun; sleep 600 & wait");
    job.timeout_ms = 2_000;
    let key = cluster.run(job).await;
    let reason = cluster.result(key).await.reason.unwrap();
    assert_eq!((reason.kind.as_str(), reason.deadline.as_str(), reason.exit_code), ("timeout", "timeout", Some(3)));
    assert_eq!(cluster.complete_log(0, key).await.out, b"begun\ncaught\n");
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let mut nowhere = shell("true", &[]);
    nowhere.working_directory = "/does/not/exist".into();
    let mut no_directory = shell("no-such-program", &[]);
    no_directory.working_directory = "/etc/passwd/below".into();
    let mut stranger = shell("true", &[]);
    stranger.user = "nobody-of-that-name".into();
    let cases = [
        (shell("no-such-program", &[]), "not_found"),
        (shell("/etc/passwd", &[]), "not_permitted"),
        (script("#!/no/such/interpreter\n"), "not_found"),
        (nowhere, "no_directory"),
        (no_directory, "no_directory"),
        (stranger, "not_permitted"),
    ];
    for (spec, cause) in cases {
        let key = cluster.run(spec).await;
        let reason = cluster.result(key).await.reason.unwrap();
        assert_eq!((reason.kind.as_str(), reason.cause.as_str()), ("could_not_start", cause), "{}", reason.message);
        let named = cause != "no_directory" || reason.message.contains("working directory /");
        assert!(named, "{}", reason.message);
        assert!(!cluster.seen.lock().started.contains_key(&key));
    }
}

#[tokio::test]
async fn arguments_are_passed_as_given() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let key = cluster.run(shell("printf", &["%s|", "a b", "$HOME", "*", ""])).await;
    assert_eq!(cluster.complete_log(0, key).await.out, b"a b|$HOME|*||");
}

#[tokio::test]
async fn without_extensions_an_attempt_is_killed_at_its_deadline() {
    let (cluster, dir) = (Cluster::new(Manners { extends: false, ..KIND }), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let begun = Instant::now();
    let key = cluster.run_for(script("sleep 600 & echo $!; wait"), Duration::from_millis(1_500)).await;
    let child = printed_pid(&cluster, key).await;
    let reason = cluster.result(key).await.reason.unwrap();
    assert_eq!(reason.kind, "worker_lost");
    assert!(begun.elapsed() < Duration::from_secs(10));
    until_gone(child).await;
}

#[tokio::test]
async fn extensions_keep_an_attempt_alive_and_a_refusal_kills_it() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let key = cluster.run_for(script("sleep 600 & echo $!; wait"), Duration::from_secs(3)).await;
    let child = printed_pid(&cluster, key).await;
    let begun = Instant::now();
    cluster
        .until("more than a lease of life", |_| (begun.elapsed() > Duration::from_millis(4_500)).then_some(()))
        .await;
    assert!(!cluster.seen.lock().results.contains_key(&key));
    cluster.manners.lock().refuses = true;
    cluster.say(Kind::KeepAlive(KeepAlive {})).await;
    assert_eq!(cluster.result(key).await.reason.unwrap().kind, "worker_lost");
    until_gone(child).await;
}

#[tokio::test]
async fn a_released_attempt_is_killed_and_forgotten_without_a_result() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let key = cluster.run(script("sleep 600 & echo $!; wait")).await;
    let child = printed_pid(&cluster, key).await;
    cluster.say(Kind::Release(Release { attempt: Some(key.to_wire()), reason: "lost".into() })).await;
    until_gone(child).await;
    until_empty(&dir.path().join("attempts")).await;
    assert!(!cluster.seen.lock().results.contains_key(&key));
}

#[tokio::test]
async fn no_attempt_starts_twice_too_late_or_for_another_session() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::with(dir.path(), vec![node.address.clone()], 1, Duration::from_secs(60));
    let marks = dir.path().join("marks");
    let job = script(&format!("echo $$ >>{}", marks.display()));
    let key = AttemptKey { job: uuid::Uuid::now_v7(), attempt: 1, fence: 5 };
    let run = cluster.request(key, job.clone(), Duration::from_secs(60)).await;
    let mut foreign = run.clone();
    foreign.session_id = "another".into();
    foreign.attempt = Some(AttemptKey { attempt: 2, ..key }.to_wire());
    let late = AttemptKey { attempt: 3, ..key };
    let too_late = cluster.request(late, job.clone(), Duration::from_millis(1)).await;
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_millis(2) {
        tokio::task::yield_now().await;
    }
    let unknown = AttemptKey { attempt: 4, ..key };
    let mut baseless = cluster.request(unknown, job, Duration::from_secs(60)).await;
    baseless.heartbeat += 1_000;
    for request in [foreign, too_late, baseless, run.clone(), run.clone()] {
        cluster.say(Kind::RunJob(request)).await;
    }
    cluster.until("forgotten", |seen| seen.ended.contains(&key).then_some(())).await;
    cluster.say(Kind::RunJob(run)).await;
    let after = cluster.run(shell("true", &[])).await;
    cluster.until("the next job ends", |seen| seen.ended.contains(&after).then_some(())).await;
    assert_eq!(std::fs::read_to_string(&marks).unwrap().lines().count(), 1);
    let seen = cluster.seen.lock();
    assert_eq!(seen.declined.keys().copied().collect::<Vec<_>>(), [late, unknown]);
}

#[tokio::test]
async fn a_full_agent_declines() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let mut agent = Agent::with(dir.path(), vec![node.address.clone()], 1, Duration::from_millis(100));
    let running = cluster.run(script("echo; exec sleep 600")).await;
    let declined = cluster.run(shell("true", &[])).await;
    let reason = cluster.until("declined", |seen| seen.declined.get(&declined).cloned()).await;
    assert_eq!(reason, "the agent is full");
    // Asked to end, it hands back what runs and leaves.
    agent.shutdown.send_modify(|count| *count += 1);
    assert_eq!(agent.ended().await, Ok(()));
    assert_eq!(cluster.result(running).await.reason.unwrap().kind, "worker_lost");
    assert!(cluster.seen.lock().unregistered);
}

#[tokio::test]
async fn an_agent_that_ends_says_so_first_and_ends_although_nobody_answers() {
    let (cluster, dir) = (Cluster::new(Manners { silent: true, ..KIND }), Dir::new());
    let node = Node::start(&cluster);
    let mut agent = Agent::with(dir.path(), vec![node.address.clone()], 4, Duration::from_secs(7));
    let key = cluster.run(script("sleep 0.2; exit 3")).await;
    agent.shutdown.send_modify(|count| *count += 1);
    let announced = cluster.until("the announcement", |seen| seen.announced.first().cloned()).await;
    let Some(Wish::Drain(drain)) = announced.wish else { panic!("{announced:?}") };
    assert_eq!((drain.deadline_ms, drain.requeue), (7_000, false));
    assert_eq!(announced.session_id, cluster.seen.lock().registrations[0].session_id);
    assert_eq!(agent.ended().await, Ok(()));
    assert_eq!(cluster.result(key).await.reason.unwrap().exit_code, Some(3));
    assert_eq!(cluster.seen.lock().announced.len(), 1);
}

#[tokio::test]
async fn a_result_is_delivered_again_after_a_restart() {
    let (cluster, dir) = (Cluster::new(Manners { ends: false, ..KIND }), Dir::new());
    let node = Node::start(&cluster);
    let agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let key = cluster.run(script("seq 1000; exit 3")).await;
    let before = cluster.complete_log(0, key).await;
    drop(agent);
    {
        let mut seen = cluster.seen.lock();
        seen.results.clear();
        seen.logs.clear();
    }
    cluster.manners.lock().ends = true;
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let after = cluster.complete_log(0, key).await;
    assert_eq!(after.out, before.out);
    assert_eq!(cluster.result(key).await.reason.unwrap().exit_code, Some(3));
    let (adopted, phases, sessions) = {
        let seen = cluster.seen.lock();
        let last = &seen.attaches.last().unwrap().1;
        (
            seen.registrations[1].adopted.clone(),
            last.attempts.iter().map(|status| (status.phase(), status.last_sequence)).collect::<Vec<_>>(),
            seen.registrations.iter().map(|r| r.session_id.clone()).collect::<Vec<_>>(),
        )
    };
    assert_eq!(adopted, [key.to_wire()]);
    assert_eq!(phases, [(Phase::Ended, 1_000)]);
    assert_ne!(sessions[0], sessions[1]);
    until_empty(&dir.path().join("attempts")).await;
}

#[tokio::test]
async fn two_hundred_thousand_lines() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let line = "x".repeat(99);
    let begun = Instant::now();
    let key = cluster.run(shell("bash", &["-c", &format!("yes {line} | head -200000")])).await;
    let log = cluster.complete_log(0, key).await;
    println!("200,000 lines in {:?}, {} batches", begun.elapsed(), log.batches);
    assert_eq!((log.figures.lines, log.figures.bytes), (200_000, 20_000_000));
    assert!(log.batches <= 2_100, "{} messages", log.batches);
}

#[tokio::test]
async fn a_full_spool_drops_where_the_job_says_so_and_counts() {
    let (cluster, dir) = (Cluster::new(Manners { durable: false, ..KIND }), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let line = "x".repeat(9_999);
    let mut job = shell("bash", &["-c", &format!("yes {line} | head -10000")]);
    job.output_policy = OutputPolicy::Drop.into();
    let key = cluster.run(job).await;
    let figures = cluster.complete_log(0, key).await.figures;
    assert_eq!(figures.lines + figures.dropped, 10_000);
    assert!(figures.dropped > 2_000 && figures.bytes <= 66 << 20, "{figures:?}");
}
