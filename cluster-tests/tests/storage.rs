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

/// A job that has printed its last lines to a gateway, the second node, whose disk has no room for them.
struct Short {
    agent: usize,
    job: String,
    filler: PathBuf,
    log: String,
}

impl Short {
    async fn of(cluster: &mut Cluster, gateways: &[usize], dir: &Path, disk: &Disk) -> Self {
        let agent = cluster.agent(gateways, &[]).await;
        let (gate, filler) = (dir.join("gate"), disk.path().join("filler"));
        let script = format!("echo 0; while [ ! -e {} ]; do sleep 0.02; done; seq -f %0200.f 50", gate.display());
        let job = cluster.submit(&[], &["bash", "-c", &script]).await;
        // What comes after this is one batch, and does not fit into the file's first block.
        let began = || async { cluster.cli().run(&["job", "logs", &job]).await.text() == "0" };
        wait::until_true("the first line is there", SOON, began).await;
        disk::fill(&filler).expect("a disk can be filled");
        fs::write(&gate, "").expect("a gate can be opened");
        cluster.wait_state(&job, "Succeeded").await;
        let lines: String = (1..=50).map(|line| format!("{line:0200}\n")).collect();
        Self { agent, job, filler, log: format!("0\n{lines}") }
    }

    /// The third node tells all of it, and the agent need not keep it any more.
    async fn is_whole_in_the_end(&self, cluster: &Cluster) {
        let log = tokio::time::timeout(SOON, cluster.client(2).follow(&self.job)).await;
        let log = log.expect("the log comes to its end").expect("a log can be followed");
        let lines = log.bytes(STDOUT);
        assert!(lines == self.log.as_bytes(), "{} of {} bytes", lines.len(), self.log.len());
        let attempts = cluster.agents[self.agent].data.join("attempts");
        let forgotten = || async { fs::read_dir(&attempts).expect("an agent has attempts").next().is_none() };
        wait::until_true("the agent is told that the log is safe", SOON, forgotten).await;
    }
}

/// Three nodes of which the second has a small disk of its own. Dropped in this order: processes first.
struct Small {
    cluster: Cluster,
    disk: Disk,
    dir: tempfile::TempDir,
}

impl Small {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = Disk::new(dir.path(), "disk", 256);
        let places = [dir.path().join("first"), disk.path().join("data"), dir.path().join("third")];
        Self { cluster: Cluster::start_on(places.to_vec()).await, disk, dir }
    }

    async fn short(&mut self, gateways: &[usize]) -> Short {
        Short::of(&mut self.cluster, gateways, self.dir.path(), &self.disk).await
    }
}

#[tokio::test]
async fn the_last_lines_of_a_log_that_find_no_room_come_when_there_is_some() {
    if !disk::permitted() {
        return;
    }
    let mut small = Small::new().await;
    let short = small.short(&[1]).await;
    fs::remove_file(&short.filler).unwrap();
    short.is_whole_in_the_end(&small.cluster).await;
}

/// Its jobs go on, and what they print is read: there is room elsewhere.
#[tokio::test]
async fn an_agent_whose_gateway_has_no_room_for_its_logs_goes_to_another_one() {
    if !disk::permitted() {
        return;
    }
    let mut small = Small::new().await;
    small.cluster.lead(0).await;
    let agent = small.cluster.agent(&[1, 0], &[]).await;
    let cluster = &small.cluster;
    let counting = "for ((i = 1; ; i++)); do echo line $i; sleep 0.01; done";
    let job = cluster.submit(&["--lost-after", "10s"], &["bash", "-c", counting]).await;
    let read = cluster.cli_at(2).spawn("logs", &["job", "logs", "-f", &job]);
    wait::until_true("some of the job's lines", SOON, || async { read.stdout().len() > 1_000 }).await;
    disk::fill(&small.disk.path().join("filler")).expect("a disk can be filled");
    let before = read.stdout().len();
    // More than may have been under way.
    wait::until_true("lines by way of another gateway", SOON, || async { read.stdout().len() > before + 5_000 }).await;
    let row = cluster.wait_worker(&cluster.agents[agent].worker, |row| !row["gateway"].is_null()).await;
    assert_ne!(row["gateway"], cluster.id_of(1).await, "{row}");
    assert_eq!(cluster.job(&job).await["attempt"], 1);
    let text = read.stdout_text();
    let whole: Vec<_> = text.rsplit_once('\n').unwrap().0.lines().collect();
    let expected: Vec<_> = (1..=whole.len()).map(|i| format!("line {i}")).collect();
    assert_eq!(whole, expected);
}

/// The result is known by then: that the rest of the log lies elsewhere is all that is new.
#[tokio::test]
async fn the_last_lines_of_a_log_that_find_no_room_are_found_where_there_is_some() {
    if !disk::permitted() {
        return;
    }
    let mut small = Small::new().await;
    small.cluster.lead(0).await;
    let short = small.short(&[1, 0]).await;
    let cluster = &mut small.cluster;
    let worker = cluster.agents[short.agent].worker.clone();
    let row = cluster.wait_worker(&worker, |row| !row["gateway"].is_null()).await;
    let status = cluster.wait_status(0).await;
    assert_eq!(
        cluster.index_of(&status, &row["gateway"]),
        Some(1),
        "the agent keeps to the first node that it was told"
    );
    cluster.nodes[1].freeze();
    cluster.wait_worker(&worker, |new| !new["gateway"].is_null() && new["gateway"] != row["gateway"]).await;
    fs::remove_file(&short.filler).unwrap();
    cluster.nodes[1].thaw();
    short.is_whole_in_the_end(cluster).await;
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
