//! What agent and watchdog say to each other: short JSON, some of it with descriptors.
//!
//! An agent may be newer or older than a watchdog that it adopts. What either does not know it leaves alone: unknown
//! fields are ignored, unknown messages are dropped.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    process::ExitStatus,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::socket::{Received, Socket};
use crate::{clock::Boot, executor::outcome::Cause};

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Make the process. With the [`super::launch::Launch`] in a file, and what it reads as its standard input where it
    /// is to read something.
    Launch,
    /// A new agent takes over. Answered by [`Report::Standing`].
    Adopt,
    /// The lease was extended to this moment.
    Extend(Boot),
    /// SIGTERM, then SIGKILL.
    Terminate {
        /// Given by whoever cancelled.
        reason: String,
        /// Between the two signals.
        grace_ms: u64,
    },
    /// SIGTERM, then SIGKILL after the job's own grace period, or after this time where that is shorter: the agent ends.
    HandBack {
        /// The longest time between the two signals.
        within_ms: u64,
    },
    /// SIGKILL at once.
    Kill(Cause),
    /// The result is on disk: the watchdog may go.
    Forget,
}

/// From the watchdog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// It listens; now it may be told to make the process.
    Ready {
        /// The watchdog.
        pid: u32,
    },
    /// The process runs. With its [`super::Output`].
    Launched {
        /// The process.
        pid: u32,
    },
    /// The answer to a successor. With the [`super::Output`].
    Standing {
        /// The process.
        pid: u32,
        /// Until when it may run.
        deadline: Boot,
    },
    /// There is no process and there will be none.
    NotStarted(NotStarted),
    /// Nothing of the job is left.
    Ended(End),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// What made it end.
    pub cause: Cause,
    /// As wait(2) gives it.
    pub status: i32,
    /// The kernel killed something of it for want of memory.
    pub out_of_memory: bool,
    /// What it used.
    pub usage: Usage,
}

impl End {
    /// The status, readable.
    #[must_use]
    pub fn status(&self) -> ExitStatus {
        std::os::unix::process::ExitStatusExt::from_raw(self.status)
    }
}

/// What a job used, with everything that it waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of its own code.
    pub user_ms: u64,
    /// CPU time of the kernel for it.
    pub system_ms: u64,
    /// The largest process at its largest, KiB.
    pub largest_kib: u64,
}

/// Why a process could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotStarted {
    /// What kind of obstacle.
    pub obstacle: Obstacle,
    /// For people.
    pub message: String,
}

/// As `could_not_start` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Obstacle {
    /// No such command or interpreter.
    NotFound,
    /// Not executable, no permission, no such user.
    NotPermitted,
    /// Anything else.
    Other,
    /// The lease ran out before.
    TooLate,
    /// A secret that it names is not there any more.
    NoSecret,
    /// The working directory is not there, or no directory.
    NoDirectory,
    /// Nobody knows whether there is one, which is for the agent alone.
    Unclear,
    /// Its watchdog did not start, or ended: no fault of the job's. For the agent alone, too.
    NoWatchdog,
}

impl NotStarted {
    /// Nothing of that name.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { obstacle: Obstacle::NotFound, message: message.into() }
    }

    /// It is there and must not be used.
    #[must_use]
    pub fn not_permitted(message: impl Into<String>) -> Self {
        Self { obstacle: Obstacle::NotPermitted, message: message.into() }
    }

    /// The process has nowhere to work.
    #[must_use]
    pub fn no_directory(message: impl Into<String>) -> Self {
        Self { obstacle: Obstacle::NoDirectory, message: message.into() }
    }

    /// Anything else.
    #[must_use]
    pub fn other(message: impl Into<String>) -> Self {
        Self { obstacle: Obstacle::Other, message: message.into() }
    }

    /// What the system said.
    #[must_use]
    pub fn io(what: &str, error: &io::Error) -> Self {
        let obstacle = match error.kind() {
            io::ErrorKind::NotFound => Obstacle::NotFound,
            io::ErrorKind::PermissionDenied => Obstacle::NotPermitted,
            _ => Obstacle::Other,
        };
        Self { obstacle, message: format!("{what}: {error}") }
    }
}

/// Sends a message, and descriptors with it.
pub fn say(socket: &Socket, message: &impl Serialize, along: &[BorrowedFd<'_>]) -> io::Result<()> {
    socket.send(&serde_json::to_vec(message).map_err(io::Error::other)?, along)
}

/// A message that arrived; `None` where it is not known here.
#[must_use]
pub fn understand<T: DeserializeOwned>(received: Received) -> Option<(T, Vec<OwnedFd>)> {
    Some((serde_json::from_slice(&received.bytes).ok()?, received.descriptors))
}
