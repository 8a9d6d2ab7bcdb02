//! Replicates the state.

pub mod log_store;
pub mod seam;
pub mod types;
pub mod wal;
