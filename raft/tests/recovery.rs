//! What a replica finds again on its disk: state, payloads, snapshots; and what it does when some of it is damaged.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod nodes;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use hodei_damage::copy_dir;
use hodei_proto::v1::{RaftMessage, raft_service_client::RaftServiceClient};
use hodei_raft::{
    Config, Dialer as _, Handle, StartError,
    codec::{self, LogIdV1, StoredMembershipV1, VoteV1},
    network::wire::{SnapshotIdV1, SnapshotPartV1},
    start,
};
use hodei_state::{
    RowKey, State,
    command::{Command, Envelope},
    ids::JobId,
};
use nodes::{ADMIN, CLUSTER, Cluster, PATIENCE, execution, soon, submission, until};

fn as_is(_: &mut Config) {}

/// Snapshots after a few kilobytes, hardly any log behind them.
fn small(config: &mut Config) {
    config.storage.snapshot_log_bytes = 8 << 10;
    config.storage.keep_entries = 4;
    config.storage.purge_batch = 1;
    config.storage.lag_entries = 8;
}

async fn stored(handle: &Handle) {
    until("everything is written behind", || {
        let status = handle.status();
        status.stored_index == status.applied.index
    })
    .await;
}

async fn restart(cluster: &mut Cluster, id: u64) {
    cluster.run(id).await;
    assert!(cluster.node(id).recovered(Some(PATIENCE)).await);
}

/// Submits jobs of `bytes` until node 1 has a snapshot and the log is purged behind it.
async fn fill(cluster: &Cluster, first: u128, bytes: usize) -> u128 {
    let node = cluster.node(1);
    let before = node.status();
    let mut job = first;
    loop {
        cluster.propose(1, submission(job, bytes)).await;
        let status = node.status();
        if status.snapshot_index > before.snapshot_index && status.purged_index > before.purged_index {
            return job;
        }
        job += 1;
        assert!(job < first + 10_000, "no snapshot was taken");
    }
}

#[tokio::test]
async fn a_restart_brings_the_same_state_back() {
    let mut cluster = Cluster::start(3, as_is).await;
    for job in 1..=50 {
        cluster.submit(1 + (job % 3) as u64, job).await;
    }
    let before = cluster.converged().await;
    for id in 1..=3 {
        stored(cluster.node(id)).await;
        cluster.stop(id).await;
    }
    for id in 1..=3 {
        cluster.run(id).await;
        let status = cluster.node(id).status();
        assert_eq!((status.applied, status.hash), (before.applied, before.hash), "node {id} read its store");
    }
    for id in 1..=3 {
        assert!(cluster.node(id).recovered(Some(PATIENCE)).await);
    }
    cluster.submit(2, 1000).await;
    assert_eq!(cluster.read(3).await.state.counts().pending, 51);
    cluster.converged().await;
    cluster.shutdown().await;
}

fn flip_bytes(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let len = bytes.len();
    for at in (0..len).step_by(64) {
        bytes[at] ^= 0x10;
    }
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_damaged_store_is_thrown_away_and_rebuilt_from_the_log() {
    let mut cluster = Cluster::start(1, as_is).await;
    for job in 1..=20 {
        cluster.submit(1, job).await;
    }
    stored(cluster.node(1)).await;
    let hash = cluster.converged().await.hash;
    cluster.stop(1).await;
    let db = cluster.dir_of(1).join("db");
    flip_bytes(&db.join("db"));
    restart(&mut cluster, 1).await;
    assert_eq!(cluster.converged().await.hash, hash);
    stored(cluster.node(1)).await;

    cluster.stop(1).await;
    fs::remove_dir_all(&db).unwrap();
    restart(&mut cluster, 1).await;
    assert_eq!(cluster.converged().await.hash, hash);
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_store_that_the_log_does_not_know_is_thrown_away() {
    let mut cluster = Cluster::start(1, as_is).await;
    cluster.submit(1, 1).await;
    cluster.stop(1).await;
    let (wal, old) = (cluster.dir_of(1).join("wal"), cluster.dir_of(1).join("wal.old"));
    copy_dir(&wal, &old);
    restart(&mut cluster, 1).await;
    cluster.submit(1, 2).await;
    cluster.stop(1).await;
    // The store is ahead of the log now: what it says was never committed in this history.
    fs::remove_dir_all(&wal).unwrap();
    fs::rename(&old, &wal).unwrap();
    restart(&mut cluster, 1).await;
    let view = cluster.read(1).await;
    assert!(view.state.job(JobId(1)).is_some());
    assert!(view.state.job(JobId(2)).is_none());
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_large_body_becomes_a_payload_file() {
    let mut cluster = Cluster::start(3, as_is).await;
    cluster.propose(2, submission(1, 5000)).await;
    for id in 1..=3 {
        let view = cluster.read(id).await;
        let spec = view.state.spec(JobId(1)).unwrap();
        assert_eq!(cluster.node(id).execution(&spec).await.unwrap(), execution(1, 5000));
        stored(cluster.node(id)).await;
        assert_eq!(fs::read_dir(cluster.dir_of(id).join("payloads")).unwrap().count(), 1);
    }
    cluster.stop(3).await;
    restart(&mut cluster, 3).await;
    let view = cluster.read(3).await;
    let spec = view.state.spec(JobId(1)).unwrap();
    assert_eq!(cluster.node(3).execution(&spec).await.unwrap(), execution(1, 5000));
    cluster.shutdown().await;
}

#[tokio::test]
async fn payloads_are_collected_once_nothing_refers_to_them() {
    let cluster = Cluster::start(1, small).await;
    let payloads = || fs::read_dir(cluster.dir_of(1).join("payloads")).unwrap().count();
    cluster.propose(1, submission(1, 5000)).await;
    cluster.propose(1, submission(2, 6000)).await;
    stored(cluster.node(1)).await;
    assert_eq!(payloads(), 2);
    let remove =
        [Command::CancelJob { job: JobId(1), reason: String::new() }, Command::RemoveJobs { jobs: vec![JobId(1)] }];
    let term = cluster.node(1).status().term;
    for command in remove {
        let caller = if matches!(command, Command::CancelJob { .. }) { Some(ADMIN) } else { None };
        match caller {
            Some(caller) => drop(cluster.propose(1, Envelope { caller, command }).await),
            None => drop(cluster.node(1).propose_in_term(term, vec![command], soon()).await.unwrap()),
        }
    }
    assert!(cluster.read(1).await.state.job(JobId(1)).is_none());
    // By the next snapshot but one: the one under way may still refer to it.
    let mut job = 100;
    while payloads() > 1 {
        job = fill(&cluster, job + 1, 100).await;
    }
    let view = cluster.read(1).await;
    let spec = view.state.spec(JobId(2)).unwrap();
    assert_eq!(cluster.node(1).execution(&spec).await.unwrap(), execution(2, 6000));
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_replica_is_rebuilt_from_snapshot_and_log() {
    let mut cluster = Cluster::start(1, small).await;
    cluster.propose(1, submission(1, 5000)).await;
    let last = fill(&cluster, 100, 200).await;
    cluster.submit(1, last + 1).await;
    let hash = cluster.converged().await.hash;
    cluster.stop(1).await;
    fs::remove_dir_all(cluster.dir_of(1).join("db")).unwrap();
    restart(&mut cluster, 1).await;
    let status = cluster.converged().await;
    assert_eq!(status.hash, hash);
    cluster.shutdown().await;
}

#[tokio::test]
async fn snapshots_go_on_after_bursts_that_end_at_once() {
    let owned = Cluster::start(1, small).await;
    let cluster = &owned;
    // What is applied while a snapshot is begun asks for another one, of which there is nothing new when all is quiet.
    for burst in 0..80 {
        let jobs = (1..=10).map(|job| async move {
            tokio::time::sleep(Duration::from_millis(job)).await;
            cluster.propose(1, submission(burst * 100 + u128::from(job), 2_000)).await;
        });
        futures::future::join_all(jobs).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fill(cluster, 10_000, 200).await;
    owned.shutdown().await;
}

#[tokio::test]
async fn a_replica_that_cannot_be_rebuilt_says_so_and_destroys_nothing() {
    let mut cluster = Cluster::start(1, small).await;
    fill(&cluster, 100, 200).await;
    cluster.stop(1).await;
    let dir = cluster.dir_of(1);
    fs::remove_dir_all(dir.join("db")).unwrap();
    let list = || fs::read_dir(dir.join("snapshots")).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    // The next one may be under construction when the node stops; once it is whole, the one before is removed.
    until(
        "one whole snapshot is left",
        || matches!(&list()[..], [one] if one.extension().is_none_or(|it| it != "tmp")),
    )
    .await;
    let snapshots = list();
    flip_bytes(&snapshots[0]);
    let mut config = Config::new(1, CLUSTER, dir.clone());
    small(&mut config);
    let error = start(config, cluster.net.clone()).await.unwrap_err();
    assert!(matches!(error, StartError::Unrebuildable(_)), "{error}");
    assert_eq!(error.code(), "HODEI-STATE-002");
    assert!(snapshots[0].exists());
}

#[tokio::test]
async fn a_node_that_lags_behind_the_log_is_sent_a_snapshot() {
    let mut cluster = Cluster::start(3, small).await;
    cluster.submit(1, 1).await;
    let behind = if cluster.leader().await == 3 { 2 } else { 3 };
    cluster.stop(behind).await;
    cluster.propose(1, submission(2, 5000)).await;
    let first = fill(&cluster, 100, 200).await;
    let last = fill(&cluster, first + 1, 200).await;
    let mut applied = 0;
    cluster.run(behind).await;
    let mut woken = cluster.node(behind).subscribe(hodei_raft::Topic::Job(JobId(last)));
    until("the node has caught up", || {
        applied = cluster.node(behind).status().applied.index;
        cluster.node(behind).view().state.job(JobId(last)).is_some()
    })
    .await;
    assert!(cluster.node(behind).status().snapshot_index > 0, "by a snapshot");
    tokio::time::timeout(PATIENCE, woken.changed()).await.unwrap().unwrap();
    let view = cluster.read(behind).await;
    let spec = view.state.spec(JobId(2)).unwrap();
    assert_eq!(cluster.node(behind).execution(&spec).await.unwrap(), execution(2, 5000), "the payload came with it");
    cluster.submit(behind, 1_000_000).await;
    cluster.converged().await;
    // What was installed survives a restart, with or without the store.
    cluster.stop(behind).await;
    fs::remove_dir_all(cluster.dir_of(behind).join("db")).unwrap();
    restart(&mut cluster, behind).await;
    cluster.converged().await;
    cluster.shutdown().await;
}

/// The newest snapshot under a node's directory; it may be replaced while it is looked for.
fn newest_snapshot(dir: &Path) -> (PathBuf, Vec<u8>) {
    loop {
        let files = fs::read_dir(dir.join("snapshots")).unwrap().map(|entry| entry.unwrap().path());
        let newest = files.filter(|path| path.extension().is_some_and(|extension| extension == "snap")).max().unwrap();
        if let Ok(bytes) = fs::read(&newest) {
            return (newest, bytes);
        }
    }
}

#[tokio::test]
async fn an_interrupted_transfer_goes_on_and_a_damaged_one_begins_anew() {
    for damaged in [false, true] {
        let mut cluster = Cluster::start(3, small).await;
        let leader = cluster.leader().await;
        let behind = if leader == 3 { 2 } else { 3 };
        cluster.stop(behind).await;
        let first = fill(&cluster, 100, 200).await;
        let last = fill(&cluster, first + 1, 200).await;
        // What an interrupted transfer of the leader's snapshot leaves behind.
        let leader = cluster.leader().await;
        let (snapshot, bytes) = newest_snapshot(&cluster.dir_of(leader));
        let tail = crc32c::crc32c(&bytes[bytes.len().saturating_sub(4096)..]);
        let stem = snapshot.file_stem().unwrap().to_str().unwrap();
        let partial = format!("{stem}-{}-{tail:08x}.partial", bytes.len());
        let partial = cluster.dir_of(behind).join("snapshots").join(partial);
        let mut half = bytes[..bytes.len() / 2].to_vec();
        if damaged {
            half[100] ^= 1;
        }
        fs::File::create(&partial).unwrap().write_all(&half).unwrap();
        cluster.run(behind).await;
        until("the node has caught up", || cluster.node(behind).view().state.job(JobId(last)).is_some()).await;
        cluster.converged().await;
        assert!(!partial.exists());
        cluster.shutdown().await;
    }
}

/// A payload may be collected after the sender has asked what is lacking, and was told that this one is not.
#[tokio::test]
async fn a_snapshot_whose_payload_is_gone_is_refused_and_sent_again() {
    let mut cluster = Cluster::start(3, small).await;
    let leader = cluster.leader().await;
    let behind = if leader == 3 { 2 } else { 3 };
    cluster.stop(behind).await;
    cluster.propose(leader, submission(1, 64 << 10)).await;
    let last = fill(&cluster, 100, 400).await;
    let (_, bytes) = newest_snapshot(&cluster.dir_of(1));
    // Nobody else sends it one before.
    cluster.net.reach(behind, false);
    cluster.run(behind).await;
    cluster.net.reach(behind, true);
    let mut client = RaftServiceClient::new(cluster.net.channel(behind).unwrap());
    cluster.net.reach(behind, false);
    let tail = crc32c::crc32c(&bytes[bytes.len().saturating_sub(4096)..]);
    let id = SnapshotIdV1 { last: None, len: bytes.len() as u64, tail };
    let vote = VoteV1 { term: 1_000, node: leader, committed: true };
    let begin = SnapshotPartV1::Begin { vote, id, membership: StoredMembershipV1::default() };
    let file = SnapshotPartV1::File { offset: 0, crc: crc32c::crc32c(&bytes), bytes: bytes.into() };
    let parts = [begin, file].map(|part| RaftMessage {
        cluster_id: CLUSTER.to_string(),
        from: leader,
        to: behind,
        payload: codec::encode(&part).into(),
    });
    let refused = client.snapshot(futures::stream::iter(parts)).await.unwrap_err();
    assert!(refused.message().contains("is gone"), "{refused:?}");
    cluster.net.reach(behind, true);
    until("the node has caught up", || cluster.node(behind).view().state.job(JobId(last)).is_some()).await;
    cluster.converged().await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_single_node_is_ready_soon_after_a_restart() {
    let mut cluster = Cluster::start(1, as_is).await;
    cluster.submit(1, 1).await;
    cluster.stop(1).await;
    let begun = std::time::Instant::now();
    restart(&mut cluster, 1).await;
    cluster.submit(1, 2).await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    cluster.shutdown().await;
}

/// As the store's meta row is.
#[derive(serde::Serialize, serde::Deserialize)]
struct Meta {
    applied: Option<LogIdV1>,
    membership: StoredMembershipV1,
    hash: u128,
    log_bytes: u64,
}

fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), value);
    [&[1], &crc.to_le_bytes()[..], value].concat()
}

/// The rows of a stopped node's store: pages of `length u8 | key | length u16 | value`.
fn rows_of(db: &sled::Db) -> Vec<(RowKey, Vec<u8>)> {
    let mut rows = Vec::new();
    for page in db.scan_prefix(b"p") {
        let (_, page) = page.unwrap();
        let mut rest = &page[5..];
        while let Some((&len, tail)) = rest.split_first() {
            let (key, tail) = tail.split_at(len.into());
            let (len, tail) = tail.split_first_chunk().unwrap();
            let (value, tail) = tail.split_at(u16::from_le_bytes(*len).into());
            rows.push((RowKey::from_bytes(key).unwrap(), value.to_vec()));
            rest = tail;
        }
    }
    rows
}

/// Adds a job to a stopped node's store that was never committed, so that everything still adds up.
fn forge(db: &Path) {
    let db = sled::open(db).unwrap();
    let mut state = State::from_rows(rows_of(&db)).unwrap();
    let mut meta: Meta = codec::decode(&db.get(b"m").unwrap().unwrap()[5..]).unwrap();
    state.apply(meta.applied.unwrap().index, 99, state.stamp(), &submission(999, 16));
    db.clear().unwrap();
    for (key, value) in state.rows() {
        let (bound, key) = ([b"p", key.to_bytes().as_slice()].concat(), key.to_bytes());
        let page = [&[key.len() as u8], &key[..], &(value.len() as u16).to_le_bytes(), &value].concat();
        let page = seal(&bound, &page);
        db.insert(bound, page).unwrap();
    }
    meta.hash = state.hash();
    db.insert(b"m", seal(b"m", &codec::encode(&meta))).unwrap();
    db.flush().unwrap();
}

#[tokio::test]
async fn a_node_that_differs_from_the_majority_stops_itself() {
    let mut cluster = Cluster::start(3, as_is).await;
    cluster.submit(1, 1).await;
    cluster.converged().await;
    let odd = cluster.follower().await;
    stored(cluster.node(odd)).await;
    cluster.stop(odd).await;
    forge(&cluster.dir_of(odd).join("db"));
    restart(&mut cluster, odd).await;
    assert!(cluster.node(odd).view().state.job(JobId(999)).is_some());
    for job in 2..=140 {
        cluster.submit(1, job).await;
    }
    let fatal = tokio::time::timeout(PATIENCE, cluster.node(odd).fatal()).await.unwrap();
    assert_eq!(fatal.code, "HODEI-STATE-001");
    let others = cluster.nodes.iter().filter(|(id, _)| **id != odd);
    for (_, node) in others {
        assert!(futures::FutureExt::now_or_never(node.handle.fatal()).is_none());
    }
    cluster.shutdown().await;
}
