//! What happened, in one order: the same seed gives the same lines, and so the same hash.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufWriter, Write},
};

use xxhash_rust::xxh3::Xxh3;

/// Lines shown with a failure.
const SHOWN: usize = 60;

/// See the module.
pub struct Trace {
    pub step: u64,
    hash: Xxh3,
    newest: VecDeque<String>,
    /// All of it, if asked for.
    file: Option<BufWriter<File>>,
}

impl Trace {
    /// `file`: where to write all of it.
    pub fn new(file: Option<&str>) -> Self {
        let file = file.map(|path| BufWriter::new(File::create(path).expect("the trace's file can be created")));
        Self { step: 0, hash: Xxh3::new(), newest: VecDeque::new(), file }
    }

    pub fn line(&mut self, line: impl FnOnce() -> String) {
        let line = format!("{} {}", self.step, line());
        self.hash.update(line.as_bytes());
        if let Some(file) = &mut self.file {
            writeln!(file, "{line}").expect("the trace can be written");
        }
        if self.newest.len() == SHOWN {
            self.newest.pop_front();
        }
        self.newest.push_back(line);
    }

    pub fn hash(&self) -> u64 {
        self.hash.digest()
    }

    pub fn newest(&self) -> String {
        self.newest.iter().map(|line| format!("  {line}\n")).collect()
    }
}
