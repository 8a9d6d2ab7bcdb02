//! Bytes: what is written to the log, to sled and to snapshots.
//!
//! Every record is one version byte and a bincode body (standard configuration: little endian, variable-length
//! integers). bincode is not self-describing: a field or variant may only be appended, and a changed struct is a new
//! version with a decoder of its own. The golden bytes in `tests/golden` prove that old records still decode.

use serde::{Serialize, de::DeserializeOwned};

use crate::{command::Envelope, spec::Execution};

/// The version that this build writes.
const VERSION: u8 = 1;

/// No row may be larger; what could grow beyond it is split into rows of its own or refused by validation.
pub const MAX_ROW: usize = 3 * 1024;

/// What a batch of commands may claim to hold when decoded. A log entry carries at most about 1 MiB of commands, plus
/// one submission of up to 1 MiB; the rest is slack for what the structures take in memory.
const MAX_BATCH: usize = 64 * 1024 * 1024;

/// What a body may claim to hold when decoded: above any spec that passes validation.
const MAX_BODY: usize = 8 * 1024 * 1024;

/// Why bytes are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Nothing there.
    #[error("the record is empty")]
    Empty,
    /// Written by a later version of the product.
    #[error("record version {0} is not known to this build")]
    Version(u8),
    /// Bytes remain after the record.
    #[error("{0} bytes remain after the record")]
    Trailing(usize),
    /// Anything else, as bincode puts it.
    #[error("malformed record: {0}")]
    Malformed(String),
}

/// Encodes commands, in order, as one log entry carries them.
#[must_use]
pub fn encode_batch(batch: &[Envelope]) -> Vec<u8> {
    encode(batch)
}

/// The reverse of [`encode_batch`].
///
/// # Errors
/// Where the bytes are no batch. A batch in the committed log that does not decode stops the node: it is never skipped.
pub fn decode_batch(bytes: &[u8]) -> Result<Vec<Envelope>, CodecError> {
    decode::<_, MAX_BATCH>(bytes)
}

/// Encodes what the agent executes: the body of a spec.
#[must_use]
pub fn encode_execution(execution: &Execution) -> Vec<u8> {
    encode(execution)
}

/// The reverse of [`encode_execution`].
///
/// # Errors
/// Where the bytes are no body.
pub fn decode_execution(bytes: &[u8]) -> Result<Execution, CodecError> {
    decode::<_, MAX_BODY>(bytes)
}

/// Encodes the value of a row.
pub(crate) fn encode_row<T: Serialize>(value: &T) -> Vec<u8> {
    encode(value)
}

/// How many bytes [`encode_row`] would yield.
pub(crate) fn row_len<T: Serialize>(value: &T) -> usize {
    let mut writer = bincode::enc::write::SizeWriter::default();
    bincode::serde::encode_into_writer(value, &mut writer, bincode::config::standard())
        .expect("plain data of known length always encodes");
    1 + writer.bytes_written
}

/// The reverse of [`encode_row`]. The limit is on what is claimed in memory, which exceeds what lies on disk.
pub(crate) fn decode_row<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    const LIMIT: usize = 16 * MAX_ROW;
    decode::<T, LIMIT>(bytes)
}

/// The beginning of a record that is a sequence of values, which [`append`] goes on with.
pub(crate) fn begin() -> Vec<u8> {
    vec![VERSION]
}

/// Appends a value to such a record.
pub(crate) fn append<T: Serialize>(bytes: &mut Vec<u8>, value: &T) {
    bincode::serde::encode_into_std_write(value, bytes, bincode::config::standard())
        .expect("plain data of known length always encodes into memory");
}

/// The values of such a record, to be taken with [`next`].
pub(crate) fn body(bytes: &[u8]) -> Result<&[u8], CodecError> {
    match bytes.split_first() {
        None => Err(CodecError::Empty),
        Some((&VERSION, body)) => Ok(body),
        Some((&version, _)) => Err(CodecError::Version(version)),
    }
}

/// The next value, taken off `rest`.
pub(crate) fn next<T: DeserializeOwned>(rest: &mut &[u8]) -> Result<T, CodecError> {
    let config = bincode::config::standard().with_limit::<MAX_ROW>();
    let (value, consumed) =
        bincode::serde::decode_from_slice(rest, config).map_err(|error| CodecError::Malformed(error.to_string()))?;
    *rest = &rest[consumed..];
    Ok(value)
}

fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .expect("plain data of known length always encodes into memory");
    bytes
}

fn decode<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    let (&version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let (value, consumed) =
        bincode::serde::decode_from_slice(body, config).map_err(|error| CodecError::Malformed(error.to_string()))?;
    match body.len() - consumed {
        0 => Ok(value),
        rest => Err(CodecError::Trailing(rest)),
    }
}
