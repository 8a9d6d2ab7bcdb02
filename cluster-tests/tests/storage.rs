//! What the disks of a cluster may do without anybody losing anything.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use cluster_tests::{
    Cluster,
    client::STDOUT,
    disk::{self, Disk},
    wait,
    workload::{Submitters, check_submissions},
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_power_cut_takes_what_was_not_synced_and_nothing_else() {
    if !disk::permitted() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path(), "disk", 64);
    let (kept, lost) = (disk.path().join("kept"), disk.path().join("lost"));
    fs::write(&kept, "synced").unwrap();
    fs::File::open(&kept).unwrap().sync_all().unwrap();
    fs::File::open(disk.path()).unwrap().sync_all().unwrap();
    fs::write(&lost, "not synced").unwrap();
    disk.cut_power();
    disk.restore_power();
    assert_eq!(fs::read_to_string(&kept).unwrap(), "synced");
    assert!(fs::read(&lost).map_or(true, |bytes| bytes.is_empty()), "the cut was none");
}

#[tokio::test]
async fn a_power_cut_of_all_nodes_at_once_loses_nothing_that_was_acknowledged() {
    if !disk::permitted() {
        return;
    }
    // Declared before the cluster, so unmounted after its processes are gone.
    let dir = tempfile::tempdir().unwrap();
    let disks: Vec<_> = (1..=3).map(|i| Disk::new(dir.path(), &format!("disk{i}"), 512)).collect();
    let mut cluster = Cluster::start_on(disks.iter().map(|disk| disk.path().join("data")).collect()).await;

    let submitters = Submitters::start(&cluster, 6);
    for _ in 0..5 {
        submitters.wait_for(100).await;
        for disk in &disks {
            disk.cut_power();
        }
        for node in &mut cluster.nodes {
            node.kill();
        }
        for disk in &disks {
            disk.restore_power();
        }
        for node in &mut cluster.nodes {
            node.launch(&["run"]);
        }
        for node in &mut cluster.nodes {
            node.process().ready(SOON).await;
        }
        cluster.wait_healthy(3).await;
    }
    let field = submitters.stop().await;
    check_submissions(&cluster, &field).await;
}

#[tokio::test]
async fn the_last_lines_of_a_log_that_find_no_room_come_when_there_is_some() {
    if !disk::permitted() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path(), "disk", 256);
    let places = [dir.path().join("first"), disk.path().join("data"), dir.path().join("third")];
    let mut cluster = Cluster::start_on(places.to_vec()).await;
    let agent = cluster.agent(&[1], &[]).await;
    let (gate, filler) = (dir.path().join("gate"), disk.path().join("filler"));
    let script = format!("echo 0; while [ ! -e {} ]; do sleep 0.02; done; seq -f %0200.f 50", gate.display());
    let job = cluster.submit(&[], &["bash", "-c", &script]).await;
    // What comes after this is one batch, and does not fit into the file's first block.
    let began = || async { cluster.cli().run(&["job", "logs", &job]).await.text() == "0" };
    wait::until_true("the first line is there", SOON, began).await;
    disk::fill(&filler).unwrap();
    fs::write(&gate, "").unwrap();
    cluster.wait_state(&job, "Succeeded").await;
    fs::remove_file(&filler).unwrap();
    let log = tokio::time::timeout(SOON, cluster.client(2).follow(&job)).await;
    let log = log.expect("the log comes to its end").unwrap();
    let lines: String = (1..=50).map(|line| format!("{line:0200}\n")).collect();
    let lines = format!("0\n{lines}");
    assert!(log.bytes(STDOUT) == lines.as_bytes(), "{} of {} bytes", log.bytes(STDOUT).len(), lines.len());
    let attempts = cluster.agents[agent].data.join("attempts");
    let forgotten = || async { fs::read_dir(&attempts).unwrap().next().is_none() };
    wait::until_true("the agent is told that the log is safe", SOON, forgotten).await;
}

/// All files below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_damaged_log_is_repaired_or_refused_and_the_others_go_on() {
    let mut cluster = Cluster::start(3).await;
    let submitters = Submitters::start(&cluster, 4);
    submitters.wait_for(300).await;
    let victim = (cluster.leader().await + 1) % 3;
    cluster.nodes[victim].stop().await;

    // One flipped bit in the first half of what was written to the log.
    let wal = files(&cluster.nodes[victim].data.join("wal"));
    let largest = wal.iter().max_by_key(|path| fs::metadata(path).map_or(0, |meta| meta.len())).unwrap();
    let mut bytes = fs::read(largest).unwrap();
    let written = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    let at = SmallRng::seed_from_u64(42).random_range(written / 4..written / 2);
    bytes[at] ^= 0x10;
    fs::write(largest, bytes).unwrap();

    cluster.nodes[victim].launch(&["run"]);
    // It must not serve what it cannot vouch for: it ends with a code, or stays without serving, or has repaired itself.
    let cli = cluster.cli_at(victim).request_timeout(Duration::from_secs(2));
    let refused = {
        let process = cluster.nodes[victim].process();
        wait::until("the damaged node has decided", SOON, || {
            let gone = process.is_gone();
            let cli = cli.clone();
            async move { if gone { Some(true) } else { (cli.run(&["job", "list"]).await.code == 0).then_some(false) } }
        })
        .await
    };
    if refused {
        let said = cluster.nodes[victim].process().stderr_text();
        assert!(said.contains("HODEI-"), "no error code: {said}");
        cluster.nodes[victim].kill();
    }
    submitters.wait_for(100).await;
    let field = submitters.stop().await;
    check_submissions(&cluster, &field).await;
}
