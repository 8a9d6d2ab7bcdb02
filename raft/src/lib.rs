//! Replicates the state.

pub mod types;
