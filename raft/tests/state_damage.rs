//! Damage to one file of what a stopped replica has beside its log: the stored state, the snapshot, the payloads.
//!
//! The replica is started on it by the code that the product starts it by. It refuses, or has, once it has caught up with
//! its own log, exactly the state that it had, and gives out exactly the scripts that were put in, or an error for each
//! that it cannot. The snapshot is damaged twice: where it is needed, because the stored state is gone and the log begins
//! behind it; and where it is not, so that another one has to take its place, which is then put to the test.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod nodes;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use hodei_damage::{Case, Matrix, Of, Row, Verdict, cases, copy_dir, row};
use hodei_raft::{Config, Status, start};
use hodei_state::ids::JobId;
use nodes::{CLUSTER, Cluster, Net, PATIENCE, execution, submission, until};

/// Replicas that are judged at once.
const AT_ONCE: usize = 8;
/// Bytes of a script that becomes a payload.
const LARGE: usize = 5_000;

/// Snapshots after a few kilobytes, hardly any log behind them.
fn small(config: &mut Config) {
    config.timing.heartbeat = Duration::from_millis(20);
    config.timing.election_min = Duration::from_millis(40);
    config.timing.election_max = Duration::from_millis(80);
    config.storage.log.wal.segment_bytes = 64 << 10;
    config.storage.snapshot_log_bytes = 8 << 10;
    config.storage.keep_entries = 4;
    config.storage.purge_batch = 1;
    config.storage.sled_cache = 1 << 20;
    config.storage.write_interval = Duration::from_millis(20);
}

/// A stopped replica.
struct Victim {
    _cluster: Cluster,
    dir: PathBuf,
    status: Status,
    /// Jobs with a payload.
    large: Vec<u128>,
    /// Its directory at earlier times.
    past: Vec<PathBuf>,
}

async fn stored(cluster: &Cluster) {
    until("everything is written behind", || {
        let status = cluster.node(1).status();
        status.stored_index == status.applied.index
    })
    .await;
}

/// Works in three lives; in the last it takes a snapshot and purges its log, and then goes on for a while.
async fn victim() -> Victim {
    let mut cluster = Cluster::start(1, small).await;
    let (mut job, mut large, mut past) = (0, Vec::new(), Vec::new());
    for life in 0..3 {
        let before = cluster.node(1).status();
        let snapshot = |status: &Status| (status.snapshot_index, status.purged_index);
        while snapshot(&cluster.node(1).status()) <= snapshot(&before) || job % 30 != 29 {
            job += 1;
            let bytes = if job % 10 == 0 { LARGE } else { 300 };
            large.extend((bytes == LARGE).then_some(job));
            cluster.propose(1, submission(job, bytes)).await;
            assert!(job < 10_000, "no snapshot was taken");
        }
        stored(&cluster).await;
        let status = cluster.node(1).status();
        cluster.stop(1).await;
        if life == 2 {
            let dir = cluster.dir_of(1);
            return Victim { dir, _cluster: cluster, status, large, past };
        }
        let copy = cluster.dir_of(1).with_extension(format!("{life}"));
        copy_dir(&cluster.dir_of(1), &copy);
        past.push(copy);
        cluster.run(1).await;
        assert!(cluster.node(1).recovered(Some(PATIENCE)).await);
    }
    unreachable!("the last life returns")
}

/// The files below `dir/below`, relative to `dir`.
fn files(dir: &Path, below: &str) -> Vec<String> {
    let (mut found, mut open) = (Vec::new(), vec![dir.join(below)]);
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

impl Victim {
    /// Earlier contents of a file; of a snapshot, those of earlier ones, which have other names.
    fn older(&self, file: &str) -> Vec<Vec<u8>> {
        let earlier = |past: &PathBuf| match file.split_once('/') {
            Some(("snapshots", _)) => files(past, "snapshots").pop().map(|file| past.join(file)),
            _ => Some(past.join(file)),
        };
        self.past.iter().filter_map(earlier).filter_map(|path| fs::read(path).ok()).collect()
    }

    /// What comes of a start with one damaged file.
    async fn judge(&self, file: &str, bytes: &[u8], stored: bool) -> Verdict {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&self.dir, dir.path());
        fs::write(dir.path().join(file), bytes).unwrap();
        if !stored {
            fs::remove_dir_all(dir.path().join("db")).unwrap();
        }
        let verdict = self.begin(dir.path(), stored).await;
        if !file.starts_with("snapshots/") || !stored || matches!(verdict, Verdict::Silent(_)) {
            return verdict;
        }
        // Whatever snapshot it has now must do.
        assert_eq!(verdict, Verdict::Harmless, "the stored state is whole");
        fs::remove_dir_all(dir.path().join("db")).unwrap();
        match self.begin(dir.path(), false).await {
            Verdict::Refused => Verdict::Silent("the snapshot stays damaged".to_owned()),
            verdict => verdict,
        }
    }

    /// Starts the replica, compares all it serves, and stops it.
    async fn begin(&self, dir: &Path, stored: bool) -> Verdict {
        let mut config = Config::new(1, CLUSTER, dir.to_owned());
        small(&mut config);
        let handle = match start(config, Arc::<Net>::default()).await {
            Ok(handle) => handle,
            Err(error) if error.to_string().starts_with("HODEI-") => return Verdict::Refused,
            Err(error) => return Verdict::Silent(format!("refused without a code: {error}")),
        };
        let found = handle.status();
        assert!(handle.recovered(Some(PATIENCE)).await, "it does not come up");
        let (view, now) = (handle.view(), handle.status());
        let mut verdict = match () {
            () if now.hash != self.status.hash => Verdict::Silent("another state".to_owned()),
            () if stored && found.applied == self.status.applied => Verdict::Harmless,
            () => Verdict::Repaired,
        };
        for job in self.large.iter().filter(|_| now.hash == self.status.hash) {
            let spec = view.state.spec(JobId(*job)).expect("the states are alike");
            match handle.execution(&spec).await {
                Ok(found) if found == execution(*job, LARGE) => {}
                Ok(_) => verdict = Verdict::Silent(format!("job {job} has another script")),
                Err(_) if verdict == Verdict::Harmless => verdict = Verdict::Refused,
                Err(_) => {}
            }
        }
        handle.shutdown().await;
        verdict
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_repaired_or_refused() {
    let victim = victim().await;
    let unknown: Vec<_> = files(&victim.dir, "").into_iter().filter(|file| row(Of::Node, file).is_none()).collect();
    assert!(unknown.is_empty(), "without a row: {unknown:?}");
    let mut all: Vec<(&Row, String, Case, bool)> = Vec::new();
    for below in ["db", "snapshots", "payloads"] {
        // One payload is as good as the other.
        let few = if below == "payloads" { 1 } else { usize::MAX };
        for file in files(&victim.dir, below).into_iter().take(few) {
            let Some(row) = row(Of::Node, &file) else { panic!("no row for {file}") };
            let content = fs::read(victim.dir.join(&file)).unwrap();
            let older = victim.older(&file);
            let stored: &[bool] = if below == "snapshots" { &[true, false] } else { &[true] };
            let cases =
                cases(&content, &older, 7).flat_map(|case| stored.iter().map(move |stored| (case.clone(), *stored)));
            all.extend(cases.map(|(case, stored)| (row, file.clone(), case, stored)));
        }
    }
    let judged = futures::stream::iter(all).map(|(row, file, case, stored)| {
        let victim = &victim;
        async move {
            let verdict = victim.judge(&file, &case.bytes, stored).await;
            (row, case, verdict)
        }
    });
    let judged: Vec<_> = judged.buffer_unordered(AT_ONCE).collect().await;
    let mut matrix = Matrix::new("raft/tests/state_damage.rs");
    judged.into_iter().for_each(|(row, case, verdict)| matrix.count(row, &case, verdict));
    matrix.finish(Of::Node);
}
