//! Three replicas: writes and reads on each, forwarding, failover, no quorum, membership.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod nodes;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hodei_proto::v1::{RaftMessage, raft_service_client::RaftServiceClient};
use hodei_raft::{
    Config, Dialer, Handle, MembershipError, NotDone, ProposeError, ReadError,
    seam::{Clock, SystemClock},
};
use hodei_state::{
    ids::{JobId, Millis, Mono},
    outcome::Outcome,
};
use nodes::{Cluster, Flow, soon, submission, until};
use tokio::time::Instant;
use tonic::Code;

fn as_is(_: &mut Config) {}

#[tokio::test]
async fn a_single_node_takes_commands() {
    let cluster = Cluster::start(1, as_is).await;
    let reply = cluster.submit(1, 1).await;
    let view = cluster.read(1).await;
    assert!(view.position >= reply.position);
    assert!(view.state.job(JobId(1)).is_some());
    cluster.shutdown().await;
}

#[tokio::test]
async fn every_node_takes_writes_and_reads_what_was_written_anywhere() {
    let cluster = Cluster::start(3, as_is).await;
    for id in 1..=3 {
        cluster.submit(id, u128::from(id)).await;
        for reader in 1..=3 {
            let view = cluster.read(reader).await;
            assert!(view.state.job(JobId(u128::from(id))).is_some(), "written on {id}, read on {reader}");
        }
    }
    // The same again is the same job.
    let again = cluster.submit(2, 1).await;
    assert_eq!(again.outcome, Outcome::Submitted { job: JobId(1), existing: true });
    cluster.converged().await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn many_at_once_each_get_their_own_answer() {
    let cluster = Cluster::start(3, as_is).await;
    let mut asked = tokio::task::JoinSet::new();
    for job in 1..=600u128 {
        let handle = cluster.node(1 + (job % 3) as u64).clone();
        asked.spawn(async move { (job, handle.propose(submission(job, 16), soon()).await.unwrap()) });
    }
    while let Some(answered) = asked.join_next().await {
        let (job, reply) = answered.unwrap();
        assert_eq!(reply.outcome, Outcome::Submitted { job: JobId(job), existing: false });
    }
    assert_eq!(cluster.read(2).await.state.counts().pending, 600);
    cluster.converged().await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_with_the_leader() {
    let mut cluster = Cluster::start(3, as_is).await;
    let old = cluster.leader().await;
    let survivor = cluster.follower().await;
    let handle = cluster.node(survivor).clone();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writer = tokio::spawn(async move {
        let mut job = 0;
        while !*stopped.borrow() {
            job += 1;
            handle.propose(submission(job, 16), soon()).await.unwrap();
        }
        job
    });
    until("some writes", || cluster.node(survivor).view().state.counts().pending > 20).await;
    cluster.stop(old).await;
    let new = cluster.leader().await;
    assert_ne!(new, old);
    let before = cluster.node(new).view().state.counts().pending;
    until("writes under the new leader", || cluster.node(new).view().state.counts().pending > before + 20).await;
    stop.send_replace(true);
    let last = writer.await.unwrap();
    let view = cluster.read(survivor).await;
    for job in 1..=last {
        assert!(view.state.job(JobId(job)).is_some(), "job {job} was acknowledged");
    }
    // The old leader comes back and follows.
    cluster.run(old).await;
    assert!(cluster.node(old).recovered(Some(nodes::PATIENCE)).await);
    cluster.submit(old, 1_000_000).await;
    cluster.converged().await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn without_a_majority_the_answer_comes_within_the_deadline() {
    let mut cluster = Cluster::start(3, as_is).await;
    let leader = cluster.leader().await;
    for id in 1..=3 {
        if id != leader {
            cluster.stop(id).await;
        }
    }
    let handle = cluster.node(leader).clone();
    until("the leader notices", || !handle.status().quorum).await;
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(400);
    let error = handle.propose(submission(1, 16), deadline).await.unwrap_err();
    assert!(matches!(error, ProposeError::NotDone(NotDone::NoQuorum(_))), "{error:?}");
    assert!(error.to_string().starts_with("no quorum"), "{error}");
    let error = handle.read(deadline).await.unwrap_err();
    assert!(matches!(error, ReadError::NoQuorum(_)), "{error:?}");
    assert!(error.to_string().starts_with("no quorum"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    cluster.shutdown().await;
}

/// Submits one job after the other, with little time for each; gives those that certainly were not, and how many nobody
/// knows of.
async fn submit_until(over: Arc<AtomicBool>, handle: Handle, first: u128) -> (Vec<u128>, usize) {
    let (mut refused, mut unknown) = (Vec::new(), 0);
    for job in first.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        match handle.propose(submission(job, 16), Instant::now() + Duration::from_millis(300)).await {
            Ok(_) => {}
            Err(ProposeError::NotDone(_)) => refused.push(job),
            Err(ProposeError::Unknown(_)) => unknown += 1,
        }
    }
    (refused, unknown)
}

#[tokio::test]
async fn what_was_refused_when_the_majority_went_never_takes_effect() {
    let mut cluster = Cluster::start(3, as_is).await;
    let leader = cluster.leader().await;
    let handle = cluster.node(leader).clone();
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> =
        (1..=8).map(|one| tokio::spawn(submit_until(over.clone(), handle.clone(), one * 1_000_000))).collect();
    let others: Vec<_> = (1..=3).filter(|id| *id != leader).collect();
    for id in &others {
        cluster.stop(*id).await;
    }
    until("the leader notices", || !handle.status().quorum).await;
    over.store(true, Ordering::Relaxed);
    let (mut refused, mut unknown) = (Vec::new(), 0);
    for client in clients {
        let (of_one, unknown_to_one) = client.await.unwrap();
        refused.extend(of_one);
        unknown += unknown_to_one;
    }
    for id in others {
        cluster.run(id).await;
    }
    cluster.submit(cluster.leader().await, 1).await;
    let state = cluster.read(leader).await.state;
    let done: Vec<_> = refused.into_iter().filter(|job| state.job(JobId(*job)).is_some()).collect();
    assert!(done.is_empty(), "refused, and there they are: {done:?}");
    assert!(unknown > 0, "some were under way when the majority went");
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_follower_that_nobody_could_reach_comes_back_without_an_election() {
    let mut cluster = Cluster::start(3, as_is).await;
    for round in 1.. {
        let stood_still = Arc::new(AtomicBool::new(false));
        let watch = tokio::spawn(notice_stalls(stood_still.clone()));
        let (leader, deaf) = (cluster.leader().await, cluster.follower().await);
        let term = cluster.node(leader).status().term;
        cluster.stop(deaf).await;
        cluster.net.reach(deaf, false);
        cluster.run(deaf).await;
        // Several election time-outs, in which it hears nobody and asks everybody. That nothing comes of it takes time to see.
        tokio::time::sleep(Duration::from_secs(3)).await;
        cluster.net.reach(deaf, true);
        cluster.submit(leader, round).await;
        cluster.converged().await;
        let terms: Vec<_> = cluster.nodes.values().map(|node| node.handle.status().term).collect();
        watch.abort();
        if terms == [term; 3] {
            break;
        }
        // Nodes on a machine that has stood still may well elect another one.
        let excused = stood_still.load(Ordering::Relaxed) && round < 4;
        assert!(excused, "its leader had to go: {terms:?} after {term}");
    }
    cluster.shutdown().await;
}

/// Notes whether the machine, or the disk that all nodes wait for, has stood still for a good part of an election time-out.
async fn notice_stalls(stood_still: Arc<AtomicBool>) {
    let dir = tempfile::tempdir().unwrap();
    let file = Arc::new(std::fs::File::create(dir.path().join("probe")).unwrap());
    loop {
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let probe = file.clone();
        tokio::task::spawn_blocking(move || probe.sync_all()).await.unwrap().unwrap();
        if begun.elapsed() > Duration::from_millis(250) {
            stood_still.store(true, Ordering::Relaxed);
        }
    }
}

fn node_1_waits_for_answers(config: &mut Config) {
    if config.node_id == 1 {
        config.timing.election_max = Duration::from_secs(10);
    }
}

#[tokio::test]
async fn answers_to_what_was_asked_before_a_read_do_not_confirm_the_leader() {
    let cluster = Cluster::start(3, node_1_waits_for_answers).await;
    cluster.hand_over(1).await;
    let old = cluster.node(1).clone();
    cluster.converged().await;
    let last = old.status().last_log.index;

    // Both followers take an entry, and their answers are on the way.
    cluster.net.hold([2, 3].map(|to| Flow::Answers(1, to)));
    let write = tokio::spawn({
        let old = old.clone();
        async move { old.propose(submission(1, 16), soon()).await }
    });
    until("both followers have it", || [2, 3].iter().all(|id| cluster.node(*id).status().last_log.index > last)).await;

    // Nothing else passes, and one of them is elected; the one that led does not hear of that.
    let others = [Flow::Requests(1, 2), Flow::Requests(1, 3), Flow::Requests(2, 1), Flow::Requests(3, 1)];
    cluster.net.hold(others);
    let term = old.status().term;
    until("another one leads", || [2, 3].iter().any(|id| cluster.node(*id).status().term > term)).await;
    let new = cluster.leader().await;
    assert_ne!(new, 1);
    cluster.submit(new, 2).await;

    // It is read from; then come the answers, one by one: the first commits the entry, of which it tells the other follower.
    let mut read = tokio::spawn({
        let old = old.clone();
        async move { old.read(soon()).await }
    });
    let settled = || tokio::time::sleep(Duration::from_millis(200));
    settled().await;
    cluster.net.release([Flow::Answers(1, 2)]);
    until("it has committed the entry", || old.status().applied.index > last).await;
    settled().await;
    cluster.net.release([Flow::Answers(1, 3)]);
    // That nothing comes of it takes time to see.
    let early = tokio::time::timeout(Duration::from_millis(500), &mut read).await;
    assert!(
        early.is_err(),
        "read from a leader that was replaced: {:?}",
        early.map(|view| view.unwrap().unwrap().position)
    );
    assert_eq!(old.status().leader, Some(1));

    cluster.net.release(others);
    let view = read.await.unwrap().unwrap();
    assert!(view.state.job(JobId(2)).is_some(), "it was acknowledged before the read");
    write.await.unwrap().unwrap();
    cluster.converged().await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_node_without_a_leader_says_so() {
    let mut cluster = Cluster::start(3, as_is).await;
    let leader = cluster.leader().await;
    let lonely = cluster.follower().await;
    for id in [leader, 6 - leader - lonely] {
        cluster.stop(id).await;
    }
    let handle = cluster.node(lonely).clone();
    let error = handle.propose(submission(1, 16), Instant::now() + Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(error, ProposeError::NotDone(_)), "{error:?}");
    assert!(error.to_string().starts_with("no quorum"), "{error}");
    cluster.shutdown().await;
}

#[tokio::test]
async fn leadership_is_handed_over_from_any_node() {
    let cluster = Cluster::start(3, as_is).await;
    let old = cluster.leader().await;
    let to = cluster.follower().await;
    let asked = 6 - old - to;
    // On a busy machine another one may be elected instead, and says so.
    let led = loop {
        match cluster.node(asked).transfer_leader(Some(to)).await {
            Ok(led) => break led,
            Err(MembershipError::OtherLeads { leader, .. }) => assert_ne!(leader, to),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(led.leader, to);
    cluster.submit(old, 1).await;
    // And to nobody in particular, on the leader itself.
    let from = cluster.leader().await;
    let led = cluster.node(from).transfer_leader(None).await.unwrap();
    assert_ne!(led.leader, from);
    until("it is known everywhere", || cluster.node(asked).leader() == Some(led.leader)).await;
    cluster.submit(to, 2).await;
    cluster.converged().await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn leadership_is_not_handed_over_to_whom_nobody_hears() {
    let mut cluster = Cluster::start(3, as_is).await;
    let (old, dead) = (cluster.leader().await, cluster.follower().await);
    cluster.stop(dead).await;
    let asked = 6 - old - dead;
    let heard = || {
        let peers = cluster.nodes.values().flat_map(|node| node.handle.status().peers);
        peers.into_iter().find(|peer| peer.node == dead).and_then(|peer| peer.heard)
    };
    until("it is silent", || heard().is_some_and(|silent| silent > Duration::from_secs(2))).await;
    for node in [old, asked] {
        // What changes leaders meanwhile is a busy machine, which does so seldom: then it is asked again.
        let mut tries = 0;
        loop {
            tries += 1;
            let term = cluster.node(node).status().term;
            let refusal = cluster.node(node).transfer_leader(Some(dead)).await.unwrap_err().to_string();
            if cluster.node(node).status().term == term {
                assert!(refusal.starts_with(&format!("node {dead} has not answered")), "{refusal}");
                break;
            }
            assert!(tries < 5, "each time leaders changed");
        }
    }
    let from = cluster.leader().await;
    let led = cluster.node(from).transfer_leader(None).await.unwrap();
    assert_eq!(led.leader, old + asked - from);
    cluster.submit(old, 1).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn what_was_decided_in_one_leadership_is_not_done_in_another() {
    let cluster = Cluster::start(3, as_is).await;
    let old = cluster.leader().await;
    let term = cluster.node(old).status().term;
    let stale = term - 1;
    let command = submission(1, 16).command;
    let error = cluster.node(old).propose_in_term(stale, vec![command.clone()], soon()).await.unwrap_err();
    assert_eq!(error, ProposeError::NotDone(NotDone::LeadershipOver { term: stale }));
    let follower = cluster.follower().await;
    let error = cluster.node(follower).propose_in_term(term, vec![command], soon()).await.unwrap_err();
    assert_eq!(error, ProposeError::NotDone(NotDone::LeadershipOver { term }));
    assert_eq!(cluster.read(follower).await.state.counts().pending, 0);
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_learner_becomes_a_voter_and_is_removed() {
    let mut cluster = Cluster::start(3, as_is).await;
    cluster.run(4).await;
    cluster.led(async |leader| leader.add_learner(4).await).await;
    cluster.caught_up(4).await;
    assert_eq!(cluster.node(cluster.leader().await).status().learners, vec![4]);
    cluster.submit(4, 1).await;
    cluster.led(async |leader| leader.promote(4).await).await;
    assert_eq!(cluster.node(cluster.leader().await).status().voters, vec![1, 2, 3, 4]);
    cluster.led(async |leader| leader.remove_member(4).await).await;
    assert_eq!(cluster.node(cluster.leader().await).status().voters, vec![1, 2, 3]);
    cluster.stop(4).await;
    // The leader removes itself by handing over first.
    let leader = cluster.leader().await;
    cluster.node(leader).remove_member(leader).await.unwrap_err();
    let new = cluster.leader().await;
    assert_ne!(new, leader);
    cluster.node(new).remove_member(leader).await.unwrap();
    assert_eq!(cluster.node(new).status().voters.len(), 2);
    cluster.submit(new, 2).await;
    cluster.shutdown().await;
}

/// A change has two steps, and a leader may die between them: the next one must be able to take the second.
#[tokio::test]
async fn a_change_that_is_half_done_is_finished_by_the_next_leader() {
    let mut cluster = Cluster::start(3, as_is).await;
    cluster.run(4).await;
    cluster.led(async |leader| leader.add_learner(4).await).await;
    cluster.caught_up(4).await;
    let old = cluster.leader().await;
    let handle = cluster.node(old).clone();
    let begun = tokio::spawn(async move { handle.promote(4).await });
    // The first step takes effect where it is appended; the second waits until a majority has it.
    while !cluster.node(old).status().voters.contains(&4) {
        assert!(!begun.is_finished(), "it was not begun");
        tokio::task::yield_now().await;
    }
    begun.abort();
    cluster.stop(old).await;
    let new = cluster.leader().await;
    until("the first step is committed", || cluster.node(new).status().half_changed).await;
    cluster.node(new).finish_change().await.unwrap();
    let status = cluster.node(new).status();
    assert!(!status.half_changed && status.voters == [1, 2, 3, 4], "{status:?}");
    until("all of it", || !cluster.node(new).status().changing).await;
    cluster.node(new).remove_member(old).await.unwrap();
    cluster.submit(new, 1).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn stamps_go_on_under_a_new_leader() {
    let cluster = Cluster::start(3, as_is).await;
    cluster.submit(1, 1).await;
    let before = cluster.read(1).await.state.stamp();
    assert!(before.0 > 0);
    cluster.node(1).transfer_leader(None).await.unwrap();
    cluster.submit(1, 2).await;
    assert!(cluster.read(1).await.state.stamp() >= before);
    cluster.shutdown().await;
}

const HOUR_MS: u64 = 3_600_000;

/// The machine's clocks, but for a wall clock that is set wrong.
struct Wrong {
    right: SystemClock,
    by_ms: i64,
}

impl Clock for Wrong {
    fn mono(&self) -> Mono {
        self.right.mono()
    }

    fn wall(&self) -> Millis {
        Millis(self.right.wall().0.saturating_add_signed(self.by_ms))
    }
}

fn set_clock_of_2(config: &mut Config, by_ms: i64) {
    if config.node_id == 2 {
        config.clock = Arc::new(Wrong { right: SystemClock::default(), by_ms });
    }
}

async fn stamp_of(cluster: &Cluster, job: u128) -> Millis {
    cluster.submit(2, job).await;
    cluster.read(2).await.state.stamp()
}

#[tokio::test]
async fn a_leader_with_a_wrong_clock_moves_no_time() {
    let ahead: fn(&mut Config) = |config| set_clock_of_2(config, HOUR_MS.cast_signed());
    let behind: fn(&mut Config) = |config| set_clock_of_2(config, -HOUR_MS.cast_signed());
    for wrong in [ahead, behind] {
        let cluster = Cluster::start(3, wrong).await;
        let before = stamp_of(&cluster, 1).await;
        cluster.hand_over(2).await;
        let after = stamp_of(&cluster, 2).await;
        assert!(before <= after && after < before.plus(HOUR_MS / 2), "from {before:?} to {after:?}");
        // Nor does time stand still.
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(stamp_of(&cluster, 3).await > after);
        cluster.shutdown().await;
    }
}

#[tokio::test]
async fn what_is_for_another_cluster_or_node_is_refused() {
    let cluster = Cluster::start(1, as_is).await;
    let mut client = RaftServiceClient::new(cluster.net.channel(1).unwrap());
    let message = |cluster_id: String, to| RaftMessage { cluster_id, from: 9, to, payload: Bytes::new() };
    let foreign = client.probe(message("another".to_owned(), 1)).await.unwrap_err();
    assert_eq!(foreign.code(), Code::FailedPrecondition, "{foreign:?}");
    let misdirected = client.probe(message(nodes::CLUSTER.to_string(), 2)).await.unwrap_err();
    assert_eq!(misdirected.code(), Code::FailedPrecondition, "{misdirected:?}");
    let malformed = client.probe(message(nodes::CLUSTER.to_string(), 1)).await.unwrap_err();
    assert_eq!(malformed.code(), Code::InvalidArgument, "{malformed:?}");
    let stream = futures::stream::iter([message("another".to_owned(), 1)]);
    let foreign = client.append(stream).await.unwrap_err();
    assert_eq!(foreign.code(), Code::FailedPrecondition, "{foreign:?}");
    cluster.shutdown().await;
}
