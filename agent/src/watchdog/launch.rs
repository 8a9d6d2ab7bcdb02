//! What a watchdog needs to know to make the process: written to memory that is handed over, since arguments and
//! environment may be longer than a message, and are nothing for a disk.
//!
//! The form: a line of JSON, a zero, then every string with a zero behind it.

use std::{
    ffi::{CStr, CString, OsString},
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::ffi::OsStringExt as _,
    path::PathBuf,
    time::Duration,
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::process::{Image, User, c_string};
use crate::clock::Boot;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The process.
    pub image: Image,
    /// The control group by which it is killed.
    pub cgroup: Option<PathBuf>,
    /// Further ones, that bound what it uses.
    pub limits: Vec<PathBuf>,
    /// Until when it may run at first.
    pub deadline: Boot,
    /// From its start.
    pub timeout: Option<Duration>,
    /// Between SIGTERM and SIGKILL when the time-out has passed.
    pub grace: Duration,
    /// What must not be seen in the output.
    pub masked: Vec<CString>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    arguments: usize,
    environment: usize,
    limits: usize,
    masked: usize,
    cgroup: bool,
    user: Option<User>,
    deadline: Boot,
    timeout: Option<Duration>,
    grace: Duration,
}

impl Launch {
    /// Writes it to memory.
    pub fn write(&self) -> io::Result<File> {
        let head = Head {
            arguments: self.image.arguments.len(),
            environment: self.image.environment.len(),
            limits: self.limits.len(),
            masked: self.masked.len(),
            cgroup: self.cgroup.is_some(),
            user: self.image.user.clone(),
            deadline: self.deadline,
            timeout: self.timeout,
            grace: self.grace,
        };
        let mut bytes = serde_json::to_vec(&head).map_err(io::Error::other)?;
        bytes.push(0);
        let groups = self.cgroup.iter().chain(&self.limits).map(c_string).collect::<io::Result<Vec<_>>>()?;
        let image = [&self.image.program, &self.image.directory];
        let strings = image
            .into_iter()
            .chain(&self.image.arguments)
            .chain(&self.image.environment)
            .chain(&groups)
            .chain(&self.masked);
        strings.for_each(|string| bytes.extend_from_slice(string.as_bytes_with_nul()));
        let mut file = File::from(memfd_create(c"hodei-launch", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&bytes)?;
        file.rewind()?;
        Ok(file)
    }

    /// Reads it back.
    pub fn read(mut file: File) -> io::Result<Self> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        let mut strings = bytes.split_inclusive(|byte| *byte == 0);
        let mut next = || {
            let string = strings.next().and_then(|string| CStr::from_bytes_with_nul(string).ok());
            string.map(CStr::to_owned).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        let head: Head = serde_json::from_slice(next()?.as_bytes()).map_err(io::Error::other)?;
        let (program, directory) = (next()?, next()?);
        let mut many = |count: usize| (0..count).map(|_| next()).collect::<io::Result<Vec<CString>>>();
        let (arguments, environment) = (many(head.arguments)?, many(head.environment)?);
        let cgroup = if head.cgroup { many(1)?.pop().map(path) } else { None };
        let limits = many(head.limits)?.into_iter().map(path).collect();
        let masked = many(head.masked)?;
        let image = Image { program, arguments, environment, directory, user: head.user };
        Ok(Self { image, cgroup, limits, deadline: head.deadline, timeout: head.timeout, grace: head.grace, masked })
    }
}

fn path(string: CString) -> PathBuf {
    PathBuf::from(OsString::from_vec(string.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let whole = Launch {
            image: Image {
                program: c"/bin/sh".to_owned(),
                arguments: vec![c"sh".to_owned(), c"".to_owned(), c"a\nb".to_owned()],
                environment: vec![CString::new(vec![b'A', b'=', 0xff]).unwrap()],
                directory: c"/".to_owned(),
                user: Some(User { uid: 5, gid: 6, groups: vec![7, 8] }),
            },
            cgroup: Some("/sys/fs/cgroup/hodei-x".into()),
            limits: vec!["/a".into(), "/b".into()],
            deadline: Boot(Duration::from_nanos(1_234_567_890_123)),
            timeout: Some(Duration::from_millis(5)),
            grace: Duration::from_secs(10),
            masked: vec![c"hunter2".to_owned()],
        };
        assert_eq!(Launch::read(whole.write().unwrap()).unwrap(), whole);
        let least = Launch {
            image: Image { arguments: Vec::new(), environment: Vec::new(), user: None, ..whole.image },
            cgroup: None,
            limits: Vec::new(),
            timeout: None,
            masked: Vec::new(),
            ..whole
        };
        assert_eq!(Launch::read(least.write().unwrap()).unwrap(), least);
        let mut cut = tempfile::tempfile().unwrap();
        cut.write_all(b"{}\0").unwrap();
        assert!(Launch::read(cut).is_err());
    }
}
