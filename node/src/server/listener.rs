//! Accepts TLS connections and hands them to the gRPC server.
//!
//! Each connection is accepted with the newest configuration of a watch channel, so that one swap replaces certificate,
//! authorities and all. The handshake runs in a task of its own, with a time limit; the number of connections is
//! bounded, and that of connections without a certificate (they can only enrol) much more so.

use std::{io, sync::Arc, time::Duration};

use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::{net::stream::Connection, pki::subject::Certified};

/// Bound on a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections at once; beyond that, new ones wait in the kernel's queue.
const CONNECTIONS: usize = 16_384;
/// Connections at once without a certificate; beyond that, new ones are closed.
const ANONYMOUS: usize = 128;

/// What is known of a connection; in the extensions of each of its requests.
#[derive(Clone, Copy, Debug)]
pub struct ConnInfo {
    /// Whom the client's certificate speaks of; its chain is verified. `None`: it showed none.
    pub certified: Option<Certified>,
}

/// The TLS configuration of a node: its certificate, and client certificates of these authorities where one is shown.
/// Whether one is needed is decided per call.
///
/// # Errors
/// Where key and certificate do not fit, or there is no authority.
pub fn server_config(
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Connections as they come, until `stop`. The task that accepts them ends with `stop` or with the stream.
pub fn incoming(
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Connection<Client>>> {
    let (sender, receiver) = mpsc::channel(64);
    let accepting = Accepting {
        listener,
        config,
        connections: Arc::new(Semaphore::new(CONNECTIONS)),
        anonymous: Arc::new(Semaphore::new(ANONYMOUS)),
    };
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = sender.closed() => {}
            () = accepting.run(&sender) => {}
        }
    });
    ReceiverStream::new(receiver)
}

struct Accepting {
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
    connections: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
}

impl Accepting {
    /// Returns when the semaphore is closed, which it never is. Handshakes under way end with this future.
    async fn run(self, sender: &mpsc::Sender<io::Result<Connection<Client>>>) {
        let mut handshakes = JoinSet::new();
        while let Ok(permit) = self.connections.clone().acquire_owned().await {
            while handshakes.try_join_next().is_some() {}
            let (tcp, remote) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely; others will be closed meanwhile.
                    tracing::warn!(%error, "cannot accept a connection");
                    time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let acceptor = TlsAcceptor::from(self.config.borrow().clone());
            let (anonymous, sender) = (self.anonymous.clone(), sender.clone());
            handshakes.spawn(async move {
                match time::timeout(HANDSHAKE, handshake(acceptor, tcp, permit, &anonymous)).await {
                    // The receiver is gone when the server stops.
                    Ok(Ok(connection)) => drop(sender.send(Ok(connection)).await),
                    Ok(Err(error)) => tracing::info!(%remote, %error, "TLS handshake refused"),
                    Err(_) => tracing::info!(%remote, "TLS handshake timed out"),
                }
            });
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    permit: OwnedSemaphorePermit,
    anonymous: &Arc<Semaphore>,
) -> io::Result<Connection<Client>> {
    tcp.set_nodelay(true)?;
    let tls = acceptor.accept(tcp).await?;
    let shown = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certified = shown.map(|leaf| Certified::read(leaf)).transpose().map_err(io::Error::other)?;
    let mut permits = vec![permit];
    if certified.is_none() {
        let permit = anonymous.clone().try_acquire_owned();
        permits.push(permit.map_err(|_| io::Error::other("too many connections without a certificate"))?);
    }
    Ok(Connection::new(tls, Client { info: ConnInfo { certified }, _permits: permits }))
}

/// What belongs to a client's connection.
pub struct Client {
    info: ConnInfo,
    /// Given back when the connection ends.
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Connected for Connection<Client> {
    type ConnectInfo = ConnInfo;

    fn connect_info(&self) -> ConnInfo {
        self.with.info
    }
}
