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
    find(name).unwrap_or_else(|why| panic!("{why}"))
}

/// The same.
///
/// # Errors
/// If it is not there, how to build it.
pub fn find(name: &str) -> Result<PathBuf, String> {
    let dir = env::var_os("HODEI_BIN_DIR").map_or_else(target_dir, PathBuf::from);
    present(dir.join(name), "run `cargo build --bins`, or set HODEI_BIN_DIR")
}

/// The binary `name` as `scripts/build-failpoints.sh` leaves it: with failpoints.
///
/// # Panics
/// If it is not there; the message says how to build it.
#[must_use]
pub fn with_failpoints(name: &str) -> PathBuf {
    find_with_failpoints(name).unwrap_or_else(|why| panic!("{why}"))
}

/// The same.
///
/// # Errors
/// If it is not there, how to build it.
pub fn find_with_failpoints(name: &str) -> Result<PathBuf, String> {
    let dir = env::var_os("HODEI_FAILPOINTS_DIR").map(PathBuf::from);
    let beside = || target_dir().parent().map(|target| target.join("failpoints"));
    present(dir.or_else(beside).unwrap_or_default().join(name), "run `scripts/build-failpoints.sh`")
}

fn present(path: PathBuf, advice: &str) -> Result<PathBuf, String> {
    if path.is_file() { Ok(path) } else { Err(format!("{} is missing: {advice}", path.display())) }
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
