//! Whom a certificate speaks of.

use std::{fmt, str::FromStr};

use hodei_state::ids::{Caller, ClusterId, Role, UserId, WorkerId};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use super::PkiError;

/// A party of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Of which cluster.
    pub cluster: ClusterId,
    /// Who.
    pub caller: Caller,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}", self.cluster, self.caller)
    }
}

/// The text is no identity of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotASubject;

impl FromStr for Subject {
    type Err = NotASubject;

    fn from_str(text: &str) -> Result<Self, NotASubject> {
        let mut parts = text.strip_prefix("spiffe://").ok_or(NotASubject)?.split('/');
        let (Some(cluster), Some(role), Some(id), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotASubject);
        };
        let cluster = cluster.parse().map_err(|_| NotASubject)?;
        let caller = match role.parse().map_err(|_| NotASubject)? {
            Role::Node => Caller::Node(node_id(id)?),
            Role::Agent => Caller::Agent(id.parse::<WorkerId>().map_err(|_| NotASubject)?),
            Role::User => Caller::User(id.parse::<UserId>().map_err(|_| NotASubject)?),
            Role::Admin => Caller::Admin(id.parse::<UserId>().map_err(|_| NotASubject)?),
        };
        let subject = Self { cluster, caller };
        // One spelling per identity: no leading zeros, no capitals.
        if subject.to_string() == text { Ok(subject) } else { Err(NotASubject) }
    }
}

fn node_id(text: &str) -> Result<u64, NotASubject> {
    text.parse().ok().filter(|&id| id > 0).ok_or(NotASubject)
}

/// What is believed of a certificate whose chain has been verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certified {
    /// Whom it speaks of.
    pub subject: Subject,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key: [u8; 32],
    /// Unix seconds before which it is void.
    pub not_before: i64,
    /// Unix seconds from which on it is void.
    pub not_after: i64,
}

impl Certified {
    /// Reads a certificate. Does not verify it.
    ///
    /// # Errors
    /// Where it has not exactly one URI, or one that is no identity of Hodei.
    pub fn read(der: &[u8]) -> Result<Self, PkiError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| PkiError::Certificate("not a certificate"))?;
        let names = certificate
            .subject_alternative_name()
            .ok()
            .flatten()
            .ok_or(PkiError::Certificate("a certificate without names"))?;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(PkiError::Certificate("a certificate that does not name exactly one identity"));
        };
        let subject = uri.parse().map_err(|_| PkiError::Certificate("a certificate of another kind of identity"))?;
        Ok(Self {
            subject,
            key: super::sha256(certificate.public_key().raw),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }

    /// Whether less than a third of its life is left at this Unix time.
    #[must_use]
    pub fn is_due(&self, now: i64) -> bool {
        self.not_after - now < (self.not_after - self.not_before) / 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b";

    #[test]
    fn every_role_has_one_spelling() {
        for rest in ["node/3", &format!("agent/{CLUSTER}"), &format!("user/{CLUSTER}"), &format!("admin/{CLUSTER}")] {
            let text = format!("spiffe://{CLUSTER}/{rest}");
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
        for rest in ["node/0", "node/03", "node/+3", "node/3/", "node", "root/3", "agent/3", "", "node/3?x", "node//3"]
        {
            assert_eq!(format!("spiffe://{CLUSTER}/{rest}").parse::<Subject>(), Err(NotASubject), "{rest}");
        }
        assert!(format!("spiffe://{}/node/3", CLUSTER.to_uppercase()).parse::<Subject>().is_err());
        assert!(format!("https://{CLUSTER}/node/3").parse::<Subject>().is_err());
    }
}
