//! The cluster and its members.

use super::{Context, Result, sessions::without_stream};
use crate::{
    command::{Init, NodeHello, ReplaceNode},
    events::Event,
    flapping::SetAsidePolicy,
    ids::{Caller, Millis, NodeId},
    outcome::{Outcome, Refusal},
    registry::{Cluster, Identity, Member},
    score::Weights,
    state::State,
    validate,
};

/// The first member.
const FIRST_NODE: NodeId = 1;

/// What is known of a node that is to be a member.
pub(super) struct NewNode<'a> {
    pub(super) key: [u8; 32],
    pub(super) address: &'a str,
    pub(super) version: &'a str,
    pub(super) feature_level: u32,
    pub(super) replaces: Option<(NodeId, [u8; 16])>,
}

impl State {
    /// Once: makes the cluster, its first member and its first administrator. The caller is that member, which no
    /// identity vouches for yet.
    pub(super) fn initialise(&mut self, context: Context, init: &Init) -> Result {
        if context.caller != Caller::Node(FIRST_NODE) {
            return Err(Refusal::NotAllowed { caller: context.caller });
        }
        if let Some(cluster) = self.cluster() {
            let same = cluster.id == init.cluster && self.member(FIRST_NODE).is_some_and(|node| node.key == init.key);
            return if same { Ok(Outcome::Unchanged) } else { Err(Refusal::WrongClusterState) };
        }
        validate::node(&init.address, &init.version)?;
        validate::check((1..=2000).contains(&init.ca.len()), "ca", "a certificate of at most 2,000 bytes")?;
        validate::check(init.feature_level > 0, "feature_level", "at least 1")?;
        self.put_cluster(Cluster {
            id: init.cluster,
            ca_bundle: vec![init.ca.clone()],
            feature_level: init.feature_level,
            next_node_id: FIRST_NODE + 1,
            weights: Weights::default(),
            set_aside: SetAsidePolicy::default(),
            recovered_at: None,
        });
        self.add_member(Member {
            id: FIRST_NODE,
            address: init.address.clone(),
            start_counter: 0,
            key: init.key,
            version: init.version.clone(),
            feature_level: init.feature_level,
            joined_at: self.stamp(),
            removed_at: None,
            replaces: None,
            replaced_by: None,
        });
        let (admin, key) = init.admin;
        self.put_identity(Identity { who: Caller::Admin(admin), key, issued_at: self.stamp(), revoked_at: None });
        self.emit(&Event::ClusterInitialised);
        Ok(Outcome::Done)
    }

    /// A further member, under an id that nobody has had.
    pub(super) fn admit(&mut self, new: &NewNode<'_>) -> std::result::Result<NodeId, Refusal> {
        let cluster = self.cluster().cloned().ok_or(Refusal::WrongClusterState)?;
        validate::node(new.address, new.version)?;
        if new.feature_level < cluster.feature_level {
            return Err(Refusal::FeatureLevel { offered: new.feature_level, required: cluster.feature_level });
        }
        let id = cluster.next_node_id;
        self.put_cluster(Cluster { next_node_id: id.saturating_add(1), ..cluster });
        self.add_member(Member {
            id,
            address: new.address.to_owned(),
            start_counter: 0,
            key: new.key,
            version: new.version.to_owned(),
            feature_level: new.feature_level,
            joined_at: self.stamp(),
            removed_at: None,
            replaces: new.replaces,
            replaced_by: None,
        });
        Ok(id)
    }

    /// Once for each member: who has taken its place, does so by the same request only. The old id ends at once; whether
    /// the new one votes is up to the membership, which swaps them.
    pub(super) fn replace_node(&mut self, replace: &ReplaceNode) -> Result {
        let (node, nonce) = (replace.node, replace.nonce);
        let cluster = self.cluster().ok_or(Refusal::WrongClusterState)?.id;
        let old = self.member(node).ok_or(Refusal::UnknownNode { node })?.clone();
        if let Some(new) = old.replaced_by.and_then(|id| self.member(id)) {
            let same = new.key == replace.key && new.replaces == Some((node, nonce));
            let issued = Caller::Node(new.id);
            return if same && !self.is_revoked(issued) {
                Ok(Outcome::Enrolled { issued, cluster })
            } else {
                Err(Refusal::CallerRevoked { caller: Caller::Node(node) })
            };
        }
        // A key that stands for a party already would make two of one.
        validate::check(!self.is_key_known(replace.key), "key", "a key of its own")?;
        let id = self.admit(&NewNode {
            key: replace.key,
            address: &replace.address,
            version: &replace.version,
            feature_level: replace.feature_level,
            replaces: Some((node, nonce)),
        })?;
        self.retire(Member { replaced_by: Some(id), ..old });
        self.emit(&Event::NodeReplaced { node, replacement: id });
        self.detach_workers_of(node);
        Ok(Outcome::Enrolled { issued: Caller::Node(id), cluster })
    }

    /// A member with its identity.
    pub(super) fn add_member(&mut self, member: Member) {
        self.put_identity(Identity {
            who: Caller::Node(member.id),
            key: member.key,
            issued_at: member.joined_at,
            revoked_at: None,
        });
        self.put_member(member);
    }

    /// The newest start of a node says where it is; what an earlier start said, and arrives late, is ignored.
    pub(super) fn node_hello(&mut self, hello: &NodeHello) -> Result {
        let member = self.member(hello.node).ok_or(Refusal::UnknownNode { node: hello.node })?;
        if hello.start_counter <= member.start_counter {
            return Ok(Outcome::Unchanged);
        }
        validate::node(&hello.address, &hello.version)?;
        let required = self.feature_level();
        if hello.feature_level < required {
            return Err(Refusal::FeatureLevel { offered: hello.feature_level, required });
        }
        let mut member = member.clone();
        member.address.clone_from(&hello.address);
        member.version.clone_from(&hello.version);
        member.start_counter = hello.start_counter;
        member.feature_level = hello.feature_level;
        self.put_member(member);
        self.emit(&Event::NodeStarted { node: hello.node });
        Ok(Outcome::Done)
    }

    /// For good: the id is never served nor given out again. Workers whose streams the node held are disconnected,
    /// since it can no longer say so itself.
    pub(super) fn remove_node(&mut self, context: Context, node: NodeId) -> Result {
        let member = self.member(node).ok_or(Refusal::UnknownNode { node })?;
        if member.removed_at.is_some() {
            return Ok(Outcome::Unchanged);
        }
        if self.members().filter(|member| member.removed_at.is_none()).count() <= 1 {
            return Err(Refusal::LastMember);
        }
        self.retire(member.clone());
        self.emit(&Event::NodeRemoved { node, by: context.caller });
        self.detach_workers_of(node);
        Ok(Outcome::Done)
    }

    fn retire(&mut self, member: Member) {
        let now = self.stamp();
        self.revoke(Caller::Node(member.id), now);
        self.put_member(Member { removed_at: Some(now), ..member });
    }

    fn detach_workers_of(&mut self, node: NodeId) {
        let held: Vec<_> = self.workers().filter(|worker| worker.gateway == Some(node)).cloned().collect();
        for worker in held {
            let id = worker.id;
            self.put_worker(without_stream(worker));
            self.emit(&Event::WorkerDetached { worker: id });
        }
    }

    /// Not served any more, neither under this id nor with this key under another one.
    pub(super) fn revoke(&mut self, who: Caller, now: Millis) {
        if let Some(identity) = self.identity(who) {
            let identity = Identity { revoked_at: Some(now), ..identity.clone() };
            self.put_identity(identity);
        }
    }

    /// Raised only, and only once every member that is served can read what it stands for.
    pub(super) fn set_feature_level(&mut self, context: Context, level: u32) -> Result {
        let cluster = self.cluster().ok_or(Refusal::WrongClusterState)?;
        if level <= cluster.feature_level {
            return Ok(Outcome::Unchanged);
        }
        let lowest =
            self.members().filter(|member| member.removed_at.is_none()).map(|member| member.feature_level).min();
        match lowest {
            Some(offered) if offered < level => Err(Refusal::FeatureLevel { offered, required: level }),
            _ => {
                let cluster = Cluster { feature_level: level, ..cluster.clone() };
                self.put_cluster(cluster);
                self.emit(&Event::FeatureLevelRaised { level, by: context.caller });
                Ok(Outcome::Done)
            }
        }
    }
}
