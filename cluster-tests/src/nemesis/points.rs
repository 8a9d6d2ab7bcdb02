//! Processes that die at a named place in the code. Such a fault is over as soon as somebody has died there, who is then
//! started again as whatever dies by itself; where nobody does, it does not count.

use std::{ops::RangeInclusive, sync::mpsc, thread, time::Duration};

use hodei_proto::v1::{Command, JobSpec, Script, command};
use nix::sys::signal::{Signal, kill};
use rand::{Rng as _, rngs::SmallRng, seq::IndexedRandom as _};
use uuid::Uuid;

use super::{Active, Class, Kind, Undo, depose::depose, everyone, follower, leader, of_nodes};
use crate::{
    cluster::Agent,
    failpoints::Failpoints,
    run::world::World,
    workload::jobs::{self, patient},
};

/// How long a follower is paused, so that it lacks entries that the others have purged.
const LAGS: Duration = Duration::from_secs(5);

/// How long a process may take to come to the place where it is to die, in milliseconds.
const PATIENCE: RangeInclusive<u64> = 30_000..=30_000;

/// How often a job with a large script is tried.
const SCRIPTS: usize = 5;

/// Who is to die.
#[derive(Clone, Copy)]
enum Who {
    /// Any node.
    Node,
    /// The first node that comes there.
    First,
    /// The first agent, or process that belongs to an agent, that comes there.
    Agent,
}

/// What makes a process come there, where clients alone do not.
#[derive(Clone, Copy)]
enum Prompt {
    Nothing,
    /// The leader is killed.
    Election,
    /// A follower is killed, and started again at once.
    Blink,
    /// A follower stands still until the log that it lacks has been purged.
    Lag,
    /// The leader is cut off until another one leads, while clients go on writing to it. Then that one needs it.
    Depose,
    /// Agents are killed, and started again at once.
    AgentsBlink,
    /// Agents are killed, and not started again before somebody has died.
    AgentsPause,
    /// Agents are killed, and started again once a job has ended without them.
    AgentsLate,
    /// What watches over jobs is killed.
    WatchdogsDie,
    /// Jobs with large scripts.
    Scripts,
}

macro_rules! point {
    ($site:literal, $who:ident, $prompt:ident, $passages:literal) => {
        Kind {
            name: $site,
            class: Class::Points,
            nodes: 3,
            alone: true,
            lasts_ms: PATIENCE,
            begin: |world, rng| at(world, rng, $site, Who::$who, Prompt::$prompt, $passages),
        }
    };
}

/// Each with the most passages that go well before.
pub(super) const KINDS: &[Kind] = &[
    point!("wal::before-write", Node, Nothing, 50),
    point!("wal::before-fsync", Node, Nothing, 50),
    point!("wal::after-fsync", Node, Nothing, 50),
    point!("wal::before-mark", Node, Nothing, 50),
    point!("wal::before-mark-fsync", Node, Nothing, 50),
    point!("wal::before-acknowledge", Node, Nothing, 50),
    point!("wal::before-new-segment", First, Nothing, 0),
    point!("wal::before-segment-rename", First, Nothing, 0),
    point!("wal::after-new-segment", First, Nothing, 0),
    point!("wal::before-remove-segment", First, Nothing, 0),
    point!("wal::opening-before-mark", First, Blink, 0),
    point!("vote::before-save", First, Election, 0),
    point!("vote::after-save", First, Election, 1),
    point!("vote::before-answer", First, Election, 0),
    point!("log::before-append", Node, Nothing, 50),
    point!("log::before-truncate", First, Depose, 0),
    point!("log::before-purge", First, Nothing, 1),
    point!("apply::before", Node, Nothing, 50),
    point!("apply::after", Node, Nothing, 50),
    point!("payload::before-write", First, Scripts, 0),
    point!("payload::after-write", First, Scripts, 0),
    point!("sled::before-write", Node, Nothing, 2),
    point!("sled::after-write", Node, Nothing, 2),
    point!("snapshot::before-write", First, Nothing, 1),
    point!("snapshot::before-rename", First, Nothing, 1),
    point!("snapshot::after-build", First, Nothing, 1),
    point!("snapshot::before-send", First, Lag, 0),
    point!("snapshot::receiving", First, Lag, 0),
    point!("snapshot::before-install", First, Lag, 0),
    point!("install::before-load", First, Lag, 0),
    point!("install::before-replace", First, Lag, 0),
    point!("install::after", First, Lag, 0),
    point!("replicate::before-send", First, Nothing, 50),
    point!("replicate::before-answer", First, Nothing, 50),
    point!("propose::before-append", First, Nothing, 30),
    point!("propose::before-answer", First, Nothing, 30),
    point!("forward::before-send", First, Nothing, 10),
    point!("forward::before-answer", First, Nothing, 10),
    point!("lead::before-leading", First, Election, 0),
    point!("submit::before-commit", Node, Nothing, 3),
    point!("submit::before-answer", Node, Nothing, 3),
    point!("token::before-use", First, Nothing, 0),
    point!("token::after-use", First, Nothing, 0),
    point!("token::before-answer", First, Nothing, 0),
    point!("session::before-open", First, AgentsBlink, 0),
    point!("session::after-open", First, AgentsBlink, 0),
    point!("gateway::before-attach", First, AgentsBlink, 0),
    point!("gateway::before-detach", First, AgentsBlink, 0),
    point!("gateway::before-run", First, Nothing, 5),
    point!("gateway::before-acknowledge", First, Nothing, 10),
    point!("report::before-commit", First, Nothing, 10),
    point!("report::after-commit", First, Nothing, 10),
    point!("lease::before-read-index", First, Nothing, 10),
    point!("lease::after-read-index", First, Nothing, 10),
    point!("lease::before-grant", First, Nothing, 10),
    point!("decide::before-propose", First, Nothing, 10),
    point!("decide::after-commit", First, Nothing, 10),
    point!("segment::before-write", First, Nothing, 10),
    point!("segment::before-fsync", First, Nothing, 10),
    point!("segment::after-fsync", First, Nothing, 10),
    point!("segment::before-forward", First, Nothing, 3),
    point!("agent::before-register", Agent, AgentsBlink, 0),
    point!("agent::before-admit", Agent, Nothing, 5),
    point!("agent::after-admit", Agent, Nothing, 5),
    point!("agent::before-intent", Agent, Nothing, 5),
    point!("agent::after-intent", Agent, Nothing, 5),
    point!("agent::before-spawn", Agent, Nothing, 5),
    point!("agent::after-spawn", Agent, Nothing, 5),
    point!("agent::before-extend", Agent, Nothing, 5),
    point!("agent::before-heartbeat", Agent, Nothing, 5),
    point!("agent::before-result", Agent, Nothing, 5),
    point!("agent::after-result", Agent, Nothing, 5),
    point!("agent::before-forget", Agent, Nothing, 5),
    point!("spool::before-write", Agent, Nothing, 10),
    point!("spool::after-write", Agent, Nothing, 10),
    point!("spool::before-publish", Agent, Nothing, 10),
    point!("spool::before-fsync", Agent, Nothing, 3),
    point!("recover::before-adopt", Agent, AgentsBlink, 0),
    point!("recover::before-inherit", Agent, AgentsLate, 0),
    point!("watchdog::before-spawn", Agent, Nothing, 0),
    point!("watchdog::after-spawn", Agent, Nothing, 0),
    point!("watchdog::before-reap", Agent, Nothing, 0),
    point!("watchdog::before-note", Agent, Nothing, 0),
    point!("watchdog::after-note", Agent, Nothing, 0),
    point!("watchdog::before-leave", Agent, AgentsPause, 0),
    point!("guardian::before-end", Agent, WatchdogsDie, 0),
];

fn at(
    world: &mut World,
    rng: &mut SmallRng,
    site: &'static str,
    who: Who,
    prompt: Prompt,
    most: u32,
) -> Option<Active> {
    // All are reserved: what makes somebody come there may be anybody's doing.
    let all = everyone(world)?;
    if world.cluster.nodes.iter_mut().any(|node| !node.is_started() || node.process().is_gone()) {
        // Who died last is not back yet.
        return None;
    }
    let agents = world.free_agents();
    let (nodes, of): (Vec<usize>, Vec<usize>) = match who {
        Who::Node => (vec![*all.choose(rng)?], Vec::new()),
        Who::First => (all.clone(), Vec::new()),
        Who::Agent => (Vec::new(), agents.clone()),
    };
    let passages = rng.random_range(0..=most);
    let controls: Vec<Failpoints> = (nodes.iter().filter_map(|&node| world.cluster.nodes[node].failpoints.clone()))
        .chain(of.iter().filter_map(|&agent| world.cluster.agents[agent].failpoints.clone()))
        .collect();
    let before = controls.first()?.ended_at(site);
    controls.iter().for_each(|control| control.arm(site, passages));
    let mut undo: Vec<Undo> = agents.iter().map(|&agent| Undo::ReviveAgent(agent)).collect();
    undo.extend(urge(world, rng, prompt)?);
    undo.push(Undo::Disarm { site, before, controls });
    let mut fault = of_nodes(world, &nodes);
    fault.workers = world.workers(&agents);
    fault.detail = format!("at passage {}", passages + 1);
    Some(Active { fault, nodes: all, agents, undo })
}

/// What takes it back, if anything does.
fn urge(world: &mut World, rng: &mut SmallRng, prompt: Prompt) -> Option<Option<Undo>> {
    match prompt {
        Prompt::Nothing => {}
        Prompt::Election => {
            let leader = leader(world)?;
            world.cluster.nodes[leader].kill();
        }
        Prompt::Blink => {
            let node = follower(world, rng)?;
            world.cluster.nodes[node].kill();
            world.supervise();
        }
        Prompt::Depose => return Some(Some(depose(world))),
        Prompt::Lag => return Some(lag(world, follower(world, rng)?)),
        Prompt::AgentsBlink => {
            kill_agents(world);
            world.cluster.agents.iter_mut().for_each(Agent::start);
        }
        Prompt::AgentsPause => kill_agents(world),
        Prompt::AgentsLate => {
            kill_agents(world);
            world.agents_are_late = true;
        }
        Prompt::WatchdogsDie => {
            for agent in &world.cluster.agents {
                for pid in crate::processes::named_within("hodei-watchdog", &agent.data) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
        }
        Prompt::Scripts => scripts(world),
    }
    Some(None)
}

/// It goes on in time, whether or not somebody dies for it.
fn lag(world: &mut World, node: usize) -> Option<Undo> {
    let pid = world.cluster.nodes[node].process().pid();
    kill(pid, Signal::SIGSTOP).ok()?;
    let (stop, stopped) = mpsc::channel::<()>();
    let wait = move || {
        let _ = stopped.recv_timeout(LAGS);
        let _ = kill(pid, Signal::SIGCONT);
    };
    Some(Undo::Flap(stop, thread::Builder::new().name("lag".to_owned()).spawn(wait).ok()))
}

fn kill_agents(world: &mut World) {
    world.cluster.agents.iter_mut().for_each(Agent::kill);
}

/// A job whose script is too long for the log's own rows, at each node.
fn scripts(world: &World) {
    let content = format!("# {}\ntrue\n", "x".repeat(16 << 10));
    let script = Script { interpreter: "/bin/sh".to_owned(), content };
    let command = Some(Command { kind: Some(command::Kind::Script(script)) });
    let spec = patient(JobSpec { command, ..jobs::nothing() });
    for seat in world.field.seats() {
        let (field, spec) = (world.field.clone(), spec.clone());
        tokio::spawn(async move {
            // The first ones may well be lost with a node, or come before there is a leader.
            for _ in 0..SCRIPTS {
                let (proc, _) = field.process();
                let id = Uuid::now_v7().to_string();
                let queued = jobs::queue(&field, proc, seat, &id, None, spec.clone(), ("script", Some(0)));
                if queued.await.is_ok() || field.is_quiet() {
                    break;
                }
            }
        });
    }
}
