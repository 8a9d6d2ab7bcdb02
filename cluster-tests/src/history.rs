//! What was asked and what was answered, in order: the evidence that checkers judge.
//!
//! An operation is invoked, and then ends as `ok` (it took effect), `fail` (it certainly did not) or `info` (nobody
//! knows; it may still take effect). All times are of one monotonic clock, since all processes share the machine.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    sync::Mutex,
    time::Instant,
};

use serde::Serialize;
use tonic::{Code, Status};

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It was sent.
    Invoke,
    /// It took effect.
    Ok,
    /// It certainly took none.
    Fail,
    /// It may have taken effect, or may yet.
    Info,
}

/// One line of the history.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// Nanoseconds since the history began.
    pub t_ns: u64,
    /// Who asked.
    pub proc: u32,
    /// How it stands.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What was asked.
    pub f: &'static str,
    /// What it was about.
    pub key: String,
    /// What was answered.
    pub val: String,
}

/// Collects events of concurrent clients.
#[derive(Debug)]
pub struct History {
    start: Instant,
    events: Mutex<Vec<Event>>,
}

impl Default for History {
    fn default() -> Self {
        Self { start: Instant::now(), events: Mutex::new(Vec::new()) }
    }
}

impl History {
    /// Adds an event.
    ///
    /// # Panics
    /// If another client panicked while adding one.
    pub fn add(&self, proc: u32, kind: Kind, f: &'static str, key: &str, val: impl Into<String>) {
        let mut events = self.events.lock().expect("adding an event does not panic");
        // Stamped under the lock: the order of lines is the order of times.
        let t_ns = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        events.push(Event { t_ns, proc, kind, f, key: key.to_owned(), val: val.into() });
    }

    /// Adds the answer to a gRPC call.
    pub fn answer<T: std::fmt::Debug>(&self, proc: u32, f: &'static str, key: &str, answer: &Result<T, Status>) {
        match answer {
            Ok(value) => self.add(proc, Kind::Ok, f, key, format!("{value:?}")),
            Err(status) => {
                let kind = if certainly_not_done(status) { Kind::Fail } else { Kind::Info };
                self.add(proc, kind, f, key, format!("{:?}: {}", status.code(), status.message()));
            }
        }
    }

    /// Keys of the operations `f` that ended in `kind`.
    ///
    /// # Panics
    /// If a client panicked while adding an event.
    #[must_use]
    pub fn keys(&self, f: &str, kind: Kind) -> BTreeSet<String> {
        let events = self.events.lock().expect("adding an event does not panic");
        events.iter().filter(|event| event.f == f && event.kind == kind).map(|event| event.key.clone()).collect()
    }

    /// Writes one JSON object per line.
    ///
    /// # Errors
    /// Those of the writer.
    ///
    /// # Panics
    /// If a client panicked while adding an event.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        for event in self.events.lock().expect("adding an event does not panic").iter() {
            serde_json::to_writer(&mut to, event)?;
            to.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// Whether the answer says that the request had no effect. Everything else is unknown, a broken connection above all.
fn certainly_not_done(status: &Status) -> bool {
    let refused = [Code::InvalidArgument, Code::NotFound, Code::AlreadyExists, Code::PermissionDenied];
    refused.contains(&status.code()) || (status.code() == Code::Unavailable && status.message().contains("no quorum"))
}

/// What became of writes: an acknowledged one is never lost, a refused one never takes effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetVerdict {
    /// Acknowledged and gone.
    pub lost: BTreeSet<String>,
    /// Certainly refused and there nevertheless.
    pub undead: BTreeSet<String>,
}

impl SetVerdict {
    /// Compares what the history promises with what a node holds in the end.
    #[must_use]
    pub fn of(history: &History, f: &str, held: &BTreeSet<String>) -> Self {
        Self {
            lost: history.keys(f, Kind::Ok).difference(held).cloned().collect(),
            undead: history.keys(f, Kind::Fail).intersection(held).cloned().collect(),
        }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.lost.is_empty() && self.undead.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(events: &[(Kind, &str)]) -> History {
        let history = History::default();
        for &(kind, key) in events {
            history.add(1, kind, "submit", key, "");
        }
        history
    }

    fn held(keys: &[&str]) -> BTreeSet<String> {
        keys.iter().map(|&key| key.to_owned()).collect()
    }

    #[test]
    fn what_is_unknown_may_be_there_or_not() {
        let history = history(&[(Kind::Ok, "a"), (Kind::Info, "b"), (Kind::Info, "c")]);
        assert!(SetVerdict::of(&history, "submit", &held(&["a", "b"])).is_valid());
    }

    #[test]
    fn an_acknowledged_key_that_is_gone_is_found() {
        let history = history(&[(Kind::Ok, "a"), (Kind::Ok, "b")]);
        assert_eq!(SetVerdict::of(&history, "submit", &held(&["a"])).lost, held(&["b"]));
    }

    #[test]
    fn a_refused_key_that_is_there_is_found() {
        let history = history(&[(Kind::Fail, "a")]);
        assert_eq!(SetVerdict::of(&history, "submit", &held(&["a"])).undead, held(&["a"]));
    }

    #[test]
    fn a_line_of_the_history_is_an_object_with_type_function_and_key() {
        let history = history(&[(Kind::Ok, "a")]);
        let mut text = Vec::new();
        history.write(&mut text).unwrap();
        let line: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&line["type"], &line["f"], &line["key"]), (&"ok".into(), &"submit".into(), &"a".into()));
    }
}
