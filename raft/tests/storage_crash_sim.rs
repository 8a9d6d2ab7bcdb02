//! Crashes at every step of a workload, on a simulated disk.
//!
//! Each case runs the production engine, mark and recovery, dies at one step, decides what became of the writes that
//! were not synced, opens the log, and compares all of it with the model: every acknowledged record must be there, what
//! is there must be exactly the log as it was after some record, and opening must never be refused. Crashes during
//! opening, and a second crash right after it, are part of it.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod support;

use hodei_raft::{
    seam::{
        Entropy,
        sim::{SeededEntropy, SimFs, Unsynced},
    },
    wal::{EntryId, Lsn, Record, recover::Opened},
};
use support::{
    Model, Workload, append,
    sim::{Overlap, open, run},
    split, states, vote,
};

/// Opens a disk after a crash and compares it with the model.
fn check(fs: &SimFs, states: &[Model], acknowledged: Lsn, case: &str) -> Opened<SimFs> {
    let opened = open(fs, 77).unwrap_or_else(|error| panic!("{case}: refused: {error}"));
    let lsn = opened.recovered.lsn;
    assert!(lsn >= acknowledged, "{case}: {lsn} remembered, {acknowledged} acknowledged");
    assert_eq!(Model::of(&opened), states[lsn as usize], "{case}: the log is not what it was after record {lsn}");
    opened
}

/// After opening, what was reported must survive anything, and the log must go on working.
fn check_life_after(fs: &SimFs, states: &[Model], acknowledged: Lsn, case: &str) {
    let lsn = check(fs, states, acknowledged, case).recovered.lsn;
    let again = fs.power_cut(Unsynced::Lost);
    let mut model = check(&again, states, lsn, &format!("{case}, then power cut")).recovered.lsn;
    let mut expected = states[model as usize].clone();
    let more = [append(99, expected.next(), 40), vote(100, 1, true)];
    let (marked, done) = run(&again, 5, &[more.to_vec()], Overlap::None);
    model += 2;
    assert!(done && marked == model, "{case}: writing on failed");
    more.iter().for_each(|record| expected.apply(record));
    let last = open(&again.power_cut(Unsynced::Lost), 6).unwrap();
    assert_eq!(Model::of(&last), expected, "{case}: what came after");
}

fn fates(seed: u64) -> [Unsynced; 5] {
    use Unsynced::{Kept, Lost, Torn};
    [Lost, Kept, Torn(split(seed, 1)), Torn(split(seed, 2)), Torn(split(seed, 3))]
}

/// A workload that goes through every kind of record and every path of the engine.
fn script() -> Vec<Vec<Record>> {
    let purge = |term, index| Record::Purge { upto: EntryId { term, index } };
    vec![
        vec![vote(1, 1, false)],
        vec![append(1, 0, 10), append(1, 1, 200), append(1, 2, 0)],
        vec![vote(1, 1, true), append(1, 3, 700)],
        // Rolls to the second segment in the middle of a group.
        vec![append(1, 4, 500), append(1, 5, 500), append(1, 6, 500)],
        vec![vote(2, 3, false)],
        // A truncation alone, so that a crash can come between it and the next append.
        vec![Record::Truncate { from: 5 }],
        vec![append(2, 5, 300)],
        // A truncation across the segment boundary, with its append.
        vec![Record::Truncate { from: 3 }, append(3, 3, 100), append(3, 4, 900)],
        vec![purge(1, 1)],
        // A record larger than a segment.
        vec![append(3, 5, 5000), append(3, 6, 20)],
        // Frees the leading segments.
        vec![purge(3, 4), append(3, 7, 600)],
        vec![append(3, 8, 600), vote(4, 2, false), append(4, 9, 600)],
        // As after installing a snapshot: the log is empty and goes on further ahead.
        vec![purge(5, 20)],
        vec![append(5, 21, 64), append(5, 22, 64)],
        vec![Record::Truncate { from: 22 }, vote(6, 1, true)],
        vec![append(6, 22, 700), append(6, 23, 700), append(6, 24, 700)],
        vec![purge(6, 23)],
    ]
}

#[test]
fn every_crash_of_a_script_is_survived() {
    let groups = script();
    let states = states(&Model::default(), groups.iter().flatten());
    let mut cases = 0u64;
    let mut crashes = 0u64;
    for overlap in [Overlap::None, Overlap::Late, Overlap::Across] {
        let whole = SimFs::default();
        assert_eq!(run(&whole, 3, &groups, overlap), (states.len() as Lsn - 1, true));
        for step in 0..whole.steps() {
            let fs = SimFs::default();
            fs.die_at(step);
            let (acknowledged, done) = run(&fs, 3, &groups, overlap);
            assert!(!done, "step {step} exists");
            crashes += 1;
            for fate in fates(step) {
                let case = format!("{overlap:?}, crash at step {step}, {fate:?}");
                check_life_after(&fs.power_cut(fate), &states, acknowledged, &case);
                cases += 1 + crash_while_opening(&fs, fate, &states, acknowledged, &case);
            }
            // The process is killed, the machine lives on: all writes are seen, none of the unsynced is durable.
            fs.restart();
            check_life_after(&fs, &states, acknowledged, &format!("{overlap:?}, killed at step {step}"));
            cases += 1;
        }
    }
    println!("simulated crashes: {crashes} points, {cases} cases, acknowledged records lost: 0, refused: 0");
}

/// Crashes at every step of opening what a crash left behind.
fn crash_while_opening(fs: &SimFs, fate: Unsynced, states: &[Model], acknowledged: Lsn, case: &str) -> u64 {
    let probe = fs.power_cut(fate);
    check(&probe, states, acknowledged, case);
    for step in 0..probe.steps() {
        let second = fs.power_cut(fate);
        second.die_at(step);
        assert!(open(&second, 9).is_err(), "{case}: opening has step {step}");
        for fate in [Unsynced::Lost, Unsynced::Torn(step)] {
            let third = second.power_cut(fate);
            check(&third, states, acknowledged, &format!("{case}, again at step {step} of opening, {fate:?}"));
        }
    }
    probe.steps() * 2
}

#[test]
fn every_failed_operation_is_survived_after_a_restart() {
    let groups = script();
    let states = states(&Model::default(), groups.iter().flatten());
    let whole = SimFs::default();
    run(&whole, 3, &groups, Overlap::Late);
    for step in 0..whole.steps() {
        let fs = SimFs::default();
        fs.fail_at(step);
        let (acknowledged, done) = run(&fs, 3, &groups, Overlap::Late);
        assert!(!done, "a failure at step {step} must end the run");
        // A failed sync has dropped what it should have written, and reads still show it.
        fs.restart();
        check_life_after(&fs, &states, acknowledged, &format!("failure at step {step}"));
    }
    println!("failed operations: {}, acknowledged records lost: 0", whole.steps());
}

#[test]
fn random_workloads_survive_life_after_life() {
    let (mut lives, mut records, mut rewritten) = (0u64, 0u64, 0u64);
    for seed in 0..150 {
        let random = SeededEntropy::new(split(seed, 100));
        let mut workload = Workload::new(seed, 400);
        let mut fs = SimFs::default();
        let mut history = vec![Model::default()];
        for life in 0..6 {
            let overlap = [Overlap::None, Overlap::Late, Overlap::Across][random.below(3) as usize];
            let groups: Vec<Vec<Record>> = (0..20).map(|_| workload.group()).collect();
            let before = history.last().unwrap().lsn;
            let after = states(history.last().unwrap(), groups.iter().flatten());
            history.extend(after.into_iter().skip(1));
            fs.die_at(random.below(250));
            let (acknowledged, _) = run(&fs, split(seed, life), &groups, overlap);
            let fate = fates(random.next_u64())[random.below(5) as usize];
            if random.below(4) == 0 {
                fs.restart();
            } else {
                fs = fs.power_cut(fate);
            }
            let case = format!("seed {seed}, life {life}, {overlap:?}, {fate:?}");
            let opened = check(&fs, &history, acknowledged.max(before), &case);
            records += opened.recovered.lsn - before;
            rewritten += opened.recovered.above_mark;
            history.truncate(opened.recovered.lsn as usize + 1);
            workload.resume(history.last().unwrap().clone());
            lives += 1;
        }
    }
    println!("random lives: {lives}, records: {records}, rewritten above the mark: {rewritten}, acknowledged lost: 0");
}
