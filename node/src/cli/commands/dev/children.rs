//! The processes of a `dev` cluster. They die with it, however it ends.

use std::{
    fs::{self, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, RawFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::{Pid, getpid, getppid},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::place::Place;
use crate::{
    cli::{exit::Failure, output},
    durable,
};

/// For an agent to end its jobs and itself.
const PATIENCE: Duration = Duration::from_secs(8);
/// Between looks at the processes.
const LOOK: Duration = Duration::from_millis(100);
/// Of a log that is shown when its process failed.
const TAIL: usize = 15;

/// Processes by name, in the order in which they were started.
pub struct Children {
    logs: PathBuf,
    /// Inherited by all.
    lock: RawFd,
    running: Vec<Running>,
}

struct Running {
    name: String,
    child: Child,
}

impl Running {
    fn is_agent(&self) -> bool {
        self.name.starts_with("agent")
    }
}

impl Children {
    /// None yet; their logs go to the place.
    pub fn new(place: &Place) -> Self {
        Self { logs: place.path().to_owned(), lock: place.lock().as_raw_fd(), running: Vec::new() }
    }

    /// Starts a process with variables of its own; it inherits none of Hodei's but the log filter.
    pub fn start(
        &mut self,
        name: &str,
        program: &Path,
        arguments: &[String],
        variables: &[(&str, String)],
    ) -> Result<(), Failure> {
        let fail = |error: io::Error| Failure::other(format!("cannot start {}: {error}", program.display()));
        let mut log = OpenOptions::new();
        log.write(true).create(true).truncate(true).mode(durable::SECRET);
        let log = log.open(self.log(name)).map_err(fail)?;
        let mut command = Command::new(program);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("HODEI_") && variable != "HODEI_LOG" {
                command.env_remove(variable);
            }
        }
        command
            .args(arguments)
            // A node makes its administrator this user's default; that is for `dev` to do, and to undo.
            .env("XDG_CONFIG_HOME", self.logs.join("config"))
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for `dev` alone: it ends the others in order.
            .process_group(0)
            .kill_on_drop(true);
        before_exec(&mut command, self.lock);
        let child = command.spawn().map_err(fail)?;
        self.running.push(Running { name: name.to_owned(), child });
        Ok(())
    }

    /// Waits until a process prints `ready`.
    pub async fn ready(&mut self, name: &str, patience: Duration) -> Result<(), Failure> {
        let stdout = self.running.iter_mut().find(|running| running.name == name);
        let Some(stdout) = stdout.and_then(|running| running.child.stdout.take()) else {
            return Err(Failure::other(format!("{name} does not run")));
        };
        let mut lines = BufReader::new(stdout).lines();
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line == "ready" {
                    return true;
                }
            }
            false
        };
        match timeout(patience, ready).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.failure(name, "has ended")),
            Err(_) => Err(self.failure(name, "does not become ready")),
        }
    }

    /// A process that has ended, if any has. It is forgotten.
    pub fn failed(&mut self) -> Option<Failure> {
        let (index, status) = self.running.iter_mut().enumerate().find_map(|(index, running)| {
            let status = running.child.try_wait().ok().flatten()?;
            Some((index, status))
        })?;
        let name = self.running.remove(index).name;
        Some(self.failure(&name, &format!("has ended: {}", told(status))))
    }

    /// Waits until so many nodes have ended that the others can do nothing. Until then it tells of each process that ends.
    pub async fn outlived(&mut self) -> Failure {
        let majority = self.nodes() / 2 + 1;
        loop {
            while let Some(failure) = self.failed() {
                if self.nodes() < majority {
                    return failure;
                }
                output::note(format_args!("{failure}\nThe others go on."));
            }
            sleep(LOOK).await;
        }
    }

    fn nodes(&self) -> usize {
        self.running.iter().filter(|running| !running.is_agent()).count()
    }

    /// Ends all: agents first, so that they end their jobs; then the nodes, at once, since nothing of them is kept.
    pub async fn end(mut self) {
        let agents = self.running.iter().position(Running::is_agent);
        let mut agents = self.running.split_off(agents.unwrap_or(self.running.len()));
        for agent in &agents {
            signal(&agent.child, Signal::SIGTERM);
        }
        let gone = async {
            for agent in &mut agents {
                // An error means that it has been waited for already.
                let _ = agent.child.wait().await;
            }
        };
        let _ = timeout(PATIENCE, gone).await;
        for mut running in agents.into_iter().chain(self.running) {
            // Fails only for one that has ended, which is what is wanted.
            let _ = running.child.kill().await;
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    fn failure(&self, name: &str, what: &str) -> Failure {
        let log = fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n  ");
        Failure::other(format!("{name} {what}; its log ends with\n  {tail}"))
    }
}

fn told(status: ExitStatus) -> String {
    status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"))
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Has the kernel end a child when its parent is gone, even by SIGKILL, and the child hold the lock of the place. The signal
/// follows the thread that spawned it: `dev` runs on the main thread, which lives as long as the process.
#[allow(unsafe_code, reason = "there is no safe way to run something between fork and exec")]
fn before_exec(command: &mut Command, lock: RawFd) {
    let parent = getpid();
    // SAFETY: prctl, getppid and fcntl are plain system calls, which is what may be done between fork and exec; the closure
    // allocates nothing and takes no lock. The descriptor is open: the place is dropped after its children.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGTERM)?;
            fcntl(BorrowedFd::borrow_raw(lock), FcntlArg::F_SETFD(FdFlag::empty()))?;
            // The parent may have died before the line above.
            if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
}
