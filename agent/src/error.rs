//! How the agent ends when it cannot go on: one clear line for the operator and an exit code.

use std::fmt;

/// Bad usage or bad input.
pub const BAD_INPUT: u8 = 2;
/// Nobody reachable within the deadline.
pub const UNREACHABLE: u8 = 69;
/// Not allowed.
pub const NOT_ALLOWED: u8 = 77;

/// Why the process ends, and with which code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The process' exit code.
    pub code: u8,
    /// One line, without a full stop.
    pub message: String,
}

impl Exit {
    /// Bad usage, bad input, or something that belongs to another cluster.
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self { code: BAD_INPUT, message: message.into() }
    }

    /// The cluster refuses this agent.
    pub fn not_allowed(message: impl Into<String>) -> Self {
        Self { code: NOT_ALLOWED, message: message.into() }
    }

    /// No node answered in time.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self { code: UNREACHABLE, message: message.into() }
    }

    /// Anything else.
    pub fn other(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Exit {}
