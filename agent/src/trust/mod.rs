//! Who the agent is and whom it believes: tokens, the pinned CA while it enrols, the identity that it then holds, and
//! TLS with both.

pub mod enrol;
pub mod identity;
pub mod pin;
pub mod tls;
pub mod token;
