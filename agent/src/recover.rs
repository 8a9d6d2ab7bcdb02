//! What an earlier process of this agent left behind: its jobs are killed, its results and logs are kept for delivery.

use std::{fs, io, path::Path};

use hodei_proto::v1::{AttemptRef, JobResult};
use prost::Message as _;

use crate::{
    attempt::Attempt,
    data_dir::{DataDir, discard},
    disk,
    executor::{RESULT, intent::Intent},
    log::{Log, spool},
};

/// What was found.
#[derive(Default)]
pub struct Found {
    /// All of it, ended.
    pub attempts: Vec<Attempt>,
    /// Those with a result: this session takes them over, so that their results are taken from it.
    pub adopted: Vec<AttemptRef>,
    /// Those without one whose trees this process has killed and seen empty.
    pub dead: Vec<AttemptRef>,
}

/// Cleans up after an earlier process. Blocking.
pub fn recover(dir: &DataDir) -> io::Result<Found> {
    let mut found = Found::default();
    for entry in fs::read_dir(dir.attempts())? {
        let record = entry?.path();
        match Intent::read(&record) {
            Some(intent) => recover_attempt(&record, &intent, &mut found)?,
            // Without an intent no process was made; what a removal left half done goes too.
            None => remove(&record),
        }
    }
    for entry in fs::read_dir(dir.work())? {
        remove(&entry?.path());
    }
    Ok(found)
}

fn remove(dir: &Path) {
    let hidden = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    if !hidden {
        return discard(dir);
    }
    if let Err(error) = fs::remove_dir_all(dir) {
        tracing::warn!(dir = %dir.display(), %error, "cannot remove a directory");
    }
}

fn recover_attempt(record: &Path, intent: &Intent, found: &mut Found) -> io::Result<()> {
    let key = intent.key();
    if record.file_name().is_none_or(|name| name.to_string_lossy() != key.dir_name()) {
        remove(record);
        return Ok(());
    }
    let empty = intent.kill_orphans(record);
    let result = disk::read_if_there(&record.join(RESULT))?.and_then(|bytes| JobResult::decode(bytes.as_slice()).ok());
    match &result {
        Some(_) => found.adopted.push(key.to_wire()),
        None if empty => found.dead.push(key.to_wire()),
        None => {}
    }
    let (index, last) = spool::recover(record)?;
    let promised = result.as_ref().and_then(|result| result.log.as_ref()).map_or(0, |log| log.last_sequence);
    tracing::info!(attempt = %key, ended = result.is_some(), last, "found on disk");
    found.attempts.push(Attempt::recovered(key, Log::recovered(index, last, promised), result));
    Ok(())
}
