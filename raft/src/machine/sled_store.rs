//! The state on disk between restarts: one sled tree, written behind, rebuilt on any doubt.
//!
//! sled's `flush` does not reach the platter and sled opens damaged files without a word. So every value carries its own
//! checksum, the rows together must give the hash that the meta row names, and the database file is synced by
//! ourselves after each flush. What does not fit is thrown away: snapshot and log have everything.
//!
//! A key is `m` for the meta row or `r` and the row's key; a value is a version byte, CRC32C over key and value, value.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use hodei_state::{RowKey, State};
use serde::{Deserialize, Serialize};

use super::{files, replica::Held};
use crate::codec::{self, DecodeError, LogIdV1, StoredMembershipV1};

const META: &[u8] = b"m";
const ROW: u8 = b'r';
const ROW_VERSION: u8 = 1;
/// A batch of the initial fill after a snapshot.
const FILL_ROWS: usize = 10_000;

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

/// Rows to write: the newest value per key, `None` to remove.
pub(crate) type Rows = Vec<(Vec<u8>, Option<Vec<u8>>)>;

pub(crate) struct SledStore {
    db: sled::Db,
    dir: PathBuf,
    /// The database file, opened by ourselves: the only handle through which a sync is a promise.
    file: File,
}

impl SledStore {
    /// Opens the store and reads the state in it; a store in doubt is thrown away and comes back empty.
    pub(crate) fn open(dir: &Path, cache: u64) -> io::Result<(Self, Option<(Held, u64)>)> {
        let doubt = match Self::try_open(dir, cache) {
            Ok(store) => match store.load() {
                Ok(loaded) => return Ok((store, loaded)),
                Err(doubt) => doubt,
            },
            Err(doubt) => doubt,
        };
        tracing::warn!(%doubt, dir = %dir.display(), "the stored state is in doubt; it is rebuilt from snapshot and log");
        Ok((Self::recreate(dir, cache)?, None))
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
        Ok(Self { db, dir: dir.to_owned(), file })
    }

    fn load(&self) -> io::Result<Option<(Held, u64)>> {
        let Some(meta) = self.db.get(META).map_err(into_io)? else {
            if self.db.is_empty() {
                return Ok(None);
            }
            return Err(doubt("rows without a meta row"));
        };
        let meta: MetaV1 = codec::decode(unseal(META, &meta)?)?;
        let mut failed = None;
        let rows = self.db.scan_prefix([ROW]).map_while(|row| match row.map_err(into_io).and_then(open_row) {
            Ok(row) => Some(row),
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        let state = State::from_rows(rows);
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

    /// One atomic batch, durable on return. Blocking.
    pub(crate) fn write(&self, rows: &Rows, meta: &MetaV1) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        add_rows(&mut batch, rows);
        batch.insert(META, seal(META, &codec::encode(meta)));
        self.db.apply_batch(batch).map_err(into_io)?;
        self.sync()
    }

    /// Replaces everything. Not atomic: a crash in between leaves rows without their meta row, which is doubt enough.
    pub(crate) fn replace(&self, rows: &Rows, meta: &MetaV1) -> io::Result<()> {
        self.db.remove(META).map_err(into_io)?;
        self.sync()?;
        self.db.clear().map_err(into_io)?;
        for rows in rows.chunks(FILL_ROWS) {
            let mut batch = sled::Batch::default();
            add_rows(&mut batch, rows);
            self.db.apply_batch(batch).map_err(into_io)?;
        }
        self.write(&Rows::new(), meta)
    }

    fn sync(&self) -> io::Result<()> {
        self.db.flush().map_err(into_io)?;
        self.file.sync_all()?;
        // A new file under `blobs/` or a snapshot of sled's own index changes the directory.
        files::sync_dir(&self.dir)
    }
}

fn add_rows(batch: &mut sled::Batch, rows: &[(Vec<u8>, Option<Vec<u8>>)]) {
    for (key, value) in rows {
        let key = row_key(key);
        match value {
            Some(value) => batch.insert(key.as_slice(), seal(&key, value)),
            None => batch.remove(key),
        }
    }
}

fn row_key(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(ROW);
    out.extend_from_slice(key);
    out
}

fn open_row((key, value): (sled::IVec, sled::IVec)) -> io::Result<(RowKey, Vec<u8>)> {
    let value = unseal(&key, &value)?.to_vec();
    let key = RowKey::from_bytes(&key[1..]).ok_or_else(|| doubt("a key that is none"))?;
    Ok((key, value))
}

/// Version, CRC32C over key and value, value.
pub(crate) fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + value.len());
    out.push(ROW_VERSION);
    out.extend_from_slice(&checksum(key, value).to_le_bytes());
    out.extend_from_slice(value);
    out
}

/// The inverse of [`seal`].
pub(crate) fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let (&version, rest) = sealed.split_first().ok_or(DecodeError::Empty)?;
    if version != ROW_VERSION {
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
        let (store, loaded) = SledStore::open(&path, cache).unwrap();
        assert!(loaded.is_none());
        let state = State::new();
        let rows: Rows = state.rows().map(|(key, value)| (key.to_bytes(), Some(value))).collect();
        let meta = MetaV1 { hash: state.hash(), log_bytes: 9, ..MetaV1::default() };
        store.write(&rows, &meta).unwrap();
        drop(store);
        let (store, loaded) = SledStore::open(&path, cache).unwrap();
        let (held, log_bytes) = loaded.unwrap();
        assert_eq!((held.state.hash(), log_bytes), (state.hash(), 9));
        store.replace(&rows, &meta).unwrap();
        // A hash that the rows do not add up to: thrown away.
        store.write(&Rows::new(), &MetaV1 { hash: state.hash() ^ 1, ..meta }).unwrap();
        drop(store);
        let (_, loaded) = SledStore::open(&path, cache).unwrap();
        assert!(loaded.is_none());
    }
}
