//! Damage to one of a stopped node's own files: who it is, what it proves that with, where others are, what jobs wrote.
//!
//! Each is read by what reads it in the product, and what comes of it is compared with what was written. Of the log, the
//! stored state and the snapshots, the crate that writes them does the same.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use hodei_damage::{Case, Matrix, Of, Row, STALE, Verdict, cases, row};
use hodei_proto::v1::LogEnd;
use hodei_state::ids::JobId;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;

use crate::{
    cli::{exit::Failure, identity},
    data_dir::{DataDir, Identity},
    durable,
    logs::{
        entries::{self, tests::lines},
        file::{Kind, LogFile},
        frame::{self, LogKey},
        tally::Tally,
    },
    net::tls,
    peers::book::Book,
    pki::credentials::{self, Credentials},
    prepare,
};

const LOG: LogKey = LogKey { job: JobId(7), attempt: 1 };
const LOG_FILE: &str = "logs/00000000-0000-0000-0000-000000000007/1.1.log";
/// Nobody but the first administrator's command line reads them.
const ADMIN: &str = "admin";

/// Entries with their sequences, and what they add up to.
type Output = (Vec<(u64, Vec<u8>)>, Tally);

/// Everything that a node has of these files once it has opened them.
#[derive(Clone, PartialEq)]
struct Served {
    identity: Identity,
    book: Book,
    authority: (Vec<u8>, String),
    own: (Vec<CertificateDer<'static>>, [u8; 32]),
    secrets: [u8; 32],
    notes: BTreeMap<&'static str, Option<toml::Table>>,
    replacement_key: Option<[u8; 32]>,
    admin: Vec<CertificateDer<'static>>,
    admin_key: Vec<u8>,
    output: Output,
}

/// A directory with all files that there may be, and the older copies that there may be of them.
struct Victim {
    root: tempfile::TempDir,
    older: BTreeMap<&'static str, Vec<Vec<u8>>>,
}

impl Victim {
    fn new() -> Self {
        let mut victim = Self { root: tempfile::tempdir().unwrap(), older: BTreeMap::new() };
        let dir = DataDir::open(victim.root.path()).unwrap();
        let founded = prepare::found(&dir).unwrap();
        // Of an id before a replacement.
        let authority = Credentials::load(&dir, &founded).unwrap().authority;
        let now = |name: &str| fs::read(dir.join(name)).unwrap();
        let mut older = |name: &'static str, content: Vec<u8>| victim.older.entry(name).or_default().push(content);
        let (key, cert) = (now("pki/node.key"), now("pki/node.pem"));
        let others = KeyPair::generate().unwrap();
        let certificate = authority.issue(credentials::node(founded.cluster_id, 9), &others).unwrap();
        dir.write("pki/node.key", others.serialize_pem().as_bytes(), durable::SECRET).unwrap();
        dir.write("pki/node.pem", certificate.as_bytes(), durable::PUBLIC).unwrap();
        dir.write_identity(&Identity { node_id: 9, founder: None, ..founded.clone() }).unwrap();
        older("pki/node.key", now("pki/node.key"));
        older("pki/node.pem", now("pki/node.pem"));
        older("identity.toml", now("identity.toml"));
        // Of an earlier start, before the certificate was renewed.
        older("pki/node.pem", cert);
        fs::write(dir.join("pki/node.key"), key).unwrap();
        let key = KeyPair::from_pem(&dir.read("pki/node.key").unwrap().unwrap()).unwrap();
        let renewed = authority.issue(credentials::node(founded.cluster_id, 1), &key).unwrap();
        dir.write("pki/node.pem", renewed.as_bytes(), durable::PUBLIC).unwrap();
        for start in 0..3 {
            let founder = founded.founder.clone().filter(|_| start == 0);
            let log_begun = start > 0;
            dir.write_identity(&Identity { start_counter: start, log_begun, founder, ..founded.clone() }).unwrap();
            if start < 2 {
                older("identity.toml", now("identity.toml"));
            }
        }
        let mut book = Book::default();
        for start in 0..3 {
            book.learn(2, &format!("10.0.0.2:{}", 7000 + start), start);
            book.learn(3, "10.0.0.3:7000", 1);
            dir.write_toml("peers.toml", &book).unwrap();
            if start < 2 {
                older("peers.toml", now("peers.toml"));
            }
        }
        let note: toml::Table =
            toml::from_str("authority = \"abc\"\nnonce = \"aaaabbbbccccddddeeeeffff22\"\n").unwrap();
        dir.write_toml("pki/enrolment.toml", &note).unwrap();
        dir.write("pki/replacement.key", others.serialize_pem().as_bytes(), durable::SECRET).unwrap();
        let note: toml::Table = toml::from_str("nonce = \"aaaabbbbccccddddeeeeffff22\"\nwhy = \"lost\"\n").unwrap();
        dir.write_toml("pki/replacement.toml", &note).unwrap();
        older("pki/replacement.toml", now("pki/replacement.toml"));
        let answer =
            format!("{note}[answer]\nnode_id = 4\ncertificate_pem = '''{renewed}'''\n[answer.members.members]\n");
        dir.write_toml("pki/replacement.toml", &toml::from_str::<toml::Table>(&answer).unwrap()).unwrap();
        let (whole, half) = output();
        older(LOG_FILE, whole[..half].to_vec());
        older(LOG_FILE, frame::file_header(LOG));
        fs::create_dir_all(dir.join(LOG_FILE).parent().unwrap()).unwrap();
        fs::write(dir.join(LOG_FILE), whole).unwrap();
        victim
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }
}

/// The content of a log's file, and where its second half begins.
fn output() -> (Vec<u8>, usize) {
    let (mut bytes, mut half) = (frame::file_header(LOG), 0);
    for batch in 0..40_u64 {
        let text: Vec<String> =
            (0..5).map(|line| format!("line {line} of batch {batch} {}\n", "x".repeat(40))).collect();
        let text: Vec<&str> = text.iter().map(String::as_str).collect();
        frame::write(&lines(1 + batch * 5, &text), 0, &mut bytes);
        if batch == 20 {
            half = bytes.len();
        }
    }
    (bytes, half)
}

/// Opens everything, as the node and the administrator's command line do.
fn open(root: &Path) -> Result<Served, Failure> {
    let dir = DataDir::open(root)?;
    let identity = dir.identity()?.ok_or_else(|| Failure::other("not prepared"))?;
    let credentials = Credentials::load(&dir, &identity)?;
    credentials.client_config().map_err(|error| Failure::other(error.to_string()))?;
    let missing = || Failure::other("a file is missing");
    let certificates = |name: &str| -> Result<_, Failure> {
        let pem = dir.read(name)?.ok_or_else(missing)?;
        tls::certificates("certificate", pem.as_bytes()).map_err(|error| Failure::other(error.to_string()))
    };
    let key = |pem: String| {
        let key = KeyPair::from_pem(&pem).map_err(|error| Failure::other(error.to_string()))?;
        Ok::<_, Failure>(crate::pki::request::key_hash(&key))
    };
    let notes = ["pki/enrolment.toml", "pki/replacement.toml"].map(|name| Ok((name, dir.read_toml(name)?)));
    let admin = identity::read_files(&root.join(ADMIN))?;
    let tls_error = |error: tls::TlsError| Failure::other(error.to_string());
    let mut admins = tls::certificates("ca.pem", &admin.ca).map_err(tls_error)?;
    // Whether the authority stands behind it makes no difference: nodes have it.
    admins.extend(tls::certificates("cert.pem", &admin.cert).map_err(tls_error)?.into_iter().take(1));
    Ok(Served {
        book: dir.read_toml("peers.toml")?.unwrap_or_default(),
        authority: (credentials.authority.der().to_vec(), credentials.authority.key_pem().trim().to_owned()),
        own: (certificates("pki/node.pem")?, credentials.key),
        secrets: *credentials.vault.key(),
        notes: notes.into_iter().collect::<Result<_, Failure>>()?,
        replacement_key: dir.read("pki/replacement.key")?.map(key).transpose()?,
        admin: admins,
        admin_key: tls::private_key(&admin.key).map_err(tls_error)?.secret_der().to_vec(),
        output: read_log(&root.join(LOG_FILE)).map_err(|error| Failure::other(error.to_string()))?,
        identity,
    })
}

fn read_log(path: &Path) -> std::io::Result<Output> {
    let file = LogFile::open(path, LOG, Kind::Copy)?;
    let (mut offset, mut read) = (0, Vec::new());
    while offset < file.progress().len {
        let (batches, next) = file.read(offset, 4096)?;
        let entries = batches.iter().flat_map(entries::entries);
        read.extend(entries.map(|entry| (entry.sequence, entry.data.to_vec())));
        if next == offset {
            break;
        }
        offset = next;
    }
    Ok((read, file.progress().tally))
}

/// What comes of it that the node has `found` instead of `intact`, and nothing was refused.
fn compare(intact: &Served, found: &Served, case: &Case) -> Verdict {
    if found == intact {
        return Verdict::Harmless;
    }
    // Whoever reads the log is told that this is not all: the figures stand in the replicated state.
    let Tally { last_sequence, lines, dropped, bytes, checksum, .. } = intact.output.1;
    let end = LogEnd { last_sequence, lines, dropped, bytes, checksum };
    let short = intact.output.0.starts_with(&found.output.0) && found.output.1.last_sequence < end.last_sequence;
    let but_log = Served { output: intact.output.clone(), ..found.clone() };
    if but_log == *intact && short && !found.output.1.is(&end) {
        return Verdict::Refused;
    }
    if case.how != STALE {
        return Verdict::Silent("something else was read".to_owned());
    }
    stale(intact, found)
}

/// What becomes of an older copy that was taken.
fn stale(intact: &Served, found: &Served) -> Verdict {
    let mut like = found.clone();
    if found.identity != intact.identity {
        let mut identity = found.identity.clone();
        identity.count_start(intact.identity.start_counter);
        if identity.start_counter <= intact.identity.start_counter {
            return Verdict::Silent("a start that was counted before".to_owned());
        }
        // Noted when the log is open; and a cluster that is founded answers that it is.
        (identity.log_begun, identity.founder) = (true, None);
        identity.start_counter = intact.identity.start_counter;
        like.identity = identity;
    }
    // What the others say of themselves.
    for (node, address, start) in intact.book.entries() {
        like.book.learn(node, address, start);
    }
    // Of the same key and id, and not yet due.
    like.own.0.clone_from(&intact.own.0);
    let note = "pki/replacement.toml";
    let nonce = |served: &Served| served.notes[note].as_ref().and_then(|note| note.get("nonce").cloned());
    if nonce(found) == nonce(intact) {
        like.notes.insert(note, intact.notes[note].clone());
    }
    if like == *intact { Verdict::Repaired } else { Verdict::Silent("an older copy counts".to_owned()) }
}

#[test]
fn damage_is_repaired_or_refused() {
    let victim = Victim::new();
    let intact = open(victim.root.path()).unwrap();
    let named: Vec<&'static Row> = hodei_damage::FILES
        .iter()
        .filter(|row| row.of == Of::Node && row.shown == hodei_damage::Shown::By("node/src/damage.rs"))
        .collect();
    let mut matrix = Matrix::new("node/src/damage.rs");
    for name in named.iter().map(|row| if row.path.starts_with("logs/") { LOG_FILE } else { row.path }) {
        let (path, row) = (victim.path(name), row(Of::Node, name).unwrap());
        let content = fs::read(&path).unwrap();
        let older = victim.older.get(name).cloned().unwrap_or_default();
        for case in cases(&content, &older, 7) {
            fs::write(&path, &case.bytes).unwrap();
            let verdict = match open(victim.root.path()) {
                Ok(found) => compare(&intact, &found, &case),
                Err(failure) if failure.message.contains(victim.root.path().to_str().unwrap()) => Verdict::Refused,
                Err(failure) => Verdict::Silent(format!("no file is named: {failure}")),
            };
            matrix.count(row, &case, verdict);
            fs::write(&path, &content).unwrap();
        }
    }
    matrix.finish(Of::Node);
}
