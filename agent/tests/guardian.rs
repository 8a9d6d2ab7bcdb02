//! Whichever of agent, watchdog and guardian are killed, the job ends with all that it has made.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use fake::{Agent, Cluster, Dir, KIND, Node, parent, printed_pid, script, signal, started, until_empty, until_gone};
use hodei_agent::{executor::cgroup::CgroupRoot, key::AttemptKey};
use nix::sys::signal::Signal;

/// Far below every lease here.
const SOON: Duration = Duration::from_secs(5);

/// The last process says its number itself: it has another parent, session and group than what was started.
const DETACHED: &str = "trap '' PIPE; (setsid setsid sh -c 'echo $$; exec sleep 600' &); sleep 600";

/// A job with a child that has detached itself, and who is around it.
struct Scene {
    // In the order in which they end.
    agent: Option<Agent>,
    node: Node,
    cluster: Arc<Cluster>,
    dir: Dir,
    key: AttemptKey,
    main: u32,
    child: u32,
    watchdog: u32,
    guardian: u32,
}

impl Scene {
    async fn begin() -> Self {
        let (cluster, dir) = (Cluster::new(KIND), Dir::new());
        let node = Node::start(&cluster);
        let agent = Some(Agent::start(dir.path(), vec![node.address.clone()]));
        let key = cluster.run(script(DETACHED)).await;
        let main = started(&cluster, key).await;
        let child = printed_pid(&cluster, key).await;
        let watchdog = parent(main);
        let guardian = parent(watchdog);
        assert_eq!(parent(child), watchdog, "its own parent has ended");
        assert_eq!(parent(guardian), std::process::id());
        Self { agent, node, cluster, dir, key, main, child, watchdog, guardian }
    }

    /// At once: neither of the two processes can act between the other's end and its own.
    fn kill(&mut self, whom: &[&str]) {
        if whom.contains(&"watchdog") && whom.contains(&"guardian") {
            [self.watchdog, self.guardian].into_iter().for_each(|pid| signal(pid, Signal::SIGSTOP));
        }
        for one in whom {
            match *one {
                "agent" => drop(self.agent.take()),
                "watchdog" => signal(self.watchdog, Signal::SIGKILL),
                _ => signal(self.guardian, Signal::SIGKILL),
            }
        }
    }

    async fn everything_is_gone(&self) {
        let begun = Instant::now();
        for pid in [self.main, self.child, self.watchdog, self.guardian] {
            until_gone(pid).await;
        }
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }

    /// By a living agent, as a result; by the next one, as a result or as dead. Never in both ways, nor twice.
    async fn told_once(&mut self, left: &str) {
        if self.agent.is_none() {
            self.agent = Some(Agent::start(self.dir.path(), vec![self.node.address.clone()]));
            let next = self.cluster.until("a second session", |seen| seen.registrations.get(1).cloned()).await;
            let (dead, adopted) = (next.dead == [self.key.to_wire()], next.adopted == [self.key.to_wire()]);
            assert_eq!((dead, adopted), if left == "dead" { (true, false) } else { (false, true) });
        }
        if left == "dead" {
            assert!(self.cluster.seen.lock().results.is_empty());
            return;
        }
        let reason = self.cluster.result(self.key).await.reason.unwrap();
        assert_eq!(reason.kind, "worker_lost");
        assert!(reason.message.contains(left), "{}", reason.message);
        until_empty(&self.dir.path().join("attempts")).await;
        let seen = self.cluster.seen.lock();
        assert!(seen.registrations.iter().all(|registration| registration.dead.is_empty()));
    }
}

async fn killed(whom: &[&str], told: &str) {
    let mut scene = Scene::begin().await;
    scene.kill(whom);
    scene.everything_is_gone().await;
    scene.told_once(told).await;
}

#[tokio::test]
async fn killed_watchdog() {
    killed(&["watchdog"], "watchdog died").await;
}

#[tokio::test]
async fn killed_guardian() {
    killed(&["guardian"], "guardian of its watchdog died").await;
}

#[tokio::test]
async fn killed_agent_and_watchdog() {
    killed(&["agent", "watchdog"], "dead").await;
}

#[tokio::test]
async fn killed_agent_and_guardian() {
    killed(&["agent", "guardian"], "guardian of its watchdog died").await;
}

#[tokio::test]
async fn killed_watchdog_and_guardian() {
    let mut scene = Scene::begin().await;
    scene.kill(&["watchdog", "guardian"]);
    scene.everything_is_gone().await;
    if CgroupRoot::detect().is_some() {
        scene.told_once("watchdog died").await;
    } else {
        // Nobody has seen it: the lease has to run out.
        let unwanted = |seen: &fake::Seen| seen.heartbeats.last().filter(|(_, attempts)| attempts.is_empty()).map(drop);
        scene.cluster.until("a heartbeat without it", unwanted).await;
        assert!(scene.cluster.seen.lock().results.is_empty());
    }
}

#[test]
fn killed_where_control_groups_are_not_permitted() {
    if !nix::unistd::geteuid().is_root() || CgroupRoot::detect().is_none() {
        return eprintln!("skipped: needs root, or is there already");
    }
    let hidden = "umount -R /sys/fs/cgroup && exec \"$0\" --skip control_groups killed_";
    let own = std::env::current_exe().unwrap();
    let output = Command::new("unshare").args(["--mount", "sh", "-c", hidden]).arg(own).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("5 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_guardian_that_is_stopped_is_not_waited_for_for_ever() {
    let mut scene = Scene::begin().await;
    signal(scene.guardian, Signal::SIGSTOP);
    scene.kill(&["watchdog"]);
    if CgroupRoot::detect().is_some() {
        let reason = scene.cluster.result(scene.key).await.reason.unwrap();
        assert!(reason.message.contains("watchdog died"), "{}", reason.message);
    }
    until_gone(scene.child).await;
    until_gone(scene.guardian).await;
}

#[tokio::test]
async fn neither_is_named_like_an_agent_nor_holds_more_than_it_needs() {
    let scene = Scene::begin().await;
    for (pid, name) in [(scene.watchdog, "hodei-watchdog"), (scene.guardian, "hodei-guardian")] {
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), format!("{name}\n"));
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(arguments.starts_with(&format!("{name}\0")) && !arguments.contains("agent"), "{arguments}");
    }
    let open = |pid: u32| -> BTreeSet<String> {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let target = |entry: fs::DirEntry| fs::read_link(entry.path()).unwrap().display().to_string();
        let short = |name: String| name.rsplit('/').next().unwrap().split(':').next().unwrap().to_owned();
        entries.map(|entry| short(target(entry.unwrap()))).collect()
    };
    assert_eq!(open(scene.guardian), ["guardian", "null", "pipe", "watchdog.err"].map(str::to_owned).into());
    assert_eq!(fs::read_dir(format!("/proc/{}/fd", scene.child)).unwrap().count(), 3, "the standard streams");
}
