//! Golden bytes: records as they were written once, which every later build has to read, and this build still writes.
//!
//! A line is a name and the record in hexadecimal. Lines are never changed, only added to: a change of one means that
//! nodes could not read their own logs any more. `UPDATE_GOLDENFILES=1` rewrites the files, for new kinds of records.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "golden files are files")]

mod samples;

use std::{collections::BTreeSet, fs, path::PathBuf};

use hodei_state::{RowKey, State, codec, command::Command, ids::Millis, invariants, outcome::Outcome};

/// Every kind of command, in the envelope of a log entry's batch.
#[test]
fn commands() {
    let samples = samples::history();
    let kinds: BTreeSet<_> = samples.iter().map(|(_, envelope)| kind(&envelope.command)).collect();
    assert_eq!(kinds.len(), 33, "each kind of command has a sample: {kinds:?}");
    let lines = samples.iter().map(|(_, envelope)| {
        (kind(&envelope.command).to_string(), codec::encode_batch(std::slice::from_ref(envelope)))
    });
    let golden = golden("commands.hex", &lines.collect::<Vec<_>>());
    for ((name, bytes), (_, sample)) in golden.iter().zip(&samples) {
        assert_eq!(
            codec::decode_batch(bytes).unwrap(),
            std::slice::from_ref(sample),
            "{name} is read as something else"
        );
    }
}

/// Every kind of row, as the sample history leaves them.
#[test]
fn rows() {
    let mut state = State::new();
    let mut rows = Vec::new();
    for (index, (at, envelope)) in (1..).zip(samples::history()) {
        let outcome = state.apply(index, 0, Millis(at), &envelope);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{envelope:?}: {outcome:?}");
        rows.push((state.hash(), state.rows().collect::<Vec<_>>()));
    }
    assert_eq!(invariants::check(&state), []);
    let (hash, rows) = rows.pop().unwrap();
    let kinds: BTreeSet<_> = rows.iter().map(|(key, _)| key.to_bytes()[0]).collect();
    assert_eq!(kinds, (0..16).collect(), "each kind of row has a sample");
    let lines = rows.iter().map(|(key, bytes)| (hex(&key.to_bytes()), bytes.clone()));
    let lines: Vec<_> = lines.collect();
    let golden = golden("rows.hex", &lines);
    let decoded = golden.into_iter().map(|(key, bytes)| (RowKey::from_bytes(&unhex(&key)).unwrap(), bytes));
    let rebuilt = State::from_rows(decoded).unwrap();
    assert_eq!(rebuilt.hash(), hash);
    // The hash itself is compared between nodes of different builds.
    assert_eq!(format!("{:032x}", rebuilt.hash()), samples::HASH);
}

/// Every kind of body.
#[test]
fn executions() {
    let samples = samples::executions();
    let lines = samples.iter().map(|(name, sample)| ((*name).to_string(), codec::encode_execution(sample)));
    let lines: Vec<_> = lines.collect();
    for ((name, bytes), (_, sample)) in golden("executions.hex", &lines).iter().zip(&samples) {
        assert_eq!(codec::decode_execution(bytes).unwrap(), *sample, "{name} is read as something else");
    }
}

/// What is in a golden file, which is what this build writes.
fn golden(name: &str, lines: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        let text: String = lines.iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect();
        fs::write(&path, text).unwrap();
    }
    let text = fs::read_to_string(&path).unwrap();
    let read = text.lines().map(|line| line.split_once(' ').unwrap());
    let read: Vec<_> = read.map(|(name, bytes)| (name.to_string(), unhex(bytes))).collect();
    for (written, read) in lines.iter().zip(&read) {
        assert_eq!(written, read, "{name}: this build writes it otherwise");
    }
    assert_eq!(lines.len(), read.len(), "{name}: number of lines");
    read
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The name of a command's kind. A new kind does not compile until it is named here, and has a sample.
fn kind(command: &Command) -> &'static str {
    match command {
        Command::Init(_) => "Init",
        Command::NodeHello(_) => "NodeHello",
        Command::RemoveNode { .. } => "RemoveNode",
        Command::SetFeatureLevel { .. } => "SetFeatureLevel",
        Command::CreateToken(_) => "CreateToken",
        Command::RevokeToken { .. } => "RevokeToken",
        Command::UseToken(_) => "UseToken",
        Command::SubmitJob(_) => "SubmitJob",
        Command::CancelJob { .. } => "CancelJob",
        Command::RemoveJobs { .. } => "RemoveJobs",
        Command::Assign { .. } => "Assign",
        Command::AttemptLost { .. } => "AttemptLost",
        Command::AttemptOverdue { .. } => "AttemptOverdue",
        Command::OpenSession(_) => "OpenSession",
        Command::AttachWorker { .. } => "AttachWorker",
        Command::DetachWorker { .. } => "DetachWorker",
        Command::CloseSession { .. } => "CloseSession",
        Command::JobStarted { .. } => "JobStarted",
        Command::JobDeclined { .. } => "JobDeclined",
        Command::JobResult { .. } => "JobResult",
        Command::PlaceLog { .. } => "PlaceLog",
        Command::DrainWorker(_) => "DrainWorker",
        Command::DrainOverdue { .. } => "DrainOverdue",
        Command::UndrainWorker { .. } => "UndrainWorker",
        Command::RemoveWorker { .. } => "RemoveWorker",
        Command::ConfigureScheduler { .. } => "ConfigureScheduler",
        Command::RetryJob { .. } => "RetryJob",
        Command::Preempt { .. } => "Preempt",
        Command::PutSecret(_) => "PutSecret",
        Command::RemoveSecret { .. } => "RemoveSecret",
        Command::SetAsideOver { .. } => "SetAsideOver",
        Command::ReplaceNode(_) => "ReplaceNode",
        Command::Recover { .. } => "Recover",
    }
}
