//! The other members: where they are ([`book`]), channels to them ([`Peers`]), and who has been heard ([`hello`]).
//!
//! An address is a hint, a name is what is verified: a node is dialled at whatever address the book has for its id, and
//! has to prove that it is `<id>.node.hodei.internal`. Addresses are ordered by the start counter of the node that
//! stated them; the newest wins, whether it comes from the state, from an authenticated Hello or from a peer's answer.

pub mod book;
pub mod hello;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use hodei_raft::Status;
use hodei_state::{State, ids::NodeId};
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::sync::watch;
use tonic::transport::Channel;

use self::book::Book;
use crate::net::{connector, tls};

/// What was last heard of a member.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// When.
    pub at: Instant,
    /// It has not answered since.
    pub lost: bool,
    /// The log index that it had applied.
    pub applied_index: u64,
    /// The version of its binary.
    pub version: String,
}

/// Knows the way to every member.
pub struct Peers {
    me: NodeId,
    tls: watch::Receiver<Arc<ClientConfig>>,
    book: watch::Sender<Book>,
    channels: Mutex<HashMap<NodeId, (String, Channel)>>,
    sightings: Mutex<HashMap<NodeId, Sighting>>,
}

impl Peers {
    /// Begins with what the book says.
    #[must_use]
    pub fn new(me: NodeId, tls: watch::Receiver<Arc<ClientConfig>>, book: Book) -> Self {
        Self { me, tls, book: watch::channel(book).0, channels: Mutex::default(), sightings: Mutex::default() }
    }

    /// The book, and whoever wants to know of its changes.
    #[must_use]
    pub fn book(&self) -> watch::Receiver<Book> {
        self.book.subscribe()
    }

    /// A node said, in its start number `start_counter`, that it is at `address`.
    pub fn learn(&self, node: NodeId, address: &str, start_counter: u64) {
        if node != self.me {
            self.book.send_if_modified(|book| book.learn(node, address, start_counter));
        }
    }

    /// Takes over where the members are by the state. Who is removed is forgotten once Raft goes on without it.
    pub fn follow(&self, state: &State, raft: &Status) {
        for member in state.members() {
            if member.removed_at.is_some() && !raft.counts_in(member.id) {
                self.forget(member.id);
            } else {
                self.learn(member.id, &member.address, member.start_counter);
            }
        }
    }

    /// A removed member is not dialled any more.
    fn forget(&self, node: NodeId) {
        self.book.send_if_modified(|book| book.forget(node));
        self.channels.lock().remove(&node);
        self.sightings.lock().remove(&node);
    }

    /// A member was heard.
    pub fn saw(&self, node: NodeId, applied_index: u64, version: &str) {
        let sighting = Sighting { at: Instant::now(), lost: false, applied_index, version: version.to_owned() };
        self.sightings.lock().insert(node, sighting);
    }

    /// A member has not answered: whatever was heard of it before, nothing says that it is there.
    pub fn missed(&self, node: NodeId) {
        if let Some(sighting) = self.sightings.lock().get_mut(&node) {
            sighting.lost = true;
        }
    }

    /// What was last heard of a member.
    #[must_use]
    pub fn sighting(&self, node: NodeId) -> Option<Sighting> {
        self.sightings.lock().get(&node).cloned()
    }

    /// Whether a member was heard within `span`, and has not failed to answer since.
    #[must_use]
    pub fn heard_within(&self, node: NodeId, span: Duration) -> bool {
        self.sightings.lock().get(&node).is_some_and(|sighting| !sighting.lost && sighting.at.elapsed() <= span)
    }

    /// Those of whom that can be said.
    #[must_use]
    pub fn all_heard_within(&self, span: Duration) -> Vec<NodeId> {
        let sightings = self.sightings.lock();
        let heard = sightings.iter().filter(|(_, sighting)| !sighting.lost && sighting.at.elapsed() <= span);
        heard.map(|(&node, _)| node).collect()
    }

    /// How this node dials its peers.
    #[must_use]
    pub fn tls(&self) -> watch::Receiver<Arc<ClientConfig>> {
        self.tls.clone()
    }

    /// A channel to a member that connects by itself; `None`: its address is not known. A new one once the address
    /// has changed.
    #[must_use]
    pub fn channel_to(&self, node: NodeId) -> Option<Channel> {
        let address = self.book.borrow().address(node)?.to_owned();
        let mut channels = self.channels.lock();
        if let Some((known, channel)) = channels.get(&node)
            && *known == address
        {
            return Some(channel.clone());
        }
        match connector::lazy_channel(&address, &tls::node_name(node), self.tls.clone()) {
            Ok(channel) => {
                channels.insert(node, (address, channel.clone()));
                Some(channel)
            }
            Err(error) => {
                tracing::warn!(node, address, %error, "a member's address is malformed");
                None
            }
        }
    }
}

impl hodei_raft::Dialer for Peers {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        self.channel_to(node)
    }
}
