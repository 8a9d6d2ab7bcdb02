//! Judges of histories: what must hold (S1 to S17), and what must happen (L1 to L8).
//!
//! A checker is a pure function from [`Evidence`] to findings. It knows no cluster and no clock, so that a history read
//! again from files gets the verdict that it got live. A finding says what is wrong and names the lines that show it.
//!
//! | checker | holds |
//! | --- | --- |
//! | [`set`] | S1: an acknowledged job is never lost; S17: what definitely failed never takes effect |
//! | [`automaton`] | S2: only legal transitions, a terminal state never changes; S8: no success after an acknowledged cancel |
//! | [`overlap`] | S3: two attempts of a job never overlap, as their witnesses see it |
//! | [`executed`] | S2, S3: what a job's witness saw agrees with what the cluster says of it |
//! | [`fence`] | S4: a result with a stale fence is never accepted |
//! | [`idempotency`] | S5: one key, one job; another payload is an error |
//! | [`token`] | S6: a one-time token lets in one party; the same nonce again succeeds |
//! | [`wgl`] | S7: each job's status is linearizable |
//! | [`order`] | S7: positions in the log follow real time |
//! | [`logs`] | S9: logs are contiguous, in order and without duplicates; losses are gap records with their count |
//! | [`watch`] | S10: streams of events are filtered, ordered, unique, resumable and complete |
//! | [`raft`] | S11: election safety, log matching, leader completeness, monotonic term, commit, applied |
//! | [`hash`] | S12: equal state hashes at equal applied index |
//! | [`placement`] | S7, S14: an attempt runs where it was scheduled, and all nodes say so |
//! | [`residue`] | S13: nothing without an owner is left over |
//! | [`overcommit`] | S14: no worker is over-committed |
//! | [`identity`] | S15: a removed or revoked identity is never served again |
//! | [`damage`] | S16: a damaged node repairs, quarantines itself or exits; it never serves wrong data |
//! | [`liveness`] | L1 to L8, from the moment at which faults are healed |
//! | [`coverage`] | the run did what it was made for |
//!
//! Verdicts are valid, unknown and invalid, and only valid passes. A checker with nothing to judge is valid, unless the
//! run requires it.

pub mod automaton;
pub mod coverage;
pub mod damage;
mod events;
pub mod executed;
pub mod fence;
pub mod hash;
pub mod idempotency;
pub mod identity;
mod life;
pub mod liveness;
pub mod logs;
pub mod order;
pub mod overcommit;
pub mod overlap;
pub mod placement;
pub mod raft;
pub mod residue;
pub mod set;
mod sights;
pub(crate) mod timeline;
pub mod token;
pub mod watch;
pub mod wgl;

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
};

use crate::history::{At, Evidence, Malformed};

/// How something was judged, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It holds.
    Valid,
    /// Nobody can tell, which is not good enough.
    Unknown,
    /// It does not hold.
    Invalid,
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Valid => "valid",
            Self::Unknown => "unknown",
            Self::Invalid => "INVALID",
        })
    }
}

/// Why something is not valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Unknown or invalid.
    pub verdict: Verdict,
    /// What is wrong, with the lines that show it.
    pub text: String,
}

/// What a checker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The checker's name.
    pub name: &'static str,
    /// What it stands for.
    pub holds: &'static str,
    /// How much there was to judge, in things of its own kind.
    pub judged: usize,
    /// What was found, in the order in which it was found.
    pub findings: Vec<Finding>,
    /// Anything else worth knowing, in a line.
    pub remark: String,
    /// Of what it stands for, that of which there was something to judge.
    pub promises: Vec<&'static str>,
}

impl Report {
    /// The worst of its findings.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Valid)
    }
}

/// A report in the making.
#[derive(Debug)]
pub struct Judge<'a> {
    evidence: &'a Evidence,
    judged: usize,
    findings: Vec<Finding>,
    remark: String,
    parts: Vec<&'static str>,
}

impl Judge<'_> {
    /// Counts things that were judged.
    fn judged(&mut self, more: usize) {
        self.judged += more;
    }

    fn invalid(&mut self, text: impl Into<String>) {
        self.findings.push(Finding { verdict: Verdict::Invalid, text: text.into() });
    }

    fn unknown(&mut self, text: impl Into<String>) {
        self.findings.push(Finding { verdict: Verdict::Unknown, text: text.into() });
    }

    /// In a run that names this promise there must have been such things to judge, too.
    fn lacks(&mut self, promise: &str, what: &str) {
        if self.evidence.run().promises.iter().any(|name| name == promise) {
            self.unknown(format!("{promise}: {what}"));
        }
    }

    fn remark(&mut self, text: impl Into<String>) {
        self.remark = text.into();
    }

    /// Of several things that the checker stands for, this one was judged.
    fn part(&mut self, name: &'static str) {
        self.parts.push(name);
    }

    fn line(&self, at: At) -> String {
        self.evidence.line(at)
    }
}

/// A checker.
#[derive(Clone, Copy, Debug)]
pub struct Checker {
    /// Its name.
    pub name: &'static str,
    /// What it stands for.
    pub holds: &'static str,
    check: fn(&Evidence, &mut Judge<'_>),
}

impl Checker {
    /// Judges.
    #[must_use]
    pub fn check(&self, evidence: &Evidence) -> Report {
        let mut judge = Judge { evidence, judged: 0, findings: Vec::new(), remark: String::new(), parts: Vec::new() };
        (self.check)(evidence, &mut judge);
        if judge.judged == 0 && evidence.run().requires.iter().any(|name| name == self.name) {
            judge.unknown("the run requires this, and there is nothing to judge");
        }
        let Judge { judged, findings, remark, parts, .. } = judge;
        let whole = judged > 0 && parts.is_empty();
        let promises = if whole { self.holds.split(' ').collect() } else { parts };
        Report { name: self.name, holds: self.holds, judged, findings, remark, promises }
    }
}

macro_rules! checkers {
    ($($name:ident: $holds:literal,)*) => {
        &[$(Checker { name: stringify!($name), holds: $holds, check: $name::check },)*]
    };
}

/// All there are.
pub const CHECKERS: &[Checker] = checkers! {
    set: "S1 S17",
    automaton: "S2 S8",
    overlap: "S3",
    executed: "S2 S3",
    fence: "S4",
    idempotency: "S5",
    token: "S6",
    wgl: "S7",
    order: "S7",
    logs: "S9",
    watch: "S10",
    raft: "S11",
    hash: "S12",
    residue: "S13",
    overcommit: "S14",
    placement: "S7 S14",
    identity: "S15",
    damage: "S16",
    liveness: "L1-L8",
    coverage: "run",
};

/// What all checkers say about one history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reports(pub Vec<Report>);

/// Has all checkers judge. Of each promise that the run names there must have been something to judge.
#[must_use]
pub fn check_all(evidence: &Evidence) -> Reports {
    let mut reports = Reports(CHECKERS.iter().map(|checker| checker.check(evidence)).collect());
    let judged: BTreeSet<&str> = reports.0.iter().flat_map(|report| report.promises.iter().copied()).collect();
    let missing = evidence.run().promises.iter().filter(|promise| !judged.contains(promise.as_str()));
    let missing = missing.map(|promise| format!("there was nothing to judge of {promise}"));
    let findings: Vec<_> = missing.map(|text| Finding { verdict: Verdict::Unknown, text }).collect();
    if let Some(coverage) = reports.0.iter_mut().find(|report| report.name == "coverage") {
        coverage.findings.extend(findings);
    }
    reports
}

/// [`check_all`] on what was recorded, and an error with the whole table unless it is valid.
///
/// # Errors
/// If it is no history, or not valid.
pub fn require_valid(evidence: Result<Evidence, Malformed>) -> Result<Reports, String> {
    let reports = check_all(&evidence.map_err(|e| e.to_string())?);
    if reports.verdict() == Verdict::Valid { Ok(reports) } else { Err(reports.to_string()) }
}

impl Reports {
    /// The worst of them.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.0.iter().map(Report::verdict).max().unwrap_or(Verdict::Valid)
    }
}

/// So many findings of a checker are shown.
const SHOWN: usize = 10;

impl Display for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<12} {:<7} {:<8} {:>8}", "checker", "holds", "verdict", "judged")?;
        for report in &self.0 {
            let Report { name, holds, judged, findings, remark, .. } = report;
            let row = format!("{name:<12} {holds:<7} {:<8} {judged:>8}  {remark}", report.verdict());
            writeln!(f, "{}", row.trim_end())?;
            for finding in findings.iter().take(SHOWN) {
                writeln!(f, "    {}: {}", finding.verdict, finding.text)?;
            }
            if findings.len() > SHOWN {
                writeln!(f, "    … and {} more", findings.len() - SHOWN)?;
            }
        }
        write!(f, "{}", self.verdict())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{History, Note, Run};

    #[test]
    fn what_nobody_had_anything_to_judge_of_is_not_shown() {
        let judge = |promises: &[&str]| {
            let history = History::default();
            let promises = promises.iter().map(|&promise| promise.to_owned()).collect();
            history.note(0, "", Note::Run(Run { promises, ..Run::default() }));
            check_all(&history.evidence().expect("it is a history"))
        };
        assert_eq!(judge(&[]).verdict(), Verdict::Valid);
        let reports = judge(&["S8"]);
        assert_eq!(reports.verdict(), Verdict::Unknown);
        assert!(reports.to_string().contains("there was nothing to judge of S8"), "{reports}");
    }
}
