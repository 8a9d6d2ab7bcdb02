//! The gateway: this node's part in the life of the workers whose streams it holds.
//!
//! One owner task per stream ([`session`]) compares what the replicated state says of its worker's attempts with what
//! the agent says it has ([`reconcile`], a pure function) and sends what is needed to bring the two together. It is
//! woken by applied changes, but never told what they were: a snapshot skips events, so that everything is derived from
//! the state anew. What the agent reports becomes a command; what it prints goes to the log plane ([`attempt`]).
//! Heartbeats go to the leader and its grants come back ([`relay`]), past the state and past the disk.
//!
//! Nothing here decides: the scheduler assigns, `apply` judges by session and fence, the leader extends leases.

pub mod attempt;
pub mod reconcile;
pub mod relay;
pub mod session;

pub use relay::Relay;
