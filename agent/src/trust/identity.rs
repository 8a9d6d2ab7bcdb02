//! The agent's identity: `pki/{ca.pem,cert.pem,key.pem}`, each 0600 and written whole. The certificate comes last:
//! where it is, the directory is prepared.

use std::path::Path;

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::token::Token;
use crate::{disk, error::Exit};

/// The CA bundle.
pub const CA: &str = "ca.pem";
/// The certificate, leaf first.
pub const CERT: &str = "cert.pem";
/// The key.
pub const KEY: &str = "key.pem";

/// A prepared agent.
pub struct Identity {
    /// Whom it believes.
    pub ca: Vec<CertificateDer<'static>>,
    /// Who it is, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// Its worker's id, from the certificate.
    pub worker_id: String,
}

impl Identity {
    /// Reads the identity; `None` where the directory is not prepared.
    pub fn load(pki: &Path) -> Result<Option<Self>, Exit> {
        let read = |name: &str| {
            let path = pki.join(name);
            disk::read_if_there(&path).map_err(|error| Exit::bad_input(format!("{}: {error}", path.display())))
        };
        let Some(cert) = read(CERT)? else { return Ok(None) };
        let (Some(ca), Some(key)) = (read(CA)?, read(KEY)?) else {
            return Err(Exit::bad_input(format!("{}: a certificate without its key or CA", pki.display())));
        };
        Self::from_pem(&ca, &cert, &key).map(Some).map_err(|what| Exit::bad_input(format!("{}: {what}", pki.display())))
    }

    /// Checks what a node or the disk gave.
    pub fn from_pem(ca: &[u8], cert: &[u8], key: &[u8]) -> Result<Self, &'static str> {
        let certificates = |pem: &[u8]| -> Option<Vec<CertificateDer<'static>>> {
            let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().ok()?;
            (!found.is_empty()).then_some(found)
        };
        let ca = certificates(ca).ok_or("no CA certificate in PEM")?;
        let chain = certificates(cert).ok_or("no certificate in PEM")?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| "no private key in PEM")?;
        let worker_id = worker_id(&chain[0]).ok_or("the certificate is not an agent's")?;
        Ok(Self { ca, chain, key, worker_id })
    }

    /// A prepared directory ignores a token's secret, but one for another cluster is a mistake worth telling.
    pub fn check_token(&self, text: &str) -> Result<(), Exit> {
        match Token::parse(text) {
            Ok(token) if !self.ca.iter().any(|der| token.names(der)) => {
                Err(Exit::bad_input("the token names another CA than the one in the data directory"))
            }
            _ => Ok(()),
        }
    }
}

/// The id in `spiffe://<cluster>/agent/<id>`.
fn worker_id(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| {
        let GeneralName::URI(uri) = name else { return None };
        let (_, rest) = uri.strip_prefix("spiffe://")?.split_once('/')?;
        let id = rest.strip_prefix("agent/")?;
        (!id.is_empty()).then(|| id.to_owned())
    })
}
