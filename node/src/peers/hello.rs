//! Says Hello: who and where this node is, to every member, all the time.
//!
//! A Hello serves three ends. It moves addresses: after a start under another address the others learn it at once, and
//! the state by a command ([`commit`]). It shows who lives: `cluster status` calls a member healthy that was heard
//! lately. And it finds the way back: a node whose peers all moved asks its seeds.

use std::{collections::HashSet, sync::Arc, time::Duration};

use hodei_proto::v1::{HelloRequest, HelloResponse, peer_service_client::PeerServiceClient};
use hodei_raft::Handle;
use hodei_state::{
    State,
    command::{Command, Envelope, NodeHello},
    ids::{Caller, ClusterId, NodeId},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{self, Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use super::Peers;
use crate::{
    data_dir::DataDir,
    error,
    net::{connector, tls},
};

/// Between Hellos to one member: several of them fit into two election time-outs.
const INTERVAL: Duration = Duration::from_millis(300);
/// Bound on one Hello.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Bound on committing one.
const COMMIT: Duration = Duration::from_secs(5);
/// Hellos that wait to be committed. One that finds no room comes again with the next interval.
const INBOX: usize = 64;

/// Who and where this node is, for this start of the process.
#[derive(Clone, Debug)]
pub struct Myself {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub node: NodeId,
    /// Where others reach it.
    pub address: String,
    /// The number of this start.
    pub start_counter: u64,
}

impl Myself {
    fn command(&self) -> NodeHello {
        NodeHello {
            node: self.node,
            address: self.address.clone(),
            start_counter: self.start_counter,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            feature_level: hodei_state::FEATURE_LEVEL,
        }
    }

    fn request(&self, applied_index: u64) -> HelloRequest {
        let hello = self.command();
        HelloRequest {
            cluster_id: self.cluster.to_string(),
            node_id: hello.node,
            address: hello.address,
            start_counter: hello.start_counter,
            version: hello.version,
            feature_level: hello.feature_level,
            applied_index,
        }
    }
}

/// Takes Hellos that the state does not know yet.
pub type Inbox = mpsc::Sender<NodeHello>;

/// Where Hellos are put to be committed, and the task that commits them.
#[must_use]
pub fn inbox() -> (Inbox, mpsc::Receiver<NodeHello>) {
    mpsc::channel(INBOX)
}

/// Whether the state has yet to hear of a Hello.
#[must_use]
pub fn is_news(state: &State, hello: &NodeHello) -> bool {
    state
        .member(hello.node)
        .is_some_and(|member| member.removed_at.is_none() && member.start_counter < hello.start_counter)
}

/// Commits what is new, until `stop`.
pub async fn commit(handle: Handle, mut inbox: mpsc::Receiver<NodeHello>, stop: CancellationToken) {
    while let Some(Some(hello)) = stop.run_until_cancelled(inbox.recv()).await {
        if !is_news(&handle.view().state, &hello) {
            continue;
        }
        let node = hello.node;
        let envelope = Envelope { caller: Caller::Node(node), command: Command::NodeHello(hello) };
        let proposing = handle.propose(envelope, Instant::now() + COMMIT);
        // What fails comes again with the next Hello.
        if let Some(Err(error)) = stop.run_until_cancelled(proposing).await {
            tracing::debug!(node, %error, "a member's address is not committed yet");
        }
    }
}

/// The task that says Hello.
pub struct Greeter {
    /// What it says.
    pub myself: Myself,
    /// To whom.
    pub peers: Arc<Peers>,
    /// Addresses of whoever may be there.
    pub seeds: Vec<String>,
    /// What it knows.
    pub handle: Handle,
    /// Where the address book is kept.
    pub dir: Arc<DataDir>,
    /// Where its own Hello goes.
    pub inbox: Inbox,
    /// Told when the cluster says that this node was removed.
    pub removed: CancellationToken,
}

/// Whom a Hello went to, and what came of it.
type Greeted = (To, Result<HelloResponse, Status>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum To {
    Member(NodeId),
    Seed(String),
}

impl Greeter {
    /// Says Hello until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut ticks = time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut book = self.peers.book();
        let mut under_way = HashSet::new();
        let mut greetings = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => self.greet(&mut under_way, &mut greetings),
                Some(done) = greetings.join_next() => match done {
                    Ok((to, answer)) => {
                        under_way.remove(&to);
                        self.answered(&to, answer);
                    }
                    Err(error) => tracing::error!(%error, "a Hello broke down"),
                },
                Ok(()) = book.changed() => self.keep_book().await,
            }
        }
    }

    /// One Hello to everybody who has answered the last one.
    fn greet(&self, under_way: &mut HashSet<To>, greetings: &mut JoinSet<Greeted>) {
        let view = self.handle.view();
        self.peers.follow(&view.state, &self.handle.status());
        let own = self.myself.command();
        if is_news(&view.state, &own) {
            // No room: it comes again.
            let _ = self.inbox.try_send(own);
        }
        let members: Vec<_> = self.peers.book().borrow().entries().map(|(node, ..)| To::Member(node)).collect();
        for to in members.into_iter().chain(self.seeds.iter().cloned().map(To::Seed)) {
            let Some(channel) = self.channel(&to) else { continue };
            if under_way.insert(to.clone()) {
                let request = self.myself.request(view.position.index);
                greetings.spawn(async move { (to, say(channel, request).await) });
            }
        }
    }

    fn channel(&self, to: &To) -> Option<Channel> {
        match to {
            To::Member(node) => self.peers.channel_to(*node),
            // Any node will do: who it is, it says itself, and proves when it is dialled by its own name.
            To::Seed(address) => connector::lazy_channel(address, tls::ANY_NODE, self.peers.tls()).ok(),
        }
    }

    fn answered(&mut self, to: &To, answer: Result<HelloResponse, Status>) {
        match answer {
            Ok(answer) => {
                if let To::Seed(found) = to {
                    tracing::info!(address = found, node = answer.node_id, "found a member");
                    self.seeds.retain(|seed| seed != found);
                }
                self.heard(&answer);
            }
            Err(status) => {
                tracing::debug!(?to, reason = status.message(), "no answer to Hello");
                if let To::Member(node) = to {
                    self.peers.missed(*node);
                }
                if error::detail(&status).is_some_and(|detail| detail.code == error::code::REMOVED) {
                    self.removed.cancel();
                }
            }
        }
    }

    fn heard(&self, answer: &HelloResponse) {
        self.peers.saw(answer.node_id, answer.applied_index, &answer.version);
        for (node, address) in &answer.members {
            self.peers.learn(*node, address, answer.start_counters.get(node).copied().unwrap_or(0));
        }
    }

    async fn keep_book(&self) {
        let book = self.peers.book().borrow().clone();
        let dir = self.dir.clone();
        let written = tokio::task::spawn_blocking(move || dir.write_toml("peers.toml", &book)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => tracing::warn!(%failure, "cannot keep the members' addresses"),
            Err(error) => tracing::error!(%error, "writing the members' addresses broke down"),
        }
    }
}

/// Asks every member that was heard within `span` whether it is still there, and waits for their answers no longer than
/// that. Whoever does not answer was [`missed`](Peers::missed).
pub async fn ask_again(peers: &Peers, myself: &Myself, applied_index: u64, span: Duration) {
    let asked = peers.all_heard_within(span).into_iter().filter_map(|node| {
        let saying = say(peers.channel_to(node)?, myself.request(applied_index));
        Some(async move {
            match time::timeout(span, saying).await {
                Ok(Ok(answer)) => peers.saw(answer.node_id, answer.applied_index, &answer.version),
                Ok(Err(_)) | Err(_) => peers.missed(node),
            }
        })
    });
    futures::future::join_all(asked).await;
}

async fn say(channel: Channel, request: HelloRequest) -> Result<HelloResponse, Status> {
    let mut request = tonic::Request::new(request);
    request.set_timeout(TIMEOUT);
    match time::timeout(TIMEOUT, PeerServiceClient::new(channel).hello(request)).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer within a second")),
    }
}
