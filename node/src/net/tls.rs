//! TLS configuration of clients.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, client::WebPkiServerVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// The name by which clients dial any node. Peers dial `<id>.node.hodei.internal`.
pub const ANY_NODE: &str = "node.hodei.internal";

/// The name by which a node is dialled where it has to be that node and no other.
#[must_use]
pub fn node_name(id: u64) -> String {
    format!("{id}.{ANY_NODE}")
}

/// Why PEM files do not make a configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The PEM text is damaged or of another kind.
    #[error("{what}: {source}")]
    Pem {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        source: rustls_pki_types::pem::Error,
    },
    /// No certificate in it.
    #[error("{0}: no certificate in it")]
    Empty(&'static str),
    /// rustls does not take it, for example because key and certificate do not belong together.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    /// The authorities do not make a verifier.
    #[error(transparent)]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// A client that trusts exactly these authorities and shows this certificate (PEM: chain and key) where it has one.
///
/// # Errors
/// See [`TlsError`].
pub fn client_config(ca: &[u8], own: Option<(&[u8], &[u8])>) -> Result<ClientConfig, TlsError> {
    let verifier = WebPkiServerVerifier::builder(Arc::new(roots(certificates("ca.pem", ca)?)?)).build()?;
    let builder = ClientConfig::builder().with_webpki_verifier(verifier);
    let mut config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(certificates("cert.pem", chain)?, private_key(key)?)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The authorities as trust anchors.
///
/// # Errors
/// Where one is no certificate.
pub fn roots(authorities: Vec<CertificateDer<'static>>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority)?;
    }
    Ok(roots)
}

/// All certificates in a PEM text, at least one.
///
/// # Errors
/// Where it is damaged or holds none.
pub fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { what, source })?;
    if found.is_empty() { Err(TlsError::Empty(what)) } else { Ok(found) }
}

/// The private key in a PEM text.
///
/// # Errors
/// Where there is none.
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|source| TlsError::Pem { what: "key.pem", source })
}
