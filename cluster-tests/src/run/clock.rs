//! Wall clocks of nodes that tell another time than the machine's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::disk::Disk;

/// A library that tells processes another time than the kernel's.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// Whether it is there.
pub(super) fn ready() -> Result<(), String> {
    match Path::new(FAKETIME).exists() {
        true => Ok(()),
        false => Err(format!("{FAKETIME} is missing: install the package libfaketime")),
    }
}

/// The environment of a process that goes by the clock in this file.
pub(super) fn faked(clock: &Path) -> Vec<(String, String)> {
    let clock = clock.display().to_string();
    let variables = [
        ("LD_PRELOAD", FAKETIME),
        ("FAKETIME_TIMESTAMP_FILE", &clock),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ];
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

/// The file that a node's clock is in: not on its disk, which may fail.
pub(super) fn of(dir: &Path, disk: &Disk) -> PathBuf {
    dir.join(disk.path().file_name().unwrap_or_default()).with_extension("clock")
}

/// In one step: a process may read it at any time.
pub(super) fn set(clock: &Path, ahead: i64) {
    let new = clock.with_extension("new");
    fs::write(&new, format!("{ahead:+}")).expect("a clock can be set");
    fs::rename(&new, clock).expect("a clock can be set");
}
