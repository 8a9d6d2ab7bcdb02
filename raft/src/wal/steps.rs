//! The work of the log's threads, done by hand: for simulations, which have one thread and a time of their own.
//!
//! [`Wal::open_stepped`](super::Wal::open_stepped) gives a log without threads. Whoever holds its [`Steps`] decides when
//! the next group is written and when it is marked, and a disk that fails is his to deal with.

use std::sync::mpsc;

use super::{
    Lsn,
    fatal::Failure,
    mark::Mark,
    pipeline::{Group, Job, Keeper, Marker, Writer},
};
use crate::seam::Fs;

/// The three threads' work, and the queues between them.
pub struct Steps<F: Fs> {
    pub(super) writer: Writer<F>,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) groups: mpsc::SyncSender<Group>,
    pub(super) marker: Marker<F::File>,
    pub(super) unmarked: mpsc::Receiver<Group>,
    pub(super) keeper: Keeper<F>,
    pub(super) freed: mpsc::Receiver<Vec<Lsn>>,
}

impl<F: Fs> Steps<F> {
    /// Writes and syncs one group of what is waiting. `None`: nothing is. To be followed by [`Steps::mark`] before too
    /// many groups wait for it: 64 block.
    ///
    /// # Errors
    /// If the disk refuses, after which nothing may be acknowledged any more.
    pub fn write(&mut self) -> Result<Option<Mark>, Failure> {
        let Ok(first) = self.jobs.try_recv() else { return Ok(None) };
        let group = self.writer.write(first, &self.jobs)?;
        let mark = group.mark;
        self.groups.send(group).expect("the other end is here");
        Ok(Some(mark))
    }

    /// Marks the groups that are written, acknowledges them, and removes the segments that they freed.
    ///
    /// # Errors
    /// As [`Steps::write`].
    pub fn mark(&mut self) -> Result<(), Failure> {
        let Ok(first) = self.unmarked.try_recv() else { return Ok(()) };
        self.marker.mark(first, &self.unmarked)?;
        self.freed.try_iter().flatten().try_for_each(|base| self.keeper.remove(base))
    }
}
