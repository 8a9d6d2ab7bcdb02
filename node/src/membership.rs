//! Makes the Raft membership what the state says it should be. Runs where this node leads.
//!
//! A member enrols and leaves by a command; this loop brings the voters after it, one change at a time: a member that
//! Raft does not know becomes a learner, a learner that has caught up is promoted, a removed one leaves. A leader that
//! is removed hands over first, and its successor takes it out. Nothing is remembered: each step is derived anew from
//! state and membership, so that a new leader simply goes on.

use std::{sync::Arc, time::Duration};

use hodei_raft::{Handle, Leadership, MembershipError, Status, Topic};
use hodei_state::{State, command::Command, ids::NodeId, registry::Member};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::peers::Peers;

/// Entries that a learner may lack and count as caught up.
const LAG: u64 = 128;
/// A learner that has not answered for this long is not promoted: its vote would be missed at once.
const SILENCE: Duration = Duration::from_secs(1);
/// After a change that did not come about.
const RETRY: Duration = Duration::from_millis(500);
/// Between looks at a learner that catches up.
const LOOK: Duration = Duration::from_millis(50);
/// For a command of this loop.
const COMMIT: Duration = Duration::from_secs(5);

/// The next change, if there is any to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Out it goes.
    Remove(NodeId),
    /// It has caught up.
    Promote(NodeId),
    /// It has caught up, and takes the place of one that was replaced.
    Swap {
        /// Who votes no more.
        old: NodeId,
        /// Who votes instead.
        new: NodeId,
    },
    /// It may listen.
    Add(NodeId),
    /// All members can read more than the cluster uses.
    Level(u32),
    /// A change is half done, and whoever began it is gone.
    Finish,
    /// A change, or a learner's catching up, has to be waited for.
    Wait,
    /// All is as it should be.
    Rest,
}

/// Reconciles until `stop`.
pub async fn run(handle: Handle, peers: Arc<Peers>, stop: CancellationToken) {
    stop.run_until_cancelled(follow(&handle, &peers)).await;
}

async fn follow(handle: &Handle, peers: &Peers) {
    let mut leadership = handle.leadership();
    let mut members = handle.subscribe(Topic::Members);
    loop {
        let leads = leadership.wait_for(|part| matches!(part, Leadership::Leading { .. })).await;
        let Ok(Leadership::Leading { term }) = leads.map(|part| *part) else { return };
        members.borrow_and_update();
        let state = handle.view().state;
        // Before Raft calls a new member, its address has to be known.
        let raft = handle.status();
        peers.follow(&state, &raft);
        let step = next(&state, &raft);
        let pause = match step {
            Step::Rest => {
                tokio::select! {
                    changed = members.changed() => if changed.is_err() { return },
                    changed = leadership.changed() => if changed.is_err() { return },
                }
                continue;
            }
            Step::Wait => LOOK,
            step => match make(handle, term, step).await {
                Ok(()) => continue,
                Err(why) => {
                    tracing::info!(?step, why, "a change of membership has to wait");
                    RETRY
                }
            },
        };
        sleep(pause).await;
    }
}

async fn make(handle: &Handle, term: u64, step: Step) -> Result<(), String> {
    let text = |error: MembershipError| error.to_string();
    match step {
        Step::Add(node) => handle.add_learner(node).await.map_err(text)?,
        Step::Promote(node) => handle.promote(node).await.map_err(text)?,
        Step::Swap { old, new } => handle.swap(old, new).await.map_err(text)?,
        Step::Finish => handle.finish_change().await.map_err(text)?,
        Step::Remove(node) => handle.remove_member(node).await.map_err(text)?,
        Step::Level(level) => {
            let commands = vec![Command::SetFeatureLevel { level }];
            let done = handle.propose_in_term(term, commands, Instant::now() + COMMIT).await;
            done.map_err(|error| error.to_string())?;
        }
        Step::Wait | Step::Rest => return Ok(()),
    }
    tracing::info!(?step, "changed the membership");
    Ok(())
}

/// Removals first: whoever is removed shall not vote on what follows. But who was replaced stays until the replacement
/// can vote, so that no more votes than before are needed; it does not vote itself, since it forgot what it had promised.
fn next(state: &State, raft: &Status) -> Step {
    if raft.changing {
        // The steps of this loop's own changes are not seen here: it waits for both of them.
        return if raft.half_changed { Step::Finish } else { Step::Wait };
    }
    let member = |node: &NodeId| raft.counts_in(*node);
    let (removed, present): (Vec<_>, Vec<_>) = state.members().partition(|member| member.removed_at.is_some());
    let awaited = |gone: &Member| {
        let heir = gone.replaced_by.and_then(|heir| state.member(heir));
        heir.is_some_and(|heir| heir.removed_at.is_none() && !raft.voters.contains(&heir.id))
    };
    if let Some(gone) =
        removed.iter().find(|gone| member(&gone.id) && !(raft.voters.contains(&gone.id) && awaited(gone)))
    {
        return Step::Remove(gone.id);
    }
    let learners: Vec<_> = present.iter().filter(|member| raft.learners.contains(&member.id)).collect();
    if let Some(ready) = learners.iter().find(|learner| caught_up(raft, learner.id)) {
        let place = ready.replaces.map(|(old, _)| old).filter(|old| raft.voters.contains(old));
        return place.map_or(Step::Promote(ready.id), |old| Step::Swap { old, new: ready.id });
    }
    if let Some(new) = present.iter().find(|present| !member(&present.id)) {
        return Step::Add(new.id);
    }
    let level = present.iter().map(|member| member.feature_level).min().unwrap_or(0);
    if level > state.feature_level() {
        return Step::Level(level);
    }
    if learners.is_empty() { Step::Rest } else { Step::Wait }
}

fn caught_up(raft: &Status, learner: NodeId) -> bool {
    raft.peers.iter().find(|peer| peer.node == learner).is_some_and(|peer| {
        peer.matched_index + LAG >= raft.last_log.index
            && peer.matched_index > 0
            && peer.heard.is_none_or(|heard| heard <= SILENCE)
    })
}

#[cfg(test)]
mod tests {
    use hodei_raft::{PeerStatus, Position};
    use hodei_state::{
        command::{Command, CreateToken, Envelope, Init, ReplaceNode, UseToken},
        ids::{Caller, ClusterId, Millis, Role, TokenId, UserId},
        outcome::Outcome,
    };

    use super::*;

    const ADMIN: UserId = UserId(9);

    fn apply(state: &mut State, index: u64, caller: Caller, command: Command) {
        let outcome = state.apply(index, 0, Millis(1_000), &Envelope { caller, command });
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }

    /// Node 1 founded it, nodes 2 … `nodes` have enrolled.
    fn cluster(nodes: u8) -> State {
        let mut state = State::new();
        let init = Init {
            cluster: ClusterId(1),
            ca: vec![1],
            address: "n1:1".into(),
            key: [1; 32],
            version: "1".into(),
            feature_level: 1,
            admin: (ADMIN, [200; 32]),
        };
        apply(&mut state, 1, Caller::Node(1), Command::Init(init));
        let token = CreateToken { token: TokenId(5), role: Role::Node, secret: [7; 32], ttl_ms: 1000, uses: 100 };
        apply(&mut state, 2, Caller::Admin(ADMIN), Command::CreateToken(token));
        for node in 2..=nodes {
            let used = UseToken {
                secret: [7; 32],
                role: Role::Node,
                nonce: [node; 16],
                key: [node; 32],
                id: 0,
                address: format!("n{node}:1"),
                version: "1".into(),
                feature_level: 1,
            };
            apply(&mut state, 2 + u64::from(node), Caller::Node(1), Command::UseToken(used));
        }
        state
    }

    fn raft(voters: &[NodeId], learners: &[NodeId], matched: u64, heard: Duration) -> Status {
        let peer = |node: &NodeId| PeerStatus { node: *node, matched_index: matched, heard: Some(heard) };
        Status {
            node_id: 1,
            leader: Some(1),
            term: 1,
            applied: Position { term: 1, index: 1000 },
            committed: Position { term: 1, index: 1000 },
            last_log: Position { term: 1, index: 1000 },
            stored_index: 0,
            snapshot_index: 0,
            purged_index: 0,
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            changing: false,
            half_changed: false,
            quorum: true,
            peers: voters.iter().chain(learners).filter(|node| **node != 1).map(peer).collect(),
            hash: 0,
        }
    }

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn members_listen_first_and_vote_once_they_have_caught_up() {
        let state = cluster(3);
        assert_eq!(next(&state, &raft(&[1], &[], 0, NOW)), Step::Add(2));
        assert_eq!(next(&state, &raft(&[1], &[2], 0, NOW)), Step::Add(3));
        assert_eq!(next(&state, &raft(&[1], &[2, 3], 10, NOW)), Step::Wait);
        assert_eq!(next(&state, &raft(&[1], &[2, 3], 950, Duration::from_secs(5))), Step::Wait);
        assert_eq!(next(&state, &raft(&[1], &[2, 3], 950, NOW)), Step::Promote(2));
        assert_eq!(next(&state, &raft(&[1, 2], &[3], 950, NOW)), Step::Promote(3));
        assert_eq!(next(&state, &raft(&[1, 2, 3], &[], 950, NOW)), Step::Rest);
    }

    #[test]
    fn removed_members_leave_before_anything_else() {
        let mut state = cluster(3);
        apply(&mut state, 50, Caller::Admin(ADMIN), Command::RemoveNode { node: 1 });
        assert_eq!(next(&state, &raft(&[1, 2], &[3], 950, NOW)), Step::Remove(1));
        assert_eq!(next(&state, &raft(&[2], &[3], 950, NOW)), Step::Promote(3));
        assert_eq!(next(&state, &raft(&[2, 3], &[], 950, NOW)), Step::Rest);
    }

    #[test]
    fn who_was_replaced_stays_until_its_replacement_can_vote() {
        let mut state = cluster(3);
        let replace = ReplaceNode {
            node: 2,
            nonce: [1; 16],
            key: [42; 32],
            address: "n2:1".into(),
            version: "1".into(),
            feature_level: 1,
        };
        apply(&mut state, 50, Caller::Node(2), Command::ReplaceNode(replace));
        assert_eq!(next(&state, &raft(&[1, 2, 3], &[], 950, NOW)), Step::Add(4));
        assert_eq!(next(&state, &raft(&[1, 2, 3], &[4], 10, NOW)), Step::Wait);
        assert_eq!(next(&state, &raft(&[1, 2, 3], &[4], 950, NOW)), Step::Swap { old: 2, new: 4 });
        assert_eq!(next(&state, &raft(&[1, 3, 4], &[], 950, NOW)), Step::Rest);
        // Where the replacement is removed before, both go.
        apply(&mut state, 51, Caller::Admin(ADMIN), Command::RemoveNode { node: 4 });
        assert_eq!(next(&state, &raft(&[1, 2, 3], &[4], 950, NOW)), Step::Remove(2));
        assert_eq!(next(&state, &raft(&[1, 3], &[4], 950, NOW)), Step::Remove(4));
    }

    #[test]
    fn one_change_at_a_time() {
        let changing = Status { changing: true, ..raft(&[1], &[], 0, NOW) };
        assert_eq!(next(&cluster(2), &changing), Step::Wait);
        let half_changed = Status { half_changed: true, ..changing };
        assert_eq!(next(&cluster(2), &half_changed), Step::Finish, "nobody else will");
    }
}
