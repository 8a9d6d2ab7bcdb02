//! Do all members compute the same? Each asks the others, every few seconds, for the hashes of their states at recent
//! indexes; who differs from a majority at the same index and feature level has to stop.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use futures::future::join_all;
use hodei_state::ids::NodeId;
use openraft::async_runtime::watch::WatchReceiver;

use super::{Handle, lead};
use crate::error::{Fatal, STATE_DIVERGED};

const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs until this node diverges or the task is aborted.
pub(super) async fn run(handle: Handle) {
    let mut compared = 0;
    loop {
        tokio::time::sleep(handle.inner.config.timing.compare).await;
        let own = handle.inner.replica.hashes();
        let Some((newest, _)) = own.last().copied() else { continue };
        if newest <= compared {
            continue;
        }
        let (voters, others) = members(&handle);
        let level = handle.feature_level();
        let peers = &handle.inner.peers;
        let asked = others.iter().map(|id| lead::probe(peers, *id, compared + 1, PROBE_TIMEOUT));
        let answers: Vec<BTreeMap<u64, u128>> = join_all(asked)
            .await
            .into_iter()
            .flatten()
            .filter(|answer| answer.feature_level == level)
            .map(|answer| answer.hashes.into_iter().collect())
            .collect();
        let from = compared;
        for (index, hash) in own.into_iter().filter(|(index, _)| *index > from) {
            match verdict(hash, answers.iter().filter_map(|answer| answer.get(&index).copied()), voters) {
                Verdict::Agrees => compared = index,
                Verdict::Undecided => {}
                Verdict::Differs => return give_up(&handle, index).await,
            }
        }
    }
}

/// The number of voters, and the voters beside this node.
fn members(handle: &Handle) -> (usize, Vec<NodeId>) {
    let metrics = handle.inner.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let voters: Vec<NodeId> = metrics.membership_config.voter_ids().collect();
    (voters.len(), voters.into_iter().filter(|id| *id != handle.node_id()).collect())
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Agrees,
    Differs,
    Undecided,
}

/// What a majority of `voters` says about `own`.
fn verdict(own: u128, others: impl Iterator<Item = u128>, voters: usize) -> Verdict {
    let mut votes = HashMap::from([(own, 1)]);
    for hash in others {
        *votes.entry(hash).or_insert(0) += 1;
    }
    match votes.into_iter().find(|(_, count)| *count > voters / 2) {
        Some((hash, _)) if hash == own => Verdict::Agrees,
        Some(_) if !hodei_state::armed!("bug::hash-not-compared") => Verdict::Differs,
        Some(_) => Verdict::Agrees,
        None => Verdict::Undecided,
    }
}

async fn give_up(handle: &Handle, index: u64) {
    tracing::error!(index, code = STATE_DIVERGED, "this node's state differs from the majority's; it stops");
    if handle.leader() == Some(handle.node_id())
        && let Err(error) = handle.hand_over(None).await
    {
        tracing::warn!(%error, "leadership could not be handed over; it ends with this process");
    }
    handle.inner.fatal.send_replace(Some(Fatal {
        code: STATE_DIVERGED,
        message: format!("the state after entry {index} differs from what a majority of the members has"),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_decides() {
        assert_eq!(verdict(7, [7, 8].into_iter(), 3), Verdict::Agrees);
        assert_eq!(verdict(7, [8, 8].into_iter(), 3), Verdict::Differs);
        assert_eq!(verdict(7, [8].into_iter(), 3), Verdict::Undecided);
        assert_eq!(verdict(7, [8, 9].into_iter(), 3), Verdict::Undecided);
        assert_eq!(verdict(7, [].into_iter(), 1), Verdict::Agrees);
    }
}
