//! Jobs, and their processes.

use std::{path::Path, time::Duration};

use hodei_agent::key::AttemptKey;
use hodei_proto::v1::{Command, JobSpec, Script, Shell, command};
use tokio::time::timeout;

use super::{Cluster, PATIENCE, Seen};

pub fn shell(cmd: &str, args: &[&str]) -> JobSpec {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let kind = command::Kind::Shell(Shell { cmd: cmd.to_owned(), args });
    JobSpec { command: Some(Command { kind: Some(kind) }), ..JobSpec::default() }
}

pub fn script(content: &str) -> JobSpec {
    let kind = command::Kind::Script(Script { interpreter: String::new(), content: content.to_owned() });
    JobSpec { command: Some(Command { kind: Some(kind) }), ..JobSpec::default() }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The pid that a job printed first.
pub async fn printed_pid(cluster: &Cluster, key: AttemptKey) -> u32 {
    let look = |seen: &Seen| text(&seen.logs.get(&(0, key))?.out).lines().next()?.parse().ok();
    cluster.until("a pid in the log", look).await
}

/// Waits until something that nobody tells of is so.
async fn until_true(what: &str, so: impl Fn() -> bool) {
    let wait = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

/// Waits until a process is gone (or a zombie that somebody else has to reap).
pub async fn until_gone(pid: u32) {
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let gone = || !stat().is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"));
    until_true(&format!("process {pid} is gone"), gone).await;
}

/// Waits until a directory is empty.
pub async fn until_empty(dir: &Path) {
    until_true(&format!("{} is empty", dir.display()), || std::fs::read_dir(dir).unwrap().next().is_none()).await;
}

/// Waits until a file is there.
pub async fn until_there(path: &Path) {
    until_true(&format!("{} is there", path.display()), || path.exists()).await;
}

/// The parent of a process.
pub fn parent(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

pub fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

pub async fn started(cluster: &Cluster, key: AttemptKey) -> u32 {
    cluster.until("started", |seen| seen.started.get(&key).copied()).await
}
