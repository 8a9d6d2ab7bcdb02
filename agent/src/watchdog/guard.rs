//! The agent's side of a watchdog: starts one or finds one, tells it what the leader has granted, and hears how it ended.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;

use super::{
    COMMAND, NAME, Output, SOCKET, guardian,
    launch::Launch,
    patience::Patience,
    socket::{self, Received, Socket},
    wire::{End, NotStarted, Obstacle, Order, Report, say, understand},
};
use crate::clock::Boot;

/// A watchdog may take so long to be ready, and to make a process, on a machine that is very busy.
const START_WITHIN: Duration = Duration::from_secs(30);
/// How often one that has not answered yet is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A watchdog that was killed is gone within this.
const KILLED_WITHIN: Duration = Duration::from_secs(1);
/// A guardian ends with its watchdog. One that has not by then is stopped or stuck, and is killed.
const GUARDIAN_WITHIN: Duration = Duration::from_secs(5);

/// A watchdog that has been started and not yet been told anything. Dropped, it ends by itself.
pub struct Started {
    socket: Socket,
    guardian: Own,
    record: PathBuf,
}

/// A guardian that this process has started, and has to reap.
struct Own(Child);

/// A watchdog and the job that it watches over.
pub struct Guarded {
    /// The watchdog.
    pub guard: Guard,
    /// The job's main process.
    pub pid: u32,
    /// The job's output.
    pub output: Output,
}

/// A connection to a watchdog.
pub struct Guard {
    socket: Arc<Socket>,
    guardian: Option<Own>,
}

/// What may be said to a watchdog from anywhere. Nothing here waits: what a watchdog that is stopped does not read is lost,
/// and its deadline then stays where it is.
#[derive(Clone)]
pub struct Voice(Arc<Socket>);

impl Voice {
    /// The lease was extended.
    pub fn extend(&self, to: Boot) {
        self.say(&Order::Extend(to));
    }

    /// Any order.
    pub fn say(&self, order: &Order) {
        if let Err(error) = say(&self.0, order, &[]) {
            tracing::debug!(%error, ?order, "a watchdog does not hear");
        }
    }
}

impl Started {
    /// Starts `program` as a watchdog with its guardian in an attempt's directory. `name` is for people who list processes.
    pub fn start(program: &Path, record: &Path, name: &str) -> io::Result<Self> {
        let (socket, theirs) = Socket::pair()?;
        let said = File::create(record.join("watchdog.err"))?;
        let mut command = Command::new(program);
        command.arg0(NAME).arg(COMMAND).arg(name).env_clear().current_dir(record);
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(said);
        #[cfg(feature = "failpoints")]
        command.envs(crate::failpoint::VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        Ok(Self { socket, guardian: Own(command.spawn()?), record: record.to_owned() })
    }

    /// Has it make the process. Blocking. `stdin` is what the process reads, where it reads anything.
    pub fn launch(self, launch: &Launch, stdin: Option<&OwnedFd>) -> Result<Guarded, NotStarted> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, UnexpectedEof, WouldBlock};
        let watchdog = match self.is_ready() {
            Ok(watchdog) => watchdog,
            Err(error) => {
                self.dismiss();
                return Err(NotStarted { obstacle: Obstacle::NoWatchdog, message: format!("the watchdog: {error}") });
            }
        };
        match self.order(launch, stdin) {
            Ok(Ok((pid, output))) => {
                let guard = Guard { socket: Arc::new(self.socket), guardian: Some(self.guardian) };
                Ok(Guarded { guard, pid, output })
            }
            Ok(Err(why)) => {
                let _ = say(&self.socket, &Order::Forget, &[]);
                self.guardian.reap();
                Err(why)
            }
            Err(error) => {
                let clear = self.abandon(watchdog);
                let obstacle = match error.kind() {
                    _ if !clear => Obstacle::Unclear,
                    UnexpectedEof | BrokenPipe | ConnectionReset | TimedOut | WouldBlock => Obstacle::NoWatchdog,
                    // What the job asks for does not fit into an order.
                    _ => Obstacle::Other,
                };
                Err(NotStarted { obstacle, message: format!("the watchdog: {error}") })
            }
        }
    }

    /// Its number.
    fn is_ready(&self) -> io::Result<u32> {
        match self.hear()? {
            (Report::Ready { pid }, _) => Ok(pid),
            (other, _) => Err(io::Error::other(format!("it begins with {other:?}"))),
        }
    }

    fn order(&self, launch: &Launch, stdin: Option<&OwnedFd>) -> io::Result<Result<(u32, Output), NotStarted>> {
        let file = launch.write()?;
        let along: Vec<BorrowedFd<'_>> = [file.as_fd()].into_iter().chain(stdin.map(OwnedFd::as_fd)).collect();
        say(&self.socket, &Order::Launch, &along)?;
        match self.hear()? {
            (Report::Launched { pid }, along) => match Output::received(along) {
                Some(output) => Ok(Ok((pid, output))),
                None => Err(io::Error::other("the output did not come along")),
            },
            (Report::NotStarted(why), _) => Ok(Err(why)),
            (other, _) => Err(io::Error::other(format!("it answers {other:?}"))),
        }
    }

    fn hear(&self) -> io::Result<(Report, Vec<OwnedFd>)> {
        let received = self.socket.receive_within(START_WITHIN)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        understand(received).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// It may have made the process and does not say so. True where nothing was seen to be left.
    fn abandon(self, watchdog: u32) -> bool {
        if self.socket.is_open() {
            // So it lives, and the number is its own.
            end(watchdog.cast_signed());
        }
        self.guardian.reap();
        guardian::saw_the_end(&self.record)
    }

    /// Lets it go without a job. Blocking.
    pub fn dismiss(self) {
        drop(self.socket);
        self.guardian.reap();
    }
}

impl Own {
    /// Waits for its end. Blocking.
    fn reap(mut self) {
        let deadline = Instant::now() + GUARDIAN_WITHIN;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        // Where it has been reaped this does nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In another PID namespace a number would be 0.
fn end(watchdog: i32) {
    if watchdog > 1 {
        // It may have ended in between.
        let _ = kill(Pid::from_raw(watchdog), Signal::SIGKILL);
    }
}

/// What a successor finds of an earlier agent's watchdog.
pub enum Found {
    /// It lives, and so does its job, or what is left of it.
    Alive(Box<Guarded>, Boot),
    /// There is none any more, and there will be none.
    Gone,
}

/// Takes over the watchdog of an attempt. One that does not answer while there is patience is killed. Blocking.
pub fn find(record: &Path, patience: &Patience) -> io::Result<Found> {
    loop {
        let socket = match Socket::connect(record, SOCKET) {
            Ok(socket) => socket,
            Err(error) => match error.kind() {
                // Only a watchdog listens, and for as long as it lives.
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => return Ok(Found::Gone),
                // Too many wait to be heard: it is stuck.
                _ => return Err(error),
            },
        };
        if let Some((pid, deadline, output)) = ask(&socket, patience)? {
            patience.spare(deadline);
            let guard = Guard { socket: Arc::new(socket), guardian: None };
            return Ok(Found::Alive(Box::new(Guarded { guard, pid, output }), deadline));
        }
        if patience.left().is_zero() {
            let peer = socket.peer()?.pid();
            tracing::warn!(pid = peer, "a watchdog does not answer and is killed");
            end(peer);
            // Its end of the connection closes with it.
            while socket.receive_within(KILLED_WITHIN)?.is_some() {}
        }
        // It may be about to go.
        thread::sleep(Duration::from_millis(1));
    }
}

/// What it says of itself; `None` where it says nothing while there is patience, or goes.
fn ask(socket: &Socket, patience: &Patience) -> io::Result<Option<(u32, Boot, Output)>> {
    if say(socket, &Order::Adopt, &[]).is_err() {
        return Ok(None);
    }
    loop {
        let received = match socket.receive_within(LOOK_EVERY.min(patience.left())) {
            Ok(Some(received)) => received,
            Err(error) if error.kind() == io::ErrorKind::TimedOut && !patience.left().is_zero() => continue,
            Ok(None) | Err(_) => return Ok(None),
        };
        if let Some((Report::Standing { pid, deadline }, along)) = understand(received) {
            let output = Output::received(along).ok_or_else(|| io::Error::other("the output did not come along"))?;
            return Ok(Some((pid, deadline, output)));
        }
    }
}

impl Guard {
    /// To speak to it from elsewhere.
    #[must_use]
    pub fn voice(&self) -> Voice {
        Voice(Arc::clone(&self.socket))
    }

    /// How the job ended; `None` where its watchdog has died. To be asked again where this is dropped.
    pub fn listen(&self) -> io::Result<Ear> {
        Ok(Ear(socket::readable(Arc::clone(&self.socket))?))
    }

    /// The result is on disk, or there will be none. Blocking: waits for the end where this process has started it.
    pub fn forget(self) {
        self.voice().say(&Order::Forget);
        if let Some(guardian) = self.guardian {
            guardian.reap();
        }
    }
}

/// Hears of the end.
pub struct Ear(AsyncFd<Arc<Socket>>);

impl Ear {
    /// How the job ended; `None` where its watchdog has died. May be dropped and asked again.
    pub async fn end(&self) -> Option<End> {
        loop {
            let mut ready = self.0.readable().await.ok()?;
            match ready.try_io(|socket| socket.get_ref().receive()) {
                Ok(Ok(Some(received))) => {
                    if let Some(end) = end_in(received) {
                        return Some(end);
                    }
                }
                Ok(Ok(None) | Err(_)) => return None,
                Err(_would_block) => {}
            }
        }
    }
}

fn end_in(received: Received) -> Option<End> {
    match understand::<Report>(received)?.0 {
        Report::Ended(end) => Some(end),
        _ => None,
    }
}

/// How watchdogs are started, for tests that have the binary elsewhere.
#[derive(Clone, Debug)]
pub struct Program(pub PathBuf);

impl Default for Program {
    /// This process' own binary, even where its file was replaced meanwhile.
    fn default() -> Self {
        Self(PathBuf::from("/proc/self/exe"))
    }
}

/// A child that is forked while a script is still open for writing would keep it open until its own exec, and executing
/// the script would fail with "text file busy". So no script is written while a watchdog is being started.
pub static FORK: Mutex<()> = Mutex::new(());
