//! The pure core.

pub mod codec;
pub mod command;
pub mod ids;
pub mod job;
pub mod outcome;
pub mod registry;
pub mod spec;
pub mod validate;

mod apply;
mod fit;
mod index;
mod queue;
mod restore;
mod rows;
mod select;
mod state;
mod store;
mod table;

pub use index::Counts;
pub use restore::CorruptRow;
pub use rows::RowKey;
pub use select::SelectError;
pub use state::{Changes, State, payload_digests};
