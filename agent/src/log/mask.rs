//! Secrets are taken out of a job's output before it reaches a disk.
//!
//! Every byte of a secret that is found becomes a `*`. The length stays: how far a log has come is counted in bytes of the
//! stream ([`super::progress`]), masked or not. What is looked for are the lines of each value, and the value as it stands
//! in the JSON that the job is given; what is shorter than [`SHORTEST`] is not looked for, because it would be found
//! everywhere. A job that writes a secret in another form (base 64, say) writes it.
//!
//! The watchdog keeps what is looked for beside the output, in memory, for a successor of the agent.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use aho_corasick::AhoCorasick;

use super::{split::MAX_ENTRY, store::memory};

/// Shorter texts are not masked.
pub const SHORTEST: usize = 4;

/// What is looked for.
#[derive(Clone, Debug, Default)]
pub struct Mask(Option<Arc<Needles>>);

#[derive(Debug)]
struct Needles {
    automaton: AhoCorasick,
    longest: usize,
}

/// The texts by which values are found.
#[must_use]
pub fn texts<'a>(values: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let mut texts = BTreeSet::new();
    for value in values {
        texts.extend(value.lines().map(str::to_owned));
        let json = serde_json::Value::from(value).to_string();
        texts.insert(json[1..json.len() - 1].to_owned());
    }
    texts.retain(|text| text.len() >= SHORTEST);
    texts
}

/// Texts as memory that can be handed over: each with a zero behind it.
pub fn write<T: AsRef<[u8]>>(texts: impl IntoIterator<Item = T>) -> io::Result<File> {
    let mut file = memory()?;
    for text in texts {
        file.write_all(&[text.as_ref(), b"\0"].concat())?;
    }
    Ok(file)
}

impl Mask {
    /// Reads what [`write()`] has written.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, 0)?;
        let texts: Vec<_> = bytes.split(|byte| *byte == 0).filter(|text| !text.is_empty()).collect();
        if texts.is_empty() {
            return Ok(Self(None));
        }
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or_default();
        let automaton = AhoCorasick::new(&texts).map_err(io::Error::other)?;
        Ok(Self(Some(Arc::new(Needles { automaton, longest }))))
    }

    /// Masks what is whole in itself.
    pub fn apply(&self, bytes: &mut [u8]) {
        if let Some(needles) = &self.0 {
            let raw = bytes.to_owned();
            needles.star(&raw, bytes);
        }
    }
}

impl Needles {
    /// Overlapping finds count, each of them.
    fn star(&self, raw: &[u8], masked: &mut [u8]) {
        for found in self.automaton.find_overlapping_iter(raw) {
            masked[found.range()].fill(b'*');
        }
    }
}

/// Masks one stream that comes in chunks.
///
/// No text that is looked for contains a newline, so that whole lines can go; of a line that is longer than an entry, all
/// but its end.
#[derive(Debug, Default)]
pub struct Masker {
    mask: Mask,
    /// As it came, from the beginning of an unfinished line.
    raw: Vec<u8>,
    /// The same, with what was found so far.
    masked: Vec<u8>,
}

impl Masker {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(mask: Mask) -> Self {
        Self { mask, ..Self::default() }
    }

    /// Feeds bytes; what cannot be part of anything any more goes to `emit`.
    pub fn feed(&mut self, chunk: &[u8], emit: impl FnOnce(&[u8])) {
        let Some(needles) = self.mask.0.clone().filter(|_| !crate::armed!("bug::secret-shown")) else {
            return emit(chunk);
        };
        self.raw.extend_from_slice(chunk);
        self.masked.extend_from_slice(chunk);
        let lines = memchr::memrchr(b'\n', chunk).map_or(0, |at| self.raw.len() - chunk.len() + at + 1);
        let tail = needles.longest - 1;
        let ready = if self.raw.len() - lines > MAX_ENTRY + tail { self.raw.len() - tail } else { lines };
        if ready > 0 {
            needles.star(&self.raw, &mut self.masked);
            self.raw.drain(..ready);
            let rest = self.masked.split_off(ready);
            emit(&std::mem::replace(&mut self.masked, rest));
        }
    }

    /// The stream has ended, or is given up.
    pub fn finish(&mut self, emit: impl FnOnce(&[u8])) {
        if let Some(needles) = self.mask.0.clone() {
            needles.star(&self.raw, &mut self.masked);
            self.raw.clear();
            emit(&std::mem::take(&mut self.masked));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(values: &[&str]) -> Mask {
        Mask::read(&write(texts(values.iter().copied())).unwrap()).unwrap()
    }

    fn masked(values: &[&str], chunks: &[&[u8]]) -> Vec<u8> {
        let mut masker = Masker::new(mask(values));
        let mut out = Vec::new();
        for chunk in chunks {
            masker.feed(chunk, |bytes| out.extend_from_slice(bytes));
        }
        masker.finish(|bytes| out.extend_from_slice(bytes));
        out
    }

    #[test]
    fn secrets_are_found_however_the_stream_is_cut() {
        let text = b"one hunter2\nhunterhunter22 abcdefgh\nhunter".repeat(3);
        let expected = b"one *******\nhunter*******2 ********\nhunter".repeat(3);
        for size in [1, 2, 3, 7, 11, 1000] {
            let chunks: Vec<_> = text.chunks(size).collect();
            // The last two overlap.
            assert_eq!(masked(&["hunter2", "abcdef", "defgh"], &chunks), expected, "{size}");
        }
    }

    #[test]
    fn lines_and_the_form_in_json_are_found_too() {
        let key = "-----BEGIN-----\nab\"cd\r\nxyz\n";
        let text = format!("{}\n{key}", serde_json::json!({ "key": key }));
        let shown = String::from_utf8(masked(&[key], &[text.as_bytes()])).unwrap();
        assert!(!shown.contains("BEGIN") && !shown.contains("ab"), "{shown}");
        assert!(shown.ends_with("xyz\n"), "too short to be looked for: {shown}");
        assert_eq!(shown.len(), text.len());
    }

    #[test]
    fn lines_that_are_longer_than_an_entry_are_masked_across_their_pieces() {
        let (secret, long) = ("0123456789".repeat(10), "x".repeat(MAX_ENTRY - 50));
        let text = format!("{long}{secret}{long}{secret}{long}\n");
        for size in [1000, 4096, MAX_ENTRY, text.len()] {
            let chunks: Vec<_> = text.as_bytes().chunks(size).collect();
            let shown = masked(&[&secret], &chunks);
            assert_eq!(shown.len(), text.len());
            assert!(!shown.contains(&b'0'), "{size}");
        }
    }

    #[test]
    fn without_secrets_everything_passes_at_once() {
        let mut masker = Masker::new(mask(&["abc"]));
        let mut seen = Vec::new();
        masker.feed(b"abc", |bytes| seen.extend_from_slice(bytes));
        assert_eq!(seen, b"abc", "too short to be looked for");
    }
}
