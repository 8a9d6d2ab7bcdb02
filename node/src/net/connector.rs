//! Makes gRPC channels over TLS to an address under a name: the address is a hint, the name is what is verified.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, sync::watch, time};
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

/// Bound on TCP connect plus TLS handshake.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Connects to one address and verifies one name, with the newest of the watched configurations.
#[derive(Clone)]
pub struct Connector {
    address: Arc<str>,
    name: ServerName<'static>,
    config: watch::Receiver<Arc<ClientConfig>>,
}

impl Connector {
    /// `address` is host:port; `name` is what the peer's certificate must bear.
    ///
    /// # Errors
    /// Where `name` is no DNS name.
    pub fn new(address: &str, name: &str, config: watch::Receiver<Arc<ClientConfig>>) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Self { address: address.into(), name, config })
    }

    async fn connect(self) -> io::Result<TlsStream<TcpStream>> {
        let config = self.config.borrow().clone();
        let connecting = async {
            let tcp = TcpStream::connect(&*self.address).await?;
            tcp.set_nodelay(true)?;
            tokio_rustls::TlsConnector::from(config).connect(self.name, tcp).await
        };
        match time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no connection within a second")),
        }
    }
}

impl Service<http::Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(TokioIo::new) })
    }
}

/// The settings that every channel has: a dead peer is noticed by keepalives, windows fit a LAN.
///
/// # Errors
/// Where `address` is no authority of a URI.
pub fn endpoint(address: &str) -> io::Result<Endpoint> {
    // Plain `http`: TLS is the connector's business.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    Ok(endpoint
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20))
}

/// A channel that connects when it is first used, and again when the connection broke.
///
/// # Errors
/// Where address or name are malformed.
pub fn lazy_channel(address: &str, name: &str, config: watch::Receiver<Arc<ClientConfig>>) -> io::Result<Channel> {
    Ok(endpoint(address)?.connect_with_connector_lazy(Connector::new(address, name, config)?))
}

/// A channel that is connected.
///
/// # Errors
/// Where no connection came about; the request that it is for was certainly not sent.
pub async fn connect(address: &str, name: &str, config: Arc<ClientConfig>) -> io::Result<Channel> {
    let connector = Connector::new(address, name, watch::channel(config).1)?;
    endpoint(address)?.connect_with_connector(connector).await.map_err(|error| io::Error::other(root_cause(&error)))
}

/// The innermost error: `Connection refused`, `invalid peer certificate: …` rather than `transport error`.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
