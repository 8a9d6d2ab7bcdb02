//! The log on the real machine: killed processes, power cuts, and disks that fail to sync.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod support;

use std::{
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hodei_raft::seam::{File, Fs, RealFs, sim::SeededEntropy};
use support::{
    Model,
    machine::{self, Loop, Worker, check, child, root_or_skip},
    split,
};

const ROUNDS: u64 = 20;
/// In the environment: how often the power is cut instead.
const CUTS: &str = "HODEI_POWER_CUTS";

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    if let Some((dir, seed)) = child() {
        return machine::work(&RealFs, &dir, seed);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model::default();
    let (mut acks, mut records) = (0, 0);
    for round in 0..ROUNDS {
        let seed = split(1, round);
        let mut worker = Worker::start("nothing_acknowledged_is_lost_by_kill_9", dir.path(), seed);
        worker.wait_for_acks(1 + SeededEntropy::new(seed).below(600));
        worker.kill();
        let (worker, ..) = worker.end();
        let found = check(dir.path(), &model, seed, &worker, &format!("round {round}"));
        acks += worker.acks;
        records += found.lsn - model.lsn;
        model = found;
    }
    assert!(acks > ROUNDS * 50, "only {acks} acknowledgements: the test did not do its work");
    println!("kill -9: {ROUNDS}, records: {records}, acknowledged writes: {acks}, lost: 0");
}

#[test]
fn nothing_acknowledged_is_lost_by_a_power_cut() {
    if let Some((dir, seed)) = child() {
        return machine::work(&RealFs, &dir, seed);
    }
    if !root_or_skip("cutting the power of a mounted file system") {
        return;
    }
    let cuts = std::env::var(CUTS).map_or(ROUNDS, |cuts| cuts.parse().expect("HODEI_POWER_CUTS: expected a number"));
    let disk = Loop::new(64);
    let dir = disk.mount.join("wal");
    let mut model = Model::default();
    let (mut acks, mut records) = (0, 0);
    for round in 0..cuts {
        let seed = split(2, round);
        let mut worker = Worker::start("nothing_acknowledged_is_lost_by_a_power_cut", &dir, seed);
        worker.wait_for_acks(1 + SeededEntropy::new(seed).below(400));
        disk.cut_power();
        worker.kill();
        let (worker, ..) = worker.end();
        disk.restore_power();
        let found = check(&dir, &model, seed, &worker, &format!("round {round}"));
        acks += worker.acks;
        records += found.lsn - model.lsn;
        model = found;
    }
    assert!(acks > cuts * 30, "only {acks} acknowledgements: the test did not do its work");
    println!("power cuts: {cuts}, records: {records}, acknowledged writes: {acks}, lost: 0");
    println!("bar: power cuts: {cuts}\nbar: acknowledged writes lost: 0");
}

/// The real file system, until the nth sync of one file, or of a directory, whose path ends so.
#[derive(Clone)]
struct FailingFs {
    suffix: &'static str,
    nth: u64,
    directory: Arc<AtomicU64>,
}

struct FailingFile {
    file: std::fs::File,
    fs: FailingFs,
    path: PathBuf,
    syncs: AtomicU64,
}

impl FailingFs {
    fn sync(&self, path: &Path, syncs: &AtomicU64) -> io::Result<()> {
        let matches = path.to_string_lossy().ends_with(self.suffix);
        if matches && syncs.fetch_add(1, Ordering::Relaxed) + 1 == self.nth {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        Ok(())
    }

    fn wrap(&self, path: &Path, file: io::Result<std::fs::File>) -> io::Result<FailingFile> {
        Ok(FailingFile { file: file?, fs: self.clone(), path: path.to_path_buf(), syncs: AtomicU64::new(0) })
    }
}

impl Fs for FailingFs {
    type File = FailingFile;
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealFs.create_dir_all(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealFs.list(dir)
    }
    fn create(&self, path: &Path) -> io::Result<FailingFile> {
        self.wrap(path, RealFs.create(path))
    }
    fn open(&self, path: &Path) -> io::Result<FailingFile> {
        self.wrap(path, RealFs.open(path))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealFs.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.sync(dir, &self.directory).and_then(|()| RealFs.sync_dir(dir))
    }
}

impl File for FailingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        File::read_at(&self.file, buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        File::write_at(&self.file, bytes, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.fs.sync(&self.path, &self.syncs).and_then(|()| File::sync_data(&self.file))
    }
    fn size(&self) -> io::Result<u64> {
        File::size(&self.file)
    }
}

/// Would show that destructors ran.
struct Witness;

impl Drop for Witness {
    fn drop(&mut self) {
        machine::say(machine::DESTRUCTOR);
    }
}

/// A child must have died by SIGABRT, with one line that names the code, and have lost nothing.
fn check_abort(dir: &Path, seed: u64, worker: Worker, case: &str) -> u64 {
    let (worker, status, errors) = worker.end();
    assert_eq!(status.signal(), Some(nix::libc::SIGABRT), "{case}: {errors}");
    let codes: Vec<&str> = errors.lines().filter(|line| line.contains("HODEI-STORAGE-")).collect();
    assert!(matches!(codes[..], [line] if line.starts_with("HODEI-STORAGE-001 ")), "{case}: {errors}");
    assert!(!worker.destructors, "{case}: destructors ran");
    println!("{case}: {} acknowledged, then: {}", worker.acks, codes[0]);
    check(dir, &Model::default(), seed, &worker, case);
    worker.acks
}

#[test]
fn a_failed_sync_ends_the_process_with_its_code() {
    // A segment keeps the path that it was created with: its temporary name. Its first two syncs come before its first record.
    const KINDS: [(&str, &str, u64); 3] =
        [("the log", ".tmp", 4), ("the high-water mark", "mark", 60), ("the log's directory", "wal", 9)];
    if let Some((dir, seed)) = child() {
        let _witness = Witness;
        let (_, suffix, nth) = KINDS[seed as usize];
        let fs = FailingFs { suffix, nth, directory: Arc::default() };
        return machine::work(&fs, &dir, seed);
    }
    let mut acks = 0;
    for seed in 0..KINDS.len() as u64 {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("wal");
        let worker = Worker::start("a_failed_sync_ends_the_process_with_its_code", &dir, seed);
        acks += check_abort(&dir, seed, worker, &format!("sync of {} fails", KINDS[seed as usize].0));
    }
    assert!(acks > 50, "the processes worked before they died");
}

#[test]
fn a_full_disk_below_ends_the_process_with_its_code() {
    if let Some((dir, seed)) = child() {
        let _witness = Witness;
        return machine::work(&RealFs, &dir, seed);
    }
    if !root_or_skip("a file system on a full disk") {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let below = parent.path().join("below");
    std::fs::create_dir(&below).unwrap();
    machine::command(&format!("mount -t tmpfs -o size=32m tmpfs {}", below.display()));
    let _unmount = Unmount(below.clone());
    let disk = Loop::at(below.join("image"), parent.path().join("mount"), 64);
    let dir = disk.mount.join("wal");
    let mut worker = Worker::start("a_full_disk_below_ends_the_process_with_its_code", &dir, 3);
    worker.wait_for_acks(50);
    // The image is sparse: the next block that was never written has no page left.
    let mut filler = std::fs::File::create(below.join("filler")).unwrap();
    while io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
    let (worker, status, errors) = worker.end();
    assert_eq!(status.signal(), Some(nix::libc::SIGABRT), "{errors}");
    let codes: Vec<&str> = errors.lines().filter(|line| line.contains("HODEI-STORAGE-")).collect();
    // Usually a sync fails first; if the kernel writes back by itself before, the file system turns read-only.
    assert!(
        matches!(codes[..], [line] if ["HODEI-STORAGE-001 ", "HODEI-STORAGE-002 "].contains(&&line[..18])),
        "{errors}"
    );
    println!("full disk below: {} acknowledged, then: {}", worker.acks, codes[0]);
    // With room again, nothing acknowledged is missing.
    drop(filler);
    std::fs::remove_file(below.join("filler")).unwrap();
    disk.restore_power();
    check(&dir, &Model::default(), 3, &worker, "full disk below");
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
