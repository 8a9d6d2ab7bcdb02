//! The search against brute force on tiny histories, and against histories that are right because they were made so.

use std::{collections::BTreeSet, sync::LazyLock};

use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::{
    super::life::{self, View},
    *,
};
use crate::history::JobState::{self, Cancelled, Failed, Pending, Running, Scheduled, Succeeded, Timeout};

const STATES: [JobState; 7] = [Pending, Scheduled, Running, Succeeded, Failed, Cancelled, Timeout];

static LIFE: LazyLock<Life> = LazyLock::new(Life::default);

fn is_linearizable(ops: &[Concurrent<Action>]) -> bool {
    linearizable(&*LIFE, ops, MAX_STEPS) == Answered::Yes
}

/// What one job is, and whether its cancel was accepted; nothing: it is not there. The rules of the design once more, in
/// the plainest words.
type Job = Option<(View, bool)>;

/// What the cluster may do next by itself.
fn moves(job: Job) -> Vec<Job> {
    let Some((view, cancel)) = job else { return vec![] };
    let next = (0..=3).flat_map(|attempt| STATES.map(|state| View { state, attempt }));
    let next = next.filter(|next| life::follows(view, *next));
    let may = |next: &View| if cancel { matches!(next.state, Running | Cancelled) } else { next.state != Cancelled };
    next.filter(may).map(|next| Some((next, cancel))).collect()
}

/// What becomes of the job if the answer is right.
fn act(job: Job, action: Action) -> Option<Job> {
    match (action, job) {
        (Action::Submit { .. }, None) => Some(Some((View { state: Pending, attempt: 0 }, false))),
        (Action::Submit { existing: true } | Action::Known, Some(_)) | (Action::Read(None), None) => Some(job),
        (Action::Read(Some(seen)), Some((view, _))) => (seen == view).then_some(job),
        (Action::Cancel(answer), Some((view, _))) => {
            let state = match view.state {
                Pending => Cancelled,
                Succeeded | Failed | Timeout => return None,
                state => state,
            };
            let right = answer.is_none_or(|answer| answer == state);
            right.then_some(Some((View { state, ..view }, true)))
        }
        _ => None,
    }
}

/// Everything that a job may come to by itself.
fn later(job: Job) -> Vec<Job> {
    let mut all = vec![job];
    let mut next = 0;
    while next < all.len() {
        for job in moves(all[next]) {
            if !all.contains(&job) {
                all.push(job);
            }
        }
        next += 1;
    }
    all
}

/// Tries every order, and every course of the job between the operations.
fn brute(ops: &[Concurrent<Action>], taken: &mut Vec<usize>, job: Job) -> bool {
    if (0..ops.len()).all(|at| taken.contains(&at) || ops[at].to.is_none()) {
        return true;
    }
    for at in 0..ops.len() {
        // Whatever was answered before this one was asked has been taken.
        let is_next =
            (0..ops.len()).all(|other| taken.contains(&other) || ops[other].to.is_none_or(|to| to >= ops[at].from));
        if taken.contains(&at) || !is_next {
            continue;
        }
        taken.push(at);
        let found = later(job).into_iter().any(|job| act(job, ops[at].op).is_some_and(|job| brute(ops, taken, job)));
        taken.pop();
        if found {
            return true;
        }
    }
    false
}

fn view() -> impl Strategy<Value = View> {
    (0..STATES.len(), 0..3_u32).prop_map(|(state, attempt)| View { state: STATES[state], attempt })
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => any::<bool>().prop_map(|existing| Action::Submit { existing }),
        1 => Just(Action::Known),
        1 => Just(Action::Read(None)),
        6 => view().prop_map(|view| Action::Read(Some(view))),
        3 => proptest::option::of((0..STATES.len()).prop_map(|state| STATES[state])).prop_map(Action::Cancel),
    ]
}

fn tiny() -> impl Strategy<Value = Vec<Concurrent<Action>>> {
    let op = (0..12_u64, proptest::option::weighted(0.8, 0..6_u64), any_action());
    let op = op.prop_map(|(from, took, op)| Concurrent { from, to: took.map(|took| from + took), op });
    proptest::collection::vec(op, 1..=5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tiny_histories_are_judged_as_by_brute_force(ops in tiny()) {
        prop_assert_eq!(is_linearizable(&ops), brute(&ops, &mut Vec::new(), None));
    }
}

/// A history that a job really had, with the states that it went through. Operations take effect 10 apart, and are asked
/// and answered up to `spread` before and after.
fn made(seed: u64, len: u64, spread: u64) -> (Vec<Concurrent<Action>>, Vec<View>) {
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut job, mut ops, mut past) = (None, Vec::new(), Vec::new());
    for at in 1..=len {
        for _ in 0..random.random_range(0..3) {
            let next = moves(job);
            if !next.is_empty() {
                job = next[random.random_range(0..next.len())];
            }
        }
        past.extend(job.map(|(view, _)| view).filter(|view| past.last() != Some(view)));
        let cancelled = act(job, Action::Cancel(None)).filter(|_| random.random_bool(0.1));
        let op = match (job, cancelled) {
            (None, _) if random.random_bool(0.5) => Action::Submit { existing: false },
            (_, Some(after)) => Action::Cancel(after.map(|(view, _)| view.state)),
            (Some(_), _) if random.random_bool(0.1) => Action::Submit { existing: true },
            _ => Action::Read(job.map(|(view, _)| view)),
        };
        job = act(job, op).expect("the answer is what the job was");
        let (from, to) =
            (at * 10 - random.random_range(0..spread).min(at * 10), at * 10 + random.random_range(0..spread));
        // Some answers are lost. What was read is then not known either.
        let lost = random.random_bool(0.05);
        match op {
            Action::Read(_) if lost => {}
            Action::Submit { .. } if lost => {
                ops.push(Concurrent { from, to: None, op: Action::Submit { existing: true } });
            }
            Action::Cancel(_) if lost => {
                ops.push(Concurrent { from, to: None, op: Action::Cancel(None) });
            }
            _ => ops.push(Concurrent { from, to: Some(to), op }),
        }
    }
    (ops, past)
}

#[test]
fn what_a_job_really_did_is_accepted() {
    for seed in 0..500 {
        let (ops, _) = made(seed, 30, 25);
        assert!(is_linearizable(&ops), "seed {seed}: {ops:#?}");
    }
}

#[test]
fn a_stale_read_is_rejected_unless_it_might_have_been_in_time() {
    let (mut stale, mut rejected, mut compared, mut kinds) = (0, 0, 0, BTreeSet::new());
    for seed in 0..1000 {
        let (mut ops, past) = made(seed, 4 + seed % 6, 12);
        let mut random = SmallRng::seed_from_u64(seed);
        // The last read sees an older state than it did.
        let Some(read) = ops.iter().rposition(|op| matches!(op.op, Action::Read(Some(_)))) else { continue };
        let Action::Read(Some(seen)) = ops[read].op else { unreachable!("it was just found to be a read") };
        let Some(now) = past.iter().position(|view| *view == seen).filter(|now| *now > 0) else { continue };
        ops[read].op = Action::Read(Some(past[random.random_range(0..now)]));
        stale += 1;
        let found = is_linearizable(&ops);
        if ops.len() <= 6 {
            compared += 1;
            assert_eq!(found, brute(&ops, &mut Vec::new(), None), "seed {seed}: {ops:#?}");
        }
        rejected += usize::from(!found);
        kinds.insert(found);
    }
    assert!(stale > 300 && rejected * 10 > stale * 6, "{rejected} of {stale} stale reads were rejected");
    assert!(compared > 100 && kinds.len() == 2, "{compared} compared; some are right all the same");
}

#[test]
fn bounds_make_it_unknown() {
    let reads = (0..20).map(|_| Concurrent { from: 1, to: Some(9), op: Action::Read(None) });
    let impossible = Concurrent { from: 10, to: Some(11), op: Action::Known };
    let ops: Vec<_> = reads.chain([impossible]).collect();
    assert_eq!(linearizable(&*LIFE, &ops, 1000), Answered::GaveUp);
}
