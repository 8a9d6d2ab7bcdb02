//! A small replicated state for tests, made by real commands: three nodes, one worker, a job that is assigned to it.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
};

use hodei_state::{
    State, codec,
    command::{Command, CreateToken, Envelope, Init, OpenSession, SubmitJob, UseToken},
    ids::{AttemptRef, Caller, ClusterId, JobId, Millis, NodeId, Role, SessionId, TokenId, UserId, WorkerId},
    job::{LogEnd, Reason},
    outcome::Outcome,
    registry::{AgentInfo, Capacity, SessionRef},
    score::Choice,
    spec::{Action, Body, Execution, JobSpec, Retry, defaults},
};
use parking_lot::Mutex;
use tokio::sync::watch;

pub const ADMIN: UserId = UserId(0xad);
pub const WORKER: WorkerId = WorkerId(0x77);
pub const JOB: JobId = JobId(0x10b);
pub const ON: SessionRef = SessionRef { worker: WORKER, session: SessionId(0x5e) };

/// The commands that make the cluster: three nodes, and a worker with an open session that is not attached yet.
pub fn founding() -> Vec<Envelope> {
    let init = Init {
        cluster: ClusterId(1),
        ca: vec![1],
        address: "127.0.0.1:1".into(),
        key: [1; 32],
        version: "0".into(),
        feature_level: 1,
        admin: (ADMIN, [9; 32]),
    };
    let mut commands = vec![Envelope { caller: Caller::Node(1), command: Command::Init(init) }];
    for (number, role) in [(2u8, Role::Node), (3, Role::Node), (4, Role::Agent)] {
        commands.extend(enrolment(number, role));
    }
    let info = AgentInfo { capacity: Capacity { slots: 4, ..Capacity::default() }, ..AgentInfo::default() };
    let open = OpenSession { on: ON, previous: None, info, adopted: vec![], dead: vec![] };
    commands.push(Envelope { caller: Caller::Agent(WORKER), command: Command::OpenSession(Box::new(open)) });
    commands
}

fn enrolment(number: u8, role: Role) -> [Envelope; 2] {
    let secret = [number; 32];
    let token = CreateToken { token: TokenId(u128::from(number)), role, secret, ttl_ms: 3_600_000, uses: 1 };
    let used = UseToken {
        secret,
        role,
        nonce: [number; 16],
        key: [number; 32],
        id: WORKER.0,
        address: format!("127.0.0.1:{number}"),
        version: "0".into(),
        feature_level: 1,
    };
    [
        Envelope { caller: Caller::Admin(ADMIN), command: Command::CreateToken(token) },
        Envelope { caller: Caller::Node(1), command: Command::UseToken(used) },
    ]
}

/// Submits [`JOB`].
pub fn submission() -> Envelope {
    let action = Action::Exec { cmd: "true".into(), args: vec![] };
    let execution = Execution { action, env: BTreeMap::new(), working_directory: None };
    let spec = JobSpec {
        lost_after_ms: defaults::LOST_AFTER_MS,
        grace_period_ms: defaults::GRACE_PERIOD_MS,
        retry: Retry { backoff_initial_ms: 0, backoff_max_ms: 0, ..Retry::default() },
        body: Body::Inline(codec::encode_execution(&execution)),
        ..JobSpec::default()
    };
    let submit = SubmitJob { job: JOB, digest: [0; 32], idempotency_key: None, spec };
    Envelope { caller: Caller::Admin(ADMIN), command: Command::SubmitJob(Box::new(submit)) }
}

/// See the module. Every change bumps one watch.
#[derive(Clone)]
pub struct Replica {
    state: Arc<Mutex<(State, u64)>>,
    changed: watch::Sender<u64>,
    /// No majority is heard from.
    pub is_alone: Arc<AtomicBool>,
}

impl Replica {
    pub fn new() -> Self {
        let replica = Self { state: Arc::default(), changed: watch::Sender::new(0), is_alone: Arc::default() };
        for Envelope { caller, command } in founding() {
            replica.done(caller, command);
        }
        replica.attach(1, 1);
        replica
    }

    /// The worker's stream is with this gateway now.
    pub fn attach(&self, stream: u64, gateway: NodeId) {
        self.done(Caller::Agent(WORKER), Command::AttachWorker { worker: ON, stream, gateway });
    }

    /// That stream is broken.
    pub fn detach(&self, stream: u64) {
        self.done(Caller::Agent(WORKER), Command::DetachWorker { worker: ON, stream });
    }

    /// Submits [`JOB`] and assigns its first attempt.
    pub fn assigned(&self) -> AttemptRef {
        let Envelope { caller, command } = submission();
        self.done(caller, command);
        self.assign(1)
    }

    /// Assigns another attempt of [`JOB`].
    pub fn assign(&self, attempt: u32) -> AttemptRef {
        match self.apply(
            Caller::Node(1),
            Command::Assign { job: JOB, attempt, on: ON, heartbeat: 1, choice: Choice::default() },
        ) {
            Outcome::Assigned { attempt } => attempt,
            other => panic!("{other:?}"),
        }
    }

    /// The attempt ended with exit code 0 and this log.
    pub fn result(&self, attempt: AttemptRef, log: LogEnd) {
        let reason = Reason::Exited { code: 0 };
        let result = Command::JobResult { attempt, by: ON, reason, log, segment: None };
        self.done(Caller::Agent(WORKER), result);
    }

    pub fn done(&self, caller: Caller, command: Command) {
        let outcome = self.apply(caller, command);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }

    pub fn apply(&self, caller: Caller, command: Command) -> Outcome {
        let mut guard = self.state.lock();
        let (state, index) = &mut *guard;
        *index += 1;
        let outcome = state.apply(*index, 0, Millis(1_000_000 + *index), &Envelope { caller, command });
        let _ = state.take_changes();
        self.changed.send_replace(*index);
        outcome
    }

    pub fn state(&self) -> State {
        self.state.lock().0.clone()
    }

    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
