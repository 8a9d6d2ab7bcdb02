//! A cluster of real processes, made as an operator makes one.

mod member;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hodei_proto::v1::ListTokensRequest;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;

pub use self::member::{Agent, Node};
use crate::{
    cli::Cli, client::Client, failpoints::Failpoints, history::Capacity, net, netns::Host, proc::Proc, processes, wait,
};

/// How long a node or an agent may take to become ready. Generous: several clusters may share two cores.
pub const START: Duration = Duration::from_secs(30);
/// How long the cluster may take to come to rest after a change.
pub const SETTLE: Duration = Duration::from_secs(30);

/// Nodes and agents on loopback, and the directory in which all of them live.
#[derive(Debug)]
pub struct Cluster {
    // Declared first, so dropped first: agents end before their nodes, nodes before their directory.
    /// In the order in which they were started.
    pub agents: Vec<Agent>,
    /// The first one was made by `init`, the others joined.
    pub nodes: Vec<Node>,
    /// Nodes and agents that are made from now on have failpoints, and their orders are here.
    pub failpoints: Option<PathBuf>,
    admin: Option<PathBuf>,
    dir: TempDir,
}

impl Cluster {
    /// `nodes` nodes, all of them voters, and no agent.
    pub async fn start(nodes: usize) -> Self {
        let mut cluster = Self::one().await;
        for _ in 1..nodes {
            cluster.join().await;
        }
        cluster.wait_healthy(nodes).await;
        cluster
    }

    /// Like [`Cluster::start`], with one node in each of these data directories.
    pub async fn start_on(data: Vec<PathBuf>) -> Self {
        Self::start_with(data, |node, data| node.data = data).await
    }

    /// Like [`Cluster::start`], with one node on each of these hosts.
    pub async fn start_at(hosts: &[Host]) -> Self {
        Self::start_with(hosts.iter(), |node, host| {
            node.at(host);
        })
        .await
    }

    /// Like [`Cluster::start`], with each node made as `put` says for one of these places.
    pub async fn start_with<T>(places: impl IntoIterator<Item = T>, put: impl Fn(&mut Node, T)) -> Self {
        let mut cluster = Self::empty();
        let mut nodes = 0;
        for place in places {
            nodes += 1;
            let (token, seeds) = match cluster.nodes.first() {
                Some(_) => (cluster.token("node").await, cluster.addresses().join(",")),
                None => Default::default(),
            };
            let index = cluster.prepare();
            let node = &mut cluster.nodes[index];
            put(node, place);
            if index == 0 {
                node.start(&["init"]).await;
            } else {
                node.start(&["join", &seeds, "--token", &token]).await;
            }
        }
        cluster.wait_healthy(nodes).await;
        cluster
    }

    /// The first node, made by `init`.
    pub async fn one() -> Self {
        let mut cluster = Self::empty();
        let index = cluster.prepare();
        let node = &mut cluster.nodes[index];
        node.start(&["init"]).await;
        cluster
    }

    /// No node yet.
    ///
    /// # Panics
    /// If no temporary directory can be made.
    #[must_use]
    pub fn empty() -> Self {
        let dir = tempfile::Builder::new().prefix("hodei-test-").tempdir().expect("a temporary directory");
        Self { agents: Vec::new(), nodes: Vec::new(), failpoints: None, admin: None, dir }
    }

    /// Reserves directory and address of a further node without starting it.
    pub fn prepare(&mut self) -> usize {
        let name = format!("node{}", self.nodes.len() + 1);
        let data = self.dir.path().join(&name);
        let dir = self.dir.path().to_owned();
        self.nodes.push(Node {
            address: net::fresh(),
            data,
            dir,
            host: None,
            env: Vec::new(),
            failpoints: self.failpoints.as_deref().map(|dir| Failpoints::of(dir, &name)),
            name,
            starts: 0,
            process: None,
        });
        self.nodes.len() - 1
    }

    /// Adds a node with a token of its own, known to every member.
    pub async fn join(&mut self) -> usize {
        let token = self.token("node").await;
        let seeds = self.addresses().join(",");
        let index = self.prepare();
        self.nodes[index].start(&["join", &seeds, "--token", &token]).await;
        index
    }

    /// A new one-time token.
    pub async fn token(&self, role: &str) -> String {
        self.cli().ok(&["token", "create", "--role", role, "--output", "quiet"]).await
    }

    /// Waits until the cluster's own time is past the end of its newest token: whatever is applied from then on is later.
    ///
    /// # Panics
    /// If the first node does not answer.
    pub async fn until_newest_token_expired(&self) {
        let client = self.client(0);
        let tokens = async || {
            let listed = client.cluster().list_tokens(ListTokensRequest::default()).await;
            listed.expect("the first node answers").into_inner().tokens
        };
        let newest = tokens().await.into_iter().max_by_key(|token| token.created_at_ms).expect("there is a token");
        let expired = async || {
            // What is made now bears the newest stamp.
            self.token("user").await;
            tokens().await.iter().any(|token| token.created_at_ms >= newest.expires_at_ms)
        };
        wait::until_true("the token has expired", SETTLE, expired).await;
    }

    /// Starts an agent that knows the nodes `gateways` and waits until it takes jobs.
    pub async fn agent(&mut self, gateways: &[usize], flags: &[&str]) -> usize {
        self.agent_at(None, gateways, flags).await
    }

    /// The same on a host.
    pub async fn agent_at(&mut self, host: Option<&Host>, gateways: &[usize], flags: &[&str]) -> usize {
        let token = self.token("agent").await;
        let servers: Vec<_> = gateways.iter().map(|&i| self.nodes[i].address.to_string()).collect();
        let name = format!("agent{}", self.agents.len() + 1);
        let data = self.dir.path().join(&name);
        let worker = Uuid::now_v7().to_string();
        let given = ["--server", &servers.join(","), "--token", &token, "--worker-id", &worker];
        let flags = given.iter().chain(flags).map(|&flag| flag.to_owned()).collect();
        let (worker_id, host) = (worker.clone(), host.cloned());
        let failpoints = self.failpoints.as_deref().map(|dir| Failpoints::of(dir, &name));
        let capacity = Capacity::default();
        let agent =
            Agent { worker: worker_id, data, capacity, name, host, starts: 0, flags, failpoints, process: None };
        self.agents.push(agent);
        let index = self.agents.len() - 1;
        self.agents[index].start();
        // Busy where a job was waiting for it.
        let takes_jobs = |row: &Value| row["state"] == "Ready" || row["state"] == "Busy";
        let row = self.wait_worker(&worker, |row| takes_jobs(row) && !row["gateway"].is_null()).await;
        let of = |what: &str| row["capacity"][what].as_u64().expect("a worker's capacity is told");
        let (slots, cpu_millis, memory_mb) = (of("slots"), of("cpu_millis"), of("memory_mb"));
        self.agents[index].capacity = Capacity { slots, cpu_millis, memory_mb, reserved: false };
        index
    }

    /// Where the test may put files of its own.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Addresses of all nodes whose process runs.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().filter(|node| node.process.is_some()).map(|node| node.address.to_string()).collect()
    }

    /// The administrator's identity that `init` made.
    #[must_use]
    pub fn admin(&self) -> PathBuf {
        self.admin.clone().unwrap_or_else(|| self.nodes[0].data.join("admin"))
    }

    /// Keeps the administrator's identity elsewhere, so that it outlives the first node's disk.
    ///
    /// # Panics
    /// If it cannot be copied.
    pub fn keep_admin(&mut self, to: &Path) {
        fs::create_dir(to).expect("a directory can be made");
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            fs::copy(self.admin().join(name), to.join(name)).expect("an identity can be copied");
        }
        self.admin = Some(to.to_owned());
    }

    /// The administrator's command line, with every running node as server.
    #[must_use]
    pub fn cli(&self) -> Cli {
        Cli::nobody(self.dir.path()).with_identity(self.admin()).at(self.addresses())
    }

    /// The administrator's command line, with one node as its only server.
    #[must_use]
    pub fn cli_at(&self, node: usize) -> Cli {
        self.cli().at([self.nodes[node].address.to_string()])
    }

    /// A persistent client of one node.
    ///
    /// # Panics
    /// If the administrator's identity is not usable.
    #[must_use]
    pub fn client(&self, node: usize) -> Client {
        Client::new(self.nodes[node].address, &self.admin()).expect("the administrator's identity is usable")
    }

    /// A persistent client of whoever listens at an address.
    ///
    /// # Panics
    /// If the administrator's identity is not usable.
    #[must_use]
    pub fn client_at(&self, address: SocketAddr) -> Client {
        Client::new(address, &self.admin()).expect("the administrator's identity is usable")
    }

    /// `cluster status` as one node sees it; `None` if it does not answer.
    pub async fn status(&self, node: usize) -> Option<Value> {
        let cli = self.cli_at(node).request_timeout(Duration::from_secs(2));
        let output = cli.run(&["cluster", "status", "--output", "json"]).await;
        (output.code == 0).then(|| serde_json::from_slice(&output.stdout).expect("status is JSON"))
    }

    /// The same, of one that is to answer, whatever else the machine does.
    pub async fn wait_status(&self, node: usize) -> Value {
        wait::until("a node tells its status", SETTLE, || self.status(node)).await
    }

    /// Waits until every running node reports the same leader, and `nodes` voters, all of them healthy.
    pub async fn wait_healthy(&self, nodes: usize) {
        for (index, node) in self.nodes.iter().enumerate() {
            if node.process.is_none() {
                continue;
            }
            wait::until_true(&format!("{nodes} healthy voters as {} sees it", node.name), SETTLE, || async move {
                let Some(status) = self.status(index).await else { return false };
                let members = status["nodes"].as_array().cloned().unwrap_or_default();
                let good = |member: &Value| member["role"] == "voter" && member["healthy"] == true;
                !status["leader"].is_null() && members.len() == nodes && members.iter().all(good)
            })
            .await;
        }
    }

    /// The index of the node that leads, as soon as a running node knows one that runs.
    pub async fn leader(&self) -> usize {
        self.leader_other_than(None).await
    }

    /// The index of a leader that is not `old`.
    pub async fn leader_other_than(&self, old: Option<usize>) -> usize {
        wait::until("a running node leads", SETTLE, || async move {
            for index in self.running() {
                let leader = self.status(index).await.and_then(|status| self.index_of(&status, &status["leader"]));
                match leader {
                    Some(leader) if Some(leader) != old && self.nodes[leader].process.is_some() => {
                        return Some(leader);
                    }
                    _ => {}
                }
            }
            None
        })
        .await
    }

    /// The index of the node with this Raft id, by the address that `status` names for it.
    #[must_use]
    pub fn index_of(&self, status: &Value, id: &Value) -> Option<usize> {
        let member = status["nodes"].as_array()?.iter().find(|member| &member["id"] == id)?;
        self.nodes.iter().position(|node| member["address"] == node.address.to_string())
    }

    /// The Raft id of a node, as the cluster knows it.
    ///
    /// # Panics
    /// If no running node knows it.
    pub async fn id_of(&self, node: usize) -> u64 {
        let address = self.nodes[node].address.to_string();
        wait::until("the node is a member", SETTLE, || {
            let address = address.clone();
            async move {
                let status = self.status(*self.running().first()?).await?;
                let member = status["nodes"].as_array()?.iter().find(|member| member["address"] == address)?.clone();
                member["id"].as_u64()
            }
        })
        .await
    }

    /// Makes `node` the leader.
    pub async fn lead(&self, node: usize) {
        let id = self.id_of(node).await.to_string();
        // On a busy machine another one may be elected instead.
        wait::until_true("the leadership was transferred", SETTLE, || async {
            let leads = self.leader().await == node;
            if !leads {
                let _ = self.cli().run(&["cluster", "transfer-leader", &id]).await;
            }
            leads
        })
        .await;
    }

    /// Waits until `worker list` shows the worker as `wanted`.
    pub async fn wait_worker(&self, worker: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait::until("the worker is as wanted", SETTLE, || async {
            let output = self.cli().run(&["worker", "list", "--output", "json"]).await;
            let workers: Value = serde_json::from_slice(&output.stdout).ok()?;
            workers.as_array()?.iter().find(|row| row["id"] == worker).filter(|row| wanted(row)).cloned()
        })
        .await
    }

    /// Submits a job at any node; gives its id.
    pub async fn submit(&self, options: &[&str], command: &[&str]) -> String {
        let head = ["job", "submit", "--output", "quiet"];
        self.cli().ok(&[&head, options, &["--"], command].concat()).await
    }

    /// `job get` as JSON.
    pub async fn job(&self, id: &str) -> Value {
        self.cli().json(&["job", "get", id]).await
    }

    /// Waits until the job is as `wanted`.
    pub async fn wait_job(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait::until(&format!("job {id}: {what}"), SETTLE, || async {
            let output = self.cli().run(&["job", "get", id, "--output", "json"]).await;
            serde_json::from_slice(&output.stdout).ok().filter(|job| wanted(job))
        })
        .await
    }

    /// Waits until the job is in this state.
    pub async fn wait_state(&self, id: &str, state: &str) -> Value {
        self.wait_job(id, state, |job| job["state"] == state).await
    }

    /// Processes that run as jobs of this cluster's agents, by the environment that the agent gave them.
    #[must_use]
    pub fn job_processes(&self) -> Vec<Pid> {
        (0..self.agents.len()).flat_map(|agent| self.job_processes_of(agent)).collect()
    }

    /// Those of one agent.
    #[must_use]
    pub fn job_processes_of(&self, agent: usize) -> Vec<Pid> {
        let agent = &self.agents[agent];
        let (id, own) = (format!("HODEI_WORKER_ID={}", agent.worker), agent.process.as_ref().map(Proc::pid));
        let mut found = processes::with_variable(|variable| id.as_bytes() == variable);
        found.retain(|pid| Some(*pid) != own);
        found
    }

    /// These, and watchdogs and guardians: all that attempts have left with one agent.
    #[must_use]
    pub fn left_of(&self, agent: usize) -> Vec<Pid> {
        let within = |name| processes::named_within(name, &self.agents[agent].data);
        [self.job_processes_of(agent), within("hodei-watchdog"), within("hodei-guardian")].concat()
    }

    /// The watchdogs of this cluster's agents: they live in the directories of their attempts.
    #[must_use]
    pub fn watchdogs(&self) -> Vec<Pid> {
        processes::named_within("hodei-watchdog", self.dir.path())
    }

    /// The guardians of these watchdogs.
    #[must_use]
    pub fn guardians(&self) -> Vec<Pid> {
        processes::named_within("hodei-guardian", self.dir.path())
    }

    /// Indexes of the nodes whose process was started and not killed.
    #[must_use]
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&index| self.nodes[index].process.is_some()).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            agent.process = None;
        }
        // What a killed agent left running; watchdogs die with their jobs, and write into the directory until then.
        let begun = Instant::now();
        while begun.elapsed() < SETTLE {
            let left = [self.job_processes(), self.watchdogs(), self.guardians()].concat();
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.nodes.clear();
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            eprintln!("the cluster's directory is kept: {}", self.dir.path().display());
        }
    }
}
