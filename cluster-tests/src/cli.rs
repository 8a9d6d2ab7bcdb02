//! Runs of the product's command line, as a user has them: own home, own identity, a deadline.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    binaries,
    failpoints::Failpoints,
    proc::{self, Proc},
};

/// No run of the tests takes longer.
const LONGEST: Duration = Duration::from_secs(60);

/// How and where `hodei-node` is called.
#[derive(Clone, Debug)]
pub struct Cli {
    dir: PathBuf,
    servers: Vec<String>,
    identity: Option<PathBuf>,
    request_timeout: Option<Duration>,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; 128+n after a signal.
    pub code: i32,
    /// Bytes on standard output.
    pub stdout: Vec<u8>,
    /// Text on standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Output {
    /// Standard output as text without surrounding space.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// This, if the run ended with `code`.
    ///
    /// # Panics
    /// Otherwise, with everything that the run printed.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert!(
            self.code == code,
            "exit code {} instead of {code}\nstdout: {}\nstderr: {}",
            self.code,
            self.text(),
            self.stderr
        );
        self
    }
}

impl Cli {
    /// A user without servers and identity, whose home is `<dir>/home`.
    #[must_use]
    pub fn nobody(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), servers: Vec::new(), identity: None, request_timeout: None }
    }

    /// The same with this identity.
    #[must_use]
    pub fn with_identity(mut self, dir: impl Into<PathBuf>) -> Self {
        self.identity = Some(dir.into());
        self
    }

    /// The same with these servers.
    #[must_use]
    pub fn at<S: Into<String>>(mut self, servers: impl IntoIterator<Item = S>) -> Self {
        self.servers = servers.into_iter().map(Into::into).collect();
        self
    }

    /// The same with this bound on each request.
    #[must_use]
    pub fn request_timeout(mut self, bound: Duration) -> Self {
        self.request_timeout = Some(bound);
        self
    }

    /// `hodei-node ARGS` with servers, identity and a clean environment.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = clean("hodei-node", &self.dir);
        if !self.servers.is_empty() {
            command.env("HODEI_SERVER", self.servers.join(","));
        }
        if let Some(identity) = &self.identity {
            command.env("HODEI_IDENTITY", identity);
        }
        if let Some(bound) = self.request_timeout {
            command.arg("--request-timeout").arg(format!("{}ms", bound.as_millis()));
        }
        command.args(args);
        command
    }

    /// Runs to the end.
    ///
    /// # Panics
    /// If it takes longer than a minute.
    pub async fn run(&self, args: &[&str]) -> Output {
        self.run_with_input(args, None).await
    }

    /// Runs to the end with `input` on standard input.
    ///
    /// # Panics
    /// If it takes longer than a minute.
    pub async fn run_with_input(&self, args: &[&str], input: Option<&str>) -> Output {
        let start = Instant::now();
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        proc::die_with_parent(&mut command);
        let mut command = tokio::process::Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().expect("hodei-node starts");
        if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
            use tokio::io::AsyncWriteExt;
            // A program that does not read its input closes the pipe early; its exit code tells what happened.
            let _ = pipe.write_all(input.as_bytes()).await;
        }
        let done = tokio::time::timeout(LONGEST, child.wait_with_output()).await;
        let output = done.unwrap_or_else(|_| panic!("hodei-node {args:?} took longer than {LONGEST:?}"));
        let output = output.expect("a child can be waited for");
        Output {
            code: exit_code(output.status),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: start.elapsed(),
        }
    }

    /// Runs to the end, which must be success; gives standard output as trimmed text.
    ///
    /// # Panics
    /// If it fails.
    pub async fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(output.code == 0, "hodei-node {args:?}: exit code {}\n{}", output.code, output.stderr);
        output.text()
    }

    /// Runs `ARGS --output json`, which must succeed.
    ///
    /// # Panics
    /// If it fails or does not print JSON.
    pub async fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["--output", "json"]].concat()).await;
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("hodei-node {args:?} printed no JSON ({e}):\n{text}"))
    }

    /// Starts without waiting.
    #[must_use]
    pub fn spawn(&self, name: &str, args: &[&str]) -> Proc {
        Proc::spawn(name, &mut self.command(args), &self.dir)
    }
}

/// A command without anything of the test's own surroundings: no `HODEI_*`, a home of its own below `dir`.
#[must_use]
pub fn clean(binary: &str, dir: &Path) -> Command {
    alone(&binaries::locate(binary), dir)
}

/// The same with its failpoints, if it is to have any.
#[must_use]
pub fn with_failpoints(binary: &str, dir: &Path, failpoints: Option<&Failpoints>) -> Command {
    let Some(failpoints) = failpoints else { return clean(binary, dir) };
    let mut command = alone(&binaries::with_failpoints(binary), dir);
    command.envs(failpoints.environment());
    command
}

fn alone(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("HODEI_") {
            command.env_remove(key);
        }
    }
    let home = dir.join("home");
    std::fs::create_dir_all(&home).expect("the test's directory is writable");
    command.env("HOME", &home).env_remove("XDG_CONFIG_HOME").current_dir(dir);
    command
}

/// As a shell spells it.
#[must_use]
pub fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
