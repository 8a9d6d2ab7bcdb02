//! What a node proves itself with, and what it believes others by: the files in `pki/`.

use std::sync::Arc;

use hodei_state::ids::{Caller, ClusterId, NodeId};
use rcgen::KeyPair;
use rustls::{ClientConfig, ServerConfig};
use zeroize::Zeroizing;

use super::{
    PkiError,
    ca::Authority,
    request,
    subject::{Certified, Subject},
    token,
};
use crate::{
    cli::exit::Failure,
    data_dir::{DataDir, Identity},
    durable,
    net::tls,
    secrets::{self, Vault},
    server::listener,
};

/// Where the key of the cluster's secrets lies.
pub const SECRETS_KEY: &str = "pki/secrets.key";

/// Certificates, keys and authorities of a node.
pub struct Credentials {
    /// Issues certificates.
    pub authority: Arc<Authority>,
    /// Seals and opens secrets.
    pub vault: Arc<Vault>,
    /// SHA-256 of the node's public key.
    pub key: [u8; 32],
    chain: String,
    key_pem: String,
}

impl Credentials {
    /// Reads and checks the files. A certificate of which less than a third of its life is left is issued anew: the
    /// node holds the authority's key.
    ///
    /// # Errors
    /// Bad input, where the directory belongs to another cluster or node; otherwise what is missing or damaged.
    pub fn load(dir: &DataDir, identity: &Identity) -> Result<Self, Failure> {
        let read = |name: &str| {
            dir.read(name)?.ok_or_else(|| Failure::other(format!("{} is missing", dir.join(name).display())))
        };
        let (ca, ca_key) = (read("pki/ca.pem")?, read("pki/ca.key")?);
        let (chain, key_pem) = (read("pki/node.pem")?, read("pki/node.key")?);
        let damaged = |error: PkiError| Failure::other(format!("{}: {error}", dir.join("pki").display()));
        let authority = Authority::load(&ca, &ca_key).map_err(damaged)?;
        let key_pair = KeyPair::from_pem(&key_pem).map_err(|error| damaged(error.into()))?;
        let key = request::key_hash(&key_pair);
        let subject = node(identity.cluster_id, identity.node_id);
        let leaf = tls::certificates("node.pem", chain.as_bytes()).map_err(|error| damaged(error.into()))?.remove(0);
        let certified = Certified::read(&leaf).map_err(damaged)?;
        if certified.subject != subject || certified.key != key {
            return Err(Failure::bad_input(format!(
                "{} does not belong to {subject}: its certificate is of {}",
                dir.path().display(),
                certified.subject
            )));
        }
        let chain = if certified.is_due(crate::clock::unix_seconds()) {
            let fresh = authority.issue(subject, &key_pair).map_err(damaged)?;
            dir.write("pki/node.pem", fresh.as_bytes(), durable::PUBLIC)?;
            fresh
        } else {
            chain
        };
        let vault = Arc::new(vault(dir, identity)?);
        Ok(Self { authority: Arc::new(authority), vault, key, chain, key_pem })
    }

    /// How this node serves.
    ///
    /// # Errors
    /// Where the files do not fit together.
    pub fn server_config(&self) -> Result<ServerConfig, PkiError> {
        let roots = tls::roots(tls::certificates("ca.pem", self.authority.pem().as_bytes())?)?;
        let chain = tls::certificates("node.pem", self.chain.as_bytes())?;
        let key = tls::private_key(self.key_pem.as_bytes())?;
        Ok(listener::server_config(roots, chain, key).map_err(tls::TlsError::from)?)
    }

    /// How this node dials its peers.
    ///
    /// # Errors
    /// Where the files do not fit together.
    pub fn client_config(&self) -> Result<ClientConfig, PkiError> {
        let own = Some((self.chain.as_bytes(), self.key_pem.as_bytes()));
        Ok(tls::client_config(self.authority.pem().as_bytes(), own)?)
    }
}

/// What `pki/secrets.key` holds: the key in base 32.
#[must_use]
pub fn secrets_key_text(key: &[u8; secrets::KEY_BYTES]) -> Zeroizing<String> {
    Zeroizing::new(token::base32(key))
}

fn vault(dir: &DataDir, identity: &Identity) -> Result<Vault, Failure> {
    let path = dir.join(SECRETS_KEY);
    let text = dir.read(SECRETS_KEY)?.ok_or_else(|| Failure::other(format!("{} is missing", path.display())))?;
    let key = token::from_base32(Zeroizing::new(text).trim());
    let key = key.ok_or_else(|| Failure::other(format!("{} is damaged", path.display())))?;
    Ok(Vault::new(identity.cluster_id, Zeroizing::new(key)))
}

/// A node as a party of its cluster.
#[must_use]
pub fn node(cluster: ClusterId, id: NodeId) -> Subject {
    Subject { cluster, caller: Caller::Node(id) }
}
