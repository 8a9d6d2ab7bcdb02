//! Large bodies of jobs, as content-addressed files beside the state.
//!
//! The command carries the bytes; every replica, by the same rule, takes a body above [`INLINE_LIMIT`] out of it and
//! leaves digest and length ([`split`]). The bytes stay in memory until the write-behind thread, the only one that
//! writes or removes files here, has made them durable, which it does before any batch or snapshot that refers to them.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use hodei_state::{
    State,
    command::{Command, Envelope},
    spec::Body,
};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::{files, replica::Replica};

/// Bodies up to this many bytes stay in their row.
pub const INLINE_LIMIT: usize = hodei_state::validate::MAX_INLINE_BODY;

/// More bytes than this are not left waiting for the disk.
const UNWRITTEN_LIMIT: usize = 256 << 20;

/// SHA-256 of a payload.
pub(crate) type PayloadDigest = [u8; 32];

pub(crate) struct Payloads {
    dir: PathBuf,
    /// Not yet durable.
    unwritten: Mutex<HashMap<PayloadDigest, Bytes>>,
    unwritten_bytes: AtomicUsize,
    /// States of which snapshots are being built.
    building: Mutex<HashMap<u64, State>>,
    /// Referred to by snapshots that are being received.
    pinned: Mutex<Pinned>,
}

#[derive(Default)]
struct Pinned {
    by: HashMap<u64, HashSet<PayloadDigest>>,
    /// Pinned until lately, in a collection that is under way and began before that: what refers to them now may not have
    /// been there when it looked.
    lately: Option<HashSet<PayloadDigest>>,
}

impl Pinned {
    fn contains(&self, digest: &PayloadDigest) -> bool {
        self.by.values().chain(&self.lately).any(|pinned| pinned.contains(digest))
    }
}

impl Payloads {
    pub(crate) fn new(dir: PathBuf) -> Self {
        let (unwritten, unwritten_bytes) = (Mutex::default(), AtomicUsize::new(0));
        Self { dir, unwritten, unwritten_bytes, building: Mutex::default(), pinned: Mutex::default() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps the bytes until they are durable.
    pub(super) fn put(&self, digest: PayloadDigest, bytes: Bytes) {
        let len = bytes.len();
        if self.unwritten.lock().insert(digest, bytes).is_none() {
            self.unwritten_bytes.fetch_add(len, Ordering::Relaxed);
        }
    }

    /// Whether the disk is so far behind that a leader should not take on more.
    pub(crate) fn is_full(&self) -> bool {
        self.unwritten_bytes.load(Ordering::Relaxed) > UNWRITTEN_LIMIT
    }

    pub(super) fn has_unwritten(&self) -> bool {
        !self.unwritten.lock().is_empty()
    }

    /// The bytes of a payload, checked against the digest. Blocking.
    pub(crate) fn read(&self, digest: &PayloadDigest) -> io::Result<Bytes> {
        if let Some(bytes) = self.unwritten.lock().get(digest) {
            return Ok(bytes.clone());
        }
        let bytes = fs::read(self.path(digest))?;
        if &digest_of(&bytes) != digest {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("payload {} is damaged", hex(digest))));
        }
        Ok(bytes.into())
    }

    /// Whether the payload is here and whole. Blocking.
    pub(crate) fn holds(&self, digest: &PayloadDigest) -> bool {
        self.read(digest).is_ok()
    }

    /// Makes everything durable that is not. Blocking; only the write-behind thread.
    pub(super) fn flush(&self) -> io::Result<()> {
        let unwritten: Vec<(PayloadDigest, Bytes)> =
            self.unwritten.lock().iter().map(|(digest, bytes)| (*digest, bytes.clone())).collect();
        if unwritten.is_empty() {
            return Ok(());
        }
        hodei_state::failpoint!("payload::before-write");
        let files = unwritten.iter().map(|(digest, bytes)| (self.path(digest), bytes.as_ref()));
        let missing: Vec<_> = files
            .filter(|(path, bytes)| fs::metadata(path).map_or(true, |found| found.len() != bytes.len() as u64))
            .collect();
        if !hodei_state::armed!("bug::payload-not-written") {
            files::write_all_synced(&self.dir, &missing)?;
        }
        hodei_state::failpoint!("payload::after-write");
        let mut map = self.unwritten.lock();
        for (digest, bytes) in &unwritten {
            map.remove(digest);
            self.unwritten_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes files that nothing refers to; `snapshots`: what the snapshots do. Only the write-behind thread: whatever `apply`
    /// refers to anew while this runs is among the unwritten, and written (again) after it.
    pub(super) fn collect(
        &self,
        replica: &Replica,
        snapshots: impl FnOnce() -> HashSet<PayloadDigest>,
    ) -> io::Result<usize> {
        self.pinned.lock().lately = Some(HashSet::new());
        let removed = self.remove_all_but(&self.referred(replica, snapshots));
        self.pinned.lock().lately = None;
        removed
    }

    /// Decoding all that refers to payloads takes its time: not under the lock of the state, which `apply` waits for.
    fn referred(
        &self,
        replica: &Replica,
        snapshots: impl FnOnce() -> HashSet<PayloadDigest>,
    ) -> HashSet<PayloadDigest> {
        // Together: of what a snapshot is built later, is this state or a newer one.
        let states: Vec<State> =
            replica.with(|held| self.building.lock().values().chain([&held.state]).cloned().collect());
        // After it, so that what was built meanwhile is among them.
        let mut referred = snapshots();
        states.iter().for_each(|state| referred.extend(hodei_state::payload_digests(state)));
        referred
    }

    fn remove_all_but(&self, referred: &HashSet<PayloadDigest>) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let Some(digest) = path.file_name().and_then(|name| name.to_str()).and_then(from_hex) else {
                continue;
            };
            // Held until it is gone: what is pinned and found to be here stays.
            let pinned = self.pinned.lock();
            let spared =
                referred.contains(&digest) || self.unwritten.lock().contains_key(&digest) || pinned.contains(&digest);
            if !spared {
                fs::remove_file(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    pub(crate) fn path(&self, digest: &PayloadDigest) -> PathBuf {
        self.dir.join(hex(digest))
    }
}

/// Spares what a state refers to from collection, as long as it lives.
pub(crate) struct Building {
    replica: Arc<Replica>,
    token: u64,
}

impl Building {
    /// The state is the present one: to be called while the replica is locked. `token`: its own.
    pub(super) fn new(replica: Arc<Replica>, token: u64, state: State) -> Self {
        replica.payloads.building.lock().insert(token, state);
        Self { replica, token }
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        // Whatever it takes to free it, not under the lock.
        let _state = self.replica.payloads.building.lock().remove(&self.token);
    }
}

/// Spares payloads from collection as long as it lives: those of a snapshot that is being received.
pub(crate) struct Pins {
    replica: Arc<Replica>,
    token: u64,
}

impl Pins {
    /// `token`: its own.
    pub(crate) fn new(replica: Arc<Replica>, token: u64) -> Self {
        Self { replica, token }
    }

    /// Those that are here stay here. Blocking: it may have to wait for a file to be removed.
    pub(crate) fn add(&self, digests: impl IntoIterator<Item = PayloadDigest>) {
        self.replica.payloads.pinned.lock().by.entry(self.token).or_default().extend(digests);
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pinned = self.replica.payloads.pinned.lock();
        let digests = pinned.by.remove(&self.token).unwrap_or_default();
        if let Some(lately) = &mut pinned.lately {
            lately.extend(digests);
        }
    }
}

/// Takes a large body out of a command; a pure function of the command, so that every replica does the same.
pub(super) fn split(envelope: &mut Envelope) -> Option<(PayloadDigest, Bytes)> {
    let Command::SubmitJob(submit) = &mut envelope.command else { return None };
    let Body::Inline(body) = &mut submit.spec.body else { return None };
    if body.len() <= INLINE_LIMIT {
        return None;
    }
    let bytes = Bytes::from(std::mem::take(body));
    let digest = digest_of(&bytes);
    submit.spec.body = Body::Payload { digest, len: bytes.len() as u64 };
    Some((digest, bytes))
}

pub(crate) fn digest_of(bytes: &[u8]) -> PayloadDigest {
    Sha256::digest(bytes).into()
}

pub(crate) fn hex(digest: &PayloadDigest) -> String {
    use std::fmt::Write as _;
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}

/// Writes the file of a payload that came with a snapshot; the caller has pinned it and syncs the directory.
pub(crate) fn write_payload(dir: &Path, digest: &PayloadDigest, bytes: &[u8]) -> io::Result<()> {
    files::write_synced(&dir.join(hex(digest)), bytes)
}

fn from_hex(text: &str) -> Option<PayloadDigest> {
    let bytes = text.as_bytes();
    if bytes.len() != 64 {
        return None;
    }
    let mut digest = [0; 32];
    for (at, pair) in bytes.chunks_exact(2).enumerate() {
        let (high, low) = ((pair[0] as char).to_digit(16)?, (pair[1] as char).to_digit(16)?);
        digest[at] = u8::try_from(high * 16 + low).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::{super::replica::Held, *};

    #[test]
    fn what_was_pinned_when_a_collection_began_outlives_it() {
        let dir = tempfile::tempdir().unwrap();
        let replica = Arc::new(Replica::new(Held::default(), Payloads::new(dir.path().to_owned()), 0));
        let digest = digest_of(b"body");
        write_payload(dir.path(), &digest, b"body").unwrap();
        let pins = Pins::new(replica.clone(), 1);
        pins.add([digest]);
        // It is adopted, which pins need not outlive, after the snapshots were looked through.
        let removed = replica.payloads.collect(&replica, || {
            drop(pins);
            HashSet::new()
        });
        assert_eq!((removed.unwrap(), replica.payloads.holds(&digest)), (0, true));
        let removed = replica.payloads.collect(&replica, HashSet::new);
        assert_eq!((removed.unwrap(), replica.payloads.holds(&digest)), (1, false));
    }
}
