//! How many bytes are outstanding between two sequences, in little memory.

use std::collections::VecDeque;

/// Records smaller than this are merged with the next.
const GRAIN: u64 = 64 << 10;

/// Bytes that wait for an acknowledgement. They are settled in grains, so the total is never too low.
#[derive(Debug, Default)]
pub struct Ledger {
    records: VecDeque<(u64, u64)>,
    total: u64,
}

impl Ledger {
    /// Entries up to `last` weigh `bytes` more.
    pub fn add(&mut self, last: u64, bytes: u64) {
        self.total += bytes;
        match self.records.back_mut() {
            Some((end, weight)) if *weight < GRAIN => {
                *end = last;
                *weight += bytes;
            }
            _ => self.records.push_back((last, bytes)),
        }
    }

    /// Everything up to `sequence` is acknowledged.
    pub fn settle(&mut self, sequence: u64) {
        while let Some((_, bytes)) = self.records.pop_front_if(|(last, _)| *last <= sequence) {
            self.total -= bytes;
        }
    }

    /// Bytes outstanding.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settles_in_grains_and_never_too_early() {
        let mut ledger = Ledger::default();
        ledger.add(10, GRAIN);
        ledger.add(11, 100);
        ledger.add(12, 100);
        ledger.settle(9);
        assert_eq!(ledger.total(), GRAIN + 200);
        ledger.settle(11);
        assert_eq!(ledger.total(), 200);
        ledger.settle(12);
        assert_eq!(ledger.total(), 0);
    }
}
