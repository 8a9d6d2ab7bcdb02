//! Opening: find out what this replica remembers, and whether it remembers all that it promised.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    EntryId, Lsn, OpenError, Options, Quarantine, Vote,
    engine::{self, Engine},
    fatal::Failure,
    index::{Index, Place, Slot},
    mark::{self, Mark, MarkFile},
    record::{self, Found, Record},
    segment::{self, FIRST_RECORD, Loaded, Scan, Segment, Stretch},
    shape::Shape,
};
use crate::seam::{Entropy, File, Fs};

/// What a log held when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The last record's LSN.
    pub lsn: Lsn,
    /// Records above the high-water mark that were valid and are promised from now on.
    pub above_mark: u64,
    /// Bytes behind the last valid record that were no record: a torn write, cut.
    pub torn: bool,
    /// The newest vote.
    pub vote: Option<Vote>,
    /// The purge point.
    pub purged: Option<EntryId>,
    /// The last entry, or the purge point.
    pub last: Option<EntryId>,
}

/// An opened log, before any thread runs.
pub struct Opened<F: Fs> {
    /// Writes at its end.
    pub engine: Engine<F>,
    /// Its high-water mark.
    pub mark: MarkFile<F::File>,
    /// Where its entries are.
    pub index: Index<F::File>,
    /// What it held.
    pub recovered: Recovered,
}

/// Opens the log in `dir`, or begins one if there is none.
///
/// # Errors
/// [`OpenError::Quarantined`] if anything is missing or damaged that this replica has promised to remember.
pub fn open<F: Fs>(fs: &F, dir: &Path, options: &Options, entropy: &dyn Entropy) -> Result<Opened<F>, OpenError> {
    fs.create_dir_all(dir).map_err(OpenError::io(format!("create {}", dir.display())))?;
    let names = fs.list(dir).map_err(OpenError::io(format!("list {}", dir.display())))?;
    for name in names.iter().filter(|name| name.ends_with(".tmp")) {
        fs.remove(&dir.join(name)).map_err(OpenError::io(format!("remove {name}")))?;
    }
    let mut bases: Vec<Lsn> = names.iter().filter_map(|name| segment::base_of(name)).collect();
    bases.sort_unstable();
    let marked = names.iter().any(|name| name == mark::FILE);
    let opening = Opening { fs, dir, options, entropy };
    match (marked, bases.is_empty()) {
        (false, true) if options.must_exist => {
            let what = format!("{} holds no log, although this node has served before", dir.display());
            Err(OpenError::quarantined(Quarantine::Missing, what))
        }
        (false, true) => opening.begin(None),
        (false, false) => Err(OpenError::quarantined(Quarantine::Mark, "there is a log without its high-water mark")),
        (true, empty) => {
            let (file, mark) = MarkFile::open(fs, dir)?;
            match (empty, mark.lsn) {
                // The mark is created first; a crash came before the first segment.
                (true, 0) => opening.begin(Some((file, mark))),
                (true, lsn) => {
                    let what = format!("everything is gone, although records up to {lsn} were promised");
                    Err(OpenError::quarantined(Quarantine::Missing, what))
                }
                (false, _) => opening.resume(&bases, file, mark),
            }
        }
    }
}

struct Opening<'a, F> {
    fs: &'a F,
    dir: &'a Path,
    options: &'a Options,
    entropy: &'a dyn Entropy,
}

impl<F: Fs> Opening<'_, F> {
    /// Begins a log: first the mark, then the first segment.
    fn begin(&self, mark: Option<(MarkFile<F::File>, Mark)>) -> Result<Opened<F>, OpenError> {
        let (file, mark) = match mark {
            Some(found) => found,
            None => {
                let genesis = u128::from(self.entropy.next_u64()) << 64 | u128::from(self.entropy.next_u64());
                let mark = Mark::from(&Shape::empty(genesis));
                (MarkFile::create(self.fs, self.dir, &mark)?, mark)
            }
        };
        let replay = Replay::new(Shape::empty(mark.chain));
        self.finish(replay, None, file, &mark)
    }

    /// Replays what is there and checks it against the mark.
    fn resume(&self, bases: &[Lsn], file: MarkFile<F::File>, mark: Mark) -> Result<Opened<F>, OpenError> {
        let mut replay: Option<Replay<F::File>> = None;
        let mut last = None;
        for (position, base) in bases.iter().enumerate() {
            let loaded = segment::load(self.fs, self.dir, *base)?;
            let replay = replay.get_or_insert_with(|| Replay::new(loaded.shape.clone()));
            replay.continues_with(&loaded, &mark)?;
            let next = bases.get(position + 1).copied();
            let tail = replay.segment(&loaded, next, &mark)?;
            last = Some((loaded, tail));
        }
        let replay = replay.expect("there is at least one segment");
        replay.check(&mark)?;
        self.finish(replay, last.as_ref(), file, &mark)
    }

    /// Rewrites the last segment as a new file, so that what is reported is durable whatever the page cache showed,
    /// and marks it.
    fn finish(
        &self,
        mut replay: Replay<F::File>,
        last: Option<&(Loaded<F::File>, usize)>,
        mut file: MarkFile<F::File>,
        mark: &Mark,
    ) -> Result<Opened<F>, OpenError> {
        let (base, records, torn) = match last {
            Some((loaded, end)) => {
                let torn = loaded.bytes[*end..].iter().any(|byte| *byte != 0);
                (loaded.shape.clone(), &loaded.bytes[FIRST_RECORD..*end], torn)
            }
            None => (replay.shape.clone(), &[][..], false),
        };
        let segment = self.rewrite(&base, records).map_err(failed)?;
        hodei_state::failpoint!("wal::opening-before-mark");
        file.write(&Mark::from(&replay.shape)).map_err(failed)?;
        file.sync().map_err(failed)?;
        let offset = FIRST_RECORD + records.len();
        replay.adopt(Arc::new(segment));
        let recovered = Recovered {
            lsn: replay.shape.lsn,
            above_mark: replay.shape.lsn - mark.lsn,
            torn,
            vote: replay.shape.vote,
            purged: replay.shape.purged,
            last: replay.index.last(),
        };
        let engine = Engine {
            fs: self.fs.clone(),
            dir: PathBuf::from(self.dir),
            shape: replay.shape,
            stretches: replay.stretches,
            offset,
            buffer: Vec::new(),
        };
        Ok(Opened { engine, mark: file, index: replay.index, recovered })
    }

    fn rewrite(&self, base: &Shape, records: &[u8]) -> Result<Segment<F::File>, Failure> {
        let size = self.options.segment_bytes;
        let prepared = segment::prepare(self.fs, self.dir, self.entropy, size, records.len() as u64)?;
        let mut copy = records.to_vec();
        let mut at = 0;
        while at < copy.len() {
            let len = record::HEADER_BYTES + payload_len(&copy[at..]);
            record::seal(&mut copy[at..at + len], prepared.salt());
            at += len;
        }
        prepared.write_at(&copy, FIRST_RECORD as u64)?;
        prepared.install(self.fs, self.dir, base)
    }
}

fn payload_len(record: &[u8]) -> usize {
    u32::from_le_bytes(record[4..8].try_into().expect("four bytes")) as usize
}

fn failed(failure: Failure) -> OpenError {
    OpenError::Io { what: failure.what, source: failure.source }
}

/// What has been replayed so far.
struct Replay<F> {
    shape: Shape,
    index: Index<F>,
    stretches: VecDeque<Stretch<F>>,
    /// Whether the walk passed the mark's record and found the mark's history there.
    met_mark: bool,
}

impl<F: File> Replay<F> {
    fn new(shape: Shape) -> Self {
        let mut index = Index::new();
        index.lsn = shape.lsn;
        index.purged = shape.purged;
        index.first = shape.live.end;
        Self { shape, index, stretches: VecDeque::new(), met_mark: false }
    }

    /// A segment must continue from exactly where the ones before it end.
    fn continues_with(&mut self, loaded: &Loaded<F>, mark: &Mark) -> Result<(), OpenError> {
        if self.shape != loaded.shape {
            let what =
                format!("records between {} and the {:?} are missing or damaged", self.shape.lsn, loaded.segment);
            return Err(OpenError::quarantined(Quarantine::Damaged, what));
        }
        self.adopt(loaded.segment.clone());
        self.meet(mark)
    }

    /// Takes a segment as the last one, or as the new incarnation of the last one.
    fn adopt(&mut self, segment: Arc<Segment<F>>) {
        self.index.segments.insert(segment.base, segment.clone());
        match self.stretches.back_mut().filter(|last| last.segment.base == segment.base) {
            Some(last) => last.segment = segment,
            None => self.stretches.push_back(Stretch { segment, live: self.shape.live.end..self.shape.live.end }),
        }
    }

    /// Replays one segment's records, up to where the `next` one begins: what lies past that is void. Returns where
    /// the last valid record ends.
    fn segment(&mut self, loaded: &Loaded<F>, next: Option<Lsn>, mark: &Mark) -> Result<usize, OpenError> {
        let mut scan = Scan::new(loaded);
        while next.is_none_or(|next| self.shape.lsn < next) {
            let Some((offset, found)) = scan.next(self.shape.lsn, self.shape.chain) else { break };
            self.record(&found, Place { segment: loaded.segment.base, offset: offset as u32 })?;
            self.meet(mark)?;
        }
        Ok(scan.offset())
    }

    fn record(&mut self, found: &Found, place: Place) -> Result<(), OpenError> {
        let Some(record) = Record::decode(found.kind, &found.payload) else {
            let what = format!("record {} is of a kind or version that this program does not know", found.lsn);
            return Err(OpenError::quarantined(Quarantine::Newer, what));
        };
        self.shape.accept(&record, found.chain).map_err(|violation| {
            OpenError::quarantined(Quarantine::Contradiction, format!("record {}: {violation}", found.lsn))
        })?;
        engine::account(&mut self.stretches, &record);
        if let Record::Append { id, .. } = record {
            self.index.lsn += 1;
            let slot = Slot { term: id.term, lsn: found.lsn, len: found.len() as u32, place: Some(place) };
            self.index.push(id.index, slot);
        } else {
            self.index.advance(&record);
        }
        Ok(())
    }

    /// Compares histories where the mark was made.
    fn meet(&mut self, mark: &Mark) -> Result<(), OpenError> {
        if self.shape.lsn != mark.lsn {
            return Ok(());
        }
        if Mark::from(&self.shape) != *mark {
            let what = format!("the log's history at record {} is not the one that was promised", mark.lsn);
            return Err(OpenError::quarantined(Quarantine::Contradiction, what));
        }
        self.met_mark = true;
        Ok(())
    }

    /// After the last record: everything promised must have been seen, and every entry of the log be there.
    fn check(&self, mark: &Mark) -> Result<(), OpenError> {
        let (lsn, promised) = (self.shape.lsn, mark.lsn);
        if hodei_state::armed!("bug::mark-unchecked") {
            return Ok(());
        }
        if lsn < promised {
            let what = format!("the log ends at record {lsn}, records up to {promised} were promised");
            return Err(OpenError::quarantined(Quarantine::Damaged, what));
        }
        if !self.met_mark {
            let what = format!("the high-water mark at record {promised} is older than the whole log");
            return Err(OpenError::quarantined(Quarantine::Contradiction, what));
        }
        let (expected, found) = (&self.shape.live, self.index.range());
        if *expected != found && !(expected.is_empty() && found.is_empty()) {
            let what = format!("entries {expected:?} were promised, of which {found:?} are there");
            return Err(OpenError::quarantined(Quarantine::Damaged, what));
        }
        Ok(())
    }
}
