//! Jobs that do nothing, one by one through one agent of two slots, beside what the machine can do at all.
//!
//! Three things take turns: [`spawn_rate`], two threads that start `/bin/true` and wait for it, again and again; the same
//! number of jobs `/bin/true` through Hodei, each submitted by a call of its own and waiting in the queue until a slot is
//! free, from the first submission to the last job's end; and, where `hq` is installed, as many tasks of a HyperQueue job
//! through a worker of two cores, from before `hq job submit-file` to after `hq job wait`. HyperQueue keeps nothing durable
//! here and replicates nothing.

use std::{
    fmt::Write as _,
    fs, io,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use hodei_proto::v1::{
    Attempt, GetQueueStatusRequest, Job, JobState, ListJobsRequest, scheduler_service_client::SchedulerServiceClient,
};
use tempfile::TempDir;

use super::cpu::{self, Meter};
use crate::{Client, Cluster, client::shell, proc::Proc, wait};

/// Jobs at once, in every system.
pub const SLOTS: u32 = 2;
/// Connections that submit, spread over the nodes.
const CLIENTS: usize = 32;
const NODES: usize = 3;
/// For one submission.
const DEADLINE: Duration = Duration::from_secs(30);
/// For all jobs of a round.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Between two looks at the queue.
const LOOK: Duration = Duration::from_millis(20);
const PROGRAM: &str = "/bin/true";
const HQ: &str = "hq";

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Jobs of a round.
    pub jobs: u32,
    /// How often everything is measured.
    pub rounds: usize,
}

/// One round of one system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Round {
    /// Jobs per second.
    pub per_second: f64,
    /// Submissions per second while they were made, beside jobs that ran already; 0 where they are not single.
    pub submitted_per_second: f64,
    /// Where the time of a slot goes, means in milliseconds, by the leader's stamps: from the assignment to the note that the
    /// process was started, and from there to the note of its end; the rest is until the next assignment. 0: not known.
    pub stages_ms: [f64; 2],
    /// Processor time per job in microseconds: of the servers, of the agent, and of all its children, jobs among them.
    pub cpu_us: [f64; 3],
}

/// All rounds.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// The machine alone.
    pub spawn: Vec<Round>,
    /// Hodei.
    pub hodei: Vec<Round>,
    /// HyperQueue; absent where it is not installed.
    pub hyperqueue: Option<Vec<Round>>,
}

/// Runs the plan; progress goes to standard error.
///
/// # Panics
/// If a job does not succeed, or a system does not work.
pub async fn run(plan: &Plan) -> Figures {
    let installed = Command::new(HQ).arg("--version").output().is_ok_and(|output| output.status.success());
    let mut figures = Figures { hyperqueue: installed.then(Vec::new), ..Figures::default() };
    for round in 0..plan.rounds {
        let note = |system: &str, figures: Round| {
            let Round { per_second, submitted_per_second, cpu_us: [servers, agent, jobs], .. } = figures;
            eprintln!(
                "{system:>10} {:>2}: {per_second:>6.0} jobs/s, {submitted_per_second:>6.0} submissions/s, \
                 CPU per job {servers:.0} + {agent:.0} + {jobs:.0} us",
                round + 1
            );
            figures
        };
        figures.spawn.push(note("spawn", spawn_rate(plan.jobs)));
        figures.hodei.push(note("hodei", through_hodei(plan.jobs).await));
        if let Some(rounds) = &mut figures.hyperqueue {
            rounds.push(note(HQ, through_hyperqueue(plan.jobs).await));
        }
    }
    figures
}

/// As fast as this machine can start `/bin/true` (posix_spawn, as the standard library does it) and wait for it, in two
/// threads.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn spawn_rate(jobs: u32) -> Round {
    let before = (cpu::own("self"), cpu::of_children("self"));
    let begun = Instant::now();
    let lane = || {
        for _ in 0..jobs / SLOTS {
            let mut command = Command::new(PROGRAM);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            assert!(command.status().expect("/bin/true can be started").success(), "/bin/true succeeds");
        }
    };
    thread::scope(|scope| (0..SLOTS).for_each(|_| drop(scope.spawn(lane))));
    let took = begun.elapsed();
    let (own, children) = (cpu::own("self") - before.0, cpu::of_children("self") - before.1);
    Round { cpu_us: per_job([0.0, own, children], jobs), ..Round::of(jobs, took) }
}

async fn through_hodei(jobs: u32) -> Round {
    let mut cluster = Cluster::start(NODES).await;
    let agent = cluster.agent(&[0, 1, 2], &["--capacity", &SLOTS.to_string()]).await;
    let servers = Meter::new(cluster.nodes.iter_mut().map(|node| node.process().pid()).collect());
    let agent = cluster.agents[agent].process().pid().to_string();
    let cpu = || [servers.read().servers, cpu::own(&agent), cpu::of_children(&agent)];
    let before = cpu();
    let begun = Instant::now();
    let submitters: Vec<_> = (0..CLIENTS)
        .map(|i| {
            let client = cluster.client(i % NODES);
            let own = jobs / CLIENTS as u32 + u32::from((i as u32) < jobs % CLIENTS as u32);
            tokio::spawn(async move {
                for _ in 0..own {
                    client.submit(shell(PROGRAM, &[]), DEADLINE).await.expect("a whole cluster takes jobs");
                }
            })
        })
        .collect();
    for submitter in submitters {
        submitter.await.expect("a submitter does not panic");
    }
    let submitted = begun.elapsed();
    until_idle(&cluster.client(0)).await;
    let took = begun.elapsed();
    let after = cpu();
    let ended = succeeded(&cluster.client(0)).await;
    assert_eq!(ended.len(), jobs as usize, "every job succeeds");
    let spent = [after[0] - before[0], after[1] - before[1], after[2] - before[2]];
    let submitted_per_second = f64::from(jobs) / submitted.as_secs_f64();
    let stages_ms = stages(&ended, jobs);
    Round { submitted_per_second, stages_ms, cpu_us: per_job(spent, jobs), ..Round::of(jobs, took) }
}

fn stages(ended: &[Job], jobs: u32) -> [f64; 2] {
    // One that ended at once may never have been noted as started.
    let started =
        |attempt: &Attempt| if attempt.started_at_ms > 0 { attempt.started_at_ms } else { attempt.finished_at_ms };
    let mean = |stage: &dyn Fn(&Attempt) -> i64| {
        let sum: i64 = ended.iter().flat_map(|job| &job.attempts).map(stage).sum();
        f64::from(i32::try_from(sum).unwrap_or(i32::MAX)) / f64::from(jobs)
    };
    let start = mean(&|attempt| started(attempt) - attempt.assigned_at_ms);
    [start, mean(&|attempt| attempt.finished_at_ms - started(attempt))]
}

/// Until nothing waits and nothing runs.
async fn until_idle(client: &Client) {
    let begun = Instant::now();
    let mut scheduler = SchedulerServiceClient::new(client.channel());
    loop {
        let status =
            scheduler.get_queue_status(GetQueueStatusRequest::default()).await.expect("a whole cluster answers");
        let status = status.into_inner();
        if status.pending + status.scheduled + status.running == 0 {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "jobs are left after {PATIENCE:?}: {status:?}");
        tokio::time::sleep(LOOK).await;
    }
}

async fn succeeded(client: &Client) -> Vec<Job> {
    let states = vec![JobState::Succeeded.into()];
    let mut request = ListJobsRequest { states, limit: 1_000_000, ..ListJobsRequest::default() };
    let mut jobs = Vec::new();
    loop {
        let page = client.jobs().list_jobs(request.clone()).await.expect("a whole cluster answers").into_inner();
        jobs.extend(page.jobs);
        if page.next_page_token.is_empty() {
            return jobs;
        }
        request.page_token = page.next_page_token;
    }
}

async fn through_hyperqueue(jobs: u32) -> Round {
    let dir = tempfile::Builder::new().prefix("hq-bench-").tempdir().expect("a temporary directory");
    let of = |args: &[&str]| {
        let mut command = Command::new(HQ);
        command.arg("--server-dir").arg(dir.path().join("server")).args(args).current_dir(dir.path());
        command
    };
    let server = Proc::spawn("server", &mut of(&["server", "start", "--host", "127.0.0.1"]), dir.path());
    wait::until_true("the server answers", DEADLINE, || async { ok(&mut of(&["server", "info"])).is_ok() }).await;
    let worker = Proc::spawn("worker", &mut of(&["worker", "start", "--cpus", &SLOTS.to_string()]), dir.path());
    let connected = async || ok(&mut of(&["worker", "list"])).is_ok_and(|list| list.contains("RUNNING"));
    wait::until_true("the worker is there", DEADLINE, connected).await;
    let file = definition(&dir, jobs);
    let (server, worker) = (server.pid().to_string(), worker.pid().to_string());
    let cpu = || [cpu::own(&server), cpu::own(&worker), cpu::of_children(&worker)];
    let before = cpu();
    let begun = Instant::now();
    ok(of(&["job", "submit-file"]).arg(&file)).expect("the server takes the job");
    ok(&mut of(&["job", "wait", "all"])).expect("every task succeeds");
    let took = begun.elapsed();
    let after = cpu();
    let spent = [after[0] - before[0], after[1] - before[1], after[2] - before[2]];
    Round { cpu_us: per_job(spent, jobs), ..Round::of(jobs, took) }
}

/// A job of single tasks, no array: the nearest to jobs of their own that does not start a client for each.
fn definition(dir: &TempDir, jobs: u32) -> std::path::PathBuf {
    let mut text = "name = \"noop\"\n".to_owned();
    for _ in 0..jobs {
        write!(text, "[[task]]\ncommand = [\"{PROGRAM}\"]\nstdout = \"none\"\nstderr = \"none\"\n")
            .expect("a String takes everything");
    }
    let path = Path::join(dir.path(), "noop.toml");
    fs::write(&path, text).expect("a file can be written");
    path
}

fn ok(command: &mut Command) -> io::Result<String> {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output()?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    Err(io::Error::other(format!("{command:?}: {status}: {}", String::from_utf8_lossy(&stderr))))
}

impl Round {
    fn of(jobs: u32, took: Duration) -> Self {
        Self { per_second: f64::from(jobs) / took.as_secs_f64(), ..Self::default() }
    }

    /// What a job costs its slot, in milliseconds.
    #[must_use]
    pub fn slot_ms(&self) -> f64 {
        f64::from(SLOTS) * 1000.0 / self.per_second
    }
}

fn per_job(seconds: [f64; 3], jobs: u32) -> [f64; 3] {
    seconds.map(|seconds| seconds * 1e6 / f64::from(jobs))
}
