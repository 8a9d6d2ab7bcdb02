//! The outside witness of what runs when: jobs that hold a lock of their own and write down that they live.
//!
//! A job of [`Witness::script`] takes a lock that everything it makes inherits, appends `START`, a `BEAT` every 10 ms and
//! `END` to a file, each with its attempt, its fence and the time, and prints numbered lines. An attempt that finds the lock
//! taken writes `OVERLAP`: some process of an earlier one still lives.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::wait;

/// How long a witness may keep silent: attempts may have to wait for the lease of an earlier one.
const SOON: Duration = Duration::from_secs(60);

/// One job's lock and file.
#[derive(Debug)]
pub struct Witness {
    file: PathBuf,
}

/// What an attempt wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// `START`, `BEAT`, `END` or `OVERLAP`.
    pub what: String,
    /// The attempt's number.
    pub attempt: u32,
    /// Its fence.
    pub fence: u64,
    /// Seconds since the epoch.
    pub at: f64,
}

impl Witness {
    /// In `dir`; `name` is the job's.
    #[must_use]
    pub fn new(dir: &Path, name: &str) -> Self {
        Self { file: dir.join(format!("{name}.witness")) }
    }

    /// A bash script that goes on while `condition` holds, then exits with `code`.
    #[must_use]
    pub fn script(&self, condition: &str, code: u8) -> String {
        let file = self.file.display();
        format!(
            "say() {{ echo \"$1 $HODEI_ATTEMPT $HODEI_FENCE $EPOCHREALTIME\" >>{file}; }}
             exec 9>{file}.lock; flock --nonblock 9 || {{ say OVERLAP; exit 99; }}
             trap '' TERM HUP
             say START; i=0
             while {condition}; do say BEAT; echo line $i; i=$((i+1)); sleep 0.01; done
             say END; echo done $i; exit {code}"
        )
    }

    /// Everything that was written so far.
    ///
    /// # Panics
    /// If something else was written.
    #[must_use]
    pub fn marks(&self) -> Vec<Mark> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mark = |line: &str| {
            let [what, attempt, fence, at] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
            let what = what.to_owned();
            Some(Mark { what, attempt: attempt.parse().ok()?, fence: fence.parse().ok()?, at: at.parse().ok()? })
        };
        whole.lines().map(|line| mark(line).unwrap_or_else(|| panic!("not a mark: {line}"))).collect()
    }

    /// When something was written last.
    fn last(&self) -> f64 {
        self.marks().last().map_or(0.0, |mark| mark.at)
    }

    /// When an attempt last wrote something.
    #[must_use]
    pub fn last_of(&self, attempt: u32) -> f64 {
        self.marks().iter().filter(|mark| mark.attempt == attempt).map(|mark| mark.at).fold(0.0, f64::max)
    }

    /// When an attempt first wrote something; infinitely late where it has not.
    #[must_use]
    pub fn first_of(&self, attempt: u32) -> f64 {
        let marks = self.marks();
        marks.iter().filter(|mark| mark.attempt == attempt).map(|mark| mark.at).fold(f64::INFINITY, f64::min)
    }

    /// Attempts that have begun.
    #[must_use]
    pub fn starts(&self) -> usize {
        self.marks().iter().filter(|mark| mark.what == "START").count()
    }

    /// Waits until so many attempts have begun.
    pub async fn attempts(&self, count: usize) {
        let what = format!("attempt {count} begins");
        wait::until_true(&what, SOON, || async { self.starts() >= count }).await;
    }

    /// Waits until something new is written.
    pub async fn beats(&self) {
        let before = self.last();
        wait::until_true("the job goes on", SOON, || async { self.last() > before }).await;
    }

    /// Checks that attempts came one after the other, under fences that grow.
    ///
    /// # Panics
    /// If they did not.
    pub fn check(&self) {
        let marks = self.marks();
        let fences = marks.is_sorted_by(|a, b| a.attempt <= b.attempt && a.fence <= b.fence && a.at <= b.at + 1e-3);
        let overlap = marks.iter().any(|mark| mark.what == "OVERLAP");
        assert!(fences && !overlap, "two attempts at once: {}", self.file.display());
    }
}

/// The lines `line 0` … `line n-1` and `done n`, exactly once each.
///
/// # Panics
/// If anything else is there.
pub fn check_lines(out: &[u8]) {
    let text = String::from_utf8_lossy(out);
    let (lines, last) = text.trim_end().rsplit_once('\n').unwrap_or(("", text.trim_end()));
    let count: usize =
        last.strip_prefix("done ").and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("ends: {last}"));
    let expected: Vec<_> = (0..count).map(|at| format!("line {at}")).collect();
    let lines: Vec<_> = lines.lines().collect();
    assert!(lines == expected, "{} lines of {count}: {:?}", lines.len(), lines.last());
}

/// Seconds since the epoch, as jobs tell them.
///
/// # Panics
/// Never, after 1970.
#[must_use]
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_secs_f64()
}
