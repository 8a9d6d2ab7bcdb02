//! What faults act upon: nodes and agents, each on a host of its own, and each node on a disk of its own.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use futures::future::join_all;
use hodei_proto::v1::StatusRequest;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::{
    clock,
    field::{Field, Seat},
    inventory,
};
use crate::{
    Cluster,
    check::residue,
    cluster::{Agent, Node},
    disk::{self, Disk},
    history::{Body, Damage, DamageClass, DamageEnd, Inventory, Members, Note, Record},
    netns::{Host, Net},
    schedule::Plan,
    workload::damaged,
};

/// What the directories of runs are called; whose they are comes next.
const PREFIX: &str = "hodei-run";
/// The size of a node's disk: enough for a few segments of a log.
const DISK_MIB: u64 = 256;
/// How many jobs an agent takes at once.
const SLOTS: u64 = 4;
/// Between two looks at whether it does.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a node may take to be known by its id.
const KNOWN: Duration = Duration::from_secs(30);
/// Between two starts of a node that ends by itself: as in deploy/systemd.
const RESTART: Duration = Duration::from_secs(1);
/// Where nobody listens.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
/// The process that says what the run is and what is done to it.
pub const DRIVER: u32 = 0;

/// See the module.
#[derive(Debug)]
pub struct World {
    // In the order in which they are dropped: processes first, then their disks, then the network.
    /// Nodes and agents.
    pub cluster: Cluster,
    /// Of each node.
    pub disks: Vec<Disk>,
    /// Between all of them.
    pub net: Net,
    /// Of each node.
    pub nodes: Vec<Host>,
    /// Of each agent.
    pub agents: Vec<Host>,
    /// What clients share.
    pub field: Field,
    /// By how many faults each node, and each agent, is reserved: another fault looks for others.
    reserved: [Vec<u32>; 2],
    /// By how many faults each node is held down.
    held: Vec<u32>,
    /// Whether clocks of nodes can be set.
    clocks: bool,
    /// Whether agents are told to die, and so are started again: another one that ends by itself stays away, and is missed.
    revives: bool,
    /// Agents are dead, and are started again once a job has ended without them.
    pub agents_are_late: bool,
    ids: Vec<u64>,
    /// Nodes with damaged files, of which it is not known yet what became: index, id and damage.
    damaged: Vec<(usize, u64, String)>,
    /// How many damages were done.
    damages: usize,
    /// How each node is started.
    verbs: Vec<Vec<String>>,
    /// When each node that ended by itself may be started again.
    rest: Vec<Option<Instant>>,
    /// For nodes that join later: made while there is a majority.
    tokens: Vec<String>,
    /// Nodes that somebody was asked to remove, with what they had: CA, certificate and key.
    pub removed: Vec<(u64, [String; 3])>,
    dir: TempDir,
}

impl World {
    /// So many nodes and agents, all of them well.
    ///
    /// # Panics
    /// Without root, or where they do not come up.
    pub async fn new(plan: &Plan) -> Self {
        let (nodes, agents) = (plan.nodes, plan.agents);
        disk::sweep(PREFIX);
        let prefix = format!("{PREFIX}-{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().expect("a temporary directory");
        let mut net = Net::new();
        let hosts: Vec<Host> = (0..nodes).map(|_| net.host()).collect();
        let agent_hosts: Vec<Host> = (0..agents).map(|_| net.host()).collect();
        let disk = |index| Disk::in_memory(dir.path(), &format!("disk{index}"), DISK_MIB);
        let disks: Vec<Disk> = (1..=nodes).map(disk).collect();
        let mut cluster = start(plan, dir.path(), [&hosts, &agent_hosts], &disks).await;
        let mut tokens = Vec::new();
        for _ in 0..plan.joins() {
            tokens.push(cluster.token("node").await);
        }
        let marks = dir.path().join("marks");
        fs::create_dir(&marks).expect("a directory can be made");
        // The first node's disk may be without power, or wiped.
        cluster.keep_admin(&dir.path().join("admin"));
        let offered = cluster.agents.first().map(|agent| agent.capacity).unwrap_or_default();
        let field = Field::new(plan.seed, cluster.admin(), marks, offered);
        let mut world = Self {
            cluster,
            disks,
            net,
            nodes: hosts,
            agents: agent_hosts,
            field,
            reserved: [vec![0; nodes], vec![0; agents]],
            held: vec![0; nodes],
            clocks: plan.needs_clocks(),
            revives: plan.has_points(),
            agents_are_late: false,
            ids: Vec::new(),
            damaged: Vec::new(),
            damages: 0,
            verbs: vec![vec!["run".to_owned()]; nodes],
            rest: vec![None; nodes],
            tokens,
            removed: Vec::new(),
            dir,
        };
        for index in 0..nodes {
            world.ids.push(world.cluster.id_of(index).await);
        }
        world.seat();
        let history = world.field.history();
        for agent in &world.cluster.agents {
            history.note(DRIVER, &agent.worker, Note::Worker(agent.capacity));
        }
        world.members();
        world
    }

    /// Where everything is that the run writes.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Whether everything that the run wrote is kept.
    pub fn keep(&mut self, keep: bool) {
        self.dir.disable_cleanup(keep);
    }

    /// Records which nodes are to serve.
    pub fn members(&self) {
        self.field.history().note(DRIVER, "", Note::Cluster(Members { nodes: self.ids.clone() }));
    }

    /// Tells clients where nodes are, and how often they were started.
    fn seat(&self) {
        let seat = |(index, id): (usize, &u64)| {
            let node = &self.cluster.nodes[index];
            // Under which id it goes on is not known before it has said so.
            let is_known = self.damaged.iter().all(|(damaged, ..)| *damaged != index);
            let address = if is_known { node.address } else { NOWHERE };
            Seat { id: Some(*id), address, starts: node.starts() }
        };
        self.field.seat(self.ids.iter().enumerate().map(seat).collect());
    }

    /// A file of a node that does not run was damaged. Until it is known under which id it goes on, nobody speaks to it but
    /// [`damaged::ask`].
    pub fn damaged(&mut self, node: usize, file: &Path, how: &str, offset: u64) {
        self.damages += 1;
        let (key, id) = (format!("damage-{}", self.damages), self.ids[node]);
        self.damaged.push((node, id, key.clone()));
        self.seat();
        let damage = Damage { file: file.display().to_string(), how: how.to_owned(), offset };
        let note = Body::Note(Note::Damage(damage));
        self.field.history().push(|t_ns| Record { node: Some(id), ..Record::new(t_ns, DRIVER, &key, note) });
    }

    /// A node's Raft id.
    #[must_use]
    pub fn id(&self, node: usize) -> u64 {
        self.ids[node]
    }

    /// The Raft ids of nodes.
    #[must_use]
    pub fn ids(&self, nodes: &[usize]) -> Vec<u64> {
        nodes.iter().map(|&node| self.ids[node]).collect()
    }

    /// The ids of workers.
    #[must_use]
    pub fn workers(&self, agents: &[usize]) -> Vec<String> {
        agents.iter().map(|&agent| self.cluster.agents[agent].worker.clone()).collect()
    }

    /// Who leads, as far as anybody has said.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        let leader = self.field.leader()?;
        self.ids.iter().position(|&id| id == leader)
    }

    /// Nodes that run and that no fault acts upon.
    #[must_use]
    pub fn free(&self) -> Vec<usize> {
        let is_free = |node: &usize| self.reserved[0][*node] == 0 && self.cluster.nodes[*node].is_started();
        (0..self.nodes.len()).filter(is_free).collect()
    }

    /// Agents that no fault acts upon.
    #[must_use]
    pub fn free_agents(&self) -> Vec<usize> {
        (0..self.agents.len()).filter(|&agent| self.reserved[1][agent] == 0).collect()
    }

    /// How many nodes are more than half of them.
    #[must_use]
    pub fn majority(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    /// A fault begins or ceases to act upon these.
    pub fn reserve(&mut self, nodes: &[usize], agents: &[usize], reserve: bool) {
        for (which, counts) in [nodes, agents].into_iter().zip(&mut self.reserved) {
            for &index in which {
                counts[index] = if reserve { counts[index] + 1 } else { counts[index] - 1 };
            }
        }
        // Whoever repairs a machine starts its node.
        nodes.iter().for_each(|&node| self.rest[node] = None);
    }

    /// kill -9, and keeps it down until [`World::release`].
    pub fn hold(&mut self, node: usize) {
        self.held[node] += 1;
        self.cluster.nodes[node].kill();
    }

    /// Keeps it down without ending it: it ends by itself.
    pub fn hold_down(&mut self, node: usize) {
        self.held[node] += 1;
    }

    /// It may run again.
    pub fn release(&mut self, node: usize) {
        self.held[node] -= 1;
    }

    /// Whether clocks of nodes can be set.
    #[must_use]
    pub fn has_clocks(&self) -> bool {
        self.clocks
    }

    /// Sets a node's wall clock so many seconds ahead.
    pub fn set_clock(&self, node: usize, ahead: i64) {
        clock::set(&clock::of(self.dir(), &self.disks[node]), ahead);
    }

    /// kill -9, and lets it listen at another port of another address from then on. It is told where the others are now.
    pub fn relocate(&mut self, node: usize) {
        let (of, host) = (&mut self.cluster.nodes[node], &self.nodes[node]);
        of.kill();
        self.net.readdress(host);
        of.address = SocketAddr::from((host.address(), of.address.port() + 1));
        self.seat();
        for index in 0..self.nodes.len() {
            let others = self.others(index);
            match self.verbs[index][0].as_str() {
                "join" => self.verbs[index][1] = others,
                _ => self.verbs[index] = ["run", "--peer", &others].map(str::to_owned).to_vec(),
            }
        }
    }

    /// Starts agents again with the addresses that nodes have now.
    pub fn relocate_agents(&mut self) {
        let addresses: Vec<String> = self.cluster.nodes.iter().map(|node| node.address.to_string()).collect();
        for agent in self.cluster.agents.iter_mut().filter(|agent| agent.pid().is_some()) {
            agent.kill();
            agent.serve(&addresses);
            agent.start();
        }
    }

    /// Ends a node and wipes its disk; when it is started next it joins as a new one.
    ///
    /// # Panics
    /// If there is no token left for it, or the disk cannot be wiped.
    pub fn join_anew(&mut self, node: usize) {
        self.cluster.nodes[node].kill();
        let data = self.cluster.nodes[node].data.clone();
        if data.exists() {
            let file = |name| fs::read_to_string(data.join("pki").join(name)).expect("a node has an identity");
            self.removed.push((self.ids[node], ["ca.pem", "node.pem", "node.key"].map(file)));
            fs::remove_dir_all(&data).expect("a disk can be wiped");
        }
        let token = self.tokens.pop().expect("the plan says how many nodes join");
        self.verbs[node] = ["join", &self.others(node), "--token", &token].map(str::to_owned).to_vec();
    }

    /// The addresses of all other nodes.
    fn others(&self, than: usize) -> String {
        let others = self.cluster.nodes.iter().enumerate().filter(|(index, _)| *index != than);
        others.map(|(_, node)| node.address.to_string()).collect::<Vec<_>>().join(",")
    }

    /// Starts what runs no more and may, as an init system does; where a node stopped by itself, says so.
    pub fn supervise(&mut self) {
        let mut changed = false;
        for (index, node) in self.cluster.nodes.iter_mut().enumerate() {
            if node.is_started() && node.process().is_gone() {
                if self.held[index] == 0 {
                    eprintln!("node {} ended by itself: {}", self.ids[index], last_line(&node.stderr()));
                    self.rest[index] = Some(Instant::now() + RESTART);
                }
                node.kill();
            }
            let is_resting = self.rest[index].is_some_and(|until| Instant::now() < until);
            if !node.is_started() && self.held[index] == 0 && !is_resting {
                let verb: Vec<&str> = self.verbs[index].iter().map(String::as_str).collect();
                node.launch(&verb);
                changed = true;
            }
        }
        if changed {
            self.seat();
        }
        if self.agents_are_late && self.cluster.agents.iter().any(Agent::has_left) {
            self.agents_are_late = false;
            self.cluster.agents.iter_mut().filter(|agent| agent.pid().is_none()).for_each(Agent::start);
        }
        for agent in self.cluster.agents.iter_mut().filter(|agent| agent.pid().is_some()) {
            if agent.process().is_gone() {
                if !self.revives {
                    let said = agent.process().stderr_text();
                    self.field.violation(format!("agent {} ended by itself: {}", agent.worker, last_line(&said)));
                }
                agent.kill();
                agent.start();
            }
        }
    }

    /// Everybody is as at the beginning: waits until each node serves, and learns ids that have changed. Damaged nodes are
    /// asked for what they have before they have said who they are. It is a violation, and `false`, if a node does not
    /// come back.
    #[must_use]
    pub async fn whole(&mut self) -> bool {
        let by = Instant::now() + KNOWN;
        let mut asked: JoinSet<()> = self.damaged.iter().map(|(node, ..)| self.ask(*node, by)).collect();
        let said = loop {
            // One that was told to die may only now be gone.
            self.supervise();
            // All at once, since each may take a while on a busy machine.
            let said = join_all((0..self.nodes.len()).map(|index| self.answers(index))).await;
            if said.iter().all(Option::is_some) || Instant::now() >= by {
                break said;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let silent: Vec<u64> =
            self.ids.iter().zip(&said).filter(|(_, said)| said.is_none()).map(|(id, _)| *id).collect();
        for (index, id) in said.iter().enumerate().filter_map(|(index, id)| Some((index, (*id)?))) {
            self.ids[index] = id;
            self.verbs[index] = ["run", "--peer", &self.others(index)].map(str::to_owned).to_vec();
        }
        let known: Vec<_> = self.damaged.extract_if(.., |(node, ..)| said[*node].is_some()).collect();
        // Others ask these nodes at once, however long the first answers take.
        self.seat();
        self.members();
        let answers = async {
            while let Some(answer) = asked.join_next().await {
                answer.expect("asking does not panic");
            }
        };
        let _ = tokio::time::timeout_at(by.into(), answers).await;
        for (node, before, key) in known {
            // It serves, so that it has repaired what was damaged; or somebody else serves in its place.
            let class = if self.ids[node] == before { DamageClass::Repaired } else { DamageClass::Quarantined };
            let end = DamageEnd { class, exit_code: None, code: String::new() };
            self.field.history().note(DRIVER, &key, Note::DamageEnd(end));
        }
        if !silent.is_empty() {
            self.field.violation(format!("nodes {silent:?} do not answer within {KNOWN:?}"));
        }
        silent.is_empty()
    }

    /// Somebody asks a node that may go on under another id.
    fn ask(&self, node: usize, by: Instant) -> impl Future<Output = ()> + use<> {
        let address = self.cluster.nodes[node].address;
        damaged::ask(self.field.clone(), Seat { id: None, address, starts: 0 }, by.into())
    }

    /// The id by which a node answers.
    async fn answers(&self, node: usize) -> Option<u64> {
        let mut client = self.cluster.client(node).cluster();
        let said = tokio::time::timeout(Duration::from_secs(1), client.status(StatusRequest {})).await;
        Some(said.ok()?.ok()?.into_inner().answered_by)
    }

    /// Nothing goes on any more: it is a violation where a process is gone that was there, or has panicked, but within sled,
    /// which does so when its disk fails.
    pub fn last_look(&mut self) {
        let gone = |(node, id): (&mut Node, &u64)| (node.is_started() && node.process().is_gone()).then_some(*id);
        let gone: Vec<u64> = self.cluster.nodes.iter_mut().zip(&self.ids).filter_map(gone).collect();
        if !gone.is_empty() {
            self.field.violation(format!("nodes {gone:?} have ended by themselves at the end"));
        }
        let files = fs::read_dir(self.cluster.dir()).into_iter().flatten().flatten().map(|entry| entry.path());
        for file in files.filter(|path| path.extension().is_some_and(|of| of == "err")) {
            let said = fs::read(&file).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            for line in said.lines().filter(|line| line.contains("panicked at") && !line.contains("/sled-")) {
                self.field.violation(format!("{}: {line}", file.display()));
            }
        }
    }

    /// It is a violation where a node has no snapshot.
    pub fn snapshots(&self) {
        for (node, id) in self.cluster.nodes.iter().zip(&self.ids) {
            let names = fs::read_dir(node.data.join("snapshots")).into_iter().flatten().flatten();
            if !names.into_iter().any(|entry| entry.path().extension().is_some_and(|of| of == "snap")) {
                self.field.violation(format!("node {id} has no snapshot, although logs are small"));
            }
        }
    }

    /// Records what attempts of these jobs have left on this machine; `live` are those that may.
    pub fn inventory(&self, jobs: &BTreeSet<&str>, live: Vec<String>) {
        let found = inventory::of(&self.cluster.agents, |job| jobs.contains(job));
        self.field.history().note(DRIVER, "", Note::Inventory(Inventory { found, live, busy: false }));
    }

    /// Records what attempts that run have on this machine, if it finds something of each sort; whether it did.
    pub fn busy_inventory(&self) -> bool {
        let found = inventory::of_running(&self.cluster.agents);
        let has = |what: &&str| found.iter().any(|found| found.what == **what);
        let shows_all = residue::OF_EACH.iter().all(has);
        if shows_all {
            self.field.history().note(DRIVER, "", Note::Inventory(Inventory { found, live: Vec::new(), busy: true }));
        }
        shows_all
    }
}

/// Nodes and agents, on these hosts and disks.
async fn start(plan: &Plan, dir: &Path, [hosts, agent_hosts]: [&[Host]; 2], disks: &[Disk]) -> Cluster {
    let clocks = plan.needs_clocks();
    if clocks {
        clock::ready().unwrap_or_else(|why| panic!("{why}"));
    }
    let orders = plan.needs_failpoints().then_some(dir);
    let mut cluster = Cluster::start_with(hosts.iter().zip(disks), |node, (host, disk)| {
        node.at(host);
        node.die_by(orders);
        node.data = disk.path().join("data");
        if clocks {
            let clock = clock::of(dir, disk);
            clock::set(&clock, 0);
            node.env = clock::faked(&clock);
        }
    })
    .await;
    cluster.failpoints = orders.map(Path::to_owned);
    for (index, host) in agent_hosts.iter().enumerate() {
        // Each begins at another node.
        let mut gateways: Vec<usize> = (0..hosts.len()).collect();
        gateways.rotate_left(index % hosts.len());
        cluster.agent_at(Some(host), &gateways, &["--capacity", &SLOTS.to_string()]).await;
    }
    // Faults come again and again to one agent. Set aside, it would leave the other one with twice the work.
    cluster.cli().ok(&["scheduler", "set", "--set-aside-flaps", "0"]).await;
    cluster
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().next_back().unwrap_or("without a word")
}
