//! Certificate signing requests: a public key, and the proof that whoever sends it holds the private one.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKey, PublicKeyData as _,
};
use rustls_pki_types::CertificateSigningRequestDer;

use super::{PkiError, sha256};

/// A request is a key and a signature; what is much larger is none.
const LARGEST: usize = 4096;

/// The request of a party that holds `key`. It asks for nothing but a certificate over the key.
///
/// # Errors
/// Where signing fails.
pub fn create(key: &KeyPair) -> Result<Vec<u8>, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// The SHA-256 of a key pair's SubjectPublicKeyInfo, as the state keeps it.
#[must_use]
pub fn key_hash(key: &KeyPair) -> [u8; 32] {
    sha256(&key.subject_public_key_info())
}

/// A request whose signature is right.
pub struct Request {
    /// The only thing taken from it.
    pub public_key: PublicKey,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key: [u8; 32],
}

impl Request {
    /// Reads and verifies a request.
    ///
    /// # Errors
    /// What was expected instead.
    pub fn verify(der: &[u8]) -> Result<Self, &'static str> {
        if der.len() > LARGEST {
            return Err("a certificate signing request of at most 4096 bytes");
        }
        let parsed = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
            .map_err(|_| "a certificate signing request with a valid signature")?;
        let public_key = parsed.public_key;
        let algorithm = public_key.algorithm();
        if ![&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519].contains(&algorithm) {
            return Err("a key on the curve P-256, P-384 or Ed25519");
        }
        let key = sha256(&public_key.subject_public_key_info());
        Ok(Self { public_key, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_proves_its_key() {
        let key = KeyPair::generate().unwrap();
        let mut der = create(&key).unwrap();
        assert_eq!(Request::verify(&der).unwrap().key, key_hash(&key));
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(Request::verify(&der).is_err());
        assert!(Request::verify(&[]).is_err());
        assert!(Request::verify(&vec![0x30; LARGEST + 1]).is_err());
    }
}
