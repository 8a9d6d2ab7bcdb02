//! The switch: a thread that moves Ethernet frames between TAP devices, as each link permits.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::MTU;

/// From one host to another one, by their numbers.
pub type Way = (u8, u8);

/// What happens to frames that go one way. Chances are thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// None arrives.
    pub cut: bool,
    /// None arrives until this is lifted, and then all of them do.
    pub jammed: bool,
    /// How many are lost.
    pub loss: u16,
    /// How many arrive twice.
    pub duplicated: u16,
    /// How many are overtaken by what is sent up to 20 ms later.
    pub overtaken: u16,
    /// How long each takes …
    pub delay: Duration,
    /// … and up to how much longer.
    pub jitter: Duration,
    /// How many bytes pass in a second; 0: as many as can. What has to wait for more than a second is lost.
    pub bytes_per_s: u64,
}

impl Link {
    /// As links are.
    pub const GOOD: Self = Self {
        cut: false,
        jammed: false,
        loss: 0,
        duplicated: 0,
        overtaken: 0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        bytes_per_s: 0,
    };
    /// See [`Link::cut`].
    pub const CUT: Self = Self { cut: true, ..Self::GOOD };

    /// Both faults at once.
    fn and(self, other: Self) -> Self {
        let slower = match (self.bytes_per_s, other.bytes_per_s) {
            (0, rate) | (rate, 0) => rate,
            (one, two) => one.min(two),
        };
        Self {
            cut: self.cut || other.cut,
            jammed: self.jammed || other.jammed,
            loss: self.loss.max(other.loss),
            duplicated: self.duplicated.max(other.duplicated),
            overtaken: self.overtaken.max(other.overtaken),
            delay: self.delay.max(other.delay),
            jitter: self.jitter.max(other.jitter),
            bytes_per_s: slower,
        }
    }
}

/// The thread and what it goes by.
#[derive(Debug)]
pub(super) struct Switch {
    links: Links,
    thread: Option<JoinHandle<()>>,
}

/// What changes links. Clones change the same ones.
#[derive(Clone, Debug)]
pub struct Links {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    rules: Mutex<Rules>,
    /// A byte for each change of the rules or ports.
    wake: File,
}

#[derive(Debug, Default)]
struct Rules {
    over: bool,
    ports: HashMap<u8, Arc<File>>,
    /// What each link does by itself.
    links: HashMap<Way, Link>,
    /// Faults on top of it.
    laid: BTreeMap<u64, Vec<(Way, Link)>>,
    /// The two together; links that are as links are do not appear.
    now: HashMap<Way, Link>,
    next: u64,
}

impl Rules {
    fn settle(&mut self) {
        self.now.clone_from(&self.links);
        for &(way, link) in self.laid.values().flatten() {
            let known = self.now.entry(way).or_default();
            *known = known.and(link);
        }
        self.now.retain(|_, link| *link != Link::GOOD);
    }
}

impl Switch {
    pub(super) fn new() -> Self {
        let (woken, wake) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC)
            .unwrap_or_else(|e| panic!("a pipe can be made: {e}"));
        let shared = Arc::new(Shared { rules: Mutex::default(), wake: wake.into() });
        let forwarder = Forwarder::new(Arc::clone(&shared), woken.into());
        let thread = thread::Builder::new().name("switch".to_owned()).spawn(move || forwarder.run());
        Self { links: Links { shared }, thread: Some(thread.unwrap_or_else(|e| panic!("a thread can be made: {e}"))) }
    }

    pub(super) fn plug(&self, number: u8, port: File) {
        self.links.change(|rules| drop(rules.ports.insert(number, Arc::new(port))));
    }

    pub(super) fn set(&self, way: Way, link: Link) {
        self.links.change(|rules| {
            rules.links.insert(way, link);
        });
    }

    pub(super) fn links(&self) -> Links {
        self.links.clone()
    }
}

impl Links {
    /// Lays faults on top of what links do already, until [`Links::lift`].
    #[must_use]
    pub fn lay(&self, ways: Vec<(Way, Link)>) -> u64 {
        self.change(|rules| {
            rules.next += 1;
            rules.laid.insert(rules.next, ways);
            rules.next
        })
    }

    /// Takes the faults of one [`Links::lay`] away.
    pub fn lift(&self, laid: u64) {
        self.change(|rules| drop(rules.laid.remove(&laid)));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Rules) -> T) -> T {
        let done = {
            let mut rules = self.shared.lock();
            let done = change(&mut rules);
            rules.settle();
            done
        };
        // Full means that it is being woken already.
        let _ = (&self.shared.wake).write(&[0]);
        done
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.links.change(|rules| rules.over = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A frame that waits for its time. Ordered by it; equal times by arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Instant,
    arrived: u64,
    to: u8,
    frame: Vec<u8>,
}

struct Forwarder {
    shared: Arc<Shared>,
    woken: File,
    rng: SmallRng,
    waiting: BinaryHeap<Reverse<Waiting>>,
    jammed: HashMap<Way, VecDeque<Vec<u8>>>,
    /// When each slow link is free again, and the last time that was given to a frame of each way: what is only delayed
    /// keeps its order.
    free: HashMap<Way, Instant>,
    last: HashMap<Way, Instant>,
    arrived: u64,
}

/// How many frames a jammed link keeps.
const KEPT: usize = 10_000;
/// How many frames of one port are read before the others have their turn.
const TURN: usize = 64;
/// The longest queue of a slow link.
const QUEUE: Duration = Duration::from_secs(1);

impl Forwarder {
    fn new(shared: Arc<Shared>, woken: File) -> Self {
        Self {
            shared,
            woken,
            // Which frames are lost depends on when they come, so that a seed of the run's would not bring them back.
            rng: SmallRng::from_os_rng(),
            waiting: BinaryHeap::new(),
            jammed: HashMap::new(),
            free: HashMap::new(),
            last: HashMap::new(),
            arrived: 0,
        }
    }

    fn run(mut self) {
        let mut buffer = vec![0; MTU + 64];
        let mut ports = HashMap::new();
        loop {
            let readable = self.wait(&ports);
            // Read after what came: a frame that was sent after a change goes by it.
            let now = {
                let rules = self.shared.lock();
                if rules.over {
                    return;
                }
                ports.clone_from(&rules.ports);
                rules.now.clone()
            };
            self.release(&now, &ports);
            for from in readable {
                self.drain(from, &ports, &now, &mut buffer);
            }
        }
    }

    /// Sends what is due, then waits for the next frame, change or due time; gives the ports that have something.
    fn wait(&mut self, ports: &HashMap<u8, Arc<File>>) -> Vec<u8> {
        let at = Instant::now();
        while let Some(Reverse(next)) = self.waiting.peek()
            && next.due <= at
        {
            if let Some(Reverse(next)) = self.waiting.pop() {
                send(ports, next.to, &next.frame);
            }
        }
        let until = self.waiting.peek().map(|Reverse(next)| next.due.saturating_duration_since(at));
        // Rounded up, or the last millisecond would be spent in circles.
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            PollTimeout::try_from(until + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
        });
        let numbers: Vec<u8> = ports.keys().copied().collect();
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(numbers.iter().map(|number| PollFd::new(ports[number].as_fd(), PollFlags::POLLIN)));
        let _ = poll(&mut fds, timeout);
        let has = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
        let readable = numbers.iter().zip(&fds[1..]).filter(|(_, fd)| has(fd)).map(|(number, _)| *number).collect();
        if has(&fds[0]) {
            let _ = (&self.woken).read(&mut [0; 64]);
        }
        readable
    }

    fn drain(&mut self, from: u8, ports: &HashMap<u8, Arc<File>>, links: &HashMap<Way, Link>, buffer: &mut [u8]) {
        for _ in 0..TURN {
            // A device that is down has nothing, and one whose host is gone fails.
            let Ok(read) = (&*ports[&from]).read(buffer) else { return };
            let frame = &buffer[..read];
            let Some(&to) = frame.get(5) else { continue };
            // Hosts are known by permanent entries: what is for many (IPv6 looking for routers) is for nobody here.
            if frame[0] != 2 || !ports.contains_key(&to) {
                continue;
            }
            match links.get(&(from, to)) {
                None => send(ports, to, frame),
                Some(link) => self.pass((from, to), link, frame, ports),
            }
        }
    }

    fn pass(&mut self, way: Way, link: &Link, frame: &[u8], ports: &HashMap<u8, Arc<File>>) {
        if link.cut || self.chance(link.loss) {
            return;
        }
        if link.jammed {
            let kept = self.jammed.entry(way).or_default();
            if kept.len() < KEPT {
                kept.push_back(frame.to_vec());
            }
            return;
        }
        let at = Instant::now();
        let Some(passed) = self.through(way, link, frame.len(), at) else { return };
        let jitter = u64::try_from(link.jitter.as_micros()).unwrap_or(u64::MAX);
        let mut due = passed + link.delay + Duration::from_micros(self.rng.random_range(0..=jitter));
        if self.chance(link.overtaken) {
            due += Duration::from_micros(self.rng.random_range(1_000..=20_000));
        } else {
            let last = self.last.entry(way).or_insert(due);
            due = due.max(*last);
            *last = due;
        }
        let copies = 1 + usize::from(self.chance(link.duplicated));
        for _ in 0..copies {
            if due <= at {
                send(ports, way.1, frame);
            } else {
                self.arrived += 1;
                let waiting = Waiting { due, arrived: self.arrived, to: way.1, frame: frame.to_vec() };
                self.waiting.push(Reverse(waiting));
            }
        }
    }

    /// When the last byte of a frame is through a slow link.
    fn through(&mut self, way: Way, link: &Link, bytes: usize, at: Instant) -> Option<Instant> {
        if link.bytes_per_s == 0 {
            return Some(at);
        }
        let free = self.free.entry(way).or_insert(at);
        let begins = (*free).max(at);
        if begins - at > QUEUE {
            return None;
        }
        *free = begins + Duration::from_nanos(bytes as u64 * 1_000_000_000 / link.bytes_per_s);
        Some(*free)
    }

    /// Sends what is jammed no more.
    fn release(&mut self, links: &HashMap<Way, Link>, ports: &HashMap<u8, Arc<File>>) {
        let free = |way: &Way| !links.get(way).is_some_and(|link| link.jammed);
        for (way, frames) in self.jammed.extract_if(|way, _| free(way)) {
            if !links.get(&way).is_some_and(|link| link.cut) {
                frames.iter().for_each(|frame| send(ports, way.1, frame));
            }
        }
    }

    fn chance(&mut self, thousandths: u16) -> bool {
        thousandths > 0 && self.rng.random_range(0..1000) < thousandths
    }
}

/// A port that takes no more loses frames, as any switch does.
fn send(ports: &HashMap<u8, Arc<File>>, to: u8, frame: &[u8]) {
    if let Some(port) = ports.get(&to) {
        let _ = (&**port).write(frame);
    }
}

nix::ioctl_write_ptr_bad!(
    /// `TUNSETIFF`.
    set_device,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// A TAP device in the namespace of the calling thread; what is read and written are its frames, as long as it is held.
pub(super) fn tap(name: &str) -> io::Result<File> {
    let open = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let tun = open().map_err(|e| io::Error::new(e.kind(), format!("/dev/net/tun: {e}")))?;
    attach(&tun, name)?;
    Ok(tun)
}

#[allow(unsafe_code)]
fn attach(tun: &File, name: &str) -> io::Result<()> {
    // SAFETY: `ifreq` is plain old data, for which all zeros are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(ErrorKind::InvalidInput));
    }
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`, which outlives the call.
    unsafe { set_device(tun.as_raw_fd(), &raw const request) }?;
    Ok(())
}
