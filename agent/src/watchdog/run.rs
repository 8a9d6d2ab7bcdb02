//! The watchdog's process: one loop that waits for the agent, its children and its timer, in the attempt's directory.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    unistd::setsid,
};

use super::{
    Output, SOCKET,
    fate::{Due, Fate},
    launch::Launch,
    output::Memory,
    process::Surroundings,
    socket::{Received, Socket},
    testament::{Fallen, Testament},
    tree::{FIRST_LOOK, LAST_LOOK, Tree},
    wire::{End, NotStarted, Obstacle, Order, Report, say, understand},
};
use crate::{
    clock::Boot,
    executor::{cgroup::Cgroup, outcome::Cause},
};

/// An agent that takes the end in may take so long before the note of it is made durable.
const NOTE_HOLDS: Duration = Duration::from_secs(1);
/// A disk that takes no testament is asked again, for at least so long after the end.
const DISK_RETRY: Duration = Duration::from_secs(1);
const DISK_PATIENCE: Duration = Duration::from_secs(60);
/// The attempt's directory: this process' own.
const HERE: &str = ".";

/// What its guardian hands to it.
pub struct Legacy {
    /// The connection to the agent.
    pub agent: OwnedFd,
    /// Says that it can be read once the guardian is gone.
    pub guardian: OwnedFd,
    /// How ready the kernel is to kill jobs for want of memory, where that is not as this process.
    pub oom_score: Option<String>,
}

/// The whole of the process, which has one thread and all signals blocked.
#[must_use]
pub fn main(legacy: Legacy) -> ExitCode {
    let ended = Watchdog::begin(legacy).and_then(Watchdog::run);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the watchdog cannot go on: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Watchdog {
    listener: Socket,
    agent: Option<Socket>,
    /// Absent once it is gone.
    guardian: Option<OwnedFd>,
    children: SignalFd,
    timer: TimerFd,
    /// As this process had it from the agent; jobs get it back.
    oom_score: Option<String>,
    phase: Phase,
}

enum Phase {
    /// Nothing was asked for yet.
    Waiting,
    /// The process runs.
    Running(Box<Job>, Fate),
    /// It has ended; what it left behind has not.
    Ending { job: Box<Job>, end: End, until: Boot, look: Duration, look_at: Boot },
    /// Told and noted; the agent takes it in.
    Told { job: Option<Box<Job>>, fallen: Fallen, until: Boot, sync_at: Option<Boot> },
    /// Nothing is left to be done.
    Over,
}

struct Job {
    tree: Tree,
    output: Output,
    limits: Vec<Cgroup>,
}

impl Watchdog {
    fn begin(legacy: Legacy) -> io::Result<Self> {
        let _ = prctl::set_name(c"hodei-watchdog");
        // Fails only for who leads a session already.
        let _ = setsid();
        prctl::set_child_subreaper(true)?;
        let mut child = SigSet::empty();
        child.add(Signal::SIGCHLD);
        let children = SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let listener = Socket::listen(Path::new(SOCKET))?;
        let Legacy { agent, guardian, oom_score } = legacy;
        let (agent, guardian) = (Some(Socket::inherited(agent)), Some(guardian));
        let mut this = Self { listener, agent, guardian, children, timer, oom_score, phase: Phase::Waiting };
        this.tell(&Report::Ready { pid: std::process::id() });
        Ok(this)
    }

    fn run(mut self) -> io::Result<()> {
        while !self.is_over() {
            if self.wait()? {
                self.guardian_is_gone();
            }
            self.hear();
            self.look(Boot::now());
        }
        Ok(())
    }

    /// Whoever could have asked for a process is gone, or everything is said.
    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over) || (matches!(self.phase, Phase::Waiting) && self.agent.is_none())
    }

    /// Until something may have happened. Whether the guardian is gone.
    fn wait(&self) -> io::Result<bool> {
        match self.next() {
            Some(at) => {
                let at = at.0.max(Duration::from_nanos(1));
                self.timer.set(Expiration::OneShot(at.into()), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            }
            None => self.timer.unset()?,
        }
        let always = [self.listener.as_fd(), self.children.as_fd(), self.timer.as_fd()];
        let mut sources: Vec<_> = (self.guardian.iter().map(|guardian| guardian.as_fd()))
            .chain(always)
            .chain(self.agent.as_ref().map(|agent| agent.as_fd()))
            .map(|source| PollFd::new(source, PollFlags::POLLIN))
            .collect();
        match poll(&mut sources, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Ok(Some(_)) = self.children.read_signal() {}
        Ok(self.guardian.is_some() && sources[0].any() == Some(true))
    }

    fn next(&self) -> Option<Boot> {
        match &self.phase {
            Phase::Running(_, fate) => Some(fate.next()),
            Phase::Ending { look_at, .. } => Some(*look_at),
            Phase::Told { sync_at, .. } => *sync_at,
            Phase::Waiting | Phase::Over => None,
        }
    }

    /// What the agent says, and whether there is a new one.
    fn hear(&mut self) {
        while let Some(agent) = &self.agent {
            match agent.receive() {
                Ok(Some(received)) => self.obey(received),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(None) | Err(_) => self.agent_is_gone(),
            }
        }
        if let Ok(successor) = self.listener.accept() {
            if matches!(self.phase, Phase::Told { .. }) {
                self.agent_is_gone();
            } else {
                self.agent = Some(successor);
            }
        }
    }

    /// Nobody would see to what this process leaves, so that it ends what there is while it can.
    fn guardian_is_gone(&mut self) {
        self.guardian = None;
        eprintln!("the guardian has died: the job is ended");
        match &mut self.phase {
            Phase::Waiting => self.phase = Phase::Over,
            Phase::Running(_, fate) => fate.kill(Cause::Unguarded, Boot::now()),
            Phase::Ending { .. } | Phase::Told { .. } | Phase::Over => {}
        }
    }

    fn agent_is_gone(&mut self) {
        // A successor takes the end of its connection for the end of this process: it comes last.
        let _gone = self.agent.take();
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Waiting | Phase::Over => {}
            Phase::Told { job, fallen, until, .. } => leave(job.as_deref(), &fallen, until),
            phase => self.phase = phase,
        }
    }

    fn obey(&mut self, received: Received) {
        let Some((order, along)) = understand::<Order>(received) else { return };
        let now = Boot::now();
        match (order, &mut self.phase) {
            (Order::Launch, Phase::Waiting) => self.launch(along),
            (Order::Adopt, Phase::Running(..) | Phase::Ending { .. }) => self.stand(),
            // It came as the job ended; it finds the testament when this process is gone.
            (Order::Adopt, Phase::Told { .. }) => self.agent_is_gone(),
            (Order::Extend(to), Phase::Running(_, fate)) => fate.extend(to),
            (Order::Extend(to), Phase::Ending { until, .. }) => *until = (*until).max(to),
            (Order::Terminate { reason, grace_ms }, Phase::Running(_, fate)) => {
                fate.cancel(reason, Duration::from_millis(grace_ms), now);
            }
            (Order::HandBack { within_ms }, Phase::Running(_, fate)) => {
                fate.hand_back(Duration::from_millis(within_ms), now);
            }
            (Order::Kill(cause), Phase::Running(_, fate)) => fate.kill(cause, now),
            (Order::Forget, Phase::Told { .. }) => self.phase = Phase::Over,
            _ => {}
        }
    }

    fn launch(&mut self, along: Vec<OwnedFd>) {
        let mut along = along.into_iter();
        let launch = along.next().ok_or(io::ErrorKind::UnexpectedEof.into()).and_then(|file| Launch::read(file.into()));
        let launch = match launch {
            Ok(launch) => launch,
            Err(error) => return self.fail(NotStarted::io("the order to start", &error), Boot::now()),
        };
        let now = Boot::now();
        if now >= launch.deadline {
            let message = "its lease had already run out".to_owned();
            return self.fail(NotStarted { obstacle: Obstacle::TooLate, message }, now);
        }
        let around = Surroundings {
            cgroup: launch.cgroup.map(Cgroup::at),
            limits: launch.limits,
            stdin: along.next(),
            oom_score: self.oom_score.clone(),
        };
        crate::failpoint!("watchdog::before-spawn");
        let made = Memory::new(&launch.masked)
            .map_err(|error| NotStarted::io("no memory for the output", &error))
            .and_then(|memory| Ok((launch.image.spawn(&around)?, memory)));
        let (made, memory) = match made {
            Ok(made) => made,
            Err(why) => return self.fail(why, launch.deadline),
        };
        let fate = Fate::new(launch.deadline, launch.timeout, launch.grace, Boot::now());
        let tree = Tree::new(made.pid, around.cgroup);
        let output = memory.of(made.stdout, made.stderr);
        let limits = around.limits.into_iter().map(Cgroup::at).collect();
        let job = Box::new(Job { tree, output, limits });
        crate::failpoint!("watchdog::after-spawn");
        self.tell_with(&Report::Launched { pid: job.tree.main() }, &job.output);
        self.phase = Phase::Running(job, fate);
    }

    fn fail(&mut self, why: NotStarted, until: Boot) {
        self.told(None, Fallen::NotStarted(why), until);
    }

    /// To a successor.
    fn stand(&mut self) {
        let (job, deadline) = match &self.phase {
            Phase::Running(job, fate) => (job, fate.deadline()),
            Phase::Ending { job, until, .. } => (job, *until),
            _ => return,
        };
        let along = job.output.descriptors();
        let report = Report::Standing { pid: job.tree.main(), deadline };
        if self.agent.as_ref().is_some_and(|agent| say(agent, &report, &along).is_err()) {
            self.agent = None;
        }
    }

    /// What has become of the job, and what is due.
    fn look(&mut self, now: Boot) {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Running(job, fate) => self.look_at_running(job, fate, now),
            Phase::Ending { job, end, until, look, look_at } => {
                self.look_at_rest(job, end, until, (look, look_at), now);
            }
            Phase::Told { job, fallen, until, sync_at } => {
                let due = sync_at.is_some_and(|at| now >= at);
                if due && let Err(error) = Testament::sync(Path::new(HERE)) {
                    eprintln!("cannot make the note of the end durable: {error}");
                }
                self.phase = Phase::Told { job, fallen, until, sync_at: sync_at.filter(|_| !due) };
            }
            phase => self.phase = phase,
        }
    }

    fn look_at_running(&mut self, mut job: Box<Job>, mut fate: Fate, now: Boot) {
        if !job.tree.main_has_ended() {
            match fate.due(now) {
                Some(Due::Terminate) => job.tree.terminate(),
                Some(Due::Kill) => job.tree.kill(),
                None => {}
            }
            self.phase = Phase::Running(job, fate);
            return;
        }
        crate::failpoint!("watchdog::before-reap");
        job.tree.kill();
        if let Err(error) = job.tree.reap_main() {
            eprintln!("cannot wait for the process: {error}");
        }
        let (status, usage) = job.tree.end().unwrap_or_default();
        let end = End { cause: fate.cause().clone(), status, out_of_memory: false, usage };
        self.look_at_rest(job, end, fate.deadline(), (FIRST_LOOK, now), now);
    }

    /// Kills what is left until nothing is.
    fn look_at_rest(&mut self, job: Box<Job>, mut end: End, until: Boot, (look, at): (Duration, Boot), now: Boot) {
        if !job.tree.is_empty() {
            job.tree.kill();
            let (look, look_at) = if now >= at { ((look * 2).min(LAST_LOOK), now.plus(look)) } else { (look, at) };
            self.phase = Phase::Ending { job, end, until, look, look_at };
            return;
        }
        end.out_of_memory = job.tree.cgroup().into_iter().chain(&job.limits).any(Cgroup::out_of_memory);
        self.told(Some(job), Fallen::Ended(end), until);
    }

    /// The end is noted, then told; where nobody is there to be told, it is left on disk.
    fn told(&mut self, job: Option<Box<Job>>, fallen: Fallen, until: Boot) {
        crate::failpoint!("watchdog::before-note");
        if let Err(error) = Testament::note(Path::new(HERE), &fallen) {
            eprintln!("cannot note the end: {error}");
        }
        crate::failpoint!("watchdog::after-note");
        let report = match &fallen {
            Fallen::Ended(end) => Report::Ended(end.clone()),
            Fallen::NotStarted(why) => Report::NotStarted(why.clone()),
        };
        self.tell(&report);
        if self.agent.is_none() {
            return leave(job.as_deref(), &fallen, until);
        }
        self.phase = Phase::Told { job, fallen, until, sync_at: Some(Boot::now().plus(NOTE_HOLDS)) };
    }

    fn tell(&mut self, report: &Report) {
        if self.agent.as_ref().is_some_and(|agent| say(agent, report, &[]).is_err()) {
            self.agent = None;
        }
    }

    fn tell_with(&mut self, report: &Report, output: &Output) {
        if self.agent.as_ref().is_some_and(|agent| say(agent, report, &output.descriptors()).is_err()) {
            self.agent = None;
        }
    }
}

/// Leaves the end on disk, and takes the control groups away: it says that they were empty. Gives up where the directory
/// is gone, or the disk takes nothing for longer than anybody would want to know.
fn leave(job: Option<&Job>, fallen: &Fallen, until: Boot) {
    crate::failpoint!("watchdog::before-leave");
    let patience = until.max(Boot::now().plus(DISK_PATIENCE));
    while let Err(error) = Testament::leave(Path::new(HERE), fallen, job.map(|job| &job.output)) {
        if error.kind() == io::ErrorKind::NotFound || Boot::now() >= patience {
            eprintln!("nobody will know how the job ended: {error}");
            break;
        }
        thread::sleep(DISK_RETRY);
    }
    if let Some(job) = job {
        job.tree.cgroup().into_iter().chain(&job.limits).for_each(Cgroup::remove);
    }
}
