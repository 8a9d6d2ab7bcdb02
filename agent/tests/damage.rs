//! Damage to one file of a stopped agent, or of one of its watchdogs: what the next agent tells the cluster of it.
//!
//! Four attempts lie in its directory: two that ended under it and were never acknowledged, one that ended without it, and
//! one whose watchdog is gone. Each case is read by what reads it in the product, and everything that it would say to a
//! gateway is compared with what it would have said.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use hodei_agent::{
    attempt::Next,
    data_dir::DataDir,
    disk,
    executor::{
        RESULT,
        intent::{Intent, Terms},
        outcome::{self, Cause},
    },
    key::AttemptKey,
    log::{
        account,
        batch::{Batcher, GAP, STDERR, STDOUT, UNCOUNTED},
        capture::WhenFull,
        entries,
        spool::Writer,
    },
    recover::recover,
    trust::identity::Identity,
    watchdog::{
        output::Memory,
        testament::{Fallen, Testament},
        wire::{End, Usage},
    },
};
use hodei_damage::{Case, FILES, Matrix, Of, Row, STALE, Shown, Verdict, cases, copy_dir};
use hodei_proto::v1::{AttemptRef, JobResult, LogEnd, Reason, worker_message::Kind};
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls_pki_types::CertificateDer;

const SHOWN_BY: &str = "agent/tests/damage.rs";
const TERMS: Terms = Terms { lost_after: Duration::from_secs(60), when_full: WhenFull::Block };

fn key(job: u128) -> AttemptKey {
    AttemptKey { job: uuid::Uuid::from_u128(job), attempt: 1, fence: 40 + u64::try_from(job).unwrap() }
}

/// Ended under its agent, with a note of its watchdog.
const TOLD: u128 = 1;
/// The same, without the note.
const ALONE: u128 = 2;
/// Ended without an agent.
const LEFT: u128 = 3;
/// Has a mark of a process and nothing else.
const MARKED: u128 = 4;

/// What a gateway hears of an attempt.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    attempt: Option<AttemptRef>,
    reason: Option<Reason>,
    figures: Option<LogEnd>,
    /// Each entry with its sequence and kind.
    log: Vec<(u64, u32, Vec<u8>)>,
    /// What the log adds up to.
    sum: LogEnd,
}

/// Who an agent is, and whom it believes.
#[derive(Clone, Debug, PartialEq)]
struct Who {
    ca: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    worker_id: String,
}

/// What an agent has of its directory.
#[derive(Clone, Debug, PartialEq)]
struct Served {
    attempts: BTreeMap<AttemptKey, Told>,
    adopted: Vec<AttemptRef>,
    dead: Vec<AttemptRef>,
    peers: Vec<String>,
    identity: Who,
    nonce: Vec<u8>,
}

struct Victim {
    root: tempfile::TempDir,
    older: BTreeMap<String, Vec<Vec<u8>>>,
    /// Nobody's job, in a group of its own.
    bystander: Child,
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.bystander.kill();
        let _ = self.bystander.wait();
    }
}

fn record(root: &Path, job: u128) -> PathBuf {
    root.join("attempts").join(key(job).dir_name())
}

fn end() -> Fallen {
    Fallen::Ended(End { cause: Cause::Itself, status: 3 << 8, out_of_memory: false, usage: Usage::default() })
}

/// Some output in a spool of several frames.
fn spool(record: &Path) -> Batcher {
    let mut batcher = Batcher::default();
    let mut writer = Writer::new(record).0;
    for line in 0..120 {
        batcher.push(
            if line % 7 == 0 { STDERR } else { STDOUT },
            format!("line {line} of some output\n").as_bytes(),
            1,
        );
        if line % 20 == 19 {
            batcher.flush(1);
            writer.append(&batcher.take_full()).unwrap();
        }
    }
    batcher
}

impl Victim {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(root.path()).unwrap();
        let mut older: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        dir.remember_peers(&["10.0.0.1:1".into(), "10.0.0.2:1".into()]).unwrap();
        older.insert("state".into(), vec![fs::read(root.path().join("state")).unwrap()]);
        dir.remember_peers(&["10.0.0.1:1".into(), "10.0.0.3:1".into(), "10.0.0.4:1".into()]).unwrap();
        identity(&dir.pki());
        for job in [TOLD, ALONE, LEFT, MARKED] {
            let (record, key) = (record(root.path(), job), key(job));
            fs::create_dir(&record).unwrap();
            Intent::new(key, "session", TERMS, None, &[]).write(&record).unwrap();
            if job == MARKED {
                continue;
            }
            let batcher = spool(&record);
            let file = fs::read_dir(&record).unwrap().map(|entry| entry.unwrap().path()).find(|path| is_spool(path));
            let (name, spool) = (relative(root.path(), file.as_ref().unwrap()), fs::read(file.unwrap()).unwrap());
            older.insert(name, vec![spool[..spool.len() / 2].to_vec(), Vec::new()]);
            if job == LEFT {
                let (mut out, mut err) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
                let taken = batcher.progress().taken.map(|taken| vec![b'x'; usize::try_from(taken).unwrap()]);
                out.1.write_all(&[&taken[0], &b"what nobody has taken of it\n".repeat(5)[..]].concat()).unwrap();
                err.1.write_all(&[&taken[1], &b"nor of this\n".repeat(9)[..]].concat()).unwrap();
                drop((out.1, err.1));
                let output = Memory::new(&[]).unwrap().of(out.0.into(), err.0.into());
                batcher.progress().write(&output.progress).unwrap();
                Testament::note(&record, &end()).unwrap();
                let note = record.join("ended");
                older.insert(relative(root.path(), &note), vec![fs::read(note).unwrap()]);
                Testament::leave(&record, &end(), Some(&output)).unwrap();
                continue;
            }
            let Fallen::Ended(End { cause, .. }) = end() else { unreachable!() };
            let status = std::os::unix::process::ExitStatusExt::from_raw(3 << 8);
            let reason = Some(outcome::reason(cause, status, false));
            let result = JobResult { attempt: Some(key.to_wire()), reason, log: Some(batcher.figures()) };
            disk::write_durably(&record.join(RESULT), &result.encode_to_vec()).unwrap();
            if job == TOLD {
                Testament::note(&record, &end()).unwrap();
            }
        }
        let bystander = Command::new("sleep").arg("6000").process_group(0).spawn().unwrap();
        // A tick later: another process that had its number.
        let mark = format!("{{\"pid\":{},\"started\":{}}}", bystander.id(), started(bystander.id()) + 1);
        disk::write_durably(&record(root.path(), MARKED).join("process"), mark.as_bytes()).unwrap();
        Self { root, older, bystander }
    }

    /// The files of a row.
    fn files(&self, row: &Row) -> Vec<String> {
        let mut found = Vec::new();
        let mut open = vec![self.root.path().to_owned()];
        while let Some(next) = open.pop() {
            for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    open.push(entry.path());
                } else if hodei_damage::row(Of::Agent, &relative(self.root.path(), &entry.path())) == Some(row) {
                    found.push(relative(self.root.path(), &entry.path()));
                }
            }
        }
        found.sort();
        found
    }

    /// What comes of a directory that does not know where it is: it is judged where it is.
    fn judge_place(&self, bytes: &[u8]) -> Verdict {
        let place = self.root.path().join("place");
        let content = fs::read(&place).unwrap();
        fs::write(&place, bytes).unwrap();
        let opened = DataDir::open(self.root.path());
        let now = fs::read(&place).unwrap();
        fs::write(&place, &content).unwrap();
        match opened {
            Ok(_) if now == content => Verdict::Repaired,
            Ok(_) => Verdict::Silent("it is somewhere else".to_owned()),
            Err(exit) if exit.message.contains(place.to_str().unwrap()) => Verdict::Refused,
            Err(exit) => Verdict::Silent(format!("the file is not named: {exit}")),
        }
    }

    /// What the next agent has of a directory with this file, and with what belongs to it: with the rest of its attempt, if
    /// it is an attempt's.
    fn serve(&self, file: &str, damaged: Option<&[u8]>) -> Result<Served, String> {
        let (root, copy) = (self.root.path(), tempfile::tempdir().unwrap());
        copy_dir(&root.join("pki"), &copy.path().join("pki"));
        fs::create_dir(copy.path().join("attempts")).unwrap();
        fs::copy(root.join("state"), copy.path().join("state")).unwrap();
        if let Some((attempt, _)) = file.rsplit_once('/').filter(|(dir, _)| dir.starts_with("attempts/")) {
            copy_dir(&root.join(attempt), &copy.path().join(attempt));
        }
        if let Some(bytes) = damaged {
            fs::write(copy.path().join(file), bytes).unwrap();
        }
        serve(copy.path())
    }
}

fn is_spool(path: &Path) -> bool {
    path.file_name().unwrap().to_str().unwrap().starts_with("spool-")
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap().to_str().unwrap().to_owned()
}

/// Ticks after boot, as the mark has them.
fn started(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap()
}

fn identity(pki: &Path) {
    disk::make_dir(pki, 0o700).unwrap();
    let (key, authority) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let ca = CertificateParams::default().self_signed(&authority).unwrap();
    let mut params = CertificateParams::default();
    let uri = "spiffe://00000000-0000-0000-0000-000000000001/agent/00000000-0000-0000-0000-000000000002";
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    let issuer = rcgen::Issuer::new(CertificateParams::default(), authority);
    let cert = params.signed_by(&key, &issuer).unwrap();
    for (name, text) in [("ca.pem", ca.pem()), ("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())] {
        disk::write_durably(&pki.join(name), text.as_bytes()).unwrap();
    }
    disk::write_durably(&pki.join("nonce"), &[7; 16]).unwrap();
}

fn serve(root: &Path) -> Result<Served, String> {
    let dir = DataDir::open(root).map_err(|exit| exit.message)?;
    let identity = Identity::load(&dir.pki()).map_err(|exit| exit.message)?.ok_or("no identity")?;
    let nonce = disk::read_if_there(&dir.pki().join("nonce")).map_err(|error| error.to_string())?.unwrap();
    let found = recover(&dir).map_err(|error| error.to_string())?;
    assert!(found.alive.is_empty());
    let mut attempts = BTreeMap::new();
    for attempt in found.ended {
        attempt.attached();
        attempt.log.wanted(1);
        let mut told = Told { attempt: None, reason: None, figures: None, log: Vec::new(), sum: LogEnd::default() };
        loop {
            match attempt.next() {
                Next::Nothing => break,
                Next::Read(wanted) => attempt.log.replayed(wanted.from, wanted.read().unwrap_or_default()),
                Next::Message(message) => match message.kind.unwrap() {
                    Kind::JobResult(result) => {
                        (told.attempt, told.reason, told.figures) = (result.attempt, result.reason, result.log);
                    }
                    Kind::LogBatch(batch) => {
                        for entry in entries(&batch).unwrap() {
                            account(&mut told.sum, entry.sequence, entry.kind, &entry.data);
                            told.log.push((entry.sequence, entry.kind, entry.data.to_vec()));
                        }
                    }
                    Kind::LogResume(_) => {}
                    other => panic!("{other:?}"),
                },
            }
        }
        attempts.insert(attempt.key, told);
    }
    let (mut adopted, mut dead) = (found.adopted, found.dead);
    adopted.sort_by_key(|attempt| attempt.fence);
    dead.sort_by_key(|attempt| attempt.fence);
    let Identity { ca, chain, key, worker_id } = identity;
    let identity = Who { ca, chain, key: key.secret_der().to_vec(), worker_id };
    Ok(Served { attempts, adopted, dead, peers: dir.peers(), identity, nonce })
}

/// What comes of it that the next agent serves `found` instead of `intact`.
fn compare(intact: &Served, found: &Served, case: &Case) -> Verdict {
    if found == intact {
        return Verdict::Harmless;
    }
    let mut like = found.clone();
    let mut verdict = Verdict::Repaired;
    if found.peers != intact.peers {
        // The servers that it was started with, and what these say.
        if !found.peers.is_empty() && case.how != STALE {
            return Verdict::Silent(format!("peers {:?}", found.peers));
        }
        (like.peers, verdict) = (intact.peers.clone(), Verdict::Refused);
    }
    let unknown = |attempt: &AttemptRef| !intact.attempts.keys().any(|key| key.to_wire() == *attempt);
    if found.adopted.iter().chain(&found.dead).any(unknown) {
        return Verdict::Silent("it speaks of an attempt that never was".to_owned());
    }
    for (key, was) in &intact.attempts {
        let Some(now) = like.attempts.get(key).cloned() else {
            // Not a word of it: its lease runs out.
            verdict = Verdict::Refused;
            continue;
        };
        match against(was, &now) {
            Ok(true) => {}
            Ok(false) => verdict = Verdict::Refused,
            Err(what) => return Verdict::Silent(format!("{key}: {what}")),
        }
    }
    // Who has lost a result has none to adopt.
    like.attempts.clone_from(&intact.attempts);
    (like.adopted, like.dead) = (intact.adopted.clone(), intact.dead.clone());
    if like == *intact { verdict } else { Verdict::Silent("something else was read".to_owned()) }
}

/// Whether an attempt is told of as before; not, where its end or a part of its log is said to be lacking.
fn against(was: &Told, now: &Told) -> Result<bool, String> {
    if now == was {
        return Ok(true);
    }
    if now.attempt.is_some() && now.attempt != was.attempt {
        return Err(format!("the result of {:?}", now.attempt));
    }
    if now.figures.is_some() && now.reason != was.reason {
        return Err(format!("it ended as {:?}", now.reason));
    }
    // What no agent had taken gets the time at which it is taken: entries are compared, not their frames.
    let tells_of_loss = |(_, kind, data): &(u64, u32, Vec<u8>)| *kind == GAP && *data == UNCOUNTED;
    if now.log.iter().any(|entry| !was.log.contains(entry) && !tells_of_loss(entry)) {
        return Err("a line that never was".to_owned());
    }
    let is_whole = |figures: &LogEnd| *figures == now.sum && !now.log.last().is_some_and(tells_of_loss);
    match &now.figures {
        Some(figures) if now.log != was.log && is_whole(figures) => Err("a log that is said to be whole".to_owned()),
        Some(_) | None => Ok(now.log == was.log && now.figures == was.figures && now.reason == was.reason),
    }
}

#[test]
fn damage_is_repaired_or_refused() {
    let mut victim = Victim::new();
    let mut matrix = Matrix::new(SHOWN_BY);
    for row in FILES.iter().filter(|row| row.of == Of::Agent && row.shown == Shown::By(SHOWN_BY)) {
        // Two attempts are there for one file each.
        let for_one = |file: &String| {
            [(ALONE, "result"), (MARKED, "process")]
                .iter()
                .any(|(job, name)| file.contains(&key(*job).dir_name()) && !file.ends_with(name))
        };
        for file in victim.files(row).into_iter().filter(|file| !for_one(file)) {
            let intact = victim.serve(&file, None).unwrap();
            let whole = |told: &Told| told.figures.is_none() || told.figures == Some(told.sum);
            assert!(intact.attempts.len() == usize::from(file.starts_with("attempts/")));
            assert!(intact.attempts.values().all(whole), "{intact:#?}");
            let content = fs::read(victim.root.path().join(&file)).unwrap();
            let older = victim.older.get(&file).cloned().unwrap_or_default();
            for case in cases(&content, &older, 7) {
                if file == "place" {
                    matrix.count(row, &case, victim.judge_place(&case.bytes));
                    continue;
                }
                let verdict = match victim.serve(&file, Some(&case.bytes)) {
                    Ok(_) if victim.bystander.try_wait().unwrap().is_some() => {
                        Verdict::Silent("a stranger died".to_owned())
                    }
                    Ok(found) if row.path.ends_with("process") && found == intact => Verdict::Refused,
                    Ok(found) => compare(&intact, &found, &case),
                    Err(message) if message.contains(file.rsplit('/').next().unwrap()) => Verdict::Refused,
                    Err(message) => Verdict::Silent(format!("the file is not named: {message}")),
                };
                matrix.count(row, &case, verdict);
            }
        }
    }
    matrix.finish(Of::Agent);
}
