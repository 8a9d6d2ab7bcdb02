//! How a node ends when its disk fails: at once, without destructors, with one line that says why.

use std::{
    fmt,
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};

/// The code of a failed fsync.
pub const SYNC_FAILED: &str = "HODEI-STORAGE-001";
/// The code of any other failed operation on the log's files.
pub const WRITE_FAILED: &str = "HODEI-STORAGE-002";
/// The code of a storage thread that broke an invariant.
pub const THREAD_PANICKED: &str = "HODEI-STORAGE-003";

/// An operation on the log's files that failed, after which nothing may be acknowledged any more.
#[derive(Debug)]
pub struct Failure {
    /// The operator-facing code.
    pub code: &'static str,
    /// What was attempted.
    pub what: String,
    /// What the system said.
    pub source: io::Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}; ending at once, nothing unconfirmed was acknowledged", self.code, self.what, self.source)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    pub(crate) fn sync(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self { code: SYNC_FAILED, what, source }
    }

    pub(crate) fn write(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self { code: WRITE_FAILED, what, source }
    }
}

/// Ends the process without destructors, after one line on standard error. A disk fails several threads at once: the
/// first one speaks, and the others wait for the end.
pub fn abort(failure: &Failure) -> ! {
    static ENDING: AtomicBool = AtomicBool::new(false);
    while ENDING.swap(true, Ordering::AcqRel) {
        std::thread::park();
    }
    // Not eprintln: it panics if standard error is closed.
    let _ = writeln!(io::stderr(), "{failure}");
    std::process::abort()
}

/// Ends the process if the thread that holds it panics: a node without its log's threads would only seem to live.
pub(crate) struct PanicGuard(pub(crate) &'static str);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let what = format!("the {} thread panicked", self.0);
            abort(&Failure { code: THREAD_PANICKED, what, source: io::Error::other("broken invariant") });
        }
    }
}
