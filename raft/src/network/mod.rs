//! Raft between nodes, over gRPC.
//!
//! The client side (`factory.rs`) implements openraft's network: one lazily connected channel per peer, entries over a
//! bidirectional stream (`append.rs`), snapshots in resumable pieces (`transfer.rs`). The server side is [`Service`],
//! which the node mounts behind its authorisation table. Between them travel versioned bytes ([`wire`]) in an envelope
//! that names cluster, sender and receiver (`peers.rs`): a foreign or misdirected message is refused.

mod append;
pub(crate) mod factory;
pub(crate) mod peers;
mod receive;
mod service;
mod transfer;
pub mod wire;

pub use self::{peers::MAX_MESSAGE, service::Service};
