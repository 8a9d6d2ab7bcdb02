//! Who may be believed: the cluster's authority, the certificates it issues, and the token that begins it all.
//!
//! - An **authority** ([`ca`]) is made by `init`. Every voter holds its key and can issue.
//! - A **subject** ([`subject`]) is a cluster and a caller; it stands in a certificate as `spiffe://<cluster>/<role>/<id>`.
//!   Nodes also bear the DNS names they are dialled by. Nothing else of a certificate is ever believed.
//! - A **token** ([`token`]) lets a party without a certificate in: it names the authority by its hash, so that the party
//!   can verify the node before it shows the secret ([`pin`]), and the role it grants.
//! - A **request** ([`request`]) is the party's public key, signed by itself. Certificates are built from fresh
//!   parameters; of the request only the key is used.
//!
//! Deliberately missing for now: renewal over the wire, revocation of single keys, a second authority. Their seams: the
//! state holds a bundle of authorities and the hash of every key that was certified; files and configuration take bundles.

pub mod ca;
pub mod credentials;
pub mod pin;
pub mod request;
pub mod subject;
#[cfg(test)]
mod tests;
pub mod token;

use sha2::{Digest as _, Sha256};

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Why something of the PKI did not work.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key or certificate could not be made or read.
    #[error("{0}")]
    Rcgen(#[from] rcgen::Error),
    /// Not a PEM text, or not of the expected kind.
    #[error(transparent)]
    Pem(#[from] crate::net::tls::TlsError),
    /// A certificate that is none of ours.
    #[error("{0}")]
    Certificate(&'static str),
}
