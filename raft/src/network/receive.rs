//! Takes a snapshot from the leader: pieces into a partial file that outlives a broken transfer, payloads into their
//! directory; then everything is verified before openraft installs it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hodei_proto::v1::RaftMessage;
use openraft::alias::SnapshotOf;
use tonic::{Status, Streaming};

use super::wire::{OffsetRequestV1, OffsetResponseV1, SnapshotIdV1, SnapshotPartV1, SnapshotResponseV1};
use crate::{
    codec,
    handle::Handle,
    machine::{PayloadDigest, Pins, SnapshotFile, digest_of, hex},
    seam,
    types::{TypeConfig, Vote},
};

/// A sender that is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(30);
/// No payload is larger.
const PAYLOAD_LIMIT: u64 = 64 << 20;

/// Partial files of snapshots; the name is their identity.
fn partial(handle: &Handle, id: &SnapshotIdV1) -> PathBuf {
    let (index, term) = id.last.map_or((0, 0), |last| (last.index, last.term));
    handle.inner.snapshots.dir().join(format!("{index:020}-{term}-{}-{:08x}.partial", id.len, id.tail))
}

/// How far an earlier transfer of the same snapshot came, and which payloads are not here.
pub(super) async fn offset(handle: &Handle, request: OffsetRequestV1) -> Result<OffsetResponseV1, Status> {
    let path = partial(handle, &request.id);
    let replica = handle.inner.replica.clone();
    blocking(move || {
        let offset = std::fs::metadata(&path).map_or(0, |found| found.len()).min(request.id.len);
        let missing = (0u32..)
            .zip(&request.digests)
            .filter(|(_, digest)| !replica.payloads.holds(digest))
            .map(|(position, _)| position)
            .collect();
        Ok(OffsetResponseV1 { offset, missing })
    })
    .await
}

/// Receives the pieces and has the snapshot installed.
pub(super) async fn snapshot(
    handle: &Handle,
    first: &RaftMessage,
    mut parts: Streaming<RaftMessage>,
) -> Result<SnapshotResponseV1, Status> {
    let SnapshotPartV1::Begin { vote, id, .. } = decode(first)? else {
        return Err(Status::invalid_argument("a snapshot begins with its description"));
    };
    let token = handle.inner.snapshots.token();
    let pins = Arc::new(Pins::new(handle.inner.replica.clone(), token));
    let path = partial(handle, &id);
    let mut receiver = Receiver::open(handle, path.clone(), &id).await?;
    loop {
        let message = tokio::time::timeout(SILENCE, parts.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the sender is silent"))??;
        let Some(message) = message else { break };
        receiver = match decode(&message)? {
            SnapshotPartV1::Begin { .. } => return Err(Status::invalid_argument("a second beginning")),
            SnapshotPartV1::File { offset, crc, bytes } => blocking(move || receiver.file(offset, crc, &bytes)).await?,
            SnapshotPartV1::Payload { digest, offset, len, bytes } => {
                let pins = pins.clone();
                blocking(move || {
                    pins.add([digest]);
                    receiver.payload(digest, offset, len, &bytes)
                })
                .await?
            }
        };
    }
    let (kept, replica) = (pins.clone(), handle.inner.replica.clone());
    let (meta, file) = blocking(move || {
        let (meta, file) = receiver.finish()?;
        kept.add(file.digests.iter().copied());
        // What was here when the sender asked may have been collected since. Then it has to ask once more.
        match file.digests.iter().find(|digest| !replica.payloads.holds(digest)) {
            Some(gone) => Err(io::Error::new(io::ErrorKind::NotFound, format!("payload {} is gone", hex(gone)))),
            None => Ok((meta, file)),
        }
    })
    .await?;
    hodei_state::failpoint!("snapshot::before-install");
    let snapshot = SnapshotOf::<TypeConfig, _> { meta, snapshot: file };
    let installed = handle.inner.raft.install_full_snapshot(Vote::from(vote), snapshot).await;
    let response = installed.map_err(|_| Status::unavailable("the node is stopping"))?;
    // Where it was not installed (a higher vote, or older than what is here) nobody will ask for the rest of it.
    let _ = seam::blocking(move || std::fs::remove_file(&path)).await;
    Ok(SnapshotResponseV1 { vote: response.vote.into() })
}

struct Receiver {
    file: File,
    path: PathBuf,
    at: u64,
    len: u64,
    payloads: PathBuf,
    /// The payload whose pieces are coming.
    payload: Option<(PayloadDigest, Vec<u8>)>,
}

impl Receiver {
    async fn open(handle: &Handle, path: PathBuf, id: &SnapshotIdV1) -> Result<Self, Status> {
        let (dir, payloads) = (handle.inner.snapshots.dir().to_owned(), handle.inner.replica.payloads.dir().to_owned());
        let len = id.len;
        blocking(move || {
            remove_other_partials(&dir, &path)?;
            Self::resume(path, len, payloads)
        })
        .await
    }

    /// Goes on where the file ends.
    fn resume(path: PathBuf, len: u64, payloads: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let at = file.metadata()?.len();
        Ok(Self { file, path, at, len, payloads, payload: None })
    }

    fn file(mut self, offset: u64, crc: u32, bytes: &Bytes) -> io::Result<Self> {
        if offset != self.at || self.at + bytes.len() as u64 > self.len {
            return Err(invalid("a piece that does not fit"));
        }
        if crc32c::crc32c(bytes) != crc {
            return Err(invalid("a damaged piece"));
        }
        self.file.write_all(bytes)?;
        hodei_state::failpoint!("snapshot::receiving");
        self.at += bytes.len() as u64;
        Ok(self)
    }

    fn payload(mut self, digest: PayloadDigest, offset: u64, len: u64, bytes: &Bytes) -> io::Result<Self> {
        if len > PAYLOAD_LIMIT {
            return Err(invalid("an oversized payload"));
        }
        let (current, mut content) = self.payload.take().unwrap_or((digest, Vec::new()));
        if current != digest || offset != content.len() as u64 || offset + bytes.len() as u64 > len {
            return Err(invalid("a payload's piece that does not fit"));
        }
        content.extend_from_slice(bytes);
        if (content.len() as u64) < len {
            self.payload = Some((digest, content));
            return Ok(self);
        }
        if digest_of(&content) != digest {
            return Err(invalid("a payload that is not what it is named"));
        }
        crate::machine::write_payload(&self.payloads, &digest, &content)?;
        Ok(self)
    }

    /// Everything durable, everything there. A file that is whole and yet damaged is removed: it would never get better.
    fn finish(self) -> io::Result<(openraft::alias::SnapshotMetaOf<TypeConfig>, SnapshotFile)> {
        if self.at != self.len || self.payload.is_some() {
            return Err(invalid("pieces are missing"));
        }
        self.file.sync_all()?;
        crate::machine::sync_dir(&self.payloads)?;
        let opened = SnapshotFile::open(&self.path).and_then(|(meta, file)| file.load().map(|_| (meta, file)));
        if opened.is_err() {
            std::fs::remove_file(&self.path)?;
        }
        opened
    }
}

fn remove_other_partials(dir: &Path, kept: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path != kept && path.extension().is_some_and(|extension| extension == "partial") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn decode(message: &RaftMessage) -> Result<SnapshotPartV1, Status> {
    codec::decode(&message.payload).map_err(|error| Status::invalid_argument(error.to_string()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Status> {
    match seam::blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(Status::data_loss(error.to_string())),
        Ok(Err(error)) => Err(Status::internal(error.to_string())),
        Err(_) => Err(Status::internal("a thread panicked")),
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

#[cfg(test)]
mod tests {
    use hodei_damage::{Case, Matrix, Of, STALE, Verdict, cases, row};
    use hodei_state::{
        State,
        command::{Command, Envelope, Init},
        ids::{Caller, ClusterId, Millis, UserId},
    };

    use super::*;
    use crate::{
        codec::StoredMembershipV1,
        machine::snapshot::format::{self, HeaderV1},
    };

    fn state() -> State {
        let mut state = State::new();
        let init = Init {
            cluster: ClusterId(1),
            ca: vec![1; 600],
            address: "127.0.0.1:50051".to_owned(),
            key: [1; 32],
            version: "0.1.0".to_owned(),
            feature_level: hodei_state::FEATURE_LEVEL,
            admin: (UserId(1), [2; 32]),
        };
        state.apply(1, 0, Millis(7), &Envelope { caller: Caller::Node(1), command: Command::Init(init) });
        state
    }

    /// What comes of a transfer that finds this much of the file.
    fn judge(dir: &Path, whole: &Bytes, hash: u128, case: &Case) -> Verdict {
        let path = dir.join("case.partial");
        std::fs::write(&path, &case.bytes).unwrap();
        let receiver = Receiver::resume(path.clone(), whole.len() as u64, dir.to_owned()).unwrap();
        let rest = whole.slice(case.bytes.len()..);
        let received = receiver.file(case.bytes.len() as u64, crc32c::crc32c(&rest), &rest);
        match received.and_then(Receiver::finish) {
            Err(_) if path.exists() => Verdict::Silent("it stays for the next transfer".to_owned()),
            Err(_) => Verdict::Refused,
            Ok((_, file)) if file.load().unwrap().state.hash() != hash => Verdict::Silent("another state".to_owned()),
            Ok(_) if ["truncate", STALE].contains(&case.how) => Verdict::Repaired,
            Ok(_) => Verdict::Harmless,
        }
    }

    #[test]
    fn damage_to_what_has_come_is_never_installed() {
        let dir = tempfile::tempdir().unwrap();
        let state = state();
        let header =
            HeaderV1 { last: None, membership: StoredMembershipV1::default(), hash: state.hash(), payloads: 0 };
        let path = dir.path().join("whole");
        format::write(File::create(&path).unwrap(), &header, &[], &state).unwrap();
        let whole = Bytes::from(std::fs::read(&path).unwrap());
        let (half, quarter) = (whole.len() / 2, whole.len() / 4);
        let mut matrix = Matrix::new("raft/src/network/receive.rs");
        for case in cases(&whole[..half], &[whole[..quarter].to_vec(), Vec::new()], 7) {
            let row = row(Of::Node, "snapshots/1-1-1-1.partial").unwrap();
            matrix.count(row, &case, judge(dir.path(), &whole, state.hash(), &case));
        }
        matrix.finish(Of::Node);
    }
}
