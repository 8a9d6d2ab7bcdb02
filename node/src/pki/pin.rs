//! Verifies a node by the hash of its cluster's authority, for a party that has nothing but a token.
//!
//! Before anything secret is sent, all of this has held: the chain that the node shows contains the authority with that
//! hash; the node's certificate is issued by exactly this authority, valid now, for servers, under the name by which
//! clients dial; it names a node of a cluster; and the handshake is signed with its key.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{sha256, subject::Certified};

/// The node does not belong to the cluster that the token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node's authority is not the one that the token names")]
pub struct OtherAuthority;

/// The certificate names no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate shown is not a node's")]
pub struct NotANode;

/// A [`ServerCertVerifier`] that trusts one authority, known by its hash.
pub struct PinnedAuthority {
    hash: [u8; 32],
    crypto: Arc<CryptoProvider>,
    mismatch: OnceLock<()>,
}

impl PinnedAuthority {
    /// Trusts the authority with this SHA-256 of its DER.
    #[must_use]
    pub fn new(hash: [u8; 32]) -> Arc<Self> {
        let crypto = Arc::new(ring::default_provider());
        Arc::new(Self { hash, crypto, mismatch: OnceLock::new() })
    }

    /// A client that believes this verifier and shows no certificate.
    #[must_use]
    pub fn client_config(self: &Arc<Self>) -> ClientConfig {
        let mut config =
            ClientConfig::builder().dangerous().with_custom_certificate_verifier(self.clone()).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// Whether a node showed a chain without the pinned authority.
    #[must_use]
    pub fn mismatched(&self) -> bool {
        self.mismatch.get().is_some()
    }
}

impl fmt::Debug for PinnedAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedAuthority").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        node: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authority) = others.iter().find(|other| sha256(other) == self.hash) else {
            let _ = self.mismatch.set(());
            return Err(Error::Other(OtherError(Arc::new(OtherAuthority))));
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.crypto.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(node, others, name, ocsp, now)?;
        match Certified::read(node).map(|certified| certified.subject.caller) {
            Ok(hodei_state::ids::Caller::Node(_)) => {}
            _ => return Err(Error::Other(OtherError(Arc::new(NotANode)))),
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.crypto.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.crypto.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}
