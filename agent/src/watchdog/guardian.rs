//! The guardian: the watchdog's parent, there for what a watchdog cannot see to, its own sudden end.
//!
//! The agent starts it; before it does anything else it forks, and its child goes on as the watchdog. From then on it
//! waits for that child and nothing else wakes it. Where the watchdog ends in order, so does the guardian: the watchdog has
//! seen the tree empty by then, or there never was one. Where it ends otherwise, the kernel gives all that it had as
//! descendants to the guardian, the next subreaper above, which kills them and the control group until nothing is left, and
//! says so in the attempt's directory ([`saw_the_end`]).
//!
//! Where the guardian dies first, the watchdog notices by a pipe that only the guardian holds open, and ends the job by
//! itself. So whichever of agent, watchdog and guardian are killed, one of them is enough to end the job.
//!
//! **Its lock** in the attempt's directory is of the kind that belongs to a process and is not inherited (fcntl). It is
//! taken before the watchdog exists, so whoever finds neither a watchdog nor this lock knows that nobody is killing there.

#![allow(unsafe_code, reason = "std and nix have no safe fork; this process has one thread")]

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    sys::{
        prctl,
        signal::SigSet,
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, pipe2, setsid},
};

use super::{
    patience::Patience,
    process::take_stdin,
    run::{self, Legacy},
    tree::Descendants,
};
use crate::executor::intent::Intent;

/// What people see of it who list processes. As long as the watchdog's, whose place it takes.
pub const NAME: &str = "hodei-guardian";
const _: () = assert!(NAME.len() == super::NAME.len(), "it is written over the other");
/// Held for as long as it lives; in the attempt's directory.
const LOCK: &str = "guardian";
/// Written once it has seen that nothing is left.
const NOTHING_LEFT: &str = "nothing-left";
/// The attempt's directory: this process' own.
const HERE: &str = ".";

const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The whole of the process that the agent starts, and of the watchdog.
#[must_use]
pub fn main() -> ExitCode {
    match begin() {
        Ok(Role::Watchdog(legacy)) => run::main(legacy),
        Ok(Role::Guardian { watchdog, .. }) => watch(watchdog),
        Err(error) => {
            eprintln!("no watchdog can be made: {error}");
            ExitCode::FAILURE
        }
    }
}

enum Role {
    Watchdog(Legacy),
    Guardian {
        watchdog: Pid,
        /// Both tell others by being open that this process lives.
        _held: (File, OwnedFd),
    },
}

fn begin() -> io::Result<Role> {
    SigSet::all().thread_block()?;
    // Fails only for who leads a session already.
    let _ = setsid();
    prctl::set_child_subreaper(true)?;
    let agent = take_stdin()?;
    let oom_score = protect();
    let lock = lock()?;
    let (guardian, alive) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: this process has one thread, so its copy may do whatever it likes.
    match unsafe { fork() }? {
        ForkResult::Child => Ok(Role::Watchdog(Legacy { agent, guardian, oom_score })),
        // The agent takes the end of its connection for the watchdog's: this one must not be kept here.
        ForkResult::Parent { child } => Ok(Role::Guardian { watchdog: child, _held: (lock, alive) }),
    }
}

fn watch(watchdog: Pid) -> ExitCode {
    let _ = prctl::set_name(c"hodei-guardian");
    let _ = rename();
    loop {
        match waitpid(watchdog, None) {
            Ok(WaitStatus::Exited(_, 0)) => return ExitCode::SUCCESS,
            Err(Errno::EINTR) => {}
            // A signal that nix does not know is reported as an error.
            Ok(_) | Err(_) => break,
        }
    }
    crate::failpoint!("guardian::before-end");
    eprintln!("the watchdog has died: what it had is killed");
    let intent = Intent::read(Path::new(HERE)).unwrap_or_else(|error| {
        eprintln!("{error}");
        None
    });
    let cgroup = intent.and_then(|intent| intent.cgroup());
    if crate::armed!("bug::guardian-kills-nothing") {
        return ExitCode::SUCCESS;
    }
    if Descendants::new(cgroup).end() {
        // Nobody may want to know any more, and then the directory is gone.
        let _ = fs::write(NOTHING_LEFT, "");
    }
    ExitCode::SUCCESS
}

/// Both are the last to go when memory is short, where that is permitted. Returns what the job is to have.
fn protect() -> Option<String> {
    let path = "/proc/self/oom_score_adj";
    let before = fs::read_to_string(path).ok()?;
    let _ = File::options().write(true).open(path).and_then(|mut file| file.write_all(b"-1000"));
    Some(score_of_job(&before))
}

/// What protects the agent is not for its jobs: these go before the agent, and before what else the machine serves.
fn score_of_job(agents: &str) -> String {
    agents.trim().parse().unwrap_or(0).max(0_i32).to_string()
}

/// In the list of arguments, which is the watchdog's so far. Only for people.
fn rename() -> Option<()> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // Field 48 of proc_pid_stat(5): where the arguments begin.
    let begin = stat.rsplit_once(')')?.1.split_whitespace().nth(45)?.parse().ok()?;
    let memory = File::options().read(true).write(true).open("/proc/self/mem").ok()?;
    let mut now = [0; NAME.len()];
    memory.read_exact_at(&mut now, begin).ok()?;
    (now == *super::NAME.as_bytes()).then_some(())?;
    memory.write_all_at(NAME.as_bytes(), begin).ok()
}

fn lock() -> io::Result<File> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(LOCK)?;
    fcntl(&file, FcntlArg::F_SETLK(&whole_file()))?;
    Ok(file)
}

/// Waits until the guardian of an attempt is gone, or there never was one, while there is patience. Blocking.
#[must_use]
pub fn outlast(record: &Path, patience: &Patience) -> bool {
    let file = match File::options().write(true).open(record.join(LOCK)) {
        Ok(file) => file,
        Err(error) => return error.kind() == io::ErrorKind::NotFound,
    };
    loop {
        let mut found = whole_file();
        match fcntl(&file, FcntlArg::F_GETLK(&mut found)) {
            Ok(_) if i32::from(found.l_type) == libc::F_UNLCK => return true,
            Ok(_) if !patience.left().is_zero() => thread::sleep(LOOK_EVERY),
            Ok(_) => {
                tracing::warn!(pid = found.l_pid, "a guardian does not come to an end");
                return false;
            }
            Err(error) => {
                tracing::error!(%error, "cannot see whether a guardian lives");
                return false;
            }
        }
    }
}

/// Whether the guardian of an attempt has killed what its watchdog had, and has seen that nothing was left.
#[must_use]
pub fn saw_the_end(record: &Path) -> bool {
    record.join(NOTHING_LEFT).exists()
}

fn whole_file() -> libc::flock {
    let narrow = |constant: libc::c_int| libc::c_short::try_from(constant).expect("a small constant");
    libc::flock { l_type: narrow(libc::F_WRLCK), l_whence: narrow(libc::SEEK_SET), l_start: 0, l_len: 0, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_nothing_of_what_protects_its_agent_from_the_want_of_memory() {
        assert_eq!(["-500\n", "-1000\n", "0\n", "300\n"].map(score_of_job), ["0", "0", "0", "300"]);
    }
}
