//! From many callers to few log entries, on the leader.
//!
//! [`Handle::propose`](super::Handle::propose) puts a [`Proposal`] into a bounded queue. The [`Coalescer`] takes all
//! that is there, up to [`MAX_COMMANDS`] and [`MAX_BYTES`], stamps it and proposes it as one entry for the leadership in
//! which it was stamped; it does not wait for that entry before it proposes the next, but lets only a few be under way,
//! so that a busy cluster fills its entries. When an entry is applied, each waiter gets its own outcome.
//!
//! Exactly one of two things happens to a proposal: the coalescer takes it, and from then on it may be appended; or its
//! caller gives up first, and it never is ([`Claim`]). That is what separates "not done" from "unknown".

use std::{
    collections::VecDeque,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hodei_state::outcome::Outcome;
use openraft::{alias::WriteResponderOf, errors::ClientWriteError, impls::ProgressResponder, raft::ClientWriteResult};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::Instant,
};

use super::{Position, Raft, lead::Reign, quorum::Quorum};
use crate::{
    codec,
    error::NotDone,
    machine::Replica,
    seam::Clock,
    types::{Batch, TypeConfig},
};

/// Commands in one entry.
pub(crate) const MAX_COMMANDS: usize = 1024;
/// Bytes of commands in one entry; a single command may be larger, up to [`MAX_COMMAND`].
pub(crate) const MAX_BYTES: usize = 1 << 20;
/// Bytes of one encoded command. A spec is at most 1 MiB; the rest is for what surrounds it.
pub const MAX_COMMAND: usize = 2 << 20;
/// Entries proposed and not yet applied. Measured with 1 to 16 on a busy machine: fewer leave the disk idle, more make
/// small entries.
const UNDER_WAY: usize = 4;
/// Proposals waiting in the queue.
const QUEUE: usize = 16 * 1024;
/// Bytes of commands waiting or under way.
const QUEUED_BYTES: usize = 64 << 20;

/// What became of a proposal.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Applied.
    Done(Position, Vec<Outcome>),
    NotDone(NotDone),
    Unknown(String),
}

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const ABANDONED: u8 = 2;

/// Settles, once, whether a proposal is taken by the coalescer or abandoned by its caller.
#[derive(Clone, Default)]
pub(crate) struct Claim(Arc<AtomicU8>);

impl Claim {
    fn settle(&self, to: u8) -> bool {
        self.0.compare_exchange(WAITING, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// For the coalescer, just before the command may be appended.
    pub(crate) fn take(&self) -> bool {
        self.settle(TAKEN)
    }

    /// For the caller: waits for the answer, until `deadline` or until the leadership is `over`, and then gives up.
    pub(crate) async fn answer(
        &self,
        answered: oneshot::Receiver<Answer>,
        over: impl Future<Output = ()>,
        deadline: Instant,
        ends: Ends,
    ) -> Answer {
        let (not_done, unknown) = tokio::select! {
            biased;
            answer = answered => match answer {
                Ok(answer) => return answer,
                Err(_) => ends.lost,
            },
            () = over => ends.over,
            () = tokio::time::sleep_until(deadline) => ends.late,
        };
        // If it is abandoned here, the command was not and will not be appended.
        if self.settle(ABANDONED) || hodei_state::armed!("bug::unknown-said-to-be-not-done") {
            Answer::NotDone(not_done)
        } else {
            Answer::Unknown(unknown.to_owned())
        }
    }
}

/// How waiting for an answer may end without one: what was not done where nobody has taken the proposal, and what
/// happened where somebody has.
pub(crate) struct Ends {
    /// Whoever should have answered is gone.
    pub(crate) lost: (NotDone, &'static str),
    /// So is the leadership.
    pub(crate) over: (NotDone, &'static str),
    /// Time is up.
    pub(crate) late: (NotDone, &'static str),
}

/// Commands that go into one entry together.
pub(crate) struct Proposal {
    commands: Vec<Bytes>,
    bytes: usize,
    /// Only in this leadership.
    term: Option<u64>,
    deadline: Instant,
    claim: Claim,
    answer: oneshot::Sender<Answer>,
    _room: OwnedSemaphorePermit,
}

/// The caller's end of the queue.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Proposal>,
    room: Arc<Semaphore>,
}

impl Proposer {
    /// Submits commands to the local coalescer and waits, until `deadline` or until the leadership is `over`, for what
    /// becomes of them.
    pub(crate) async fn submit(
        &self,
        commands: Vec<Bytes>,
        term: Option<u64>,
        deadline: Instant,
        over: impl Future<Output = ()>,
    ) -> Answer {
        let bytes: usize = commands.iter().map(Bytes::len).sum();
        let (answer, answered) = oneshot::channel();
        let claim = Claim::default();
        let enqueue = async {
            let wanted = u32::try_from(bytes).unwrap_or(u32::MAX).min(QUEUED_BYTES as u32);
            let room = self.room.clone().acquire_many_owned(wanted).await.map_err(|_| NotDone::Stopped)?;
            let proposal = Proposal { commands, bytes, term, deadline, claim: claim.clone(), answer, _room: room };
            self.queue.send(proposal).await.map_err(|_| NotDone::Stopped)
        };
        match tokio::time::timeout_at(deadline, enqueue).await {
            Ok(Ok(())) => {}
            Ok(Err(stopped)) => return Answer::NotDone(stopped),
            Err(_) => return Answer::NotDone(NotDone::Overloaded),
        }
        let waiting = NotDone::NoQuorum("earlier commands are still waiting".to_owned());
        let ends = Ends {
            lost: (NotDone::Stopped, "the node stopped before the command was applied"),
            over: (NotDone::NoLeader, "leadership ended before the command was applied"),
            late: (waiting, "not confirmed by a majority within the deadline"),
        };
        claim.answer(answered, over, deadline, ends).await
    }
}

/// The coalescer's side; one task per node, busy only while the node leads.
pub(crate) struct Coalescer {
    raft: Raft,
    replica: Arc<Replica>,
    reign: watch::Receiver<Option<Reign>>,
    quorum: Quorum,
    clock: Arc<dyn Clock>,
    incoming: mpsc::Receiver<Proposal>,
    queue: VecDeque<Proposal>,
    under_way: FuturesUnordered<BoxFuture<'static, ()>>,
}

/// The queue's two ends.
pub(crate) fn coalescer(
    raft: Raft,
    replica: Arc<Replica>,
    reign: watch::Receiver<Option<Reign>>,
    quorum: Quorum,
    clock: Arc<dyn Clock>,
) -> (Proposer, Coalescer) {
    let (queue, incoming) = mpsc::channel(QUEUE);
    let proposer = Proposer { queue, room: Arc::new(Semaphore::new(QUEUED_BYTES)) };
    let under_way = FuturesUnordered::new();
    (proposer, Coalescer { raft, replica, reign, quorum, clock, incoming, queue: VecDeque::new(), under_way })
}

impl Coalescer {
    /// Runs until every [`Proposer`] is gone or the task is aborted.
    pub(crate) async fn run(mut self) {
        let mut taken = Vec::with_capacity(MAX_COMMANDS);
        loop {
            while self.under_way.len() < UNDER_WAY && !self.queue.is_empty() {
                self.launch().await;
            }
            tokio::select! {
                Some(()) = self.under_way.next(), if !self.under_way.is_empty() => {}
                count = self.incoming.recv_many(&mut taken, MAX_COMMANDS), if self.queue.is_empty() => {
                    if count == 0 {
                        return;
                    }
                    self.queue.extend(taken.drain(..));
                }
            }
        }
    }

    /// Proposes one entry with as much of the queue as fits.
    async fn launch(&mut self) {
        let reign = *self.reign.borrow();
        let refusal = match &reign {
            None => Some(NotDone::NoLeader),
            Some(_) if self.replica.payloads.is_full() => Some(NotDone::Overloaded),
            Some(_) => self.quorum.refusal().map(NotDone::NoQuorum),
        };
        if let Some(refusal) = refusal {
            for proposal in self.queue.drain(..) {
                refuse(proposal, &refusal);
            }
            return;
        }
        let Some(reign) = reign else { return };
        let (batch, at) = (self.gather(reign.term), reign.now(&*self.clock));
        if batch.is_empty() {
            return;
        }
        let bytes = batch.iter().map(|proposal| proposal.bytes).sum();
        let count = batch.iter().map(|proposal| proposal.commands.len()).sum();
        let commands = codec::encode_batch(batch.iter().flat_map(|proposal| &proposal.commands), bytes, count);
        self.write(batch, Batch { at, commands }, reign.term).await;
    }

    /// Takes proposals off the queue, in order, while they fit into one entry.
    fn gather(&mut self, term: u64) -> Vec<Proposal> {
        let (mut batch, mut count, mut bytes) = (Vec::new(), 0, 0);
        loop {
            let Some(proposal) = self.queue.pop_front().or_else(|| self.incoming.try_recv().ok()) else { break };
            let fits = batch.is_empty()
                || (count + proposal.commands.len() <= MAX_COMMANDS && bytes + proposal.bytes <= MAX_BYTES);
            if !fits {
                self.queue.push_front(proposal);
                break;
            }
            if proposal.term.is_some_and(|wanted| wanted != term) {
                refuse(proposal, &NotDone::NoLeader);
                continue;
            }
            if proposal.deadline <= Instant::now() || !proposal.claim.take() {
                continue;
            }
            count += proposal.commands.len();
            bytes += proposal.bytes;
            batch.push(proposal);
        }
        batch
    }

    async fn write(&mut self, batch: Vec<Proposal>, data: Batch, term: u64) {
        let (responder, done): (WriteResponderOf<TypeConfig>, _) = ProgressResponder::complete_only();
        hodei_state::failpoint!("propose::before-append");
        if self.raft.write(data).responder(responder).with_leader(term).await.is_err() {
            for proposal in batch {
                answer(proposal, Answer::NotDone(NotDone::Stopped));
            }
            return;
        }
        self.under_way.push(Box::pin(async move { settle(batch, done.await.ok()) }));
    }
}

fn refuse(proposal: Proposal, why: &NotDone) {
    let why = match proposal.term {
        Some(term) => NotDone::LeadershipOver { term },
        None => why.clone(),
    };
    answer(proposal, Answer::NotDone(why));
}

/// Gives each proposal of an entry its part of the result.
fn settle(batch: Vec<Proposal>, result: Option<ClientWriteResult<TypeConfig>>) {
    let response = match result {
        Some(Ok(response)) => response,
        Some(Err(ClientWriteError::ForwardToLeader(_))) => {
            // Rejected before it was appended: this node no longer leads in that term.
            for proposal in batch {
                refuse(proposal, &NotDone::NoLeader);
            }
            return;
        }
        Some(Err(error)) => return settle_unknown(batch, &error.to_string()),
        None => return settle_unknown(batch, "the node stopped before the command was applied"),
    };
    hodei_state::failpoint!("propose::before-answer");
    let position = Position::from(response.log_id);
    let mut outcomes = response.data.into_iter();
    for proposal in batch {
        let own: Vec<Outcome> = outcomes.by_ref().take(proposal.commands.len()).collect();
        assert_eq!(own.len(), proposal.commands.len(), "an entry has one outcome per command");
        answer(proposal, Answer::Done(position, own));
    }
}

fn settle_unknown(batch: Vec<Proposal>, why: &str) {
    for proposal in batch {
        answer(proposal, Answer::Unknown(why.to_owned()));
    }
}

fn answer(proposal: Proposal, what: Answer) {
    // A caller that has given up has said so to its own caller.
    let _ = proposal.answer.send(what);
}

/// Between attempts of a command that was not done, unless leadership changes earlier.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);
/// The longest such pause.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_millis(200);
