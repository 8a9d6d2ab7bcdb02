//! Keeps the leases of this process: tells each watchdog what was granted, and kills what has lost its lease.
//!
//! Each attempt's watchdog does that by itself at the deadline. Here is what only the agent knows (refusals), and what
//! helps where a watchdog is stopped or stuck: a thread of its own, without the async runtime, so that a stuck main loop
//! cannot keep a job alive past its deadline either.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use crate::{
    clock::Boot,
    executor::{outcome::Cause, tree::Tree},
    key::AttemptKey,
    lease::{LeaseTable, NotAdmitted},
};

/// The thread's timer stands still while the machine is suspended: it looks at the boot-time clock at least this often.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a tree is killed again until it is seen to have ended.
const KILL_AGAIN: Duration = Duration::from_millis(50);

#[derive(Default)]
struct State {
    table: LeaseTable,
    trees: BTreeMap<AttemptKey, Arc<Tree>>,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The leases of this process, watched over. Cheap to clone.
#[derive(Clone)]
pub struct Leases {
    shared: Arc<Shared>,
}

/// Ends the thread when dropped.
pub struct Keeper {
    leases: Leases,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let leases = Leases { shared: Arc::default() };
        let shared = Arc::clone(&leases.shared);
        let thread = thread::Builder::new().name("keeper".into()).spawn(move || watch(&shared))?;
        Ok(Self { leases, thread: Some(thread) })
    }

    /// A handle to the table.
    #[must_use]
    pub fn leases(&self) -> Leases {
        self.leases.clone()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.leases.shared.state.lock().stop = true;
        self.leases.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been reported by its hook; there is nothing to add here.
            let _ = thread.join();
        }
    }
}

impl Leases {
    /// See [`LeaseTable::sent`]; the clock is read here.
    pub fn sent(&self, sequence: u64) {
        self.shared.state.lock().table.sent(sequence, Boot::now());
    }

    /// See [`LeaseTable::admit`].
    pub fn admit(&self, key: AttemptKey, sequence: u64, lost_after: Duration) -> Result<Boot, NotAdmitted> {
        self.change(|state| state.table.admit(key, sequence, lost_after, Boot::now()))
    }

    /// The answer to heartbeat `sequence`.
    pub fn answered(&self, sequence: u64, extended: &[AttemptKey], refused: &[AttemptKey]) {
        self.change(|state| {
            let now = Boot::now();
            for key in extended {
                if let (Some(to), Some(tree)) = (state.table.extend(*key, sequence, now), state.trees.get(key)) {
                    tree.extend(to);
                }
            }
            refused.iter().for_each(|key| state.table.refuse(*key));
        });
    }

    /// See [`LeaseTable::adopt`].
    pub fn adopt(&self, key: AttemptKey, lost_after: Duration, deadline: Boot) {
        self.change(|state| state.table.adopt(key, lost_after, deadline));
    }

    /// `key` is none of ours any more: it is killed if it runs.
    pub fn refuse(&self, key: AttemptKey) {
        self.change(|state| state.table.refuse(key));
    }

    /// Until when `key` may run; `None`: not (any more).
    #[must_use]
    pub fn deadline(&self, key: AttemptKey) -> Option<Boot> {
        self.shared.state.lock().table.deadline(key, Boot::now())
    }

    /// `key` has a process tree now, which is told what was granted meanwhile and from here on.
    pub fn watch(&self, key: AttemptKey, tree: Arc<Tree>) {
        self.change(|state| {
            if let Some(to) = state.table.deadline(key, Boot::now()) {
                tree.extend(to);
            }
            state.trees.insert(key, tree);
        });
    }

    /// The tree of `key` is gone, or there never was one. Returns whether the lease had been lost before.
    pub fn ended(&self, key: AttemptKey) -> bool {
        self.change(|state| {
            state.trees.remove(&key);
            state.table.ended(key)
        })
    }

    /// The attempt is forgotten.
    pub fn forget(&self, key: AttemptKey) {
        self.change(|state| state.table.forget(key));
    }

    /// Kills every tree at once: the process ends.
    pub fn kill_all(&self) {
        let trees: Vec<_> = self.shared.state.lock().trees.values().cloned().collect();
        trees.iter().for_each(|tree| tree.kill(Cause::HandedBack));
    }

    /// See [`LeaseTable::shortest`].
    #[must_use]
    pub fn shortest(&self) -> Option<Duration> {
        self.shared.state.lock().table.shortest()
    }

    fn change<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = act(&mut self.shared.state.lock());
        self.shared.changed.notify_all();
        result
    }
}

fn watch(shared: &Shared) {
    let mut state = shared.state.lock();
    while !state.stop {
        state.table.expire(Boot::now());
        let doomed: Vec<_> =
            state.table.over().filter_map(|key| Some((key, Arc::clone(state.trees.get(&key)?)))).collect();
        if doomed.is_empty() {
            match state.table.next_deadline() {
                Some(deadline) => {
                    let wait = deadline.until(Boot::now()).min(LOOK_EVERY);
                    shared.changed.wait_for(&mut state, wait);
                }
                None => shared.changed.wait(&mut state),
            }
            continue;
        }
        drop(state);
        for (key, tree) in doomed {
            tracing::warn!(attempt = %key, "lease lost, killing the process tree");
            tree.kill(Cause::LeaseLost);
        }
        thread::sleep(KILL_AGAIN);
        state = shared.state.lock();
    }
}
