//! Runs one attempt from its admission to its result on disk.
//!
//! [`Executor::run`] is the life of an attempt: intent and process ([`spawn`]), output ([`crate::log::capture`]), the
//! wait for the end of the main process with whatever may cut it short, the end of everything it left behind, the
//! rest of the output, the result. A job has ended when its main process has.

pub mod cgroup;
pub mod intent;
mod lookup;
pub mod outcome;
pub mod process;
mod script;
pub mod spawn;
pub mod tree;

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use hodei_proto::v1::{JobResult, JobSpec, LogEnd, OutputPolicy, Reason};
use nix::{
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::Pid,
};
use prost::Message as _;
use tokio::{
    io::unix::AsyncFd,
    net::unix::pipe,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::{JoinHandle, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use self::{
    cgroup::CgroupRoot,
    outcome::Cause,
    process::Process,
    spawn::{Launched, Plan},
    tree::Tree,
};
use crate::{
    attempt::{Attempt, Stop},
    clock::{Boot, sleep_until},
    data_dir::{AttemptDirs, DataDir, discard},
    disk,
    log::{
        capture::{Capture, WhenFull},
        spool::Writer,
    },
    roster::Roster,
    watchdog::Leases,
};

/// The result's file in an attempt's record.
pub const RESULT: &str = "result";
/// How long the pipes are read after the end of the main process, where something outside of the tree holds them.
const DRAIN_PIPES: Duration = Duration::from_secs(2);
/// Between SIGTERM and SIGKILL where the job does not say.
const GRACE_PERIOD: Duration = Duration::from_secs(10);
/// A killed tree that is still there is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// Why a process could not be made, as `could_not_start` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotStarted {
    /// `not_found`, `not_permitted` or `other`.
    pub cause: &'static str,
    /// For people.
    pub message: String,
}

impl NotStarted {
    fn not_found(message: impl Into<String>) -> Self {
        Self { cause: "not_found", message: message.into() }
    }

    fn not_permitted(message: impl Into<String>) -> Self {
        Self { cause: "not_permitted", message: message.into() }
    }

    fn other(message: impl Into<String>) -> Self {
        Self { cause: "other", message: message.into() }
    }

    fn io(what: &str, error: &io::Error) -> Self {
        let cause = match error.kind() {
            io::ErrorKind::NotFound => "not_found",
            io::ErrorKind::PermissionDenied => "not_permitted",
            _ => "other",
        };
        Self { cause, message: format!("{what}: {error}") }
    }
}

/// What attempts run with. One per session.
pub struct Executor {
    /// Where they live on disk.
    pub dir: Arc<DataDir>,
    /// This process' session.
    pub session: String,
    /// Told to jobs.
    pub worker_id: String,
    /// Where control groups may be made.
    pub cgroups: Option<CgroupRoot>,
    /// Until when they may run.
    pub leases: Leases,
    /// Where what happens is noted.
    pub roster: Arc<Roster>,
}

enum Begun {
    Launched(Box<Launched>),
    NotStarted(NotStarted),
    /// The lease ran out before the process was made.
    TooLate,
}

impl Executor {
    /// Runs an attempt that has been admitted, to the end.
    pub async fn run(&self, attempt: Arc<Attempt>, spec: JobSpec) {
        let dirs = self.dir.of(attempt.key);
        let limits = Limits::of(&spec);
        let begun = match self.begin(&attempt, spec, dirs.clone()).await {
            Ok(begun) => begun,
            Err(error) => {
                tracing::error!(attempt = %attempt.key, %error, "cannot record an attempt; it is declined");
                self.decline(&attempt, &dirs, format!("the agent cannot record it: {error}")).await;
                return;
            }
        };
        let result = match begun {
            Begun::TooLate => {
                return self.decline(&attempt, &dirs, "its lease had already run out".to_owned()).await;
            }
            Begun::NotStarted(why) => {
                self.leases.ended(attempt.key);
                JobResult {
                    attempt: Some(attempt.wire.clone()),
                    reason: Some(outcome::could_not_start(why)),
                    log: Some(LogEnd::default()),
                }
            }
            Begun::Launched(launched) => self.see_through(&attempt, &dirs, *launched, limits).await,
        };
        self.conclude(&attempt, &dirs, result).await;
    }

    async fn begin(&self, attempt: &Arc<Attempt>, spec: JobSpec, dirs: AttemptDirs) -> io::Result<Begun> {
        let plan = Plan {
            key: attempt.key,
            spec,
            dirs,
            session: self.session.clone(),
            worker_id: self.worker_id.clone(),
            cgroups: self.cgroups.clone(),
        };
        let leases = self.leases.clone();
        blocking(move || {
            let intent = plan.prepare()?;
            if !leases.may_run(plan.key) {
                return Ok(Begun::TooLate);
            }
            Ok(match plan.launch(&intent) {
                Ok(launched) => {
                    // From here on the watchdog can end it, whatever becomes of the runtime.
                    leases.watch(plan.key, Arc::clone(&launched.tree));
                    Begun::Launched(Box::new(launched))
                }
                Err(why) => Begun::NotStarted(why),
            })
        })
        .await
    }

    /// From the process' start to the figures of its log.
    async fn see_through(
        &self,
        attempt: &Arc<Attempt>,
        dirs: &AttemptDirs,
        launched: Launched,
        limits: Limits,
    ) -> JobResult {
        let Launched { process, tree, stdout, stderr } = launched;
        attempt.started(process.id());
        self.roster.changed(attempt);
        let ended = CancellationToken::new();
        let give_up = CancellationToken::new();
        let capture = self.capture(attempt, dirs, limits.when_full, (stdout, stderr), (ended.clone(), give_up.clone()));
        let cause = wait_for_end(&process, &tree, attempt.stops(), &limits).await;
        ended.cancel();
        let out_of_memory = tree.cgroup().is_some_and(cgroup::Cgroup::out_of_memory);
        let status = self.end_tree(&process, &tree).await;
        let lease_lost = self.leases.ended(attempt.key);
        let log = drain(capture, &give_up).await;
        let cause = if lease_lost { Cause::LeaseLost } else { cause };
        let reason = match status {
            Ok(status) => outcome::reason(cause, status, out_of_memory),
            Err(error) => Reason { kind: "worker_lost".into(), message: format!("wait: {error}"), ..Reason::default() },
        };
        JobResult { attempt: Some(attempt.wire.clone()), reason: Some(reason), log: Some(log) }
    }

    fn capture(
        &self,
        attempt: &Arc<Attempt>,
        dirs: &AttemptDirs,
        when_full: WhenFull,
        pipes: (OwnedFd, OwnedFd),
        tokens: (CancellationToken, CancellationToken),
    ) -> JoinHandle<io::Result<LogEnd>> {
        let (writer, index) = Writer::new(&dirs.record);
        attempt.log.begin(index);
        let (roster, ready) = (Arc::clone(&self.roster), Arc::clone(attempt));
        let capture = Capture {
            log: Arc::clone(&attempt.log),
            writer,
            when_full,
            published: move || roster.ready(&ready),
            ended: tokens.0,
            give_up: tokens.1,
        };
        tokio::spawn(async move {
            let (stdout, stderr) = (pipe::Receiver::from_owned_fd(pipes.0)?, pipe::Receiver::from_owned_fd(pipes.1)?);
            capture.run(stdout, stderr).await
        })
    }

    /// Ends what the main process left behind, then reaps it: until then nobody else can have its group's number.
    async fn end_tree(&self, process: &Process, tree: &Arc<Tree>) -> io::Result<std::process::ExitStatus> {
        let end = Arc::clone(tree);
        blocking(move || {
            end.kill();
            if let Some(cgroup) = end.cgroup()
                && !cgroup.kill_until_empty()
            {
                tracing::error!("a killed control group does not become empty");
            }
        })
        .await;
        tree.reap(process)
    }

    /// The result is on disk before anybody is told, and before the control group goes: one that is missing without a
    /// result proves nothing to a successor.
    async fn conclude(&self, attempt: &Arc<Attempt>, dirs: &AttemptDirs, result: JobResult) {
        let bytes = Arc::new(result.encode_to_vec());
        while let Err(error) = {
            let (record, bytes) = (dirs.record.clone(), Arc::clone(&bytes));
            blocking(move || {
                disk::write_durably(&record.join(RESULT), &bytes)?;
                remove_cgroup(&record);
                io::Result::Ok(())
            })
            .await
        } {
            tracing::error!(attempt = %attempt.key, %error, "cannot write a result to disk; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        attempt.ended(result);
        self.roster.changed(attempt);
        let private = dirs.private.clone();
        drop(spawn_blocking(move || discard(&private)));
    }

    async fn decline(&self, attempt: &Arc<Attempt>, dirs: &AttemptDirs, reason: String) {
        let dirs = dirs.clone();
        blocking(move || {
            remove_cgroup(&dirs.record);
            discard(&dirs.record);
            discard(&dirs.private);
        })
        .await;
        self.leases.forget(attempt.key);
        self.roster.decline(attempt.key, reason);
    }
}

fn remove_cgroup(record: &std::path::Path) {
    if let Some(cgroup) = intent::Intent::read(record).and_then(|intent| intent.cgroup()) {
        cgroup.remove();
    }
}

struct Limits {
    timeout: Option<Duration>,
    grace: Duration,
    when_full: WhenFull,
}

impl Limits {
    fn of(spec: &JobSpec) -> Self {
        let ms = |value: u64| (value > 0).then(|| Duration::from_millis(value));
        let when_full = if spec.output_policy() == OutputPolicy::Drop { WhenFull::Drop } else { WhenFull::Block };
        Self { timeout: ms(spec.timeout_ms), grace: ms(spec.grace_period_ms).unwrap_or(GRACE_PERIOD), when_full }
    }
}

/// Waits for the main process, and cuts it short where it is asked to. Leaves it unreaped.
async fn wait_for_end(process: &Process, tree: &Tree, mut stops: watch::Receiver<Stop>, limits: &Limits) -> Cause {
    let (mut cause, mut kill_at) = (Cause::Itself, None::<Boot>);
    let deadline = limits.timeout.map(|timeout| Boot::now().plus(timeout));
    let mut exit = Exited::of(process);
    loop {
        tokio::select! {
            biased;
            () = exit.wait() => return cause,
            Ok(()) = stops.changed() => {
                match stops.borrow_and_update().clone() {
                    Stop::No => {}
                    Stop::Cancel { reason, grace } => {
                        if cause == Cause::Itself {
                            cause = Cause::Cancelled(reason);
                            tree.terminate();
                            kill_at = Some(Boot::now().plus(grace));
                        }
                    }
                    Stop::HandBack => {
                        cause = Cause::HandedBack;
                        kill_at = Some(Boot::now());
                    }
                }
            }
            () = sleep_until(deadline.unwrap_or_default()), if deadline.is_some() && kill_at.is_none() => {
                cause = Cause::Timeout;
                tree.terminate();
                kill_at = Some(Boot::now().plus(limits.grace));
            }
            () = sleep_until(kill_at.unwrap_or_default()), if kill_at.is_some() => {
                tree.kill();
                kill_at = Some(Boot::now().plus(KILL_AGAIN));
            }
        }
    }
}

/// The end of a process, seen without reaping it.
enum Exited<'a> {
    /// Of the process itself.
    Told(AsyncFd<BorrowedFd<'a>>),
    /// Where the kernel has no such thing: looks again whenever a child has changed.
    Watched { pid: Pid, children: Option<Signal> },
}

impl<'a> Exited<'a> {
    fn of(process: &'a Process) -> Self {
        process.end().map_or_else(|| Self::watched(process), Self::Told)
    }

    fn watched(process: &Process) -> Self {
        let pid = Pid::from_raw(i32::try_from(process.id()).expect("pids are positive and fit"));
        Self::Watched { pid, children: signal(SignalKind::child()).ok() }
    }

    /// The signal was subscribed to before the first look.
    async fn wait(&mut self) {
        let (pid, children) = match self {
            Self::Told(fd) => {
                let ended = fd.readable().await;
                return ended.map(drop).expect("the runtime outlives its jobs");
            }
            Self::Watched { pid, children } => (*pid, children),
        };
        loop {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
            // Anything but "still alive" is the end: a signal that nix does not know is reported as an error.
            if !matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::StillAlive)) {
                return;
            }
            match children {
                Some(children) => drop(children.recv().await),
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

/// Waits for the rest of the output, for a bounded time.
async fn drain(mut capture: JoinHandle<io::Result<LogEnd>>, give_up: &CancellationToken) -> LogEnd {
    let figures = match tokio::time::timeout(DRAIN_PIPES, &mut capture).await {
        Ok(figures) => figures,
        Err(_) => {
            give_up.cancel();
            capture.await
        }
    };
    match figures {
        Ok(Ok(figures)) => figures,
        Ok(Err(error)) => {
            tracing::error!(%error, "a job's output could not be kept");
            LogEnd::default()
        }
        Err(error) => {
            tracing::error!(%error, "the capture of a job's output has failed");
            LogEnd::default()
        }
    }
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(act).await.expect("the runtime outlives its jobs, and blocking work does not panic")
}
