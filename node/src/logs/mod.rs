//! The log plane: what jobs write, on nodes' disks, readable from any node.
//!
//! ```text
//! agent ─batches→ gateway ─append→ LogFile (copy) ─read→ subscribers here
//!                                      └─PullLog→ node that serves ─append→ LogFile (cache) ─read→ its subscribers
//! ```
//!
//! - A **log** is one attempt's entries, numbered by its agent across both streams ([`entries`]).
//! - A **copy** is a node's file of a log ([`mod@file`]): appended by its gateway, synced, kept. Which nodes hold copies is
//!   in the replicated state (segments); the newest segment is where the agent delivers now.
//! - A **cache** is a file that a node without a copy fills by one upstream pull, for all its subscribers of that log.
//! - A **source** ([`source`]) decides for one log on one node which file is read, and moves on to the next holder when
//!   one dies. What has been sent is never sent again: everybody continues from a sequence.
//! - A **subscriber** ([`subscribe`]) always reads a file and waits for its length to grow, so a slow one slows nobody. Where
//!   nothing comes, and this node reaches no majority ([`contact`]) or not the gateway, it is sent to another node.
//!
//! Not here yet: second copies, retention by size, archives.

mod contact;
pub mod entries;
pub mod file;
pub mod frame;
pub mod hub;
pub mod pull;
pub mod source;
pub mod subscribe;
pub mod tally;
mod verdict;
pub mod writer;

#[cfg(test)]
mod tests;
