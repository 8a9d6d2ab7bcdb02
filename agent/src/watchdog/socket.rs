//! Messages, whole or not at all, with descriptors that travel along: `SOCK_SEQPACKET` on a Unix socket. Nothing here
//! waits unless it says so.

#![allow(unsafe_code, reason = "a descriptor that arrives is a number without an owner")]

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
        UnixCredentials, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, socket, socketpair,
        sockopt::PeerCredentials,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

/// The longest message. What may be longer travels in a file of its own.
const MAX_MESSAGE: usize = 16 << 10;
/// Descriptors that travel with one message.
const MAX_DESCRIPTORS: usize = 8;

/// One end of a connection, or what listens for some.
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// A message and what came with it.
#[derive(Debug)]
pub struct Received {
    /// The text.
    pub bytes: Vec<u8>,
    /// In the order in which they were sent.
    pub descriptors: Vec<OwnedFd>,
}

impl Socket {
    /// Both ends of a new connection; the second one is to be inherited.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags())?;
        Ok((Self(one), other))
    }

    /// One end that was inherited.
    #[must_use]
    pub fn inherited(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Listens at `path`, which must be short (108 bytes).
    pub fn listen(path: &Path) -> io::Result<Self> {
        let listener = Self::new()?;
        bind(listener.0.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&listener.0, Backlog::new(4)?)?;
        Ok(listener)
    }

    /// Connects to whoever listens as `name` in `dir`, however long the path.
    pub fn connect(dir: &Path, name: &str) -> io::Result<Self> {
        let dir = File::open(dir)?;
        let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
        let end = Self::new()?;
        connect(end.0.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
        Ok(end)
    }

    fn new() -> io::Result<Self> {
        Ok(Self(socket(AddressFamily::Unix, SockType::SeqPacket, flags(), None)?))
    }

    /// The next connection, where one waits.
    pub fn accept(&self) -> io::Result<Self> {
        let raw = accept4(self.0.as_raw_fd(), flags())?;
        // SAFETY: a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    /// The process on the other side, as it was when it began to listen.
    pub fn peer(&self) -> io::Result<UnixCredentials> {
        Ok(getsockopt(&self.0, PeerCredentials)?)
    }

    /// Whether the other side is there.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let mut sources = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        matches!(poll(&mut sources, PollTimeout::ZERO), Ok(0))
    }

    /// Sends a message. One that does not fit into what the other side has yet to read fails with `WouldBlock`.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let along = if raw.is_empty() { &[][..] } else { &rights[..] };
        let how = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], along, how, None)?;
        Ok(())
    }

    /// The next message; `None` once the other side is gone and everything that it said has been read. `WouldBlock` where
    /// there is none yet.
    pub fn receive(&self) -> io::Result<Option<Received>> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let mut descriptors = Vec::new();
        let len = {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let how = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            let message = match recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), how) {
                // It ended with something of ours unread.
                Err(Errno::ECONNRESET) => return Ok(None),
                message => message?,
            };
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(arrived) = control {
                    // SAFETY: new descriptors that nobody else owns.
                    descriptors.extend(arrived.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
                }
            }
            message.bytes
        };
        buffer.truncate(len);
        Ok((len > 0).then_some(Received { bytes: buffer, descriptors }))
    }

    /// The same, waiting for it. Blocking.
    pub fn receive_within(&self, patience: Duration) -> io::Result<Option<Received>> {
        let deadline = Instant::now() + patience;
        loop {
            match self.receive() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return received,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) | Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Has the runtime tell when there is something to read.
pub fn readable<T: AsRawFd + Owned>(descriptor: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: it owns what it names, so that is open, and the same, for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// What closes its descriptor when it is dropped, and not before.
///
/// # Safety
/// That must be so.
pub unsafe trait Owned {}
// SAFETY: this is what it is for.
unsafe impl Owned for OwnedFd {}
// SAFETY: a share of an owner; nobody can take the descriptor out of a socket.
unsafe impl Owned for Arc<Socket> {}

fn flags() -> SockFlag {
    SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn messages_arrive_whole_with_what_was_sent_along_and_the_end_is_told_last() {
        let (one, other) = Socket::pair().unwrap();
        let other = Socket::inherited(other);
        assert_eq!(other.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"inside").unwrap();
        one.send(b"first", &[file.as_fd()]).unwrap();
        one.send(b"second", &[]).unwrap();
        assert!(other.is_open());
        drop(one);
        assert!(!other.is_open());
        let first = other.receive().unwrap().unwrap();
        assert_eq!((first.bytes.as_slice(), first.descriptors.len()), (&b"first"[..], 1));
        let mut text = String::new();
        let mut arrived = File::from(first.descriptors.into_iter().next().unwrap());
        arrived.rewind().unwrap();
        arrived.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        assert_eq!(other.receive().unwrap().unwrap().bytes, b"second");
        assert!(other.receive().unwrap().is_none());
    }

    #[test]
    fn a_directory_may_lie_deeper_than_an_address_is_long() {
        let dir = tempfile::tempdir().unwrap();
        let deep = (0..20).fold(dir.path().to_owned(), |path, _| path.join("a-long-name"));
        std::fs::create_dir_all(&deep).unwrap();
        assert_eq!(Socket::connect(&deep, "w").unwrap_err().kind(), io::ErrorKind::NotFound);
        let held = File::open(&deep).unwrap();
        let listener = Socket::listen(Path::new(&format!("/proc/self/fd/{}/w", held.as_raw_fd()))).unwrap();
        let end = Socket::connect(&deep, "w").unwrap();
        assert_eq!(end.peer().unwrap().pid(), std::process::id().cast_signed());
        let accepted = listener.accept().unwrap();
        accepted.send(b"hello", &[]).unwrap();
        assert_eq!(end.receive_within(Duration::from_secs(5)).unwrap().unwrap().bytes, b"hello");
        assert_eq!(end.receive_within(Duration::from_millis(1)).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop((listener, accepted));
        assert_eq!(Socket::connect(&deep, "w").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
