//! The authority: makes itself, and issues certificates from fresh parameters.

use hodei_state::ids::{Caller, ClusterId};
use rand::RngCore as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use time::{Duration, OffsetDateTime};

use super::{PkiError, sha256, subject::Subject};
use crate::net::tls;

/// A party's clock may be this far behind the issuer's.
const BACKDATED: Duration = Duration::hours(2);
/// Nodes and agents. They renew by themselves.
const MACHINE_LIFE: Duration = Duration::days(7);
/// Users and administrators, whose certificates nobody renews for them.
const PERSON_LIFE: Duration = Duration::days(365);
/// The authority itself.
const AUTHORITY_LIFE: Duration = Duration::days(3650);

/// The cluster's authority, with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
}

impl Authority {
    /// Makes the authority of a new cluster.
    ///
    /// # Errors
    /// Where no key can be made.
    pub fn create(cluster: ClusterId) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = fresh(AUTHORITY_LIFE);
        params.distinguished_name.push(DnType::CommonName, format!("Hodei authority of {cluster}"));
        // It issues leaves only.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Self::load(&certificate.pem(), &key.serialize_pem())
    }

    /// Reads the authority from its files.
    ///
    /// # Errors
    /// Where they are damaged or do not belong together.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem)?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|source| tls::TlsError::Pem { what: "ca.pem", source })?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|_| PkiError::Certificate("not a certificate"))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(PkiError::Certificate("the authority's key does not belong to its certificate"));
        }
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            certificate,
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        })
    }

    /// A certificate for `subject` over `public_key`, PEM, the authority's own behind it: a party that knows only the
    /// hash of the authority can verify the chain.
    ///
    /// # Errors
    /// Where signing fails.
    pub fn issue(&self, subject: Subject, public_key: &impl PublicKeyData) -> Result<String, PkiError> {
        let leaf = leaf(subject)?.signed_by(public_key, &self.issuer)?;
        Ok(format!("{}{}", leaf.pem(), self.certificate_pem))
    }

    /// SHA-256 of the certificate, as in tokens.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.certificate)
    }

    /// The certificate.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The key, PEM. For files of mode 0600 and for nodes that enrol, nobody else.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }
}

fn leaf(subject: Subject) -> Result<CertificateParams, PkiError> {
    let machine = matches!(subject.caller, Caller::Node(_) | Caller::Agent(_));
    let mut params = fresh(if machine { MACHINE_LIFE } else { PERSON_LIFE });
    params.distinguished_name.push(DnType::CommonName, subject.caller.to_string());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::URI(subject.to_string().try_into()?)];
    if let Caller::Node(id) = subject.caller {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        for name in [tls::node_name(id), tls::ANY_NODE.to_owned()] {
            params.subject_alt_names.push(SanType::DnsName(name.try_into()?));
        }
    }
    Ok(params)
}

/// Parameters with a random serial number and a life that begins a little in the past.
fn fresh(life: Duration) -> CertificateParams {
    let mut serial = [0; 16];
    rand::rng().fill_bytes(&mut serial);
    // A serial number is a positive integer whose first byte is not zero (RFC 5280, 4.1.2.2).
    serial[0] = (serial[0] & 0x7f) | 0x40;
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = now - BACKDATED;
    params.not_after = now + life;
    params.distinguished_name = DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    params
}
