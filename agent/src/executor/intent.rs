//! What an attempt leaves on disk before and after its process is made, so that a later agent process can find and
//! end what this one left behind, and can never hit a stranger that got the same pid.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
use crate::{
    disk,
    key::AttemptKey,
    log::capture::WhenFull,
    watchdog::{guardian, patience::Patience},
};

const INTENT: &str = "intent";
const PROCESS: &str = "process";

/// Written and synced before the process is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    job: uuid::Uuid,
    attempt: u32,
    fence: u64,
    /// The session that it belonged to.
    pub session: String,
    boot_id: String,
    cgroup: Option<PathBuf>,
    /// Further control groups, that bound what it uses.
    limits: Vec<PathBuf>,
    /// What a successor has to know of the job.
    pub terms: Terms,
    /// The GPUs that it has.
    #[serde(default)]
    pub gpus: Vec<String>,
}

/// What of a job its agent needs while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The lease.
    pub lost_after: Duration,
    /// What becomes of output that the spool has no room for.
    pub when_full: WhenFull,
}

impl Intent {
    /// For an attempt of this process.
    #[must_use]
    pub fn new(key: AttemptKey, session: &str, terms: Terms, cgroup: Option<&Cgroup>, limits: &[Cgroup]) -> Self {
        Self {
            job: key.job,
            attempt: key.attempt,
            fence: key.fence,
            session: session.to_owned(),
            boot_id: boot_id(),
            cgroup: cgroup.map(|cgroup| cgroup.dir().to_owned()),
            limits: limits.iter().map(|group| group.dir().to_owned()).collect(),
            terms,
            gpus: Vec::new(),
        }
    }

    /// With these GPUs.
    #[must_use]
    pub fn having(self, gpus: &[String]) -> Self {
        Self { gpus: gpus.to_owned(), ..self }
    }

    /// Which attempt.
    #[must_use]
    pub fn key(&self) -> AttemptKey {
        AttemptKey { job: self.job, attempt: self.attempt, fence: self.fence }
    }

    /// Its control group, which exists before the intent does.
    #[must_use]
    pub fn cgroup(&self) -> Option<Cgroup> {
        self.cgroup.clone().map(Cgroup::at)
    }

    /// Takes its control groups away, which must be empty.
    pub fn remove_cgroups(&self) {
        self.cgroup.iter().chain(&self.limits).for_each(|dir| Cgroup::at(dir.clone()).remove());
    }

    /// Makes it durable, with the directory that it is in.
    pub fn write(&self, record: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        if crate::armed!("bug::intent-not-written") {
            return Ok(());
        }
        disk::write_durably(&record.join(INTENT), &text)?;
        record.parent().map_or(Ok(()), disk::sync_dir)
    }

    /// Reads it; `None` where there is none.
    ///
    /// # Errors
    /// Of kind `InvalidData` where it is damaged.
    pub fn read(record: &Path) -> io::Result<Option<Self>> {
        disk::read_json(&record.join(INTENT))
    }

    /// What is known of an attempt; nothing where that cannot be read, which is told.
    #[must_use]
    pub fn known(record: &Path) -> Option<Self> {
        Self::read(record).unwrap_or_else(|error| {
            tracing::error!(%error, "an attempt is not known any more");
            None
        })
    }

    /// Kills whatever is left of the attempt, once its guardian, which does the same, is gone. True only where its guardian
    /// has seen that nothing was left, or its control group was seen to be empty: a process group says nothing about what
    /// left it, and a changed boot id proves nothing.
    #[must_use]
    pub fn kill_orphans(&self, record: &Path, patience: &Patience) -> bool {
        let alone = guardian::outlast(record, patience);
        if alone && guardian::saw_the_end(record) {
            self.remove_cgroups();
            return true;
        }
        if self.boot_id != boot_id() {
            return false;
        }
        if let Some(mark) = ProcessMark::read(record)
            && mark.is_alive()
        {
            let group = Pid::from_raw(mark.pid);
            // It may end in between, which is just as well.
            let _ = killpg(group, Signal::SIGKILL);
        }
        let proven = self.cgroup().is_some_and(|cgroup| {
            let empty = cgroup.kill_until_empty();
            if empty {
                self.remove_cgroups();
            }
            empty
        });
        self.kill_by_environment();
        proven
    }

    /// Finds what has left the group, or was made just before the agent died, by the environment that it inherited.
    fn kill_by_environment(&self) {
        let wanted = [
            format!("HODEI_JOB_ID={}", self.job),
            format!("HODEI_ATTEMPT={}", self.attempt),
            format!("HODEI_FENCE={}", self.fence),
        ];
        let Ok(processes) = fs::read_dir("/proc") else { return };
        for entry in processes.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
            let has = |text: &String| environment.split(|byte| *byte == 0).any(|item| item == text.as_bytes());
            if pid > 1 && wanted.iter().all(has) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// The main process, told from any later one with the same pid by its start time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMark {
    pid: i32,
    started: u64,
}

impl ProcessMark {
    /// Of a process that exists, be it as a zombie.
    pub fn of(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        Ok(Self { pid, started: start_time(pid).ok_or(io::ErrorKind::NotFound)? })
    }

    /// Writes it. Not synced: it is of use only as long as the machine runs.
    pub fn write(&self, record: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        disk::write_for_now(&record.join(PROCESS), &text)
    }

    /// None where it is damaged: whom it names then may be a stranger.
    fn read(record: &Path) -> Option<Self> {
        disk::read_json(&record.join(PROCESS)).unwrap_or_else(|error| {
            tracing::error!(%error, "a process is not known any more");
            None
        })
    }

    fn is_alive(&self) -> bool {
        self.pid > 1 && start_time(self.pid) == Some(self.started)
    }
}

/// Field 22 of `/proc/<pid>/stat`: clock ticks after boot. The name in parentheses may contain anything.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The running kernel's id.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::CommandExt as _, process::Command};

    use super::*;

    const TERMS: Terms = Terms { lost_after: Duration::from_secs(5), when_full: WhenFull::Block };

    #[test]
    fn a_left_over_group_is_killed_and_a_reused_pid_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let key = AttemptKey { job: uuid::Uuid::now_v7(), attempt: 1, fence: 9 };
        let intent = Intent::new(key, "s", TERMS, None, &[]);
        intent.write(dir.path()).unwrap();
        let mut child = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let mark = ProcessMark::of(child.id()).unwrap();
        ProcessMark { started: mark.started + 1, ..mark.clone() }.write(dir.path()).unwrap();
        assert!(!Intent::known(dir.path()).unwrap().kill_orphans(dir.path(), &Patience::new()));
        assert!(child.try_wait().unwrap().is_none(), "another process with the same pid is left alone");
        mark.write(dir.path()).unwrap();
        assert!(!intent.kill_orphans(dir.path(), &Patience::new()), "a process group proves nothing");
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn what_left_its_group_is_found_by_its_environment() {
        let dir = tempfile::tempdir().unwrap();
        let key = AttemptKey { job: uuid::Uuid::now_v7(), attempt: 3, fence: 9 };
        let mut child = Command::new("sleep")
            .arg("600")
            .env("HODEI_JOB_ID", key.job.to_string())
            .env("HODEI_ATTEMPT", "3")
            .env("HODEI_FENCE", "9")
            .spawn()
            .unwrap();
        // The parent goes on a moment before the new program has its environment.
        while fs::read(format!("/proc/{}/environ", child.id())).unwrap().is_empty() {
            std::thread::yield_now();
        }
        let _ = Intent::new(key, "s", TERMS, None, &[]).kill_orphans(dir.path(), &Patience::new());
        assert!(!child.wait().unwrap().success());
    }
}
