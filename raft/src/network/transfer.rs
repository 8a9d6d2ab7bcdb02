//! Sends a snapshot to one follower: asks how far an earlier attempt came, then streams the rest of the file and the
//! payloads that the follower lacks. Each piece must be taken within the time-out; the whole may take as long as it takes.

use std::{os::unix::fs::FileExt, time::Duration};

use bytes::Bytes;
use hodei_proto::v1::RaftMessage;
use hodei_state::ids::NodeId;
use openraft::{
    alias::{SnapshotOf, VoteOf},
    errors::{NetworkError, StreamingError},
    raft::SnapshotResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    factory::rpc_error,
    peers::{CallError, Peers, bare},
    wire::{OffsetRequestV1, OffsetResponseV1, SnapshotIdV1, SnapshotPartV1, SnapshotResponseV1},
};
use crate::{
    codec::{self, StoredMembershipV1},
    machine::{PayloadDigest, SnapshotFile, hex},
    seam::blocking,
    types::TypeConfig,
};

/// Bytes of one piece.
const PIECE: u64 = 1 << 20;
/// Pieces read ahead.
const AHEAD: usize = 4;
/// Bytes at the end of the file that go into its name.
const TAIL: u64 = 4096;

/// How long a reason is waited for after the follower hung up.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// See the module.
pub(super) async fn send(
    peers: &Peers,
    to: NodeId,
    vote: VoteOf<TypeConfig>,
    snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
    patience: Duration,
) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
    let SnapshotOf::<TypeConfig, SnapshotFile> { meta, snapshot: file } = snapshot;
    let tail = read(&file, file.len.saturating_sub(TAIL), TAIL.min(file.len)).await.map_err(|error| failed(&error))?;
    let id = SnapshotIdV1 { last: meta.last_log_id.map(Into::into), len: file.len, tail: crc32c::crc32c(&tail) };
    let question = OffsetRequestV1 { id, digests: file.digests.to_vec() };
    let OffsetResponseV1 { offset, missing } = peers
        .call(to, patience, &question, |mut client, request| async move { client.snapshot_offset(request).await })
        .await
        .map_err(|error| StreamingError::from(rpc_error(error)))?;
    tracing::info!(to, last = ?meta.last_log_id, bytes = file.len, offset, payloads = missing.len(), "sending a snapshot");

    let begin =
        SnapshotPartV1::Begin { vote: vote.into(), id, membership: StoredMembershipV1::from(&meta.last_membership) };
    let (parts, body) = mpsc::channel::<RaftMessage>(AHEAD);
    let begin = peers.envelope(to, codec::encode(&begin).into());
    let mut client = peers.client(to).map_err(|error| StreamingError::from(rpc_error(error)))?;
    let pump = pump(parts, begin, &file, offset.min(file.len), &missing, patience);
    // The answer comes when all is installed; if it comes earlier, it is a refusal, and the pump is dropped.
    let call = async {
        let mut answered = std::pin::pin!(client.snapshot(ReceiverStream::new(body)));
        tokio::select! {
            answer = &mut answered => return answer,
            pumped = pump => if let Err(error) = pumped {
                // The follower's reason, if it gave one, says more than that it hung up.
                let answer = tokio::time::timeout(LAST_WORDS, answered).await;
                return answer.unwrap_or_else(|_| Err(tonic::Status::aborted(error.to_string())));
            },
        }
        tokio::time::timeout(patience, answered)
            .await
            .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("the snapshot is not installed in time")))
    };
    let answer = call.await.map_err(|status| rpc_error(CallError::Status(Box::new(status))))?;
    let SnapshotResponseV1 { vote } =
        codec::decode(&answer.into_inner().payload).map_err(|error| rpc_error(CallError::Decode(error)))?;
    Ok(SnapshotResponse::new(vote.into()))
}

/// Puts all pieces into the call.
async fn pump(
    parts: mpsc::Sender<RaftMessage>,
    begin: RaftMessage,
    file: &SnapshotFile,
    mut offset: u64,
    missing: &[u32],
    patience: Duration,
) -> std::io::Result<()> {
    put(&parts, begin, patience).await?;
    while offset < file.len {
        let bytes = read(file, offset, PIECE.min(file.len - offset)).await?;
        hodei_state::failpoint!("snapshot::before-send");
        let len = bytes.len() as u64;
        let part = SnapshotPartV1::File { offset, crc: crc32c::crc32c(&bytes), bytes };
        put(&parts, bare(codec::encode(&part).into()), patience).await?;
        offset += len;
    }
    for position in missing {
        let digest = file.digests.get(*position as usize).copied();
        let digest = digest.ok_or_else(|| std::io::Error::other("the follower lacks what was not offered"))?;
        let payload = read_payload(file, digest).await?;
        let len = payload.len() as u64;
        let mut at = 0;
        while at < payload.len() {
            let end = payload.len().min(at + PIECE as usize);
            let part = SnapshotPartV1::Payload { digest, offset: at as u64, len, bytes: payload.slice(at..end) };
            put(&parts, bare(codec::encode(&part).into()), patience).await?;
            at = end;
        }
    }
    Ok(())
}

async fn put(parts: &mpsc::Sender<RaftMessage>, message: RaftMessage, patience: Duration) -> std::io::Result<()> {
    match tokio::time::timeout(patience, parts.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(std::io::Error::other("the follower ended the transfer")),
        Err(_) => Err(std::io::Error::other("the follower does not take the snapshot")),
    }
}

async fn read(file: &SnapshotFile, offset: u64, len: u64) -> std::io::Result<Bytes> {
    let file = file.file.clone();
    let len = usize::try_from(len).map_err(std::io::Error::other)?;
    blocking(move || {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    })
    .await?
}

/// Payload files lie beside the snapshots; the digest is checked by the receiver.
async fn read_payload(file: &SnapshotFile, digest: PayloadDigest) -> std::io::Result<Bytes> {
    let snapshots = file.path.parent().and_then(std::path::Path::parent);
    let path = snapshots.map(|dir| dir.join("payloads").join(hex(&digest)));
    let path = path.ok_or_else(|| std::io::Error::other("a snapshot outside of its directory"))?;
    Ok(blocking(move || std::fs::read(path)).await??.into())
}

fn failed(error: &std::io::Error) -> StreamingError<TypeConfig> {
    StreamingError::Network(NetworkError::new(error))
}
