//! Where the other members are: `peers.toml`.

use std::collections::BTreeMap;

use hodei_state::ids::NodeId;
use serde::{Deserialize, Serialize};

/// Addresses by node id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Book {
    /// Keyed by the id in decimal, since TOML has no other keys.
    #[serde(default)]
    members: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    address: String,
    /// Of the node, when it said so; 0: hearsay.
    start_counter: u64,
}

impl Book {
    /// Hearsay: the members as somebody else knows them, without `me`.
    #[must_use]
    pub fn of<'a>(members: impl IntoIterator<Item = (&'a NodeId, &'a String)>, me: NodeId) -> Self {
        let mut book = Self::default();
        for (&node, address) in members {
            if node != me {
                book.learn(node, address, 0);
            }
        }
        book
    }

    /// Notes an address unless a newer one is known. Returns whether anything changed.
    pub fn learn(&mut self, node: NodeId, address: &str, start_counter: u64) -> bool {
        let entry = Entry { address: address.to_owned(), start_counter };
        match self.members.get(&node.to_string()) {
            // Of two statements of the same start the first stands; hearsay never replaces anything.
            Some(known) if start_counter <= known.start_counter => false,
            _ => {
                self.members.insert(node.to_string(), entry);
                true
            }
        }
    }

    /// Returns whether the node was known.
    pub fn forget(&mut self, node: NodeId) -> bool {
        self.members.remove(&node.to_string()).is_some()
    }

    /// Where a node is.
    #[must_use]
    pub fn address(&self, node: NodeId) -> Option<&str> {
        self.members.get(&node.to_string()).map(|entry| entry.address.as_str())
    }

    /// All nodes with their addresses and start counters.
    pub fn entries(&self) -> impl Iterator<Item = (NodeId, &str, u64)> {
        self.members
            .iter()
            .filter_map(|(node, entry)| Some((node.parse().ok()?, entry.address.as_str(), entry.start_counter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_start_says_where_a_node_is() {
        let mut book = Book::default();
        assert!(book.learn(2, "a:1", 0));
        assert!(!book.learn(2, "b:1", 0), "hearsay does not replace hearsay");
        assert!(book.learn(2, "c:1", 3));
        assert!(!book.learn(2, "d:1", 3));
        assert!(!book.learn(2, "d:1", 2));
        assert_eq!(book.address(2), Some("c:1"));
        let text = toml::to_string(&book).unwrap();
        assert_eq!(toml::from_str::<Book>(&text).unwrap(), book);
        assert!(book.forget(2) && book.address(2).is_none());
    }
}
