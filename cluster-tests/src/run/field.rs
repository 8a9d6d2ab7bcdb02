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

use crate::{Client, history::History};

/// How long a client waits for an answer.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// A node, as clients know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its Raft id.
    pub id: u64,
    /// Where it listens.
    pub address: SocketAddr,
    /// How often it was started.
    pub starts: u32,
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
    quiet: AtomicBool,
    over: AtomicBool,
}

impl Field {
    /// Clients ask with the identity in `identity`; jobs write down that they live in `dir`.
    #[must_use]
    pub fn new(seed: u64, identity: PathBuf, dir: PathBuf) -> Self {
        let inner = Inner {
            history: History::default(),
            seats: Mutex::default(),
            clients: Mutex::default(),
            identity,
            dir,
            seed,
            processes: AtomicU32::new(1),
            leader: Mutex::default(),
            quiet: AtomicBool::new(false),
            over: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What is recorded.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.inner.history
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

    /// A request with the usual deadline, which the caller enforces, too: a node may be stopped.
    pub fn ask<T>(message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(DEADLINE);
        request
    }

    /// Sleeps for a while of about this length.
    pub async fn pause(rng: &mut SmallRng, about: Duration) {
        let millis = u64::try_from(about.as_millis()).unwrap_or(u64::MAX).max(2);
        tokio::time::sleep(Duration::from_millis(rng.random_range(millis / 2..=millis * 3 / 2))).await;
    }
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
