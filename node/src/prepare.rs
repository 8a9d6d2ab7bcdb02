//! Prepares a data directory: as the founder of a cluster (`init`), or as a new member of one (`join`).
//!
//! `identity.toml` is written last. A crash before that leaves a directory that is not prepared, and doing it again
//! works: `init` begins anew, `join` repeats the same request (its key and nonce are on disk before the token is shown
//! to anybody), which the cluster answers with the same id.

use std::time::Duration;

use hodei_state::ids::{Caller, ClusterId, Role, UserId};
use rcgen::KeyPair;
use uuid::Uuid;

use crate::{
    cli::exit::Failure,
    data_dir::{DataDir, Founder, Identity},
    durable,
    enrol::{self, Admitted, Refused, broken},
    net::tls,
    pki::{
        ca::Authority,
        credentials, request,
        subject::Subject,
        token::{self, Token},
    },
    secrets,
};

/// Makes a cluster: its id, its authority, node 1 and the first administrator.
///
/// # Errors
/// Bad input, where the directory is not writable.
pub fn found(dir: &DataDir) -> Result<Identity, Failure> {
    let cluster = ClusterId(Uuid::now_v7().as_u128());
    let admin = UserId(Uuid::now_v7().as_u128());
    let authority = Authority::create(cluster).map_err(broken)?;
    let node_key = KeyPair::generate().map_err(broken)?;
    let node = authority.issue(credentials::node(cluster, 1), &node_key).map_err(broken)?;
    dir.write("pki/ca.key", authority.key_pem().as_bytes(), durable::SECRET)?;
    dir.write("pki/ca.pem", authority.pem().as_bytes(), durable::PUBLIC)?;
    dir.write("pki/node.key", node_key.serialize_pem().as_bytes(), durable::SECRET)?;
    dir.write("pki/node.pem", node.as_bytes(), durable::PUBLIC)?;
    let secrets = credentials::secrets_key_text(&secrets::new_key());
    dir.write(credentials::SECRETS_KEY, secrets.as_bytes(), durable::SECRET)?;
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

/// Where a joining node keeps its attempt.
const PLACE: enrol::Place = enrol::Place { key: "pki/node.key", memo: "pki/enrolment.toml" };

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
/// See [`enrol::exchange`]; a token of another role is not allowed. What is left of a definite refusal is what
/// [`DataDir::discard`] removes.
pub async fn join(
    dir: &DataDir,
    addresses: &[String],
    token: &Token,
    advertise: &str,
    timeout: Duration,
) -> Result<Identity, Refused> {
    if token.role != Role::Node {
        let message = format!("the token is for role {}; joining takes one for role node", token.role);
        return Err(Failure::not_allowed(message).into());
    }
    let admitted = enrol::exchange(dir, PLACE, addresses, token, advertise, timeout).await?;
    // The cluster counts it as a member now: what is on disk is what a further try succeeds with.
    write_down(dir, &admitted).map_err(|failure| Refused { failure, keep: true })
}

fn write_down(dir: &DataDir, admitted: &Admitted) -> Result<Identity, Failure> {
    let wrong = |why: String| Failure::other(format!("the cluster's answer cannot be right: {why}"));
    let answer = &admitted.answer;
    let authority =
        Authority::load(&answer.ca_bundle_pem, &answer.ca_key_pem).map_err(|error| wrong(error.to_string()))?;
    let Caller::Node(node_id) = admitted.subject.caller else {
        return Err(wrong("the certificate is not a node's".into()));
    };
    let secrets_key = answer.secrets_key.as_slice().try_into();
    let secrets_key = secrets_key.map_err(|_| wrong("the key of the secrets is none".into()))?;
    let cluster_id = admitted.subject.cluster;
    let identity = Identity { cluster_id, node_id, start_counter: 0, log_begun: false, founder: None };
    dir.write("pki/ca.key", authority.key_pem().as_bytes(), durable::SECRET)?;
    dir.write(credentials::SECRETS_KEY, credentials::secrets_key_text(secrets_key).as_bytes(), durable::SECRET)?;
    dir.write("pki/ca.pem", authority.pem().as_bytes(), durable::PUBLIC)?;
    dir.write("pki/node.pem", answer.certificate_pem.as_bytes(), durable::PUBLIC)?;
    dir.write_toml("peers.toml", &crate::peers::book::Book::of(&answer.members, node_id))?;
    dir.write_identity(&identity)?;
    // A leftover does no harm: the directory is prepared.
    let _ = durable::remove(&dir.join(PLACE.memo));
    Ok(identity)
}
