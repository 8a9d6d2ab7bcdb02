//! Faults of the real machine: child processes that are killed, file systems that lose their power, disks that fail.

#![allow(clippy::unwrap_used, dead_code, reason = "each test uses a part of this, and a test's helpers may panic")]

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
};

use hodei_raft::{
    seam::{Fs, RealFs, SystemEntropy},
    wal::{Lsn, Options, Wal, recover},
};

use super::{Model, Workload};

/// Small segments, so that every run crosses many of them.
pub fn options() -> Options {
    Options { segment_bytes: 64 << 10, queue_bytes: 256 << 10, group_bytes: 32 << 10, ..Options::default() }
}

/// What a child says if it ends with destructors.
pub const DESTRUCTOR: &str = "a destructor ran";

const DIR: &str = "HODEI_TEST_WAL";
const SEED: &str = "HODEI_TEST_SEED";

/// In a child process: the directory and seed to work with.
pub fn child() -> Option<(PathBuf, u64)> {
    let dir = std::env::var_os(DIR)?;
    Some((dir.into(), std::env::var(SEED).unwrap().parse().unwrap()))
}

/// Writes a line at once, whatever captures standard output.
pub fn say(line: &str) {
    let _ = std::io::stdout().write_all(format!("\n{line}\n").as_bytes()).and_then(|()| std::io::stdout().flush());
}

/// A child's work: go on from what the log holds, for ever, and say what is acknowledged.
pub fn work<F: Fs>(fs: &F, dir: &Path, seed: u64) {
    let model = Model::of(&recover::open(&RealFs, dir, &options(), &SystemEntropy).unwrap());
    let (wal, recovered) = Wal::open(fs, dir, &options(), Arc::new(SystemEntropy)).unwrap();
    assert_eq!(recovered.lsn, model.lsn);
    say(&format!("begin {}", model.lsn));
    let mut workload = Workload::new(seed, 700);
    workload.resume(model);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    loop {
        let group = workload.group();
        let lsn = workload.model.lsn;
        let permit = runtime.block_on(wal.admit(group.iter().map(hodei_raft::wal::Record::weight).sum()));
        let done = Box::new(move || say(&format!("ack {lsn}")));
        assert_eq!(wal.submit(group, Some(permit), Some(done)).unwrap(), lsn);
    }
}

/// A running child: this test binary again, running one test, which finds [`child`].
pub struct Worker {
    process: Child,
    lines: BufReader<std::process::ChildStdout>,
    pub begun: Option<Lsn>,
    pub acknowledged: Lsn,
    pub acks: u64,
    /// Whether its destructors ran.
    pub destructors: bool,
}

impl Worker {
    pub fn start(test: &str, dir: &Path, seed: u64) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(DIR, dir)
            .env(SEED, seed.to_string())
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap());
        Self { process, lines, begun: None, acknowledged: 0, acks: 0, destructors: false }
    }

    /// Reads one line; false at the end.
    fn step(&mut self) -> bool {
        let mut line = String::new();
        // A child killed in the middle of a line leaves a part of it, which acknowledges nothing.
        if self.lines.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
            return false;
        }
        if let Some(lsn) = line.trim().strip_prefix("ack ") {
            self.acknowledged = lsn.parse().unwrap();
            self.acks += 1;
        } else if let Some(lsn) = line.trim().strip_prefix("begin ") {
            self.begun = Some(lsn.parse().unwrap());
        } else if line.trim() == DESTRUCTOR {
            self.destructors = true;
        }
        true
    }

    pub fn wait_for_acks(&mut self, acks: u64) {
        while self.acks < acks && self.step() {}
    }

    pub fn kill(&mut self) {
        let _ = self.process.kill();
    }

    /// Waits for its end and reads what it still had said. Returns its status and standard error.
    pub fn end(mut self) -> (Self, ExitStatus, String) {
        while self.step() {}
        let mut errors = String::new();
        std::io::Read::read_to_string(&mut self.process.stderr.take().unwrap(), &mut errors).unwrap();
        let status = self.process.wait().unwrap();
        (self, status, errors)
    }
}

/// Opens the log after a crash and compares it with the workload that the child must have followed.
pub fn check(dir: &Path, before: &Model, seed: u64, worker: &Worker, case: &str) -> Model {
    let opened = recover::open(&RealFs, dir, &options(), &SystemEntropy);
    let found = Model::of(&opened.unwrap_or_else(|error| panic!("{case}: refused: {error}")));
    let acknowledged = worker.acknowledged.max(before.lsn);
    assert!(found.lsn >= acknowledged, "{case}: {} remembered, {acknowledged} acknowledged", found.lsn);
    let mut workload = Workload::new(seed, 700);
    workload.resume(before.clone());
    while workload.model.lsn < found.lsn {
        workload.record_in_group();
    }
    assert_eq!(workload.model, found, "{case}: the log is not what was written");
    found
}

/// Whether this test may use root's powers. Without them it fails, unless it is told to skip, which it prints.
pub fn root_or_skip(what: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let skip = std::env::var("HODEI_SKIP_ROOT_TESTS").is_ok_and(|value| value == "1");
    assert!(skip, "{what} needs root: run as root, or set HODEI_SKIP_ROOT_TESTS=1 to skip");
    println!("skipped: {what} needs root, and HODEI_SKIP_ROOT_TESTS=1");
    false
}

pub fn command(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An ext4 file system in a file, mounted; unmounted and removed at the end.
pub struct Loop {
    pub image: PathBuf,
    pub mount: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

impl Loop {
    pub fn new(megabytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        let mut made = Self::at(image, mount, megabytes);
        made._dir = Some(dir);
        made
    }

    pub fn at(image: PathBuf, mount: PathBuf, megabytes: u64) -> Self {
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        command(&format!("mkfs.ext4 -q -F {}", image.display()));
        let made = Self { image, mount, _dir: None };
        made.mount();
        made
    }

    fn mount(&self) {
        command(&format!("mount -o loop {} {}", self.image.display(), self.mount.display()));
    }

    /// The power fails: nothing more reaches the disk, not even the journal.
    pub fn cut_power(&self) {
        power::cut(&std::fs::File::open(&self.mount).unwrap());
    }

    pub fn restore_power(&self) {
        unmount(&self.mount);
        self.mount();
    }
}

/// Another test's process may hold our descriptors for an instant between its fork and its exec.
fn unmount(mount: &Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !Command::new("umount").arg(mount).stderr(Stdio::null()).status().unwrap().success() {
        assert!(std::time::Instant::now() < deadline, "{} stays busy", mount.display());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).output();
    }
}

#[allow(unsafe_code, reason = "an ioctl has no safe interface")]
mod power {
    use std::os::fd::AsRawFd;

    // EXT4_IOC_SHUTDOWN
    nix::ioctl_read!(shutdown, b'X', 125, u32);

    pub fn cut(mount: &std::fs::File) {
        /// EXT4_GOING_FLAGS_NOLOGFLUSH
        const WITHOUT_JOURNAL: u32 = 2;
        let mut how = WITHOUT_JOURNAL;
        // SAFETY: the descriptor is open and `how` outlives the call, which reads a u32.
        unsafe { shutdown(mount.as_raw_fd(), &raw mut how) }.unwrap();
    }
}
