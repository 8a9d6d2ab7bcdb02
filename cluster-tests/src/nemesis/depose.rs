//! Leaders that lose what they have taken from clients: it has to give way to what their successor has.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::Undo;
use crate::{
    netns::{Link, Links, Way},
    run::{field::Field, world::World},
};

/// What was on its way to others is answered by then.
const ANSWERED: Duration = Duration::from_millis(200);
/// How long a leader is cut off at most, and how long its successor then has to reach it.
const LASTS: Duration = Duration::from_secs(5);
/// How often a successor is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// Deposes one leader after the other until it is taken back.
pub(super) fn depose(world: &mut World) -> Undo {
    let nodes = (0..world.nodes.len()).map(|node| Node {
        id: world.ids(&[node])[0],
        pid: world.cluster.nodes[node].process().pid(),
        out: world.nodes.iter().map(|other| world.nodes[node].to(other)).collect(),
        back: world.nodes.iter().map(|other| other.to(&world.nodes[node])).collect(),
    });
    let (stop, stopped) = mpsc::channel::<()>();
    let fault = Deposing { nodes: nodes.collect(), field: world.field.clone(), links: world.net.links(), stopped };
    let run = move || while fault.once().is_ok() {};
    let thread = thread::Builder::new().name("depose".to_owned()).spawn(run).expect("a thread can be made");
    Undo::Flap(stop, Some(thread))
}

struct Node {
    id: u64,
    pid: Pid,
    /// To the others, and from them.
    out: Vec<Way>,
    back: Vec<Way>,
}

struct Deposing {
    nodes: Vec<Node>,
    field: Field,
    links: Links,
    stopped: mpsc::Receiver<()>,
}

/// It is taken back.
struct Stopped;

impl Deposing {
    /// At first the leader is only mute: what was on its way is answered and committed, so that more is appended, which nobody
    /// else will ever have. As soon as it has a successor the others stand still, so that nothing is committed without it: or
    /// else a snapshot would replace its log, and nothing would be truncated.
    fn once(&self) -> Result<(), Stopped> {
        let Some(leader) = self.leader() else { return self.pause(LOOK) };
        let cut = |ways: &[Way]| self.links.lay(ways.iter().map(|&way| (way, Link::CUT)).collect());
        let mute = cut(&leader.out);
        let answered = self.pause(ANSWERED);
        let deaf = cut(&leader.back);
        let successor = answered.and_then(|()| self.successor(leader.id));
        let idle: Vec<Pid> = match &successor {
            Ok(Some(new)) => {
                let is_idle = |node: &&Node| ![leader.id, new.id].contains(&node.id);
                self.nodes.iter().filter(is_idle).map(|node| node.pid).collect()
            }
            _ => Vec::new(),
        };
        signal(&idle, Signal::SIGSTOP);
        self.links.lift(deaf);
        self.links.lift(mute);
        let over = successor.and_then(|_| self.pause(LASTS));
        signal(&idle, Signal::SIGCONT);
        over
    }

    /// Who leads instead of this one, as soon as anybody does.
    fn successor(&self, of: u64) -> Result<Option<&Node>, Stopped> {
        let since = Instant::now();
        while since.elapsed() < LASTS {
            if let Some(new) = self.leader().filter(|leader| leader.id != of) {
                return Ok(Some(new));
            }
            self.pause(LOOK)?;
        }
        Ok(None)
    }

    fn leader(&self) -> Option<&Node> {
        let leader = self.field.leader()?;
        self.nodes.iter().find(|node| node.id == leader)
    }

    fn pause(&self, time: Duration) -> Result<(), Stopped> {
        match self.stopped.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(Stopped),
        }
    }
}

fn signal(pids: &[Pid], signal: Signal) {
    for pid in pids {
        // Who is gone does not stand still.
        let _ = kill(*pid, signal);
    }
}
