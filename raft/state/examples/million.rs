//! What a million pending jobs cost: memory, and processor time to submit, to restart and to plan, beside a thousand.
//!
//! `cargo run --release -p hodei-state --example million [JOBS]`

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "measuring takes /proc and fractions")]

use std::{fs, time::Duration};

use hodei_state::{
    Liveness, Now, State,
    backlog::backlog,
    codec::encode_execution,
    command::{Command, CreateToken, Envelope, Init, OpenSession, SubmitJob, UseToken},
    ids::{Caller, ClusterId, JobId, Millis, Mono, Role, SessionId, TokenId, UserId, WorkerId},
    job::{LogEnd, Reason},
    outcome::Outcome,
    plan,
    registry::{AgentInfo, Capacity, SessionRef},
    spec::{Action, Body, Execution, JobSpec, Resources, defaults},
};

const NODE: Caller = Caller::Node(1);
const ADMIN: Caller = Caller::Admin(UserId(1));
const WORKERS: u128 = 100;
/// Jobs that ask for what no worker has, ahead of all others in the queue.
const MISFITS: u128 = 10;

fn main() {
    let most = std::env::args().nth(1).map_or(1_000_000, |text| text.parse().expect("a number of jobs"));
    println!(
        "| pending jobs | RSS | per job | submit | restart | plan and assign, per job | queue, in all | idle plan, nothing fits |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    measure(1_000, None);
    let before = resident();
    measure(most, Some(before));
}

fn measure(jobs: u128, before: Option<u64>) {
    let mut log = Log { state: State::new(), index: 0, now: 1_700_000_000_000 };
    log.cluster();
    let start = cpu();
    for job in 0..jobs {
        log.submit(job, jobs);
        if job % 1_000 == 0 {
            log.state.take_changes();
            // A reader's view is cloned after each entry, as it is in a node.
            drop(log.state.clone());
        }
    }
    let submit = cpu() - start;
    let memory = before.map(|before| resident() - before);
    let (decisions, planned) = log.schedule();
    let told = log.queue_status();
    let idle = log.idle_plan();
    let rows: Vec<_> = log.state.rows().collect();
    let (hash, start) = (log.state.hash(), cpu());
    drop(log);
    let restarted = State::from_rows(rows).expect("own rows are sound");
    let restart = cpu() - start;
    assert_eq!(restarted.hash(), hash);
    println!(
        "| {jobs} | {} | {} | {:.1} µs each | {:.2} s | {:.1} µs | {:.1} µs | {:.1} µs |",
        memory.map_or("-".to_string(), |bytes| format!("{} MiB", bytes >> 20)),
        memory.map_or("-".to_string(), |bytes| format!("{} B", u128::from(bytes) / jobs)),
        submit.as_secs_f64() * 1e6 / jobs as f64,
        restart.as_secs_f64(),
        planned.as_secs_f64() * 1e6 / decisions as f64,
        told.as_secs_f64() * 1e6,
        idle.as_secs_f64() * 1e6,
    );
}

struct Log {
    state: State,
    index: u64,
    now: u64,
}

impl Log {
    fn apply(&mut self, caller: Caller, command: Command) -> Outcome {
        self.index += 1;
        let outcome = self.state.apply(self.index, 0, Millis(self.now), &Envelope { caller, command });
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
        outcome
    }

    /// A node, an administrator, and workers with 16 slots.
    fn cluster(&mut self) {
        let init = Init {
            cluster: ClusterId(1),
            ca: vec![1; 600],
            address: "127.0.0.1:50051".to_string(),
            key: [1; 32],
            version: "0.1.0".to_string(),
            feature_level: 1,
            admin: (UserId(1), [2; 32]),
        };
        self.apply(NODE, Command::Init(init));
        let (secret, ttl_ms, uses) = ([3; 32], 3_600_000, 10_000);
        let token = CreateToken { token: TokenId(1), role: Role::Agent, secret, ttl_ms, uses };
        self.apply(ADMIN, Command::CreateToken(token));
        for id in 1..=WORKERS {
            let mut nonce = [0; 16];
            nonce.copy_from_slice(&id.to_be_bytes());
            let mut key = [9; 32];
            key[..16].copy_from_slice(&nonce);
            let (role, address, version) = (Role::Agent, String::new(), "0.1.0".to_string());
            let used = UseToken { secret, role, nonce, key, id, address, version, feature_level: 1 };
            self.apply(NODE, Command::UseToken(used));
            let capacity = Capacity { slots: 16, cpu_millis: 16_000, memory_mb: 65_536, storage_mb: 100_000, gpu: 0 };
            let info = AgentInfo { capacity, architecture: "x86_64".to_string(), ..AgentInfo::default() };
            let on = session(id);
            let (adopted, dead) = (Vec::new(), Vec::new());
            let open = OpenSession { on, previous: None, info, adopted, dead };
            self.apply(Caller::Agent(on.worker), Command::OpenSession(Box::new(open)));
            self.apply(NODE, Command::AttachWorker { worker: on, stream: 1, gateway: 1 });
        }
    }

    /// A named job with a command and an environment. The first ones fit nowhere, each in its own way, and so do half of
    /// the others.
    fn submit(&mut self, job: u128, jobs: u128) {
        let execution = Execution {
            action: Action::Exec { cmd: "/usr/bin/make".to_string(), args: vec!["-j4".to_string(), "all".to_string()] },
            env: [("TARGET".to_string(), "release".to_string())].into(),
            working_directory: None,
        };
        let gpu = if job < MISFITS { job as u32 + 1 } else { u32::from(job < jobs / 2) };
        let spec = JobSpec {
            name: Some(format!("build-{job:07}")),
            priority: i32::from(job < jobs / 2),
            resources: Resources { cpu_millis: 1_000, memory_mb: 512, gpu, ..Resources::default() },
            lost_after_ms: defaults::LOST_AFTER_MS,
            grace_period_ms: defaults::GRACE_PERIOD_MS,
            body: Body::Inline(encode_execution(&execution)),
            ..JobSpec::default()
        };
        // Like UUIDv7: a time, then what looks random.
        let random = (job as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let id = JobId(((1_700_000_000_000 + job / 10) << 80) | (7 << 76) | (2 << 62) | u128::from(random >> 2));
        let mut digest = [7; 32];
        digest[..16].copy_from_slice(&job.to_be_bytes());
        self.apply(ADMIN, Command::SubmitJob(Box::new(SubmitJob { job: id, digest, idempotency_key: None, spec })));
    }

    /// Fills the workers, ends what runs, and again: how many jobs were placed, and the time for it.
    fn schedule(&mut self) -> (usize, Duration) {
        let mut liveness = Liveness::elected(1, &self.state, Mono(0));
        for id in 1..=WORKERS {
            liveness.confirm(&self.state, session(id), 1, &[], Mono(0), Mono(0));
        }
        let (mut decisions, mut time) = (0, Duration::ZERO);
        while decisions < 400 {
            let start = cpu();
            let planned = plan(&self.state, &liveness, Now { mono: Mono(1), stamp: Millis(self.now) });
            for command in planned.commands {
                let Outcome::Assigned { attempt } = self.apply(NODE, command) else {
                    unreachable!("plans are assignments");
                };
                decisions += 1;
                let by = self.state.attempt(attempt.job, attempt.attempt).expect("just assigned");
                let by = SessionRef { worker: by.worker, session: by.session };
                // Every other attempt ends at once, so that there is room for more.
                if decisions % 2 == 0 {
                    let reason = Reason::Exited { code: 0 };
                    self.apply(NODE, Command::JobResult { attempt, by, reason, log: LogEnd::default(), segment: None });
                }
            }
            time += cpu() - start;
            self.state.take_changes();
        }
        (decisions, time)
    }

    /// What the whole queue waits for.
    fn queue_status(&self) -> Duration {
        const TIMES: u32 = 100;
        let start = cpu();
        for _ in 0..TIMES {
            let told = backlog(&self.state, None, Now { mono: Mono(1), stamp: Millis(self.now) });
            assert!(told.counts.pending > 0 && told.left_off == (0, 0));
        }
        (cpu() - start) / TIMES
    }

    /// Half of the queue waits for a GPU, and there is room, but nothing that fits: the case that must not walk it.
    fn idle_plan(&mut self) -> Duration {
        let mut liveness = Liveness::elected(1, &self.state, Mono(0));
        let rest: Vec<_> = self.state.pending().map(|job| job.id).collect();
        for job in rest {
            if self.state.spec(job).is_some_and(|spec| spec.resources.gpu == 0) {
                self.apply(ADMIN, Command::CancelJob { job, reason: String::new() });
            }
        }
        self.state.take_changes();
        for id in 1..=WORKERS {
            liveness.confirm(&self.state, session(id), 1, &[], Mono(0), Mono(0));
        }
        const TIMES: u32 = 1_000;
        let start = cpu();
        for _ in 0..TIMES {
            let planned = plan(&self.state, &liveness, Now { mono: Mono(1), stamp: Millis(self.now) });
            assert!(planned.commands.is_empty());
        }
        (cpu() - start) / TIMES
    }
}

fn session(id: u128) -> SessionRef {
    SessionRef { worker: WorkerId(id), session: SessionId(id) }
}

/// What this thread has had of a processor, whatever else the machine does.
fn cpu() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let first = text.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(first.expect("nanoseconds on the processor"))
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS is there");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}
