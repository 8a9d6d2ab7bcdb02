//! The state on disk between restarts: one sled tree, written behind, rebuilt on any doubt.
//!
//! sled's `flush` does not reach the platter and sled opens damaged files without a word. So every value carries its own
//! checksum, the rows together must give the hash that the meta row names, and the database file is synced by
//! ourselves after each flush. What does not fit is thrown away: snapshot and log have everything.
//!
//! A key is `m` for the meta row, or `p` and the lower bound of a page of rows ([`super::pages`]); a value is a version
//! byte, CRC32C over key and value, value.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use hodei_state::{RowKey, State};
use serde::{Deserialize, Serialize};

use super::{
    files,
    pages::{self, Pages, Rewrite, Row},
    replica::Held,
};
use crate::codec::{self, DecodeError, LogIdV1, StoredMembershipV1};

const META: &[u8] = b"m";
const PAGE: u8 = b'p';
const VALUE_VERSION: u8 = 1;
/// Pages in a batch of the initial fill after a snapshot.
const FILL_PAGES: usize = 1_000;

/// What the rows stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MetaV1 {
    pub(crate) applied: Option<LogIdV1>,
    pub(crate) membership: StoredMembershipV1,
    /// Of the state that the rows make up.
    pub(crate) hash: u128,
    /// Log applied since the last snapshot.
    pub(crate) log_bytes: u64,
}

pub(crate) struct SledStore {
    db: sled::Db,
    pages: Pages,
    dir: PathBuf,
    /// The database file, opened by ourselves: the only handle through which a sync is a promise.
    file: File,
}

impl SledStore {
    /// Opens the store and reads the state in it; a store in doubt is thrown away and comes back empty.
    pub(crate) fn open(dir: &Path, cache: u64) -> io::Result<(Self, Option<(Held, u64)>)> {
        let doubt = match Self::try_open(dir, cache) {
            Ok(mut store) => match store.load() {
                Ok(loaded) => return Ok((store, loaded)),
                Err(doubt) => doubt,
            },
            Err(doubt) => doubt,
        };
        tracing::warn!(%doubt, dir = %dir.display(), "the stored state is in doubt; it is rebuilt from snapshot and log");
        Ok((Self::recreate(dir, cache)?, None))
    }

    /// Reads the state in a store, and leaves a store in doubt as it is. `None`: there is none.
    pub(crate) fn read(dir: &Path, cache: u64) -> io::Result<Option<Held>> {
        if !dir.exists() {
            return Ok(None);
        }
        let loaded = Self::try_open(dir, cache)?.load()?;
        Ok(loaded.map(|(held, _)| held))
    }

    /// Throws away what is there.
    pub(crate) fn recreate(dir: &Path, cache: u64) -> io::Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        Self::try_open(dir, cache)
    }

    fn try_open(dir: &Path, cache: u64) -> io::Result<Self> {
        files::create_dir(dir)?;
        let db = sled::Config::new()
            .path(dir)
            .cache_capacity(cache)
            // Flushes are ours, on our own thread.
            .flush_every_ms(None)
            .print_profile_on_drop(false)
            .open()
            .map_err(into_io)?;
        db.flush().map_err(into_io)?;
        let file = File::options().read(true).write(true).open(dir.join("db"))?;
        file.sync_all()?;
        files::sync_dir(dir)?;
        let blobs = dir.join("blobs");
        if blobs.exists() {
            files::sync_dir(&blobs)?;
        }
        Ok(Self { db, pages: Pages::default(), dir: dir.to_owned(), file })
    }

    fn load(&mut self) -> io::Result<Option<(Held, u64)>> {
        let Some(meta) = self.db.get(META).map_err(into_io)? else {
            if self.db.is_empty() {
                return Ok(None);
            }
            return Err(doubt("rows without a meta row"));
        };
        let meta: MetaV1 = codec::decode(unseal(META, &meta)?)?;
        let mut failed = None;
        let pages = &mut self.pages;
        let rows = self.db.scan_prefix([PAGE]).map_while(|page| match page.map_err(into_io).and_then(open_page) {
            Ok((bound, rows)) => {
                pages.found(bound);
                Some(rows)
            }
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        let state = State::from_rows(rows.flatten());
        if let Some(error) = failed {
            return Err(error);
        }
        let state = state.map_err(|error| doubt(&error.to_string()))?;
        if state.hash() != meta.hash {
            return Err(doubt("the rows do not add up to their hash"));
        }
        let membership = Arc::new(meta.membership.into_stored()?);
        let held = Held { state, applied: meta.applied.map(Into::into), membership };
        Ok(Some((held, meta.log_bytes)))
    }

    /// Writes the rows that `changed` names, in key order, as they are in `state`: one atomic batch, durable on return.
    /// Blocking.
    pub(crate) fn write(&mut self, state: State, changed: &[RowKey], meta: &MetaV1) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        self.pages.rewrite(&state, changed, |rewrite| add(&mut batch, &rewrite));
        // As long as there is a copy, every change of the original copies some of it.
        drop(state);
        self.finish(batch, meta)
    }

    /// Replaces everything. Not atomic: a crash in between leaves rows without their meta row, which is doubt enough.
    pub(crate) fn replace(&mut self, state: &State, meta: &MetaV1) -> io::Result<()> {
        self.db.remove(META).map_err(into_io)?;
        self.sync()?;
        self.db.clear().map_err(into_io)?;
        let (mut batch, mut count, mut failed) = (sled::Batch::default(), 0, None);
        self.pages.fill(state, |rewrite| {
            add(&mut batch, &rewrite);
            count += 1;
            if count == FILL_PAGES {
                count = 0;
                failed = failed.take().or(self.db.apply_batch(std::mem::take(&mut batch)).err());
            }
        });
        if let Some(error) = failed {
            return Err(into_io(error));
        }
        self.finish(batch, meta)
    }

    fn finish(&self, mut batch: sled::Batch, meta: &MetaV1) -> io::Result<()> {
        batch.insert(META, seal(META, &codec::encode(meta)));
        self.db.apply_batch(batch).map_err(into_io)?;
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        self.db.flush().map_err(into_io)?;
        self.file.sync_all()?;
        // A new file under `blobs/` or a snapshot of sled's own index changes the directory.
        files::sync_dir(&self.dir)
    }
}

fn add(batch: &mut sled::Batch, Rewrite { bound, page }: &Rewrite) {
    let mut key = vec![PAGE];
    key.extend_from_slice(&bound.to_bytes());
    match page {
        Some(page) => batch.insert(key.as_slice(), seal(&key, page)),
        None => batch.remove(key),
    }
}

fn open_page((key, value): (sled::IVec, sled::IVec)) -> io::Result<(RowKey, Vec<Row>)> {
    let rows = pages::rows(unseal(&key, &value)?)?;
    let bound = RowKey::from_bytes(&key[1..]).ok_or_else(|| doubt("a key that is none"))?;
    Ok((bound, rows))
}

/// Version, CRC32C over key and value, value.
pub(crate) fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + value.len());
    out.push(VALUE_VERSION);
    out.extend_from_slice(&checksum(key, value).to_le_bytes());
    out.extend_from_slice(value);
    out
}

/// The inverse of [`seal`].
pub(crate) fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let (&version, rest) = sealed.split_first().ok_or(DecodeError::Empty)?;
    if version != VALUE_VERSION {
        return Err(DecodeError::Version(version));
    }
    let (crc, value) = rest.split_first_chunk::<4>().ok_or_else(|| DecodeError::Malformed("no checksum".to_owned()))?;
    if u32::from_le_bytes(*crc) != checksum(key, value) {
        return Err(DecodeError::Malformed("checksum mismatch".to_owned()));
    }
    Ok(value)
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}

fn doubt(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

fn into_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use hodei_state::{
        command::{Command, Envelope},
        ids::{Caller, Millis},
    };

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(hex(&seal(b"rkey", b"value")), "01e004827c76616c7565");
        let meta = MetaV1 {
            applied: Some(LogIdV1 { term: 3, index: 300 }),
            membership: StoredMembershipV1::default(),
            hash: 0x0102,
            log_bytes: 7,
        };
        assert_eq!(hex(&codec::encode(&meta)), "010103fb2c01000000fb020107");
    }

    #[test]
    fn a_row_under_another_key_or_with_another_bit_is_refused() {
        let sealed = seal(b"key", b"value");
        assert_eq!(unseal(b"key", &sealed).unwrap(), b"value");
        assert!(unseal(b"kez", &sealed).is_err());
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut damaged = sealed.clone();
                damaged[at] ^= 1 << bit;
                assert!(unseal(b"key", &damaged).is_err(), "byte {at} bit {bit}");
            }
        }
        assert!(unseal(b"key", &sealed[..4]).is_err());
    }

    #[test]
    fn what_was_written_is_found_again_and_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let cache = 1 << 20;
        let (mut store, loaded) = SledStore::open(&path, cache).unwrap();
        assert!(loaded.is_none());
        let mut state = State::new();
        state.apply(1, 0, Millis(7), &Envelope { caller: Caller::Node(1), command: Command::RemoveNode { node: 9 } });
        let changed = state.take_changes().keys;
        assert_eq!(changed, [RowKey::Meta]);
        let meta = MetaV1 { hash: state.hash(), log_bytes: 9, ..MetaV1::default() };
        store.write(state.clone(), &changed, &meta).unwrap();
        drop(store);
        let (mut store, loaded) = SledStore::open(&path, cache).unwrap();
        let (held, log_bytes) = loaded.unwrap();
        assert_eq!((held.state.hash(), log_bytes), (state.hash(), 9));
        store.replace(&state, &meta).unwrap();
        // A hash that the rows do not add up to: thrown away.
        store.write(state.clone(), &[], &MetaV1 { hash: state.hash() ^ 1, ..meta }).unwrap();
        drop(store);
        let (_, loaded) = SledStore::open(&path, cache).unwrap();
        assert!(loaded.is_none());
    }
}
