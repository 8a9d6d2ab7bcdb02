//! What the clients of a run share: where nodes are, as whom they ask, what they record, and how long they go on.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};

use super::world::DRIVER;
use crate::{
    Client,
    history::{Capacity, History, Note, Place, Violation},
};

/// How long a client waits for an answer.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// How fast somebody reads a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as messages come.
    Steady,
    /// Rests before each message, and at times for so long that nothing more may be sent.
    Slow,
}

/// How long somebody slow rests, in milliseconds: mostly, and one time in [`LONG_RESTS`].
const REST: [std::ops::Range<u64>; 2] = [0..200, 2_000..6_000];
const LONG_RESTS: u32 = 20;

/// A node, as clients know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its Raft id, unless it is not known under which one it goes on.
    pub id: Option<u64>,
    /// Where it listens.
    pub address: SocketAddr,
    /// How often it was started.
    pub starts: u32,
}

/// What was seen of a node since somebody began to count.
#[derive(Clone, Debug, Default)]
struct Look {
    /// How often it was polled.
    times: u32,
    /// What it had applied, and the hash of its state there.
    state: (u64, String),
}

/// See the module. Clones are the same field.
#[derive(Clone, Debug)]
pub struct Field {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    history: History,
    seats: Mutex<Vec<Seat>>,
    clients: Mutex<HashMap<(SocketAddr, u32), Client>>,
    identity: PathBuf,
    dir: PathBuf,
    seed: u64,
    processes: AtomicU32,
    /// The highest term of which anybody has named the leader, and who that is.
    leader: Mutex<Option<(u64, u64)>>,
    looks: Mutex<HashMap<u64, Look>>,
    /// Nodes that faults have cut off from a majority.
    minority: Mutex<Vec<u64>>,
    /// The job that was accepted last.
    accepted: Mutex<Option<String>>,
    /// How far each stream of all events has come.
    told: Mutex<HashMap<u32, Place>>,
    quiet: AtomicBool,
    over: AtomicBool,
    cancelled: AtomicBool,
    offered: Capacity,
}

impl Field {
    /// Clients ask with the identity in `identity`; jobs write down that they live in `dir`; an agent has `offered`.
    #[must_use]
    pub fn new(seed: u64, identity: PathBuf, dir: PathBuf, offered: Capacity) -> Self {
        let inner = Inner {
            history: History::default(),
            seats: Mutex::default(),
            clients: Mutex::default(),
            identity,
            dir,
            seed,
            processes: AtomicU32::new(1),
            leader: Mutex::default(),
            looks: Mutex::default(),
            minority: Mutex::default(),
            accepted: Mutex::default(),
            told: Mutex::default(),
            quiet: AtomicBool::new(false),
            over: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            offered,
        };
        Self { inner: Arc::new(inner) }
    }

    /// What is recorded.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.inner.history
    }

    /// Records what had to happen and did not.
    pub fn violation(&self, what: String) {
        self.history().note(DRIVER, "", Note::Violation(Violation { what }));
    }

    /// What an agent has for jobs.
    #[must_use]
    pub fn offered(&self) -> Capacity {
        self.inner.offered
    }

    /// Where witnesses write.
    #[must_use]
    pub fn dir(&self) -> &PathBuf {
        &self.inner.dir
    }

    /// Replaces what is known of the nodes.
    pub fn seat(&self, seats: Vec<Seat>) {
        *self.seats_now() = seats;
    }

    /// The nodes.
    #[must_use]
    pub fn seats(&self) -> Vec<Seat> {
        self.seats_now().clone()
    }

    fn seats_now(&self) -> MutexGuard<'_, Vec<Seat>> {
        self.inner.seats.lock().expect("looking at seats does not panic")
    }

    /// Any node.
    ///
    /// # Panics
    /// If there is none.
    pub fn any(&self, rng: &mut SmallRng) -> Seat {
        *self.seats().choose(rng).expect("there are nodes")
    }

    /// Another one than that which has just failed somebody.
    ///
    /// # Panics
    /// If there is no other one.
    pub fn elsewhere(&self, than: Option<u64>, rng: &mut SmallRng) -> Seat {
        let others: Vec<Seat> = self.seats().into_iter().filter(|seat| than.is_none() || seat.id != than).collect();
        *others.choose(rng).expect("there are other nodes")
    }

    /// These are cut off from a majority from now on.
    ///
    /// # Panics
    /// Never: changing a list does not.
    pub fn part(&self, minority: &[u64]) {
        self.inner.minority.lock().expect("changing a list does not panic").extend(minority);
    }

    /// These are not any more.
    ///
    /// # Panics
    /// Never: changing a list does not.
    pub fn join(&self, minority: &[u64]) {
        self.inner.minority.lock().expect("changing a list does not panic").retain(|node| !minority.contains(node));
    }

    /// The nodes on both sides of a cut; none, where there is no cut.
    ///
    /// # Panics
    /// Never: changing a list does not.
    #[must_use]
    pub fn sides(&self) -> Option<[Vec<Seat>; 2]> {
        let minority = self.inner.minority.lock().expect("changing a list does not panic").clone();
        let (these, those): (Vec<_>, Vec<_>) =
            self.seats().into_iter().partition(|seat| seat.id.is_some_and(|id| minority.contains(&id)));
        (!these.is_empty() && !those.is_empty()).then_some([these, those])
    }

    /// Somebody names the leader of a term.
    pub fn leads(&self, term: u64, leader: u64) {
        let mut known = self.inner.leader.lock().expect("comparing terms does not panic");
        *known = (*known).max(Some((term, leader)));
    }

    /// The newest leader that anybody has named.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        self.inner.leader.lock().expect("comparing terms does not panic").map(|(_, leader)| leader)
    }

    /// A node was polled: how far it is, and the hash of its state there.
    pub fn polled(&self, node: u64, applied: u64, hash: &str) {
        let mut looks = self.looks();
        let look = looks.entry(node).or_default();
        look.times += 1;
        look.state = (applied, hash.to_owned());
    }

    /// From now on polls are counted.
    pub fn look_anew(&self) {
        self.looks().clear();
    }

    /// Whether every node was polled so often since then.
    #[must_use]
    pub fn is_seen(&self, times: u32) -> bool {
        let looks = self.looks();
        self.seats().iter().all(|seat| look(&looks, *seat).is_some_and(|look| look.times >= times))
    }

    /// Whether the last polls since then say that all nodes have one state.
    #[must_use]
    pub fn is_alike(&self) -> bool {
        let looks = self.looks();
        let states: Vec<_> = self.seats().iter().map(|seat| look(&looks, *seat).map(|look| &look.state)).collect();
        states.iter().all(|state| state.is_some() && *state == states[0])
    }

    fn looks(&self) -> MutexGuard<'_, HashMap<u64, Look>> {
        self.inner.looks.lock().expect("counting polls does not panic")
    }

    /// A job was accepted.
    ///
    /// # Panics
    /// Never: replacing a name does not.
    pub fn accepted(&self, job: &str) {
        *self.inner.accepted.lock().expect("replacing a name does not panic") = Some(job.to_owned());
    }

    /// The job that was accepted last.
    ///
    /// # Panics
    /// Never: replacing a name does not.
    #[must_use]
    pub fn newest(&self) -> Option<String> {
        self.inner.accepted.lock().expect("replacing a name does not panic").clone()
    }

    /// A stream of all events has come so far.
    ///
    /// # Panics
    /// Never: comparing places does not.
    pub fn told(&self, stream: u32, place: Place) {
        self.inner.told.lock().expect("comparing places does not panic").insert(stream, place);
    }

    /// Whether these many streams have come equally far.
    ///
    /// # Panics
    /// Never: comparing places does not.
    #[must_use]
    pub fn is_told(&self, streams: usize) -> bool {
        let told = self.inner.told.lock().expect("comparing places does not panic");
        told.len() == streams && told.values().all(|place| told.values().next() == Some(place))
    }

    /// A connection to a node, shared by up to 16 lanes of clients.
    ///
    /// # Panics
    /// If the identity is unusable.
    #[must_use]
    pub fn client(&self, seat: Seat, lane: u32) -> Client {
        let mut clients = self.inner.clients.lock().expect("making a client does not panic");
        let made = || Client::new(seat.address, &self.inner.identity).expect("the identity is usable");
        clients.entry((seat.address, lane % 16)).or_insert_with(made).clone()
    }

    /// A connection to a node of somebody without an identity.
    ///
    /// # Panics
    /// If there is no CA to trust.
    #[must_use]
    pub fn stranger(&self, seat: Seat) -> Client {
        Client::without_identity(seat.address, &self.inner.identity).expect("there is a CA to trust")
    }

    /// The number of a new process, and its own random numbers.
    #[must_use]
    pub fn process(&self) -> (u32, SmallRng) {
        let proc = self.inner.processes.fetch_add(1, Ordering::Relaxed);
        (proc, SmallRng::seed_from_u64(self.inner.seed ^ (u64::from(proc) << 32)))
    }

    /// Whether nothing new is to be begun.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.inner.quiet.load(Ordering::Relaxed)
    }

    /// Has clients begin nothing new.
    pub fn quieten(&self) {
        self.inner.quiet.store(true, Ordering::Relaxed);
    }

    /// Whether readers are to end, too.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.inner.over.load(Ordering::Relaxed)
    }

    /// Has readers end.
    pub fn end(&self) {
        self.inner.over.store(true, Ordering::Relaxed);
    }

    /// A cancel was acknowledged.
    pub fn cancelled(&self) {
        self.inner.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether one was.
    #[must_use]
    pub fn has_cancelled(&self) -> bool {
        self.inner.cancelled.load(Ordering::Relaxed)
    }

    /// A request with the usual deadline, which the caller enforces, too: a node may be stopped.
    pub fn ask<T>(message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(DEADLINE);
        request
    }

    /// Before a reader takes the next message. When all comes to rest, nobody is slow any more.
    pub async fn rest(&self, rng: &mut SmallRng, pace: Pace) {
        if pace == Pace::Slow && !self.is_quiet() {
            let rest = REST[usize::from(rng.random_ratio(1, LONG_RESTS))].clone();
            tokio::time::sleep(Duration::from_millis(rng.random_range(rest))).await;
        }
    }

    /// Sleeps for a while of about this length.
    pub async fn pause(rng: &mut SmallRng, about: Duration) {
        let millis = u64::try_from(about.as_millis()).unwrap_or(u64::MAX).max(2);
        tokio::time::sleep(Duration::from_millis(rng.random_range(millis / 2..=millis * 3 / 2))).await;
    }
}

fn look(looks: &HashMap<u64, Look>, seat: Seat) -> Option<&Look> {
    looks.get(&seat.id?)
}

/// Gives up on an answer that does not come although its deadline is over.
///
/// # Errors
/// That of the answer, or that there is none.
pub async fn within<T>(answer: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, tonic::Status> {
    let patience = DEADLINE + Duration::from_millis(300);
    tokio::time::timeout(patience, answer)
        .await
        .unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer at all")))
}
