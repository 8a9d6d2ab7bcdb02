//! One process of a cluster, with what outlives it.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command};

use nix::{sys::signal::Signal, unistd::Pid};

use super::START;
use crate::{
    cli,
    failpoints::Failpoints,
    history::Capacity,
    netns::{self, Host},
    proc::Proc,
};

/// One `hodei-node`: its data directory, its address, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    /// Where it listens, and what it advertises.
    pub address: SocketAddr,
    /// Its data directory.
    pub data: PathBuf,
    /// Where its output goes.
    pub(super) dir: PathBuf,
    pub(super) name: String,
    /// Where it runs; absent: on loopback.
    pub(super) host: Option<Host>,
    /// Further variables of its environment.
    pub env: Vec<(String, String)>,
    /// Where it may be told to die; absent: nowhere.
    pub failpoints: Option<Failpoints>,
    pub(super) starts: u32,
    pub(super) process: Option<Proc>,
}

/// One `hodei-agent`.
#[derive(Debug)]
pub struct Agent {
    /// The id that it asked for when it enrolled.
    pub worker: String,
    /// Its data directory.
    pub data: PathBuf,
    /// What it registered with, to begin with.
    pub capacity: Capacity,
    pub(super) name: String,
    /// Where it runs; absent: on loopback.
    pub(super) host: Option<Host>,
    pub(super) starts: u32,
    pub(super) flags: Vec<String>,
    /// Where it and what it starts may be told to die; absent: nowhere.
    pub failpoints: Option<Failpoints>,
    pub(super) process: Option<Proc>,
}

impl Node {
    /// Has it run on a host, at its address there.
    pub fn at(&mut self, host: &Host) {
        self.address = SocketAddr::from((host.address(), netns::PORT));
        self.host = Some(host.clone());
    }

    /// Has it die where orders in this directory say.
    pub fn die_by(&mut self, orders: Option<&std::path::Path>) {
        self.failpoints = orders.map(|dir| Failpoints::of(dir, &self.name));
    }

    /// Starts `hodei-node VERB…` on this node's directory and address, and waits until it is ready.
    ///
    /// # Panics
    /// If it runs already, or does not become ready.
    pub async fn start(&mut self, verb: &[&str]) {
        self.launch(verb);
        self.process().ready(START).await;
    }

    /// Starts without waiting.
    ///
    /// # Panics
    /// If it runs already.
    pub fn launch(&mut self, verb: &[&str]) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        self.starts += 1;
        let mut command = self.command(verb);
        enter(self.host.as_ref(), &mut command);
        self.process = Some(Proc::spawn(&format!("{}.{}", self.name, self.starts), &mut command, &self.dir));
    }

    /// The command line for `hodei-node VERB…` on this node's directory and address.
    #[must_use]
    pub fn command(&self, verb: &[&str]) -> Command {
        let mut command = cli::with_failpoints("hodei-node", &self.dir, self.failpoints.as_ref());
        command.args(verb).arg("--data-dir").arg(&self.data);
        command.args(["--listen", &self.address.to_string(), "--http", "off"]);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it again on its directory.
    pub async fn restart(&mut self) {
        self.start(&["run"]).await;
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGTERM, and waits for its clean end.
    ///
    /// # Panics
    /// If it does not end with success.
    pub async fn stop(&mut self) {
        self.process().signal(Signal::SIGTERM);
        let status = self.process().exit(START).await;
        let stderr = self.process.take().map(|process| process.stderr_text()).unwrap_or_default();
        assert!(status.success(), "{} ended with {status}:\n{stderr}", self.name);
    }

    /// SIGSTOP: alive to the kernel, silent to everybody else.
    pub fn freeze(&mut self) {
        self.process().signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        self.process().signal(Signal::SIGCONT);
    }

    /// How often it was started.
    #[must_use]
    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// Whether it was started and neither killed nor stopped since. It may have ended by itself.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// What the newest process has written to standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        let file = self.dir.join(format!("{}.{}.err", self.name, self.starts));
        String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
    }

    /// Its process.
    ///
    /// # Panics
    /// If it does not run.
    pub fn process(&mut self) -> &mut Proc {
        self.process.as_mut().unwrap_or_else(|| panic!("{} does not run", self.name))
    }
}

impl Agent {
    /// Whether the watchdog of one of its jobs has left on disk how that ended.
    #[must_use]
    pub fn has_left(&self) -> bool {
        let attempts = fs::read_dir(self.data.join("attempts")).into_iter().flatten().flatten();
        attempts.into_iter().any(|attempt| attempt.path().join("ended").exists())
    }

    /// Starts it (again).
    ///
    /// # Panics
    /// If it runs already.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        self.starts += 1;
        let dir = self.data.parent().expect("the data directory lies in the cluster's");
        let mut command = cli::with_failpoints("hodei-agent", dir, self.failpoints.as_ref());
        command.arg("--data-dir").arg(&self.data).args(&self.flags);
        enter(self.host.as_ref(), &mut command);
        self.process = Some(Proc::spawn(&format!("{}.{}", self.name, self.starts), &mut command, dir));
    }

    /// From its next start on it knows these nodes.
    pub fn serve(&mut self, addresses: &[String]) {
        if let Some(at) = self.flags.iter().position(|flag| flag == "--server") {
            self.flags[at + 1] = addresses.join(",");
        }
    }

    /// The number of its process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(Proc::pid)
    }

    /// kill -9. What it ran goes on until its lease runs out, or the cluster is dropped.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGSTOP.
    pub fn freeze(&mut self) {
        self.process().signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        self.process().signal(Signal::SIGCONT);
    }

    /// Its process.
    ///
    /// # Panics
    /// If it does not run.
    pub fn process(&mut self) -> &mut Proc {
        self.process.as_mut().unwrap_or_else(|| panic!("{} does not run", self.name))
    }
}

fn enter(host: Option<&Host>, command: &mut Command) {
    if let Some(host) = host {
        host.enter(command);
    }
}
