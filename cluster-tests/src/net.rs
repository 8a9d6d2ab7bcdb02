//! Loopback addresses that no other cluster on this machine uses.
//!
//! All of 127.0.0.0/8 is this machine. The two middle bytes come from the process id and the last from a counter, so
//! that clusters of tests that run at the same time never meet, and a port below the ephemeral range is never taken by
//! an outgoing connection while its node is down.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process,
    sync::atomic::{AtomicU8, Ordering},
};

/// Below Linux's ephemeral range (32768 to 60999).
const PORT: u16 = 7651;

/// An address that nothing listens on, different at each call within this process.
///
/// # Panics
/// If the process has used up its 250 addresses.
#[must_use]
pub fn fresh() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(2);
    loop {
        let last = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(last < 252, "no loopback address left in this process");
        let [.., high, low] = process::id().to_be_bytes();
        let address = SocketAddr::from((Ipv4Addr::new(127, high, low, last), PORT));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
