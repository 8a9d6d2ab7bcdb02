//! Where the product's binaries are.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The binary `name`: below `HODEI_BIN_DIR` where that is set, otherwise beside the running test binary, where cargo
/// puts the workspace's binaries.
///
/// # Panics
/// If it is not there; the message says how to build it.
#[must_use]
pub fn locate(name: &str) -> PathBuf {
    let dir = env::var_os("HODEI_BIN_DIR").map_or_else(target_dir, PathBuf::from);
    let path = dir.join(name);
    assert!(path.is_file(), "{} is missing: run `cargo build --bins`, or set HODEI_BIN_DIR", path.display());
    path
}

/// The binary `name` as `scripts/build-failpoints.sh` leaves it: with failpoints.
///
/// # Panics
/// If it is not there; the message says how to build it.
#[must_use]
pub fn with_failpoints(name: &str) -> PathBuf {
    let dir = env::var_os("HODEI_FAILPOINTS_DIR").map(PathBuf::from);
    let beside = || target_dir().parent().map(|target| target.join("failpoints"));
    let path = dir.or_else(beside).unwrap_or_default().join(name);
    assert!(path.is_file(), "{} is missing: run `scripts/build-failpoints.sh`", path.display());
    path
}

/// `target/<profile>` of the running binary, which lies there or in `deps/` below it.
fn target_dir() -> PathBuf {
    let exe = env::current_exe().expect("a running process has an executable");
    let dir = exe.parent().expect("an executable lies in a directory");
    match dir.file_name() {
        Some(name) if name == "deps" => {
            dir.parent().map(Path::to_path_buf).expect("deps/ lies in the target directory")
        }
        _ => dir.to_path_buf(),
    }
}
