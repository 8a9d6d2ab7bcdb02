//! Random commands over few names, so that they meet; and now and then values that nobody sensible sends.

#![allow(dead_code, reason = "each test crate uses its part")]

use hodei_state::{
    State,
    command::{
        Command, CreateToken, DrainWorker, Envelope, Init, NodeHello, OpenSession, PlaceSegment, PutSecret,
        ReplaceNode, SubmitJob, UseToken,
    },
    flapping::SetAsideChange,
    ids::{AttemptRef, Caller, ClusterId, JobId, Role, SecretId, SessionId, TokenId, UserId, WorkerId},
    job::{Deadline, LogEnd, Reason, StartFailure},
    registry::{AgentInfo, Capacity, SessionRef},
    score::{Choice, WeightsChange},
    spec::{Body, Extras, JobSpec, Resources, Retry, SecretRef},
};

/// What a command is made of.
#[derive(Clone, Debug)]
pub struct Dice {
    pub kind: u8,
    pub a: u8,
    pub b: u8,
    pub c: u8,
    pub x: u64,
}

pub const ADMIN: Caller = Caller::Admin(UserId(1));
const WORKERS: u128 = 3;

/// However often they flap, workers go on taking jobs.
pub fn never_set_aside() -> Envelope {
    let set_aside = SetAsideChange { flaps: Some(0), ..SetAsideChange::default() };
    Envelope { caller: ADMIN, command: Command::ConfigureScheduler { weights: WeightsChange::default(), set_aside } }
}

/// A cluster with an administrator, tokens, and three workers that are ready.
pub fn setup() -> Vec<Envelope> {
    let node = Caller::Node(1);
    let init = Init {
        cluster: ClusterId(1),
        ca: vec![1],
        address: "a:1".to_string(),
        key: [1; 32],
        version: String::new(),
        feature_level: 1,
        admin: (UserId(1), [2; 32]),
    };
    let mut setup = vec![Envelope { caller: node, command: Command::Init(init) }];
    for (role, id) in [(Role::Agent, 1), (Role::Node, 2), (Role::User, 3)] {
        let token = CreateToken { token: TokenId(id), role, secret: [id as u8; 32], ttl_ms: 1_000_000, uses: 20 };
        setup.push(Envelope { caller: ADMIN, command: Command::CreateToken(token) });
    }
    for id in 1..=WORKERS {
        let used = use_token(1, Role::Agent, 100 + id as u8, id);
        setup.push(Envelope { caller: node, command: Command::UseToken(used) });
        let on = SessionRef { worker: WorkerId(id), session: SessionId(1) };
        let open = open(on, None, 3, Vec::new());
        setup.push(Envelope { caller: Caller::Agent(on.worker), command: open });
        let attach = Command::AttachWorker { worker: on, stream: 1, gateway: 1 };
        setup.push(Envelope { caller: node, command: attach });
    }
    setup
}

fn use_token(secret: u8, role: Role, nonce: u8, id: u128) -> UseToken {
    UseToken {
        secret: [secret; 32],
        role,
        nonce: [nonce; 16],
        key: [nonce; 32],
        id,
        address: "b:1".to_string(),
        version: String::new(),
        feature_level: 1,
    }
}

fn open(on: SessionRef, previous: Option<SessionId>, slots: u32, named: Vec<AttemptRef>) -> Command {
    let capacity = Capacity { slots, cpu_millis: 4000, memory_mb: 1 << 20, ..Capacity::default() };
    let info = AgentInfo { capacity, ..AgentInfo::default() };
    Command::OpenSession(Box::new(OpenSession { on, previous, info, adopted: named.clone(), dead: named }))
}

impl Dice {
    pub fn envelope(&self, state: &State) -> Envelope {
        let (usual, command) = self.command(state);
        // Now and then somebody else asks.
        let caller = match self.x % 23 {
            0 => Caller::Node(u64::from(self.a % 4)),
            1 => Caller::Agent(WorkerId(u128::from(self.a % 5))),
            2 => Caller::User(UserId(u128::from(self.a % 3))),
            _ => usual,
        };
        Envelope { caller, command }
    }

    fn command(&self, state: &State) -> (Caller, Command) {
        let node = Caller::Node(1);
        let job = JobId(1 + u128::from(self.a % 12));
        let attempt = self.attempt(state, job);
        let by = self.owner(state, attempt);
        match self.kind % 40 {
            0..=5 => (ADMIN, self.submit(job)),
            6..=13 => (node, self.assign(state, job)),
            14..=16 => (node, Command::JobStarted { attempt, by, segment: self.segment() }),
            17..=20 => {
                let log = LogEnd { last_sequence: self.x, ..LogEnd::default() };
                (node, Command::JobResult { attempt, by, reason: self.reason(), log, segment: self.segment() })
            }
            21 => (node, Command::JobDeclined { attempt, by, reason: "no ".repeat(usize::from(self.c)) }),
            22 => (node, Command::AttemptLost { attempt }),
            23 => (node, Command::AttemptOverdue { attempt }),
            24 => (ADMIN, Command::CancelJob { job, reason: "x".repeat(usize::from(self.c) + 10) }),
            25 => (node, Command::RemoveJobs { jobs: (0..=12).map(JobId).collect() }),
            26 => {
                let on = self.session(state);
                let named = state.live_attempts(on.worker).map(|attempt| attempt.id).collect();
                let previous = state.worker(on.worker).map(|worker| worker.session);
                (Caller::Agent(on.worker), open(on, previous, u32::from(self.c % 5), named))
            }
            27 => {
                let worker = self.session(state);
                (node, Command::AttachWorker { worker, stream: self.number(4), gateway: u64::from(self.b % 3) })
            }
            28 => (node, Command::DetachWorker { worker: self.session(state), stream: self.number(4) }),
            29 => (
                node,
                Command::PlaceLog { attempt, segment: PlaceSegment { holder: 1, first_sequence: self.number(9) } },
            ),
            30 if self.b.is_multiple_of(4) => (node, Command::CloseSession { worker: self.session(state) }),
            31..=33 => self.operation(state),
            34 if self.b.is_multiple_of(2) => {
                (ADMIN, Command::RetryJob { job: JobId(1 + u128::from(self.c % 12)), of: job })
            }
            34 => (node, Command::Preempt { attempt, for_job: JobId(1 + u128::from(self.c % 12)) }),
            _ => self.administration(),
        }
    }

    fn operation(&self, state: &State) -> (Caller, Command) {
        let worker = self.session(state).worker;
        let nonce = u128::from(self.a % 3);
        match self.b % 8 {
            0..=2 => {
                let deadline_ms = (!self.c.is_multiple_of(3)).then_some(self.number(400));
                let session = Some(self.session(state).session);
                let drain = DrainWorker { worker, nonce, deadline_ms, requeue: self.b == 0, session };
                (if self.x.is_multiple_of(5) { Caller::Agent(worker) } else { ADMIN }, Command::DrainWorker(drain))
            }
            3 | 4 => {
                let nonce = state.worker(worker).and_then(|worker| worker.drain).map_or(nonce, |drain| drain.nonce);
                (Caller::Node(1), Command::DrainOverdue { worker, nonce })
            }
            7 if self.a.is_multiple_of(4) => (ADMIN, Command::RemoveWorker { worker, force: self.c.is_multiple_of(2) }),
            5 => (Caller::Node(1), Command::SetAsideOver { worker }),
            _ => (ADMIN, Command::UndrainWorker { worker }),
        }
    }

    fn administration(&self) -> (Caller, Command) {
        let node = Caller::Node(1);
        match self.b % 10 {
            8 => {
                let weights = WeightsChange { spread: Some(u32::from(self.c) * 5), ..WeightsChange::default() };
                let set_aside = SetAsideChange { flaps: Some(u32::from(self.a % 4)), ..SetAsideChange::default() };
                (ADMIN, Command::ConfigureScheduler { weights, set_aside })
            }
            0 => {
                let uses = if self.c.is_multiple_of(9) { u32::MAX } else { 2 };
                let (id, role) = (u128::from(4 + self.c % 6), Role::Node);
                let secret = [self.c % 7; 32];
                let token = CreateToken { token: TokenId(id), role, secret, ttl_ms: self.number(5_000), uses };
                (ADMIN, Command::CreateToken(token))
            }
            1 => (ADMIN, Command::RevokeToken { token: TokenId(u128::from(3 + self.c % 6)) }),
            2 | 3 => {
                let role = if self.c.is_multiple_of(2) { Role::Node } else { Role::Agent };
                let id = u128::from(self.c % 9);
                (node, Command::UseToken(use_token(1 + self.c % 6, role, 90 + self.a % 20, id)))
            }
            4 if self.a.is_multiple_of(3) => {
                let old = u64::from(1 + self.c % 5);
                let (key, address) = ([90 + self.b % 20; 32], "r:1".to_string());
                let nonce = [self.a % 4; 16];
                let replace = ReplaceNode { node: old, nonce, key, address, version: String::new(), feature_level: 2 };
                (Caller::Node(old), Command::ReplaceNode(replace))
            }
            4 => (ADMIN, Command::RemoveNode { node: u64::from(2 + self.c % 4) }),
            5 => (node, Command::SetFeatureLevel { level: u32::from(self.c % 3) }),
            6 => {
                let hello = NodeHello {
                    node: 1,
                    address: "c:1".to_string(),
                    start_counter: self.number(100),
                    version: String::new(),
                    feature_level: u32::from(1 + self.c % 2),
                };
                (node, Command::NodeHello(hello))
            }
            7 if self.c.is_multiple_of(8) => {
                (ADMIN, Command::RemoveSecret { secret: SecretId(u128::from(self.a % 9)) })
            }
            7 => {
                let (secret, name) = (SecretId(u128::from(self.a % 9)), format!("s{}", self.c % 3));
                let put = PutSecret { secret, name, key: [0; 8], sealed: vec![7; usize::from(self.a) * 40] };
                (ADMIN, Command::PutSecret(Box::new(put)))
            }
            _ => (
                node,
                Command::AttemptLost { attempt: AttemptRef { job: JobId(0), attempt: u32::MAX, fence: u64::MAX } },
            ),
        }
    }

    /// Mostly small, sometimes as large as can be.
    fn number(&self, bound: u64) -> u64 {
        if self.x.is_multiple_of(17) { u64::MAX } else { self.x % (bound + 1) }
    }

    fn attempt(&self, state: &State, job: JobId) -> AttemptRef {
        let live = || state.all_live_attempts().nth(usize::from(self.b % 5));
        let newest = state.attempts(job).next_back().or_else(live).map(|attempt| attempt.id);
        match (newest, self.b % 16) {
            (Some(newest), 1) => AttemptRef { fence: newest.fence + 1, ..newest },
            (Some(newest), 2) => AttemptRef { attempt: newest.attempt + 1, ..newest },
            (Some(newest), _) => newest,
            (None, _) => AttemptRef { job, attempt: u32::from(self.b), fence: self.x },
        }
    }

    fn owner(&self, state: &State, attempt: AttemptRef) -> SessionRef {
        let owner = state.attempt(attempt.job, attempt.attempt);
        let owner = owner.map(|owner| SessionRef { worker: owner.worker, session: owner.session });
        owner.filter(|_| !self.c.is_multiple_of(16)).unwrap_or_else(|| self.session(state))
    }

    /// A worker's session, or the next one.
    fn session(&self, state: &State) -> SessionRef {
        let worker = WorkerId(1 + u128::from(self.c) % WORKERS);
        let current = state.worker(worker).map_or(SessionId(1), |worker| worker.session);
        let step = u128::from(self.b.is_multiple_of(3));
        SessionRef { worker, session: SessionId(current.0 + step) }
    }

    fn submit(&self, job: JobId) -> Command {
        let absurd = self.x.is_multiple_of(41);
        let spec = JobSpec {
            name: self.b.is_multiple_of(3).then(|| format!("job {}", self.b)),
            priority: if absurd { i32::MIN } else { i32::from(self.b % 3) },
            resources: Resources {
                cpu_millis: if absurd { u64::MAX } else { u64::from(self.c % 4) * 1000 },
                ..Resources::default()
            },
            timeout_ms: self.b.is_multiple_of(4).then_some(self.number(10_000)),
            lost_after_ms: if absurd { 0 } else { 5_000 },
            grace_period_ms: self.x % 2_000,
            preemptible: self.c.is_multiple_of(2),
            retry: Retry {
                preemption: u32::from(self.b % 2),
                infrastructure: u32::from(self.c % 4),
                failure: u32::from(self.b % 3),
                timeout: 1,
                backoff_initial_ms: u64::from(self.b) * 50,
                ..Retry::default()
            },
            extras: self.b.is_multiple_of(7).then(|| {
                let secrets = vec![SecretRef { name: format!("s{}", self.c % 3), env: None }];
                Box::new(Extras { secrets, ..Extras::default() })
            }),
            body: if self.b.is_multiple_of(5) {
                Body::Payload { digest: [self.b; 32], len: self.number(5_000) }
            } else {
                Body::Inline(vec![1; 9])
            },
            ..JobSpec::default()
        };
        let idempotency_key = self.b.is_multiple_of(4).then(|| format!("key {}", self.b % 3));
        let digest = [u8::from(self.x.is_multiple_of(7)); 32];
        Command::SubmitJob(Box::new(SubmitJob { job, digest, idempotency_key, spec }))
    }

    fn assign(&self, state: &State, job: JobId) -> Command {
        let attempt = state.job(job).map_or(1, |job| job.attempt.wrapping_add(u32::from(!self.b.is_multiple_of(9))));
        Command::Assign { job, attempt, on: self.session(state), heartbeat: self.x, choice: Choice::default() }
    }

    fn segment(&self) -> Option<PlaceSegment> {
        let first_sequence = self.number(7);
        self.c.is_multiple_of(3).then_some(PlaceSegment { holder: u64::from(1 + self.c % 2), first_sequence })
    }

    fn reason(&self) -> Reason {
        let message = "é".repeat(usize::from(self.c) * 4);
        match self.x % 8 {
            0 => Reason::Exited { code: 0 },
            1 => Reason::Exited { code: i32::from(self.c) },
            2 => Reason::Signaled { signal: if self.c.is_multiple_of(2) { i32::MAX } else { 9 } },
            3 => Reason::OutOfMemory,
            4 => Reason::WorkerLost { message },
            5 => Reason::Timeout { deadline: Deadline::Run },
            6 => Reason::CouldNotStart { cause: StartFailure::Other, message },
            _ => Reason::Cancelled { by: ADMIN, reason: message, exit_code: None, signal: Some(15) },
        }
    }
}
