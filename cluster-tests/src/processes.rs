//! Processes of this machine, whoever started them.

use std::{fs, path::Path};

use nix::unistd::Pid;

/// Those in whose environment a variable (`NAME=value`) satisfies `wanted`.
pub fn with_variable(wanted: impl Fn(&[u8]) -> bool) -> Vec<Pid> {
    let has = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(&wanted)
    };
    all().into_iter().filter(has).map(Pid::from_raw).collect()
}

/// Those of this name that work in a directory or below it.
#[must_use]
pub fn named_within(name: &str, dir: &Path) -> Vec<Pid> {
    let is = |pid: &i32| {
        let within = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        within && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    all().into_iter().filter(is).map(Pid::from_raw).collect()
}

/// The numbers of all.
#[must_use]
pub fn all() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}
