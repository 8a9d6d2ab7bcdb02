//! Agents that are let in, use what they were given at any node, are removed, and go on using it at every node.
//!
//! Agents stand for all: nobody takes a user's identity back. They call what the log decides, so that a node that lags
//! behind knows no better than another one. What nodes answer by themselves (health, and each other's calls, by which a
//! lagging one catches up) may be served where a removal is not known yet; a removed node is tried when all is healed.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use hodei_proto::v1::{
    Capacity, DrainWorker, PullLogRequest, RegisterRequest, Role, UnregisterWorkerRequest, UpdateWorkerStatusRequest,
    peer_service_client::PeerServiceClient, update_worker_status_request::Wish,
    worker_agent_service_client::WorkerAgentServiceClient,
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use tonic::{Status, transport::Channel};
use uuid::Uuid;

use super::tokens::{self, NewToken, Party, Token};
use crate::{
    Client,
    history::{Call, Reply, Request},
    run::field::{Field, Seat, within},
};

/// Between two agents.
const PAUSE: Duration = Duration::from_millis(3_000);
/// How often somebody asks again who got no answer.
const REPEATS: u32 = 3;
/// How many of the removed ones try again in the end, on each node.
const LATE: usize = 3;

/// What an agent may ask for, and nobody may once it is removed.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// Its session, again.
    Register,
    /// A session of another process.
    RegisterAnew,
    /// To get no more jobs.
    Drain,
    /// To end its session.
    Unregister,
    /// Its certificate, again.
    Enroll,
    /// Another identity, by a token that is good, with the same key.
    EnrollAnew,
}

const LIVING: [Wanted; 3] = [Wanted::Register, Wanted::RegisterAnew, Wanted::Drain];
const ALL: [Wanted; 6] =
    [Wanted::Register, Wanted::RegisterAnew, Wanted::Drain, Wanted::Unregister, Wanted::Enroll, Wanted::EnrollAnew];

/// Somebody with an agent's identity. It has connections of its own, which outlive its removal.
#[derive(Debug)]
pub struct Agent {
    /// `role/id`.
    key: String,
    session: String,
    token: Token,
    party: Party,
    certificate: String,
    ca: String,
    connections: HashMap<SocketAddr, Client>,
}

/// One agent after the other, until the end; gives those that were removed, of which there is one at least.
pub async fn come_and_go(field: Field) -> Vec<Agent> {
    let (proc, mut rng) = field.process();
    let (remover, _) = field.process();
    let mut removed: Vec<Agent> = Vec::new();
    while !field.is_quiet() || removed.is_empty() {
        if let Some(mut agent) = let_in(&field, proc, &mut rng).await {
            for wanted in [Wanted::Register, LIVING[rng.random_range(0..LIVING.len())]] {
                agent.call(&field, proc, field.any(&mut rng), wanted).await;
            }
            let key = agent.key.clone();
            // It goes on while somebody removes it.
            let busy = agent.call(&field, proc, field.any(&mut rng), Wanted::Register);
            let mut choices = SmallRng::from_rng(&mut rng);
            let (gone, ()) = tokio::join!(remove(&field, remover, &key, &mut choices), busy);
            if gone {
                for seat in field.seats() {
                    agent.call(&field, proc, seat, ALL[rng.random_range(0..ALL.len())]).await;
                }
                removed.push(agent);
            }
        }
        if let Some(before) = (!removed.is_empty()).then(|| rng.random_range(0..removed.len())) {
            removed[before].call(&field, proc, field.any(&mut rng), ALL[rng.random_range(0..ALL.len())]).await;
        }
        Field::pause(&mut rng, PAUSE).await;
    }
    removed
}

/// Those that were removed last try everything at every node.
pub async fn try_again(field: &Field, proc: u32, removed: &mut [Agent]) {
    for agent in removed.iter_mut().rev().take(LATE) {
        for (seat, wanted) in field.seats().into_iter().flat_map(|seat| ALL.map(|wanted| (seat, wanted))) {
            agent.call(field, proc, seat, wanted).await;
        }
    }
}

/// A node that was removed reads a log at every node. None of them lags behind.
pub async fn try_as_node(field: &Field, proc: u32, id: u64, [ca, certificate, key]: &[String; 3]) {
    for seat in field.seats() {
        let client = Client::with_identity(seat.address, ca, certificate, key).expect("the identity is usable");
        let call = Call { rpc: "PeerService/PullLog".to_owned() };
        let open = field.history().invoke(proc, seat.id, &format!("node/{id}"), Request::Call(call));
        let wanted = PullLogRequest { job_id: Uuid::now_v7().to_string(), attempt: 1, from_sequence: 1, follow: false };
        let mut service = PeerServiceClient::new(client.channel());
        let answer = within(service.pull_log(Field::ask(wanted))).await;
        open.answer(&answer, |_| (Reply::Call, None));
    }
}

/// Somebody who has what it takes to be an agent.
pub(super) async fn let_in(field: &Field, proc: u32, rng: &mut SmallRng) -> Option<Agent> {
    // Of its two uses one is left.
    let wanted = NewToken { role: Role::Agent, uses: 2, ttl: tokens::LONG };
    let token = tokens::create(field, proc, field.any(rng), wanted, rng).await.ok()?;
    let party = Party::new(rng);
    for _ in 0..REPEATS {
        if let Ok(done) = tokens::enroll(field, proc, field.any(rng), &token, &party).await {
            return Some(Agent {
                key: tokens::identity(&done),
                session: Uuid::now_v7().to_string(),
                token,
                party,
                certificate: done.certificate_pem,
                ca: done.ca_bundle_pem,
                connections: HashMap::new(),
            });
        }
    }
    None
}

/// An administrator removes an agent; whether that was acknowledged.
pub(super) async fn remove(field: &Field, proc: u32, key: &str, rng: &mut SmallRng) -> bool {
    for _ in 0..REPEATS {
        let seat = field.any(rng);
        let open = field.history().invoke(proc, seat.id, key, Request::Revoke);
        let worker_id = key.rsplit('/').next().unwrap_or_default().to_owned();
        let wish = UnregisterWorkerRequest { worker_id, force: true, ..UnregisterWorkerRequest::default() };
        let mut client = WorkerAgentServiceClient::new(field.client(seat, proc).channel());
        let answer = within(client.unregister_worker(Field::ask(wish))).await.map(tonic::Response::into_inner);
        open.answer(&answer, |done| (Reply::Revoke, done.position));
        if answer.is_ok() {
            return true;
        }
    }
    false
}

impl Agent {
    /// `role/id`.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// The worker's id.
    pub(super) fn id(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }

    /// Opens a session, recorded.
    pub(super) async fn register(
        &mut self,
        field: &Field,
        proc: u32,
        seat: Seat,
        wish: RegisterRequest,
    ) -> Result<(), Status> {
        let call = Call { rpc: rpc(Wanted::Register).to_owned() };
        let open = field.history().invoke(proc, seat.id, &self.key, Request::Call(call));
        let answer = within(self.at(seat).register(Field::ask(wish))).await.map(tonic::Response::into_inner);
        open.answer(&answer, |done| (Reply::Call, done.position));
        answer.map(drop)
    }

    async fn call(&mut self, field: &Field, proc: u32, seat: Seat, wanted: Wanted) {
        let open =
            field.history().invoke(proc, seat.id, &self.key, Request::Call(Call { rpc: rpc(wanted).to_owned() }));
        let mut client = self.at(seat);
        let answer = match wanted {
            Wanted::Register => {
                let asked = client.register(Field::ask(registration(&self.session)));
                within(asked).await.map(|done| done.into_inner().position)
            }
            Wanted::RegisterAnew => {
                self.session = Uuid::now_v7().to_string();
                let asked = client.register(Field::ask(registration(&self.session)));
                within(asked).await.map(|done| done.into_inner().position)
            }
            Wanted::Drain => {
                let request_id = Uuid::now_v7().to_string();
                let wish = Some(Wish::Drain(DrainWorker { request_id, ..DrainWorker::default() }));
                let session_id = self.session.clone();
                let wish = UpdateWorkerStatusRequest { wish, session_id, ..UpdateWorkerStatusRequest::default() };
                within(client.update_worker_status(Field::ask(wish))).await.map(|done| done.into_inner().position)
            }
            Wanted::Unregister => {
                let session_id = self.session.clone();
                let wish = UnregisterWorkerRequest { session_id, ..UnregisterWorkerRequest::default() };
                within(client.unregister_worker(Field::ask(wish))).await.map(|done| done.into_inner().position)
            }
            Wanted::Enroll | Wanted::EnrollAnew => {
                let mut request = self.party.request(&self.token);
                if matches!(wanted, Wanted::EnrollAnew) {
                    request.nonce = Uuid::new_v4().as_bytes().to_vec();
                }
                let mut stranger = field.stranger(seat).cluster();
                within(stranger.enroll(Field::ask(request))).await.map(|done| done.into_inner().position)
            }
        };
        open.answer(&answer, |position| (Reply::Call, *position));
    }

    /// A connection of its own, which outlives its removal.
    pub(super) fn at(&mut self, seat: Seat) -> WorkerAgentServiceClient<Channel> {
        let Self { ca, certificate, party, .. } = self;
        let made = || {
            Client::with_identity(seat.address, &*ca, &*certificate, &party.key).expect("what was given is an identity")
        };
        WorkerAgentServiceClient::new(self.connections.entry(seat.address).or_insert_with(made).channel())
    }
}

fn rpc(wanted: Wanted) -> &'static str {
    match wanted {
        Wanted::Register | Wanted::RegisterAnew => "WorkerAgentService/Register",
        Wanted::Drain => "WorkerAgentService/UpdateWorkerStatus",
        Wanted::Unregister => "WorkerAgentService/UnregisterWorker",
        Wanted::Enroll | Wanted::EnrollAnew => "ClusterService/Enroll",
    }
}

/// It says nothing more, and so gets no job.
fn registration(session: &str) -> RegisterRequest {
    let capacity = Some(Capacity { slots: 1, ..Capacity::default() });
    RegisterRequest { session_id: session.to_owned(), capacity, ..RegisterRequest::default() }
}
