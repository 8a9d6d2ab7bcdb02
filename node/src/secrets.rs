//! Seals secrets before they go into the replicated state, and opens them on their way to the agent that needs them.
//!
//! The key is made with the cluster, lies 0600 in each voter's data directory (`pki/secrets.key`) and comes to a joining
//! node as the authority's key does; it is nowhere in the state. A sealed value is a random nonce, the ciphertext and a
//! tag (ChaCha20-Poly1305), bound to the cluster, the secret's name and the id of its version: it opens nowhere else.

use std::fmt;

use hodei_state::{
    ids::{ClusterId, SecretId},
    secret::Secret,
};
use rand::RngCore as _;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::pki::sha256;

/// Bytes of the key.
pub const KEY_BYTES: usize = 32;

/// Holds the key.
pub struct Vault {
    cluster: ClusterId,
    key: LessSafeKey,
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    id: [u8; 8],
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").finish_non_exhaustive()
    }
}

/// A value that this key does not open: another key's, of another secret or version, or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// Sealed with another key.
    #[error("it is sealed with another key than this node has")]
    OtherKey,
    /// Anything else. What exactly is nobody's business.
    #[error("it is damaged")]
    Damaged,
}

/// A new key.
#[must_use]
pub fn new_key() -> Zeroizing<[u8; KEY_BYTES]> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    rand::rng().fill_bytes(&mut *key);
    key
}

impl Vault {
    /// With the cluster's key.
    #[must_use]
    pub fn new(cluster: ClusterId, bytes: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &*bytes).expect("the algorithm's keys have this length");
        let [a, b, c, d, e, f, g, h, ..] = sha256(&[b"hodei secrets key", &bytes[..]].concat());
        Self { cluster, key: LessSafeKey::new(key), bytes, id: [a, b, c, d, e, f, g, h] }
    }

    /// For files of mode 0600 and for nodes that enrol, nobody else.
    #[must_use]
    pub fn key(&self) -> &[u8; KEY_BYTES] {
        &self.bytes
    }

    /// Tells this key from others, and nothing else of it.
    #[must_use]
    pub fn key_id(&self) -> [u8; 8] {
        self.id
    }

    /// Seals a value for one version of one secret.
    #[must_use]
    pub fn seal(&self, name: &str, version: SecretId, value: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        rand::rng().fill_bytes(&mut nonce);
        let mut sealed = Vec::with_capacity(NONCE_LEN + value.len() + CHACHA20_POLY1305.tag_len());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(value);
        let (_, text) = sealed.split_at_mut(NONCE_LEN);
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), self.bound_to(name, version), text)
            .expect("a secret is far shorter than what the algorithm can seal");
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// Opens what was sealed for this secret.
    ///
    /// # Errors
    /// See [`NotOpened`].
    pub fn open(&self, secret: &Secret, sealed: Vec<u8>) -> Result<Zeroizing<Vec<u8>>, NotOpened> {
        if secret.key != self.id {
            return Err(NotOpened::OtherKey);
        }
        let mut sealed = Zeroizing::new(sealed);
        let (nonce, text) = sealed.split_at_mut_checked(NONCE_LEN).ok_or(NotOpened::Damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotOpened::Damaged)?;
        let opened = self.key.open_in_place(nonce, self.bound_to(&secret.name, secret.id), text);
        opened.map(|value| Zeroizing::new(value.to_vec())).map_err(|_| NotOpened::Damaged)
    }

    /// Lengths are fixed but for the name's, which comes last: no two bindings are the same bytes.
    fn bound_to(&self, name: &str, version: SecretId) -> Aad<Vec<u8>> {
        let parts: [&[u8]; 4] =
            [b"hodei secret 1", &self.cluster.0.to_be_bytes(), &version.0.to_be_bytes(), name.as_bytes()];
        Aad::from(parts.concat())
    }
}

#[cfg(test)]
mod tests {
    use hodei_state::ids::{Caller, Millis, UserId};

    use super::*;

    fn secret(vault: &Vault, name: &str, id: u128) -> Secret {
        Secret {
            id: SecretId(id),
            name: name.into(),
            version: 1,
            key: vault.key_id(),
            len: 0,
            created_at: Millis(0),
            put_at: Millis(0),
            put_by: Caller::Admin(UserId(1)),
            past: Vec::new(),
        }
    }

    #[test]
    fn a_value_opens_for_its_own_version_in_its_own_cluster_only() {
        let vault = Vault::new(ClusterId(1), new_key());
        let sealed = vault.seal("db", SecretId(1), b"hunter2 hunter2");
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
        assert_ne!(sealed, vault.seal("db", SecretId(1), b"hunter2 hunter2"), "a nonce of its own each time");
        let own = secret(&vault, "db", 1);
        assert_eq!(*vault.open(&own, sealed.clone()).unwrap(), b"hunter2 hunter2");
        for other in [secret(&vault, "db", 2), secret(&vault, "dc", 1)] {
            assert_eq!(vault.open(&other, sealed.clone()), Err(NotOpened::Damaged));
        }
        let elsewhere = Vault::new(ClusterId(2), Zeroizing::new(*vault.key()));
        assert_eq!(elsewhere.open(&own, sealed.clone()), Err(NotOpened::Damaged));
        let other_key = Vault::new(ClusterId(1), new_key());
        assert_eq!(other_key.open(&own, sealed.clone()), Err(NotOpened::OtherKey));
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!(vault.open(&own, damaged), Err(NotOpened::Damaged), "byte {at}");
        }
        for len in 0..sealed.len() {
            assert_eq!(vault.open(&own, sealed[..len].to_vec()), Err(NotOpened::Damaged));
        }
    }
}
