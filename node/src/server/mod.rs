//! What this node serves: the TLS listener ([`listener`]), who may call what ([`table`], enforced per request by
//! [`auth`]), how long a handler may take ([`deadline`]), how streams end ([`drain`]), and plain HTTP for probes
//! ([`http`]).

pub mod auth;
pub mod deadline;
pub mod drain;
pub mod http;
pub mod listener;
pub mod table;
