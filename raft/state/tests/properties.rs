//! What holds whatever happens: random histories of commands, sensible and absurd, and random bytes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod random;

use std::collections::BTreeMap;

use hodei_state::{
    RowKey, State, codec,
    command::Envelope,
    ids::{Caller, JobId, Millis, SecretId, TokenId, UserId, WorkerId},
    invariants,
};
use proptest::prelude::*;
use random::Dice;

fn dice() -> impl Strategy<Value = Dice> {
    any::<(u8, u8, u8, u8, u64)>().prop_map(|(kind, a, b, c, x)| Dice { kind, a, b, c, x })
}

/// Applies a random history to a cluster that is set up; returns every envelope with its place and stamp.
fn run(state: &mut State, history: &[Dice], mut each: impl FnMut(&mut State)) -> Vec<(u64, u32, Millis, Envelope)> {
    let mut applied = Vec::new();
    let mut at = 1_000_000;
    for (index, envelope) in (1..).zip(random::setup()) {
        state.apply(index, 0, Millis(at), &envelope);
        applied.push((index, 0, Millis(at), envelope));
    }
    for (index, dice) in (100..).zip(history) {
        at += u64::from(dice.c) * 40;
        // Several entries carry two commands.
        let (index, offset) = if index % 3 == 0 { (index - 1, 1) } else { (index, 0) };
        let envelope = dice.envelope(state);
        state.apply(index, offset, Millis(at), &envelope);
        applied.push((index, offset, Millis(at), envelope));
        each(state);
    }
    applied
}

fn caller() -> impl Strategy<Value = Caller> {
    prop_oneof![
        any::<u64>().prop_map(Caller::Node),
        any::<u128>().prop_map(|id| Caller::Agent(WorkerId(id))),
        any::<u128>().prop_map(|id| Caller::User(UserId(id))),
        any::<u128>().prop_map(|id| Caller::Admin(UserId(id))),
    ]
}

fn row_key() -> impl Strategy<Value = RowKey> {
    prop_oneof![
        Just(RowKey::Meta),
        Just(RowKey::Cluster),
        any::<u64>().prop_map(RowKey::Member),
        caller().prop_map(RowKey::Identity),
        any::<u128>().prop_map(|id| RowKey::Token(TokenId(id))),
        any::<(u128, [u8; 16])>().prop_map(|(id, nonce)| RowKey::TokenUse(TokenId(id), nonce)),
        any::<u128>().prop_map(|id| RowKey::Job(JobId(id))),
        any::<u128>().prop_map(|id| RowKey::Spec(JobId(id))),
        any::<(u128, u32)>().prop_map(|(id, n)| RowKey::Attempt(JobId(id), n)),
        any::<(u128, u32, u32)>().prop_map(|(id, n, at)| RowKey::Segment(JobId(id), n, at)),
        any::<u128>().prop_map(|id| RowKey::Worker(WorkerId(id))),
        any::<u128>().prop_map(|id| RowKey::Tombstone(JobId(id))),
        any::<u128>().prop_map(|id| RowKey::Secret(SecretId(id))),
        any::<(u128, u32)>().prop_map(|(id, n)| RowKey::SecretPart(SecretId(id), n)),
        any::<(u64, u32)>().prop_map(|(index, offset)| RowKey::SecretUse(index, offset)),
        any::<(u64, u32)>().prop_map(|(index, offset)| RowKey::Events(index, offset)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every state that commands can make is sound, and is the same when rebuilt from its rows.
    #[test]
    fn histories_keep_the_invariants(history in prop::collection::vec(dice(), 1..160)) {
        let mut state = State::new();
        run(&mut state, &history, |state| {
            let violations = invariants::check(state);
            assert!(violations.is_empty(), "{violations:?}");
        });
        let rebuilt = State::from_rows(state.rows()).unwrap();
        prop_assert_eq!(rebuilt.hash(), state.hash());
        prop_assert!(rebuilt.rows().eq(state.rows()));
        prop_assert_eq!(rebuilt.counts(), state.counts());
    }

    /// A replica that restarts in between, and one that does not, give the same answers and have the same hash.
    #[test]
    fn replicas_agree(history in prop::collection::vec(dice(), 1..120), restart_every in 1usize..20) {
        let mut state = State::new();
        let applied = run(&mut state, &history, |_| ());
        let (mut first, mut second) = (State::new(), State::new());
        for (at, (index, offset, stamp, envelope)) in applied.iter().enumerate() {
            let bytes = codec::encode_batch(std::slice::from_ref(envelope));
            let decoded = codec::decode_batch(&bytes).unwrap();
            let outcome = first.apply(*index, *offset, *stamp, envelope);
            prop_assert_eq!(outcome, second.apply(*index, *offset, *stamp, &decoded[0]));
            if at % restart_every == 0 {
                second = State::from_rows(second.rows()).unwrap();
            }
            prop_assert_eq!(first.hash(), second.hash());
        }
        prop_assert_eq!(first.hash(), state.hash());
    }

    /// The changes, applied to storage, make it hold exactly the rows.
    #[test]
    fn changes_are_complete(history in prop::collection::vec(dice(), 1..160), take_every in 1usize..10) {
        let mut stored = BTreeMap::new();
        let mut store = |state: &mut State| {
            for key in state.take_changes().keys {
                match state.row(key) {
                    Some(bytes) => drop(stored.insert(key, bytes)),
                    None => drop(stored.remove(&key)),
                }
            }
        };
        let mut state = State::new();
        let mut count = 0;
        run(&mut state, &history, |state| {
            count += 1;
            if count % take_every == 0 {
                store(state);
            }
        });
        store(&mut state);
        prop_assert!(stored.iter().map(|(key, row)| (*key, row.clone())).eq(state.rows()));
        for from in stored.keys() {
            prop_assert!(stored.range(from..).map(|(key, row)| (*key, row.clone())).eq(state.rows_from(*from)));
        }
    }

    /// Bytes of keys order as the keys do, and name them.
    #[test]
    fn row_keys_keep_their_order(a in row_key(), b in row_key()) {
        prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
        prop_assert_eq!(RowKey::from_bytes(&a.to_bytes()), Some(a));
    }

    /// Random bytes are refused or understood, and never more than that.
    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(key) = RowKey::from_bytes(&bytes) {
            prop_assert_eq!(key.to_bytes(), bytes.clone());
        }
        let _ = codec::decode_batch(&bytes);
        let _ = codec::decode_execution(&bytes);
        let _ = State::from_rows([(RowKey::Job(JobId(1)), bytes.clone()), (RowKey::Cluster, bytes)]);
    }

    /// A damaged record of a real batch never panics; a truncated or longer one is refused.
    #[test]
    fn damaged_batches_never_panic(history in prop::collection::vec(dice(), 1..20), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut state = State::new();
        let batch: Vec<_> = run(&mut state, &history, |_| ()).into_iter().map(|(.., envelope)| envelope).collect();
        let bytes = codec::encode_batch(&batch);
        prop_assert_eq!(codec::decode_batch(&bytes).unwrap(), batch);
        let mut longer = bytes.clone();
        longer.push(0);
        prop_assert!(codec::decode_batch(&longer).is_err());
        prop_assert!(codec::decode_batch(&bytes[..at.index(bytes.len())]).is_err());
        let mut damaged = bytes;
        let at = at.index(damaged.len());
        damaged[at] ^= 1 << bit;
        if let Ok(batch) = codec::decode_batch(&damaged) {
            for (offset, envelope) in (0..).zip(&batch) {
                state.apply(u64::MAX, offset, Millis(u64::MAX), envelope);
            }
            let violations = invariants::check(&state);
            prop_assert!(violations.is_empty(), "{:?}", violations);
        }
    }
}

/// The random commands are worth something: a long history meets every kind of outcome, and nearly every refusal.
#[test]
fn histories_go_everywhere() {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut x = 1u64;
    for _ in 0..60 {
        let mut state = State::new();
        let history: Vec<_> = std::iter::repeat_with(|| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let [kind, a, b, c, ..] = x.to_be_bytes();
            Dice { kind, a, b, c, x: x >> 13 }
        })
        .take(200)
        .collect();
        let applied = run(&mut state, &history, |_| ());
        let mut state = State::new();
        for (index, offset, at, envelope) in applied {
            let outcome = format!("{:?}", state.apply(index, offset, at, &envelope));
            let name = outcome.strip_prefix("Refused(").unwrap_or(&outcome);
            let name = name.split([' ', '(', ')']).next().unwrap_or_default();
            *seen.entry(name.to_string()).or_default() += 1;
        }
    }
    for expected in [
        "Done Unchanged Submitted CancelAccepted Assigned TokenCreated Enrolled SessionOpened Removed",
        "CallerRevoked NotAllowed Invalid UnknownJob UnknownNode PayloadMismatch JobRemoved AlreadyTerminal OutOfDate",
        "NoCapacity WorkerBusy WorkerRemoved WorkerEnding StaleFence StaleSession StaleStream TokenUnknown TokenExpired TokenRevoked TokenRole FeatureLevel",
    ] {
        for name in expected.split(' ') {
            assert!(seen.contains_key(name), "{name} never happens: {seen:?}");
        }
    }
}
