//! What a job may use of memory and CPU, where the kernel can be asked to see to it.
//!
//! With cgroup v2 the bounds are set on the group that the job has anyway. Its controllers must be handed down first, which
//! the kernel refuses as long as the agent's own group has processes in it; so the agent moves into a leaf of its own where
//! nobody else is in the way. With v1, and on machines that have both, controllers have hierarchies of their own, and a
//! job that asks for something gets a further group there.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use hodei_proto::v1::Resources;

use super::cgroup::{Cgroup, CgroupRoot, LEAF, Mounts};
use crate::watchdog::{self, guardian};

/// The period over which CPU time is counted, and the longest; microseconds.
const PERIOD: u64 = 100_000;
const LONGEST_PERIOD: u64 = 1_000_000;
/// The least that the kernel takes in a period; microseconds.
const LEAST: u64 = 1_000;

/// Where bounds can be set.
#[derive(Clone, Debug, Default)]
pub struct Limiter {
    memory: Option<Place>,
    cpu: Option<Place>,
}

#[derive(Clone, Debug)]
enum Place {
    /// On the job's own group.
    Unified,
    /// In a group below this one.
    Apart(CgroupRoot),
}

impl Limiter {
    /// Finds out where. Blocking; moves this process where that is needed and does no harm.
    #[must_use]
    pub fn detect(mounts: &Mounts, root: Option<&CgroupRoot>) -> Self {
        let unified = root.filter(|root| root.kind() == "cgroup2");
        let place = |controller: &str| {
            if unified.is_some_and(|root| hand_down(root.dir(), controller, mounts.is_given(root.dir()))) {
                return Some(Place::Unified);
            }
            let apart = mounts.group(controller).map(CgroupRoot::at).filter(CgroupRoot::usable)?;
            Some(Place::Apart(apart))
        };
        Self { memory: place("memory"), cpu: place("cpu") }
    }

    /// What can be bounded, for people and for constraints.
    #[must_use]
    pub fn kinds(&self) -> &'static str {
        match (&self.memory, &self.cpu) {
            (Some(_), Some(_)) => "memory,cpu",
            (Some(_), None) => "memory",
            (None, Some(_)) => "cpu",
            (None, None) => "none",
        }
    }

    /// Bounds what a job uses; `group` is its own. Returns the further groups that it has to join.
    pub fn apply(&self, name: &str, group: Option<&Cgroup>, wanted: &Resources) -> io::Result<Vec<Cgroup>> {
        let mut further = Vec::new();
        let mut bound = |place: Option<&Place>, set: &dyn Fn(&Path, bool) -> io::Result<()>| match (place, group) {
            (Some(Place::Unified), Some(group)) => set(group.dir(), true),
            (Some(Place::Apart(root)), _) => {
                let apart = root.create(name)?;
                let done = set(apart.dir(), false);
                further.push(apart);
                done
            }
            _ => Ok(()),
        };
        let mut result = Ok(());
        if wanted.memory_mb > 0 {
            result = bound(self.memory.as_ref(), &|dir, unified| bound_memory(dir, unified, wanted.memory_mb));
        }
        if wanted.cpu_millis > 0 && result.is_ok() {
            result = bound(self.cpu.as_ref(), &|dir, unified| bound_cpu(dir, unified, wanted.cpu_millis));
        }
        match result {
            Ok(()) => Ok(further),
            Err(error) => {
                further.iter().for_each(Cgroup::remove);
                Err(error)
            }
        }
    }

    /// Groups of their own in which bounds are set.
    pub fn roots(&self) -> impl Iterator<Item = &CgroupRoot> {
        let apart = |place: &'_ Option<Place>| matches!(place, Some(Place::Apart(_)));
        [&self.memory, &self.cpu].into_iter().filter(move |place| apart(place)).filter_map(|place| match place {
            Some(Place::Apart(root)) => Some(root),
            _ => None,
        })
    }
}

fn bound_memory(dir: &Path, unified: bool, mb: u64) -> io::Result<()> {
    let bytes = mb.saturating_mul(1 << 20).to_string();
    if unified {
        fs::write(dir.join("memory.max"), &bytes)?;
        // Neither is there everywhere: no way out through swap, and the job ends as a whole.
        let _ = fs::write(dir.join("memory.swap.max"), "0");
        let _ = fs::write(dir.join("memory.oom.group"), "1");
        return Ok(());
    }
    fs::write(dir.join("memory.limit_in_bytes"), &bytes)?;
    let _ = fs::write(dir.join("memory.memsw.limit_in_bytes"), &bytes);
    Ok(())
}

fn bound_cpu(dir: &Path, unified: bool, millis: u64) -> io::Result<()> {
    let (quota, period) = share(millis);
    if unified {
        return fs::write(dir.join("cpu.max"), format!("{quota} {period}"));
    }
    fs::write(dir.join("cpu.cfs_period_us"), period.to_string())?;
    fs::write(dir.join("cpu.cfs_quota_us"), quota.to_string())
}

/// So many thousandths of a core as microseconds per period.
fn share(millis: u64) -> (u64, u64) {
    let of = |period: u64| millis.saturating_mul(period) / 1_000;
    if of(PERIOD) >= LEAST { (of(PERIOD), PERIOD) } else { (of(LONGEST_PERIOD).max(LEAST), LONGEST_PERIOD) }
}

/// Whether groups below this one have the controller, from now on at the latest. One that was `given` is for jobs alone.
fn hand_down(root: &Path, controller: &str, given: bool) -> bool {
    let has = |file: &str| {
        let list = fs::read_to_string(root.join(file)).unwrap_or_default();
        list.split_whitespace().any(|name| name == controller)
    };
    if has("cgroup.subtree_control") {
        return true;
    }
    if !has("cgroup.controllers") {
        return false;
    }
    let ask = || fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
    match ask() {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::ResourceBusy => make_room(root, given).and_then(|()| ask()).is_ok(),
        Err(_) => false,
    }
}

/// Moves this process, its watchdogs and their guardians into a group below their own, if nobody else is in it. Out of a group that was
/// `given` it moves whatever keeps that group in being.
fn make_room(root: &Path, given: bool) -> io::Result<()> {
    let members = fs::read_to_string(root.join("cgroup.procs"))?;
    let own = std::process::id().to_string();
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let ours = |pid: &str| given || pid == own || [watchdog::NAME, guardian::NAME].contains(&name(pid).trim_end());
    if !members.lines().all(ours) {
        return Err(ErrorKind::ResourceBusy.into());
    }
    let leaf: PathBuf = root.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    members.lines().try_for_each(|pid| fs::write(leaf.join("cgroup.procs"), pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_at_least_what_the_kernel_takes() {
        assert_eq!(share(1_500), (150_000, PERIOD));
        assert_eq!(share(10), (1_000, PERIOD));
        assert_eq!(share(5), (5_000, LONGEST_PERIOD));
        assert_eq!(share(1), (1_000, LONGEST_PERIOD));
    }

    /// A machine with v2 alone: what would be written there.
    #[test]
    fn with_version_two_the_bounds_are_on_the_jobs_own_group() {
        let dir = tempfile::tempdir().unwrap();
        let limiter = Limiter { memory: Some(Place::Unified), cpu: Some(Place::Unified) };
        let wanted = Resources { cpu_millis: 250, memory_mb: 64, ..Resources::default() };
        let group = Cgroup::at(dir.path().to_owned());
        assert!(limiter.apply("x", Some(&group), &wanted).unwrap().is_empty());
        let written = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!((written("memory.max"), written("cpu.max")), ("67108864".to_owned(), "25000 100000".to_owned()));
        assert_eq!(limiter.kinds(), "memory,cpu");
    }

    #[test]
    fn controllers_are_handed_down_where_that_was_not_done() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        write("cgroup.controllers", "cpu memory\n");
        write("cgroup.subtree_control", "cpu\n");
        assert!(hand_down(dir.path(), "cpu", false) && !hand_down(dir.path(), "io", false));
        assert!(hand_down(dir.path(), "memory", false));
        assert_eq!(fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap(), "+memory");
    }

    #[test]
    fn whatever_is_in_a_group_that_was_given_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.procs"), "1\n").unwrap();
        assert_eq!(make_room(dir.path(), false).unwrap_err().kind(), ErrorKind::ResourceBusy);
        assert!(!dir.path().join(LEAF).exists());
        make_room(dir.path(), true).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(LEAF).join("cgroup.procs")).unwrap(), "1");
    }

    #[test]
    fn with_version_one_each_bound_has_a_group_of_its_own() {
        let limiter = Limiter::detect(&Mounts::read(), CgroupRoot::detect().as_ref());
        if limiter.roots().count() < 2 {
            return eprintln!("skipped: no hierarchies of version 1 for memory and CPU here");
        }
        let wanted = Resources { cpu_millis: 250, memory_mb: 64, ..Resources::default() };
        let groups = limiter.apply(&format!("limits-{}", std::process::id()), None, &wanted).unwrap();
        let read = |at: usize, file: &str| fs::read_to_string(groups[at].dir().join(file)).unwrap().trim().to_owned();
        assert_eq!(read(0, "memory.limit_in_bytes"), "67108864");
        assert_eq!(read(1, "cpu.cfs_quota_us"), "25000");
        groups.iter().for_each(Cgroup::remove);
        assert!(groups.iter().all(|group| !group.dir().exists()));
    }
}
