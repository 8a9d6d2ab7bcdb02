//! What this node serves: the TLS listener, who may call what, and deadlines.

pub mod auth;
pub mod deadline;
