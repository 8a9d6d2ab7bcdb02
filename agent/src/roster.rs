//! All attempts of this process, who may be taken in, and what is to be said next. Nothing here waits in a queue of
//! messages: what the node should know is derived from the attempts when the stream has room for it, so a new stream
//! simply starts over.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use hodei_proto::v1::{AttemptRef, AttemptStatus, JobDeclined, WorkerMessage, worker_message::Kind};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    attempt::{Attempt, Next, Phase},
    key::AttemptKey,
};

/// Attempts remembered after they are over, so that a repeated RunJob starts none of them twice.
const REMEMBERED: usize = 4_096;

/// What became of a request to run an attempt.
pub enum Admission {
    /// Take it in.
    New(Arc<Attempt>),
    /// It is here, or was; there is nothing to do.
    Known,
    /// Not here: say so.
    Declined,
}

/// See the module.
pub struct Roster {
    inner: Mutex<Inner>,
    wake: Notify,
    changed: Notify,
}

struct Inner {
    attempts: BTreeMap<AttemptKey, Arc<Attempt>>,
    /// Over: forgotten, or declined for this reason.
    settled: BTreeMap<AttemptKey, Option<String>>,
    settled_order: VecDeque<AttemptKey>,
    ready: VecDeque<AttemptKey>,
    declines: VecDeque<AttemptKey>,
    heartbeat: Heartbeat,
    capacity: usize,
    /// All that this machine has for jobs.
    gpus: Vec<String>,
    draining: bool,
}

/// Whether a heartbeat is due before its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Heartbeat {
    /// No.
    #[default]
    Regular,
    /// Something changed.
    Changed,
    /// The node asked.
    Asked,
}

/// What the stream carries next.
pub enum Outgoing {
    /// A message.
    Message(WorkerMessage),
    /// A log must be read from disk first.
    Read(Arc<Attempt>, crate::log::Wanted),
    /// Nothing for now.
    Nothing,
}

impl Roster {
    /// Takes up to `capacity` attempts at once, which get these `gpus`.
    #[must_use]
    pub fn new(capacity: usize, gpus: Vec<String>) -> Self {
        let inner = Inner {
            attempts: BTreeMap::new(),
            settled: BTreeMap::new(),
            settled_order: VecDeque::new(),
            ready: VecDeque::new(),
            declines: VecDeque::new(),
            heartbeat: Heartbeat::Regular,
            capacity,
            gpus,
            draining: false,
        };
        Self { inner: Mutex::new(inner), wake: Notify::new(), changed: Notify::new() }
    }

    /// Asked to run `key`, which gets so many GPUs.
    pub fn admit(&self, key: AttemptKey, gpus: u32) -> Admission {
        let mut inner = self.inner.lock();
        if let Some(attempt) = inner.attempts.get(&key) {
            attempt.asked_again();
            let attempt = Arc::clone(attempt);
            drop(inner);
            self.ready(&attempt);
            return Admission::Known;
        }
        if let Some(over) = inner.settled.get(&key).filter(|_| !crate::armed!("bug::started-twice")) {
            if over.is_none() {
                return Admission::Known;
            }
            inner.redecline(key);
            drop(inner);
            self.wake.notify_one();
            return Admission::Declined;
        }
        let gpus = match inner.refusal(key) {
            Some(reason) => Err(reason),
            None => inner.free_gpus(gpus).ok_or("the agent has not so many GPUs free"),
        };
        match gpus {
            Ok(gpus) => {
                let attempt = Arc::new(Attempt::starting(key, gpus));
                inner.attempts.insert(key, Arc::clone(&attempt));
                drop(inner);
                self.heartbeat(Heartbeat::Changed);
                Admission::New(attempt)
            }
            Err(reason) => {
                drop(inner);
                self.decline(key, reason);
                Admission::Declined
            }
        }
    }

    /// Takes in an attempt.
    pub fn insert(&self, attempt: Arc<Attempt>) {
        self.inner.lock().attempts.insert(attempt.key, attempt);
        self.heartbeat(Heartbeat::Changed);
    }

    /// `key` was never started and never will be.
    pub fn decline(&self, key: AttemptKey, reason: impl Into<String>) {
        let mut inner = self.inner.lock();
        inner.attempts.remove(&key);
        inner.settle(key, Some(reason.into()));
        inner.redecline(key);
        drop(inner);
        self.changed.notify_waiters();
        self.heartbeat(Heartbeat::Changed);
    }

    /// The same for one that is not here, unless it was.
    pub fn decline_unseen(&self, key: AttemptKey, reason: impl Into<String>) {
        let over = self.inner.lock().settled.get(&key).cloned();
        match over {
            Some(None) => {}
            Some(Some(known)) => self.decline(key, known),
            None => self.decline(key, reason),
        }
    }

    /// The attempt, where it is here.
    #[must_use]
    pub fn get(&self, key: AttemptKey) -> Option<Arc<Attempt>> {
        self.inner.lock().attempts.get(&key).cloned()
    }

    /// All attempts.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Attempt>> {
        self.inner.lock().attempts.values().cloned().collect()
    }

    /// For heartbeats.
    #[must_use]
    pub fn refs(&self) -> Vec<AttemptRef> {
        let inner = self.inner.lock();
        inner.attempts.values().filter(|attempt| attempt.wants_time()).map(|attempt| attempt.wire.clone()).collect()
    }

    /// Nothing more has to be known of `key`. Returns whether it was here.
    pub fn forget(&self, key: AttemptKey) -> bool {
        let mut inner = self.inner.lock();
        let was_here = inner.attempts.remove(&key).is_some();
        if was_here {
            inner.settle(key, None);
        }
        drop(inner);
        if was_here {
            self.changed.notify_waiters();
            self.heartbeat(Heartbeat::Changed);
        }
        was_here
    }

    /// A new stream: everything that nobody has acknowledged is said again.
    pub fn attach(&self) -> Vec<AttemptStatus> {
        let mut inner = self.inner.lock();
        inner.attempts.values().for_each(|attempt| attempt.attached());
        inner.ready = inner.attempts.keys().copied().collect();
        inner.declines.clear();
        inner.attempts.values().map(|attempt| attempt.status()).collect()
    }

    /// The attempt may have something to say.
    pub fn ready(&self, attempt: &Attempt) {
        let mut inner = self.inner.lock();
        if !inner.ready.contains(&attempt.key) {
            inner.ready.push_back(attempt.key);
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// Something about an attempt has changed that the leader should hear of.
    pub fn changed(&self, attempt: &Attempt) {
        self.ready(attempt);
        self.changed.notify_waiters();
        self.heartbeat(Heartbeat::Changed);
    }

    /// A heartbeat is due.
    pub fn heartbeat(&self, why: Heartbeat) {
        let mut inner = self.inner.lock();
        inner.heartbeat = inner.heartbeat.max(why);
        drop(inner);
        self.wake.notify_one();
    }

    /// Whether a heartbeat is due before its time.
    #[must_use]
    pub fn heartbeat_due(&self) -> Heartbeat {
        self.inner.lock().heartbeat
    }

    /// A heartbeat goes out: the attempts that it lists.
    #[must_use]
    pub fn take_heartbeat(&self) -> Vec<AttemptRef> {
        self.inner.lock().heartbeat = Heartbeat::Regular;
        self.refs()
    }

    /// Waits until there may be something new to say.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// What to say next, attempt after attempt in turn.
    pub fn next(&self) -> Outgoing {
        let mut inner = self.inner.lock();
        if let Some(key) = inner.declines.pop_front() {
            let reason = inner.settled.get(&key).cloned().flatten().unwrap_or_default();
            let kind = Kind::JobDeclined(JobDeclined { attempt: Some(key.to_wire()), reason });
            return Outgoing::Message(WorkerMessage { kind: Some(kind) });
        }
        while let Some(key) = inner.ready.pop_front() {
            let Some(attempt) = inner.attempts.get(&key).cloned() else { continue };
            match attempt.next() {
                Next::Message(message) => {
                    inner.ready.push_back(key);
                    return Outgoing::Message(message);
                }
                Next::Read(wanted) => return Outgoing::Read(attempt, wanted),
                Next::Nothing => {}
            }
        }
        Outgoing::Nothing
    }

    /// No new attempts from now on.
    pub fn drain(&self) {
        self.inner.lock().draining = true;
    }

    /// Waits until no attempt is left.
    pub async fn empty(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no change in between is missed.
            changed.as_mut().enable();
            if self.inner.lock().attempts.is_empty() {
                return;
            }
            changed.await;
        }
    }
}

impl Inner {
    fn refusal(&self, key: AttemptKey) -> Option<&'static str> {
        let live = self.attempts.values().filter(|attempt| attempt.phase() != Phase::Ended).count();
        let same = |other: &AttemptKey| other.job == key.job && other.attempt == key.attempt;
        if self.draining {
            Some("the agent is draining")
        } else if live >= self.capacity {
            Some("the agent is full")
        } else if self.attempts.keys().any(same) {
            Some("the agent has this attempt under another fence")
        } else {
            None
        }
    }

    /// So many that no live attempt has. What has ended, or was given up, has none: the leader reckons likewise, or later.
    fn free_gpus(&self, count: u32) -> Option<Vec<String>> {
        let live = self.attempts.values().filter(|attempt| attempt.phase() != Phase::Ended);
        let taken: BTreeSet<&String> = live.flat_map(|attempt| &attempt.gpus).collect();
        let count = usize::try_from(count).ok()?;
        let free: Vec<_> = self.gpus.iter().filter(|id| !taken.contains(id)).take(count).cloned().collect();
        (free.len() == count).then_some(free)
    }

    fn redecline(&mut self, key: AttemptKey) {
        if self.declines.len() < REMEMBERED && !self.declines.contains(&key) {
            self.declines.push_back(key);
        }
    }

    fn settle(&mut self, key: AttemptKey, declined: Option<String>) {
        if self.settled.insert(key, declined).is_none() {
            self.settled_order.push_back(key);
        }
        if self.settled_order.len() > REMEMBERED
            && let Some(oldest) = self.settled_order.pop_front()
        {
            self.settled.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;

    fn key(attempt: u32) -> AttemptKey {
        AttemptKey { job: uuid::Uuid::nil(), attempt, fence: 1 }
    }

    #[test]
    fn no_attempt_is_taken_in_twice() {
        let roster = Roster::new(1, Vec::new());
        assert!(matches!(roster.admit(key(1), 0), Admission::New(_)));
        assert!(matches!(roster.admit(key(1), 0), Admission::Known));
        assert!(matches!(roster.admit(key(2), 0), Admission::Declined), "full");
        assert!(roster.forget(key(1)));
        assert!(matches!(roster.admit(key(1), 0), Admission::Known), "it was here");
        assert!(matches!(roster.admit(key(2), 0), Admission::Declined), "what was declined stays declined");
        assert!(matches!(roster.admit(key(3), 0), Admission::New(_)));
        assert!(matches!(roster.admit(AttemptKey { fence: 2, ..key(3) }, 0), Admission::Declined));
    }

    #[test]
    fn no_gpu_is_given_to_two_live_attempts() {
        let roster = Roster::new(8, ["3", "5", "8"].map(str::to_owned).into());
        // Under another process it got one that this one hands out, and one that it does not.
        let gpus = ["5", "7"].map(str::to_owned).into();
        roster.insert(Arc::new(Attempt::adopted(key(1), Log::new(), 1, gpus)));
        let given = |key, count| match roster.admit(key, count) {
            Admission::New(attempt) => Some(attempt.gpus.clone()),
            Admission::Known | Admission::Declined => None,
        };
        assert_eq!(given(key(2), 0), Some(Vec::new()));
        assert_eq!(given(key(3), 3), None);
        assert_eq!(given(key(4), 2), Some(vec!["3".to_owned(), "8".to_owned()]));
        assert_eq!(given(key(5), 1), None);
        roster.get(key(1)).unwrap().given_up();
        assert_eq!(given(key(6), 1), Some(vec!["5".to_owned()]));
        assert!(roster.forget(key(4)));
        assert_eq!(given(key(7), 1), Some(vec!["3".to_owned()]));
    }

    #[test]
    fn a_draining_agent_takes_nothing() {
        let roster = Roster::new(8, Vec::new());
        roster.drain();
        assert!(matches!(roster.admit(key(1), 0), Admission::Declined));
        let Outgoing::Message(message) = roster.next() else { panic!("a decline is due") };
        let Some(Kind::JobDeclined(declined)) = message.kind else { panic!("a decline is due") };
        assert_eq!(declined.reason, "the agent is draining");
    }
}
