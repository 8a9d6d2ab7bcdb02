//! A network of hosts on this machine, whose links can be cut: a network namespace per host, all at one switch.
//!
//! [`Net::new`] moves the calling thread into a namespace of its own, in which the switch is; what the thread does from
//! then on, its connections and the processes that it starts, happens there, at the switch, within reach of every host. A
//! process is put onto a host by [`Host::enter`]. Namespaces have no names and live by the descriptors and processes that
//! hold them, so that nothing is left of them when the test is gone, however it went.
//!
//! A cut takes away whole packets without a word, as a pulled cable does: whoever sends has a neighbour entry for the other
//! host with an address that nobody has. Each direction can be cut by itself.

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
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

pub use crate::disk::permitted;

/// Where nodes listen: every host has all ports to itself.
pub const PORT: u16 = 7651;
/// The device of every host, and that of the switch.
const DEVICE: &str = "eth0";
const SWITCH: &str = "switch";
/// Nobody's.
const NOBODY: &str = "02:00:00:00:00:00";

/// The switch, the thread that stands at it, and the hosts. Dropped, the thread is back where it was; the hosts live on
/// until their processes end.
#[derive(Debug)]
pub struct Net {
    before: File,
    switch: Arc<OwnedFd>,
    hosts: u8,
    /// It belongs to its thread.
    _here: PhantomData<*const ()>,
}

/// A host, by its namespace. Clones are the same host.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: Arc<OwnedFd>,
    address: Ipv4Addr,
}

impl Net {
    /// A switch without hosts. Call it on a thread that starts every process and makes every connection of the test, as a
    /// test's own does on a current-thread runtime.
    ///
    /// # Panics
    /// Without root, or where the kernel has no namespaces or no bridges.
    #[must_use]
    pub fn new() -> Self {
        let before = own_namespace();
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace can be made");
        ip(&["link", "set", "lo", "up"]);
        ip(&["link", "add", SWITCH, "type", "bridge"]);
        ip(&["address", "add", &format!("{}/24", address(254)), "dev", SWITCH]);
        ip(&["link", "set", SWITCH, "up"]);
        Self { before, switch: Arc::new(own_namespace().into()), hosts: 0, _here: PhantomData }
    }

    /// Another host, within reach of all others.
    ///
    /// # Panics
    /// If it cannot be made; there is room for 253.
    pub fn host(&mut self) -> Host {
        self.hosts += 1;
        assert!(self.hosts < 254, "no address left");
        let number = self.hosts;
        let namespace = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace can be made");
            own_namespace()
        });
        let namespace: OwnedFd = namespace.join().expect("making a namespace does not panic").into();
        let path = format!("/proc/{}/fd/{}", process::id(), namespace.as_raw_fd());
        let host = Host { namespace: Arc::new(namespace), address: address(number) };
        let port = format!("port{number}");
        ip(&["link", "add", &port, "type", "veth", "peer", "name", DEVICE, "netns", &path]);
        ip(&["link", "set", &port, "master", SWITCH, "up"]);
        host.ip(&["link", "set", "lo", "up"]);
        host.ip(&["link", "set", DEVICE, "address", &format!("02:00:00:00:00:{number:02x}"), "up"]);
        host.ip(&["address", "add", &format!("{}/24", host.address), "dev", DEVICE]);
        host
    }

    /// Nothing passes between the two any more, in either direction.
    ///
    /// # Panics
    /// As of all changes here, if `ip` fails.
    pub fn cut(&self, one: &Host, other: &Host) {
        self.cut_way(one, other);
        self.cut_way(other, one);
    }

    /// Nothing passes from one to the other any more; the other way is as it was.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn cut_way(&self, from: &Host, to: &Host) {
        from.ip(&[
            "neighbour",
            "replace",
            &to.address.to_string(),
            "lladdr",
            NOBODY,
            "nud",
            "permanent",
            "dev",
            DEVICE,
        ]);
    }

    /// Everything passes between the two again. Harmless where nothing was cut.
    pub fn heal(&self, one: &Host, other: &Host) {
        for (from, to) in [(one, other), (other, one)] {
            // Refused where there is no such entry.
            let _ = from.command(&["neighbour", "del", &to.address.to_string(), "dev", DEVICE]).output();
        }
    }

    /// Cuts every link between these and those.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn part(&self, these: &[&Host], those: &[&Host]) {
        these.iter().for_each(|one| those.iter().for_each(|other| self.cut(one, other)));
    }

    /// Heals every link between these and those.
    pub fn join(&self, these: &[&Host], those: &[&Host]) {
        these.iter().for_each(|one| those.iter().for_each(|other| self.heal(one, other)));
    }

    /// The switch itself: what is put onto it reaches every host, whatever is cut between them.
    #[must_use]
    pub fn at_switch(&self) -> Host {
        Host { namespace: Arc::clone(&self.switch), address: address(254) }
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
            eprintln!("the thread stays at its switch: {error}");
        }
    }
}

impl Host {
    /// Its address, on a network that only its [`Net`] knows.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
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

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(args);
        self.enter(&mut command);
        command
    }

    fn ip(&self, args: &[&str]) {
        run(&mut self.command(args));
    }
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 94, 0, number)
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
        net::{SocketAddr, TcpListener, TcpStream},
        time::Duration,
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
            assert!(reaches(&a, &b) && reaches(&b, &c) && reaches(&net.at_switch(), &a));
            net.cut(&a, &b);
            assert!(is_cut(&a, &b) && is_cut(&b, &a));
            assert!(reaches(&a, &c) && reaches(&net.at_switch(), &a), "the others are not touched");
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
