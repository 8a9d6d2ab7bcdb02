//! One of each: a short history in which every kind of command succeeds and every kind of row comes to be. Frozen: the
//! golden bytes are those of these values.

use std::collections::BTreeMap;

use hodei_state::{
    command::{
        Command, CreateToken, DrainWorker, Envelope, Init, NodeHello, OpenSession, PlaceSegment, PutSecret,
        ReplaceNode, SubmitJob, UseToken,
    },
    flapping::SetAsideChange,
    ids::{AttemptRef, Caller, ClusterId, JobId, Role, SecretId, SessionId, TokenId, UserId, WorkerId},
    job::{Deadline, LogEnd, Reason, StartFailure},
    registry::{AgentInfo, Capacity, SessionRef},
    score::{Choice, Score, WeightsChange},
    spec::{
        Action, Array, Body, Constraint, Execution, Extras, JobSpec, OutputPolicy, Preference, Resources, Retry,
        SecretRef,
    },
};

/// The rolling hash after the whole history.
pub const HASH: &str = "0d7594ee518a8229360c37df28f94793";

const NODE: Caller = Caller::Node(1);
const ADMIN: Caller = Caller::Admin(UserId(0xad));
const WORKER: WorkerId = WorkerId(0x31);
const SESSION: SessionRef = SessionRef { worker: WORKER, session: SessionId(0x51) };
const NEXT: SessionRef = SessionRef { worker: WORKER, session: SessionId(0x52) };

/// Stamps and envelopes; an envelope's log index is its place, from 1.
pub fn history() -> Vec<(u64, Envelope)> {
    let mut history = History { entries: Vec::new() };
    history.members();
    history.workers();
    history.jobs();
    history.operations();
    history.replacement();
    history.entries
}

struct History {
    entries: Vec<(u64, Envelope)>,
}

impl History {
    /// Returns the command's log index.
    fn push(&mut self, caller: Caller, command: Command) -> u64 {
        let index = self.entries.len() as u64 + 1;
        self.entries.push((1_700_000_000_000 + index * 1_000, Envelope { caller, command }));
        index
    }

    fn members(&mut self) {
        let init = Init {
            cluster: ClusterId(0x0199_a1b2_c3d4_7e5f_8a9b_0c1d_2e3f_4a5b),
            ca: (0..=255).collect(),
            address: "10.0.0.1:50051".to_string(),
            key: [1; 32],
            version: "0.1.0".to_string(),
            feature_level: 1,
            admin: (UserId(0xad), [2; 32]),
        };
        self.push(NODE, Command::Init(init));
        for (token, role) in [(1, Role::Node), (2, Role::Agent), (3, Role::User), (4, Role::Admin)] {
            let (secret, ttl_ms, uses) = ([token; 32], 3_600_000, 3);
            let token = CreateToken { token: TokenId(u128::from(token)), role, secret, ttl_ms, uses };
            self.push(ADMIN, Command::CreateToken(token));
        }
        for (secret, role, id) in
            [(1, Role::Node, 0), (1, Role::Node, 0), (2, Role::Agent, WORKER.0), (3, Role::User, 9)]
        {
            let nonce = 10 + self.entries.len() as u8;
            self.push(
                NODE,
                Command::UseToken(UseToken {
                    secret: [secret; 32],
                    role,
                    nonce: [nonce; 16],
                    key: [nonce; 32],
                    id,
                    address: "node-2.example:50051".to_string(),
                    version: "0.1.1".to_string(),
                    feature_level: 2,
                }),
            );
        }
        self.push(ADMIN, Command::RevokeToken { token: TokenId(4) });
        let hello = NodeHello {
            node: 1,
            address: "10.0.0.7:50051".to_string(),
            start_counter: 5,
            version: "0.2.0".to_string(),
            feature_level: 2,
        };
        self.push(NODE, Command::NodeHello(hello));
        self.push(ADMIN, Command::RemoveNode { node: 3 });
        self.push(NODE, Command::SetFeatureLevel { level: 2 });
        let weights = WeightsChange { spread: Some(300), load: Some(0), ..WeightsChange::default() };
        let (flaps, window_ms) = (Some(2), Some(60_000));
        let set_aside = SetAsideChange { flaps, window_ms, ..SetAsideChange::default() };
        self.push(ADMIN, Command::ConfigureScheduler { weights, set_aside });
        for (secret, name, len) in [(0x5e1, "token", 40), (0x5e2, "token", 3_000), (0x5e3, "gone", 1)] {
            let put = PutSecret { secret: SecretId(secret), name: name.to_string(), key: [8; 8], sealed: vec![9; len] };
            self.push(ADMIN, Command::PutSecret(Box::new(put)));
        }
        self.push(ADMIN, Command::RemoveSecret { secret: SecretId(0x5e3) });
    }

    fn replacement(&mut self) {
        let replace = ReplaceNode {
            node: 2,
            nonce: [12; 16],
            key: [112; 32],
            address: "10.0.0.2:50051".to_string(),
            version: "0.2.0".to_string(),
            feature_level: 2,
        };
        self.push(Caller::Node(2), Command::ReplaceNode(replace));
        self.push(NODE, Command::Recover { survivor: 1 });
    }

    fn workers(&mut self) {
        let info = AgentInfo {
            capacity: Capacity { slots: 16, cpu_millis: 8_000, memory_mb: 16_384, storage_mb: 100_000, gpu: 2 },
            labels: BTreeMap::from([("zone".to_string(), "a".to_string())]),
            version: "0.1.0".to_string(),
            architecture: "x86_64".to_string(),
            kernel: "6.1.0".to_string(),
            hostname: "worker-1".to_string(),
            boot_id: "b007".to_string(),
            provider: Some("docker".to_string()),
        };
        let open = OpenSession { on: SESSION, previous: None, info, adopted: Vec::new(), dead: Vec::new() };
        self.push(Caller::Agent(WORKER), Command::OpenSession(Box::new(open.clone())));
        self.push(NODE, Command::AttachWorker { worker: SESSION, stream: 1, gateway: 1 });
        self.push(NODE, Command::DetachWorker { worker: SESSION, stream: 1 });
        self.push(NODE, Command::CloseSession { worker: SESSION });
        let dead = vec![AttemptRef { job: JobId(0xdead), attempt: 7, fence: 300 }];
        let open = OpenSession { on: NEXT, previous: Some(SESSION.session), dead, ..open };
        self.push(Caller::Agent(WORKER), Command::OpenSession(Box::new(open)));
        self.push(NODE, Command::AttachWorker { worker: NEXT, stream: 70_000, gateway: 2 });
    }

    fn submit(&mut self, job: u128, spec: JobSpec) -> JobId {
        let submission = SubmitJob {
            job: JobId(0x0199_0000_0000_7000_8000_0000_0000_0000 | job),
            digest: [job as u8; 32],
            idempotency_key: job.is_multiple_of(2).then(|| format!("key-{job}")),
            spec,
        };
        let job = submission.job;
        self.push(Caller::User(UserId(9)), Command::SubmitJob(Box::new(submission)));
        job
    }

    /// Submits and assigns a job.
    fn place(&mut self, job: u128, spec: JobSpec) -> AttemptRef {
        let job = self.submit(job, spec);
        let score = Score { bin_packing: 100_000, spread: 1, load: 25_000, affinity: -200_000, reliability: 99_000 };
        let choice = Choice { candidates: 300, score };
        let fence = self.push(NODE, Command::Assign { job, attempt: 1, on: NEXT, heartbeat: 77, choice });
        AttemptRef { job, attempt: 1, fence }
    }

    fn jobs(&mut self) {
        let segment = Some(PlaceSegment { holder: 1, first_sequence: 1 });
        let reasons = [
            Reason::Exited { code: 0 },
            Reason::Exited { code: -3 },
            Reason::Signaled { signal: 9 },
            Reason::OutOfMemory,
            Reason::WorkerLost { message: "its watchdog died".to_string() },
            Reason::Timeout { deadline: Deadline::Run },
            Reason::CouldNotStart { cause: StartFailure::NotFound, message: "no such file".to_string() },
            Reason::CouldNotStart { cause: StartFailure::NotPermitted, message: "permission denied".to_string() },
            Reason::CouldNotStart { cause: StartFailure::Other, message: "out of pids".to_string() },
        ];
        let log = LogEnd { last_sequence: 12, lines: 11, dropped: 400, bytes: 70_000, checksum: 0xdead_beef };
        for (job, reason) in (1..).zip(reasons) {
            let attempt = self.place(job, full_spec(job as i32));
            self.push(NODE, Command::JobStarted { attempt, by: NEXT, segment });
            self.push(NODE, Command::JobResult { attempt, by: NEXT, reason, log, segment });
        }
        let cancelled = self.place(20, full_spec(20));
        self.push(ADMIN, Command::CancelJob { job: cancelled.job, reason: "not needed".to_string() });
        let (by, exit_code, signal) = (ADMIN, Some(143), Some(15));
        let reason = Reason::Cancelled { by, reason: "not needed".to_string(), exit_code, signal };
        self.push(
            Caller::Agent(WORKER),
            Command::JobResult { attempt: cancelled, by: NEXT, reason, log, segment: None },
        );
        let lost = self.place(21, JobSpec { timeout_ms: Some(1), ..full_spec(21) });
        self.push(NODE, Command::AttemptOverdue { attempt: lost });
        self.push(NODE, Command::AttemptLost { attempt: lost });
        let silent = self.place(29, full_spec(29));
        self.push(NODE, Command::AttemptLost { attempt: silent });
        let declined = self.place(22, full_spec(22));
        self.push(NODE, Command::JobDeclined { attempt: declined, by: NEXT, reason: "no space left".to_string() });
        let live = self.place(23, full_spec(23));
        self.push(NODE, Command::JobStarted { attempt: live, by: NEXT, segment: None });
        self.push(
            NODE,
            Command::PlaceLog { attempt: live, segment: PlaceSegment { holder: 2, first_sequence: 9_000 } },
        );
        let preempted = self.place(26, full_spec(26));
        let urgent = self.submit(27, JobSpec { resources: Resources::default(), ..full_spec(-1) });
        self.push(NODE, Command::Preempt { attempt: preempted, for_job: urgent });
        let failed = JobId(0x0199_0000_0000_7000_8000_0000_0000_0000 | 20);
        self.push(ADMIN, Command::RetryJob { job: JobId(failed.0 + 8), of: failed });
        let bare = JobSpec { lost_after_ms: 5_000, body: Body::Inline(vec![1]), ..JobSpec::default() };
        let pending = self.submit(24, bare.clone());
        self.push(ADMIN, Command::CancelJob { job: pending, reason: String::new() });
        self.push(NODE, Command::RemoveJobs { jobs: vec![pending] });
        self.submit(25, bare);
    }
}

impl History {
    fn operations(&mut self) {
        let drain = |nonce, session| {
            let drain = DrainWorker { worker: WORKER, nonce, deadline_ms: Some(1), requeue: false, session };
            Command::DrainWorker(drain)
        };
        self.push(ADMIN, drain(0x41, None));
        self.push(NODE, Command::DrainOverdue { worker: WORKER, nonce: 0x41 });
        self.push(ADMIN, Command::UndrainWorker { worker: WORKER });
        self.push(Caller::Agent(WORKER), drain(0x42, Some(NEXT.session)));
        self.push(NODE, Command::SetAsideOver { worker: WORKER });
        self.push(ADMIN, Command::RemoveWorker { worker: WORKER, force: true });
    }
}

/// A spec in which nothing is as by default.
fn full_spec(priority: i32) -> JobSpec {
    let constraint = |value: &str| Constraint {
        attribute: "label.zone".to_string(),
        operator: "=".to_string(),
        value: value.to_string(),
    };
    JobSpec {
        name: Some("nightly build".to_string()),
        priority: -priority,
        resources: Resources {
            cpu_millis: 250,
            memory_mb: 512,
            storage_mb: 10,
            gpu: u32::from(priority == 1),
            architecture: Some("x86_64".to_string()),
        },
        labels: BTreeMap::from([("team".to_string(), "ci".to_string())]),
        timeout_ms: Some(3_600_000),
        lost_after_ms: 30_000,
        grace_period_ms: 1_500,
        retry: Retry {
            infrastructure: 1,
            failure: 2,
            exit_codes: vec![75, 143],
            timeout: 1,
            preemption: 7,
            backoff_initial_ms: 100_000,
            backoff_max_ms: 200_000,
            max_attempts: 9,
        },
        output_policy: OutputPolicy::Drop,
        preemptible: true,
        extras: Some(Box::new(Extras {
            constraints: vec![constraint("a")],
            preferences: vec![Preference { constraint: constraint("b"), weight: -5 }],
            depends_on: vec![JobId(0x77)],
            array: Some(Array { count: 10, max_parallel: 3 }),
            image: Some("debian:12".to_string()),
            secrets: vec![SecretRef { name: "token".to_string(), env: Some("TOKEN".to_string()) }],
            user: Some("nobody".to_string()),
        })),
        body: Body::Payload { digest: [0x5a; 32], len: 20_000 },
    }
}

pub fn executions() -> Vec<(&'static str, Execution)> {
    let exec = Execution {
        action: Action::Exec { cmd: "tar".to_string(), args: vec!["-c".to_string(), String::new(), "é".to_string()] },
        env: BTreeMap::from([("LANG".to_string(), "C".to_string())]),
        working_directory: Some("/srv".to_string()),
    };
    let script = |interpreter: Option<&str>| Execution {
        action: Action::Script { interpreter: interpreter.map(str::to_string), content: "echo 1\n".repeat(40) },
        env: BTreeMap::new(),
        working_directory: None,
    };
    vec![("exec", exec), ("script", script(None)), ("interpreter", script(Some("/usr/bin/python3")))]
}
