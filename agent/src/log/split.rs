//! Cuts a stream of bytes into entries: a line with its newline, a piece of a line that is too long, or the
//! unfinished line at the end. Their concatenation is the stream, byte for byte.

/// The longest entry.
pub const MAX_ENTRY: usize = 64 << 10;

/// The state of one stream between two chunks.
#[derive(Debug, Default)]
pub struct Splitter {
    carry: Vec<u8>,
}

impl Splitter {
    /// Feeds bytes; complete entries go to `emit`.
    pub fn feed(&mut self, mut chunk: &[u8], mut emit: impl FnMut(&[u8])) {
        while !chunk.is_empty() {
            let room = MAX_ENTRY - self.carry.len();
            let window = &chunk[..chunk.len().min(room)];
            let end = match memchr::memchr(b'\n', window) {
                Some(at) => at + 1,
                None if window.len() == room => room,
                None => {
                    self.carry.extend_from_slice(window);
                    return;
                }
            };
            if self.carry.is_empty() {
                emit(&chunk[..end]);
            } else {
                self.carry.extend_from_slice(&chunk[..end]);
                emit(&self.carry);
                self.carry.clear();
            }
            chunk = &chunk[end..];
        }
    }

    /// The stream has ended: what is left is the last entry.
    pub fn finish(&mut self, emit: impl FnOnce(&[u8])) {
        if !self.carry.is_empty() {
            emit(&self.carry);
            self.carry = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut splitter = Splitter::default();
        let mut out = Vec::new();
        for chunk in chunks {
            splitter.feed(chunk, |entry| out.push(entry.to_vec()));
        }
        splitter.finish(|entry| out.push(entry.to_vec()));
        out
    }

    #[test]
    fn lines_keep_their_newline_and_the_last_may_lack_it() {
        assert_eq!(split(&[b"one\ntwo\n\nlast"]), [&b"one\n"[..], b"two\n", b"\n", b"last"]);
        assert_eq!(split(&[b""]), Vec::<Vec<u8>>::new());
        assert_eq!(split(&[b"\n"]), [b"\n"]);
    }

    #[test]
    fn a_line_may_come_in_many_chunks() {
        assert_eq!(split(&[b"o", b"n", b"e\ntw", b"o\n"]), [&b"one\n"[..], b"two\n"]);
    }

    #[test]
    fn a_long_line_comes_in_pieces_and_nothing_is_lost() {
        let long = [vec![b'x'; 2 * MAX_ENTRY + 10], b"\ny\n".to_vec()].concat();
        for size in [1, 7, 4096, MAX_ENTRY, long.len()] {
            let chunks: Vec<_> = long.chunks(size).collect();
            let entries = split(&chunks);
            assert_eq!(entries.iter().map(Vec::len).collect::<Vec<_>>(), [MAX_ENTRY, MAX_ENTRY, 11, 2]);
            assert_eq!(entries.concat(), long);
        }
    }

    #[test]
    fn a_newline_just_past_the_longest_entry_is_an_entry_of_its_own() {
        let line = [vec![0xff; MAX_ENTRY], b"\n".to_vec()].concat();
        assert_eq!(split(&[&line]).iter().map(Vec::len).collect::<Vec<_>>(), [MAX_ENTRY, 1]);
    }
}
