//! Named places in the code where a test has the process die, and named defects that a test has it show: compiled only
//! with the feature `failpoints`, which nothing that is delivered is built with.
//!
//! `FAILPOINTS` in the environment says which, in the notation of the crate `fail`: `wal::before-fsync=return` dies there
//! at the first passage, `wal::before-fsync=9*off->return` at the tenth. What the file says that `FAILPOINTS_FILE` names
//! comes on top of that, and counts from the moment that it is there. Without the feature [`failpoint!`] is nothing, and
//! [`armed!`] is `false`.
//!
//! [`failpoint!`]: crate::failpoint!
//! [`armed!`]: crate::armed!

#![cfg_attr(
    feature = "failpoints",
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "a way into the core from outside, for tests"
    )
)]

#[cfg(feature = "failpoints")]
use std::{
    env, fs, io,
    io::Write as _,
    mem,
    path::PathBuf,
    process,
    sync::{Mutex, OnceLock, PoisonError},
    time::SystemTime,
};

/// In the environment: the file that a line goes to, site and process, when a process ends.
#[cfg(feature = "failpoints")]
const ENDED: &str = "FAILPOINTS_ENDED";
/// In the environment: the file that says what else is armed.
#[cfg(feature = "failpoints")]
const FILE: &str = "FAILPOINTS_FILE";
/// What a process has in its environment that its children are to have, too, where it clears theirs.
#[cfg(feature = "failpoints")]
pub const VARIABLES: [&str; 3] = ["FAILPOINTS", FILE, ENDED];

/// The process ends here, as by `kill -9`, if a test wants it to.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        $crate::failpoint::pass($name)
    };
}

/// The process ends here, as by `kill -9`, if a test wants it to.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {};
}

/// Whether a test wants what this names: a defect (`bug::`) or another setting (`tune::`).
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! armed {
    ($name:literal) => {
        $crate::failpoint::is_armed($name)
    };
}

/// Whether a test wants what this names: a defect (`bug::`) or another setting (`tune::`).
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! armed {
    ($name:literal) => {
        false
    };
}

/// Ends the process without destructors, if this site is armed and due, after one line on standard error and one in the
/// file that the environment names.
#[cfg(feature = "failpoints")]
pub fn pass(site: &str) {
    if !is_armed(site) {
        return;
    }
    if let Some(file) = env::var_os(ENDED)
        && let Ok(mut file) = fs::OpenOptions::new().append(true).create(true).open(file)
    {
        let _ = writeln!(file, "{site} {}", process::id());
    }
    // Not eprintln: it panics if standard error is closed.
    let _ = writeln!(io::stderr(), "failpoint {site}: the process ends here");
    process::abort();
}

/// Whether this name is armed and due.
#[cfg(feature = "failpoints")]
pub fn is_armed(name: &str) -> bool {
    static ORDERS: OnceLock<Option<Orders>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        // What the scenario holds is held until the process ends.
        mem::forget(fail::FailScenario::setup());
        env::var_os(FILE).map(|path| Orders { path: path.into(), read: Mutex::new(None) })
    });
    if let Some(orders) = orders {
        orders.follow();
    }
    fail::eval(name, |_| ()).is_some()
}

/// What may be armed, and disarmed, while the process runs.
#[cfg(feature = "failpoints")]
struct Orders {
    path: PathBuf,
    /// When what was read last had been written.
    read: Mutex<Option<SystemTime>>,
}

#[cfg(feature = "failpoints")]
impl Orders {
    fn follow(&self) {
        let written = fs::metadata(&self.path).and_then(|found| found.modified()).ok();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if *read == written {
            return;
        }
        *read = written;
        for line in fs::read_to_string(&self.path).unwrap_or_default().lines() {
            if let Some((name, actions)) = line.split_once('=')
                && let Err(error) = fail::cfg(name, actions)
            {
                let _ = writeln!(io::stderr(), "{}: {error}", self.path.display());
            }
        }
    }
}
