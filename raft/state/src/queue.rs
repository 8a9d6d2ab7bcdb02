//! The queue: pending jobs that may be scheduled now, so ordered that planning never walks jobs that cannot be placed.
//!
//! Jobs that ask the same of a worker form a class. The queue keeps each class in order (priority, then age) and, apart,
//! the head of each class, in the same order. A walk starts from the heads and goes on within a class only as long as
//! its jobs can be placed: once one of a class does not fit anywhere, none of it does. A million jobs that wait for a
//! worker with a GPU therefore cost one look.

use std::{cmp::Reverse, collections::BTreeSet};

use imbl::{OrdMap, OrdSet};
use xxhash_rust::xxh3::xxh3_64;

use crate::{codec, fit, spec::JobSpec};

/// When a job was submitted: log index, and position within the entry.
pub(crate) type Position = (u64, u32);

/// Priority first, then age.
pub(crate) type Order = (Reverse<i32>, u64, u32);

/// A hash of everything that decides which workers a job fits and how well. Two classes that collide delay each other at
/// worst.
pub(crate) type Class = u64;

/// What a job asks of a worker, as a class.
pub(crate) fn class_of(spec: &JobSpec) -> Class {
    let (constraints, preferences) = (fit::constraints(spec), fit::preferences(spec));
    xxh3_64(&codec::encode_row(&(&spec.resources, spec.lost_after_ms, constraints, preferences)))
}

/// See the module's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queue {
    by_class: OrdSet<(Class, Order)>,
    heads: OrdSet<(Order, Class)>,
    /// How many jobs of each class there are, by priority; none stands for none.
    sizes: OrdMap<(Class, Reverse<i32>), u64>,
    /// The same over all classes.
    priorities: OrdMap<Reverse<i32>, u64>,
}

impl Queue {
    pub(crate) fn insert(&mut self, class: Class, order: Order) {
        let head = self.head(class);
        if self.by_class.insert((class, order)).is_none() {
            *self.sizes.entry((class, order.0)).or_default() += 1;
            *self.priorities.entry(order.0).or_default() += 1;
        }
        if head.is_none_or(|head| order < head) {
            if let Some(head) = head {
                self.heads.remove(&(head, class));
            }
            self.heads.insert((order, class));
        }
    }

    pub(crate) fn remove(&mut self, class: Class, order: Order) {
        if self.by_class.remove(&(class, order)).is_none() {
            return;
        }
        one_less(&mut self.sizes, &(class, order.0));
        one_less(&mut self.priorities, &order.0);
        let was_head = self.heads.remove(&(order, class)).is_some();
        if let Some(next) = self.head(class).filter(|_| was_head) {
            self.heads.insert((next, class));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// The first of each class, in order.
    pub(crate) fn heads(&self) -> impl ExactSizeIterator<Item = (Order, Class)> + '_ {
        self.heads.iter().copied()
    }

    /// How many jobs a class has, and the highest and lowest priority among them.
    pub(crate) fn size(&self, class: Class) -> (u64, (i32, i32)) {
        let by_priority = self.sizes.range((class, Reverse(i32::MAX))..=(class, Reverse(i32::MIN)));
        let mut size = (0, (0, 0));
        for (&(_, Reverse(priority)), jobs) in by_priority {
            let (so_far, (highest, _)) = size;
            size = (so_far + jobs, (if so_far == 0 { priority } else { highest }, priority));
        }
        size
    }

    /// How many jobs there are of each priority, the highest first.
    pub(crate) fn priorities(&self) -> impl Iterator<Item = (i32, u64)> + '_ {
        self.priorities.iter().map(|(Reverse(priority), jobs)| (*priority, *jobs))
    }

    fn head(&self, class: Class) -> Option<Order> {
        self.after(class, None)
    }

    fn after(&self, class: Class, order: Option<Order>) -> Option<Order> {
        use std::ops::Bound::{Excluded, Included};
        const FIRST: Order = (Reverse(i32::MAX), 0, 0);
        const LAST: Order = (Reverse(i32::MIN), u64::MAX, u32::MAX);
        let start = order.map_or(Included((class, FIRST)), |order| Excluded((class, order)));
        self.by_class.range((start, Included((class, LAST)))).next().map(|&(_, order)| order)
    }

    /// Walks the queue in order. After an item of a class, the walk forgets that class unless [`Walk::go_on`] is called.
    pub(crate) fn walk(&self) -> Walk<'_> {
        let mut heads: Box<dyn Iterator<Item = (Order, Class)> + '_> = Box::new(self.heads.iter().copied());
        let head = heads.next();
        Walk { queue: self, heads, head, more: BTreeSet::new() }
    }
}

fn one_less<K: Ord + Clone>(counts: &mut OrdMap<K, u64>, key: &K) {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => *count -= 1,
        _ => drop(counts.remove(key)),
    }
}

/// A merge of the classes' heads with those classes' successors that the walk went on with.
pub(crate) struct Walk<'a> {
    queue: &'a Queue,
    heads: Box<dyn Iterator<Item = (Order, Class)> + 'a>,
    head: Option<(Order, Class)>,
    more: BTreeSet<(Order, Class)>,
}

impl Walk<'_> {
    /// The next job's order, which [`Iterator::next`] will yield.
    pub(crate) fn peek(&self) -> Option<(Order, Class)> {
        match (self.head, self.more.first().copied()) {
            (Some(head), Some(more)) => Some(head.min(more)),
            (head, more) => head.or(more),
        }
    }

    /// Goes on with the class of the job just yielded.
    pub(crate) fn go_on(&mut self, (order, class): (Order, Class)) {
        if let Some(next) = self.queue.after(class, Some(order)) {
            self.more.insert((next, class));
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = (Order, Class);

    fn next(&mut self) -> Option<(Order, Class)> {
        let next = self.peek()?;
        if self.head == Some(next) {
            self.head = self.heads.next();
        } else {
            self.more.remove(&next);
        }
        Some(next)
    }
}
