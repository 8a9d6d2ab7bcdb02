//! The log plane.
pub mod entries;
pub mod file;
pub mod frame;
pub mod tally;
pub mod writer;
