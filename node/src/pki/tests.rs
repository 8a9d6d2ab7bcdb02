//! Certificates as rustls sees them: real handshakes over a pipe.

use std::sync::Arc;

use hodei_state::ids::{Caller, ClusterId, UserId, WorkerId};
use rcgen::KeyPair;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    ca::Authority,
    pin::PinnedAuthority,
    subject::{Certified, Subject},
};
use crate::net::tls;

const CLUSTER: ClusterId = ClusterId(0x0199_a1b2_c3d4_7e5f_8a9b_0c1d_2e3f_4a5b);

fn party(authority: &Authority, caller: Caller) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    (authority.issue(Subject { cluster: CLUSTER, caller }, &key).unwrap(), key.serialize_pem())
}

/// A server that shows `cert` without asking who is there.
fn server(cert: &str, key: &str) -> ServerConfig {
    crate::install_crypto();
    ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            tls::certificates("test", cert.as_bytes()).unwrap(),
            tls::private_key(key.as_bytes()).unwrap(),
        )
        .unwrap()
}

async fn handshake(server: ServerConfig, client: ClientConfig, name: &str) -> Result<(), String> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let accepting = TlsAcceptor::from(Arc::new(server)).accept(far);
    let connecting = TlsConnector::from(Arc::new(client)).connect(name, near);
    let (_, connected) = tokio::join!(accepting, connecting);
    connected.map(drop).map_err(|error| error.to_string())
}

fn trusting(authority: &Authority) -> ClientConfig {
    crate::install_crypto();
    tls::client_config(authority.pem().as_bytes(), None).unwrap()
}

#[tokio::test]
async fn a_node_is_dialled_by_its_own_name_and_by_the_common_one() {
    let authority = Authority::create(CLUSTER).unwrap();
    let (cert, key) = party(&authority, Caller::Node(7));
    for name in ["7.node.hodei.internal", "node.hodei.internal"] {
        handshake(server(&cert, &key), trusting(&authority), name).await.unwrap();
    }
    for name in ["8.node.hodei.internal", "localhost"] {
        assert!(handshake(server(&cert, &key), trusting(&authority), name).await.is_err(), "{name}");
    }
}

#[tokio::test]
async fn another_authority_s_node_is_refused() {
    let (ours, theirs) = (Authority::create(CLUSTER).unwrap(), Authority::create(CLUSTER).unwrap());
    let (cert, key) = party(&theirs, Caller::Node(7));
    let refused = handshake(server(&cert, &key), trusting(&ours), tls::ANY_NODE).await.unwrap_err();
    assert!(refused.contains("invalid peer certificate"), "{refused}");
}

#[tokio::test]
async fn the_pin_accepts_exactly_the_authority_it_names() {
    let (ours, theirs) = (Authority::create(CLUSTER).unwrap(), Authority::create(CLUSTER).unwrap());
    let (cert, key) = party(&ours, Caller::Node(1));

    let pin = PinnedAuthority::new(ours.hash());
    handshake(server(&cert, &key), pin.client_config(), tls::ANY_NODE).await.unwrap();
    assert!(!pin.mismatched());

    let pin = PinnedAuthority::new(theirs.hash());
    handshake(server(&cert, &key), pin.client_config(), tls::ANY_NODE).await.unwrap_err();
    assert!(pin.mismatched());

    // The right authority in the chain, but it did not issue the certificate.
    let (cert, key) = party(&theirs, Caller::Node(1));
    let forged = format!("{cert}{}", ours.pem());
    let pin = PinnedAuthority::new(ours.hash());
    handshake(server(&forged, &key), pin.client_config(), tls::ANY_NODE).await.unwrap_err();

    // Issued by the right authority, but not a node's.
    let (cert, key) = party(&ours, Caller::Agent(WorkerId(3)));
    let pin = PinnedAuthority::new(ours.hash());
    handshake(server(&cert, &key), pin.client_config(), tls::ANY_NODE).await.unwrap_err();
}

#[test]
fn certificates_say_who_and_for_how_long() {
    let authority = Authority::create(CLUSTER).unwrap();
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    for (caller, days) in [
        (Caller::Node(2), 7),
        (Caller::Agent(WorkerId(9)), 7),
        (Caller::User(UserId(4)), 365),
        (Caller::Admin(UserId(5)), 365),
    ] {
        let (pem, _) = party(&authority, caller);
        let chain = tls::certificates("test", pem.as_bytes()).unwrap();
        assert_eq!(chain.len(), 2, "the authority comes with it");
        let read = Certified::read(&chain[0]).unwrap();
        assert_eq!(read.subject, Subject { cluster: CLUSTER, caller });
        assert!((read.not_after - now - days * 86_400).abs() < 60);
        let (_, parsed) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        assert_eq!(parsed.raw_serial().len(), 16);
        assert!(!parsed.is_ca());
        assert!(now - parsed.validity().not_before.timestamp() >= 7200);
    }
    assert!(Certified::read(authority.der()).is_err(), "the authority is no party");
}

#[test]
fn an_authority_needs_its_own_key() {
    let (one, other) = (Authority::create(CLUSTER).unwrap(), Authority::create(CLUSTER).unwrap());
    assert!(Authority::load(one.pem(), one.key_pem()).is_ok());
    assert!(Authority::load(one.pem(), other.key_pem()).is_err());
}
