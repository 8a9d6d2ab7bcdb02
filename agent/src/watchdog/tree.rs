//! Everything that descends from a job's process, as its watchdog can end it and see that it has ended, and its guardian
//! after the watchdog.
//!
//! A control group holds whatever is made inside it. Besides, both are subreapers of their descendants: one whose parent
//! has ended becomes the nearest one's child, however it detached itself. So where there is no child left and the control
//! group is empty, nothing is left, and where no control group is permitted the first of the two says it.

use std::{fs, thread, time::Duration};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::{Pid, getpid},
};

use super::{process, wire::Usage};
use crate::executor::cgroup::Cgroup;

/// What remains of a tree is looked at again after this, and then after twice as long.
pub const FIRST_LOOK: Duration = Duration::from_millis(1);
/// But at least this often.
pub const LAST_LOOK: Duration = Duration::from_millis(100);

/// All children of this process, which is their subreaper, and a control group. For a process that has no other children.
pub struct Descendants {
    cgroup: Option<Cgroup>,
}

impl Descendants {
    /// With the control group that they are in, where they are in one.
    #[must_use]
    pub fn new(cgroup: Option<Cgroup>) -> Self {
        Self { cgroup }
    }

    /// Kills what there is now. To be repeated until [`Descendants::are_gone`].
    pub fn kill(&self) {
        if let Some(cgroup) = &self.cgroup
            && cgroup.is_empty() != Some(true)
        {
            cgroup.kill();
        }
        for child in children() {
            // Not reaped yet, so the number is its own.
            let _ = kill(child, Signal::SIGKILL);
        }
    }

    /// Whether nothing is left. Reaps whatever has ended.
    #[must_use]
    pub fn are_gone(&self) -> bool {
        no_child_is_left() && self.cgroup.as_ref().is_none_or(|cgroup| cgroup.is_empty() == Some(true))
    }

    /// Kills until nothing is left. Blocking, for as long as it takes. False where the control group is not there any more:
    /// somebody else has seen to it.
    #[must_use]
    pub fn end(&self) -> bool {
        let mut look = FIRST_LOOK;
        loop {
            if no_child_is_left() {
                match self.cgroup.as_ref().map(Cgroup::is_empty) {
                    None | Some(Some(true)) => return true,
                    Some(None) => return false,
                    Some(Some(false)) => {}
                }
            }
            self.kill();
            thread::sleep(look);
            look = (look * 2).min(LAST_LOOK);
        }
    }
}

/// A tree and its main process.
pub struct Tree {
    main: Pid,
    /// Present once the main process has been reaped; from then on its number is not its own any more.
    ended: Option<(i32, Usage)>,
    descendants: Descendants,
}

impl Tree {
    /// Of a process that leads a group of its own.
    #[must_use]
    pub fn new(main: Pid, cgroup: Option<Cgroup>) -> Self {
        Self { main, ended: None, descendants: Descendants::new(cgroup) }
    }

    /// The main process.
    #[must_use]
    pub fn main(&self) -> u32 {
        self.main.as_raw().unsigned_abs()
    }

    /// Asks the main process' group to end.
    pub fn terminate(&self) {
        self.signal_group(Signal::SIGTERM);
    }

    /// Kills what there is now. To be repeated until [`Tree::is_empty`].
    pub fn kill(&self) {
        self.signal_group(Signal::SIGKILL);
        self.descendants.kill();
    }

    /// Whether the main process has ended. Reaps every other child that has.
    pub fn main_has_ended(&mut self) -> bool {
        if self.ended.is_some() {
            return true;
        }
        self.reap_others();
        let how = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        // Anything but "still alive" is the end: a signal that nix does not know is reported as an error.
        !matches!(waitid(Id::Pid(self.main), how), Ok(WaitStatus::StillAlive))
    }

    /// Reaps the main process, which has ended. Whatever is to be sent to its group has been sent before.
    pub fn reap_main(&mut self) -> std::io::Result<()> {
        if self.ended.is_none() {
            self.ended = Some(process::reap(self.main)?);
        }
        Ok(())
    }

    /// How the main process ended, as wait(2) gives it.
    #[must_use]
    pub fn end(&self) -> Option<(i32, Usage)> {
        self.ended
    }

    /// Whether nothing is left, once the main process has been reaped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.descendants.are_gone()
    }

    /// The control group.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.descendants.cgroup.as_ref()
    }

    fn signal_group(&self, signal: Signal) {
        if self.ended.is_none() {
            // It may have ended in between, which is just as well.
            let _ = killpg(self.main, signal);
        }
    }

    /// All children that have ended but the main process.
    fn reap_others(&self) {
        for child in children().into_iter().filter(|child| *child != self.main) {
            let _ = waitpid(child, Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// Reaps whatever has ended.
fn no_child_is_left() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return false,
            Err(Errno::ECHILD) => return true,
            // Reaped one, or was interrupted, or nix does not know the signal that ended it.
            Ok(_) | Err(_) => {}
        }
    }
}

/// Children of this process, as far as can be seen.
fn children() -> Vec<Pid> {
    let own = getpid();
    match fs::read_to_string(format!("/proc/self/task/{own}/children")) {
        Ok(list) => list.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect(),
        // A kernel without that list.
        Err(_) => {
            let parent = |pid: &i32| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<i32>().ok()
            };
            let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
            let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            pids.filter(|pid| parent(pid) == Some(own.as_raw())).map(Pid::from_raw).collect()
        }
    }
}
