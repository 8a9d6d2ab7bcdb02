//! A last line by which a small file shows that it is as it was written: `# crc32c 1a2b3c4d`, over all that precedes it.
//!
//! Readers of TOML pass over it as a comment, those of PEM as text outside of their sections. A file without it is damaged:
//! it may have lost its end. The agent includes this very source; both sides have no crate in common that could hold it.

/// What precedes the checksum.
const MARK: &[u8] = b"\n# crc32c ";
/// Bytes of the whole line, with the end of the one before.
const LEN: usize = MARK.len() + 8 + 1;

/// Why a file that lacks the line, or has another one, is refused.
pub const BROKEN: &str = "its last line is not the checksum of the rest";

/// `content` with the line behind it.
#[must_use]
pub fn seal(content: &[u8]) -> Vec<u8> {
    let crc = format!("{:08x}\n", crc32c::crc32c(content));
    [content, MARK, crc.as_bytes()].concat()
}

/// What was sealed; `None` where it is not as it was.
#[must_use]
pub fn unseal(sealed: &[u8]) -> Option<&[u8]> {
    let content = &sealed[..sealed.len().checked_sub(LEN)?];
    (seal(content) == sealed).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_found_again_and_no_other_bit_or_length() {
        for content in [&b""[..], b"a = 1\n", b"\0\xff"] {
            let sealed = seal(content);
            assert_eq!(unseal(&sealed), Some(content));
            for at in 0..sealed.len() {
                for bit in 0..8 {
                    let mut damaged = sealed.clone();
                    damaged[at] ^= 1 << bit;
                    assert_eq!(unseal(&damaged), None, "byte {at} bit {bit}");
                }
                assert_eq!(unseal(&sealed[..at]), None, "cut at {at}");
            }
        }
        assert_eq!(seal(b"x"), *b"x\n# crc32c a93c5f93\n");
    }
}
