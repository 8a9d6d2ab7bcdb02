//! A network of hosts on this machine whose links can fail: a network namespace per host, all at one switch, which is a
//! thread of this process.
//!
//! [`Net::new`] moves the calling thread into a namespace of its own, a host like the others; what the thread does from then
//! on, its connections and the processes that it starts, happens there, within reach of every host. A process is put onto
//! another host by [`Host::enter`]. Namespaces have no names and live by the descriptors and processes that hold them, so
//! that nothing is left of them when the test is gone, however it went.
//!
//! What a link does to frames is a [`Link`], for each direction by itself. A cut takes away whole frames without a word, as
//! a pulled cable does: hosts know the hardware addresses of all others and never ask for them.

mod switch;

use std::{
    fs::File,
    io,
    marker::PhantomData,
    net::Ipv4Addr,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{self, Command},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

pub use self::switch::{Link, Links, Way};
use self::switch::{Switch, tap};
pub use crate::disk::permitted;

/// Where nodes listen: every host has all ports to itself.
pub const PORT: u16 = 7651;
/// The device of every host.
const DEVICE: &str = "eth0";
/// Larger than Ethernet's, so that fewer frames are to be moved.
const MTU: usize = 9000;
/// The number of the host on which the test itself is.
const HERE: u8 = 254;
/// The third byte of addresses: a host moves from one to the other, and its number stays.
const STREETS: [u8; 2] = [0, 1];

/// The switch, the thread that stands on a host at it, and the other hosts. Dropped, the thread is back where it was; the
/// hosts' processes live on without a network.
#[derive(Debug)]
pub struct Net {
    before: File,
    here: Host,
    hosts: Vec<Host>,
    switch: Switch,
    /// It belongs to its thread.
    _here: PhantomData<*const ()>,
}

/// A host, by its namespace. Clones are the same host.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: Arc<OwnedFd>,
    number: u8,
    /// Which of [`STREETS`] it lives in.
    street: Arc<AtomicU8>,
}

impl Net {
    /// A switch without hosts, except for the one on which the calling thread is from then on. Call it on a thread that
    /// starts every process and makes every connection of the test, as a test's own does on a current-thread runtime.
    ///
    /// # Panics
    /// Without root, or where the kernel has no namespaces or no TAP devices.
    #[must_use]
    pub fn new() -> Self {
        let before = own_namespace();
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace can be made");
        let here = Host { namespace: Arc::new(own_namespace().into()), number: HERE, street: Arc::default() };
        let mut net = Self { before, here: here.clone(), hosts: Vec::new(), switch: Switch::new(), _here: PhantomData };
        net.plug(&here);
        net
    }

    /// Another host, within reach of all others.
    ///
    /// # Panics
    /// If it cannot be made; there is room for 253.
    pub fn host(&mut self) -> Host {
        let number =
            u8::try_from(self.hosts.len() + 1).ok().filter(|&number| number < HERE).expect("an address is left");
        let namespace = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace can be made");
            own_namespace()
        });
        let namespace: OwnedFd = namespace.join().expect("making a namespace does not panic").into();
        let host = Host { namespace: Arc::new(namespace), number, street: Arc::default() };
        self.plug(&host);
        self.hosts.push(host.clone());
        host
    }

    /// Gives a host a device at the switch, and makes it known to all others and all others to it.
    fn plug(&mut self, host: &Host) {
        let port = format!("port{}", host.number);
        let device = tap(&port).unwrap_or_else(|e| panic!("a TAP device can be made: {e}"));
        let path = format!("/proc/{}/fd/{}", process::id(), host.namespace.as_raw_fd());
        if host.number == HERE {
            ip(&["link", "set", &port, "name", DEVICE]);
        } else {
            ip(&["link", "set", &port, "netns", &path, "name", DEVICE]);
        }
        host.ip(&["link", "set", "lo", "up"]);
        host.ip(&["link", "set", DEVICE, "address", &hardware(host.number), "mtu", &MTU.to_string(), "up"]);
        host.lives("add");
        for other in self.hosts.iter().chain([&self.here]).filter(|other| other.number != host.number) {
            host.knows(other);
            other.knows(host);
        }
        self.switch.plug(host.number, device);
    }

    /// Nothing passes between the two any more, in either direction.
    pub fn cut(&self, one: &Host, other: &Host) {
        self.cut_way(one, other);
        self.cut_way(other, one);
    }

    /// Nothing passes from one to the other any more; the other way is as it was.
    pub fn cut_way(&self, from: &Host, to: &Host) {
        self.switch.set((from.number, to.number), Link::CUT);
    }

    /// Everything passes between the two again. Harmless where nothing was cut.
    pub fn heal(&self, one: &Host, other: &Host) {
        for way in [(one.number, other.number), (other.number, one.number)] {
            self.switch.set(way, Link::GOOD);
        }
    }

    /// Cuts every link between these and those.
    pub fn part(&self, these: &[&Host], those: &[&Host]) {
        these.iter().for_each(|one| those.iter().for_each(|other| self.cut(one, other)));
    }

    /// Heals every link between these and those.
    pub fn join(&self, these: &[&Host], those: &[&Host]) {
        these.iter().for_each(|one| those.iter().for_each(|other| self.heal(one, other)));
    }

    /// Lays faults on top of what links do already, until [`Net::lift`]. Of faults that overlap the worst counts.
    pub fn lay(&self, ways: Vec<(Way, Link)>) -> u64 {
        self.switch.links().lay(ways)
    }

    /// Takes the faults of one [`Net::lay`] away.
    pub fn lift(&self, laid: u64) {
        self.switch.links().lift(laid);
    }

    /// Lays and lifts faults from other threads.
    #[must_use]
    pub fn links(&self) -> Links {
        self.switch.links()
    }

    /// Plugs a host in again after [`Host::carrier`], which made it forget the others.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn replug(&self, host: &Host) {
        host.carrier(true);
        self.remind(host);
    }

    /// Gives a host another address instead of the one that it has, which nobody answers at any more.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn readdress(&self, host: &Host) {
        host.lives("delete");
        host.street.fetch_xor(1, Ordering::Relaxed);
        host.lives("add");
        self.remind(host);
    }

    /// A host without an address forgets the others.
    fn remind(&self, host: &Host) {
        for other in self.hosts.iter().chain([&self.here]).filter(|other| other.number != host.number) {
            host.knows(other);
        }
    }

    /// The host on which the calling thread is.
    #[must_use]
    pub fn here(&self) -> Host {
        self.here.clone()
    }
}

impl Default for Net {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.before, CloneFlags::CLONE_NEWNET) {
            eprintln!("the thread stays on its host: {error}");
        }
    }
}

impl Host {
    /// Its address, on a network that only its [`Net`] knows.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address_in(self.street.load(Ordering::Relaxed))
    }

    fn address_in(&self, street: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 94, street, self.number)
    }

    /// Takes its address, or gives it up.
    fn lives(&self, how: &str) {
        self.ip(&["address", how, &format!("{}/16", self.address()), "dev", DEVICE]);
    }

    /// From this host to another one.
    #[must_use]
    pub fn to(&self, other: &Self) -> Way {
        (self.number, other.number)
    }

    /// Has the process that `command` starts run on this host.
    #[allow(unsafe_code)]
    pub fn enter(&self, command: &mut Command) {
        let namespace = Arc::clone(&self.namespace);
        let hook = move || setns(&*namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        // SAFETY: between fork and exec only setns(2) is called; an errno becomes an error without allocating.
        unsafe {
            command.pre_exec(hook);
        }
    }

    /// Unplugs its device, or plugs it in again: unlike a cut, the host notices.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn carrier(&self, up: bool) {
        self.ip(&["link", "set", DEVICE, if up { "up" } else { "down" }]);
    }

    /// Ends all connections of this host with another one, as a firewall that lost its table does.
    ///
    /// # Panics
    /// If `ss` fails.
    pub fn reset_connections(&self, other: &Self) {
        let mut command = Command::new("ss");
        command.args(["--kill", "--tcp", "--no-header", "dst", &other.address().to_string()]);
        self.enter(&mut command);
        run(&mut command);
    }

    fn knows(&self, other: &Self) {
        for street in STREETS {
            let (address, hardware) = (other.address_in(street).to_string(), hardware(other.number));
            self.ip(&["neighbour", "replace", &address, "lladdr", &hardware, "nud", "permanent", "dev", DEVICE]);
        }
    }

    fn ip(&self, args: &[&str]) {
        let mut command = Command::new("ip");
        command.args(args);
        self.enter(&mut command);
        run(&mut command);
    }
}

/// The hardware address of a host: its last byte is its number.
fn hardware(number: u8) -> String {
    format!("02:00:00:00:00:{number:02x}")
}

fn own_namespace() -> File {
    File::open("/proc/thread-self/ns/net").expect("a thread has a network namespace")
}

fn ip(args: &[&str]) {
    run(Command::new("ip").args(args));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e} (is iproute2 installed?)"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
        time::{Duration, Instant},
    };

    use super::*;

    const PORT: u16 = 7;
    const PATIENCE: Duration = Duration::from_secs(20);
    /// What is cut stays without an answer for ever; this is long enough for a packet that is not.
    const SILENCE: Duration = Duration::from_millis(300);

    fn on<T: Send + 'static>(host: &Host, act: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = Arc::clone(&host.namespace);
        let there = thread::spawn(move || {
            setns(&*namespace, CloneFlags::CLONE_NEWNET).unwrap();
            act()
        });
        there.join().unwrap()
    }

    fn connects(from: &Host, to: &Host, within: Duration) -> bool {
        let to = SocketAddr::from((to.address(), PORT));
        on(from, move || TcpStream::connect_timeout(&to, within).is_ok())
    }

    fn reaches(from: &Host, to: &Host) -> bool {
        connects(from, to, PATIENCE)
    }

    fn is_cut(from: &Host, to: &Host) -> bool {
        !connects(from, to, SILENCE)
    }

    /// How long it takes to send this much and be told that it has arrived.
    fn send(from: &Host, to: &Host, bytes: usize) -> Duration {
        let listener = on(to, {
            let at = SocketAddr::from((to.address(), PORT + 1));
            move || TcpListener::bind(at).unwrap()
        });
        let receiver = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            assert!(
                received.iter().enumerate().all(|(at, &byte)| byte == (at % 251) as u8),
                "it arrives as it was sent"
            );
            stream.write_all(&received.len().to_be_bytes()).unwrap();
        });
        let to = SocketAddr::from((to.address(), PORT + 1));
        on(from, move || {
            let sent: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            let begun = Instant::now();
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut arrived = [0; 8];
            stream.read_exact(&mut arrived).unwrap();
            receiver.join().unwrap();
            assert_eq!(usize::from_be_bytes(arrived), bytes);
            begun.elapsed()
        })
    }

    #[test]
    fn links_lose_delay_double_reorder_and_slow_down_and_what_tcp_carries_is_whole() {
        if !permitted() {
            return;
        }
        let mut net = Net::new();
        let [a, b] = [net.host(), net.host()];
        let with = |link: Link, bytes: usize| {
            let laid = net.lay(vec![(a.to(&b), link), (b.to(&a), link)]);
            let took = send(&a, &b, bytes);
            net.lift(laid);
            took
        };
        let bad = Link { loss: 50, duplicated: 100, overtaken: 100, jitter: Duration::from_millis(2), ..Link::GOOD };
        with(bad, 1 << 20);
        let slow = with(Link { bytes_per_s: 1 << 20, ..Link::GOOD }, 1 << 20);
        assert!(slow > Duration::from_millis(900), "a MiB at a MiB per second takes {slow:?}");
        let far = with(Link { delay: Duration::from_millis(100), ..Link::GOOD }, 1);
        assert!(far > Duration::from_millis(300), "two round trips, of which the last ends half-way, take {far:?}");
        send(&a, &b, 1 << 20);
    }

    #[test]
    fn what_is_jammed_arrives_when_it_is_released_and_overlapping_faults_end_one_by_one() {
        if !permitted() {
            return;
        }
        let mut net = Net::new();
        let [a, b] = [net.host(), net.host()];
        let at = SocketAddr::from((b.address(), PORT));
        let socket = on(&b, move || UdpSocket::bind(at).unwrap());
        let say = |what: &'static str| {
            on(&a, move || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(what.as_bytes(), at)).unwrap()
        };
        let hear = |within: Duration| {
            socket.set_read_timeout(Some(within)).unwrap();
            let mut heard = [0; 16];
            socket.recv(&mut heard).ok().map(|len| String::from_utf8_lossy(&heard[..len]).into_owned())
        };
        let jam = net.lay(vec![(a.to(&b), Link { jammed: true, ..Link::GOOD })]);
        say("one");
        say("two");
        assert_eq!(hear(SILENCE), None);
        net.lift(jam);
        assert_eq!([hear(PATIENCE), hear(PATIENCE)].map(Option::unwrap), ["one", "two"]);
        let [first, second] = [0, 0].map(|_| net.lay(vec![(a.to(&b), Link::CUT)]));
        net.lift(first);
        say("three");
        assert_eq!(hear(SILENCE), None);
        net.lift(second);
        say("four");
        assert_eq!(hear(PATIENCE).as_deref(), Some("four"));
    }

    #[test]
    fn who_moves_is_found_at_the_new_address_alone_and_links_stay_as_they_are() {
        if !permitted() {
            return;
        }
        let mut net = Net::new();
        let [a, b] = [net.host(), net.host()];
        let listener = on(&b, move || TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], PORT))).unwrap());
        let before = SocketAddr::from((b.address(), PORT));
        assert!(reaches(&a, &b));
        net.readdress(&b);
        assert!(b.address() != before.ip() && reaches(&a, &b) && reaches(&net.here(), &b));
        assert!(on(&a, move || TcpStream::connect_timeout(&before, SILENCE).is_err()), "nobody is there any more");
        net.cut(&a, &b);
        assert!(is_cut(&a, &b));
        net.heal(&a, &b);
        net.readdress(&b);
        assert!(b.address() == before.ip() && reaches(&a, &b));
        drop(listener);
    }

    #[test]
    fn a_cut_takes_packets_away_and_healing_brings_them_back() {
        if !permitted() {
            return;
        }
        let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        {
            let mut net = Net::new();
            let [a, b, c] = [net.host(), net.host(), net.host()];
            let listen = |host: &Host| {
                let at = SocketAddr::from((host.address(), PORT));
                on(host, move || TcpListener::bind(at).unwrap())
            };
            let _listening = [listen(&a), listen(&b), listen(&c)];
            assert!(reaches(&a, &b) && reaches(&b, &c) && reaches(&net.here(), &a));
            net.cut(&a, &b);
            assert!(is_cut(&a, &b) && is_cut(&b, &a));
            assert!(reaches(&a, &c) && reaches(&net.here(), &a), "the others are not touched");
            net.heal(&a, &b);
            assert!(reaches(&a, &b) && reaches(&b, &a));
            // What is sent arrives, and the answer does not.
            net.cut_way(&c, &a);
            assert!(is_cut(&a, &c) && is_cut(&c, &a) && reaches(&b, &c));
            net.join(&[&c], &[&a, &b]);
            assert!(reaches(&a, &c) && reaches(&c, &a));
        }
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
    }
}
