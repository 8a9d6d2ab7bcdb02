//! Makes gRPC channels over TLS to an address under a name: the address is a hint, the name is what is verified.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, UNIX_EPOCH},
};

use hyper_util::rt::TokioIo;
use rustls::{AlertDescription, CertificateError, ClientConfig};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::{net::TcpStream, sync::watch, time};
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use super::stream::Connection;

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

    async fn connect(self) -> io::Result<Connection<()>> {
        let config = self.config.borrow().clone();
        let connecting = async {
            let tcp = TcpStream::connect(&*self.address).await?;
            tcp.set_nodelay(true)?;
            let tls = tokio_rustls::TlsConnector::from(config).connect(self.name, tcp).await?;
            Connection::new(tls, ()).accepted().await
        };
        match time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no connection within a second")),
        }
    }
}

impl Service<http::Uri> for Connector {
    type Response = TokioIo<Connection<()>>;
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

/// Why there is no connection. The request that it is for was certainly not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The other side does not accept the certificate that was shown, or wants one.
    #[error("{}", not_accepted(*.0))]
    Identity(AlertDescription),
    /// The other side's certificate is of an authority that is not trusted.
    #[error("its certificate is of another cluster")]
    Foreign,
    /// Nobody there, or not whom it should be.
    #[error("{0}")]
    Other(String),
}

/// A channel that is connected.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(address: &str, name: &str, config: Arc<ClientConfig>) -> Result<Channel, ConnectError> {
    let other = |error: io::Error| ConnectError::Other(error.to_string());
    let connector = Connector::new(address, name, watch::channel(config).1).map_err(other)?;
    let endpoint = endpoint(address).map_err(other)?;
    endpoint.connect_with_connector(connector).await.map_err(|error| match tls_error(&error) {
        Some(rustls::Error::AlertReceived(alert)) if is_about_identity(alert) => ConnectError::Identity(*alert),
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            ConnectError::Foreign
        }
        Some(rustls::Error::InvalidCertificate(certificate)) => {
            ConnectError::Other(out_of_time(certificate).unwrap_or_else(|| root_cause(&error)))
        }
        _ => ConnectError::Other(root_cause(&error)),
    })
}

/// What became of the certificate that was shown.
fn not_accepted(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => {
            "this identity has expired, or this machine's clock and the node's are far apart".to_owned()
        }
        other => format!("this identity is not accepted: {other:?}"),
    }
}

/// That a certificate is not valid at what this machine takes for now, which may be the machine's fault.
fn out_of_time(error: &CertificateError) -> Option<String> {
    let date = |at: &UnixTime| {
        let at = UNIX_EPOCH.checked_add(Duration::from_secs(at.as_secs()))?;
        Some(humantime::format_rfc3339_seconds(at))
    };
    let (time, what, since) = match error {
        CertificateError::ExpiredContext { time, not_after } => (time, "expired at", not_after),
        CertificateError::NotValidYetContext { time, not_before } => (time, "is not valid before", not_before),
        _ => return None,
    };
    Some(format!("its certificate {what} {}, and this machine's clock says {}", date(since)?, date(time)?))
}

/// The innermost error: `Connection refused`, `invalid peer certificate: …` rather than `transport error`.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// What TLS says, where that is what went wrong.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        // An io::Error hides the error that it wraps from `source`.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = wrapped.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(tls) = tls.or_else(|| error.downcast_ref()) {
            return Some(tls);
        }
        next = error.source();
    }
    None
}

fn is_about_identity(alert: &AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError
            | A::CertificateRequired
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_told_with_both_dates() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let expired = CertificateError::ExpiredContext { time: at(1_000_000_000), not_after: at(0) };
        let early = CertificateError::NotValidYetContext { time: at(0), not_before: at(u64::MAX) };
        assert_eq!(
            out_of_time(&expired).as_deref(),
            Some("its certificate expired at 1970-01-01T00:00:00Z, and this machine's clock says 2001-09-09T01:46:40Z")
        );
        assert_eq!(out_of_time(&early), None, "no date; the transport's words are kept");
        assert!(ConnectError::Identity(AlertDescription::CertificateExpired).to_string().contains("clock"));
    }
}
