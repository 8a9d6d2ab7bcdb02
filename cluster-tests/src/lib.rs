//! Real processes under faults.
//!
//! A [`Cluster`] is a set of `hodei-node` and `hodei-agent` processes made the way an operator makes them: `init`,
//! one-time tokens, `join`, mTLS. A test drives it through the same two doors as a user: the command line ([`Cli`])
//! and persistent gRPC clients ([`Client`]). What is done to it on
//! purpose is the [`nemesis`]'s: to processes ([`Proc`]), disks ([`disk`]), links between hosts ([`netns`]), clocks, files,
//! members and agents.
//!
//! - Every wait has a deadline and waits for a condition ([`wait`]); nothing here sleeps instead. A run gives
//!   everybody the time to settle that is promised, and judges what is seen after it.
//! - Every cluster has addresses of its own, on loopback ([`net`]) or in namespaces, so that tests may run beside each other.
//! - Whatever a test started dies with it: on drop, and by the kernel's parent-death signal if the test itself is killed.
//! - A failing test keeps its directory and prints where it is; a passing one leaves nothing.
//!
//! What happens goes into a [`history`], and [`check`] judges it: pure functions from records to verdicts, live and again
//! from the files of a run (`recheck`).
//!
//! What is missing on purpose: no mocks, no in-process nodes. Tests judge the product by its command line and its protos; what
//! damages files and looks for leftovers knows where the product keeps what, and nothing of its insides.

pub mod bench;
pub mod binaries;
pub mod check;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod damage;
pub mod disk;
pub mod failpoints;
pub mod groups;
pub mod history;
pub mod nemesis;
pub mod net;
pub mod netns;
pub mod proc;
pub mod processes;
pub mod report;
pub mod run;
pub mod schedule;
pub mod wait;
pub mod witness;
pub mod workload;

pub use cli::{Cli, Output};
pub use client::Client;
pub use cluster::{Agent, Cluster, Node};
pub use proc::Proc;
pub use witness::Witness;
