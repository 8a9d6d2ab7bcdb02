//! What an earlier process of this agent left behind: jobs whose watchdogs live go on under this one, ends that their
//! watchdogs left on disk become results, results and logs are kept for delivery, and of the rest nothing stays alive.
//!
//! Nothing that is damaged is believed. What can be told without it is: a result without the intent, an end without the
//! result, a log as incomplete. Of what is left nobody is told anything, and its lease runs out.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    thread,
};

use hodei_proto::v1::{AttemptRef, JobResult};
use prost::Message as _;

use crate::{
    attempt::Attempt,
    clock::Boot,
    data_dir::{DataDir, discard},
    disk,
    executor::{
        RESULT,
        intent::{Intent, Terms},
        outcome,
    },
    key::AttemptKey,
    log::{Log, progress::Progress, rest, spool},
    watchdog::{
        guard::{self, Guarded},
        output,
        patience::Patience,
        testament::{Fallen, Testament},
    },
};

/// For a thread that looks after an attempt: a file is read in pieces.
const STACK: usize = 256 << 10;

/// What was found.
#[derive(Default)]
pub struct Found {
    /// What has ended.
    pub ended: Vec<Attempt>,
    /// What goes on.
    pub alive: Vec<Alive>,
    /// What this session takes over: what goes on, and what has a result, so that this is taken from it.
    pub adopted: Vec<AttemptRef>,
    /// What has no result, and whose trees this process has killed and seen empty.
    pub dead: Vec<AttemptRef>,
    /// The names of directories of attempts of which no process was made.
    pub unbegun: Vec<String>,
}

/// An attempt whose watchdog lives.
pub struct Alive {
    /// It runs, as far as anybody knows.
    pub attempt: Attempt,
    /// Its watchdog.
    pub guarded: Guarded,
    /// Until when it may run.
    pub deadline: Boot,
    /// What is to be known of the job.
    pub terms: Terms,
}

/// Takes over from an earlier process. Blocking.
pub fn recover(dir: &DataDir) -> io::Result<Found> {
    let (mut records, mut damaged, mut unbegun) = (Vec::new(), Vec::new(), Vec::new());
    for entry in fs::read_dir(dir.attempts())? {
        let record = entry?.path();
        match Intent::read(&record) {
            // What a removal left half done.
            _ if is_hidden(&record) => remove(&record),
            Ok(Some(intent)) => records.push((record, intent)),
            // Without an intent no process was made.
            Ok(None) => {
                unbegun.extend(record.file_name().map(|name| name.to_string_lossy().into_owned()));
                remove(&record);
            }
            Err(error) => damaged.push((record, error)),
        }
    }
    let mut found = Found { unbegun, ..side_by_side(&records)? };
    for (record, error) in damaged {
        tracing::error!(%error, "an attempt is not known any more");
        found.add(without_intent(&record)?);
    }
    let in_use: BTreeSet<OsString> = found.alive.iter().map(|alive| alive.attempt.key.dir_name().into()).collect();
    for entry in fs::read_dir(dir.work())? {
        let entry = entry?;
        if !in_use.contains(&entry.file_name()) {
            remove(&entry.path());
        }
    }
    Ok(found)
}

/// Looks after all attempts at once, so that those that are well do not wait for each of those that are not. A thread
/// each: there are no more than an agent has slots, and ends that were not acknowledged.
fn side_by_side(records: &[(PathBuf, Intent)]) -> io::Result<Found> {
    let patience = Patience::new();
    thread::scope(|scope| {
        let looks: io::Result<Vec<_>> = records
            .iter()
            .map(|(record, intent)| {
                let look = || recover_attempt(record, intent, &patience);
                thread::Builder::new().name("recover".into()).stack_size(STACK).spawn_scoped(scope, look)
            })
            .collect();
        let mut found = Found::default();
        for look in looks? {
            found.add(look.join().map_err(|_| io::Error::other("looking after an attempt failed"))??);
        }
        Ok(found)
    })
}

fn is_hidden(dir: &Path) -> bool {
    dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Its result says all that there is to tell. Where there is none, nothing is said, and the record is there for people
/// until the next start.
fn without_intent(record: &Path) -> io::Result<Found> {
    let told = read_result(record)?.and_then(|result| Some((AttemptKey::from_wire(result.attempt.as_ref())?, result)));
    if let Some((key, result)) = told
        && is_of(record, key)
    {
        return delivers(record, key, result);
    }
    let aside = record.with_file_name(format!(".damaged-{}", record.file_name().unwrap_or_default().display()));
    fs::rename(record, aside)?;
    Ok(Found::default())
}

fn is_of(record: &Path, key: AttemptKey) -> bool {
    record.file_name().is_some_and(|name| name.to_string_lossy() == key.dir_name())
}

/// `None` where there is none, or it is damaged.
fn read_result(record: &Path) -> io::Result<Option<JobResult>> {
    let path = record.join(RESULT);
    let decode = |bytes: Vec<u8>| JobResult::decode(&*bytes).map_err(|error| disk::damaged(&path, &error.to_string()));
    match disk::read_if_there(&path).and_then(|bytes| bytes.map(decode).transpose()) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::error!(%error, "a result is lost");
            Ok(None)
        }
        result => result,
    }
}

fn remove(dir: &Path) {
    if !is_hidden(dir) {
        return discard(dir);
    }
    if let Err(error) = fs::remove_dir_all(dir) {
        tracing::warn!(dir = %dir.display(), %error, "cannot remove a directory");
    }
}

fn recover_attempt(record: &Path, intent: &Intent, patience: &Patience) -> io::Result<Found> {
    let key = intent.key();
    if !is_of(record, key) {
        remove(record);
        return Ok(Found::default());
    }
    if let Some(result) = read_result(record)? {
        intent.remove_cgroups();
        return delivers(record, key, result);
    }
    match guard::find(record, patience) {
        Ok(guard::Found::Alive(guarded, deadline)) => return goes_on(record, intent, *guarded, deadline),
        Ok(guard::Found::Gone) => {}
        Err(error) => {
            tracing::error!(attempt = %key, %error, "its watchdog cannot be reached");
            return leaves(record, key, false);
        }
    }
    let inherited = Testament::read(record).and_then(|left| left.map(|left| inherit(record, key, left)).transpose());
    match inherited {
        Ok(Some(result)) => {
            intent.remove_cgroups();
            return delivers(record, key, result);
        }
        Ok(None) => {}
        Err(error) => tracing::error!(attempt = %key, %error, "the end that its watchdog left cannot be read"),
    }
    let dead = intent.kill_orphans(record, patience);
    leaves(record, key, dead)
}

/// The result of an attempt that ended without an agent, durably.
fn inherit(record: &Path, key: AttemptKey, testament: Testament) -> io::Result<JobResult> {
    crate::failpoint!("recover::before-inherit");
    let complete = |upto| output::left(record).and_then(|rest| rest::complete(record, &upto, rest));
    let whole = testament.progress.map(complete);
    let log = match whole.transpose() {
        Ok(Some((_, end))) => end,
        Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
        lacking => {
            if let Err(error) = lacking {
                tracing::error!(attempt = %key, %error, "its log is not complete");
            }
            rest::incomplete(record)?.1
        }
    };
    let reason = match testament.fallen {
        Fallen::Ended(end) => {
            let status = end.status();
            outcome::reason(end.cause, status, end.out_of_memory)
        }
        Fallen::NotStarted(why) => outcome::could_not_start(why),
    };
    let result = JobResult { attempt: Some(key.to_wire()), reason: Some(reason), log: Some(log) };
    disk::write_durably(&record.join(RESULT), &result.encode_to_vec())?;
    Ok(result)
}

impl Found {
    fn add(&mut self, other: Self) {
        self.ended.extend(other.ended);
        self.alive.extend(other.alive);
        self.adopted.extend(other.adopted);
        self.dead.extend(other.dead);
    }
}

fn delivers(record: &Path, key: AttemptKey, result: JobResult) -> io::Result<Found> {
    let (index, last) = spool::recover(record, u64::MAX)?;
    let promised = result.log.as_ref().map_or(0, |log| log.last_sequence);
    tracing::info!(attempt = %key, last, "found ended");
    let ended = vec![Attempt::recovered(key, Log::recovered(index, last, promised), Some(result))];
    Ok(Found { ended, adopted: vec![key.to_wire()], ..Found::default() })
}

fn leaves(record: &Path, key: AttemptKey, dead: bool) -> io::Result<Found> {
    let (index, last) = spool::recover(record, u64::MAX)?;
    tracing::warn!(attempt = %key, last, "found without a watchdog");
    let ended = vec![Attempt::recovered(key, Log::recovered(index, last, 0), None)];
    Ok(Found { ended, dead: dead.then(|| key.to_wire()).into_iter().collect(), ..Found::default() })
}

fn goes_on(record: &Path, intent: &Intent, guarded: Guarded, deadline: Boot) -> io::Result<Found> {
    crate::failpoint!("recover::before-adopt");
    let key = intent.key();
    let progress = Progress::read(&guarded.output.progress)?;
    let (index, last) = spool::recover(record, progress.last_sequence)?;
    tracing::info!(attempt = %key, pid = guarded.pid, last, "found alive, adopted");
    // What a damaged spool has lost of it, the gateway records as a gap.
    let log = Log::recovered(index, progress.last_sequence, 0);
    let attempt = Attempt::adopted(key, log, guarded.pid, intent.gpus.clone());
    let alive = vec![Alive { attempt, guarded, deadline, terms: intent.terms }];
    Ok(Found { alive, adopted: vec![key.to_wire()], ..Found::default() })
}
