//! Runs one attempt from its admission to its result on disk.
//!
//! [`Executor::run`] is the life of an attempt: intent, watchdog and process ([`spawn`]), output ([`crate::log::capture`]),
//! the wait for what its watchdog says of the end, the rest of the output, the result. [`Executor::adopt`] takes it up where
//! an earlier agent has left it. A job has ended when its main process has; what is left of its tree is gone by the time
//! that anybody hears of it.

pub mod account;
pub mod cgroup;
pub mod intent;
pub mod limits;
mod lookup;
pub mod outcome;
mod script;
pub mod secrets;
pub mod spawn;
pub mod tree;

use std::{io, sync::Arc, time::Duration};

use hodei_proto::v1::{JobResult, JobSpec, LogEnd};
use prost::Message as _;
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use self::{
    account::Accounts,
    cgroup::CgroupRoot,
    intent::{Intent, Terms},
    limits::Limiter,
    outcome::Cause,
    secrets::Secrets,
    spawn::Plan,
    tree::Tree,
};
use crate::{
    attempt::{Attempt, Stop},
    data_dir::{AttemptDirs, DataDir, discard},
    disk,
    keeper::Leases,
    log::{
        capture::Capture,
        spool::{Index, Writer},
    },
    roster::Roster,
    watchdog::{
        guard::{Ear, Guard, Guarded, Program, Voice},
        patience::Patience,
        wire::{End, NotStarted, Obstacle, Order},
    },
};

/// The result's file in an attempt's record.
pub const RESULT: &str = "result";
/// How long the pipes are read after the end of the tree, where something outside of it holds them.
const DRAIN_PIPES: Duration = Duration::from_secs(2);

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
    /// Where what they use can be bounded.
    pub limiter: Limiter,
    /// Until when they may run.
    pub leases: Leases,
    /// Where what happens is noted.
    pub roster: Arc<Roster>,
    /// Whom jobs may run as.
    pub accounts: Accounts,
    /// Whether this machine has GPUs for jobs.
    pub has_gpus: bool,
    /// What is started as a job's watchdog.
    pub watchdog: Program,
}

enum Begun {
    Launched(Box<Guarded>, Terms),
    NotStarted(NotStarted),
    /// The lease ran out before the process was made.
    TooLate,
    /// It failed, and something of it may be left.
    Unclear,
}

impl Executor {
    /// Runs an attempt that has been admitted, to the end.
    pub async fn run(&self, attempt: Arc<Attempt>, spec: JobSpec, secrets: Secrets, lost_after: Duration) {
        let dirs = self.dir.of(attempt.key);
        let begun = match self.begin(&attempt, spec, secrets, lost_after, dirs.clone()).await {
            Ok(begun) => begun,
            Err(error) => {
                tracing::error!(attempt = %attempt.key, %error, "cannot record an attempt; it is declined");
                self.decline(&attempt, &dirs, format!("the agent cannot record it: {error}")).await;
                return;
            }
        };
        match begun {
            Begun::TooLate => self.decline(&attempt, &dirs, "its lease had already run out".to_owned()).await,
            Begun::Unclear => self.give_up(&attempt),
            Begun::NotStarted(why) => {
                self.leases.ended(attempt.key);
                let reason = Some(outcome::could_not_start(why));
                let (wire, log) = (Some(attempt.wire.clone()), Some(LogEnd::default()));
                self.conclude(&attempt, &dirs, JobResult { attempt: wire, reason, log }, None).await;
            }
            Begun::Launched(guarded, terms) => {
                attempt.started(guarded.pid);
                self.roster.changed(&attempt);
                let (writer, index) = Writer::new(&dirs.record);
                self.see_through(&attempt, &dirs, *guarded, terms, (writer, Some(index))).await;
            }
        }
    }

    /// Takes over an attempt that an earlier process has started and that this one has found alive.
    pub async fn adopt(&self, attempt: Arc<Attempt>, guarded: Guarded, terms: Terms) {
        let dirs = self.dir.of(attempt.key);
        let writer = Writer::new(&dirs.record).0;
        self.see_through(&attempt, &dirs, guarded, terms, (writer, None)).await;
    }

    async fn begin(
        &self,
        attempt: &Arc<Attempt>,
        spec: JobSpec,
        secrets: Secrets,
        lost_after: Duration,
        dirs: AttemptDirs,
    ) -> io::Result<Begun> {
        let plan = Plan {
            key: attempt.key,
            spec,
            secrets,
            dirs,
            session: self.session.clone(),
            worker_id: self.worker_id.clone(),
            cgroups: self.cgroups.clone(),
            limiter: self.limiter.clone(),
            lost_after,
            accounts: self.accounts.clone(),
            gpus: self.has_gpus.then(|| attempt.gpus.clone()),
            watchdog: self.watchdog.clone(),
        };
        let leases = self.leases.clone();
        blocking(move || {
            let prepared = plan.prepare()?;
            let Some(deadline) = leases.deadline(plan.key) else {
                prepared.dismiss();
                return Ok(Begun::TooLate);
            };
            let intent = prepared.intent.clone();
            Ok(match plan.launch(prepared, deadline) {
                Ok(guarded) => Begun::Launched(Box::new(guarded), intent.terms),
                Err(why) if intent.cgroup().is_some_and(|group| !group.kill_until_empty()) => {
                    tracing::error!(attempt = %plan.key, why = why.message, "a process was not made, or does not end");
                    Begun::Unclear
                }
                Err(why) if why.obstacle == Obstacle::TooLate => Begun::TooLate,
                Err(why) if why.obstacle == Obstacle::Unclear && intent.cgroup().is_none() => Begun::Unclear,
                Err(why) => Begun::NotStarted(why),
            })
        })
        .await
    }

    /// From the process' start to the result. `spool`: its index is given where it is a new one.
    async fn see_through(
        &self,
        attempt: &Arc<Attempt>,
        dirs: &AttemptDirs,
        guarded: Guarded,
        terms: Terms,
        spool: (Writer, Option<Index>),
    ) {
        let Guarded { guard, output, .. } = guarded;
        let group = self.cgroup_of(dirs).await;
        let tree = Arc::new(Tree::new(guard.voice(), group));
        // From here on it hears of what is granted, and is ended where that is to be, whatever becomes of the runtime.
        self.leases.watch(attempt.key, Arc::clone(&tree));
        let (ended, give_up) = (CancellationToken::new(), CancellationToken::new());
        if let Some(index) = spool.1 {
            attempt.log.begin(index);
        }
        let (roster, ready) = (Arc::clone(&self.roster), Arc::clone(attempt));
        let capture = Capture {
            log: Arc::clone(&attempt.log),
            writer: spool.0,
            when_full: terms.when_full,
            published: move || roster.ready(&ready),
            ended: ended.clone(),
            give_up: give_up.clone(),
        };
        let capture = tokio::spawn(capture.run(output));
        let end = match guard.listen() {
            Ok(ear) => wait_for_end(&ear, &guard.voice(), attempt.stops()).await,
            Err(error) => {
                tracing::error!(%error, "cannot listen to a watchdog");
                None
            }
        };
        ended.cancel();
        let gone = end.is_some() || self.end_orphans(attempt, dirs).await;
        let lease_lost = self.leases.ended(attempt.key);
        let log = drain(capture, &give_up).await;
        if !gone {
            blocking(move || guard.forget()).await;
            return self.give_up(attempt);
        }
        let reason = end.map_or_else(
            || outcome::lost("its watchdog died, and what was left of it was killed"),
            |end| {
                let status = end.status();
                let cause = if lease_lost { Cause::LeaseLost } else { end.cause };
                outcome::reason(cause, status, end.out_of_memory)
            },
        );
        let result = JobResult { attempt: Some(attempt.wire.clone()), reason: Some(reason), log: Some(log) };
        self.conclude(attempt, dirs, result, Some(guard)).await;
    }

    async fn cgroup_of(&self, dirs: &AttemptDirs) -> Option<cgroup::Cgroup> {
        let record = dirs.record.clone();
        blocking(move || Intent::known(&record).and_then(|intent| intent.cgroup())).await
    }

    /// Its watchdog has died: the kernel has killed the main process, the rest is for its guardian, and for the agent where
    /// that has died too. Returns whether nothing was seen to be left.
    async fn end_orphans(&self, attempt: &Attempt, dirs: &AttemptDirs) -> bool {
        tracing::error!(attempt = %attempt.key, "its watchdog has died");
        let record = dirs.record.clone();
        blocking(move || Intent::known(&record).is_some_and(|intent| intent.kill_orphans(&record, &Patience::new())))
            .await
    }

    /// Something of it may be left, so that nothing is said of it: its lease runs out.
    fn give_up(&self, attempt: &Arc<Attempt>) {
        tracing::error!(attempt = %attempt.key, "perhaps something of it is left: its lease is not extended any more");
        self.leases.ended(attempt.key);
        attempt.given_up();
        self.roster.changed(attempt);
    }

    /// The result is on disk before the control group goes: one that is missing without a result proves nothing to a
    /// successor. Both are before anybody is told, who may then take away the record that names the group.
    async fn conclude(&self, attempt: &Arc<Attempt>, dirs: &AttemptDirs, result: JobResult, guard: Option<Guard>) {
        crate::failpoint!("agent::before-result");
        let bytes = Arc::new(result.encode_to_vec());
        while let Err(error) = {
            let (record, bytes) = (dirs.record.clone(), Arc::clone(&bytes));
            blocking(move || {
                disk::write_durably(&record.join(RESULT), &bytes)?;
                crate::failpoint!("agent::after-result");
                remove_cgroups(&record);
                Ok::<_, io::Error>(())
            })
            .await
        } {
            tracing::error!(attempt = %attempt.key, %error, "cannot write a result to disk; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        attempt.ended(result);
        self.roster.changed(attempt);
        let private = dirs.private.clone();
        blocking(move || guard.into_iter().for_each(Guard::forget)).await;
        drop(spawn_blocking(move || discard(&private)));
    }

    async fn decline(&self, attempt: &Arc<Attempt>, dirs: &AttemptDirs, reason: String) {
        let dirs = dirs.clone();
        blocking(move || {
            remove_cgroups(&dirs.record);
            discard(&dirs.record);
            discard(&dirs.private);
        })
        .await;
        self.leases.forget(attempt.key);
        self.roster.decline(attempt.key, reason);
    }
}

fn remove_cgroups(record: &std::path::Path) {
    if let Some(intent) = Intent::known(record) {
        intent.remove_cgroups();
    }
}

/// Waits for the end, and passes on what is asked for meanwhile. `None` where the watchdog has died.
async fn wait_for_end(ear: &Ear, watchdog: &Voice, mut stops: watch::Receiver<Stop>) -> Option<End> {
    loop {
        tokio::select! {
            biased;
            end = ear.end() => return end,
            Ok(()) = stops.changed() => match stops.borrow_and_update().clone() {
                Stop::No => {}
                Stop::Cancel { reason, grace } => {
                    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                    watchdog.say(&Order::Terminate { reason, grace_ms });
                }
                Stop::HandBack { within } => {
                    watchdog.say(&Order::HandBack { within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX) });
                }
            },
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
