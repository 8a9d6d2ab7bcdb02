//! A node's storage on a simulated disk, driven step by step.

#![allow(clippy::unwrap_used, dead_code, reason = "each test uses a part of this, and a test's helpers may panic")]

use std::path::Path;

use hodei_raft::{
    seam::sim::{SeededEntropy, SimFile, SimFs},
    wal::{
        Lsn, OpenError, Options, Record,
        engine::Engine,
        fatal::Failure,
        mark::{Mark, MarkFile},
        recover::{self, Opened},
        segment,
    },
};

use super::split;

pub const DIR: &str = "/wal";

pub fn options() -> Options {
    Options { segment_bytes: 4096 + 1536, ..Options::default() }
}

/// When a group's mark is written, in relation to the next group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// Before the next group begins.
    None,
    /// The next group is durable before the mark is written.
    Late,
    /// The mark is written, then the next group is written and synced, then the mark is synced.
    Across,
}

/// A node's storage on a simulated disk, driven step by step in the order in which the threads could do it.
pub struct Node {
    fs: SimFs,
    entropy: SeededEntropy,
    engine: Engine<SimFs>,
    mark: MarkFile<SimFile>,
    pending: Option<(Mark, Vec<Lsn>)>,
    pub acknowledged: Lsn,
    pub segment_bytes: u64,
}

pub fn open(fs: &SimFs, seed: u64) -> Result<Opened<SimFs>, OpenError> {
    recover::open(fs, Path::new(DIR), &options(), &SeededEntropy::new(seed))
}

impl Node {
    pub fn start(fs: &SimFs, seed: u64) -> Result<Self, OpenError> {
        let Opened { engine, mark, recovered, .. } = open(fs, seed)?;
        let entropy = SeededEntropy::new(split(seed, 1));
        Ok(Self {
            fs: fs.clone(),
            entropy,
            engine,
            mark,
            pending: None,
            acknowledged: recovered.lsn,
            segment_bytes: options().segment_bytes,
        })
    }

    fn write(&mut self, group: &[Record]) -> Result<(Mark, Vec<Lsn>), Failure> {
        let (fs, entropy) = (&self.fs, &self.entropy);
        let size = self.segment_bytes;
        let prepare = |bytes| segment::prepare(fs, Path::new(DIR), entropy, size, bytes);
        let written = self.engine.write(group, prepare)?;
        Ok((written.mark, written.freed))
    }

    fn settle(&mut self, (mark, freed): (Mark, Vec<Lsn>)) -> Result<(), Failure> {
        self.mark.sync()?;
        self.acknowledged = mark.lsn;
        freed.into_iter().try_for_each(|base| segment::remove(&self.fs, Path::new(DIR), base))
    }

    pub fn group(&mut self, group: &[Record], overlap: Overlap) -> Result<(), Failure> {
        match overlap {
            Overlap::None => {
                let written = self.write(group)?;
                self.mark.write(&written.0)?;
                self.settle(written)
            }
            Overlap::Late => {
                let written = self.write(group)?;
                match self.pending.replace(written) {
                    Some(before) => {
                        self.mark.write(&before.0)?;
                        self.settle(before)
                    }
                    None => Ok(()),
                }
            }
            Overlap::Across => {
                if let Some((mark, _)) = &self.pending {
                    self.mark.write(mark)?;
                }
                let written = self.write(group)?;
                self.pending.replace(written).map_or(Ok(()), |before| self.settle(before))
            }
        }
    }

    pub fn finish(&mut self) -> Result<(), Failure> {
        match self.pending.take() {
            Some(written) => {
                self.mark.write(&written.0)?;
                self.settle(written)
            }
            None => Ok(()),
        }
    }
}

/// Runs groups until the machine dies. Returns the last acknowledged record and whether all was done.
pub fn run(fs: &SimFs, seed: u64, groups: &[Vec<Record>], overlap: Overlap) -> (Lsn, bool) {
    let Ok(mut node) = Node::start(fs, seed) else { return (0, false) };
    for group in groups {
        if node.group(group, overlap).is_err() {
            return (node.acknowledged, false);
        }
    }
    let finished = node.finish().is_ok();
    (node.acknowledged, finished)
}
