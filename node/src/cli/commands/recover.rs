//! `recover`: one node goes on alone.

use std::fmt::Write as _;

use hodei_raft::Remains;
use hodei_state::job::JobState;

use super::serve::Node;
use crate::{
    cli::{
        Global,
        exit::{CommandResult, Failure},
        output,
    },
    config::NodeArgs,
    data_dir::Identity,
    pki::credentials::Credentials,
    recovery::{self, Other},
};

/// Go on with this node alone, after a majority of the nodes was lost for good
///
/// What only the lost nodes knew is lost. The others are removed: none of them may ever be started again with what is on
/// its disk. Without --accept-data-loss it changes nothing, and says what there is.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  hodei-node recover --data-dir /var/lib/hodei\n  hodei-node recover --data-dir /var/lib/hodei --accept-data-loss\n\nOf the nodes that are left, take the one whose last entry is the newest. docs/lost-majority.md says what it may cost."
)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// What only the lost nodes knew may be lost: jobs, results, and that jobs were cancelled
    #[arg(long)]
    accept_data_loss: bool,
}

impl Args {
    pub async fn run(self, _: &Global) -> CommandResult {
        let Some(node) = Node::open(&self.node, &[], false)? else { return Ok(0) };
        let Some(identity) = node.dir.identity()? else {
            let why = format!("{} is not the data directory of a node", node.dir.path().display());
            return node.give_up(Failure::bad_input(why));
        };
        let dir = &node.dir;
        recovery::resume(dir)?;
        let tls = Credentials::load(dir, &identity)?.client_config();
        let tls = tls.map_err(|error| Failure::other(format!("{}: {error}", dir.path().display())))?;
        let remains = recovery::look(dir).await?;
        let others = recovery::others(dir, &remains, identity.node_id)?;
        check(&identity, &remains, &others)?;
        let alive = recovery::alive(&others, &tls.into()).await;
        if !alive.is_empty() {
            return Err(Failure::bad_input(format!(
                "{} still there: as long as a majority can answer, nothing is lost; stop what is to be given up first",
                list(&alive)
            )));
        }
        output::note(summary(&identity, &remains, &others));
        if !self.accept_data_loss {
            return Err(Failure::bad_input(
                "nothing was changed: what only the others knew will be lost; say --accept-data-loss to go on",
            ));
        }
        recovery::go_on_alone(dir, &identity, remains).await?;
        output::note(format_args!(
            "node {} is the only member now. Start it with `hodei-node run`; what it was before lies in {}.",
            identity.node_id,
            dir.join("damaged").display()
        ));
        if !others.is_empty() {
            output::note(format_args!(
                "Never start {} again with what is on their disks: empty their data directories and join them anew.",
                list(&others)
            ));
        }
        Ok(0)
    }
}

/// Whether there is anything to recover from.
fn check(identity: &Identity, remains: &Remains, others: &[Other]) -> Result<(), Failure> {
    let me = identity.node_id;
    match remains.state().member(me) {
        None => Err(Failure::bad_input(format!("what is on this disk knows no node {me}"))),
        Some(member) if member.removed_at.is_some() => {
            Err(Failure::bad_input(format!("node {me} was removed from the cluster: take another one")))
        }
        Some(_) if others.is_empty() && remains.damage().is_empty() => Err(Failure::bad_input(format!(
            "nothing is lost: node {me} is the only member, and whole; start it with `hodei-node run`"
        ))),
        Some(_) => Ok(()),
    }
}

fn summary(identity: &Identity, remains: &Remains, others: &[Other]) -> String {
    let position = remains.position();
    let mut jobs = [0_usize; 3];
    for job in remains.state().jobs_newest_first(None) {
        let kind = match job.state {
            JobState::Pending => 0,
            JobState::Scheduled | JobState::Running => 1,
            _ => 2,
        };
        jobs[kind] += 1;
    }
    let [waiting, running, ended] = jobs;
    let mut text = format!(
        "node {} of cluster {} has entries up to {} of term {}: {waiting} jobs that wait, {running} that run, {ended} that have ended",
        identity.node_id, identity.cluster_id, position.index, position.term
    );
    for damage in remains.damage() {
        let _ = write!(text, "\ndamaged: {damage}");
    }
    if !others.is_empty() {
        let _ = write!(text, "\nto be given up: {}", list(others));
    }
    text
}

fn list(others: &[Other]) -> String {
    let named: Vec<_> = others.iter().map(|other| format!("node {} ({})", other.node, other.address)).collect();
    named.join(", ")
}
