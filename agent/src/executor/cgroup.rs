//! Control groups, where permitted: the only way to reach every descendant of a job, however it detached itself.
//!
//! Each attempt gets a group of its own below the agent's. On cgroup v2 `cgroup.kill` ends it as a whole; on v1 the
//! listed processes are killed until the list is empty.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{AccessFlags, Pid, access},
};

/// How long a killed group may take to become empty.
const EMPTY_WITHIN: Duration = Duration::from_secs(2);

/// The directory below which attempts get their groups.
#[derive(Clone, Debug)]
pub struct CgroupRoot {
    dir: PathBuf,
}

impl CgroupRoot {
    /// Finds out where this process may create groups; `None` where it may not.
    #[must_use]
    pub fn detect() -> Option<Self> {
        Self::usable_ones().next()
    }

    /// All such places, the best one first.
    pub(crate) fn usable_ones() -> impl Iterator<Item = Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        candidates(&mounts, &own).into_iter().map(|dir| Self { dir }).filter(Self::usable)
    }

    /// Its version: `cgroup2` or `cgroup1`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.dir.join("cgroup.controllers").exists() { "cgroup2" } else { "cgroup1" }
    }

    /// A new group.
    pub fn create(&self, name: &str) -> io::Result<Cgroup> {
        let dir = self.dir.join(format!("hodei-{name}"));
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Ok(Cgroup { dir })
    }

    /// Delegation (v2) asks for write access to the common ancestor's list too.
    fn usable(&self) -> bool {
        let Ok(probe) = self.create(&format!("probe-{}", std::process::id())) else { return false };
        let domain = fs::read_to_string(probe.dir.join("cgroup.type")).map_or(true, |kind| kind.trim() == "domain");
        let writable = |dir: &Path| access(&dir.join("cgroup.procs"), AccessFlags::W_OK).is_ok();
        let usable = domain && writable(&probe.dir) && writable(&self.dir);
        let removed = fs::remove_dir(&probe.dir).is_ok();
        usable && removed
    }
}

/// Own groups in the order of preference: v2, then the v1 hierarchies that every system has.
fn candidates(mounts: &str, own: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for wanted in ["", "pids", "freezer", "name=systemd"] {
        let Some(path) = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            controllers.split(',').any(|controller| controller == wanted).then_some(path)
        }) else {
            continue;
        };
        let mount = mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut right = right.split(' ');
            let (kind, options) = (right.next()?, right.nth(1)?);
            let fits = if wanted.is_empty() { kind == "cgroup2" } else { options.split(',').any(|o| o == wanted) };
            let mut left = left.split(' ').skip(3);
            let (root, point) = (left.next()?, left.next()?);
            (fits && kind.starts_with("cgroup")).then_some((root, point))
        });
        if let Some((root, point)) = mount {
            let below = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(path);
            found.push(Path::new(point).join(below.trim_start_matches('/')));
        }
    }
    found
}

/// The group of one attempt.
#[derive(Clone, Debug)]
pub struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// A group known from an earlier process.
    #[must_use]
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What a process writes `0` to in order to join, where it cannot be made inside.
    pub fn entrance(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.dir.join("cgroup.procs"))
    }

    /// Kills what is in it now.
    pub fn kill(&self) {
        let switch = OpenOptions::new().write(true).open(self.dir.join("cgroup.kill"));
        if switch.and_then(|mut file| file.write_all(b"1")).is_ok() {
            return;
        }
        for pid in self.members() {
            // It may have ended in between; the next round looks again.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// Kills it until it is seen to be empty; false where that could not be seen.
    #[must_use]
    pub fn kill_until_empty(&self) -> bool {
        let deadline = Instant::now() + EMPTY_WITHIN;
        loop {
            match self.is_empty() {
                Some(true) => return true,
                None => return false,
                Some(false) if Instant::now() >= deadline => return false,
                Some(false) => self.kill(),
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether no process is in it; `None` where that cannot be seen.
    #[must_use]
    pub fn is_empty(&self) -> Option<bool> {
        match fs::read_to_string(self.dir.join("cgroup.events")) {
            Ok(events) => Some(events.lines().any(|line| line == "populated 0")),
            Err(_) => Some(fs::read_to_string(self.dir.join("cgroup.procs")).ok()?.trim().is_empty()),
        }
    }

    /// Whether the kernel killed something in it for want of memory.
    #[must_use]
    pub fn out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.dir.join("memory.events")).unwrap_or_default();
        events.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count != "0")
    }

    /// Removes it. One that is still populated stays.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_dir(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(dir = %self.dir.display(), %error, "cannot remove a control group");
        }
    }

    fn members(&self) -> Vec<Pid> {
        let procs = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        procs.lines().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).filter(|pid| pid.as_raw() > 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_two_is_preferred_and_roots_are_taken_off() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      31 24 0:27 /docker/abc /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let own = "12:pids:/docker/abc/x\n0::/system.slice/agent.service\n";
        assert_eq!(
            candidates(mounts, own),
            [Path::new("/sys/fs/cgroup/unified/system.slice/agent.service"), Path::new("/sys/fs/cgroup/pids/x")]
        );
        assert!(candidates("", own).is_empty());
    }
}
