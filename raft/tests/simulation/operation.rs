//! What a node is asked to do, and what became of it.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use hodei_raft::{Handle, INLINE_LIMIT, MembershipError, Position, ProposeError};
use hodei_state::{
    command::{Command, Envelope, Init, SubmitJob},
    ids::{Caller, JobId, UserId},
    outcome::Outcome,
    spec::{Body, JobSpec, defaults},
};
use tokio::time::Instant;

use crate::{
    check::NodeId,
    node::CLUSTER,
    random::{self, Dice},
    world::World,
};

/// See the module.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Becomes the first voter and initialises the state.
    Found,
    /// Submits the job of this number, once.
    Submit(u64),
    /// Any command at all.
    Any(Box<Dice>),
    /// A linearizable read.
    Read,
    AddLearner(NodeId),
    Promote(NodeId),
    Remove(NodeId),
    Swap(NodeId, NodeId),
    Transfer(Option<NodeId>),
}

/// A client's patience.
const PATIENCE: Duration = Duration::from_millis(1500);

impl Operation {
    /// Does it on a node. Its host may crash meanwhile: what is open then stays open.
    pub async fn run(self, world: Rc<RefCell<World>>, handle: Handle) {
        let node = handle.node_id();
        let deadline = Instant::now() + PATIENCE;
        let changed = match self {
            Self::Found => found(&handle).await,
            Self::Submit(job) => {
                let answer = handle.propose(submission(job), deadline).await;
                let fate = match answer {
                    Ok(reply) => {
                        assert!(matches!(reply.outcome, Outcome::Submitted { .. }), "job {job}: {:?}", reply.outcome);
                        Fate::Done(reply.position)
                    }
                    Err(ProposeError::NotDone(_)) => Fate::NotDone,
                    Err(ProposeError::Unknown(_)) => Fate::Unknown,
                };
                world.borrow_mut().ledger.answered(job, fate);
                return;
            }
            Self::Any(dice) => {
                let mut envelope = handle.inspect(|state| dice.envelope(state));
                inline(&mut envelope);
                let answer = handle.propose(envelope, deadline).await;
                world.borrow_mut().ledger.others += u64::from(answer.is_ok());
                return;
            }
            Self::Read => {
                let floor = world.borrow().ledger.acknowledged();
                let Ok(view) = handle.read(deadline).await else { return };
                let missing = floor.iter().find(|job| view.state.job(JobId(u128::from(**job))).is_none());
                let mut world = world.borrow_mut();
                world.ledger.reads += 1;
                if let Some(job) = missing {
                    world
                        .fail(format!("a read on node {node} at {:?} lacks the acknowledged job {job}", view.position));
                }
                return;
            }
            Self::AddLearner(other) => handle.add_learner(other).await,
            Self::Promote(other) => handle.promote(other).await,
            Self::Remove(other) => handle.remove_member(other).await,
            Self::Swap(old, new) => handle.swap(old, new).await,
            Self::Transfer(to) => handle.transfer_leader(to).await.map(drop),
        };
        world.borrow_mut().told(node, &self, changed.is_ok());
    }
}

async fn found(handle: &Handle) -> Result<(), MembershipError> {
    handle.initialize().await?;
    for envelope in random::setup() {
        let envelope = match envelope.command {
            Command::Init(init) => {
                Envelope { command: Command::Init(Init { cluster: CLUSTER, ..init }), caller: envelope.caller }
            }
            _ => envelope,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        handle.propose(envelope, deadline).await.map_err(|error| MembershipError::Refused(error.to_string()))?;
    }
    Ok(())
}

/// The body comes with the command; large ones become payload files.
fn inline(envelope: &mut Envelope) {
    if let Command::SubmitJob(submit) = &mut envelope.command
        && let Body::Payload { digest, len } = submit.spec.body
    {
        submit.spec.body = Body::Inline(vec![digest[0]; INLINE_LIMIT + (len % 1_000) as usize]);
    }
}

/// A small job whose id nobody else uses.
fn submission(job: u64) -> Envelope {
    let spec = JobSpec {
        lost_after_ms: defaults::LOST_AFTER_MS,
        grace_period_ms: defaults::GRACE_PERIOD_MS,
        body: Body::Inline(vec![1; 9 + (job % 50) as usize]),
        ..JobSpec::default()
    };
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&job.to_be_bytes());
    let submit = SubmitJob { job: JobId(u128::from(job)), digest, idempotency_key: None, spec };
    Envelope { caller: Caller::Admin(UserId(1)), command: Command::SubmitJob(Box::new(submit)) }
}

/// What became of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Open,
    Done(Position),
    NotDone,
    Unknown,
}

/// What the clients know.
#[derive(Debug, Default)]
pub struct Ledger {
    pub jobs: BTreeMap<u64, Fate>,
    pub others: u64,
    pub reads: u64,
}

/// Below this are the jobs of commands that are drawn at random.
const FIRST_JOB: u64 = 1_000;

impl Ledger {
    /// A number for a new submission.
    pub fn open(&mut self) -> u64 {
        let job = FIRST_JOB + self.jobs.len() as u64;
        self.jobs.insert(job, Fate::Open);
        job
    }

    fn answered(&mut self, job: u64, fate: Fate) {
        self.jobs.insert(job, fate);
    }

    /// The jobs that must be in every later read.
    pub fn acknowledged(&self) -> Vec<u64> {
        self.with(|fate| matches!(fate, Fate::Done(_)))
    }

    /// The jobs that must be nowhere.
    pub fn not_done(&self) -> Vec<u64> {
        self.with(|fate| fate == Fate::NotDone)
    }

    /// Those of whom nobody knows.
    pub fn unknown(&self) -> usize {
        self.with(|fate| matches!(fate, Fate::Open | Fate::Unknown)).len()
    }

    fn with(&self, is: impl Fn(Fate) -> bool) -> Vec<u64> {
        self.jobs.iter().filter(|(_, fate)| is(**fate)).map(|(job, _)| *job).collect()
    }
}
