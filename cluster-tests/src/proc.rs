//! A child process that is signalled by its id, says when it is ready, and never outlives its owner.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Pid, getppid},
};

use crate::wait;

/// A started process. Dropping it kills it and waits for it.
#[derive(Debug)]
pub struct Proc {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Proc {
    /// Starts `command` with its output in `<dir>/<name>.out` and `<dir>/<name>.err`.
    ///
    /// The kernel kills the child when the starting *thread* ends, so start from a thread that lives as long as the
    /// child shall: a test's own, or `main`.
    ///
    /// # Panics
    /// If the process cannot be started.
    #[must_use]
    pub fn spawn(name: &str, command: &mut Command, dir: &Path) -> Self {
        let stdout = dir.join(format!("{name}.out"));
        let stderr = dir.join(format!("{name}.err"));
        let open = |path: &Path| File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        command.stdin(Stdio::null()).stdout(open(&stdout)).stderr(open(&stderr));
        die_with_parent(command);
        let child = command.spawn().unwrap_or_else(|e| panic!("{name} does not start: {e}"));
        Self { name: name.to_owned(), child, stdout, stderr }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(self.pid(), signal).unwrap_or_else(|e| panic!("{signal} to {}: {e}", self.name));
    }

    /// SIGKILL, and waits until the kernel has buried it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for a line that is exactly `ready` on its standard output.
    ///
    /// # Panics
    /// If it ends before, or is not ready in time; with what it wrote to standard error.
    pub async fn ready(&mut self, within: Duration) {
        let name = self.name.clone();
        wait::until_true(&format!("{name} is ready (see {})", self.stderr.display()), within, || {
            let ready = self.stdout_text().lines().any(|line| line == "ready");
            if !ready && let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                panic!("{name} ended with {status} before it was ready:\n{}", self.stderr_text());
            }
            async move { ready }
        })
        .await;
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// If it does not in time.
    pub async fn exit(&mut self, within: Duration) -> ExitStatus {
        let name = self.name.clone();
        wait::until(&format!("{name} ends"), within, || {
            let status = self.child.try_wait().expect("a child can be waited for");
            async move { status }
        })
        .await
    }

    /// Whether it has ended.
    pub fn is_gone(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_some()
    }

    /// What it has written to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> Vec<u8> {
        fs::read(&self.stdout).unwrap_or_default()
    }

    /// The same, as text.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout()).into_owned()
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has the kernel kill the child when the thread that starts it ends.
#[allow(unsafe_code)]
pub fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    let hook = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the request was in place.
        if getppid() == parent { Ok(()) } else { Err(io::Error::other("the parent is gone")) }
    };
    // SAFETY: between fork and exec only prctl(2) and getppid(2) are called, both async-signal-safe; nothing allocates
    // on the way that is taken.
    unsafe {
        command.pre_exec(hook);
    }
}
