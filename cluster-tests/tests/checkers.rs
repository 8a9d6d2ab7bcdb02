//! Each checker against histories of which it is known what they show.
//!
//! `known_bad/<checker>/*.jsonl` are written by hand. The scenario of each says what its checker must say: `valid`, or
//! `invalid: …` or `unknown: …` with what the finding must contain.
#![allow(clippy::unwrap_used, reason = "these helpers are part of the tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cluster_tests::{
    check::{CHECKERS, Checker, Report, Verdict},
    history::{Evidence, Record},
};

fn known_bad() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/known_bad")
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// What the history of a file must be judged as, and why.
fn expected(evidence: &Evidence) -> (Verdict, String) {
    let scenario = &evidence.run().scenario;
    let (verdict, why) = scenario.split_once(": ").unwrap_or((scenario, ""));
    let verdict = match verdict {
        "valid" => Verdict::Valid,
        "unknown" => Verdict::Unknown,
        "invalid" => Verdict::Invalid,
        other => panic!("{other:?} is no verdict"),
    };
    assert!(verdict == Verdict::Valid || !why.is_empty(), "a rejected history says why");
    (verdict, why.to_owned())
}

fn agrees(report: &Report, verdict: Verdict, why: &str) -> bool {
    let told = report.findings.iter().any(|finding| finding.verdict == verdict && finding.text.contains(why));
    report.verdict() == verdict && report.judged > 0 && (verdict == Verdict::Valid || told)
        || verdict == Verdict::Unknown && report.verdict() == verdict && told
}

/// Returns how many bad histories were rejected.
fn check(checker: &Checker, wrong: &mut Vec<String>) -> usize {
    let mut reasons: Vec<String> = Vec::new();
    let mut good = 0;
    for path in files(&known_bad().join(checker.name)) {
        let evidence = Evidence::read(&path).unwrap_or_else(|e| panic!("{e}"));
        let (verdict, why) = expected(&evidence);
        let report = checker.check(&evidence);
        if !agrees(&report, verdict, &why) {
            wrong.push(format!("{}: not {verdict} ({why}): {report:#?}", path.display()));
        }
        if verdict == Verdict::Valid { good += 1 } else { reasons.push(why) }
    }
    let distinct: BTreeSet<_> = reasons.iter().collect();
    if distinct.len() < 3 || distinct.len() < reasons.len() || good < 1 {
        wrong.push(format!("{}: {good} good histories, bad ones: {reasons:#?}", checker.name));
    }
    reasons.len()
}

#[test]
fn every_checker_rejects_what_is_bad_and_accepts_what_is_good() {
    let mut wrong = Vec::new();
    let rejected: usize = CHECKERS.iter().map(|checker| check(checker, &mut wrong)).sum();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("bar: known-bad histories: {rejected}");
}

#[test]
fn every_folder_of_histories_has_a_checker() {
    let names: Vec<_> = CHECKERS.iter().map(|checker| checker.name.to_owned()).collect();
    let folders = files(&known_bad()).into_iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
    assert_eq!(folders.collect::<BTreeSet<_>>(), names.into_iter().collect());
}

#[test]
fn a_history_gets_the_same_verdict_from_memory_and_in_parts() {
    for checker in CHECKERS {
        for path in files(&known_bad().join(checker.name)) {
            let read = Evidence::read(&path).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            let records: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let live = checker.check(&Evidence::of(records.clone()).unwrap());
            assert_eq!(live, checker.check(&read), "{}", path.display());

            // In two files: lines have other names, but the verdict and the number of findings stay.
            let folder = tempfile::tempdir().unwrap();
            let (early, late) = records.split_at(records.len() / 2);
            for (name, records) in [("a.jsonl", early), ("b.jsonl", late)] {
                let lines: String =
                    records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect();
                fs::write(folder.path().join(name), lines).unwrap();
            }
            let parts = checker.check(&Evidence::read(folder.path()).unwrap());
            let sums = |report: &Report| (report.verdict(), report.judged, report.findings.len());
            assert_eq!(sums(&parts), sums(&live), "{}", path.display());
        }
    }
}

#[test]
fn recheck_ends_as_the_verdict_says() {
    let run = |path: &Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_recheck")).arg(path).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = run(&known_bad().join("coverage/good_does_what_it_promised.jsonl"));
    assert!(code == Some(3) && text.contains("nobody says which nodes there are"), "{text}");
    let (code, text) = run(&known_bad().join("hash/good_equal_at_equal_index.jsonl"));
    assert!(code == Some(0) && text.ends_with("valid\n"), "{text}");
    let (code, text) = run(&known_bad().join("hash"));
    assert!(code == Some(2) && text.is_empty(), "two runs in one folder: {text}");
    let (code, text) = run(&known_bad().join("hash/two_nodes_differ.jsonl"));
    assert!(code == Some(1) && text.contains("line 3, line 4: nodes 1 and 2 differ at index 5"), "{text}");
    assert_eq!(run(Path::new("/no/such/file")).0, Some(2));
}
