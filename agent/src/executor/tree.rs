//! The process tree of an attempt: its process group and, where permitted, its control group.

use std::process::ExitStatus;

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use parking_lot::Mutex;

use super::{cgroup::Cgroup, process::Process};

/// What can be signalled. The group's number is the main process' pid, which the kernel may give to somebody else once
/// that process is reaped; so signals and reaping exclude each other, and nothing is sent to the group afterwards.
pub struct Tree {
    group: Mutex<Option<Pid>>,
    cgroup: Option<Cgroup>,
}

impl Tree {
    /// The tree whose main process leads the group `pid`.
    #[must_use]
    pub fn new(pid: u32, cgroup: Option<Cgroup>) -> Self {
        let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1).map(Pid::from_raw);
        Self { group: Mutex::new(pid), cgroup }
    }

    /// Asks the group to end.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Kills the whole tree. May be repeated.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
    }

    /// Reaps the main process, which must have ended.
    pub fn reap(&self, process: &Process) -> std::io::Result<ExitStatus> {
        let mut group = self.group.lock();
        *group = None;
        process.reap()
    }

    /// Its control group.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = *self.group.lock()
            && let Err(error) = killpg(group, signal)
        {
            tracing::debug!(%group, %error, "cannot signal a process group");
        }
    }
}
