//! Makes, watches and reaps a job's process: the one place with `unsafe`.
//!
//! Where the kernel can do it (`clone3` with `CLONE_INTO_CGROUP`, cgroup v2, Linux 5.7) the process is made inside its
//! control group, which costs nothing. Elsewhere it is forked and moves itself there before it can have children; the
//! kernel may let that wait for a grace period of RCU, some ten milliseconds. Either way it, and so every descendant,
//! is in the group before the first instruction of the job's program.
//!
//! **Between the two programs.** The new process is a copy of one thread of many, so it must touch no lock and no
//! allocator: all that it needs is in [`Image`] and `Recipe`, made before. It makes system calls only; those that
//! change the user go around the C library, which would signal threads that are not there any more. Every descriptor
//! of the agent is close-on-exec, and what the agent ignores or blocks is reset, so nothing is inherited but the three
//! standard streams.

#![allow(unsafe_code, reason = "std offers no way to make a process inside a control group, nor code before exec")]

use std::{
    convert::Infallible,
    ffi::{CString, OsStr, c_char, c_int, c_long},
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, process::ExitStatusExt as _},
    },
    process::ExitStatus,
    ptr,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    libc,
    sys::signal::{SigSet, SigmaskHow},
    unistd::pipe2,
};
use tokio::io::{Interest, unix::AsyncFd};

use super::cgroup::Cgroup;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("there setuid and setgid are other system calls: the plain ones take 16 bits");

/// From <linux/sched.h>; the constant of the libc crate is an `int`, which cannot hold it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// The last signal of Linux.
const LAST_SIGNAL: c_int = 64;

/// The program of a process and what it starts with.
pub struct Image {
    /// A path; nothing is searched.
    pub program: CString,
    /// With the name that it is called by.
    pub arguments: Vec<CString>,
    /// `NAME=value`, each name once.
    pub environment: Vec<CString>,
    /// Its working directory.
    pub directory: CString,
    /// User and group, where it is not the agent's.
    pub user: Option<(libc::uid_t, libc::gid_t)>,
}

/// A process that has been made and not yet been reaped. Dropping it does not end it.
#[derive(Debug)]
pub struct Process {
    pid: libc::pid_t,
    pidfd: Option<OwnedFd>,
}

/// A process with the read ends of its standard output and standard error.
pub type Piped = (Process, OwnedFd, OwnedFd);

impl Image {
    /// Runs it in a session and a process group of its own, with nothing to read. Returns when the program has taken
    /// over, or with the reason why it could not.
    pub fn spawn(&self, cgroup: Option<&Cgroup>) -> io::Result<Piped> {
        let stdin = File::open("/dev/null")?;
        let (stdout, stdout_end) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, stderr_end) = pipe2(OFlag::O_CLOEXEC)?;
        let (failure, failure_end) = pipe2(OFlag::O_CLOEXEC)?;
        let streams = [stdin.as_raw_fd(), stdout_end.as_raw_fd(), stderr_end.as_raw_fd()];
        // The runtime opens the first three at its start if they are closed: no source of a dup2 is also a target.
        assert!(streams.iter().all(|fd| *fd > libc::STDERR_FILENO), "standard streams are open");
        let (arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
        let recipe = Recipe {
            image: self,
            arguments: &arguments,
            environment: &environment,
            streams,
            failure: failure_end.as_raw_fd(),
        };
        let process = recipe.make(cgroup)?;
        drop((failure_end, stdout_end, stderr_end));
        match read_failure(failure) {
            None => Ok((process, stdout, stderr)),
            Some(error) => {
                process.reap()?;
                Err(error)
            }
        }
    }
}

impl Process {
    /// Its number, which nobody else gets before it is reaped.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Readable once it has ended. `None` where the kernel is older than Linux 5.3.
    #[must_use]
    pub fn end(&self) -> Option<AsyncFd<BorrowedFd<'_>>> {
        let pidfd = self.pidfd.as_ref()?.as_fd();
        // SAFETY: the descriptor is open and the same as long as it is borrowed.
        unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.ok()
    }

    /// Waits for its end and forgets it. Once.
    pub fn reap(&self) -> io::Result<ExitStatus> {
        let mut status = 0;
        // SAFETY: the pointer is to a local that outlives the call.
        while unsafe { libc::waitpid(self.pid, &raw mut status, 0) } < 0 {
            if Errno::last() != Errno::EINTR {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(ExitStatus::from_raw(status))
    }
}

/// What the new process reads: borrowed, never allocated there.
struct Recipe<'a> {
    image: &'a Image,
    /// Both end with a null pointer.
    arguments: &'a [*const c_char],
    environment: &'a [*const c_char],
    /// What become 0, 1 and 2.
    streams: [RawFd; 3],
    /// Where to write the errno of a failure; closed by a successful exec.
    failure: RawFd,
}

impl Recipe<'_> {
    /// No handler of the agent's may run in the new process, so all signals wait until it has reset them.
    fn make(&self, cgroup: Option<&Cgroup>) -> io::Result<Process> {
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let made = match cgroup {
            None => self.fork(None),
            // Whatever speaks against it (old kernel, cgroup v1, a filter of system calls): the way that always was.
            Some(cgroup) => self.clone_into(cgroup).or_else(|_| self.fork(Some(&cgroup.entrance()?))),
        };
        before.thread_set_mask()?;
        made
    }

    fn clone_into(&self, cgroup: &Cgroup) -> io::Result<Process> {
        let group = File::open(cgroup.dir())?;
        let mut pidfd: RawFd = -1;
        // SAFETY: all zeros is valid for this structure of integers, and what the kernel takes as "not given".
        let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
        how.flags = libc::CLONE_PIDFD.unsigned_abs().into();
        how.flags |= CLONE_INTO_CGROUP;
        how.pidfd = (&raw mut pidfd).expose_provenance() as u64;
        how.exit_signal = libc::SIGCHLD.unsigned_abs().into();
        how.cgroup = group.as_raw_fd().unsigned_abs().into();
        // SAFETY: without CLONE_VM and without a stack this is a fork: the child goes on with a copy of everything, and
        // the only thing that it does is `become_job`. The kernel writes nothing but `pidfd`, which outlives the call.
        match unsafe { libc::syscall(libc::SYS_clone3, &raw const how, size_of_val(&how)) } {
            0 => self.become_job(None),
            // SAFETY: CLONE_PIDFD has stored a new descriptor that nobody else owns; the kernel makes it close-on-exec.
            pid if pid > 0 => Ok(Process { pid: narrow(pid), pidfd: Some(unsafe { OwnedFd::from_raw_fd(pidfd) }) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// `entrance`: of the control group to move to.
    fn fork(&self, entrance: Option<&File>) -> io::Result<Process> {
        // SAFETY: the only thing that the child does is `become_job`, which makes system calls only.
        let pid = match unsafe { libc::fork() } {
            0 => self.become_job(entrance.map(AsRawFd::as_raw_fd)),
            pid if pid > 0 => pid,
            _ => return Err(io::Error::last_os_error()),
        };
        // SAFETY: takes two integers. The child is not reaped yet, so the number is its own.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        // SAFETY: a new descriptor that nobody else owns.
        let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(narrow(pidfd)) });
        Ok(Process { pid, pidfd })
    }

    /// In the new process: becomes the job's program, or tells why not and ends.
    fn become_job(&self, entrance: Option<RawFd>) -> ! {
        let Err(Failed) = self.exec(entrance);
        let told = Errno::last_raw().to_ne_bytes();
        // SAFETY: write(2) of a local; then the end, without running anything that the agent has registered for exit.
        unsafe {
            libc::write(self.failure, told.as_ptr().cast(), told.len());
            libc::_exit(127);
        }
    }

    /// Returns only upon failure, with `errno` set.
    fn exec(&self, entrance: Option<RawFd>) -> Result<Infallible, Failed> {
        // SAFETY: system calls only, and each with integers or with pointers into what `self` borrows: strings that
        // end with a zero and arrays that end with a null pointer, made before the process was.
        unsafe {
            if let Some(entrance) = entrance {
                done(libc::write(entrance, b"0".as_ptr().cast(), 1) as c_long)?;
            }
            done(libc::setsid().into())?;
            for signal in 1..=LAST_SIGNAL {
                // Refused for SIGKILL, SIGSTOP and the C library's own.
                libc::signal(signal, libc::SIG_DFL);
            }
            for (target, source) in (0..).zip(self.streams) {
                done(libc::dup2(source, target).into())?;
            }
            if let Some((user, group)) = self.image.user {
                done(libc::syscall(libc::SYS_setgid, group))?;
                if libc::getuid() == 0 {
                    done(libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()))?;
                }
                done(libc::syscall(libc::SYS_setuid, user))?;
            }
            done(libc::chdir(self.image.directory.as_ptr()).into())?;
            // Whoever started the agent may have left it descriptors. Not known before Linux 5.11, and no loss there.
            libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            let mut none = std::mem::MaybeUninit::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            done(libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()).into())?;
            let (arguments, environment) = (self.arguments.as_ptr(), self.environment.as_ptr());
            libc::execve(self.image.program.as_ptr(), arguments, environment);
            Err(Failed)
        }
    }
}

/// `errno` says why.
struct Failed;

fn done(result: c_long) -> Result<(), Failed> {
    if result < 0 { Err(Failed) } else { Ok(()) }
}

/// The end of file, which exec brings about, means that there was none.
fn read_failure(pipe: OwnedFd) -> Option<io::Error> {
    let mut errno = [0; size_of::<c_int>()];
    File::from(pipe).read_exact(&mut errno).ok()?;
    Some(io::Error::from_raw_os_error(c_int::from_ne_bytes(errno)))
}

/// For the system.
pub fn c_string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    Ok(CString::new(text.as_ref().as_bytes())?)
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

fn narrow(number: c_long) -> c_int {
    c_int::try_from(number).expect("process ids and descriptors are ints")
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::{
        super::cgroup::{Cgroup, CgroupRoot},
        *,
    };

    fn image(program: &str, arguments: &[&str]) -> Image {
        Image {
            program: c_string(program).unwrap(),
            arguments: [program].iter().chain(arguments).map(|text| c_string(text).unwrap()).collect(),
            environment: vec![c"PATH=/usr/bin:/bin".to_owned()],
            directory: c"/".to_owned(),
            user: None,
        }
    }

    fn output(image: &Image, cgroup: Option<&Cgroup>) -> (String, ExitStatus) {
        let (process, stdout, _stderr) = image.spawn(cgroup).unwrap();
        let out = io::read_to_string(File::from(stdout)).unwrap();
        (out, process.reap().unwrap())
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
            let (out, status) = output(&image("/bin/cat", &["/proc/self/cgroup"]), Some(&cgroup));
            let inside = out.lines().any(|line| line.ends_with(&format!("/hodei-{name}")));
            assert!(inside && status.success(), "{}: {out}", cgroup.dir().display());
            // It came after the way to make processes inside, and only with version 2.
            if cgroup.dir().join("cgroup.kill").exists() {
                assert!(clone_into(&cgroup).unwrap().success());
            }
            assert!(cgroup.kill_until_empty());
            cgroup.remove();
            assert!(!cgroup.dir().exists());
        }
    }

    /// Without the other way to hide that it does not work.
    fn clone_into(cgroup: &Cgroup) -> io::Result<ExitStatus> {
        let (image, null) = (image("/bin/true", &[]), File::open("/dev/null").unwrap());
        let arguments = pointers(&image.arguments);
        let recipe = Recipe {
            image: &image,
            arguments: &arguments,
            environment: &[ptr::null()],
            streams: [null.as_raw_fd(); 3],
            failure: null.as_raw_fd(),
        };
        recipe.clone_into(cgroup)?.reap()
    }

    #[test]
    fn nothing_of_the_agent_is_inherited() {
        let (out, _) = output(&image("/bin/grep", &["-E", "Sig(Blk|Ign)", "/proc/self/status"]), None);
        let own_of_the_c_library = 0b11 << 31;
        for line in out.lines() {
            let signals = u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
            assert_eq!(signals & !own_of_the_c_library, 0, "{line}");
        }
        let (out, _) = output(&image("/bin/ls", &["/proc/self/fd"]), None);
        assert_eq!(out, "0\n1\n2\n3\n", "the fourth is the one that lists them");
    }

    #[test]
    fn a_failure_is_told_with_its_errno() {
        let kind = |image: &Image| image.spawn(None).unwrap_err().kind();
        assert_eq!(kind(&image("/no/such/program", &[])), io::ErrorKind::NotFound);
        assert_eq!(kind(&image("/etc/passwd", &[])), io::ErrorKind::PermissionDenied);
        let elsewhere = Image { directory: c"/no/such/directory".to_owned(), ..image("/bin/true", &[]) };
        assert_eq!(kind(&elsewhere), io::ErrorKind::NotFound);
    }

    #[test]
    fn another_user_gets_that_user_and_no_groups() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: needs root");
        }
        let other = Image { user: Some((12_345, 54_321)), ..image("/usr/bin/id", &[]) };
        let (out, _) = output(&other, None);
        assert_eq!(out, "uid=12345 gid=54321 groups=54321\n");
    }

    #[tokio::test]
    async fn the_end_is_told_before_the_process_is_reaped() {
        let (process, _stdout, _stderr) = image("/bin/sh", &["-c", "exit 7"]).spawn(None).unwrap();
        if let Some(end) = process.end() {
            drop(end.readable().await.unwrap());
        }
        assert_eq!(process.reap().unwrap().code(), Some(7));
    }
}
