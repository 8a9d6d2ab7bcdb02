//! Loopback addresses that no other cluster on this machine uses.
//!
//! All of 127.0.0.0/8 is this machine. The two middle bytes come from the process id and the last from a counter, so
//! that clusters of tests that run at the same time never meet, and a port below the ephemeral range is never taken by
//! an outgoing connection while its node is down.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// Below Linux's ephemeral range (32768 to 60999).
const PORT: u16 = 7651;

/// Of the last byte: so many addresses a process has.
const ADDRESSES: u32 = 250;

/// An address that nothing listens on, another one at each of so many calls as a process has addresses. A soak that makes
/// cluster after cluster comes back to those of clusters that are gone.
///
/// # Panics
/// If something listens on each of them.
#[must_use]
pub fn fresh() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let [.., high, low] = process::id().to_be_bytes();
    let mut candidates = (0..ADDRESSES).map(|_| {
        let last = 2 + NEXT.fetch_add(1, Ordering::Relaxed) % ADDRESSES;
        SocketAddr::from((Ipv4Addr::new(127, high, low, last as u8), PORT))
    });
    let free = candidates.find(|address| TcpListener::bind(address).is_ok());
    free.unwrap_or_else(|| panic!("something listens on each of this process' {ADDRESSES} addresses"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn addresses_never_run_out_and_come_back_late() {
        let _taken = TcpListener::bind(fresh()).expect("it is free");
        let addresses: Vec<_> = (0..3 * ADDRESSES as usize).map(|_| fresh()).collect();
        let few = &addresses[..ADDRESSES as usize - 1];
        assert_eq!(few.iter().collect::<HashSet<_>>().len(), few.len());
    }
}
