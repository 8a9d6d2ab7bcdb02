//! The text of a token: `hodei1.<role>.<hash of the CA>.<secret>`.

use sha2::{Digest as _, Sha256};

use crate::error::Exit;

/// A token that lets an agent join. The secret stays in the text, which goes to the node as it is.
#[derive(Clone)]
pub struct Token {
    text: String,
    /// SHA-256 of the CA's certificate (DER).
    pub ca_hash: [u8; 32],
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Why a text is no token for an agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// Not four parts, another version, or a part that does not decode.
    #[error("not a token; expected hodei1.agent.<hash>.<secret>")]
    Malformed,
    /// For somebody else.
    #[error("this token is for the role {0}; an agent needs one made with `token create --role agent`")]
    Role(String),
}

impl From<InvalidToken> for Exit {
    fn from(invalid: InvalidToken) -> Self {
        let message = format!("token: {invalid}");
        match invalid {
            InvalidToken::Malformed => Self::bad_input(message),
            // A sound token that permits something else.
            InvalidToken::Role(_) => Self::not_allowed(message),
        }
    }
}

impl Token {
    /// Reads a token.
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        let text = text.trim();
        let parts: Vec<_> = text.split('.').collect();
        let ["hodei1", role, hash, secret] = parts[..] else { return Err(InvalidToken::Malformed) };
        let hash = decode_base32(hash).ok_or(InvalidToken::Malformed)?;
        let ca_hash = hash.try_into().map_err(|_| InvalidToken::Malformed)?;
        if secret.is_empty() || decode_base32(secret).is_none() {
            return Err(InvalidToken::Malformed);
        }
        match role {
            "agent" => Ok(Self { text: text.to_owned(), ca_hash }),
            "node" | "user" | "admin" => Err(InvalidToken::Role(role.to_owned())),
            _ => Err(InvalidToken::Malformed),
        }
    }

    /// The whole text, for the node.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether `der` is the CA that this token names.
    #[must_use]
    pub fn names(&self, der: &[u8]) -> bool {
        Sha256::digest(der).as_slice() == self.ca_hash
    }
}

/// RFC 4648, lower case, without padding; left-over bits must be zero.
fn decode_base32(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut count) = (Vec::with_capacity(text.len() * 5 / 8), 0u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'a'..=b'z' => byte - b'a',
            b'2'..=b'7' => byte - b'2' + 26,
            _ => return None,
        };
        bits = (bits << 5) | u32::from(value);
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count).ok()?);
            bits &= (1 << count) - 1;
        }
    }
    (bits == 0 && count < 5).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_as_in_rfc_4648() {
        let cases =
            [("", ""), ("my", "f"), ("mzxq", "fo"), ("mzxw6", "foo"), ("mzxw6yq", "foob"), ("mzxw6ytboi", "foobar")];
        for (text, bytes) in cases {
            assert_eq!(decode_base32(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        for wrong in ["m", "mz1", "MY", "mz", "my======"] {
            assert_eq!(decode_base32(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_an_agents_token_will_do() {
        let hash = "a".repeat(52);
        let parse = |text: &str| Token::parse(text).map(|token| token.ca_hash);
        assert_eq!(parse(&format!("hodei1.agent.{hash}.mzxw6ytb\n")), Ok([0; 32]));
        assert_eq!(parse(&format!("hodei1.node.{hash}.mzxw6ytb")), Err(InvalidToken::Role("node".into())));
        for wrong in ["", "hodei1", "hodei2.agent.a.b", &format!("hodei1.agent.{hash}."), "hodei1.agent.mzxw6.mzxw6ytb"]
        {
            assert_eq!(parse(wrong), Err(InvalidToken::Malformed), "{wrong}");
        }
    }
}
