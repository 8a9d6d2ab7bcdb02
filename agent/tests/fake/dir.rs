//! A directory for one agent, which leaves nothing behind.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::PATIENCE;

/// Dropped after its agents, it kills what these have left running, watchdogs with their guardians and jobs, and removes
/// itself. What runs there still writes there: removed before, it would come back.
pub struct Dir(Option<tempfile::TempDir>);

impl Dir {
    pub fn new() -> Self {
        Self(Some(tempfile::tempdir().unwrap()))
    }

    pub fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = living_below(&self.path().canonicalize().unwrap());
            if left.is_empty() || Instant::now() >= deadline {
                break;
            }
            for pid in left {
                // It may have ended in between.
                let _ = kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let removed = self.0.take().unwrap().close();
        if !std::thread::panicking() {
            removed.expect("nobody writes there any more");
        }
    }
}

/// The processes whose working directory lies there.
fn living_below(dir: &Path) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lives = |process: &PathBuf| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
    let pid = |process: PathBuf| process.file_name()?.to_str()?.parse().ok().map(Pid::from_raw);
    entries.map(|entry| entry.path()).filter(lives).filter_map(pid).collect()
}
