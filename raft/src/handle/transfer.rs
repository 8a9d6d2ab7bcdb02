//! Leadership is handed over to a voter that answers.
//!
//! openraft has the leader stop in favour of its successor, and takes nothing back: where the successor is not there, the
//! cluster is without a leader until an election. So it is looked at first who answers. Another node may be elected all the
//! same, and who asked is told so.

use std::{collections::BTreeMap, time::Duration};

use hodei_state::ids::NodeId;
use openraft::{Instant as _, async_runtime::watch::WatchReceiver};
use tokio::time::{Instant, sleep, timeout_at};

use super::Handle;
use crate::{
    error::MembershipError,
    network::{
        peers::CallError,
        wire::{TransferRequestV1, TransferResponseV1},
    },
};

/// For a leader to be followed by another.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at who leads, and at who answers.
const LOOK: Duration = Duration::from_millis(10);

/// A leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Led {
    /// By whom.
    pub leader: NodeId,
    /// Its term.
    pub term: u64,
}

/// A voter, other than the leader, as the leader sees it.
#[derive(Clone, Copy, Debug)]
struct Voter {
    /// How long ago it answered; `None`: not yet, in this leadership.
    silent: Option<Duration>,
    /// The last entry that it is known to have.
    matched: Option<u64>,
}

impl Handle {
    /// Hands leadership over, to `to` or to the voter that is furthest of those that answer. May be called on any node.
    /// Returns once another node leads and a majority has heard from it.
    ///
    /// # Errors
    /// [`MembershipError::Refused`] where the successor is no voter or does not answer, and [`MembershipError::NoQuorum`]
    /// where nobody is known to lead, which both change nothing; [`MembershipError::OtherLeads`] where somebody else was
    /// elected; [`MembershipError::Unknown`] where the leader was asked and did not answer, or nobody led afterwards as long
    /// as it was waited for.
    pub async fn transfer_leader(&self, to: Option<NodeId>) -> Result<Led, MembershipError> {
        let deadline = Instant::now() + TIMEOUT;
        let term = self.inner.raft.server_metrics().borrow_watched().vote.leader_id.term;
        let Some(old) = self.leader() else {
            return Err(MembershipError::NoQuorum("no leader is known".to_owned()));
        };
        if Some(old) == to {
            return Ok(Led { leader: old, term });
        }
        if old == self.node_id() {
            self.hand_over(to).await?;
        } else {
            self.ask_to_hand_over(old, to).await?;
        }
        let led = timeout_at(deadline, self.led_after(term)).await;
        let led = led.map_err(|_| MembershipError::Unknown("no other node has taken over yet".to_owned()))?;
        match to {
            Some(to) if to != led.leader => Err(MembershipError::OtherLeads { leader: led.leader, term: led.term }),
            _ => Ok(led),
        }
    }

    /// Who leads in a later term than that, once a majority seems to have heard from it.
    async fn led_after(&self, term: u64) -> Led {
        loop {
            let now = self.status();
            if let Some(leader) = now.leader.filter(|_| now.term > term) {
                return Led { leader, term: now.term };
            }
            sleep(LOOK).await;
        }
    }

    /// On the leader: starts the transfer, as soon as the successor answers. One that has just been elected has not heard
    /// from anybody.
    pub(crate) async fn hand_over(&self, to: Option<NodeId>) -> Result<(), MembershipError> {
        let patience = self.inner.config.timing.patience();
        let deadline = Instant::now() + patience;
        let successor = loop {
            match successor(&self.voters()?, to, patience) {
                Ok(successor) => break successor,
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(LOOK).await,
            }
        };
        self.inner.raft.trigger().transfer_leader(successor).await.map_err(|_| MembershipError::Stopped)
    }

    /// On the leader: the other voters.
    fn voters(&self) -> Result<BTreeMap<NodeId, Voter>, MembershipError> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (Some(replication), Some(heartbeat)) = (&metrics.replication, &metrics.heartbeat) else {
            return Err(MembershipError::NotLeader { leader: metrics.current_leader });
        };
        let voters = metrics.membership_config.voter_ids().filter(|id| *id != metrics.id);
        let seen = |id: NodeId| Voter {
            silent: heartbeat.get(&id).copied().flatten().map(|heard| heard.elapsed()),
            matched: replication.get(&id).copied().flatten().map(|id| id.index()),
        };
        Ok(voters.map(|id| (id, seen(id))).collect())
    }

    async fn ask_to_hand_over(&self, leader: NodeId, to: Option<NodeId>) -> Result<(), MembershipError> {
        let question = TransferRequestV1::HandOver { to };
        let answer = self
            .inner
            .peers
            .call(
                leader,
                TIMEOUT,
                &question,
                |mut client, request| async move { client.transfer_leader(request).await },
            )
            .await
            .map_err(|error| match error {
                CallError::NoAddress(_) => {
                    MembershipError::NoQuorum(format!("leader {leader} cannot be asked: {error}"))
                }
                error => MembershipError::Unknown(format!("leader {leader} did not answer whether it leaves: {error}")),
            })?;
        match answer {
            TransferResponseV1::Accepted => Ok(()),
            TransferResponseV1::NotLeader { leader } => Err(MembershipError::NotLeader { leader }),
            TransferResponseV1::Refused(why) => Err(MembershipError::Refused(why)),
            TransferResponseV1::VoteChanged { .. } | TransferResponseV1::LogNotFlushed { .. } => {
                Err(MembershipError::NoQuorum("leadership changed in between".to_owned()))
            }
        }
    }
}

/// Who is to follow: `to`, or the one that is furthest, if it has answered lately.
fn successor(
    voters: &BTreeMap<NodeId, Voter>,
    to: Option<NodeId>,
    patience: Duration,
) -> Result<NodeId, MembershipError> {
    let refused = |why: String| Err(MembershipError::Refused(why));
    let answers = |voter: &Voter| voter.silent.is_some_and(|silent| silent <= patience);
    if let Some(to) = to {
        return match voters.get(&to) {
            Some(voter) if answers(voter) => Ok(to),
            Some(Voter { silent: Some(silent), .. }) => {
                refused(format!("node {to} has not answered for {} ms", silent.as_millis()))
            }
            Some(_) => refused(format!("node {to} has not answered yet")),
            None => refused(format!("node {to} is not a voter")),
        };
    }
    let there = voters.iter().filter(|(_, voter)| answers(voter));
    match there.max_by_key(|(_, voter)| voter.matched) {
        Some((&furthest, _)) => Ok(furthest),
        None if voters.is_empty() => refused("there is no other voter".to_owned()),
        None => refused("no other voter answers".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_successor_is_the_furthest_of_those_that_answer() {
        let patience = Duration::from_millis(1_200);
        let voter = |silent_ms: Option<u64>, matched| Voter { silent: silent_ms.map(Duration::from_millis), matched };
        let voters = BTreeMap::from([
            (1, voter(Some(50), Some(7))),
            (2, voter(Some(9_000), Some(9))),
            (3, voter(None, None)),
            (4, voter(Some(90), Some(8))),
        ]);
        let chosen = |to| successor(&voters, to, patience).map_err(|error| error.to_string());
        assert_eq!(chosen(None), Ok(4));
        assert_eq!(chosen(Some(1)), Ok(1));
        assert_eq!(chosen(Some(2)), Err("node 2 has not answered for 9000 ms".to_owned()));
        assert_eq!(chosen(Some(3)), Err("node 3 has not answered yet".to_owned()));
        assert_eq!(chosen(Some(5)), Err("node 5 is not a voter".to_owned()));
        let alone = |voters| successor(&voters, None, patience).map_err(|error| error.to_string());
        assert_eq!(alone(BTreeMap::new()), Err("there is no other voter".to_owned()));
        assert_eq!(alone(BTreeMap::from([(2, voter(None, None))])), Err("no other voter answers".to_owned()));
    }
}
