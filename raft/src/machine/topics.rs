//! Who waits for a change of what. A topic has a sender only while somebody listens.

use std::collections::HashMap;

use hodei_state::{
    RowKey,
    ids::{JobId, WorkerId},
};
use parking_lot::Mutex;
use tokio::sync::watch;

/// What can be waited for. The value is the applied index of the last change; events coalesce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// One job: its state, attempts, log segments.
    Job(JobId),
    /// One worker: its state and what is assigned to it.
    Worker(WorkerId),
    /// Whatever the scheduler may care about: jobs, attempts, workers.
    Queue,
    /// Members, identities, tokens, the cluster itself.
    Members,
    /// Every applied change.
    Any,
    /// What happened.
    Events,
}

#[derive(Default)]
pub(crate) struct Topics {
    senders: Mutex<Senders>,
}

#[derive(Default)]
struct Senders {
    by_topic: HashMap<Topic, watch::Sender<u64>>,
    /// Swept of topics that nobody listens to any more when it has grown to this.
    sweep_at: usize,
}

impl Topics {
    pub(crate) fn subscribe(&self, topic: Topic, applied: u64) -> watch::Receiver<u64> {
        let mut senders = self.senders.lock();
        if senders.by_topic.len() >= senders.sweep_at.max(64) {
            senders.by_topic.retain(|_, sender| sender.receiver_count() > 0);
            senders.sweep_at = senders.by_topic.len() * 2;
        }
        senders.by_topic.entry(topic).or_insert_with(|| watch::channel(applied).0).subscribe()
    }

    /// Wakes whom the changed rows concern.
    pub(super) fn bump(&self, index: u64, keys: &[RowKey]) {
        let mut senders = self.senders.lock();
        if senders.by_topic.is_empty() {
            return;
        }
        let (mut queue, mut members, mut any, mut events) = (false, false, false, false);
        for key in keys {
            any = true;
            match topics_of(key) {
                Touched::Job(job) => {
                    queue = true;
                    wake(&mut senders.by_topic, Topic::Job(job), index);
                }
                Touched::Worker(worker) => {
                    queue = true;
                    wake(&mut senders.by_topic, Topic::Worker(worker), index);
                }
                Touched::Members => members = true,
                Touched::Events => events = true,
                Touched::Nothing => {}
            }
        }
        let shared = [(queue, Topic::Queue), (members, Topic::Members), (any, Topic::Any), (events, Topic::Events)];
        for (touched, topic) in shared {
            if touched {
                wake(&mut senders.by_topic, topic, index);
            }
        }
    }

    pub(super) fn bump_all(&self, index: u64) {
        self.senders.lock().by_topic.retain(|_, sender| sender.send(index).is_ok());
    }
}

enum Touched {
    Job(JobId),
    Worker(WorkerId),
    Members,
    Events,
    Nothing,
}

fn topics_of(key: &RowKey) -> Touched {
    match key {
        RowKey::Job(job)
        | RowKey::Spec(job)
        | RowKey::Attempt(job, _)
        | RowKey::Segment(job, _, _)
        | RowKey::Tombstone(job) => Touched::Job(*job),
        RowKey::Worker(worker) => Touched::Worker(*worker),
        RowKey::Cluster | RowKey::Member(_) | RowKey::Token(_) | RowKey::TokenUse(..) | RowKey::Identity(_) => {
            Touched::Members
        }
        RowKey::Meta | RowKey::Secret(_) | RowKey::SecretPart(..) | RowKey::SecretUse(..) => Touched::Nothing,
        RowKey::Events(..) => Touched::Events,
    }
}

fn wake(senders: &mut HashMap<Topic, watch::Sender<u64>>, topic: Topic, index: u64) {
    if let Some(sender) = senders.get(&topic)
        && sender.send(index).is_err()
    {
        senders.remove(&topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_change_concerns_is_woken_and_topics_go_with_their_last_listener() {
        let topics = Topics::default();
        let job = topics.subscribe(Topic::Job(JobId(1)), 5);
        let other = topics.subscribe(Topic::Job(JobId(2)), 5);
        let queue = topics.subscribe(Topic::Queue, 5);
        let members = topics.subscribe(Topic::Members, 5);
        topics.bump(6, &[RowKey::Attempt(JobId(1), 1)]);
        assert!(job.has_changed().unwrap() && queue.has_changed().unwrap());
        assert!(!other.has_changed().unwrap() && !members.has_changed().unwrap());
        assert_eq!(*job.borrow(), 6);
        topics.bump_all(9);
        assert_eq!((*other.borrow(), *members.borrow()), (9, 9));
        drop((job, other, queue));
        topics.bump(10, &[RowKey::Job(JobId(1)), RowKey::Job(JobId(2))]);
        assert_eq!(topics.senders.lock().by_topic.len(), 1);
    }

    #[test]
    fn topics_that_nothing_happens_to_are_swept() {
        let topics = Topics::default();
        for job in 0..10_000 {
            drop(topics.subscribe(Topic::Job(JobId(job)), 0));
        }
        assert!(topics.senders.lock().by_topic.len() <= 64);
    }
}
