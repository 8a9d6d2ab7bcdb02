//! Control groups (version 1) of a test's own, each with one process in it that is slowed down, stopped or starved.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::unistd::Pid;

/// Where the kernel has them, each controller in a directory of its own.
const ROOT: &str = "/sys/fs/cgroup";

/// What the names of groups begin with; the rest is whose they are, and a number.
const PREFIX: &str = "hodei-test-";
/// For a group to become empty: a process may have made another one while it was let out.
const EMPTY: Duration = Duration::from_secs(1);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(10);

/// What a group limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// How many writes a second reach a disk.
    Blkio,
    /// Whether processes run at all.
    Freezer,
    /// How much memory they may take: beyond it the kernel kills.
    Memory,
}

impl Controller {
    fn dir(self) -> PathBuf {
        let name = match self {
            Self::Blkio => "blkio",
            Self::Freezer => "freezer",
            Self::Memory => "memory",
        };
        Path::new(ROOT).join(name)
    }

    /// Whether this machine has it.
    #[must_use]
    pub fn is_there(self) -> bool {
        // The unified hierarchy has neither this file nor these directories.
        self.dir().join("cgroup.procs").exists()
    }

    /// Removes groups whose owner was killed, and lets go whom it had frozen: nobody else will.
    fn sweep(self) {
        let entries = fs::read_dir(self.dir()).into_iter().flatten().filter_map(Result::ok);
        let is_left = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX));
            let owner = name.and_then(|name| name.split('-').next()?.parse::<u32>().ok());
            owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        };
        for left in entries.map(|entry| entry.path()).filter(is_left) {
            if self == Self::Freezer {
                let _ = fs::write(left.join("freezer.state"), "THAWED");
            }
            // One that is not empty yet is left to the next sweep.
            let _ = fs::remove_dir(left);
        }
    }
}

/// A group with one process in it. Dropping it lets the process go.
#[derive(Debug)]
pub struct Group {
    controller: Controller,
    at: PathBuf,
}

impl Group {
    /// Puts a process into a group of its own, which has the value in the file that bounds it.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[must_use]
    pub fn around(process: Pid, controller: Controller, (file, value): (&str, &str)) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        controller.sweep();
        let name = format!("{PREFIX}{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let group = Self { controller, at: controller.dir().join(name) };
        fs::create_dir(&group.at).unwrap_or_else(|e| panic!("{}: {e}", group.at.display()));
        for (file, value) in [(file, value), ("cgroup.procs", &process.to_string())] {
            group.write(file, value).unwrap_or_else(|e| panic!("{}: {e}", group.at.join(file).display()));
        }
        group
    }

    /// At most so many writes a second to the disk that is this device.
    #[must_use]
    pub fn slow(process: Pid, device: u64, writes_per_second: u32) -> Self {
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let value = format!("{major}:{minor} {writes_per_second}");
        Self::around(process, Controller::Blkio, ("blkio.throttle.write_iops_device", &value))
    }

    /// Stopped as a whole, without a signal that anybody could see.
    #[must_use]
    pub fn frozen(process: Pid) -> Self {
        Self::around(process, Controller::Freezer, ("freezer.state", "FROZEN"))
    }

    /// No further page of memory: the kernel kills the process where it next touches one, in whatever it does then.
    #[must_use]
    pub fn starved(process: Pid) -> Self {
        Self::around(process, Controller::Memory, ("memory.limit_in_bytes", "0"))
    }

    /// Whether nobody is left in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.processes().is_empty()
    }

    fn processes(&self) -> String {
        fs::read_to_string(self.at.join("cgroup.procs")).unwrap_or_default()
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.at.join(file), value)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.controller == Controller::Freezer {
            // What is frozen cannot leave.
            let _ = self.write("freezer.state", "THAWED");
        }
        let outside = self.controller.dir().join("cgroup.procs");
        let by = Instant::now() + EMPTY;
        loop {
            for pid in self.processes().lines() {
                // One that has just ended needs no more help.
                let _ = fs::write(&outside, pid);
            }
            match fs::remove_dir(&self.at) {
                Ok(()) => return,
                Err(error) if Instant::now() >= by => {
                    eprintln!("{}: {error}", self.at.display());
                    return;
                }
                Err(_) => thread::sleep(AGAIN),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{fs::MetadataExt as _, process::ExitStatusExt as _},
        process::{Child, Command, ExitStatus},
    };

    use super::*;
    use crate::disk::{Disk, permitted};

    /// Whether the test can be made here; says so where not.
    fn can(controller: Controller) -> bool {
        let is_there = permitted() && controller.is_there();
        if !is_there {
            eprintln!("skipped: no {controller:?} controller of version 1");
        }
        is_there
    }

    /// A shell with a script and its arguments, which does not outlive its test.
    struct Running(Child);

    impl Running {
        fn sh(script: &str, args: &[&Path]) -> Self {
            Self(Command::new("sh").args(["-c", script]).args(args).spawn().expect("sh runs"))
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(self.0.id().cast_signed())
        }

        fn wait(&mut self) -> ExitStatus {
            self.0.wait().expect("a child can be waited for")
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn until(what: &str, holds: impl Fn() -> bool) {
        let by = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < by, "{what}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_slow_disk_takes_so_many_writes_a_second() {
        if !can(Controller::Blkio) {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory can be made");
        let disk = Disk::new(dir.path(), "disk", 16);
        let script = r#"while [ ! -e "$1" ]; do sleep 0.01; done; for i in 1 2 3 4 5; do dd if=/dev/zero of="$0" bs=512 count=1 oflag=sync 2>&1; done"#;
        let [file, go] = [disk.path().join("file"), dir.path().join("go")];
        let mut writer = Running::sh(script, &[&file, &go]);
        let device = fs::metadata(disk.path()).expect("it is mounted").dev();
        let slow = Group::slow(writer.pid(), device, 5);
        let begun = Instant::now();
        fs::write(&go, "").expect("a file can be made");
        assert!(writer.wait().success());
        assert!(begun.elapsed() > Duration::from_millis(400), "{:?}", begun.elapsed());
        let group = slow.at.clone();
        drop(slow);
        assert!(!group.exists());
    }

    #[test]
    fn what_is_frozen_goes_on_when_it_is_let_go() {
        if !can(Controller::Freezer) {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory can be made");
        let [ticks, others] = ["ticks", "others"].map(|name| dir.path().join(name));
        let script = r#"while :; do echo >> "$0"; sleep 0.01; done"#;
        let [child, _other] = [&ticks, &others].map(|file| Running::sh(script, &[file]));
        let count_of = |file: &Path| fs::metadata(file).map_or(0, |file| file.len());
        let count = || count_of(&ticks);
        until("it begins", || count() > 0);
        let group = Group::frozen(child.pid());
        let state = group.at.join("freezer.state");
        until("it is frozen", || fs::read_to_string(&state).is_ok_and(|state| state.trim() == "FROZEN"));
        let (before, others_before) = (count(), count_of(&others));
        until("another one goes on", || count_of(&others) > others_before + 10);
        assert_eq!(count(), before);
        drop(group);
        until("it goes on", || count() > before);
    }

    #[test]
    fn groups_of_the_dead_are_swept_and_those_of_the_living_stay() {
        if !can(Controller::Freezer) {
            return;
        }
        // It lives until the group has somebody in it: other tests sweep too.
        let mut owner = Running::sh("exec sleep 60", &[]);
        let dir = Controller::Freezer.dir();
        let [left, held] = [owner.0.id(), std::process::id()].map(|pid| dir.join(format!("{PREFIX}{pid}-sweep")));
        for group in [&left, &held] {
            fs::create_dir(group).expect("a group can be made");
        }
        let mut child = Running::sh("exec sleep 60", &[]);
        fs::write(left.join("cgroup.procs"), child.pid().to_string()).expect("a process can be moved");
        fs::write(left.join("freezer.state"), "FROZEN").expect("a group can be frozen");
        let _ = owner.0.kill();
        owner.wait();
        // Nobody frozen can die.
        let _ = child.0.kill();
        Controller::Freezer.sweep();
        child.wait();
        until("it is swept", || {
            Controller::Freezer.sweep();
            !left.exists()
        });
        assert!(held.exists());
        fs::remove_dir(held).expect("it is empty");
    }

    #[test]
    fn a_process_that_multiplies_is_let_out_of_its_group() {
        if !can(Controller::Freezer) {
            return;
        }
        let child = Running::sh("while :; do sleep 0.05 & wait; done", &[]);
        for _ in 0..20 {
            let group = Group::around(child.pid(), Controller::Freezer, ("freezer.state", "THAWED"));
            let at = group.at.clone();
            until("it has multiplied there", || group.processes().lines().count() > 1);
            drop(group);
            assert!(!at.exists());
        }
    }

    #[test]
    fn the_kernel_kills_what_is_starved() {
        if !can(Controller::Memory) {
            return;
        }
        let mut child = Running::sh("x=y; while :; do x=$x$x; sleep 0.01; done", &[]);
        let group = Group::starved(child.pid());
        assert_eq!(child.wait().signal(), Some(9));
        assert!(group.is_empty());
    }
}
