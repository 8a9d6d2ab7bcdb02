//! Everything that the hosts share with whoever watches them.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hodei_raft::{
    Config, Leadership,
    seam::{
        Entropy,
        sim::{SeededEntropy, SimFs, Unsynced},
    },
};
use tempfile::TempDir;

use crate::{
    broken::Broken,
    check::{Checker, NodeId},
    node::{self, Host, SkewedClock},
    operation::{Ledger, Operation},
    trace::Trace,
};

/// See the module.
pub struct World {
    pub hosts: BTreeMap<NodeId, Host>,
    pub checker: Checker,
    pub ledger: Ledger,
    pub trace: Trace,
    /// What was found wrong beside the checker's violations.
    pub failure: Option<String>,
    /// Hosts whose disk has lost its power.
    pub dead: Vec<NodeId>,
    /// Changes of membership and transfers of leadership that were confirmed.
    pub moves: u64,
    /// A change of membership is under way.
    pub moving: bool,
    /// What is wrong on purpose.
    pub broken: Option<Broken>,
    /// Milliseconds since the beginning.
    now: Arc<AtomicU64>,
    /// Snapshots lie in real files: what a crash does to those is tested elsewhere.
    dir: TempDir,
}

impl World {
    pub fn new(nodes: u64, random: &SeededEntropy, trace: Trace, broken: Option<Broken>) -> Self {
        let now = Arc::new(AtomicU64::new(0));
        let host = |id| Host {
            id,
            fs: SimFs::default(),
            early: None,
            life: 0,
            running: true,
            up: None,
            operations: VecDeque::new(),
            clock: Arc::new(SkewedClock::new(now.clone())),
            disk_latency: random.below(4),
            random: SeededEntropy::new(random.next_u64()),
        };
        Self {
            hosts: (1..=nodes).map(|id| (id, host(id))).collect(),
            checker: Checker::default(),
            ledger: Ledger::default(),
            trace,
            failure: None,
            dead: Vec::new(),
            moves: 0,
            moving: false,
            broken,
            now,
            dir: tempfile::tempdir().expect("a directory for temporary files"),
        }
    }

    pub fn host(&mut self, id: NodeId) -> &mut Host {
        self.hosts.get_mut(&id).expect("hosts are never removed")
    }

    pub fn config(&self, id: NodeId) -> Config {
        node::config(id, &self.dir(), self.hosts[&id].clock.clone())
    }

    fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub fn tick(&self, ms: u64) {
        self.now.fetch_add(ms, Ordering::Relaxed);
    }

    /// Those that have not crashed.
    pub fn running(&self) -> Vec<NodeId> {
        self.hosts.values().filter(|host| host.running).map(|host| host.id).collect()
    }

    /// Those that have started.
    pub fn up(&self) -> Vec<NodeId> {
        self.hosts.values().filter(|host| host.up.is_some()).map(|host| host.id).collect()
    }

    /// Who leads, by its own word, in the highest term.
    pub fn leader(&self) -> Option<NodeId> {
        let leading = |host: &Host| match *host.up.as_ref()?.handle.leadership().borrow() {
            Leadership::Leading { term } | Leadership::Preparing { term } => Some((term, host.id)),
            Leadership::Following { .. } => None,
        };
        self.hosts.values().filter_map(leading).max().map(|(_, id)| id)
    }

    /// The host has crashed: its memory is gone, its disk has what survived.
    pub fn crashed(&mut self, id: NodeId, unsynced: Unsynced) {
        let broken = self.broken;
        let host = self.host(id);
        (host.up, host.running) = (None, false);
        host.operations.clear();
        host.fs = host.fs.power_cut(unsynced);
        if broken == Some(Broken::OldDisk) {
            host.fs = host.early.get_or_insert(host.fs.clone()).power_cut(Unsynced::Lost);
        }
        self.dead.retain(|dead| *dead != id);
    }

    pub fn ask(&mut self, id: NodeId, operation: Operation) {
        self.host(id).operations.push_back(operation);
    }

    /// An operation on the cluster has ended.
    pub fn told(&mut self, node: NodeId, operation: &Operation, done: bool) {
        self.moving = false;
        self.moves += u64::from(done && !matches!(operation, Operation::Found));
        self.trace.line(|| format!("node {node}: {operation:?} {}", if done { "done" } else { "not done" }));
    }

    pub fn fail(&mut self, why: String) {
        self.trace.line(|| why.clone());
        self.failure.get_or_insert(why);
    }
}
