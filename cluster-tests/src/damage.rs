//! Harm to what a node that does not run has on its disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use hodei_damage::How;
use rand::{Rng as _, rngs::SmallRng};

/// How many places are tried.
const TRIES: u32 = 100;

/// Damages a file somewhere in what has been written to it; returns where.
///
/// # Errors
/// It cannot be read or written, or stays as it is whatever is tried.
pub fn harm(path: &Path, how: How, rng: &mut SmallRng) -> io::Result<u64> {
    let whole = fs::read(path)?;
    for _ in 0..TRIES {
        let (mut bytes, at) = (whole.clone(), rng.random_range(0..hodei_damage::written(&whole).max(1)));
        if !bytes.is_empty() {
            how.apply(&mut bytes, at, rng.random_range(0..8));
        }
        // Zeros where zeros were are no damage.
        if bytes != whole {
            fs::write(path, bytes)?;
            return Ok(at as u64);
        }
    }
    Err(io::Error::other("there is nothing in it to damage"))
}

/// The page of a segment's header, in bytes.
const HEADER: usize = 4096;

/// Flips a bit in the middle of what the oldest segment of the log holds: below the high-water mark.
///
/// # Panics
/// If there is no log, or it cannot be written.
pub fn flip_a_bit_of_the_log(data: &Path) {
    flip_a_bit_behind(data, HEADER);
}

/// Flips a bit half way between a place in the oldest segment of the log, as told by [`end_of_the_log`], and its end:
/// what was written before is untouched, and something behind is not.
///
/// # Panics
/// If there is no log, or it cannot be written.
pub fn flip_a_bit_behind(data: &Path, start: usize) {
    let oldest = oldest_segment(data);
    let mut bytes = fs::read(&oldest).expect("a segment can be read");
    let end = hodei_damage::written(&bytes);
    let at = (start.midpoint(end)..end).find(|at| bytes[*at] != 0).expect("what was written last is not zero");
    bytes[at] ^= 1;
    fs::write(oldest, bytes).expect("a segment can be written");
}

/// How far the oldest segment of the log is written, in bytes.
///
/// # Panics
/// If there is no log.
#[must_use]
pub fn end_of_the_log(data: &Path) -> usize {
    hodei_damage::written(&fs::read(oldest_segment(data)).expect("a segment can be read"))
}

fn oldest_segment(data: &Path) -> PathBuf {
    let entries = fs::read_dir(data.join("wal")).expect("a node has a log").flatten().map(|entry| entry.path());
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "wal");
    entries.filter(is_segment).min().expect("a log has a segment")
}
