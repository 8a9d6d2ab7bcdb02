//! The text of a token: `hodei1.<role>.<hash of the authority>.<secret>`, hash and secret in lower-case base 32.
//!
//! The secret exists in this text alone; the cluster keeps its hash.

use std::{fmt, str::FromStr};

use hodei_state::ids::Role;
use rand::RngCore as _;

use super::sha256;

/// Bytes of a secret: beyond guessing.
const SECRET_BYTES: usize = 32;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A token as its holder has it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What it grants.
    pub role: Role,
    /// SHA-256 of the authority's certificate (DER).
    pub authority: [u8; 32],
    secret: Secret,
}

/// What the holder knows and the cluster does not.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; SECRET_BYTES];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// What the cluster keeps of it.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.0)
    }
}

impl Token {
    /// Puts a token together.
    #[must_use]
    pub fn new(role: Role, authority: [u8; 32], secret: Secret) -> Self {
        Self { role, authority, secret }
    }

    /// What the cluster knows its secret by.
    #[must_use]
    pub fn secret_hash(&self) -> [u8; 32] {
        self.secret.hash()
    }

    /// The token's text. There is no `Display`: it shall not get into a log by accident.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("hodei1.{}.{}.{}", self.role, base32(&self.authority), base32(&self.secret.0))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hodei1.{}.{}.<secret>", self.role, base32(&self.authority))
    }
}

/// The text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a token such as `hodei-node token create` prints: hodei1.ROLE.HASH.SECRET")]
pub struct NotAToken;

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let mut parts = text.trim().split('.');
        let (Some("hodei1"), Some(role), Some(authority), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotAToken);
        };
        Ok(Self {
            role: role.parse().map_err(|_| NotAToken)?,
            authority: from_base32(authority).ok_or(NotAToken)?,
            secret: Secret(from_base32(secret).ok_or(NotAToken)?),
        })
    }
}

/// RFC 4648 base 32 in lower case, without padding.
#[must_use]
pub fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut buffer, mut bits) = (0u32, 0);
    for &byte in bytes {
        buffer = (buffer << 8) | u32::from(byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(ALPHABET[((buffer >> bits) & 31) as usize]));
        }
    }
    if bits > 0 {
        text.push(char::from(ALPHABET[((buffer << (5 - bits)) & 31) as usize]));
    }
    text
}

/// The inverse of [`base32`] for a known length. The last digit's spare bits are not looked at: they carry nothing.
#[must_use]
pub fn from_base32<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = Vec::with_capacity(N);
    let (mut buffer, mut bits) = (0u32, 0);
    for digit in text.bytes() {
        let value = ALPHABET.iter().position(|&known| known == digit)?;
        buffer = (buffer << 5) | u32::try_from(value).ok()?;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from((buffer >> bits) & 0xff).ok()?);
        }
    }
    // A digit more than the bytes need would be another text.
    if text.len() == (N * 8).div_ceil(5) { bytes.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn base32_is_that_of_the_rfc() {
        for (bytes, text) in
            [("", ""), ("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("foob", "mzxw6yq"), ("fooba", "mzxw6ytb")]
        {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
        assert_eq!(from_base32::<3>("mzxw6"), Some(*b"foo"));
        assert_eq!(from_base32::<3>("mzxw7"), Some(*b"foo"), "spare bits carry nothing");
        assert_eq!(from_base32::<3>("mzxw6a"), None);
        assert_eq!(from_base32::<3>("mzxw"), None);
        assert_eq!(from_base32::<3>("MZXW6"), None);
    }

    #[test]
    fn a_token_is_its_text() {
        let token = Token::new(Role::Agent, [7; 32], Secret::random());
        let text = token.reveal();
        assert_eq!(text.parse::<Token>().unwrap(), token);
        assert_eq!(format!("{text}\n").parse::<Token>().unwrap(), token, "read from a file");
        assert!(!format!("{token:?}").contains(text.rsplit('.').next().unwrap()));
        for bad in [
            "",
            "hodei1",
            "hodei2.agent.a.b",
            &text[..text.len() - 1],
            &format!("{text}a"),
            &format!("{text}.x"),
            &text.replace("agent", "root"),
        ] {
            assert_eq!(bad.parse::<Token>(), Err(NotAToken), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn base32_can_be_read_back(bytes in any::<[u8; 32]>()) {
            prop_assert_eq!(from_base32::<32>(&base32(&bytes)), Some(bytes));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            let _ = text.parse::<Token>();
        }
    }
}
