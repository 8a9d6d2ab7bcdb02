//! The replicated state machine: `hodei_state::State` in memory, everything on disk behind it.
//!
//! openraft hands over committed entries in order. [`Machine::apply`] decodes the commands of an entry, takes large
//! bodies out of them, applies them under the write lock, leaves the changed rows to the write-behind thread, publishes
//! the new applied index, wakes subscribers and answers the proposer. It does no I/O and waits for nobody.
//!
//! On disk, each rebuildable from the next: `db/` (sled, written behind), `snapshots/` (files), the log. Payload files
//! belong to both `db/` and `snapshots/`. The ordering rules that make a power cut harmless:
//!
//! - a sled batch or a snapshot is written only when the log is durable through it ([`LogDurable`]);
//! - payload files are durable before the batch or snapshot that refers to them;
//! - the log is purged only behind a durable snapshot (openraft's doing);
//! - an applied log id in sled that the log does not know makes sled worthless ([`recover`]).
//!
//! Deliberately missing: partial reads from disk (the state fits in memory), and repair of a diverged state
//! (see [`crate::handle`]: such a node ends itself).

mod behind;
mod files;
mod pages;
mod payloads;
pub(crate) mod recover;
mod replica;
pub(crate) mod salvage;
mod sled_store;
pub(crate) mod snapshot;
mod topics;

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, Stream, TryStreamExt, future::BoxFuture};
use hodei_state::{RowKey, State, command::Envelope, ids::Millis, outcome::Outcome};
use openraft::{
    EntryPayload, OptionalSend,
    alias::{SnapshotMetaOf, SnapshotOf, StoredMembershipOf},
    storage::{EntryResponder, RaftStateMachine},
};

use self::payloads::{Building, Payloads};
pub(crate) use self::{
    behind::{Stage, WriteBehind},
    files::sync_dir,
    payloads::{PayloadDigest, Pins, digest_of, hex, write_payload},
    replica::{Held, Replica},
    snapshot::{Builder, SnapshotFile, Snapshots},
};
pub use self::{payloads::INLINE_LIMIT, topics::Topic};
use crate::{
    codec,
    log_store::Durable,
    seam::{Fs, blocking},
    types::{Batch, Entry, LogId, TypeConfig},
};

/// Waits until the log is durable through a committed entry.
pub(crate) trait Durability: Send + Sync {
    /// Fails only when the log closes before.
    fn through(&self, id: LogId) -> BoxFuture<'_, io::Result<()>>;
    /// Everything that was submitted to the log before, truncations too.
    fn barrier(&self) -> BoxFuture<'_, io::Result<()>>;
}

impl<F: Fs> Durability for Durable<F> {
    fn through(&self, id: LogId) -> BoxFuture<'_, io::Result<()>> {
        self.wait(id).boxed()
    }

    fn barrier(&self) -> BoxFuture<'_, io::Result<()>> {
        Durable::barrier(self).boxed()
    }
}

/// The log's durability, whatever file system it is on.
pub(crate) type LogDurable = Arc<dyn Durability>;

/// What openraft drives. The only writer of the [`Replica`].
pub(crate) struct Machine {
    replica: Arc<Replica>,
    snapshots: Arc<Snapshots>,
    stage: Stage,
    log: LogDurable,
}

impl Machine {
    pub(crate) fn new(replica: Arc<Replica>, snapshots: Arc<Snapshots>, stage: Stage, log: LogDurable) -> Self {
        Self { replica, snapshots, stage, log }
    }

    fn apply_entry(&self, entry: Entry) -> io::Result<Vec<Outcome>> {
        let log_id = entry.log_id;
        let (outcomes, changed, bytes) = match entry.payload {
            EntryPayload::Blank => (Vec::new(), self.change(log_id, 0, |_| ((), Vec::new())).1, 0),
            EntryPayload::Membership(membership) => {
                let membership = Arc::new(StoredMembershipOf::<TypeConfig>::new(Some(log_id), membership));
                let ((), changed) = self.change(log_id, 0, |held| {
                    held.membership = membership;
                    ((), Vec::new())
                });
                (Vec::new(), changed, 0)
            }
            EntryPayload::Normal(batch) => {
                let (outcomes, changed) = self.apply_batch(log_id, &batch)?;
                (outcomes, changed, batch.commands.len() as u64)
            }
        };
        self.replica.publish(log_id, &changed, bytes);
        Ok(outcomes)
    }

    /// Changes the state by one entry of `bytes` and stages the keys that `change` returns, under one lock. Staged before
    /// it is published: whoever sees the index and asks for a snapshot gets its payloads, too.
    fn change<R>(
        &self,
        log_id: LogId,
        bytes: u64,
        change: impl FnOnce(&mut Held) -> (R, Vec<RowKey>),
    ) -> (R, Vec<RowKey>) {
        let log_bytes = self.replica.log_bytes() + bytes;
        self.replica.change(|held| {
            let (result, changed) = change(held);
            held.applied = Some(log_id);
            self.stage.changed(&changed, bytes, log_bytes);
            (result, changed)
        })
    }

    fn apply_batch(&self, log_id: LogId, batch: &Batch) -> io::Result<(Vec<Outcome>, Vec<RowKey>)> {
        let mut commands = Commands::read(log_id, batch)?;
        Ok(self.change(log_id, batch.commands.len() as u64, |held| {
            // Under the lock: a view that refers to a payload can always read it.
            let outcomes = commands.apply(&mut held.state, &self.replica.payloads);
            (outcomes, held.state.take_changes().keys)
        }))
    }

    async fn load(&self, snapshot: SnapshotFile) -> io::Result<(Held, SnapshotFile)> {
        let (snapshots, replica) = (self.snapshots.clone(), self.replica.clone());
        blocking(move || {
            let held = snapshot.load()?;
            if let Some(missing) = snapshot.digests.iter().find(|digest| !replica.payloads.holds(digest)) {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("payload {} is missing", hex(missing))));
            }
            let file = snapshots.adopt(&snapshot.path, held.applied)?;
            Ok((held, file))
        })
        .await?
    }
}

/// An entry's commands, with the large bodies taken out of them.
struct Commands {
    index: u64,
    at: Millis,
    commands: Vec<Envelope>,
    bodies: Vec<Option<(PayloadDigest, Bytes)>>,
}

impl Commands {
    fn read(log_id: LogId, batch: &Batch) -> io::Result<Self> {
        let mut commands = codec::decode_batch(&batch.commands).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: entry {log_id} cannot be read: {error}", crate::error::STATE_UNREADABLE),
            )
        })?;
        let bodies = commands.iter_mut().map(payloads::split).collect();
        Ok(Self { index: log_id.index(), at: batch.at, commands, bodies })
    }

    /// Applies them, and keeps the bodies of jobs that are new.
    fn apply(&mut self, state: &mut State, payloads: &Payloads) -> Vec<Outcome> {
        let outcomes: Vec<Outcome> = (0..)
            .zip(&self.commands)
            .map(|(offset, envelope)| state.apply(self.index, offset, self.at, envelope))
            .collect();
        for (outcome, body) in outcomes.iter().zip(&mut self.bodies) {
            if let (Outcome::Submitted { existing: false, .. }, Some((digest, bytes))) = (outcome, body.take()) {
                payloads.put(digest, bytes);
            }
        }
        outcomes
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembershipOf<TypeConfig>)> {
        Ok(self.replica.with(|held| (held.applied, (*held.membership).clone())))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            hodei_state::failpoint!("apply::before");
            let outcomes = self.apply_entry(entry)?;
            hodei_state::failpoint!("apply::after");
            if let Some(responder) = responder {
                responder.send(outcomes);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let token = self.snapshots.token();
        // Under the lock: what the state refers to now is not collected before it is spared.
        let (held, building) = self.replica.with(|held| {
            let building = Building::new(self.replica.clone(), token, held.state.clone());
            (held.clone(), building)
        });
        Builder {
            held,
            building,
            replica: self.replica.clone(),
            snapshots: self.snapshots.clone(),
            stage: self.stage.clone(),
            log: self.log.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<TypeConfig>, snapshot: SnapshotFile) -> io::Result<()> {
        // A truncation that made room for it must not be forgotten after it.
        self.log.barrier().await?;
        hodei_state::failpoint!("install::before-load");
        let (held, file) = self.load(snapshot).await?;
        if held.applied != meta.last_log_id {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot is of another entry than announced"));
        }
        hodei_state::failpoint!("install::before-replace");
        self.replica.replace(held, || self.stage.replaced());
        hodei_state::failpoint!("install::after");
        self.replica.snapshot_taken(file.len);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>> {
        Ok(self.snapshots.current().map(|(meta, snapshot)| SnapshotOf::<TypeConfig, _> { meta, snapshot }))
    }
}
