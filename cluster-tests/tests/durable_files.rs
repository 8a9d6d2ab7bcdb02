//! The table of durable files ([`hodei_damage::FILES`]) is whole, and real processes with a damaged one of them say which.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use cluster_tests::{Cluster, wait};
use hodei_damage::{FILES, How, Of, Shown, row};
use nix::sys::signal::{Signal, kill};

const SOON: Duration = Duration::from_secs(60);
/// Many files are there for a moment only.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// So short that they may be missed.
const FLEETING: [&str; 5] =
    ["pki/nonce", "pki/enrolment.toml", "pki/replacement.key", "pki/replacement.toml", "attempts/*/result"];
/// Snapshots come with much more of a log than there is here: `raft/tests/state_damage.rs` looks at all files that they
/// bring along. The mark of a process is for jobs without a control group.
const RARE: [&str; 3] = ["snapshots/*.snap", "snapshots/*.partial", "attempts/*/process"];

/// Which file of which directory.
type Seen = BTreeSet<(usize, PathBuf)>;

/// Sees every file that is ever below some directories.
struct Watcher {
    stop: Arc<AtomicBool>,
    dirs: Vec<PathBuf>,
    thread: thread::JoinHandle<Seen>,
}

impl Watcher {
    fn start(dirs: Vec<PathBuf>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, looked) = (stop.clone(), dirs.clone());
        let thread = thread::spawn(move || {
            let mut seen = Seen::new();
            while !stopped.load(Ordering::Relaxed) {
                look_at(&looked, &mut seen);
                thread::sleep(LOOK_EVERY);
            }
            seen
        });
        Self { stop, dirs, thread }
    }

    fn end(self, mut seen: Seen) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        seen.extend(self.thread.join().expect("it does not panic"));
        look_at(&self.dirs, &mut seen);
        seen
    }
}

fn look_at(dirs: &[PathBuf], seen: &mut Seen) {
    for (at, dir) in dirs.iter().enumerate() {
        look(dir, dir, at, seen);
    }
}

fn look(root: &Path, dir: &Path, at: usize, seen: &mut Seen) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            look(root, &path, at, seen);
        } else {
            seen.insert((at, path.strip_prefix(root).expect("it is below").to_owned()));
        }
    }
}

/// What a cluster of three and an agent do in a life: enrol, run small and large jobs, die, be replaced. Returns what is there
/// at times at which nothing goes.
async fn live(cluster: &mut Cluster, dirs: &[PathBuf]) -> Seen {
    let mut seen = Seen::new();
    while cluster.nodes.len() < 3 {
        cluster.join().await;
    }
    let agent = cluster.agent(&[1], &[]).await;
    assert!(cluster.agents[agent].data == dirs[3] && cluster.nodes[2].data == dirs[2], "they are looked at");
    let large = format!("# {}\nseq 100", "x".repeat(8_000));
    let script = cluster.dir().join("large.sh");
    fs::write(&script, large).expect("the directory of the cluster can be written to");
    let file = cluster.dir().join("large.json");
    let text = serde_json::json!({"command": {"script": {"content": fs::read_to_string(&script).unwrap_or_default()}}});
    fs::write(&file, text.to_string()).expect("the same");
    let job = cluster.cli().ok(&["--output", "quiet", "job", "submit", "-f", &file.to_string_lossy()]).await;
    cluster.wait_job(job.trim(), "ended", |job| job["finished_at"].is_string()).await;

    // It ends while nobody takes what it says; and one whose watchdog dies with its agent.
    let gate = cluster.dir().join("gate");
    let waits = format!("echo begun; while [ ! -e {} ]; do sleep 0.02; done; seq 100; seq 100 >&2", gate.display());
    let left = cluster.submit(&["--lost-after", "60s"], &["bash", "-c", &waits]).await;
    cluster.wait_state(&left, "Running").await;
    wait::until_true("its output is in a spool", SOON, || async {
        let mut there = Seen::new();
        look_at(dirs, &mut there);
        there.iter().any(|(_, path)| path.to_string_lossy().contains("/spool-"))
    })
    .await;
    look_at(dirs, &mut seen);
    cluster.agents[agent].kill();
    fs::write(&gate, "").expect("the same");
    wait::until_true("it has ended", SOON, || async { cluster.watchdogs().is_empty() }).await;
    look_at(dirs, &mut seen);
    cluster.agents[agent].start();
    cluster.wait_job(&left, "ended", |job| job["finished_at"].is_string()).await;
    let killed = cluster.submit(&["--lost-after", "60s"], &["sleep", "600"]).await;
    cluster.wait_state(&killed, "Running").await;
    cluster.agents[agent].kill();
    for watchdog in cluster.watchdogs() {
        kill(watchdog, Signal::SIGKILL).expect("it lives");
    }
    wait::until_true("its guardian has seen the end", SOON, || async { cluster.guardians().is_empty() }).await;
    cluster.agents[agent].start();

    // Its log is lost.
    cluster.nodes[2].stop().await;
    fs::remove_dir_all(cluster.nodes[2].data.join("wal")).expect("it has one");
    cluster.nodes[2].restart().await;
    cluster.wait_healthy(3).await;
    seen
}

#[tokio::test]
async fn every_file_of_a_node_and_of_an_agent_is_in_the_table() {
    let mut cluster = Cluster::empty();
    let names = ["node1", "node2", "node3", "agent1"];
    let dirs: Vec<PathBuf> = names.iter().map(|name| cluster.dir().join(name)).collect();
    let watcher = Watcher::start(dirs.clone());
    let first = cluster.prepare();
    cluster.nodes[first].start(&["init"]).await;
    let seen = live(&mut cluster, &dirs).await;
    let seen = watcher.end(seen);

    let of = |at: &usize| if *at < 3 { Of::Node } else { Of::Agent };
    let found = |(at, path): &(usize, PathBuf)| row(of(at), &path.to_string_lossy());
    let unknown: Vec<_> = seen.iter().filter(|file| found(file).is_none()).collect();
    assert!(unknown.is_empty(), "without a row in cluster-tests/damage/src/files.rs: {unknown:#?}");
    let known: BTreeSet<_> = seen.iter().filter_map(found).map(|row| (row.of == Of::Agent, row.path)).collect();
    let wanted = FILES.iter().filter(|row| matches!(row.shown, Shown::By(_)));
    let wanted = wanted.filter(|row| !FLEETING.contains(&row.path) && !RARE.contains(&row.path));
    let missed: Vec<_> = wanted.filter(|row| !known.contains(&(row.of == Of::Agent, row.path))).collect();
    println!("{} files seen, of {} rows", seen.len(), known.len());
    assert!(missed.is_empty(), "never seen, so that nobody knows whether they are called so: {missed:?}");
}

#[test]
fn what_shows_each_row_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned();
    for row in FILES {
        if let Shown::By(test) = row.shown {
            let text = fs::read_to_string(root.join(test)).unwrap_or_default();
            assert!(text.contains("Matrix::new("), "{test}, which is to show {}", row.path);
        }
    }
}

/// Damages one file for as long as `run` takes.
async fn with_damaged<T>(path: &Path, run: impl AsyncFnOnce() -> T) -> T {
    let content = fs::read(path).expect("it is there");
    let mut damaged = content.clone();
    How::Flip.apply(&mut damaged, content.len() / 2, 3);
    fs::write(path, damaged).expect("it can be written");
    let result = run().await;
    fs::write(path, content).expect("it can be written");
    result
}

#[tokio::test]
async fn a_process_with_a_damaged_file_says_which_and_ends() {
    let mut cluster = Cluster::one().await;
    let agent = cluster.agent(&[0], &[]).await;
    cluster.agents[agent].kill();
    cluster.nodes[0].stop().await;
    let data = cluster.nodes[0].data.clone();
    let names = ["identity.toml", "pki/ca.pem", "pki/ca.key", "pki/node.pem", "pki/node.key", "pki/secrets.key"];
    for path in names.map(|name| data.join(name)) {
        let node = &mut cluster.nodes[0];
        with_damaged(&path, async || {
            node.launch(&["run"]);
            let status = node.process().exit(SOON).await;
            assert!(!status.success(), "{}: {status}", path.display());
            node.kill();
        })
        .await;
        let said = node.stderr();
        assert!(said.contains(&format!("{} is damaged", path.display())), "{said}");
    }
    cluster.nodes[0].restart().await;
    let data = cluster.agents[agent].data.clone();
    for path in ["place", "pki/ca.pem", "pki/cert.pem", "pki/key.pem"].map(|name| data.join(name)) {
        let agent = &mut cluster.agents[agent];
        with_damaged(&path, async || {
            agent.start();
            let status = agent.process().exit(SOON).await;
            assert!(!status.success(), "{}: {status}", path.display());
        })
        .await;
        let said = agent.process().stderr_text();
        agent.kill();
        assert!(said.contains(&format!("{} is damaged", path.display())), "{said}");
    }
    cluster.agents[agent].start();
    let job = cluster.submit(&[], &["true"]).await;
    cluster.wait_job(&job, "succeeded", |job| job["state"] == "Succeeded").await;
}
