//! Prepares a data directory: as the founder of a cluster (`init`), or as a new member of one (`join`).
//!
//! `identity.toml` is written last. A crash before that leaves a directory that is not prepared, and doing it again
//! works: `init` begins anew, `join` repeats the same request (its key and nonce are on disk before the token is shown
//! to anybody), which the cluster answers with the same id.

use std::{fs, time::Duration};

use hodei_proto::v1::{EnrollRequest, EnrollResponse, cluster_service_client::ClusterServiceClient};
use hodei_state::ids::{Caller, ClusterId, Role, UserId};
use rand::RngCore as _;
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    cli::{
        client::Client,
        exit::{self, Failure},
        identity::{self, ClientFile},
        output,
    },
    data_dir::{DataDir, Founder, Identity},
    durable,
    net::{connector, tls},
    pki::{
        PkiError,
        ca::Authority,
        credentials,
        pin::PinnedAuthority,
        request,
        subject::{Certified, Subject},
        token::{self, Token},
    },
};

/// Between rounds over the addresses while nobody can be reached.
const PAUSE: Duration = Duration::from_millis(100);

fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::other(format!("cannot make a certificate: {error}"))
}

/// Makes a cluster: its id, its authority, node 1 and the first administrator.
///
/// # Errors
/// Bad input, where the directory is not writable.
pub fn found(dir: &DataDir) -> Result<Identity, Failure> {
    dir.check_unused()?;
    let cluster = ClusterId(Uuid::now_v7().as_u128());
    let admin = UserId(Uuid::now_v7().as_u128());
    let authority = Authority::create(cluster).map_err(broken)?;
    let node_key = KeyPair::generate().map_err(broken)?;
    let node = authority.issue(credentials::node(cluster, 1), &node_key).map_err(broken)?;
    dir.write("pki/ca.key", authority.key_pem().as_bytes(), durable::SECRET)?;
    dir.write("pki/ca.pem", authority.pem().as_bytes(), durable::PUBLIC)?;
    dir.write("pki/node.key", node_key.serialize_pem().as_bytes(), durable::SECRET)?;
    dir.write("pki/node.pem", node.as_bytes(), durable::PUBLIC)?;
    let admin_key = write_admin(dir, &authority, Subject { cluster, caller: Caller::Admin(admin) })?;
    let founder = Founder { admin, admin_key: token::base32(&admin_key) };
    let identity =
        Identity { cluster_id: cluster, node_id: 1, start_counter: 0, log_begun: false, founder: Some(founder) };
    dir.write_identity(&identity)?;
    Ok(identity)
}

/// The first administrator's identity; the hash of their key.
fn write_admin(dir: &DataDir, authority: &Authority, admin: Subject) -> Result<[u8; 32], Failure> {
    let key = KeyPair::generate().map_err(broken)?;
    let certificate = authority.issue(admin, &key).map_err(broken)?;
    dir.write("admin/key.pem", key.serialize_pem().as_bytes(), durable::SECRET)?;
    dir.write("admin/cert.pem", certificate.as_bytes(), durable::PUBLIC)?;
    dir.write("admin/ca.pem", authority.pem().as_bytes(), durable::PUBLIC)?;
    Ok(request::key_hash(&key))
}

/// Makes the first administrator this user's default, where there is none. An unwritable home is a warning.
pub fn make_default(dir: &DataDir, server: &str) {
    let Some(path) = identity::client_file_path() else {
        return output::note(
            "warning: no home directory: use --server and --identity, or set HODEI_SERVER and HODEI_IDENTITY",
        );
    };
    if path.exists() {
        return;
    }
    let admin = dir.join("admin");
    let identity = fs::canonicalize(&admin).unwrap_or(admin);
    let file = ClientFile { servers: vec![server.to_owned()], identity: Some(identity) };
    let written = toml::to_string(&file).map_err(std::io::Error::other).and_then(|text| {
        path.parent().map_or(Ok(false), durable::make_directory)?;
        durable::write(&path, text.as_bytes(), durable::PUBLIC)
    });
    if let Err(error) = written {
        output::note(format_args!("warning: cannot write {}: {error}", path.display()));
    }
}

/// What a joining node has to remember until it has its certificate: `pki/enrolment.toml`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Enrolment {
    /// Of the authority in the token, base 32.
    authority: String,
    /// Base 32.
    nonce: String,
}

/// A request to become a member, the same for all tries.
struct Joining {
    key: KeyPair,
    nonce: [u8; 16],
    /// Whether key and nonce are on disk.
    kept: bool,
}

/// Whether a prepared directory is of the cluster that a token names.
///
/// # Errors
/// Bad input, where it is of another one.
pub fn check_token(dir: &DataDir, token: &Token) -> Result<(), Failure> {
    let pem = dir.read("pki/ca.pem")?.unwrap_or_default();
    let known = tls::certificates("ca.pem", pem.as_bytes()).map_err(|error| Failure::other(error.to_string()))?;
    if known.iter().any(|authority| crate::pki::sha256(authority) == token.authority) {
        return Ok(());
    }
    Err(Failure::bad_input(format!(
        "the data directory {} belongs to another cluster than the token",
        dir.path().display()
    )))
}

/// Becomes a member of the cluster that the token is of.
///
/// # Errors
/// Bad input (a token or address of another kind or cluster), not allowed (the token is refused), unreachable, unknown.
/// After a definite refusal nothing of the attempt is left but what [`DataDir::discard`] removes.
pub async fn enrol(
    dir: &DataDir,
    addresses: &[String],
    token: &Token,
    advertise: &str,
    timeout: Duration,
) -> Result<Identity, Failure> {
    dir.check_unused()?;
    if token.role != Role::Node {
        return Err(Failure::not_allowed(format!(
            "the token is for role {}; joining takes one for role node",
            token.role
        )));
    }
    let pin = PinnedAuthority::new(token.authority);
    reach(addresses, &pin, timeout).await?;
    let mut joining = Joining::begin_or_resume(dir, token)?;
    let message = EnrollRequest {
        token: token.reveal(),
        nonce: joining.nonce.to_vec(),
        csr_der: request::create(&joining.key).map_err(broken)?,
        address: advertise.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        worker_id: String::new(),
        feature_level: hodei_state::FEATURE_LEVEL,
    };
    joining.keep(dir, token)?;
    let client = Client::to(addresses.to_vec(), pin.client_config().into(), timeout);
    let answer = client
        .write(|conn| {
            let request = conn.request(message.clone());
            async move { ClusterServiceClient::new(conn.channel).enroll(request).await }
        })
        .await?;
    finish(dir, token, &joining, &answer).map_err(|error| match error {
        Finish::Local(failure) => failure,
        Finish::Answer(why) => Failure::other(format!("the cluster's answer cannot be right: {why}")),
    })
}

/// Verifies one of the nodes before anything is written or said.
async fn reach(addresses: &[String], pin: &std::sync::Arc<PinnedAuthority>, timeout: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    let mut last = String::new();
    loop {
        for address in addresses {
            match connector::connect(address, tls::ANY_NODE, pin.client_config().into()).await {
                Ok(_) => return Ok(()),
                Err(_) if pin.mismatched() => {
                    return Err(Failure::bad_input(format!(
                        "{address} belongs to another cluster than the token: its CA is not the one that the token names"
                    )));
                }
                Err(error) => last = format!("{address}: {error}"),
            }
        }
        if Instant::now() >= deadline {
            return Err(Failure::unreachable(format!("no node of the cluster can be reached: {last}")));
        }
        sleep(PAUSE).await;
    }
}

impl Joining {
    /// Continues an attempt whose answer was lost, or makes a new key and nonce.
    fn begin_or_resume(dir: &DataDir, token: &Token) -> Result<Self, Failure> {
        let before = dir.read_toml::<Enrolment>("pki/enrolment.toml")?;
        let nonce = before
            .filter(|before| before.authority == token::base32(&token.authority))
            .and_then(|before| token::from_base32(&before.nonce));
        if let (Some(nonce), Some(pem)) = (nonce, dir.read("pki/node.key")?) {
            return Ok(Self { key: KeyPair::from_pem(&pem).map_err(broken)?, nonce, kept: true });
        }
        let mut nonce = [0; 16];
        rand::rng().fill_bytes(&mut nonce);
        Ok(Self { key: KeyPair::generate().map_err(broken)?, nonce, kept: false })
    }

    /// Key first, nonce second: a nonce on disk has its key.
    fn keep(&mut self, dir: &DataDir, token: &Token) -> Result<(), Failure> {
        if !self.kept {
            dir.write("pki/node.key", self.key.serialize_pem().as_bytes(), durable::SECRET)?;
            let enrolment = Enrolment { authority: token::base32(&token.authority), nonce: token::base32(&self.nonce) };
            dir.write_toml("pki/enrolment.toml", &enrolment)?;
            self.kept = true;
        }
        Ok(())
    }
}

enum Finish {
    Local(Failure),
    Answer(String),
}

impl From<PkiError> for Finish {
    fn from(error: PkiError) -> Self {
        Self::Answer(error.to_string())
    }
}

/// Checks the answer and writes it down.
fn finish(dir: &DataDir, token: &Token, joining: &Joining, answer: &EnrollResponse) -> Result<Identity, Finish> {
    let authority = Authority::load(&answer.ca_bundle_pem, &answer.ca_key_pem)?;
    if authority.hash() != token.authority {
        return Err(Finish::Answer("its authority is another one".into()));
    }
    let chain = tls::certificates("certificate", answer.certificate_pem.as_bytes()).map_err(PkiError::from)?;
    let certified = Certified::read(&chain[0])?;
    let Caller::Node(node_id) = certified.subject.caller else {
        return Err(Finish::Answer("the certificate is not a node's".into()));
    };
    if certified.key != request::key_hash(&joining.key) {
        return Err(Finish::Answer("the certificate is for another key".into()));
    }
    let identity =
        Identity { cluster_id: certified.subject.cluster, node_id, start_counter: 0, log_begun: false, founder: None };
    let peers = crate::peers::book::Book::of(&answer.members, node_id);
    (|| {
        dir.write("pki/ca.key", authority.key_pem().as_bytes(), durable::SECRET)?;
        dir.write("pki/ca.pem", authority.pem().as_bytes(), durable::PUBLIC)?;
        dir.write("pki/node.pem", answer.certificate_pem.as_bytes(), durable::PUBLIC)?;
        dir.write_toml("peers.toml", &peers)?;
        dir.write_identity(&identity)?;
        // A leftover does no harm: the directory is prepared.
        let _ = durable::remove(&dir.join("pki/enrolment.toml"));
        Ok(identity)
    })()
    .map_err(Finish::Local)
}

/// Whether a failed attempt certainly had no effect, so that its traces may go.
#[must_use]
pub fn is_definite(failure: &Failure) -> bool {
    failure.exit != exit::code::UNKNOWN
}
