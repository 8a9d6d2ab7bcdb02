//! Linearizable reads: where the log stood when a majority confirmed the leader, asked after the reader began.
//!
//! Readers that come while a question is under way wait for the next one: however many read at once, there are at most
//! [`ROUNDS`] questions. The leader asks openraft, which confirms its leadership by a round of heartbeats; anybody else
//! asks the leader.

use std::time::Duration;

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hodei_state::ids::NodeId;
use openraft::{LinearizerOption, ReadPolicy, ServerState, async_runtime::watch::WatchReceiver};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Position, Raft};
use crate::{
    codec::LogIdV1,
    network::{
        peers::Peers,
        wire::{ReadRequestV1, ReadResponseV1},
    },
};

/// Questions at a time. Two, so that a reader waits for at most the rest of one.
const ROUNDS: usize = 2;
const QUEUE: usize = 16 * 1024;
const READERS: usize = 4096;

type Confirmed = Result<Position, String>;

/// The readers' end.
#[derive(Clone)]
pub(crate) struct ReadIndex {
    queue: mpsc::Sender<oneshot::Sender<Confirmed>>,
}

impl ReadIndex {
    /// A read index confirmed after this call began. The error says why there is none.
    pub(crate) async fn confirm(&self, deadline: Instant) -> Confirmed {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.queue.send(answer).await.map_err(|_| STOPPED.to_owned())?;
            answered.await.map_err(|_| STOPPED.to_owned())?
        };
        tokio::time::timeout_at(deadline, asked)
            .await
            .unwrap_or_else(|_| Err("no majority confirmed the leader within the deadline".to_owned()))
    }
}

const STOPPED: &str = "the node is stopping";

/// The asking side; one task per node.
pub(crate) struct Rounds {
    raft: Raft,
    peers: Peers,
    /// For one question; a reader with more time asks again.
    patience: Duration,
    incoming: mpsc::Receiver<oneshot::Sender<Confirmed>>,
}

/// The queue's two ends.
pub(crate) fn read_index(raft: Raft, peers: Peers, patience: Duration) -> (ReadIndex, Rounds) {
    let (queue, incoming) = mpsc::channel(QUEUE);
    (ReadIndex { queue }, Rounds { raft, peers, patience, incoming })
}

impl Rounds {
    /// Runs until every [`ReadIndex`] is gone or the task is aborted.
    pub(crate) async fn run(mut self) {
        let mut rounds: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        let mut readers = Vec::new();
        loop {
            tokio::select! {
                Some(()) = rounds.next(), if !rounds.is_empty() => {}
                count = self.incoming.recv_many(&mut readers, READERS), if rounds.len() < ROUNDS => {
                    if count == 0 {
                        return;
                    }
                    let readers = std::mem::take(&mut readers);
                    let asked = ask(self.raft.clone(), self.peers.clone(), self.patience);
                    rounds.push(Box::pin(async move {
                        let confirmed = asked.await;
                        for reader in readers {
                            let _ = reader.send(confirmed.clone());
                        }
                    }));
                }
            }
        }
    }
}

async fn ask(raft: Raft, peers: Peers, patience: Duration) -> Confirmed {
    let (leads, leader) = {
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow_watched();
        (metrics.state == ServerState::Leader, metrics.current_leader)
    };
    if leads {
        return confirm_here(&raft, patience).await;
    }
    let Some(leader) = leader.filter(|leader| *leader != peers.me) else {
        return Err("no leader is known".to_owned());
    };
    let asked = peers
        .call(leader, patience, &ReadRequestV1, |mut client, request| async move { client.read_index(request).await });
    let asked = tokio::select! {
        asked = asked => asked,
        () = another_leads(&raft, leader) => return Err(format!("node {leader} no longer leads")),
    };
    match asked {
        Ok(ReadResponseV1::Index(LogIdV1 { term, index })) => Ok(Position { term, index }),
        Ok(ReadResponseV1::NotConfirmed(why)) => Err(why),
        Err(error) => Err(format!("leader {leader} cannot be asked: {error}")),
    }
}

/// Resolves when somebody else than `leader` leads, or nobody: no answer of it is worth waiting for.
async fn another_leads(raft: &Raft, leader: NodeId) {
    let mut metrics = raft.server_metrics();
    while metrics.borrow_watched().current_leader == Some(leader) {
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// On the leader only.
pub(crate) async fn confirm_here(raft: &Raft, patience: Duration) -> Confirmed {
    if hodei_state::armed!("bug::read-not-confirmed")
        && let Some(applied) = raft.metrics().borrow_watched().last_applied
    {
        return Ok(Position::from(applied));
    }
    let option = LinearizerOption::from(ReadPolicy::ReadIndex).with_wait_timeout(patience);
    match tokio::time::timeout(patience, raft.get_read_linearizer(option)).await {
        Ok(Ok(linearizer)) => Ok(Position::from(*linearizer.read_log_id().log_id())),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no majority confirmed the leader in time".to_owned()),
    }
}
