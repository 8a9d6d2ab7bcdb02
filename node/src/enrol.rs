//! A token against a certificate: what nodes that join and people who enrol have in common.
//!
//! Key and nonce are on disk before the token is shown to anybody, and the same request is sent until it is answered.
//! The cluster binds token, nonce and key, so that a request whose answer was lost succeeds when it is repeated, now or
//! by the next process. The token is shown only to a node that has proven to be of the cluster that the token names.

use std::{sync::Arc, time::Duration};

use hodei_proto::v1::{EnrollRequest, EnrollResponse, cluster_service_client::ClusterServiceClient};
use rand::RngCore as _;
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{
    cli::{
        client::Client,
        exit::{self, Failure},
    },
    durable,
    files::Files,
    net::{connector, tls},
    pki::{
        PkiError,
        pin::PinnedAuthority,
        request,
        subject::{Certified, Subject},
        token::{self, Token},
    },
};

/// Between rounds over the addresses while nobody can be reached.
const PAUSE: Duration = Duration::from_millis(100);

/// Where an attempt lies until it is answered: names below the directory.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The key, which stays.
    pub key: &'static str,
    /// The nonce, which goes when all is written.
    pub memo: &'static str,
}

/// Why nobody was let in.
#[derive(Debug)]
pub struct Refused {
    /// What to say.
    pub failure: Failure,
    /// Whether key and nonce have to stay: with this attempt, or an earlier one that lies in the same place, the
    /// cluster may have let the party in.
    pub keep: bool,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { keep: failure.exit == exit::code::UNKNOWN, failure }
    }
}

/// A party that was let in.
pub struct Admitted {
    /// Who it is: what the certificate says, verified against the key.
    pub subject: Subject,
    /// What the cluster answered. The authorities in it include the one that the token names.
    pub answer: EnrollResponse,
}

/// What has to be remembered of an attempt beside its key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memo {
    /// Of the authority in the token, base 32.
    authority: String,
    /// Base 32.
    nonce: String,
}

/// A request, the same for all tries.
struct Attempt {
    key: KeyPair,
    nonce: [u8; 16],
    /// Whether an earlier process has begun it: key and nonce are on disk.
    resumed: bool,
}

/// That a key or a request cannot be made.
pub fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::other(format!("cannot make a certificate: {error}"))
}

/// Enrols with `token` over any of `addresses` within `timeout`. `address` is what a node advertises, empty for others.
///
/// # Errors
/// Bad input (an address of another cluster, a directory that is not writable), not allowed (the token is refused),
/// unreachable, unknown. Unless [`Refused::keep`] says otherwise, what is at `place` is of no further use.
pub async fn exchange(
    files: &Files,
    place: Place,
    addresses: &[String],
    token: &Token,
    address: &str,
    timeout: Duration,
) -> Result<Admitted, Refused> {
    let attempt = Attempt::begin_or_resume(files, place, token)?;
    // Who cannot be reached now says nothing about what came of an earlier try.
    let earlier = |failure: Failure| Refused {
        keep: failure.exit == exit::code::UNKNOWN || (attempt.resumed && failure.exit == exit::code::UNREACHABLE),
        failure,
    };
    let pin = PinnedAuthority::new(token.authority);
    reach(addresses, &pin, timeout).await.map_err(earlier)?;
    let message = EnrollRequest {
        token: token.reveal(),
        nonce: attempt.nonce.to_vec(),
        csr_der: request::create(&attempt.key).map_err(broken)?,
        address: address.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        worker_id: String::new(),
        feature_level: hodei_state::FEATURE_LEVEL,
    };
    attempt.keep(files, place, token)?;
    let client = Client::to(addresses.to_vec(), pin.client_config().into(), timeout);
    let answer = client
        .write(|conn| {
            let request = conn.request(message.clone());
            async move { ClusterServiceClient::new(conn.channel).enroll(request).await }
        })
        .await
        .map_err(earlier)?;
    let subject = check(token, &attempt, &answer).map_err(|why| Refused {
        failure: Failure::other(format!("the cluster's answer cannot be right: {why}")),
        keep: true,
    })?;
    Ok(Admitted { subject, answer })
}

/// Verifies one of the nodes before anything is written or said.
async fn reach(addresses: &[String], pin: &Arc<PinnedAuthority>, timeout: Duration) -> Result<(), Failure> {
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

impl Attempt {
    /// Continues an attempt whose answer was lost, or makes a new key and nonce.
    fn begin_or_resume(files: &Files, place: Place, token: &Token) -> Result<Self, Failure> {
        let before = files.read_toml::<Memo>(place.memo)?;
        let nonce = before
            .filter(|before| before.authority == token::base32(&token.authority))
            .and_then(|before| token::from_base32(&before.nonce));
        if let (Some(nonce), Some(pem)) = (nonce, files.read(place.key)?) {
            return Ok(Self { key: KeyPair::from_pem(&pem).map_err(broken)?, nonce, resumed: true });
        }
        let mut nonce = [0; 16];
        rand::rng().fill_bytes(&mut nonce);
        Ok(Self { key: KeyPair::generate().map_err(broken)?, nonce, resumed: false })
    }

    /// Key first, nonce second: a nonce on disk has its key.
    fn keep(&self, files: &Files, place: Place, token: &Token) -> Result<(), Failure> {
        if self.resumed {
            return Ok(());
        }
        files.write(place.key, self.key.serialize_pem().as_bytes(), durable::SECRET)?;
        let memo = Memo { authority: token::base32(&token.authority), nonce: token::base32(&self.nonce) };
        files.write_toml(place.memo, &memo)
    }
}

/// Whom the answer makes of us, if it is one for this token and key.
fn check(token: &Token, attempt: &Attempt, answer: &EnrollResponse) -> Result<Subject, String> {
    let text = |error: PkiError| error.to_string();
    let certificates = |what, pem: &str| tls::certificates(what, pem.as_bytes()).map_err(|error| text(error.into()));
    let authorities = certificates("authorities", &answer.ca_bundle_pem)?;
    if !authorities.iter().any(|authority| crate::pki::sha256(authority) == token.authority) {
        return Err("its authority is another one".into());
    }
    let chain = certificates("certificate", &answer.certificate_pem)?;
    let certified = Certified::read(&chain[0]).map_err(text)?;
    if certified.key != request::key_hash(&attempt.key) {
        return Err("the certificate is for another key".into());
    }
    let role = crate::server::table::role(certified.subject.caller);
    if role != token.role {
        return Err(format!("the certificate is for role {role}"));
    }
    Ok(certified.subject)
}
