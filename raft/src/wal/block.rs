//! Framed blocks: how segment headers and mark slots are laid out on disk.
//!
//! ```text
//! magic 8 | version u32 | CRC32C of what follows and the version u32 | length u32 | body (bincode)
//! ```

use bincode::{Decode, Encode, config};

/// The space that a block may take, so that it never shares a page with something else.
pub(crate) const BLOCK_BYTES: usize = 4096;

const PREFIX: usize = 20;

/// Why a block cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockError {
    /// It is not there, torn, or damaged.
    Damaged,
    /// It is intact, and of a version that this program does not know.
    Newer(u32),
}

/// Encodes a block, padded with zeros to [`BLOCK_BYTES`].
pub(crate) fn encode(magic: [u8; 8], version: u32, body: &impl Encode) -> Vec<u8> {
    let body = bincode::encode_to_vec(body, config::standard()).expect("plain numbers always encode");
    assert!(PREFIX + body.len() <= BLOCK_BYTES, "a block fits into its page");
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    block.extend_from_slice(&magic);
    block.extend_from_slice(&version.to_le_bytes());
    block.extend_from_slice(&checksum(version, &body).to_le_bytes());
    block.extend_from_slice(&(body.len() as u32).to_le_bytes());
    block.extend_from_slice(&body);
    block.resize(BLOCK_BYTES, 0);
    block
}

/// Decodes a block of exactly this version.
pub(crate) fn decode<T: Decode<()>>(magic: [u8; 8], version: u32, block: &[u8]) -> Result<T, BlockError> {
    let damaged = BlockError::Damaged;
    if block.get(..8) != Some(magic.as_slice()) {
        return Err(damaged);
    }
    let found = number(block, 8).ok_or(damaged)?;
    let crc = number(block, 12).ok_or(damaged)?;
    let len = number(block, 16).ok_or(damaged)? as usize;
    let body = block.get(PREFIX..PREFIX.saturating_add(len)).ok_or(damaged)?;
    if checksum(found, body) != crc {
        return Err(damaged);
    }
    if found != version {
        return Err(BlockError::Newer(found));
    }
    match bincode::decode_from_slice(body, config::standard()) {
        Ok((value, consumed)) if consumed == body.len() => Ok(value),
        _ => Err(damaged),
    }
}

fn checksum(version: u32, body: &[u8]) -> u32 {
    let seed = crc32c::crc32c(&version.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &(body.len() as u32).to_le_bytes()), body)
}

fn number(block: &[u8], at: usize) -> Option<u32> {
    block.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: [u8; 8] = *b"HODEITST";

    #[test]
    fn every_flipped_bit_is_noticed() {
        let block = encode(MAGIC, 1, &(7u64, Some(9u64)));
        assert_eq!(decode::<(u64, Option<u64>)>(MAGIC, 1, &block), Ok((7, Some(9))));
        for bit in 0..(PREFIX + 4) * 8 {
            let mut flipped = block.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if flipped[..PREFIX + 3] != block[..PREFIX + 3] {
                assert_eq!(decode::<(u64, Option<u64>)>(MAGIC, 1, &flipped), Err(BlockError::Damaged), "bit {bit}");
            }
        }
    }

    #[test]
    fn an_unknown_version_is_not_damage() {
        let block = encode(MAGIC, 2, &7u64);
        assert_eq!(decode::<u64>(MAGIC, 1, &block), Err(BlockError::Newer(2)));
    }
}
