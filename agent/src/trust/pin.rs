//! Whom the agent takes for a node. In both cases the full chain, the handshake's signature, server usage, validity,
//! the name and a node's URI (`spiffe://<cluster>/node/<id>`) are verified; they differ in where the CA comes from:
//! from the identity, or, while the agent enrols, from the server's own chain, if it has the hash in the token.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::token::Token;

/// The name by which every node is dialled.
pub const NODE_NAME: &str = "node.hodei.internal";

/// Where the CA comes from.
#[derive(Debug)]
enum Trust {
    /// Known.
    Roots(Arc<WebPkiServerVerifier>),
    /// The one that this token names.
    Pinned(Token),
}

/// See the module.
#[derive(Debug)]
pub struct NodeVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
    seen: Mutex<Option<PinMismatch>>,
}

/// The server showed no CA with the hash in the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node's CA does not match the hash in the token: another cluster, or somebody in between")]
pub struct PinMismatch;

impl NodeVerifier {
    /// For an agent that holds an identity.
    pub fn with_roots(
        roots: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::client::VerifierBuilderError> {
        let inner = webpki(roots, &provider)?;
        Ok(Self { trust: Trust::Roots(inner), provider, seen: Mutex::new(None) })
    }

    /// For an agent that has nothing but a token.
    #[must_use]
    pub fn with_token(token: Token, provider: Arc<CryptoProvider>) -> Self {
        Self { trust: Trust::Pinned(token), provider, seen: Mutex::new(None) }
    }

    /// What the last handshake failed for, where it was the hash.
    #[must_use]
    pub fn mismatch(&self) -> Option<PinMismatch> {
        *self.seen.lock()
    }

    fn verifier(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<WebPkiServerVerifier>, Error> {
        match &self.trust {
            Trust::Roots(verifier) => Ok(Arc::clone(verifier)),
            Trust::Pinned(token) => {
                let Some(ca) = chain.iter().find(|cert| token.names(cert)) else {
                    *self.seen.lock() = Some(PinMismatch);
                    return Err(Error::General(PinMismatch.to_string()));
                };
                webpki(vec![ca.clone().into_owned()], &self.provider).map_err(|e| Error::General(e.to_string()))
            }
        }
    }
}

fn webpki(
    roots: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, rustls::client::VerifierBuilderError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots);
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider)).build()
}

/// Whether a certificate is a node's.
fn is_node(der: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| matches!(name, GeneralName::URI(uri) if is_node_uri(uri)))
}

fn is_node_uri(uri: &str) -> bool {
    let parts: Vec<_> = uri.strip_prefix("spiffe://").unwrap_or_default().split('/').collect();
    matches!(parts[..], [cluster, "node", id] if !cluster.is_empty() && id.parse::<u64>().is_ok())
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = self.verifier(intermediates)?;
        let verified = verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        if is_node(end_entity) {
            Ok(verified)
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nodes_uri_will_do() {
        assert!(is_node_uri("spiffe://0199/node/3"));
        for wrong in ["spiffe://0199/agent/3", "spiffe:///node/3", "spiffe://0199/node/", "spiffe://c/node/1/x", "x"] {
            assert!(!is_node_uri(wrong), "{wrong}");
        }
    }
}
