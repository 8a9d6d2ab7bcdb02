//! The way out of quarantine: a node that has lost what it had promised goes on as a new member.
//!
//! Its old id must never vote again, since it may have forgotten votes and entries. So it asks the cluster for a new one,
//! by its old certificate; the old id is void from then on, and the new one takes its place in the Raft membership once
//! it has caught up. Without a quorum nobody can answer, and it goes on asking.
//!
//! Everything can be interrupted anywhere. `pki/replacement.toml` says how far it has come:
//!
//! 1. Key (`pki/replacement.key`) and nonce are on disk before the request is sent, and the same request is sent until it
//!    is answered: whoever repeats it gets the same id.
//! 2. The answer is on disk before anything of the old node is touched.
//! 3. What is left of the old replica goes to `damaged/`, for whoever wants to know what happened; then key, certificate
//!    and identity become the new ones, and the note goes. The logs of jobs stay: the cluster knows whose heir it is.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use hodei_proto::v1::{EnrollResponse, ReplaceRequest, cluster_service_client::ClusterServiceClient};
use hodei_state::ids::{Caller, NodeId};
use rand::RngCore as _;
use rcgen::KeyPair;
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};

use crate::{
    cli::{
        client::Client,
        exit::{Failure, code},
    },
    data_dir::{DataDir, Identity},
    durable,
    enrol::broken,
    net::tls,
    peers::book::Book,
    pki::{request, subject::Certified, token},
};

const KEY: &str = "pki/replacement.key";
const NOTE: &str = "pki/replacement.toml";
/// Where the last damaged replica lies.
const DAMAGED: &str = "damaged";
/// What makes up a replica.
const REPLICA: [&str; 4] = ["wal", "db", "snapshots", "payloads"];
/// For one round over the members.
const TRY: Duration = Duration::from_secs(10);
/// Between rounds that nobody answered.
const PAUSE: Duration = Duration::from_secs(1);

/// How far a replacement has come.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    /// Base 32.
    nonce: String,
    /// What was lost.
    why: String,
    /// Present once the cluster has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    node_id: NodeId,
    certificate_pem: String,
    members: Book,
}

/// Brings a replacement to its end that an earlier process had the answer for.
///
/// # Errors
/// Where the directory cannot be read or written.
pub fn resume(dir: &DataDir, identity: Identity) -> Result<Identity, Failure> {
    match dir.read_toml::<Note>(NOTE)? {
        Some(Note { answer: Some(answer), .. }) => become_new(dir, &identity, &answer),
        _ => Ok(identity),
    }
}

/// Asks the members, for as long as it takes, for a new id, and makes the directory that of the new node. `why` says what
/// was lost; `address` is what this node advertises.
///
/// # Errors
/// The members say no, there is nobody to ask, or the directory cannot be written.
pub async fn obtain(
    dir: &DataDir,
    identity: &Identity,
    tls: Arc<ClientConfig>,
    seeds: &[String],
    address: &str,
    why: &str,
) -> Result<Identity, Failure> {
    let book = dir.read_toml::<Book>("peers.toml")?.unwrap_or_default();
    let addresses: Vec<_> =
        book.entries().map(|(_, address, _)| address.to_owned()).chain(seeds.iter().cloned()).collect();
    if addresses.is_empty() {
        return Err(Failure::other(format!("{why}; no other member is known that could take this node in again")));
    }
    let (key, mut note) = begin_or_resume(dir, why)?;
    let message = ReplaceRequest {
        nonce: token::from_base32::<16>(&note.nonce).ok_or_else(|| damaged(dir))?.to_vec(),
        csr_der: request::create(&key).map_err(broken)?,
        address: address.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        feature_level: hodei_state::FEATURE_LEVEL,
    };
    tracing::error!(node = identity.node_id, why, "quarantined: asking the cluster for a new id");
    let client = Client::to(addresses, tls, TRY);
    let answer = loop {
        let asked = client.write(|conn| {
            let request = conn.request(message.clone());
            async move { ClusterServiceClient::new(conn.channel).replace(request).await }
        });
        match asked.await {
            Ok(answer) => break answer,
            Err(failure) if [code::UNREACHABLE, code::UNKNOWN].contains(&failure.exit) => {
                tracing::warn!(why = failure.message, "quarantined: no quorum answers yet; waiting");
            }
            Err(failure) => {
                let message = format!("{why}; and the cluster does not take it in again: {failure}");
                return Err(Failure { message, ..failure });
            }
        }
        tokio::time::sleep(PAUSE).await;
    };
    let answer = check(identity, &key, &answer)?;
    note.answer = Some(answer);
    dir.write_toml(NOTE, &note)?;
    note.answer.as_ref().map_or_else(|| Ok(identity.clone()), |answer| become_new(dir, identity, answer))
}

/// Asks no more for a new id.
///
/// # Errors
/// Where the directory cannot be written.
pub fn forget(dir: &DataDir) -> Result<(), Failure> {
    // The note goes first: a note on disk has its key.
    for name in [NOTE, KEY] {
        durable::remove(&dir.join(name)).map_err(|error| dir.not_writable(&error))?;
    }
    Ok(())
}

/// Key first, note second: a note on disk has its key.
fn begin_or_resume(dir: &DataDir, why: &str) -> Result<(KeyPair, Note), Failure> {
    if let (Some(note), Some(pem)) = (dir.read_toml::<Note>(NOTE)?, dir.read(KEY)?) {
        return Ok((KeyPair::from_pem(&pem).map_err(broken)?, note));
    }
    let key = KeyPair::generate().map_err(broken)?;
    let mut nonce = [0; 16];
    rand::rng().fill_bytes(&mut nonce);
    let note = Note { nonce: token::base32(&nonce), why: why.to_owned(), answer: None };
    dir.write(KEY, key.serialize_pem().as_bytes(), durable::SECRET)?;
    dir.write_toml(NOTE, &note)?;
    Ok((key, note))
}

/// Whom the answer makes of this node, if it is one for its key.
fn check(identity: &Identity, key: &KeyPair, answer: &EnrollResponse) -> Result<Answer, Failure> {
    let wrong = |why: &str| Failure::other(format!("the cluster's answer cannot be right: {why}"));
    let chain = tls::certificates("certificate", answer.certificate_pem.as_bytes());
    let chain = chain.map_err(|error| wrong(&error.to_string()))?;
    let certified = Certified::read(&chain[0]).map_err(|error| wrong(&error.to_string()))?;
    match certified.subject.caller {
        Caller::Node(node_id)
            if certified.subject.cluster == identity.cluster_id && certified.key == request::key_hash(key) =>
        {
            let members = Book::of(&answer.members, node_id);
            Ok(Answer { node_id, certificate_pem: answer.certificate_pem.clone(), members })
        }
        _ => Err(wrong("the certificate is not for this node's new key")),
    }
}

/// Each step may have been done before.
fn become_new(dir: &DataDir, old: &Identity, answer: &Answer) -> Result<Identity, Failure> {
    let identity = Identity {
        node_id: answer.node_id,
        start_counter: 0,
        log_begun: false,
        founder: None,
        cluster_id: old.cluster_id,
    };
    if old.node_id != answer.node_id {
        put_away(dir, &REPLICA).map_err(|error| dir.not_writable(&error))?;
        let key = dir.read(KEY)?.ok_or_else(|| damaged(dir))?;
        dir.write("pki/node.key", key.as_bytes(), durable::SECRET)?;
        dir.write("pki/node.pem", answer.certificate_pem.as_bytes(), durable::PUBLIC)?;
        dir.write_toml("peers.toml", &answer.members)?;
        dir.write_identity(&identity)?;
        tracing::warn!(old = old.node_id, new = identity.node_id, "goes on under a new id");
    }
    forget(dir)?;
    Ok(if old.node_id == answer.node_id { old.clone() } else { identity })
}

/// Moves parts of the replica aside. Of an earlier one that lies there only what has no newer part in its place stays.
///
/// # Errors
/// The disk refuses.
pub fn put_away(dir: &DataDir, parts: &[&str]) -> io::Result<()> {
    let away = dir.join(DAMAGED);
    durable::make_directory(&away)?;
    for part in parts {
        let (from, to) = (dir.join(part), away.join(part));
        if !from.exists() {
            continue;
        }
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        fs::rename(&from, &to)?;
    }
    durable::sync_directory(&away)?;
    durable::sync_directory(Path::new(dir.path()))
}

fn damaged(dir: &DataDir) -> Failure {
    Failure::other(format!("{} is damaged", dir.join(NOTE).display()))
}
