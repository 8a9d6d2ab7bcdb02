//! Jobs outlive their agent, and never their lease: agents and watchdogs that die, stop and come back, against fake nodes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::{
    fs,
    time::{Duration, Instant},
};

use fake::{
    Agent, Cluster, Dir, KIND, Manners, Node, parent, printed_pid, script, signal, started, text, until_empty,
    until_gone, until_there,
};
use hodei_agent::executor::cgroup::CgroupRoot;
use hodei_proto::v1::{CancelAttempt, KeepAlive, Release, SecretValue, node_message::Kind};
use nix::sys::signal::Signal;

#[tokio::test]
async fn a_job_goes_on_under_the_next_agent_and_not_a_line_is_lost_or_doubled() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let mut agent = Some(Agent::start(dir.path(), vec![node.address.clone()]));
    // Lines in pieces, on both streams, as fast as they are taken; the process is the same to the end.
    let job =
        "for i in $(seq 20000); do printf 'line '; echo $i; [ $((i % 10)) != 0 ] || echo err $i >&2; done; echo $$";
    let key = cluster.run(script(job)).await;
    let pid = started(&cluster, key).await;
    for deaths in 1..=4 {
        let enough = |seen: &fake::Seen| (seen.logs.get(&(0, key))?.last >= deaths * 2_000).then_some(());
        cluster.until("some output", enough).await;
        drop(agent.take());
        agent = Some(Agent::start(dir.path(), vec![node.address.clone()]));
    }
    let log = cluster.complete_log(0, key).await;
    let expected: String = (1..=20_000).map(|i| format!("line {i}\n")).collect();
    assert_eq!(text(&log.out), format!("{expected}{pid}\n"));
    assert_eq!(text(&log.err), (1..=2_000).map(|i| format!("err {}\n", i * 10)).collect::<String>());
    assert_eq!((log.figures.lines, log.figures.dropped, log.resumed), (22_001, 0, None));
    assert_eq!(cluster.result(key).await.reason.unwrap().exit_code, Some(0));
    let adopted: Vec<_> = cluster.seen.lock().registrations.iter().map(|r| r.adopted.clone()).collect();
    assert_eq!(adopted[0], []);
    assert!(adopted[1..].iter().all(|adopted| *adopted == [key.to_wire()]), "{adopted:?}");
    until_empty(&dir.path().join("attempts")).await;
    until_empty(&dir.path().join("work")).await;
}

/// Nobody tells the next agent what the secret is.
#[tokio::test]
async fn a_secret_is_masked_by_the_next_agent_too_and_where_the_last_one_died_in_the_middle_of_it() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let gate = dir.path().join("gate");
    let job = format!(
        "echo \"first $S.\"; echo \"on stderr $S\" >&2; printf 'cut here: %s' \"${{S%zanzibar}}\"; echo half >&2; \
         while [ ! -e {} ]; do sleep 0.01; done; echo \"${{S#xylophone-}}, then $S\"; printf 'end %s' \"$S\"",
        gate.display()
    );
    let agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let secret = SecretValue { name: "s".into(), env: "S".into(), value: "xylophone-zanzibar".into() };
    let key = cluster.run_with(script(&job), vec![secret]).await;
    let half = |seen: &fake::Seen| text(&seen.logs.get(&(0, key))?.err).contains("half").then_some(());
    cluster.until("half of it", half).await;
    drop(agent);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    cluster.until("adopted", |seen| (seen.registrations.get(1)?.adopted == [key.to_wire()]).then_some(())).await;
    fs::write(gate, "").unwrap();
    let log = cluster.complete_log(0, key).await;
    let stars = "*".repeat("xylophone-zanzibar".len());
    assert_eq!(text(&log.out), format!("first {stars}.\ncut here: {stars}, then {stars}\nend {stars}"));
    assert_eq!(text(&log.err), format!("on stderr {stars}\nhalf\n"));
}

#[tokio::test]
async fn a_job_that_ends_without_an_agent_is_reported_by_the_next_one_and_not_run_again() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let gate = dir.path().join("gate");
    let job = format!(
        "echo begun; echo $$ >>{0}.runs; while [ ! -e {0} ]; do sleep 0.01; done; seq 5000; printf end; exit 7",
        gate.display()
    );
    let key = cluster.run(script(&job)).await;
    let watchdog = parent(started(&cluster, key).await);
    cluster.until("its line", |seen| Some(seen.logs.get(&(0, key))?.last)).await;
    drop(agent);
    fs::write(&gate, "").unwrap();
    until_gone(watchdog).await;
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let log = cluster.complete_log(0, key).await;
    let expected: String = (1..=5_000).map(|i| format!("{i}\n")).collect();
    assert_eq!(text(&log.out), format!("begun\n{expected}end"));
    let reason = cluster.result(key).await.reason.unwrap();
    assert_eq!((reason.kind.as_str(), reason.exit_code), ("exited", Some(7)));
    assert_eq!(fs::read_to_string(gate.with_extension("runs")).unwrap().lines().count(), 1);
    until_empty(&dir.path().join("attempts")).await;
}

#[tokio::test]
async fn without_an_agent_a_job_and_all_that_it_made_end_at_the_deadline() {
    let (cluster, dir) = (Cluster::new(Manners { extends: false, ..KIND }), Dir::new());
    let node = Node::start(&cluster);
    let agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let begun = Instant::now();
    let job = "trap '' TERM HUP; (setsid setsid sh -c 'echo $$; exec sleep 600' &); sleep 600 & wait; wait";
    let key = cluster.run_for(script(job), Duration::from_secs(3)).await;
    let main = started(&cluster, key).await;
    let (watchdog, child) = (parent(main), printed_pid(&cluster, key).await);
    drop(agent);
    until_gone(main).await;
    let lived = begun.elapsed();
    until_gone(child).await;
    until_gone(watchdog).await;
    assert!(lived > Duration::from_millis(1_500) && lived < Duration::from_secs(6), "{lived:?}");
    // What is told of it is the truth.
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let reason = cluster.result(key).await.reason.unwrap();
    assert_eq!((reason.kind.as_str(), reason.message.as_str()), ("worker_lost", "the lease was lost"));
}

#[tokio::test]
async fn a_timeout_holds_without_an_agent() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let mut job = script("set +e; trap 'echo caught' TERM; echo begun; while :; do sleep 0.05; done");
    (job.timeout_ms, job.grace_period_ms) = (2_000, 2_000);
    let key = cluster.run(job).await;
    let watchdog = parent(started(&cluster, key).await);
    drop(agent);
    until_gone(watchdog).await;
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let reason = cluster.result(key).await.reason.unwrap();
    assert_eq!((reason.kind.as_str(), reason.deadline.as_str(), reason.signal), ("timeout", "timeout", Some(9)));
    assert_eq!(text(&cluster.complete_log(0, key).await.out), "begun\ncaught\n");
}

#[tokio::test]
async fn when_its_watchdog_is_killed_the_whole_job_ends_and_the_agent_says_so() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let key = cluster.run(script("(setsid sleep 600 & echo $!); sleep 600")).await;
    let main = started(&cluster, key).await;
    let child = printed_pid(&cluster, key).await;
    signal(parent(main), Signal::SIGKILL);
    until_gone(main).await;
    until_gone(child).await;
    let reason = cluster.result(key).await.reason.unwrap();
    assert_eq!(reason.kind, "worker_lost");
    assert!(reason.message.contains("watchdog died"), "{}", reason.message);
    assert_eq!(text(&cluster.complete_log(0, key).await.out), format!("{child}\n"));
    until_empty(&dir.path().join("attempts")).await;
}

#[tokio::test]
async fn what_agent_and_watchdog_have_left_is_killed_by_the_next_agent_and_reported_dead() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let key = cluster.run(script("trap '' PIPE; (setsid sleep 600 & echo $!); sleep 600")).await;
    let main = started(&cluster, key).await;
    let (watchdog, child) = (parent(main), printed_pid(&cluster, key).await);
    drop(agent);
    signal(watchdog, Signal::SIGKILL);
    until_gone(main).await;
    cluster.seen.lock().logs.clear();
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    until_gone(child).await;
    let dead = cluster.until("a second session", |seen| Some(seen.registrations.get(1)?.dead.clone())).await;
    assert_eq!(dead, [key.to_wire()]);
    let line = cluster.until("its line", |seen| Some(seen.logs.get(&(0, key))?.out.clone())).await;
    assert_eq!(text(&line), format!("{child}\n"));
    // No more time is asked for.
    let beats = cluster.until("a heartbeat", |seen| Some(seen.heartbeats.last()?.1.clone())).await;
    assert_eq!(beats, []);
    cluster.say(Kind::Release(Release { attempt: Some(key.to_wire()), reason: "lost".into() })).await;
    until_empty(&dir.path().join("attempts")).await;
}

#[tokio::test]
async fn a_watchdog_that_is_stopped_protects_nothing() {
    if CgroupRoot::detect().is_none() {
        return eprintln!("skipped: control groups are not permitted here");
    }
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let agent = Agent::start(dir.path(), vec![node.address.clone()]);
    // The agent kills past it.
    let refused = cluster.run(script("sleep 600")).await;
    let main = started(&cluster, refused).await;
    let watchdog = parent(main);
    signal(watchdog, Signal::SIGSTOP);
    cluster.manners.lock().refuses = true;
    cluster.say(Kind::KeepAlive(KeepAlive {})).await;
    until_gone(main).await;
    signal(watchdog, Signal::SIGCONT);
    assert_eq!(cluster.result(refused).await.reason.unwrap().kind, "worker_lost");
    // The next agent kills it as well.
    cluster.manners.lock().refuses = false;
    let key = cluster.run(script("sleep 600")).await;
    let main = started(&cluster, key).await;
    let watchdog = parent(main);
    signal(watchdog, Signal::SIGSTOP);
    drop(agent);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    until_gone(watchdog).await;
    until_gone(main).await;
    let dead = cluster.until("a second session", |seen| Some(seen.registrations.get(1)?.dead.clone())).await;
    assert_eq!(dead, [key.to_wire()]);
}

#[tokio::test]
async fn a_job_with_a_short_lease_does_not_wait_for_watchdogs_that_are_stopped() {
    if CgroupRoot::detect().is_none() {
        return eprintln!("skipped: control groups are not permitted here");
    }
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let lease = Duration::from_secs(5);
    let healthy = cluster.run_for(script("echo begun; sleep 600"), lease).await;
    let healthy_pid = started(&cluster, healthy).await;
    let mut stopped = Vec::new();
    for _ in 0..3 {
        let key = cluster.run(script("sleep 600")).await;
        stopped.push((key, started(&cluster, key).await));
    }
    // Of the first, the guardian does not see to the end either.
    let guardian = parent(parent(stopped[0].1));
    signal(guardian, Signal::SIGSTOP);
    stopped.iter().for_each(|(_, pid)| signal(parent(*pid), Signal::SIGSTOP));
    drop(agent);
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);

    let next = cluster.until("a second session", |seen| seen.registrations.get(1).cloned()).await;
    assert_eq!(next.adopted, [healthy.to_wire()]);
    let mut dead = next.dead;
    let mut expected: Vec<_> = stopped.iter().map(|(key, _)| key.to_wire()).collect();
    dead.sort_by_key(|attempt| attempt.job_id.clone());
    expected.sort_by_key(|attempt| attempt.job_id.clone());
    assert_eq!(dead, expected, "told only because they were killed and seen to be gone");
    for (_, pid) in stopped {
        until_gone(pid).await;
    }
    signal(guardian, Signal::SIGCONT);
    // It outlives the lease that it was found with: it has been extended.
    let begun = Instant::now();
    let beats = |seen: &fake::Seen| (seen.heartbeats.last()?.1 == [healthy] && begun.elapsed() > lease).then_some(());
    cluster.until("heartbeats beyond its lease", beats).await;
    assert!(fs::exists(format!("/proc/{healthy_pid}")).unwrap() && cluster.seen.lock().results.is_empty());
    signal(parent(healthy_pid), Signal::SIGKILL);
}

#[tokio::test]
async fn a_cancellation_goes_on_without_the_agent_that_passed_it_on() {
    let (cluster, dir) = (Cluster::new(KIND), Dir::new());
    let node = Node::start(&cluster);
    let agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let noticed = dir.path().join("noticed");
    let job = format!("set +e; trap 'touch {}' TERM; echo begun; while :; do sleep 0.05; done", noticed.display());
    let key = cluster.run(script(&job)).await;
    let watchdog = parent(started(&cluster, key).await);
    cluster.until("its line", |seen| Some(seen.logs.get(&(0, key))?.last)).await;
    let session_id = cluster.seen.lock().registrations[0].session_id.clone();
    let attempt = Some(key.to_wire());
    let cancel = CancelAttempt { attempt, session_id, reason: "enough".into(), grace_period_ms: 2_000 };
    cluster.say(Kind::Cancel(cancel)).await;
    until_there(&noticed).await;
    drop(agent);
    until_gone(watchdog).await;
    let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
    let reason = cluster.result(key).await.reason.unwrap();
    assert_eq!((reason.kind.as_str(), reason.signal, reason.message.as_str()), ("cancelled", Some(9), "enough"));
}

#[tokio::test]
async fn a_result_that_is_not_acknowledged_to_the_watchdog_is_not_lost_with_the_agent() {
    for round in 0..5 {
        let (cluster, dir) = (Cluster::new(Manners { ends: false, ..KIND }), Dir::new());
        let node = Node::start(&cluster);
        // Dies at about the time at which the job ends.
        let agent = Agent::start(dir.path(), vec![node.address.clone()]);
        let key = cluster.run(script("sleep 0.05; echo done; exit 4")).await;
        started(&cluster, key).await;
        tokio::time::sleep(Duration::from_millis(40 + round * 6)).await;
        drop(agent);
        let _agent = Agent::start(dir.path(), vec![node.address.clone()]);
        let reason = cluster.result(key).await.reason.unwrap();
        assert_eq!((reason.kind.as_str(), reason.exit_code), ("exited", Some(4)), "round {round}");
        assert_eq!(text(&cluster.complete_log(0, key).await.out), "done\n");
    }
}
