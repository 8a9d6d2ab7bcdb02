//! Enrolment: a token is exchanged for a certificate, once.
//!
//! The key and a nonce are on disk before anything is sent, and the same request is sent until it is answered: the
//! node binds token, nonce and key, so a request whose answer was lost succeeds again. The token itself is sent only
//! over a connection whose far end has proven to be a node of the cluster that the token names.

use std::{fs, path::Path, time::Duration};

use hodei_proto::v1::{EnrollRequest, EnrollResponse, cluster_service_client::ClusterServiceClient};
use rand::RngCore as _;
use rcgen::{CertificateParams, KeyPair};
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use super::{
    identity::{CA, CERT, Identity, KEY},
    tls,
    token::Token,
};
use crate::{
    disk,
    error::Exit,
    session::link::{Backoff, VERSION},
};

const NONCE: &str = "nonce";
/// How long the nodes are asked before the agent gives up.
const ENROL_WITHIN: Duration = Duration::from_secs(60);
/// For one request.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// The highest feature level that this binary speaks.
const FEATURE_LEVEL: u32 = 1;

/// The request, as it is sent each time.
struct Pending {
    key: KeyPair,
    request: EnrollRequest,
}

/// Enrols over any of `servers`, and stores what it is given in `pki`.
pub async fn enrol(pki: &Path, token: &str, servers: &[String], worker_id: &str) -> Result<Identity, Exit> {
    let token = Token::parse(token)?;
    let pending = prepare(pki, &token, worker_id).map_err(|error| unwritable(pki, &error))?;
    match ask_all(&token, &pending.request, servers).await {
        Ok(response) => store(pki, &pending.key, &response),
        Err(exit) => {
            if exit.code != crate::error::UNREACHABLE {
                // A definite refusal leaves nothing behind; an unknown outcome keeps key and nonce for the next try.
                let _ = fs::remove_dir_all(pki);
            }
            Err(exit)
        }
    }
}

fn unwritable(pki: &Path, error: &std::io::Error) -> Exit {
    Exit::bad_input(format!("{}: {error}", pki.display()))
}

/// Key and nonce, from an earlier try or new, durable before this returns.
fn prepare(pki: &Path, token: &Token, worker_id: &str) -> std::io::Result<Pending> {
    disk::make_dir(pki, 0o700)?;
    let (key_path, nonce_path) = (pki.join(KEY), pki.join(NONCE));
    let known = disk::read_if_there(&key_path)?.zip(disk::read_if_there(&nonce_path)?);
    let known = known.and_then(|(key, nonce)| Some((KeyPair::from_pem(std::str::from_utf8(&key).ok()?).ok()?, nonce)));
    let (key, nonce) = match known {
        Some(known) => known,
        None => {
            let key = KeyPair::generate().map_err(std::io::Error::other)?;
            let mut nonce = vec![0; 16];
            rand::rng().fill_bytes(&mut nonce);
            disk::write_durably(&key_path, key.serialize_pem().as_bytes())?;
            disk::write_durably(&nonce_path, &nonce)?;
            pki.parent().map_or(Ok(()), disk::sync_dir)?;
            (key, nonce)
        }
    };
    let csr = CertificateParams::default().serialize_request(&key).map_err(std::io::Error::other)?;
    let request = EnrollRequest {
        token: token.text().to_owned(),
        nonce,
        csr_der: csr.der().to_vec(),
        address: String::new(),
        version: VERSION.to_owned(),
        worker_id: worker_id.to_owned(),
        feature_level: FEATURE_LEVEL,
    };
    Ok(Pending { key, request })
}

async fn ask_all(token: &Token, request: &EnrollRequest, servers: &[String]) -> Result<EnrollResponse, Exit> {
    let until = Instant::now() + ENROL_WITHIN;
    let mut backoff = Backoff::default();
    let mut last = "no server named".to_owned();
    while !servers.is_empty() && Instant::now() < until {
        for server in servers {
            match ask(token, request, server).await {
                Ok(response) => return Ok(response),
                Err(Refused::Definitely(exit)) => return Err(exit),
                Err(Refused::TryAgain(why)) => last = format!("{server}: {why}"),
            }
        }
        tracing::info!(reason = last, "not enrolled yet, trying again");
        tokio::time::sleep(backoff.pause()).await;
    }
    Err(Exit::unreachable(format!("no node could enrol this agent: {last}")))
}

enum Refused {
    Definitely(Exit),
    TryAgain(String),
}

async fn ask(token: &Token, request: &EnrollRequest, server: &str) -> Result<EnrollResponse, Refused> {
    let (config, verifier) = tls::enrolling_config(token).map_err(Refused::Definitely)?;
    let channel = tls::connect(server, config).await.map_err(|error| match verifier.mismatch() {
        Some(mismatch) => Refused::Definitely(Exit::bad_input(format!("{server}: {mismatch}"))),
        None => Refused::TryAgain(error.to_string()),
    })?;
    let mut client = ClusterServiceClient::new(channel);
    let answer = timeout(REQUEST_WITHIN, client.enroll(request.clone())).await;
    let answer = answer.map_err(|_| Refused::TryAgain("no answer in time".to_owned()))?;
    answer.map(tonic::Response::into_inner).map_err(|status| judge(&status))
}

/// What a refusal means: an outcome that is unknown, or may change, is asked for again.
fn judge(status: &Status) -> Refused {
    let message = format!("enrolment refused: {}", status.message());
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => Refused::Definitely(Exit::not_allowed(message)),
        Code::InvalidArgument => Refused::Definitely(Exit::bad_input(message)),
        Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition | Code::OutOfRange | Code::Unimplemented => {
            Refused::Definitely(Exit::other(message))
        }
        _ => Refused::TryAgain(status.message().to_owned()),
    }
}

fn store(pki: &Path, key: &KeyPair, response: &EnrollResponse) -> Result<Identity, Exit> {
    let key_pem = key.serialize_pem();
    let (ca, cert) = (response.ca_bundle_pem.as_bytes(), response.certificate_pem.as_bytes());
    let identity = Identity::from_pem(ca, cert, key_pem.as_bytes())
        .map_err(|what| Exit::other(format!("the node's answer is of no use: {what}")))?;
    let written = disk::write_durably(&pki.join(CA), ca).and_then(|()| disk::write_durably(&pki.join(CERT), cert));
    written.map_err(|error| unwritable(pki, &error))?;
    // Of no further use; one that stays does no harm.
    let _ = fs::remove_file(pki.join(NONCE));
    Ok(identity)
}
