//! How rows lie in sled: many to a page.
//!
//! sled keeps sixteen values in a leaf and costs about as much for a value of 100 bytes as for one of 3,000: as rows of
//! their own, the two rows of a job took a fifth of all processor time under load. So neighbours in key order share a
//! value of at most [`PAGE`] bytes.
//!
//! A page is named by its lower bound: it holds the rows from there up to the next page's. [`Pages`] knows the bounds;
//! the rows come from the state, which is in memory, so that writing a page reads nothing from disk. A page that has
//! become too large is divided evenly, one that has become small takes in its right neighbour.
//!
//! ```text
//! page = row …     row = length u8 | key | length u16 LE | value
//! ```

use std::{collections::BTreeSet, io};

use hodei_state::{RowKey, State};

/// Bytes of a page, unless a single row is larger: what sled keeps safely and cheaply.
const PAGE: usize = 3 * 1024;
/// A smaller page takes in its neighbour.
const SMALL: usize = PAGE / 3;

/// A row's key and its encoded value.
pub(super) type Row = (RowKey, Vec<u8>);

/// The lower bounds of all pages. The first one is always there, with or without a page in sled.
#[derive(Debug)]
pub(super) struct Pages(BTreeSet<RowKey>);

/// What is to be written for a page; none: it is to be removed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rewrite {
    pub(super) bound: RowKey,
    pub(super) page: Option<Vec<u8>>,
}

impl Default for Pages {
    fn default() -> Self {
        Self(BTreeSet::from([RowKey::Meta]))
    }
}

impl Pages {
    /// Takes note of a page that is in sled.
    pub(super) fn found(&mut self, bound: RowKey) {
        self.0.insert(bound);
    }

    /// The pages in which these rows lie, as they are in `state`. `changed` is in key order.
    pub(super) fn rewrite(&mut self, state: &State, changed: &[RowKey], mut write: impl FnMut(Rewrite)) {
        let mut changed = changed.iter().peekable();
        while let Some(key) = changed.next() {
            let low = *self.0.range(..=*key).next_back().expect("the first bound is the smallest key");
            let mut high = self.after(low);
            let mut rows = state.rows_from(low).peekable();
            let (mut page, mut size) = (Vec::new(), 0);
            loop {
                while let Some((key, value)) = rows.next_if(|(key, _)| high.is_none_or(|high| *key < high)) {
                    size += row_len(&value);
                    page.push((key, value));
                }
                let Some(next) = high.filter(|_| size < SMALL) else { break };
                self.0.remove(&next);
                write(Rewrite { bound: next, page: None });
                high = self.after(next);
            }
            while changed.next_if(|key| high.is_none_or(|high| **key < high)).is_some() {}
            self.divide(low, page, size, &mut write);
        }
    }

    /// All pages of `state`, as if there were none before.
    pub(super) fn fill(&mut self, state: &State, mut write: impl FnMut(Rewrite)) {
        *self = Self::default();
        let (mut low, mut page, mut size) = (RowKey::Meta, Vec::new(), 0);
        for (key, value) in state.rows() {
            if size > 0 && size + row_len(&value) > PAGE {
                self.divide(low, std::mem::take(&mut page), size, &mut write);
                (low, size) = (key, 0);
            }
            size += row_len(&value);
            page.push((key, value));
        }
        self.divide(low, page, size, &mut write);
    }

    fn after(&self, bound: RowKey) -> Option<RowKey> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.0.range((Excluded(bound), Unbounded)).next().copied()
    }

    /// Writes rows from `low` on as so many pages of about the same size as they need.
    fn divide(&mut self, low: RowKey, rows: Vec<Row>, size: usize, write: &mut impl FnMut(Rewrite)) {
        if rows.is_empty() {
            write(Rewrite { bound: low, page: None });
            return;
        }
        let enough = size / size.div_ceil(PAGE);
        let (mut bound, mut page) = (low, Vec::with_capacity(PAGE.min(size)));
        for (key, value) in rows {
            if !page.is_empty() && (page.len() >= enough || page.len() + row_len(&value) > PAGE) {
                let full = std::mem::replace(&mut page, Vec::with_capacity(PAGE));
                self.0.insert(bound);
                write(Rewrite { bound, page: Some(full) });
                bound = key;
            }
            put(&mut page, key, &value);
        }
        self.0.insert(bound);
        write(Rewrite { bound, page: Some(page) });
    }
}

/// With the longest key that there is.
fn row_len(value: &[u8]) -> usize {
    const AROUND: usize = 1 + 33 + 2;
    AROUND + value.len()
}

fn put(page: &mut Vec<u8>, key: RowKey, value: &[u8]) {
    let key = key.to_bytes();
    page.push(u8::try_from(key.len()).expect("a key has at most 33 bytes"));
    page.extend_from_slice(&key);
    page.extend_from_slice(&u16::try_from(value.len()).expect("a row has at most 3 KB").to_le_bytes());
    page.extend_from_slice(value);
}

/// The rows of a page.
pub(super) fn rows(mut page: &[u8]) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    while !page.is_empty() {
        let row = take(&mut page).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a page that is none"))?;
        rows.push(row);
    }
    Ok(rows)
}

fn take(page: &mut &[u8]) -> Option<Row> {
    let (&len, rest) = page.split_first()?;
    let (key, rest) = rest.split_at_checked(usize::from(len))?;
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let (value, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    *page = rest;
    Some((RowKey::from_bytes(key)?, value.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hodei_state::{
        codec::encode_execution,
        command::{Command, Envelope, Init, SubmitJob},
        ids::{Caller, ClusterId, JobId, Millis, UserId},
        spec::{Action, Body, Execution, JobSpec, defaults},
    };
    use proptest::prelude::*;

    use super::*;

    const NODE: Caller = Caller::Node(1);
    const ADMIN: Caller = Caller::Admin(UserId(1));

    struct Stored {
        state: State,
        index: u64,
        pages: Pages,
        sled: BTreeMap<RowKey, Vec<u8>>,
    }

    impl Stored {
        fn new() -> Self {
            let (pages, sled) = Default::default();
            let mut stored = Self { state: State::new(), index: 0, pages, sled };
            stored.apply(
                NODE,
                Command::Init(Init {
                    cluster: ClusterId(1),
                    ca: vec![1; 600],
                    address: "127.0.0.1:50051".to_owned(),
                    key: [1; 32],
                    version: "0.1.0".to_owned(),
                    feature_level: 1,
                    admin: (UserId(1), [2; 32]),
                }),
            );
            stored
        }

        fn apply(&mut self, caller: Caller, command: Command) {
            self.index += 1;
            let at = Millis(1_700_000_000_000 + self.index);
            self.state.apply(self.index, 0, at, &Envelope { caller, command });
        }

        fn submit(&mut self, job: u128, bytes: usize) {
            let action = Action::Script { interpreter: None, content: "x".repeat(bytes) };
            let execution = Execution { action, env: BTreeMap::new(), working_directory: None };
            let spec = JobSpec {
                lost_after_ms: defaults::LOST_AFTER_MS,
                grace_period_ms: defaults::GRACE_PERIOD_MS,
                body: Body::Inline(encode_execution(&execution)),
                ..JobSpec::default()
            };
            let submit = SubmitJob { job: JobId(job), digest: [1; 32], idempotency_key: None, spec };
            self.apply(ADMIN, Command::SubmitJob(Box::new(submit)));
        }

        fn remove(&mut self, job: u128) {
            self.apply(ADMIN, Command::CancelJob { job: JobId(job), reason: String::new() });
            self.apply(NODE, Command::RemoveJobs { jobs: vec![JobId(job)] });
        }

        fn write(&mut self) {
            let changed = self.state.take_changes().keys;
            let sled = &mut self.sled;
            self.pages.rewrite(&self.state, &changed, |rewrite| take(sled, rewrite));
            self.check();
        }

        fn fill(&mut self) {
            self.sled.clear();
            let sled = &mut self.sled;
            self.pages.fill(&self.state, |rewrite| take(sled, rewrite));
            self.check();
        }

        /// Sled has all rows, in order, each page between its bound and the next.
        fn check(&self) {
            let stored: Vec<_> = self.sled.values().flat_map(|page| rows(page).unwrap()).collect();
            assert!(self.state.rows().eq(stored.iter().cloned()));
            for (bound, page) in &self.sled {
                let rows = rows(page).unwrap();
                assert!(rows[0].0 >= *bound);
                assert!(page.len() <= PAGE || rows.len() == 1, "{} bytes in {} rows", page.len(), rows.len());
                assert!(self.pages.0.contains(bound));
            }
        }
    }

    fn take(sled: &mut BTreeMap<RowKey, Vec<u8>>, Rewrite { bound, page }: Rewrite) {
        match page {
            Some(page) => drop(sled.insert(bound, page)),
            None => drop(sled.remove(&bound)),
        }
    }

    #[test]
    fn jobs_in_the_order_of_their_ids_fill_their_pages() {
        let mut stored = Stored::new();
        for round in 0..20 {
            (0..100).for_each(|job| stored.submit(round * 100 + job + 1, 400));
            stored.write();
        }
        let bytes: usize = stored.sled.values().map(Vec::len).sum();
        assert!(bytes / stored.sled.len() > PAGE * 3 / 4, "{bytes} bytes in {} pages", stored.sled.len());
        (1..=2_000).for_each(|job| stored.remove(job));
        stored.write();
        let bytes: usize = stored.sled.values().map(Vec::len).sum();
        assert!(bytes / stored.sled.len() > SMALL, "{bytes} bytes in {} pages", stored.sled.len());
    }

    #[test]
    fn the_first_row_above_and_below_all_pages_finds_its_place() {
        let mut stored = Stored::new();
        stored.write();
        stored.submit(u128::MAX, 10);
        stored.write();
        stored.submit(0, 2_900);
        stored.write();
        stored.remove(0);
        stored.remove(u128::MAX);
        stored.write();
    }

    #[test]
    fn noise_is_no_page() {
        assert!(rows(&[1]).is_err());
        assert!(rows(&[1, 0, 5, 0, 1]).is_err());
        assert!(rows(&[1, 99, 0, 0]).is_err());
        assert_eq!(rows(&[1, 0, 1, 0, 7]).unwrap(), [(RowKey::Meta, vec![7])]);
    }

    proptest! {
        #[test]
        fn sled_has_what_the_state_has(steps in proptest::collection::vec((0u8..8, 0u128..60, 0usize..2_900), 1..300)) {
            let mut stored = Stored::new();
            for (what, job, bytes) in steps {
                match what {
                    0 => stored.write(),
                    1 => stored.fill(),
                    2 | 3 => stored.remove(job),
                    _ => stored.submit(job, bytes),
                }
            }
            stored.write();
        }
    }
}
