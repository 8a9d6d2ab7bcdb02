//! Records: what the log remembers, and how it is laid out.
//!
//! ```text
//! CRC32C u32 | payload length u32 | LSN u64 | chain u128 | kind u8 | payload
//! payload = version u8, fixed fields (bincode), and for an entry its body, opaque here
//! ```
//! The CRC is seeded with the segment's salt and covers everything after itself. The chain is a hash over the previous
//! chain and this record without CRC, so that it is the same wherever the record is written.

use bincode::{Decode, Encode, config};
use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use super::{EntryId, Lsn, Vote};

/// The bytes before a record's payload.
pub const HEADER_BYTES: usize = 33;

/// The version of the payloads that this program writes.
const VERSION: u8 = 1;

/// An entry's encoded body: a short beginning and the rest, kept apart so that large data is shared and not copied
/// before it goes into the segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    head: [u8; 32],
    head_len: u8,
    tail: Bytes,
}

impl Body {
    /// A body of `head`, at most 32 bytes, followed by `tail`.
    ///
    /// # Panics
    /// If the head is longer.
    #[must_use]
    pub fn new(head: &[u8], tail: Bytes) -> Self {
        let mut body = Self { head_len: head.len() as u8, tail, ..Self::default() };
        body.head[..head.len()].copy_from_slice(head);
        body
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.head_len) + self.tail.len()
    }

    /// Whether it has no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Head and tail in one piece.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        if self.head_len == 0 {
            return self.tail.clone();
        }
        let mut bytes = Vec::with_capacity(self.len());
        self.write(&mut bytes);
        bytes.into()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head[..usize::from(self.head_len)]);
        out.extend_from_slice(&self.tail);
    }
}

impl From<Bytes> for Body {
    fn from(tail: Bytes) -> Self {
        Self { tail, ..Self::default() }
    }
}

/// What the log remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An entry at the end of the log.
    Append {
        /// Its place.
        id: EntryId,
        /// Its encoded content.
        body: Body,
    },
    /// The vote that holds from now on.
    Vote(Vote),
    /// The entries with this and all higher indexes are gone.
    Truncate {
        /// The first index that is gone.
        from: u64,
    },
    /// The entries up to this one are gone, and the log counts as reaching at least here.
    Purge {
        /// The last entry that is gone.
        upto: EntryId,
    },
}

// Frozen: what these encode to lies on disks. A change is a new struct and a new version.
#[derive(Encode, Decode)]
struct IdV1 {
    term: u64,
    index: u64,
}

#[derive(Encode, Decode)]
struct VoteV1 {
    term: u64,
    node: u64,
    committed: bool,
}

#[derive(Encode, Decode)]
struct TruncateV1 {
    from: u64,
}

impl Record {
    const APPEND: u8 = 1;
    const VOTE: u8 = 2;
    const TRUNCATE: u8 = 3;
    const PURGE: u8 = 4;

    fn kind(&self) -> u8 {
        match self {
            Self::Append { .. } => Self::APPEND,
            Self::Vote(_) => Self::VOTE,
            Self::Truncate { .. } => Self::TRUNCATE,
            Self::Purge { .. } => Self::PURGE,
        }
    }

    /// About how many bytes it takes in a segment.
    #[must_use]
    pub fn weight(&self) -> usize {
        HEADER_BYTES + 20 + if let Self::Append { body, .. } = self { body.len() } else { 0 }
    }

    /// Appends the record to `out` with everything but its CRC, and returns its chain hash.
    pub(crate) fn encode(&self, lsn: Lsn, previous: u128, out: &mut Vec<u8>) -> u128 {
        let start = out.len();
        out.resize(start + HEADER_BYTES, 0);
        out.push(VERSION);
        match self {
            Self::Append { id, body } => {
                put(&IdV1 { term: id.term, index: id.index }, out);
                body.write(out);
            }
            Self::Vote(vote) => put(&VoteV1 { term: vote.term, node: vote.node, committed: vote.committed }, out),
            Self::Truncate { from } => put(&TruncateV1 { from: *from }, out),
            Self::Purge { upto } => put(&IdV1 { term: upto.term, index: upto.index }, out),
        }
        let len = out.len() - start - HEADER_BYTES;
        let chain = link(previous, lsn, self.kind(), &out[start + HEADER_BYTES..]);
        let header = &mut out[start..start + HEADER_BYTES];
        header[4..8].copy_from_slice(&u32::try_from(len).expect("bodies stay below 4 GiB").to_le_bytes());
        header[8..16].copy_from_slice(&lsn.to_le_bytes());
        header[16..32].copy_from_slice(&chain.to_le_bytes());
        header[32] = self.kind();
        chain
    }

    /// Decodes a payload; the body of an entry shares the payload's memory.
    pub(crate) fn decode(kind: u8, payload: &Bytes) -> Option<Self> {
        let (version, rest) = payload.split_first()?;
        if *version != VERSION {
            return None;
        }
        match kind {
            Self::APPEND => {
                let (id, consumed): (IdV1, usize) = bincode::decode_from_slice(rest, config::standard()).ok()?;
                let id = EntryId { term: id.term, index: id.index };
                Some(Self::Append { id, body: payload.slice(1 + consumed..).into() })
            }
            Self::VOTE => take(rest).map(|VoteV1 { term, node, committed }| Self::Vote(Vote { term, node, committed })),
            Self::TRUNCATE => take(rest).map(|TruncateV1 { from }| Self::Truncate { from }),
            Self::PURGE => take(rest).map(|IdV1 { term, index }| Self::Purge { upto: EntryId { term, index } }),
            _ => None,
        }
    }
}

fn put(value: &impl Encode, out: &mut Vec<u8>) {
    bincode::encode_into_std_write(value, out, config::standard()).expect("plain numbers always encode");
}

fn take<T: Decode<()>>(bytes: &[u8]) -> Option<T> {
    let (value, consumed) = bincode::decode_from_slice(bytes, config::standard()).ok()?;
    (consumed == bytes.len()).then_some(value)
}

/// The next link of the chain.
fn link(previous: u128, lsn: Lsn, kind: u8, payload: &[u8]) -> u128 {
    let mut link = [0u8; 16 + 8 + 1 + 16];
    link[..16].copy_from_slice(&previous.to_le_bytes());
    link[16..24].copy_from_slice(&lsn.to_le_bytes());
    link[24] = kind;
    link[25..].copy_from_slice(&xxh3_128(payload).to_le_bytes());
    xxh3_128(&link)
}

/// Puts the CRC into an encoded record.
pub(crate) fn seal(record: &mut [u8], salt: u32) {
    let crc = crc32c::crc32c_append(salt, &record[4..]);
    record[..4].copy_from_slice(&crc.to_le_bytes());
}

/// A record as found in a segment, its CRC verified.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) lsn: Lsn,
    pub(crate) chain: u128,
    pub(crate) kind: u8,
    pub(crate) payload: Bytes,
}

impl Found {
    /// The bytes that the record takes.
    pub(crate) fn len(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// Whether it is the record that follows `previous` in the chain.
    pub(crate) fn follows(&self, previous: u128) -> bool {
        self.chain == link(previous, self.lsn, self.kind, &self.payload)
    }
}

/// Why there is no record at some place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRecord {
    /// Nothing was written here.
    Blank,
    /// Something is here, and it is no record of this segment.
    Invalid,
}

/// Reads the record at an offset.
pub(crate) fn read(bytes: &Bytes, offset: usize, salt: u32) -> Result<Found, NoRecord> {
    let rest = bytes.get(offset..).unwrap_or_default();
    let Some(header) = rest.first_chunk::<HEADER_BYTES>() else {
        return Err(if rest.iter().all(|byte| *byte == 0) { NoRecord::Blank } else { NoRecord::Invalid });
    };
    if header.iter().all(|byte| *byte == 0) {
        return Err(NoRecord::Blank);
    }
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let len = number(4) as usize;
    let record = rest.get(..HEADER_BYTES.saturating_add(len)).ok_or(NoRecord::Invalid)?;
    if crc32c::crc32c_append(salt, &record[4..]) != number(0) && !hodei_state::armed!("bug::checksum-unchecked") {
        return Err(NoRecord::Invalid);
    }
    Ok(Found {
        lsn: u64::from_le_bytes(header[8..16].try_into().expect("eight bytes")),
        chain: u128::from_le_bytes(header[16..32].try_into().expect("sixteen bytes")),
        kind: header[32],
        payload: bytes.slice(offset + HEADER_BYTES..offset + HEADER_BYTES + len),
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    const SALT: u32 = 0x0102_0304;

    fn encoded(record: &Record, lsn: Lsn, previous: u128) -> (Bytes, u128) {
        let mut bytes = Vec::new();
        let chain = record.encode(lsn, previous, &mut bytes);
        seal(&mut bytes, SALT);
        (bytes.into(), chain)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Written by the first version; they must decode for ever.
    #[test]
    fn bytes_on_disk_never_change() {
        let id = EntryId { term: 2, index: 300 };
        let append = Record::Append { id, body: Body::new(b"he", Bytes::from_static(b"llo")) };
        let golden = [
            (append, "b60bbbfc0a00000001000000000000005141dedf2d7c1d0d2efb06906295b3aa010102fb2c0168656c6c6f"),
            (
                Record::Vote(Vote { term: 7, node: 3, committed: true }),
                "d0273e630400000002000000000000002ceab13714fcaea0ff65ff05c6aa08ff0201070301",
            ),
            (
                Record::Truncate { from: 251 },
                "728420a8040000000300000000000000d2245e093b241df314c13796cf1937800301fbfb00",
            ),
            (
                Record::Purge { upto: id },
                "3326a30e05000000040000000000000072987db7c192ac509dea07829ed872c7040102fb2c01",
            ),
        ];
        let mut chain = 5;
        for (position, (record, expected)) in golden.into_iter().enumerate() {
            let lsn = position as u64 + 1;
            let (bytes, next) = encoded(&record, lsn, chain);
            assert_eq!(hex(&bytes), expected, "{record:?}");
            let found = read(&bytes, 0, SALT).unwrap();
            assert!(found.follows(chain) && found.lsn == lsn && found.len() == bytes.len());
            assert_eq!(flat(&Record::decode(found.kind, &found.payload).unwrap()), flat(&record));
            chain = next;
        }
    }

    /// With the body in one piece.
    fn flat(record: &Record) -> Record {
        match record {
            Record::Append { id, body } => Record::Append { id: *id, body: body.to_bytes().into() },
            other => other.clone(),
        }
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let id = (any::<u64>(), any::<u64>()).prop_map(|(term, index)| EntryId { term, index });
        let body = (collection::vec(any::<u8>(), 0..32), collection::vec(any::<u8>(), 0..300))
            .prop_map(|(head, tail)| Body::new(&head, tail.into()));
        prop_oneof![
            (id.clone(), body).prop_map(|(id, body)| Record::Append { id, body }),
            (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(term, node, committed)| Record::Vote(Vote {
                term,
                node,
                committed
            })),
            any::<u64>().prop_map(|from| Record::Truncate { from }),
            id.prop_map(|upto| Record::Purge { upto }),
        ]
    }

    proptest! {
        #[test]
        fn records_come_back(record in any_record(), lsn in 1u64.., previous: u128) {
            let (bytes, chain) = encoded(&record, lsn, previous);
            let found = read(&bytes, 0, SALT).unwrap();
            prop_assert_eq!((found.lsn, found.chain, found.len()), (lsn, chain, bytes.len()));
            prop_assert!(found.follows(previous) && !found.follows(previous.wrapping_add(1)));
            prop_assert_eq!(flat(&Record::decode(found.kind, &found.payload).unwrap()), flat(&record));
            prop_assert!(record.weight() >= bytes.len(), "the estimate is not too small");
        }

        #[test]
        fn a_flipped_bit_or_another_salt_is_noticed(record in any_record(), bit: usize, salt: u32) {
            let (bytes, _) = encoded(&record, 9, 1);
            prop_assert!(salt == SALT || read(&bytes, 0, salt).is_err());
            let mut flipped = bytes.to_vec();
            let bit = bit % (flipped.len() * 8);
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(read(&flipped.into(), 0, SALT).unwrap_err(), NoRecord::Invalid);
        }

        #[test]
        fn noise_never_panics(bytes in collection::vec(any::<u8>(), 0..200), offset in 0usize..250, kind: u8) {
            let bytes = Bytes::from(bytes);
            let _ = read(&bytes, offset, SALT);
            let _ = Record::decode(kind, &bytes);
        }
    }
}
