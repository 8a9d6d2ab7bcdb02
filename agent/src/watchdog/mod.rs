//! The watchdog: a process per job, its parent, that outlives the agent for as long as the job's lease lasts.
//!
//! It is this same binary under another name, small and single-threaded: no runtime, no network, no thread. Its parent is
//! its [`guardian`]: the agent starts one process, which forks, and is the guardian of what goes on as the watchdog. The
//! agent's side of both is [`guard`].
//!
//! **Start.** The agent starts it in the attempt's directory with a connection as its standard input. It leaves the
//! agent's session, becomes the subreaper of its descendants, listens in the directory and says that it is
//! [`wire::Report::Ready`]. Only then does the agent say [`wire::Order::Launch`]: a watchdog that a successor cannot find
//! never makes a process. It makes the process inside its control group ([`process`]), to be killed by the kernel when the
//! watchdog dies, and hands the output over ([`output`]).
//!
//! **Deadline.** A timer on CLOCK_BOOTTIME ([`fate`]). Only [`wire::Order::Extend`] moves it, which an agent sends for what
//! the leader has granted; so whether the agent is stopped, stuck or dead, at the deadline the whole tree is killed
//! ([`tree`]). The job's time-out and the time between SIGTERM and SIGKILL run here as well.
//!
//! **End.** The job has ended when its main process has. What it leaves behind is killed until nothing is left; only then
//! the end is told ([`wire::Report::Ended`]), and kept until the agent has its result on disk ([`wire::Order::Forget`]). If no
//! agent is there, the watchdog leaves a [`testament`], with the output that nobody took, and goes.
//!
//! **Successors.** A new connection takes the place of the old one: the data directory's lock says that there is one agent
//! at a time. It gets the output and goes on where the last one stopped.
//!
//! **If it dies**, the kernel kills the main process, and the guardian whatever else there is, with or without an agent.
//! The agent sees the connection close, waits for the guardian, kills what the control group still has, and tells of the end
//! only if either was seen empty; a starting agent does so for every attempt whose watchdog does not answer, for all of
//! them at once ([`crate::recover`], [`patience`]). **If the guardian dies**, the watchdog ends the job. Only where agent, watchdog and guardian are
//! killed at once is nobody left to end what detached itself from the main process, until the next agent does.

pub mod fate;
pub mod guard;
pub mod guardian;
pub mod launch;
pub mod output;
pub mod patience;
pub mod process;
mod run;
pub mod socket;
pub mod testament;
pub mod tree;
pub mod wire;

pub use self::{guardian::main, output::Output};

/// The command under which this binary is a watchdog.
pub const COMMAND: &str = "watchdog";
/// What people see of it who list processes: not the agent's, so that whoever ends agents by name leaves jobs alone.
pub const NAME: &str = "hodei-watchdog";
/// The socket in an attempt's directory.
pub const SOCKET: &str = "watchdog";
