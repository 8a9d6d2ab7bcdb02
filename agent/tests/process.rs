//! The real binary: what it refuses, in which words, and with which exit code.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::Path,
    process::{Command, Output},
};

use hodei_agent::data_dir::DataDir;

fn agent(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hodei-agent"));
    command.env_clear().env("PATH", "/usr/bin:/bin").arg("--data-dir").arg(dir).args(arguments);
    command.output().unwrap()
}

fn refused(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = agent(dir, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "one clear line: {said}");
    (output.status.code(), said)
}

#[test]
fn bad_input_is_refused_in_one_line_and_writes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("agent");
    let (code, said) = refused(&dir, &[]);
    assert!(code == Some(2) && said.contains("--token"), "{said}");
    let (code, said) = refused(&dir, &["--token", "s3cr3t"]);
    assert!(code == Some(2) && said.contains("not a token") && !said.contains("s3cr3t"), "{said}");
    let node_token = format!("hodei1.node.{}.mzxw6ytb", "a".repeat(52));
    let (code, said) = refused(&dir, &["--token", &node_token]);
    assert!(code == Some(77) && said.contains("role node"), "{said}");
    let (code, said) = refused(&dir, &["--job-user", "no-user-of-that-name"]);
    assert!(code == Some(2) && said.contains("--job-user: user no-user-of-that-name: not known"), "{said}");
    assert!(!dir.exists(), "nothing is written");
}

#[test]
fn a_directory_in_use_or_unusable_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let token = format!("hodei1.agent.{}.mzxw6ytb", "a".repeat(52));
    let held = DataDir::open(parent.path()).unwrap();
    let (code, said) = refused(parent.path(), &["--token", &token]);
    assert!(code == Some(2) && said.contains("in use"), "{said}");
    drop(held);
    let file = parent.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (code, said) = refused(&file.join("below"), &["--token", &token]);
    assert!(code == Some(2) && said.contains("data directory"), "{said}");
}

#[test]
fn usage_errors_are_exit_code_2() {
    for (flag, wrong) in [("--capacity", "0"), ("--server", "bad::addr"), ("--server", "a,b:c"), ("--gpus", "-1")] {
        let output = agent(Path::new("/nowhere"), &[&format!("{flag}={wrong}")]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains(flag), "{said}");
    }
}
