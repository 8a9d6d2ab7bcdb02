//! The one place where the wire's messages and the core's types meet, each way.
//!
//! Towards the core everything is checked, and what is wrong is named by the field's path; towards the wire nothing
//! can fail. The core never sees a message, and no handler builds one by hand.

pub mod backlog;
pub mod events;
pub mod explanation;
pub mod from_proto;
pub mod to_proto;

#[cfg(test)]
mod tests;
