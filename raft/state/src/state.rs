//! The whole state: tables, the indexes derived from them, and what readers ask of it.

use std::collections::BTreeSet;

use crate::{
    events::{Compacted, EventPosition, Events, Occurred},
    flapping::SetAsidePolicy,
    ids::{Caller, JobId, Millis, NodeId, SecretId, TokenId, WorkerId},
    index::{Counts, Indexes},
    job::{Attempt, EndedBy, Job, Segment},
    queue::Order,
    registry::{Cluster, Identity, Member, Token, TokenUse, Tombstone, Worker, WorkerState},
    rows::{Meta, RowKey},
    score::Weights,
    secret::{Secret, SecretPart, SecretUse},
    spec::{Body, JobSpec},
    specs::Specs,
    table::{Dirty, Table},
};

/// The replicated state. A clone shares everything with the original and costs O(number of tables), provided that
/// changes were taken before: those not yet taken are copied.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) meta: Table<Meta>,
    pub(crate) cluster: Table<Cluster>,
    pub(crate) members: Table<Member>,
    pub(crate) identities: Table<Identity>,
    pub(crate) tokens: Table<Token>,
    pub(crate) token_uses: Table<TokenUse>,
    pub(crate) jobs: Table<Job>,
    pub(crate) specs: Specs,
    pub(crate) attempts: Table<Attempt>,
    pub(crate) segments: Table<Segment>,
    pub(crate) workers: Table<Worker>,
    pub(crate) tombstones: Table<Tombstone>,
    pub(crate) secrets: Table<Secret>,
    pub(crate) secret_parts: Table<SecretPart>,
    pub(crate) secret_uses: Table<SecretUse>,
    pub(crate) events: Events,
    pub(crate) indexes: Indexes,
    pub(crate) dirty: Dirty,
}

/// What [`State::take_changes`] yields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In key order.
    pub keys: Vec<RowKey>,
}

impl State {
    /// The state of a cluster that is not initialised.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The keys of rows written or removed since the last call, in key order: what the write-behind has to look at and
    /// what wakes subscribers.
    pub fn take_changes(&mut self) -> Changes {
        Changes { keys: std::mem::take(&mut self.dirty).into_iter().collect() }
    }

    /// All rows in key order, encoded: what a snapshot holds.
    pub fn rows(&self) -> impl Iterator<Item = (RowKey, Vec<u8>)> + '_ {
        self.rows_from(RowKey::Meta)
    }

    /// One row, encoded.
    #[must_use]
    pub fn row(&self, key: RowKey) -> Option<Vec<u8>> {
        self.rows_from(key).next().filter(|(found, _)| *found == key).map(|(_, bytes)| bytes)
    }

    /// The rows from `from` on, itself included, in key order, encoded: what the write-behind stores.
    pub fn rows_from(&self, from: RowKey) -> impl Iterator<Item = (RowKey, Vec<u8>)> + '_ {
        (self.meta.encoded_from(from))
            .chain(self.cluster.encoded_from(from))
            .chain(self.members.encoded_from(from))
            .chain(self.identities.encoded_from(from))
            .chain(self.tokens.encoded_from(from))
            .chain(self.token_uses.encoded_from(from))
            .chain(self.jobs.encoded_from(from))
            .chain(self.specs.encoded_from(from))
            .chain(self.attempts.encoded_from(from))
            .chain(self.segments.encoded_from(from))
            .chain(self.workers.encoded_from(from))
            .chain(self.tombstones.encoded_from(from))
            .chain(self.secrets.encoded_from(from))
            .chain(self.secret_parts.encoded_from(from))
            .chain(self.secret_uses.encoded_from(from))
            .chain(self.events.encoded_from(from))
    }

    /// The rolling hash: the wrapping sum over all rows of xxh3-128(key, value). Nodes that applied the same log at the
    /// same feature level have the same.
    #[must_use]
    pub fn hash(&self) -> u128 {
        let tables = [
            self.meta.hash(),
            self.cluster.hash(),
            self.members.hash(),
            self.identities.hash(),
            self.tokens.hash(),
            self.token_uses.hash(),
            self.jobs.hash(),
            self.specs.hash(),
            self.attempts.hash(),
            self.segments.hash(),
            self.workers.hash(),
            self.tombstones.hash(),
            self.secrets.hash(),
            self.secret_parts.hash(),
            self.secret_uses.hash(),
            self.events.hash(),
        ];
        tables.into_iter().fold(0, u128::wrapping_add)
    }

    /// The newest stamp applied: the only time that the state knows.
    #[must_use]
    pub fn stamp(&self) -> Millis {
        self.meta.get(&()).map_or(Millis(0), |meta| meta.stamp)
    }

    /// The cluster, once it is initialised.
    #[must_use]
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.get(&())
    }

    /// What every member can read; 0 before the cluster is initialised.
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        self.cluster().map_or(0, |cluster| cluster.feature_level)
    }

    /// What counts when the scheduler chooses among workers.
    #[must_use]
    pub fn weights(&self) -> Weights {
        self.cluster().map_or_else(Weights::default, |cluster| cluster.weights)
    }

    /// When workers that lose what they run are set aside.
    #[must_use]
    pub fn set_aside_policy(&self) -> SetAsidePolicy {
        self.cluster().map_or_else(SetAsidePolicy::default, |cluster| cluster.set_aside)
    }

    /// A job.
    #[must_use]
    pub fn job(&self, job: JobId) -> Option<&Job> {
        self.jobs.get(&job)
    }

    /// A job's spec, decoded for the purpose: ask once and keep it.
    #[must_use]
    pub fn spec(&self, job: JobId) -> Option<JobSpec> {
        self.specs.get(&job)
    }

    /// One attempt of a job.
    #[must_use]
    pub fn attempt(&self, job: JobId, attempt: u32) -> Option<&Attempt> {
        self.attempts.get(&(job, attempt))
    }

    /// The attempts of a job, oldest first.
    pub fn attempts(&self, job: JobId) -> impl DoubleEndedIterator<Item = &Attempt> {
        self.attempts.range((job, 0)..=(job, u32::MAX)).map(|(_, attempt)| attempt)
    }

    /// Jobs that were submitted before a position (log index and offset), newest first.
    pub fn jobs_newest_first(&self, before: Option<(u64, u32)>) -> impl Iterator<Item = &Job> {
        let before = before.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let range = (std::ops::Bound::Unbounded, before);
        self.indexes.submitted.range(range).rev().filter_map(|(_, id)| self.jobs.get(id))
    }

    /// Pending jobs in the queue's order: by priority, then age. Those in backoff come last, in order of its end.
    pub fn pending(&self) -> impl Iterator<Item = &Job> {
        let mut walk = self.indexes.queue.walk();
        let queued = std::iter::from_fn(move || {
            let item = walk.next()?;
            walk.go_on(item);
            Some(item.0)
        });
        let waiting = self.indexes.backoff.iter().filter_map(|&(_, position)| self.submitted_at_position(position));
        queued.filter_map(|order| self.queued_job(order)).chain(waiting)
    }

    pub(crate) fn queued_job(&self, (_, index, offset): Order) -> Option<&Job> {
        self.submitted_at_position((index, offset))
    }

    pub(crate) fn submitted_at_position(&self, position: (u64, u32)) -> Option<&Job> {
        self.indexes.submitted.get(&position).and_then(|id| self.jobs.get(id))
    }

    /// The live attempts that a worker holds, whatever session owns them.
    pub fn live_attempts(&self, worker: WorkerId) -> impl Iterator<Item = &Attempt> {
        self.indexes
            .live
            .range((worker, JobId(0), 0)..=(worker, JobId(u128::MAX), u32::MAX))
            .filter_map(|(&(_, job, attempt), _)| self.attempt(job, attempt))
    }

    /// Live attempts, by worker.
    pub fn all_live_attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.indexes.live.keys().filter_map(|&(_, job, attempt)| self.attempt(job, attempt))
    }

    /// A worker.
    #[must_use]
    pub fn worker(&self, worker: WorkerId) -> Option<&Worker> {
        self.workers.get(&worker)
    }

    /// All workers, those that are gone included.
    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().map(|(_, worker)| worker)
    }

    /// Workers that have not ended for good.
    pub fn known_workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers().filter(|worker| worker.state != WorkerState::Terminated && worker.removed_at.is_none())
    }

    /// A token.
    #[must_use]
    pub fn token(&self, token: TokenId) -> Option<&Token> {
        self.tokens.get(&token)
    }

    /// All tokens, those that are not valid any more included.
    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.tokens.iter().map(|(_, token)| token)
    }

    /// Whom a token has registered.
    pub fn token_uses(&self, token: TokenId) -> impl Iterator<Item = &TokenUse> {
        self.token_uses.range((token, [0; 16])..=(token, [0xff; 16])).map(|(_, used)| used)
    }

    /// A version of a secret, where it is the newest.
    #[must_use]
    pub fn secret(&self, secret: SecretId) -> Option<&Secret> {
        self.secrets.get(&secret)
    }

    /// A secret by its name.
    #[must_use]
    pub fn secret_named(&self, name: &str) -> Option<&Secret> {
        self.indexes.secret_names.get(name).and_then(|id| self.secret(*id))
    }

    /// All secrets, by name.
    pub fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.indexes.secret_names.values().filter_map(|id| self.secret(*id))
    }

    /// What a secret's value was sealed to.
    #[must_use]
    pub fn sealed(&self, secret: SecretId) -> Vec<u8> {
        let parts = self.secret_parts.range((secret, 0)..=(secret, u32::MAX));
        parts.flat_map(|(_, part)| part.bytes.iter().copied()).collect()
    }

    /// What attempts were given, newest first.
    pub fn secret_uses(&self) -> impl Iterator<Item = &SecretUse> {
        self.secret_uses.iter().rev().map(|(_, used)| used)
    }

    /// Who holds now what this node held: itself, or whoever has taken its place since.
    #[must_use]
    pub fn heir(&self, node: NodeId) -> NodeId {
        // Ids grow along the way, so it ends.
        let mut heir = node;
        while let Some(next) = self.member(heir).and_then(|member| member.replaced_by) {
            heir = next;
        }
        heir
    }

    /// A member, removed ones included.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node)
    }

    /// Whether it is one now.
    #[must_use]
    pub fn is_member(&self, node: NodeId) -> bool {
        self.member(node).is_some_and(|member| member.removed_at.is_none())
    }

    /// All members, removed ones included.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().map(|(_, member)| member)
    }

    /// Somebody to whom a certificate was issued.
    #[must_use]
    pub fn identity(&self, who: Caller) -> Option<&Identity> {
        self.identities.get(&who)
    }

    /// Whether an identity must not be served: it is unknown, removed or revoked.
    #[must_use]
    pub fn is_revoked(&self, who: Caller) -> bool {
        self.identity(who).is_none_or(|identity| identity.revoked_at.is_some())
    }

    /// Where an attempt's log lies, in the order of the segments' numbers.
    pub fn segments(&self, job: JobId, attempt: u32) -> impl Iterator<Item = &Segment> {
        self.segments.range((job, attempt, 0)..=(job, attempt, u32::MAX)).map(|(_, segment)| segment)
    }

    /// Attempts of which some of the log lies on this node and, as far as anybody can tell, on no other member: how many,
    /// and some of them. What an earlier holder has, the last one has too; but an agent that is lost may not have been
    /// done with the last one.
    #[must_use]
    pub fn only_holder_of(&self, node: NodeId, some: usize) -> (usize, Vec<(JobId, u32)>) {
        let is_lost = |segment: &Segment| {
            let end = self.attempt(segment.job, segment.attempt).and_then(|attempt| attempt.end.as_ref());
            end.is_some_and(|end| end.by != EndedBy::Result)
        };
        let alone = |segment: &&Segment| {
            let last = segment.holders.last().map(|holder| self.heir(*holder));
            let elsewhere = last.is_some_and(|last| last != node && self.is_member(last)) && !is_lost(segment);
            segment.holders.iter().any(|holder| self.heir(*holder) == node) && !elsewhere
        };
        let segments = self.segments.iter().map(|(_, segment)| segment).filter(|_| self.is_member(node));
        let attempts: BTreeSet<_> = segments.filter(alone).map(|segment| (segment.job, segment.attempt)).collect();
        (attempts.len(), attempts.into_iter().rev().take(some).collect())
    }

    /// The position of the newest event that is not kept any more; what is kept comes after it.
    #[must_use]
    pub fn newest_dropped_event(&self) -> EventPosition {
        self.meta.get(&()).map_or_else(EventPosition::default, |meta| meta.dropped)
    }

    /// The position of the newest event; before all, where there is none.
    #[must_use]
    pub fn newest_event(&self) -> EventPosition {
        self.events.newest().unwrap_or_default()
    }

    /// Events after a position, oldest first, as far as they are applied here.
    ///
    /// # Errors
    /// Some of them are not kept any more.
    pub fn events_after(&self, position: EventPosition) -> Result<impl Iterator<Item = Occurred> + '_, Compacted> {
        let newest_dropped = self.newest_dropped_event();
        if position < newest_dropped {
            return Err(Compacted { newest_dropped });
        }
        Ok(self.events.after(position))
    }

    /// Numbers of jobs and attempts, in O(1).
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.indexes.counts
    }

    /// The earliest end of a backoff.
    #[must_use]
    pub fn next_backoff(&self) -> Option<Millis> {
        self.indexes.backoff.get_min().map(|&(until, _)| until)
    }
}

/// Digests of the payload files that specs refer to, each as often as it is referred to.
pub fn payload_digests(state: &State) -> impl Iterator<Item = [u8; 32]> + '_ {
    state.specs.values().filter_map(|spec| match spec.body {
        Body::Payload { digest, .. } => Some(digest),
        Body::Inline(_) => None,
    })
}
