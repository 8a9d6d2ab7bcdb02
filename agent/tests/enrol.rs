//! Enrolment over real TLS: who is believed, what is stored, what is left behind when it is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    convert::Infallible,
    future::Future,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hodei_agent::{
    error::Exit,
    trust::{enrol::enrol, identity::Identity, tls},
};
use hodei_proto::v1::{EnrollRequest, EnrollResponse};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{RootCertStore, ServerConfig, crypto::ring, server::WebPkiClientVerifier};
use rustls_pki_types::PrivateKeyDer;
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, UnaryService},
    transport::Server,
};
use tonic_prost::ProstCodec;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Arc<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Hodei test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Arc::new(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() })
    }

    fn token(&self) -> String {
        format!("hodei1.agent.{}.mzxw6ytb", base32(&Sha256::digest(self.issuer.der())))
    }

    fn server(&self, uri: &str, usage: ExtendedKeyUsagePurpose) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["node.hodei.internal".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages = vec![usage];
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let chain = vec![cert.der().clone(), self.issuer.der().clone()];
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    fn issue(&self, csr: &[u8]) -> String {
        let csr = CertificateSigningRequestParams::from_der(&csr.to_vec().into()).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("spiffe://c/agent/w-7".try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&csr.public_key, &self.issuer).unwrap().pem()
    }
}

fn base32(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let digit = |chunk: &[u8]| chunk.iter().fold(0, |value, bit| value * 2 + bit) << (5 - chunk.len());
    bits.chunks(5).map(|chunk| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[usize::from(digit(chunk))])).collect()
}

/// Answers Enroll, and nothing else.
#[derive(Clone)]
struct Enroller {
    ca: Arc<Ca>,
    refusal: Arc<Mutex<Option<Status>>>,
    asked: Arc<Mutex<Vec<EnrollRequest>>>,
}

impl NamedService for Enroller {
    const NAME: &'static str = "hodei.v1.ClusterService";
}

impl tower::Service<http::Request<Body>> for Enroller {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<EnrollResponse, EnrollRequest>::default();
            Ok(Grpc::new(codec).unary(this, request).await)
        })
    }
}

impl UnaryService<EnrollRequest> for Enroller {
    type Response = EnrollResponse;
    type Future = Boxed<Result<Response<EnrollResponse>, Status>>;

    fn call(&mut self, request: Request<EnrollRequest>) -> Self::Future {
        let request = request.into_inner();
        let answer = match self.refusal.lock().take() {
            Some(status) => Err(status),
            None => Ok(Response::new(EnrollResponse {
                certificate_pem: self.ca.issue(&request.csr_der),
                ca_bundle_pem: self.ca.issuer.pem(),
                ..EnrollResponse::default()
            })),
        };
        self.asked.lock().push(request);
        Box::pin(async { answer })
    }
}

struct Node {
    address: String,
    enroller: Enroller,
    server: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn node(ca: &Arc<Ca>, config: ServerConfig) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let enroller = Enroller { ca: Arc::clone(ca), refusal: Arc::default(), asked: Arc::default() };
    let service = enroller.clone();
    let server = tokio::spawn(async move {
        let (streams, incoming) = tokio::sync::mpsc::channel(4);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let accept = async move {
            while let Ok((tcp, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(tcp).await {
                    let _ = streams.send(Ok::<_, std::io::Error>(stream)).await;
                }
            }
        };
        let serve = Server::builder().add_service(service).serve_with_incoming(ReceiverStream::new(incoming));
        let _ = tokio::join!(accept, serve);
    });
    Node { address, enroller, server }
}

const NODE_URI: &str = "spiffe://c/node/1";

async fn good_node(ca: &Arc<Ca>) -> Node {
    node(ca, ca.server(NODE_URI, ExtendedKeyUsagePurpose::ServerAuth)).await
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_token_becomes_an_identity_once() {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    let node = good_node(&ca).await;
    // The first answer is lost: the same request is sent again.
    *node.enroller.refusal.lock() = Some(Status::unavailable("no quorum"));
    let pki = dir.path().join("pki");
    let identity = enrol(&pki, &ca.token(), std::slice::from_ref(&node.address), "").await.unwrap();
    assert_eq!(identity.worker_id, "w-7");
    let asked = node.enroller.asked.lock().clone();
    assert_eq!((asked.len(), asked[0].nonce.len()), (2, 16));
    assert_eq!(asked[0], asked[1]);
    assert_eq!(mode(&pki), 0o700);
    let mut files: Vec<_> = pki.read_dir().unwrap().map(|entry| entry.unwrap()).collect();
    files.sort_by_key(std::fs::DirEntry::file_name);
    assert_eq!(files.iter().map(std::fs::DirEntry::file_name).collect::<Vec<_>>(), ["ca.pem", "cert.pem", "key.pem"]);
    assert!(files.iter().all(|file| mode(&file.path()) == 0o600));

    let loaded = Identity::load(&pki).unwrap().unwrap();
    loaded.check_token("no token at all").unwrap();
    loaded.check_token(&ca.token()).unwrap();
    assert_eq!(loaded.check_token(&Ca::new().token()).unwrap_err().code, 2);
    // And the identity is good for a connection to a node, but not to one of another cluster.
    let config = tls::client_config(loaded).unwrap();
    tls::connect(&node.address, Arc::clone(&config)).await.unwrap();
    let other = Ca::new();
    let foreign = good_node(&other).await;
    tls::connect(&foreign.address, config).await.unwrap_err();
}

async fn refused(ca: &Ca, node: &Node) -> Exit {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    let exit = enrol(&pki, &ca.token(), std::slice::from_ref(&node.address), "").await.err().unwrap();
    assert!(!pki.exists(), "nothing is left behind");
    exit
}

#[tokio::test]
async fn a_refusal_is_one_clear_line_and_leaves_nothing_behind() {
    let ca = Ca::new();
    let node = good_node(&ca).await;
    *node.enroller.refusal.lock() = Some(Status::permission_denied("the token has been used"));
    assert_eq!(refused(&ca, &node).await, Exit::not_allowed("enrolment refused: the token has been used"));
    *node.enroller.refusal.lock() = Some(Status::invalid_argument("csr"));
    assert_eq!(refused(&ca, &node).await.code, 2);
}

#[tokio::test]
async fn another_ca_never_sees_the_token() {
    let (ca, other) = (Ca::new(), Ca::new());
    let node = good_node(&other).await;
    let exit = refused(&ca, &node).await;
    assert_eq!(exit.code, 2);
    assert!(exit.message.contains("does not match"), "{exit}");
    assert!(node.enroller.asked.lock().is_empty());
}

#[tokio::test]
async fn only_a_nodes_server_certificate_is_believed() {
    let ca = Ca::new();
    let cases =
        [("spiffe://c/agent/1", ExtendedKeyUsagePurpose::ServerAuth), (NODE_URI, ExtendedKeyUsagePurpose::ClientAuth)];
    for (uri, usage) in cases {
        let node = node(&ca, ca.server(uri, usage)).await;
        let token = hodei_agent::trust::token::Token::parse(&ca.token()).unwrap();
        let (config, verifier) = tls::enrolling_config(&token).unwrap();
        tls::connect(&node.address, config).await.unwrap_err();
        assert!(verifier.mismatch().is_none(), "the CA is the right one");
    }
}
