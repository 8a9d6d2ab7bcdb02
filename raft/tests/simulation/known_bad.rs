//! Each checker rejects what it is for, and nothing that is right.

use hodei_raft::wal::{EntryId, Vote};

use crate::check::{Change, Checker, Seen, Violation};

fn id(term: u64, index: u64) -> EntryId {
    EntryId { term, index }
}

fn vote(term: u64, node: u64, committed: bool) -> Option<Vote> {
    Some(Vote { term, node, committed })
}

/// A node that voted for `leader` in `term`, with a log of these terms from index 0 on; the content of an entry is its
/// index and term.
fn seen(node: u64, term: u64, leader: u64, terms: &[u64]) -> Seen {
    let entries = (0..).zip(terms).map(|(index, term)| (id(*term, index), index * 100 + term)).collect();
    let change = Some(Change { from: 0, entries });
    Seen { node, life: 1, vote: vote(term, leader, true), leads: node == leader, change, ..Seen::default() }
}

fn committed(seen: Seen, at: EntryId) -> Seen {
    Seen { committed: Some(at), ..seen }
}

fn applied(seen: Seen, at: EntryId, hash: u128) -> Seen {
    Seen { committed: seen.committed.or(Some(at)), applied: Some(at), hash, ..seen }
}

/// The violation that the last of these observations is.
fn violation(observations: &[Seen]) -> Option<Violation> {
    let mut checker = Checker::default();
    let (last, before) = observations.split_last()?;
    before.iter().for_each(|seen| checker.observe(seen).unwrap());
    checker.observe(last).err()
}

#[test]
fn an_ordinary_history_is_accepted() {
    let history = [
        seen(1, 1, 1, &[1, 1]),
        committed(seen(1, 1, 1, &[1, 1, 1]), id(1, 1)),
        applied(seen(2, 1, 1, &[1, 1]), id(1, 1), 7),
        // Node 2 takes over, with an entry of its own.
        Seen { committed: Some(id(1, 1)), ..applied(seen(2, 2, 2, &[1, 1, 2]), id(1, 1), 7) },
        // Node 1 gives up what was not committed.
        applied(seen(1, 2, 2, &[1, 1, 2]), id(1, 1), 7),
        applied(committed(seen(1, 2, 2, &[1, 1, 2]), id(2, 2)), id(2, 2), 8),
        applied(committed(seen(2, 2, 2, &[1, 1, 2]), id(2, 2)), id(2, 2), 8),
        // And starts again, without remembering what was committed.
        Seen { life: 2, ..seen(1, 2, 2, &[1, 1, 2]) },
    ];
    assert_eq!(violation(&history), None);
}

#[test]
fn two_leaders_of_a_term() {
    let history = [seen(1, 3, 1, &[1]), seen(2, 3, 2, &[1])];
    assert_eq!(violation(&history), Some(Violation::TwoLeaders { term: 3, first: 1, second: 2 }));
    // One of them only by the word of a third.
    let history = [seen(3, 3, 1, &[1]), seen(2, 3, 2, &[1])];
    assert_eq!(violation(&history), Some(Violation::TwoLeaders { term: 3, first: 1, second: 2 }));
}

#[test]
fn logs_that_do_not_match() {
    // The same index and term, another content.
    let mut other = seen(2, 1, 1, &[1, 1]);
    other.change.as_mut().unwrap().entries[1].1 = 99;
    let history = [seen(1, 1, 1, &[1, 1]), other];
    assert_eq!(violation(&history), Some(Violation::LogsDiffer { node: 2, id: id(1, 1) }));
    // The same entry after different ones.
    let history = [seen(1, 3, 1, &[1, 1, 3]), seen(2, 3, 1, &[1, 2, 3])];
    assert_eq!(violation(&history), Some(Violation::LogsDiffer { node: 2, id: id(3, 2) }));
    // After a purge: the purge point counts as what it follows.
    let purged = Seen { purged: Some(id(2, 1)), ..seen(2, 3, 1, &[]) };
    let purged = Seen { change: Some(Change { from: 2, entries: vec![(id(3, 2), 203)] }), ..purged };
    let history = [seen(1, 3, 1, &[1, 1, 3]), purged];
    assert_eq!(violation(&history), Some(Violation::LogsDiffer { node: 2, id: id(3, 2) }));
}

#[test]
fn a_leader_without_a_committed_entry() {
    let history = [committed(seen(1, 1, 1, &[1, 1]), id(1, 1)), seen(2, 2, 2, &[1])];
    let lacks = Violation::LeaderLacks { node: 2, term: 2, missing: id(1, 1) };
    assert_eq!(violation(&history), Some(lacks.clone()));
    // Another entry in its place.
    let history = [committed(seen(1, 1, 1, &[1, 1]), id(1, 1)), seen(2, 3, 2, &[1, 2])];
    assert_eq!(violation(&history), Some(Violation::LeaderLacks { node: 2, term: 3, missing: id(1, 1) }));
    // A leader of an earlier term, that hears of it late, need not have what was committed after it.
    let history = [seen(2, 2, 2, &[1, 2]), committed(seen(1, 3, 1, &[1, 1, 3]), id(3, 2)), seen(2, 2, 2, &[1, 2])];
    assert_eq!(violation(&history), None);
}

#[test]
fn committed_entries_that_change() {
    let history = [committed(seen(1, 2, 1, &[1, 2]), id(2, 1)), committed(seen(2, 3, 3, &[1, 3]), id(3, 1))];
    let differs = Violation::CommittedDiffers { node: 2, found: id(3, 1), committed: id(2, 1) };
    assert_eq!(violation(&history), Some(differs));
    let history = [committed(seen(1, 2, 1, &[1, 2]), id(2, 1)), committed(seen(1, 2, 1, &[1]), id(2, 1))];
    assert_eq!(violation(&history), Some(Violation::CommittedRemoved { node: 1, removed: id(2, 1) }));
}

#[test]
fn what_goes_back() {
    let history = [seen(1, 3, 2, &[1]), seen(1, 2, 2, &[1])];
    let before = vote(3, 2, true).unwrap();
    assert_eq!(violation(&history), Some(Violation::VoteWentBack { node: 1, before, now: vote(2, 2, true) }));
    // A second vote in the same term.
    let first = Seen { vote: vote(3, 2, false), ..seen(1, 3, 2, &[1]) };
    let second = Seen { vote: vote(3, 3, false), ..first.clone() };
    let before = vote(3, 2, false).unwrap();
    let elected = seen(1, 3, 3, &[1]);
    assert_eq!(violation(&[first.clone(), elected]), None, "another candidate won");
    assert_eq!(violation(&[first, second]), Some(Violation::VoteWentBack { node: 1, before, now: vote(3, 3, false) }));
    let history = [committed(seen(1, 1, 1, &[1, 1]), id(1, 1)), committed(seen(1, 1, 1, &[1, 1]), id(1, 0))];
    let back = Violation::CommitWentBack { node: 1, before: id(1, 1), now: Some(id(1, 0)) };
    assert_eq!(violation(&history), Some(back));
    let both = committed(seen(1, 1, 1, &[1, 1]), id(1, 1));
    let history = [applied(both.clone(), id(1, 1), 7), applied(both.clone(), id(1, 0), 6)];
    let back = Violation::AppliedWentBack { node: 1, before: id(1, 1), now: Some(id(1, 0)) };
    assert_eq!(violation(&history), Some(back));
    // In another life both may begin anew.
    let history = [applied(both, id(1, 1), 7), Seen { life: 2, ..seen(1, 1, 1, &[1, 1]) }];
    assert_eq!(violation(&history), None);
}

#[test]
fn states_that_differ() {
    let history = [applied(seen(1, 1, 1, &[1]), id(1, 0), 7), applied(seen(2, 1, 1, &[1]), id(1, 0), 8)];
    assert_eq!(violation(&history), Some(Violation::StatesDiffer { first: 1, second: 2, applied: id(1, 0) }));
    // On one node, before and after a restart.
    let again = Seen { life: 2, ..applied(seen(1, 1, 1, &[1]), id(1, 0), 8) };
    let history = [applied(seen(1, 1, 1, &[1]), id(1, 0), 7), again];
    assert_eq!(violation(&history), Some(Violation::StatesDiffer { first: 1, second: 1, applied: id(1, 0) }));
    let early = Seen { committed: Some(id(1, 0)), ..applied(seen(1, 1, 1, &[1, 1]), id(1, 1), 7) };
    assert_eq!(violation(&[early]), Some(Violation::AppliedUncommitted { node: 1, applied: id(1, 1) }));
}

#[test]
fn promises_that_are_forgotten() {
    let mut checker = Checker::default();
    checker.restarted(1, 0, None).unwrap();
    checker.promised(1, 5, vote(2, 1, false));
    checker.restarted(1, 6, vote(2, 1, true)).unwrap();
    assert!(checker.restarted(1, 5, vote(2, 1, true)).is_err(), "a record that was found durable is gone");
    checker.promised(1, 7, vote(3, 1, false));
    assert!(checker.restarted(1, 7, vote(2, 1, true)).is_err(), "a vote is gone");
}
