//! What must happen in the new process before the job's program: the one place with `unsafe`.

#![allow(unsafe_code, reason = "std offers no safe way to run code between fork and exec")]

use std::{fs::File, io, os::unix::process::CommandExt as _, process::Command};

use nix::unistd::{setsid, write};

/// Lets the process lead a session and a process group of its own, and join its control group before it can have
/// children, so that none of them is ever outside of it.
pub fn enter(command: &mut Command, entrance: Option<File>) {
    let before_exec = move || -> io::Result<()> {
        if let Some(entrance) = &entrance {
            write(entrance, b"0")?;
        }
        setsid()?;
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; write(2) and setsid(2) are, and the
    // closure allocates nothing: errors are built from an errno.
    unsafe {
        command.pre_exec(before_exec);
    }
}
