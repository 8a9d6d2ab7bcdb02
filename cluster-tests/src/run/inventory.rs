//! What attempts have left on this machine: processes, what watches over these, directories and control groups.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{cluster::Agent, history::Found, processes};

/// Everything of attempts that ran on these agents; of control groups, of these jobs.
pub(super) fn of(agents: &[Agent], is_ours: impl Fn(&str) -> bool) -> Vec<Found> {
    let mut all = of_agents(agents);
    all.extend(groups(is_ours));
    all
}

/// The same of attempts that run: of their jobs there is more than a control group.
pub(super) fn of_running(agents: &[Agent]) -> Vec<Found> {
    let mut all = of_agents(agents);
    let jobs: BTreeSet<String> =
        all.iter().filter_map(|found| Some(found.owner.split_once('/')?.0.to_owned())).collect();
    all.extend(groups(|job| jobs.contains(job)));
    all
}

fn found(what: &str, id: String, owner: String) -> Found {
    Found { what: what.to_owned(), id, owner }
}

fn of_agents(agents: &[Agent]) -> Vec<Found> {
    let owned = processes::all().into_iter().filter_map(|pid| Some((pid, owner(pid, agents)?)));
    let processes = owned.map(|(pid, owner)| found("process", pid.to_string(), owner));
    let names = agents.iter().flat_map(|agent| attempts_below(&agent.data.join("attempts")));
    let directories = names.map(|name| found("directory", name.clone(), owner_of(&name)));
    processes.chain(agents.iter().flat_map(watchers)).chain(directories).collect()
}

/// Watchdogs and guardians. They have no variable that names their attempt: they work in its directory, be it removed.
fn watchers(agent: &Agent) -> Vec<Found> {
    let dir = agent.data.join("attempts");
    let of = |what: &'static str| {
        processes::named_within(&format!("hodei-{what}"), &dir).into_iter().map(move |pid| (what, pid))
    };
    let all = ["watchdog", "guardian"].into_iter().flat_map(of);
    all.filter_map(|(what, pid)| {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        let attempt = cwd.strip_prefix(&dir).ok()?.iter().next()?.to_string_lossy();
        Some(found(what, pid.to_string(), owner_of(attempt.trim_end_matches(" (deleted)"))))
    })
    .collect()
}

/// The attempt that has a directory of this name.
fn owner_of(directory: &str) -> String {
    directory.rsplit_once('-').map_or_else(|| directory.to_owned(), |(job, attempt)| format!("{job}/{attempt}"))
}

fn groups(is_ours: impl Fn(&str) -> bool) -> Vec<Found> {
    let groups = groups_below(Path::new("/sys/fs/cgroup")).into_iter();
    let ours = groups.filter_map(|group| {
        let (job, attempt) = attempt_of(&group).filter(|(job, _)| is_ours(job))?;
        let owner = format!("{job}/{attempt}");
        Some(found("cgroup", group, owner))
    });
    ours.collect()
}

/// The attempt of one of these agents that has started a process.
fn owner(pid: i32, agents: &[Agent]) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let variable = |name: &str| {
        let prefix = format!("{name}=");
        let of = environment.split(|&byte| byte == 0).find_map(|var| var.strip_prefix(prefix.as_bytes()));
        of.map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let worker = variable("HODEI_WORKER_ID")?;
    agents.iter().find(|agent| agent.worker == worker)?;
    Some(format!("{}/{}", variable("HODEI_JOB_ID")?, variable("HODEI_ATTEMPT")?))
}

/// Directories of attempts, which an agent removes once the cluster knows all about them.
fn attempts_below(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// The names of all control groups.
fn groups_below(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let groups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let named = groups.flat_map(|group| {
        let mut below = groups_below(&group.path());
        below.extend(group.file_name().into_string());
        below
    });
    named.collect()
}

/// The job and the attempt that a control group is of: `hodei-<job>-<attempt>-<fence>`.
fn attempt_of(group: &str) -> Option<(&str, &str)> {
    let (of, _fence) = group.strip_prefix("hodei-")?.rsplit_once('-')?;
    of.rsplit_once('-')
}
