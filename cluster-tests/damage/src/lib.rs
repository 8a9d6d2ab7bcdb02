//! The damage matrix: every file that a node or an agent relies on × what may happen to it on a disk × many places.
//!
//! One fault at a time, to a process that does not run. What comes of it, when the file is opened by the very code that
//! opens it in the product, is one of four ([`Verdict`]); silently wrong is the one that fails. [`FILES`] lists the files
//! with the test that goes through each. A test makes its cases with [`cases`], judges them, and ends with
//! [`Matrix::finish`], which prints
//!
//! ```text
//! damage matrix of WHAT: N cases over M files: R repaired, F refused, H harmless, 0 silent
//! ```
//!
//! `HODEI_DAMAGE=all` takes every place of a file up to [`ALL_PLACES`] of them; otherwise it is [`PLACES`], from a seed.

mod files;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

pub use files::{FILES, Of, Row, Shown, Stale, row};

/// Bytes that a disk or file system loses together.
pub const PAGE: usize = 4096;
/// Places in a file for each kind of damage, where it has so many.
pub const PLACES: usize = 52;
/// The same where all are wanted.
pub const ALL_PLACES: usize = 8192;

/// What is done to a file's content at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// One bit is another one.
    Flip,
    /// The rest is gone.
    Truncate,
    /// A page is zeros; in a file of no more than a page, what follows.
    Zero,
}

impl How {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Flip, Self::Truncate, Self::Zero];

    /// As histories and figures call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flip => "flip",
            Self::Truncate => "truncate",
            Self::Zero => "zero",
        }
    }

    /// Damages `bytes` at `at`, which must lie in them; `bit` (0 to 7) matters for a flip only.
    ///
    /// # Panics
    /// `at` lies outside.
    pub fn apply(self, bytes: &mut Vec<u8>, at: usize, bit: u8) {
        match self {
            Self::Flip => bytes[at] ^= 1 << (bit % 8),
            Self::Truncate => bytes.truncate(at),
            Self::Zero if bytes.len() <= PAGE => bytes[at..].fill(0),
            Self::Zero => {
                let page = at / PAGE * PAGE;
                let end = bytes.len().min(page + PAGE);
                bytes[page..end].fill(0);
            }
        }
    }
}

/// An older copy put back, as figures call it.
pub const STALE: &str = "stale";

/// How much of a file was ever written: it may have been filled with zeros beforehand. At least 1 of a file that is not empty.
#[must_use]
pub fn written(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len().min(1), |last| last + 1)
}

/// Copies a directory with all that is below it, to be harmed in place of the original.
///
/// # Panics
/// If something cannot be read or written.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory can be made");
    for entry in fs::read_dir(from).expect("a directory can be read") {
        let entry = entry.expect("a directory can be read");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("an entry has a type").is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("a file can be copied");
        }
    }
}

/// Numbers from a seed (SplitMix64); good enough to choose places with.
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Seeded {
    /// The same seed, the same numbers.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        // Less than `bound`, which came from a usize.
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// Whether every place is wanted.
#[must_use]
pub fn everything() -> bool {
    std::env::var("HODEI_DAMAGE").is_ok_and(|wanted| wanted == "all")
}

/// Where to damage a file: all places of a short one; of others the first, the last and some between, from the seed.
#[must_use]
pub fn places(content: &[u8], seed: u64) -> Vec<usize> {
    let (end, wanted) = (written(content), if everything() { ALL_PLACES } else { PLACES });
    if end <= wanted {
        return (0..end).collect();
    }
    let mut random = Seeded::new(seed);
    let mut places = BTreeSet::from([0, end - 1]);
    while places.len() < wanted {
        places.insert(random.below(end));
    }
    places.into_iter().collect()
}

/// One damaged file.
#[derive(Clone, Debug)]
pub struct Case {
    /// `flip`, `truncate`, `zero` or `stale`.
    pub how: &'static str,
    /// The place, or which older copy.
    pub at: usize,
    /// What the file holds now.
    pub bytes: Vec<u8>,
}

/// Every damage to a file: at each of [`places`], and each older copy. What would change nothing is left out.
pub fn cases<'a>(content: &'a [u8], older: &'a [Vec<u8>], seed: u64) -> impl Iterator<Item = Case> + 'a {
    let places = places(content, seed);
    let mut random = Seeded::new(!seed);
    let damaged = How::ALL.into_iter().flat_map(move |how| places.clone().into_iter().map(move |at| (how, at)));
    let damaged = damaged.map(move |(how, at)| {
        let mut bytes = content.to_vec();
        how.apply(&mut bytes, at, u8::try_from(random.below(8)).unwrap_or_default());
        Case { how: how.name(), at, bytes }
    });
    let stale = older.iter().enumerate().map(|(at, old)| Case { how: STALE, at, bytes: old.clone() });
    damaged.chain(stale).filter(move |case| case.bytes != content)
}

/// What came of a damage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What was lost was made again: the same is served as before.
    Repaired,
    /// An error that says where; nothing is served of it.
    Refused,
    /// The damaged bytes mean nothing: the same is served, and nothing had to be made again.
    Harmless,
    /// Something else is served than was written, and nobody is told.
    Silent(String),
}

/// Counts what came of all cases of one test.
#[derive(Debug)]
pub struct Matrix {
    shown_by: &'static str,
    counts: BTreeMap<(&'static str, &'static str), [usize; 3]>,
    silent: Vec<String>,
}

impl Matrix {
    /// For the test in `shown_by`, as [`FILES`] names it.
    #[must_use]
    pub fn new(shown_by: &'static str) -> Self {
        Self { shown_by, counts: BTreeMap::new(), silent: Vec::new() }
    }

    /// Counts a case of a file that [`FILES`] has as `row`.
    pub fn count(&mut self, row: &Row, case: &Case, verdict: Verdict) {
        let counts = self.counts.entry((row.path, case.how)).or_default();
        match verdict {
            Verdict::Repaired => counts[0] += 1,
            Verdict::Refused => counts[1] += 1,
            Verdict::Harmless => counts[2] += 1,
            Verdict::Silent(what) => self.silent.push(format!("{} of {} at {}: {what}", case.how, row.path, case.at)),
        }
    }

    /// Prints the figures.
    ///
    /// # Panics
    /// Something was silent, a file that this test is to show was not damaged in each way, or another one was.
    pub fn finish(self, of: Of) {
        for ((path, how), [repaired, refused, harmless]) in &self.counts {
            println!("{path} × {how}: {repaired} repaired, {refused} refused, {harmless} harmless");
        }
        let files: BTreeSet<_> = self.counts.keys().map(|(path, _)| *path).collect();
        let [repaired, refused, harmless] =
            self.counts.values().fold([0; 3], |sum, counts| [0, 1, 2].map(|kind| sum[kind] + counts[kind]));
        let (silent, cases) = (self.silent.len(), repaired + refused + harmless + self.silent.len());
        println!(
            "damage matrix of {}: {cases} cases over {} files: {repaired} repaired, {refused} refused, {harmless} harmless, \
             {silent} silent",
            self.shown_by,
            files.len()
        );
        assert!(self.silent.is_empty(), "silently wrong: {:#?}", &self.silent[..silent.min(20)]);
        println!("bar: damages of files: {cases}\nbar: silent damages: {silent}");
        let rows = FILES.iter().filter(|row| row.of == of && row.shown == Shown::By(self.shown_by));
        let wanted: BTreeSet<_> = rows.clone().map(|row| row.path).collect();
        assert_eq!(files, wanted, "left: what was damaged; right: what this test is to show");
        for row in rows {
            let done = |how: &str| self.counts.keys().any(|key| *key == (row.path, how));
            let missing: Vec<_> = How::ALL.iter().map(|how| how.name()).filter(|how| !done(how)).collect();
            assert!(missing.is_empty(), "{} was not damaged by {missing:?}", row.path);
            let tried = matches!(row.stale, Stale::Tried(_));
            assert_eq!(done(STALE), tried, "{}: an older copy: {:?}", row.path, row.stale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_damaged_in_each_way_and_what_is_as_before_is_left_out() {
        let content = b"abc\0def\0\0".to_vec();
        let all: Vec<_> = cases(&content, &[b"old".to_vec(), content.clone()], 1).collect();
        let of = |how: &str| all.iter().filter(|case| case.how == how).count();
        assert_eq!([of("flip"), of("truncate"), of("zero"), of(STALE)], [7, 7, 7, 1]);
        assert!(all.iter().all(|case| case.bytes != content));
        let long = vec![7; 3 * PAGE];
        assert_eq!(places(&long, 1).len(), if everything() { ALL_PLACES } else { PLACES });
        assert_eq!(places(&long, 1), places(&long, 1));
        let zeroed = cases(&long, &[], 1).find(|case| case.how == "zero").map(|case| case.bytes);
        assert_eq!(zeroed.map(|bytes| bytes.iter().filter(|byte| **byte == 0).count()), Some(PAGE));
        assert_eq!(written(&[0, 0]), 1);
        assert_eq!(written(&[]), 0);
    }

    #[test]
    #[should_panic(expected = "silently wrong")]
    fn a_silent_damage_fails() {
        let mut matrix = Matrix::new("raft/tests/state_damage.rs");
        let case = Case { how: "flip", at: 3, bytes: Vec::new() };
        matrix.count(row(Of::Node, "db/db").expect("it has a row"), &case, Verdict::Silent("another state".to_owned()));
        matrix.finish(Of::Node);
    }
}
