//! Connections that this program makes: TLS on the client's side, for peers and for the command line alike.

pub mod connector;
pub mod stream;
pub mod tls;

/// Metadata of an answer to a person: host:port of every member, separated by commas.
pub const SERVERS_KEY: &str = "hodei-servers";
