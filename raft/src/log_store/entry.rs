//! How an entry's content lies in the log: a versioned envelope around structs of our own, never openraft's, so that an
//! upgrade of openraft cannot change what old bytes mean.
//!
//! ```text
//! version u8 = 1 | bincode of PayloadV1
//! ```
//! Term and index are not in it: the record around it carries them.

use std::collections::{BTreeMap, BTreeSet};

use bincode::{BorrowDecode, Encode, config};
use bytes::Bytes;
use hodei_state::ids::Millis;
use openraft::{EntryPayload, Membership, vote::leader_id_std::CommittedLeaderId};

use crate::{
    types::{Batch, Entry, LogId},
    wal::{Body, EntryId},
};

const VERSION: u8 = 1;

// Frozen: these lie on disks. Variants are only ever added at the end; a changed one is a new version.
#[derive(Encode, BorrowDecode)]
enum PayloadV1<'a> {
    Blank,
    /// `commands` is last, so that it can be written and read without a copy.
    Normal {
        at: u64,
        commands: &'a [u8],
    },
    Membership {
        configs: Vec<BTreeSet<u64>>,
        /// Voters and learners.
        nodes: BTreeSet<u64>,
    },
}

/// An entry that does not decode although its checksum holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {id} {what}")]
pub struct CorruptEntry {
    /// Which one.
    pub id: EntryId,
    /// What is wrong with it.
    pub what: String,
}

/// A log id as the write-ahead log names it.
#[must_use]
pub fn id(log_id: &LogId) -> EntryId {
    EntryId { term: log_id.leader_id.term, index: log_id.index }
}

/// A log id as openraft names it.
#[must_use]
pub fn log_id(id: EntryId) -> LogId {
    LogId { leader_id: CommittedLeaderId::new(id.term), index: id.index }
}

/// Encodes an entry's content; a batch's commands are shared, not copied.
#[must_use]
pub fn encode(entry: &Entry) -> Body {
    match &entry.payload {
        EntryPayload::Blank => Body::new(&envelope(&PayloadV1::Blank), Bytes::new()),
        EntryPayload::Normal(batch) => {
            // Everything but the commands, whose length comes last before them.
            let mut head = envelope(&PayloadV1::Normal { at: batch.at.0, commands: &[] });
            head.pop();
            let len = bincode::encode_to_vec(batch.commands.len() as u64, config::standard());
            head.extend(len.expect("a number always encodes"));
            Body::new(&head, batch.commands.clone())
        }
        EntryPayload::Membership(membership) => {
            let configs = membership.get_joint_config().clone();
            let nodes = membership.nodes().map(|(id, ())| *id).collect();
            Bytes::from(envelope(&PayloadV1::Membership { configs, nodes })).into()
        }
    }
}

fn envelope(payload: &PayloadV1<'_>) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bincode::encode_into_std_write(payload, &mut bytes, config::standard()).expect("plain data always encodes");
    bytes
}

/// Decodes an entry; the commands share the memory of `body`.
///
/// # Errors
/// If these are not the bytes of an entry that this version knows.
pub fn decode(id: EntryId, body: &Bytes) -> Result<Entry, CorruptEntry> {
    let corrupt = |what: &dyn std::fmt::Display| CorruptEntry { id, what: what.to_string() };
    let (version, bytes) = body.split_first().ok_or_else(|| corrupt(&"is empty"))?;
    if *version != VERSION {
        return Err(corrupt(&format_args!("is of version {version}, this program knows {VERSION}")));
    }
    let (payload, consumed): (PayloadV1<'_>, usize) =
        bincode::borrow_decode_from_slice(bytes, config::standard()).map_err(|error| corrupt(&error))?;
    if consumed != bytes.len() {
        return Err(corrupt(&"has bytes behind its end"));
    }
    let payload = match payload {
        PayloadV1::Blank => EntryPayload::Blank,
        PayloadV1::Normal { at, commands } => {
            EntryPayload::Normal(Batch { at: Millis(at), commands: body.slice_ref(commands) })
        }
        PayloadV1::Membership { configs, nodes } => {
            let nodes: BTreeMap<u64, ()> = nodes.into_iter().map(|id| (id, ())).collect();
            EntryPayload::Membership(Membership::new(configs, nodes).map_err(|error| corrupt(&error))?)
        }
    };
    Ok(Entry { log_id: log_id(id), payload })
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    fn entry(payload: EntryPayload<Batch, u64, ()>) -> Entry {
        Entry { log_id: log_id(EntryId { term: 3, index: 9 }), payload }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn golden() -> Vec<(Entry, &'static str)> {
        let membership = Membership::new(
            vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 300])],
            BTreeMap::from([(1, ()), (2, ()), (7, ()), (300, ())]),
        );
        let batch = Batch { at: Millis(1_700_000_000_000), commands: Bytes::from_static(b"commands") };
        vec![
            (entry(EntryPayload::Blank), "0100"),
            (entry(EntryPayload::Normal(batch)), "0101fd0068e5cf8b01000008636f6d6d616e6473"),
            (entry(EntryPayload::Membership(membership.unwrap())), "0102020201020202fb2c0104010207fb2c01"),
        ]
    }

    #[test]
    fn bytes_on_disk_never_change() {
        for (entry, bytes) in golden() {
            assert_eq!(hex(&encode(&entry).to_bytes()), bytes, "{entry}");
            assert_eq!(decode(id(&entry.log_id), &encode(&entry).to_bytes()), Ok(entry));
        }
    }

    #[test]
    fn unknown_versions_and_trailing_bytes_are_refused() {
        let at = EntryId { term: 1, index: 1 };
        for bytes in [&b""[..], b"\x02\x00", b"\x01\x00\x00", b"\x01\x63", b"\x01\x01\x00\x05ab"] {
            assert!(decode(at, &Bytes::from_static(bytes)).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn batches_come_back(at: u64, commands in collection::vec(any::<u8>(), 0..600)) {
            let commands = Bytes::from(commands);
            let whole = envelope(&PayloadV1::Normal { at, commands: &commands });
            let entry = entry(EntryPayload::Normal(Batch { at: Millis(at), commands }));
            let bytes = encode(&entry).to_bytes();
            prop_assert_eq!(&bytes[..], &whole[..], "head and tail are what the whole struct encodes to");
            prop_assert_eq!(decode(id(&entry.log_id), &bytes), Ok(entry));
        }

        #[test]
        fn memberships_come_back(configs in collection::vec(collection::btree_set(any::<u64>(), 1..5), 0..3),
                                 learners in collection::btree_set(any::<u64>(), 0..4)) {
            let nodes: BTreeMap<u64, ()> = configs.iter().flatten().chain(&learners).map(|id| (*id, ())).collect();
            let entry = entry(EntryPayload::Membership(Membership::new(configs, nodes).unwrap()));
            prop_assert_eq!(decode(id(&entry.log_id), &encode(&entry).to_bytes()), Ok(entry));
        }

        #[test]
        fn noise_never_panics(bytes in collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(EntryId { term: 1, index: 1 }, &Bytes::from(bytes));
        }
    }
}
