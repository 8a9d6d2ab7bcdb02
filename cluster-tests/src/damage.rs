//! Harm to what a node that does not run has on its disk.

use std::{fs, io, path::Path};

use rand::{Rng as _, rngs::SmallRng};

const PAGE: usize = 4096;

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// One bit is another one.
    Flip,
    /// The rest is gone.
    Truncate,
    /// A page is zeros.
    Zero,
}

impl How {
    /// As histories call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Flip => "flip",
            Self::Truncate => "truncate",
            Self::Zero => "zero",
        }
    }
}

/// Damages a file somewhere in what has been written to it; returns where.
///
/// # Errors
/// It cannot be read or written.
pub fn harm(path: &Path, how: How, rng: &mut SmallRng) -> io::Result<u64> {
    let mut bytes = fs::read(path)?;
    // Files are filled with zeros in advance.
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len(), |last| last + 1).max(1);
    let at = rng.random_range(0..written);
    match how {
        How::Flip => bytes[at] ^= 1 << rng.random_range(0..8),
        How::Truncate => bytes.truncate(at),
        How::Zero => {
            let page = at / PAGE * PAGE;
            let end = (page + PAGE).min(bytes.len());
            bytes[page..end].fill(0);
        }
    }
    fs::write(path, bytes)?;
    Ok(at as u64)
}

/// Flips a bit in the middle of what the oldest segment of the log holds: below the high-water mark.
///
/// # Panics
/// If there is no log, or it cannot be written.
pub fn flip_a_bit_of_the_log(data: &Path) {
    let entries = fs::read_dir(data.join("wal")).expect("a node has a log").flatten().map(|entry| entry.path());
    let is_segment = |path: &std::path::PathBuf| path.extension().is_some_and(|kind| kind == "wal");
    let oldest = entries.filter(is_segment).min().expect("a log has a segment");
    let mut bytes = fs::read(&oldest).expect("a segment can be read");
    // The first page is the header's; zeros may be padding.
    let written = bytes.iter().rposition(|byte| *byte != 0).expect("a segment has a header");
    let middle = (4096 + written) / 2;
    let at = (middle..=written).find(|at| bytes[*at] != 0).expect("what was written last is not zero");
    bytes[at] ^= 1;
    fs::write(oldest, bytes).expect("a segment can be written");
}
