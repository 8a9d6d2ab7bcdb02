//! The pure core.
pub mod command;
pub mod ids;
pub mod job;
pub mod outcome;
pub mod registry;
pub mod spec;
