//! Makes and reaps a job's process, in its watchdog. Beside [`super::socket`] and [`super::guardian`] the one place with
//! `unsafe`.
//!
//! Where the kernel can do it (`clone3` with `CLONE_INTO_CGROUP`, cgroup v2, Linux 5.7) the process is made inside its
//! control group, which costs nothing. Elsewhere it is forked and moves itself there before it can have children; the
//! kernel may let that wait for a grace period of RCU, some ten milliseconds. Groups of version 1 that bound what it uses
//! are always joined in that way. Either way it, and so every descendant, is in its groups before the first instruction of
//! the job's program. From its first moment on, the kernel kills it when its watchdog dies.
//!
//! **Between the two programs.** The new process is a copy of its watchdog, and makes system calls only: all that it needs
//! is in [`Image`] and `Recipe`, made before. Every descriptor of the watchdog is close-on-exec, and what it ignores or
//! blocks is reset, so nothing is inherited but the three standard streams.

#![allow(unsafe_code, reason = "std offers no way to make a process inside a control group, nor code before exec")]

use std::{
    convert::Infallible,
    ffi::{CString, OsStr, c_char, c_int, c_long},
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
    ptr,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    libc,
    sys::signal::{SigSet, SigmaskHow},
    unistd::{Pid, pipe2},
};
use serde::{Deserialize, Serialize};

use super::wire::{NotStarted, Usage};
use crate::executor::cgroup::Cgroup;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("there setuid and setgid are other system calls: the plain ones take 16 bits");

/// From <linux/sched.h>; the constant of the libc crate is an `int`, which cannot hold it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// The last signal of Linux.
const LAST_SIGNAL: c_int = 64;

/// The program of a process and what it starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// A path; nothing is searched.
    pub program: CString,
    /// With the name that it is called by.
    pub arguments: Vec<CString>,
    /// `NAME=value`, each name once.
    pub environment: Vec<CString>,
    /// Its working directory.
    pub directory: CString,
    /// Where it is not the agent's.
    pub user: Option<User>,
}

/// Whom a process runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The user's number.
    pub uid: libc::uid_t,
    /// The group's number.
    pub gid: libc::gid_t,
    /// Further groups.
    pub groups: Vec<libc::gid_t>,
}

/// What a process is made with beside its image.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// The control group by which it is killed.
    pub cgroup: Option<Cgroup>,
    /// Further ones, that bound what it uses.
    pub limits: Vec<PathBuf>,
    /// What it reads as its standard input; absent: nothing.
    pub stdin: Option<OwnedFd>,
    /// How ready the kernel is to kill it for want of memory, where that is not as the watchdog's.
    pub oom_score: Option<String>,
}

/// A process that was made, with the read ends of its standard output and standard error, which do not block.
#[derive(Debug)]
pub struct Made {
    /// Its number, which nobody else gets before it is reaped.
    pub pid: Pid,
    /// Its standard output.
    pub stdout: OwnedFd,
    /// Its standard error.
    pub stderr: OwnedFd,
}

impl Image {
    /// Runs it in a session and a process group of its own. Returns when the program has taken over, or with the reason
    /// why it could not.
    pub fn spawn(&self, around: &Surroundings) -> Result<Made, NotStarted> {
        self.make(around).map_err(|error| NotStarted::io("exec", &error))?
    }

    fn make(&self, around: &Surroundings) -> io::Result<Result<Made, NotStarted>> {
        let nothing = File::open("/dev/null")?;
        let stdin = around.stdin.as_ref().map_or(nothing.as_raw_fd(), AsRawFd::as_raw_fd);
        let (stdout, stdout_end) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, stderr_end) = pipe2(OFlag::O_CLOEXEC)?;
        let (failure, failure_end) = pipe2(OFlag::O_CLOEXEC)?;
        for end in [&stdout, &stderr] {
            nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let streams = [stdin, stdout_end.as_raw_fd(), stderr_end.as_raw_fd()];
        // The first three are open in every watchdog: no source of a dup2 is also a target.
        assert!(streams.iter().all(|fd| *fd > libc::STDERR_FILENO), "standard streams are open");
        let (arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
        let limits = around.limits.iter().map(|dir| Cgroup::at(dir.clone()).entrance());
        let recipe = Recipe {
            image: self,
            arguments: &arguments,
            environment: &environment,
            streams,
            failure: failure_end.as_raw_fd(),
            limits: &limits.collect::<io::Result<Vec<_>>>()?,
            oom_score: around.oom_score.as_deref().map(str::as_bytes),
            parent: nix::unistd::getpid().as_raw(),
        };
        let pid = recipe.make(around.cgroup.as_ref())?;
        drop((failure_end, stdout_end, stderr_end));
        Ok(match read_failure(failure) {
            None => Ok(Made { pid, stdout, stderr }),
            Some((step, error)) => {
                reap(pid)?;
                Err(self.why_not(step, &error))
            }
        })
    }

    fn why_not(&self, step: Step, error: &io::Error) -> NotStarted {
        let program = self.program.to_string_lossy();
        let directory = self.directory.to_string_lossy();
        match (step, error.raw_os_error()) {
            // The file itself was found before.
            (Step::Exec, Some(libc::ENOENT | libc::ENOTDIR)) => {
                NotStarted::not_found(format!("{program}: the interpreter that it names is not there"))
            }
            (Step::Exec, Some(libc::ENOEXEC)) => {
                NotStarted::not_permitted(format!("{program}: not a program, nor a script that names its interpreter"))
            }
            (Step::Exec, _) => NotStarted::io(&program, error),
            (Step::Directory, Some(libc::ENOENT | libc::ENOTDIR)) => {
                NotStarted::no_directory(format!("working directory {directory}: not there"))
            }
            (Step::Directory, _) => NotStarted::io(&format!("working directory {directory}"), error),
            (Step::User, _) => NotStarted::not_permitted(format!("cannot run as another user: {error}")),
            (Step::Groups, _) => NotStarted::other(format!("control group: {error}")),
            (Step::Other, _) => NotStarted::other(format!("cannot make a process: {error}")),
        }
    }
}

/// Waits for the end of a child and forgets it: its status as wait(2) gives it, and what it used with everything that it
/// has waited for itself.
pub fn reap(pid: Pid) -> io::Result<(i32, Usage)> {
    let mut status = 0;
    // SAFETY: all zeros is a valid value of this structure of integers.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers are to locals that outlive the call.
    while unsafe { libc::wait4(pid.as_raw(), &raw mut status, 0, &raw mut used) } < 0 {
        if Errno::last() != Errno::EINTR {
            return Err(io::Error::last_os_error());
        }
    }
    let ms = |time: libc::timeval| (time.tv_sec.unsigned_abs()) * 1_000 + time.tv_usec.unsigned_abs() / 1_000;
    let largest_kib = used.ru_maxrss.unsigned_abs();
    Ok((status, Usage { user_ms: ms(used.ru_utime), system_ms: ms(used.ru_stime), largest_kib }))
}

/// Where a new process may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Other,
    Groups,
    User,
    Directory,
    Exec,
}

/// What the new process reads: borrowed, never allocated there.
struct Recipe<'a> {
    image: &'a Image,
    /// Both end with a null pointer.
    arguments: &'a [*const c_char],
    environment: &'a [*const c_char],
    /// What become 0, 1 and 2.
    streams: [RawFd; 3],
    /// Where to write step and errno of a failure; closed by a successful exec.
    failure: RawFd,
    /// Entrances of groups to join.
    limits: &'a [File],
    oom_score: Option<&'a [u8]>,
    /// Whoever makes it: its watchdog.
    parent: libc::pid_t,
}

impl Recipe<'_> {
    /// No handler may run in the new process, so all signals wait until it has reset them.
    fn make(&self, cgroup: Option<&Cgroup>) -> io::Result<Pid> {
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let made = match cgroup {
            None => self.fork(None),
            // Whatever speaks against it (old kernel, cgroup v1, a filter of system calls): the way that always was.
            Some(cgroup) => self.clone_into(cgroup).or_else(|_| self.fork(Some(&cgroup.entrance()?))),
        };
        before.thread_set_mask()?;
        made
    }

    fn clone_into(&self, cgroup: &Cgroup) -> io::Result<Pid> {
        let group = File::open(cgroup.dir())?;
        // SAFETY: all zeros is valid for this structure of integers, and what the kernel takes as "not given".
        let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
        how.flags = CLONE_INTO_CGROUP;
        how.exit_signal = libc::SIGCHLD.unsigned_abs().into();
        how.cgroup = group.as_raw_fd().unsigned_abs().into();
        // SAFETY: without CLONE_VM and without a stack this is a fork: the child goes on with a copy of everything, and
        // the only thing that it does is `become_job`. The kernel writes nothing.
        match unsafe { libc::syscall(libc::SYS_clone3, &raw const how, size_of_val(&how)) } {
            0 => self.become_job(None),
            pid if pid > 0 => Ok(Pid::from_raw(narrow(pid))),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// `entrance`: of the control group to move to.
    fn fork(&self, entrance: Option<&File>) -> io::Result<Pid> {
        // SAFETY: the only thing that the child does is `become_job`, which makes system calls only.
        match unsafe { libc::fork() } {
            0 => self.become_job(entrance.map(AsRawFd::as_raw_fd)),
            pid if pid > 0 => Ok(Pid::from_raw(pid)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// In the new process: becomes the job's program, or tells why not and ends.
    fn become_job(&self, entrance: Option<RawFd>) -> ! {
        let Err(Failed(step)) = self.exec(entrance);
        let errno = Errno::last_raw().to_ne_bytes();
        let told = [step as u8, errno[0], errno[1], errno[2], errno[3]];
        // SAFETY: write(2) of a local; then the end, without running anything that is registered for exit.
        unsafe {
            libc::write(self.failure, told.as_ptr().cast(), told.len());
            libc::_exit(127);
        }
    }

    /// Returns only upon failure, with `errno` set.
    fn exec(&self, entrance: Option<RawFd>) -> Result<Infallible, Failed> {
        self.die_with_watchdog()?;
        // SAFETY: system calls only, and each with integers or with pointers into what `self` borrows: strings that
        // end with a zero and arrays that end with a null pointer, made before the process was.
        unsafe {
            for entrance in entrance.into_iter().chain(self.limits.iter().map(AsRawFd::as_raw_fd)) {
                done(Step::Groups, libc::write(entrance, b"0".as_ptr().cast(), 1) as c_long)?;
            }
            done(Step::Other, libc::setsid().into())?;
            for signal in 1..=LAST_SIGNAL {
                // Refused for SIGKILL, SIGSTOP and the C library's own.
                libc::signal(signal, libc::SIG_DFL);
            }
            for (target, source) in (0..).zip(self.streams) {
                done(Step::Other, libc::dup2(source, target).into())?;
            }
            if let Some(score) = self.oom_score {
                let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                done(Step::Other, file.into())?;
                done(Step::Other, libc::write(file, score.as_ptr().cast(), score.len()) as c_long)?;
            }
            if let Some(user) = &self.image.user {
                done(Step::User, libc::syscall(libc::SYS_setgid, user.gid))?;
                if libc::getuid() == 0 {
                    let (count, groups) = (user.groups.len(), user.groups.as_ptr());
                    done(Step::User, libc::syscall(libc::SYS_setgroups, count, groups))?;
                }
                done(Step::User, libc::syscall(libc::SYS_setuid, user.uid))?;
                // Another user's process has lost it.
                self.die_with_watchdog()?;
            }
            done(Step::Directory, libc::chdir(self.image.directory.as_ptr()).into())?;
            // Not known before Linux 5.11, and no loss there: everything of the watchdog's is close-on-exec.
            libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            let mut none = std::mem::MaybeUninit::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            done(Step::Other, libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()).into())?;
            let (arguments, environment) = (self.arguments.as_ptr(), self.environment.as_ptr());
            libc::execve(self.image.program.as_ptr(), arguments, environment);
            Err(Failed(Step::Exec))
        }
    }

    /// Asks the kernel to; the watchdog may have died just before.
    fn die_with_watchdog(&self) -> Result<(), Failed> {
        // SAFETY: system calls with integers only.
        unsafe {
            done(Step::Other, libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
            if libc::getppid() != self.parent {
                libc::_exit(127);
            }
        }
        Ok(())
    }
}

/// `errno` says why.
struct Failed(Step);

fn done(step: Step, result: c_long) -> Result<(), Failed> {
    if result < 0 { Err(Failed(step)) } else { Ok(()) }
}

/// The end of file, which exec brings about, means that there was none.
fn read_failure(pipe: OwnedFd) -> Option<(Step, io::Error)> {
    let mut told = [0; 1 + size_of::<c_int>()];
    File::from(pipe).read_exact(&mut told).ok()?;
    let [step, errno @ ..] = told;
    let steps = [Step::Other, Step::Groups, Step::User, Step::Directory, Step::Exec];
    let step = steps.get(usize::from(step)).copied().unwrap_or(Step::Other);
    Some((step, io::Error::from_raw_os_error(c_int::from_ne_bytes(errno))))
}

/// For the system.
pub fn c_string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    Ok(CString::new(text.as_ref().as_bytes())?)
}

/// The descriptor that a process got as its standard input, now its own; nothing is read there any more.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let taken = nix::fcntl::fcntl(io::stdin(), nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3))?;
    let nothing = File::open("/dev/null")?;
    // SAFETY: two descriptors that are open; what was the first one's has just been kept under another number.
    if unsafe { libc::dup2(nothing.as_raw_fd(), libc::STDIN_FILENO) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(taken) })
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

fn narrow(number: c_long) -> c_int {
    c_int::try_from(number).expect("process ids are ints")
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::ExitStatusExt as _,
        process::{self, ExitStatus},
    };

    use super::{super::wire::Obstacle, *};
    use crate::executor::cgroup::CgroupRoot;

    fn image(program: &str, arguments: &[&str]) -> Image {
        Image {
            program: c_string(program).unwrap(),
            arguments: [program].iter().chain(arguments).map(|text| c_string(text).unwrap()).collect(),
            environment: vec![c"PATH=/usr/bin:/bin".to_owned()],
            directory: c"/".to_owned(),
            user: None,
        }
    }

    fn in_group(cgroup: &Cgroup) -> Surroundings {
        Surroundings { cgroup: Some(cgroup.clone()), ..Surroundings::default() }
    }

    fn output(image: &Image, around: &Surroundings) -> (String, ExitStatus) {
        let made = image.spawn(around).unwrap();
        nix::fcntl::fcntl(&made.stdout, nix::fcntl::FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let out = io::read_to_string(File::from(made.stdout)).unwrap();
        (out, ExitStatus::from_raw(reap(made.pid).unwrap().0))
    }

    fn plain(image: &Image) -> (String, ExitStatus) {
        output(image, &Surroundings::default())
    }

    #[test]
    fn a_process_is_in_its_control_group_from_the_first_instruction() {
        let roots: Vec<_> = CgroupRoot::usable_ones().collect();
        if roots.is_empty() {
            eprintln!("skipped: control groups are not permitted here");
        }
        for root in roots {
            let name = format!("entered-{}", process::id());
            let cgroup = root.create(&name).unwrap();
            let (out, status) = output(&image("/bin/cat", &["/proc/self/cgroup"]), &in_group(&cgroup));
            let inside = out.lines().any(|line| line.ends_with(&format!("/hodei-{name}")));
            assert!(inside && status.success(), "{}: {out}", cgroup.dir().display());
            // It came after the way to make processes inside, and only with version 2.
            if cgroup.dir().join("cgroup.kill").exists() {
                assert!(clone_into(&cgroup).success());
            }
            assert!(cgroup.kill_until_empty());
            cgroup.remove();
            assert!(!cgroup.dir().exists());
        }
    }

    /// Without the other way to hide that it does not work.
    fn clone_into(cgroup: &Cgroup) -> ExitStatus {
        let (image, null) = (image("/bin/true", &[]), File::open("/dev/null").unwrap());
        let arguments = pointers(&image.arguments);
        let recipe = Recipe {
            image: &image,
            arguments: &arguments,
            environment: &[ptr::null()],
            streams: [null.as_raw_fd(); 3],
            failure: null.as_raw_fd(),
            limits: &[],
            oom_score: None,
            parent: nix::unistd::getpid().as_raw(),
        };
        ExitStatus::from_raw(reap(recipe.clone_into(cgroup).unwrap()).unwrap().0)
    }

    #[test]
    fn nothing_of_the_agent_is_inherited() {
        let (out, _) = plain(&image("/bin/grep", &["-E", "Sig(Blk|Ign)", "/proc/self/status"]));
        let own_of_the_c_library = 0b11 << 31;
        for line in out.lines() {
            let signals = u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
            assert_eq!(signals & !own_of_the_c_library, 0, "{line}");
        }
        let (out, _) = plain(&image("/bin/ls", &["/proc/self/fd"]));
        assert_eq!(out, "0\n1\n2\n3\n", "the fourth is the one that lists them");
    }

    #[test]
    fn a_failure_says_what_was_in_the_way() {
        let obstacle = |image: &Image| image.spawn(&Surroundings::default()).unwrap_err().obstacle;
        assert_eq!(obstacle(&image("/no/such/program", &[])), Obstacle::NotFound);
        assert_eq!(obstacle(&image("/etc/passwd", &[])), Obstacle::NotPermitted);
        let elsewhere = Image { directory: c"/no/such/directory".to_owned(), ..image("/bin/true", &[]) };
        let why = elsewhere.spawn(&Surroundings::default()).unwrap_err();
        assert_eq!(
            (why.obstacle, why.message.as_str()),
            (Obstacle::NoDirectory, "working directory /no/such/directory: not there")
        );
    }

    #[test]
    fn another_user_gets_that_user_and_the_groups_given() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: needs root");
        }
        let user = Some(User { uid: 12_345, gid: 54_321, groups: vec![54_322] });
        let (out, _) = plain(&Image { user, ..image("/usr/bin/id", &[]) });
        assert_eq!(out, "uid=12345 gid=54321 groups=54321,54322\n");
    }

    #[test]
    fn standard_input_and_the_readiness_to_die_are_as_given() {
        let mut text = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut text, b"secret\n").unwrap();
        io::Seek::rewind(&mut text).unwrap();
        let around = Surroundings { stdin: Some(text.into()), oom_score: Some("7".into()), ..Surroundings::default() };
        let (out, _) = output(&image("/bin/cat", &["-", "/proc/self/oom_score_adj"]), &around);
        assert_eq!(out, "secret\n7\n");
    }

    #[test]
    fn the_end_is_told_with_what_was_used() {
        let made = image("/bin/sh", &["-c", "exit 7"]).spawn(&Surroundings::default()).unwrap();
        let (status, usage) = reap(made.pid).unwrap();
        assert_eq!(ExitStatus::from_raw(status).code(), Some(7));
        assert!(usage.largest_kib > 0);
    }
}
