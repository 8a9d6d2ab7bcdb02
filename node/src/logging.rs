//! Logs go to standard error; `HODEI_LOG`, or else `RUST_LOG`, says what.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// What is logged by default: what an operator wants to know. A dead peer makes openraft warn many times a second.
const DEFAULT: &str =
    "info,openraft=error,openraft::raft::api::management=off,h2=warn,hyper=warn,rustls=warn,sled=warn";

/// Begins to log. Later calls do nothing.
pub fn start() {
    let given = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let wanted = ["HODEI_LOG", "RUST_LOG"].into_iter().find_map(given);
    let filter = wanted.and_then(|text| EnvFilter::try_new(text).ok()).unwrap_or_else(|| EnvFilter::new(DEFAULT));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .try_init();
    // Fails only where it was started before.
    drop(started);
}
