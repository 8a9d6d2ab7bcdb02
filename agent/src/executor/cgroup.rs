//! Control groups, where permitted: the only way to reach every descendant of a job, however it detached itself.
//!
//! Each attempt gets a group of its own below the agent's. On cgroup v2 `cgroup.kill` ends it as a whole; on v1 the
//! listed processes are killed, frozen meanwhile where that can be done, until the list is empty.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{AccessFlags, Pid, access},
};

/// How long a killed group may take to become empty.
const EMPTY_WITHIN: Duration = Duration::from_secs(2);

/// An empty group that is older than this belongs to nobody any more: from its making to its first process, and from its
/// last to its removal, an agent takes moments.
const ABANDONED_AFTER: Duration = Duration::from_secs(600);
/// What names of groups begin with.
const GROUP: &str = "hodei-";
/// Where the agent's own processes go where its group must not have any. Groups of attempts lie beside it.
pub const LEAF: &str = "hodei-agent";

/// The directory below which attempts get their groups.
#[derive(Clone, Debug)]
pub struct CgroupRoot {
    dir: PathBuf,
}

impl CgroupRoot {
    /// Finds out where this process may create groups; `None` where it may not.
    #[must_use]
    pub fn detect() -> Option<Self> {
        Self::best_of(&Mounts::read())
    }

    /// The best place that there is.
    #[must_use]
    pub fn best_of(mounts: &Mounts) -> Option<Self> {
        Self::usable_in(mounts).next()
    }

    /// All such places, the best one first.
    #[cfg(test)]
    pub(crate) fn usable_ones() -> impl Iterator<Item = Self> {
        Self::usable_in(&Mounts::read())
    }

    fn usable_in(mounts: &Mounts) -> impl Iterator<Item = Self> + use<> {
        mounts.candidates().into_iter().map(Self::at).filter(Self::usable)
    }

    /// This very directory.
    #[must_use]
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes empty groups of attempts that nobody needs any more: of `unbegun` ones of this agent, named as their
    /// directories, which had a group before anything was known of them; and old ones of whatever agent, where a watchdog and
    /// an agent have died for good.
    pub fn sweep(&self, unbegun: &[String]) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(attempt) = name.to_str().and_then(|name| name.strip_prefix(GROUP)).filter(|_| name != LEAF) else {
                continue;
            };
            // Its fence follows.
            let is_unbegun =
                unbegun.iter().any(|of| attempt.strip_prefix(of).is_some_and(|rest| rest.starts_with('-')));
            let made = entry.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::now());
            let is_old = made.elapsed().is_ok_and(|age| age > ABANDONED_AFTER);
            let group = Cgroup::at(entry.path());
            if (is_unbegun || is_old) && group.is_empty() == Some(true) {
                group.remove();
            }
        }
    }

    /// Its version: `cgroup2` or `cgroup1`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.dir.join("cgroup.controllers").exists() { "cgroup2" } else { "cgroup1" }
    }

    /// A new group.
    pub fn create(&self, name: &str) -> io::Result<Cgroup> {
        let dir = self.dir.join(format!("{GROUP}{name}"));
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Ok(Cgroup { dir })
    }

    /// Delegation (v2) asks for write access to the common ancestor's list too.
    pub(super) fn usable(&self) -> bool {
        let Ok(probe) = self.create(&format!("probe-{}", std::process::id())) else { return false };
        let domain = fs::read_to_string(probe.dir.join("cgroup.type")).map_or(true, |kind| kind.trim() == "domain");
        let writable = |dir: &Path| access(&dir.join("cgroup.procs"), AccessFlags::W_OK).is_ok();
        let usable = domain && writable(&probe.dir) && writable(&self.dir);
        let removed = fs::remove_dir(&probe.dir).is_ok();
        usable && removed
    }
}

/// Which groups this process is in, and where they can be seen.
#[derive(Default)]
pub struct Mounts {
    mounts: String,
    own: String,
    /// From the top of a hierarchy; takes the place of the own group wherever it exists.
    given: Option<String>,
}

impl Mounts {
    /// Of this process.
    #[must_use]
    pub fn read() -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        Self { mounts: read("mountinfo"), own: read("cgroup"), given: None }
    }

    /// With a group that was made for the jobs, where one is named: this process' own must stay free of groups that
    /// controllers are handed down to, since the kernel then lets nobody in there, not even this process' successor.
    pub fn with(mut self, given: Option<&str>) -> io::Result<Self> {
        let Some(given) = given else { return Ok(self) };
        self.given = Some(given.trim_start_matches('/').to_owned());
        let exists =
            ["", "freezer", "memory", "name=systemd"].into_iter().any(|wanted| self.given_in(wanted).is_some());
        let missing =
            || io::Error::new(io::ErrorKind::NotFound, format!("--cgroup {given}: there is no such control group"));
        if exists { Ok(self) } else { Err(missing()) }
    }

    /// Groups in the order of preference: v2, then the v1 hierarchies that every system has.
    fn candidates(&self) -> Vec<PathBuf> {
        ["", "freezer", "pids", "name=systemd"].into_iter().filter_map(|wanted| self.group(wanted)).collect()
    }

    /// The group for the jobs in the hierarchy of a controller of v1; empty: in that of v2.
    #[must_use]
    pub fn group(&self, wanted: &str) -> Option<PathBuf> {
        self.given_in(wanted).or_else(|| self.own_in(wanted))
    }

    /// Whether a directory is that of the group that was made for the jobs, in the hierarchy of v2.
    #[must_use]
    pub fn is_given(&self, dir: &Path) -> bool {
        self.given_in("").is_some_and(|given| given == dir)
    }

    fn given_in(&self, wanted: &str) -> Option<PathBuf> {
        let (root, point) = self.mount(wanted)?;
        // Of a hierarchy of which only a part can be seen, its top is not there.
        let dir = Path::new(point).join(self.given.as_ref()?);
        (root == "/" && dir.is_dir()).then_some(dir)
    }

    fn own_in(&self, wanted: &str) -> Option<PathBuf> {
        let path = self.own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            controllers.split(',').any(|controller| controller == wanted).then_some(path)
        })?;
        let (root, point) = self.mount(wanted)?;
        let below = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(path).trim_start_matches('/');
        let own = if below == LEAF { "" } else { below.strip_suffix(&format!("/{LEAF}")).unwrap_or(below) };
        Some(Path::new(point).join(own))
    }

    /// What of a hierarchy can be seen, and where.
    fn mount(&self, wanted: &str) -> Option<(&str, &str)> {
        self.mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut right = right.split(' ');
            let (kind, options) = (right.next()?, right.nth(1)?);
            let fits = if wanted.is_empty() { kind == "cgroup2" } else { options.split(',').any(|o| o == wanted) };
            let mut left = left.split(' ').skip(3);
            let (root, point) = (left.next()?, left.next()?);
            (fits && kind.starts_with("cgroup")).then_some((root, point))
        })
    }
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
        // Nothing is made meanwhile where it can be frozen; what is killed goes once it thaws.
        let freezer = self.dir.join("freezer.state");
        let frozen = freezer.exists() && fs::write(&freezer, "FROZEN").is_ok();
        for pid in groups_of(&self.dir).iter().flat_map(|dir| members(dir)) {
            // It may have ended in between; the next round looks again.
            let _ = kill(pid, Signal::SIGKILL);
        }
        if frozen && let Err(error) = fs::write(&freezer, "THAWED") {
            tracing::error!(%error, "a control group that was frozen does not thaw");
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
            Err(_) => {
                fs::read_to_string(self.dir.join("cgroup.procs")).ok()?;
                Some(groups_of(&self.dir).iter().all(|dir| members(dir).is_empty()))
            }
        }
    }

    /// Whether the kernel killed something in it for want of memory.
    #[must_use]
    pub fn out_of_memory(&self) -> bool {
        ["memory.events", "memory.oom_control"].into_iter().any(|file| {
            let events = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
            events.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count != "0")
        })
    }

    /// Removes it, with the groups that the job has made in it. One that is still populated stays.
    pub fn remove(&self) {
        for dir in groups_of(&self.dir).iter().rev() {
            if let Err(error) = fs::remove_dir(dir)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::debug!(dir = %dir.display(), %error, "cannot remove a control group");
            }
        }
    }
}

/// A group and all groups below it, each after the one that it is in.
fn groups_of(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    let mut at = 0;
    while let Some(dir) = found.get(at) {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let below: Vec<_> = below.map(|entry| entry.path()).collect();
        found.extend(below);
        at += 1;
    }
    found
}

fn members(dir: &Path) -> Vec<Pid> {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).filter(|pid| pid.as_raw() > 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_two_is_preferred_and_roots_are_taken_off() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      31 24 0:27 /docker/abc /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let own = "12:pids:/docker/abc/x\n0::/system.slice/agent.service\n";
        let mounts = Mounts { mounts: mounts.to_owned(), own: own.to_owned(), given: None };
        let service = Path::new("/sys/fs/cgroup/unified/system.slice/agent.service");
        assert_eq!(mounts.candidates(), [service, Path::new("/sys/fs/cgroup/pids/x")]);
        // In its leaf it is still the service's.
        let own = "0::/system.slice/agent.service/hodei-agent\n".to_owned();
        assert_eq!(Mounts { own, ..mounts }.candidates(), [service]);
        assert!(Mounts { own: "0::/\n".to_owned(), ..Mounts::default() }.candidates().is_empty());
    }

    #[test]
    fn a_group_that_was_made_for_the_jobs_is_taken_where_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let point = |name: &str| dir.path().join(name).display().to_string();
        let mounts = format!(
            "30 24 0:26 / {} rw - cgroup2 cgroup2 rw\n31 24 0:27 / {} rw - cgroup cgroup rw,pids\n",
            point("unified"),
            point("pids")
        );
        let own = "12:pids:/agent\n0::/agent\n".to_owned();
        let mounts = Mounts { mounts, own, given: None };
        fs::create_dir_all(dir.path().join("unified/jobs")).unwrap();
        let mounts = mounts.with(Some("/jobs")).unwrap();
        assert_eq!(mounts.candidates(), [dir.path().join("unified/jobs"), dir.path().join("pids/agent")]);
        assert!(mounts.with(Some("/gone")).is_err_and(|error| error.to_string().contains("--cgroup /gone")));
    }

    #[test]
    fn groups_of_attempts_that_never_began_are_swept_and_no_others() {
        for root in CgroupRoot::usable_ones() {
            let job = format!("unbegun-{}", std::process::id());
            let [unbegun, other, young] =
                ["1-7", "11-7", "2-8"].map(|attempt| root.create(&format!("{job}-{attempt}")).unwrap());
            root.sweep(&[format!("{job}-1")]);
            assert!(!unbegun.dir().exists(), "{}", unbegun.dir().display());
            assert!(other.dir().exists() && young.dir().exists());
            [other, young].iter().for_each(Cgroup::remove);
        }
    }

    #[test]
    fn groups_that_a_job_has_made_inside_its_own_are_killed_and_removed_with_it() {
        for root in CgroupRoot::usable_ones() {
            let group = root.create(&format!("nested-{}", std::process::id())).unwrap();
            let inner = Cgroup::at(group.dir().join("inner"));
            fs::create_dir(inner.dir()).unwrap();
            let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
            fs::write(inner.dir().join("cgroup.procs"), child.id().to_string()).unwrap();
            assert_eq!(group.is_empty(), Some(false), "{}", group.dir().display());
            // The child is this process' own, so it stays in the list of v1 until it is waited for.
            group.kill();
            assert!(!child.wait().unwrap().success());
            assert!(group.kill_until_empty());
            group.remove();
            assert!(!group.dir().exists());
        }
    }
}
