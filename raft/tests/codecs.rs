//! Everything that lies on a disk or travels between nodes comes back as it was, is refused when damaged, and keeps its
//! bytes: golden bytes change only with a new version.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::BTreeSet;

use bytes::Bytes;
use hodei_raft::{
    codec::{self, DecodeError, EntryV1, LogIdV1, MembershipV1, PayloadV1, StoredMembershipV1, VoteV1},
    network::wire::*,
};
use hodei_state::{
    command::{Command, Envelope},
    ids::{Caller, JobId, UserId},
    outcome::Outcome,
};
use proptest::prelude::*;

const ID: LogIdV1 = LogIdV1 { term: 3, index: 300 };
const VOTE: VoteV1 = VoteV1 { term: 3, node: 2, committed: true };

fn membership() -> MembershipV1 {
    MembershipV1 { configs: vec![BTreeSet::from([1, 2, 3])], nodes: BTreeSet::from([1, 2, 3, 4]) }
}

fn command() -> Envelope {
    let command = Command::CancelJob { job: JobId(7), reason: "why".to_owned() };
    Envelope { caller: Caller::User(UserId(9)), command }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of one of each, as of version 1.
#[test]
fn golden_bytes() {
    let append = AppendRequestV1 {
        vote: VOTE,
        prev: Some(ID),
        entries: vec![
            EntryV1 { id: LogIdV1 { term: 3, index: 301 }, payload: PayloadV1::Blank },
            EntryV1 {
                id: LogIdV1 { term: 3, index: 302 },
                payload: PayloadV1::Batch { at: 1_700_000_000_000, commands: Bytes::from_static(b"abc") },
            },
            EntryV1 { id: LogIdV1 { term: 3, index: 303 }, payload: PayloadV1::Membership(membership()) },
        ],
        commit: None,
    };
    let stored = StoredMembershipV1 { log_id: Some(ID), membership: membership() };
    let id = SnapshotIdV1 { last: Some(ID), len: 5000, tail: 0xDEAD_BEEF };
    let file = SnapshotPartV1::File { offset: 1 << 20, crc: 7, bytes: Bytes::from_static(b"xyz") };
    let payload = SnapshotPartV1::Payload { digest: [1; 32], offset: 0, len: 3, bytes: Bytes::from_static(b"xyz") };
    let forward =
        ForwardRequestV1 { commands: vec![ForwardedV1 { id: 1, timeout_ms: 9, command: Bytes::from_static(b"c") }] };
    let answers = ForwardResponseV1 {
        answers: vec![
            (1, ForwardAnswerV1::Done { at: ID, outcome: Outcome::Done }),
            (2, ForwardAnswerV1::NotDone(NotDoneV1::NoLeader)),
            (3, ForwardAnswerV1::Unknown("?".to_owned())),
        ],
    };
    let probe =
        ProbeResponseV1 { wall_clock: 5, applied: Some(ID), feature_level: 1, hashes: vec![(64, 0x0102), (128, 3)] };
    let all: Vec<(&str, Vec<u8>)> = vec![
        ("append", codec::encode(&append)),
        ("matched", codec::encode(&AppendResponseV1::Matched(Some(ID)))),
        ("conflict", codec::encode(&AppendResponseV1::Conflict(ID))),
        ("higher", codec::encode(&AppendResponseV1::HigherVote(VOTE))),
        ("vote", codec::encode(&VoteRequestV1 { vote: VOTE, last: Some(ID), transfer: true })),
        ("voted", codec::encode(&VoteResponseV1 { vote: VOTE, granted: true, last: None })),
        ("stand", codec::encode(&TransferRequestV1::Stand { from: VOTE, to: 3, last: Some(ID) })),
        ("hand over", codec::encode(&TransferRequestV1::HandOver { to: None })),
        ("transferred", codec::encode(&TransferResponseV1::NotLeader { leader: Some(1) })),
        ("offset", codec::encode(&OffsetRequestV1 { id, digests: vec![[2; 32]] })),
        ("offset is", codec::encode(&OffsetResponseV1 { offset: 4096, missing: vec![0] })),
        ("begin", codec::encode(&SnapshotPartV1::Begin { vote: VOTE, id, membership: stored.clone() })),
        ("file", codec::encode(&file)),
        ("payload", codec::encode(&payload)),
        ("installed", codec::encode(&SnapshotResponseV1 { vote: VOTE })),
        ("forward", codec::encode(&forward)),
        ("forwarded", codec::encode(&answers)),
        ("read", codec::encode(&ReadRequestV1)),
        ("read index", codec::encode(&ReadResponseV1::Index(ID))),
        ("probe", codec::encode(&ProbeRequestV1 { hashes_from: 64 })),
        ("probed", codec::encode(&probe)),
        ("membership", codec::encode(&stored)),
        ("command", codec::encode_command(&command()).to_vec()),
        ("batch", codec::encode_batch([codec::encode_command(&command())].iter(), 16, 1).to_vec()),
    ];
    let text: String = all.iter().map(|(name, bytes)| format!("{name}: {}\n", hex(bytes))).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/messages.txt");
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).unwrap();
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap());
    assert_eq!(codec::decode::<AppendRequestV1>(&all[0].1).unwrap(), append);
    assert_eq!(codec::decode::<ForwardResponseV1>(&codec::encode(&answers)).unwrap(), answers);
}

#[test]
fn a_damaged_record_is_refused() {
    let good = codec::encode(&VoteRequestV1 { vote: VOTE, last: None, transfer: false });
    assert!(matches!(codec::decode::<VoteRequestV1>(&[]), Err(DecodeError::Empty)));
    let mut newer = good.clone();
    newer[0] = 2;
    assert!(matches!(codec::decode::<VoteRequestV1>(&newer), Err(DecodeError::Version(2))));
    let mut longer = good.clone();
    longer.push(0);
    assert!(matches!(codec::decode::<VoteRequestV1>(&longer), Err(DecodeError::Trailing(1))));
    assert!(matches!(codec::decode::<VoteRequestV1>(&good[..good.len() - 1]), Err(DecodeError::Malformed(_))));
}

#[test]
fn a_membership_that_cannot_be_is_refused() {
    let empty = MembershipV1 { configs: vec![BTreeSet::new()], nodes: BTreeSet::from([1]) };
    assert!(empty.into_membership().is_err());
    let unknown = MembershipV1 { configs: vec![BTreeSet::from([2])], nodes: BTreeSet::from([1]) };
    assert!(unknown.into_membership().is_err());
    assert!(membership().into_membership().is_ok());
}

fn log_id() -> impl Strategy<Value = LogIdV1> {
    any::<(u64, u64)>().prop_map(|(term, index)| LogIdV1 { term, index })
}

fn payload() -> impl Strategy<Value = PayloadV1> {
    prop_oneof![
        Just(PayloadV1::Blank),
        (any::<u64>(), any::<Vec<u8>>()).prop_map(|(at, bytes)| PayloadV1::Batch { at, commands: bytes.into() }),
        proptest::collection::btree_set(1u64..9, 1..5)
            .prop_map(|nodes| { PayloadV1::Membership(MembershipV1 { configs: vec![nodes.clone()], nodes }) }),
    ]
}

proptest! {
    #[test]
    fn entries_come_back(id in log_id(), payload in payload()) {
        let entry = EntryV1 { id, payload };
        let back: EntryV1 = codec::decode(&codec::encode(&entry)).unwrap();
        prop_assert_eq!(&back, &entry);
        prop_assert_eq!(EntryV1::from(back.into_entry().unwrap()), entry);
    }

    #[test]
    fn batches_come_back(reasons in proptest::collection::vec("[a-z]{0,20}", 0..40)) {
        let commands: Vec<Envelope> = reasons
            .into_iter()
            .map(|reason| Envelope { caller: Caller::Node(1), command: Command::CancelJob { job: JobId(1), reason } })
            .collect();
        let encoded: Vec<Bytes> = commands.iter().map(codec::encode_command).collect();
        let batch = codec::encode_batch(encoded.iter(), encoded.iter().map(Bytes::len).sum(), encoded.len());
        prop_assert_eq!(codec::decode_batch(&batch).unwrap(), commands);
        if batch.len() > 1 {
            prop_assert!(codec::decode_batch(&batch[..batch.len() - 1]).is_err());
        }
    }

    #[test]
    fn noise_is_refused_and_never_panics(bytes in any::<Vec<u8>>()) {
        let _ = codec::decode::<AppendRequestV1>(&bytes);
        let _ = codec::decode::<SnapshotPartV1>(&bytes);
        let _ = codec::decode::<ForwardRequestV1>(&bytes);
        let _ = codec::decode_batch(&bytes);
    }
}
