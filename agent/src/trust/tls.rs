//! Connections to nodes. Every node is dialled by the name [`NODE_NAME`], whatever its address.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, crypto::ring};
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::{
    identity::Identity,
    pin::{NODE_NAME, NodeVerifier},
    token::Token,
};
use crate::{error::Exit, session::link::Dial};

/// To reach a node, and again for the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A node that does not answer a ping is given up after this and [`PING_TIMEOUT`].
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// TLS with the agent's identity. The newest configuration is used for each new connection, so that a renewed
/// certificate takes effect without a restart.
#[derive(Clone)]
pub struct TlsDialer {
    config: watch::Receiver<Arc<ClientConfig>>,
}

impl TlsDialer {
    /// Dials with what the channel holds.
    #[must_use]
    pub fn new(config: watch::Receiver<Arc<ClientConfig>>) -> Self {
        Self { config }
    }
}

impl Dial for TlsDialer {
    async fn dial(&self, address: &str) -> io::Result<Channel> {
        let config = Arc::clone(&self.config.borrow());
        connect(address, config).await
    }
}

/// For an agent with an identity.
pub fn client_config(identity: Identity) -> Result<Arc<ClientConfig>, Exit> {
    let failed = |error: String| Exit::bad_input(format!("identity: {error}"));
    let provider = Arc::new(ring::default_provider());
    let verifier = NodeVerifier::with_roots(identity.ca, Arc::clone(&provider)).map_err(|e| failed(e.to_string()))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(identity.chain, identity.key)
        .map_err(|e| failed(e.to_string()))?;
    Ok(over_http2(config))
}

/// For an agent with a token only; the verifier tells afterwards whether the hash was wrong.
pub fn enrolling_config(token: &Token) -> Result<(Arc<ClientConfig>, Arc<NodeVerifier>), Exit> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(NodeVerifier::with_token(token.clone(), Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Exit::other(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
        .with_no_client_auth();
    Ok((over_http2(config), verifier))
}

fn over_http2(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A connection whose handshake has succeeded.
pub async fn connect(address: &str, config: Arc<ClientConfig>) -> io::Result<Channel> {
    let stream = handshake(address, config).await?;
    over(TokioIo::new(stream)).await
}

async fn handshake(address: &str, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no connection within a second");
    let tcp = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.map_err(late)??;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from(NODE_NAME).map_err(io::Error::other)?;
    timeout(CONNECT_TIMEOUT, TlsConnector::from(config).connect(name, tcp)).await.map_err(late)?
}

/// HTTP/2 over an established connection. The channel never connects again: whoever holds it learns of its end.
pub async fn over<S>(stream: TokioIo<S>) -> io::Result<Channel>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let mut once = Some(stream);
    let endpoint = Endpoint::from_shared(format!("http://{NODE_NAME}"))
        .map_err(io::Error::other)?
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    let connector = service_fn(move |_| {
        let stream = once.take();
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    endpoint.connect_with_connector(connector).await.map_err(io::Error::other)
}
