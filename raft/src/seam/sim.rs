//! Simulated seams: a disk in memory that loses what was not synced, a clock that is set, numbers from a seed.
//!
//! [`SimFs`] keeps two pictures of the disk: what processes see, and what is certain to survive. Between them lie the
//! writes and directory changes since the last sync; [`SimFs::power_cut`] keeps none, all, or some of them, torn at
//! sectors. Each operation that changes anything is a step; a test can make the machine die at a given step (nothing
//! works any more) or make one step fail while the machine lives on.
//!
//! Creations and renamings survive as a prefix, as they do on a journalling file system; removals one by one, and data
//! sector by sector.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hodei_state::ids::{Millis, Mono};
use parking_lot::Mutex;

use super::{Clock, Entropy, File, Fs};

thread_local! {
    static WITHOUT_THREADS: Cell<bool> = const { Cell::new(false) };
}

/// From now on, whatever this thread would leave to another one, it does itself: what blocks is done at once, and what
/// is written behind is left to a task. So a runtime of one thread, whose time is simulated, does all of it in one order.
pub fn without_threads() {
    WITHOUT_THREADS.set(true);
}

pub(crate) fn is_without_threads() -> bool {
    WITHOUT_THREADS.get()
}

/// What a power cut does to what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    /// All of it is lost.
    Lost,
    /// All of it survives.
    Kept,
    /// Sectors and removals survive at random, other directory changes as a random prefix; the seed decides.
    Torn(u64),
}

/// The unit in which a simulated disk writes.
const SECTOR: usize = 512;

type Names = BTreeMap<PathBuf, u64>;

#[derive(Clone, Debug)]
enum Change {
    Link(PathBuf, u64),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
}

impl Change {
    fn directory(&self) -> Option<&Path> {
        match self {
            Self::Link(path, _) | Self::Unlink(path) | Self::Rename(_, path) => path.parent(),
        }
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Self::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            Self::Unlink(path) => {
                names.remove(path);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct Disk {
    seen: Names,
    durable: Names,
    changes: Vec<Change>,
    inodes: BTreeMap<u64, Inode>,
    directories: BTreeSet<PathBuf>,
    next_inode: u64,
    steps: u64,
    dies_at: Option<u64>,
    fails_at: Option<u64>,
    lies: bool,
}

impl Disk {
    fn step(&mut self) -> io::Result<()> {
        let step = self.steps;
        self.steps += 1;
        if self.dies_at.is_some_and(|at| step >= at) {
            return Err(io::Error::other("the simulated machine is dead"));
        }
        if self.fails_at == Some(step) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }

    /// A step whose effect may have begun when the machine dies in it.
    fn dying(&self) -> bool {
        self.dies_at == Some(self.steps.saturating_sub(1))
    }

    fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes.entry(inode).or_default()
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.changes.push(change);
    }
}

/// A simulated file system; clones share the disk.
#[derive(Clone, Debug, Default)]
pub struct SimFs {
    disk: Arc<Mutex<Disk>>,
}

impl SimFs {
    /// How many steps have been taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.disk.lock().steps
    }

    /// The machine dies at this step; a write that is the step itself may still reach the disk in part.
    pub fn die_at(&self, step: u64) {
        self.disk.lock().dies_at = Some(step);
    }

    /// Whether the machine has died.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        let disk = self.disk.lock();
        disk.dies_at.is_some_and(|at| disk.steps > at)
    }

    /// From now on, and after power cuts too, a sync succeeds and makes nothing durable.
    pub fn lie(&self) {
        self.disk.lock().lies = true;
    }

    /// This step fails with an I/O error and has no effect.
    pub fn fail_at(&self, step: u64) {
        self.disk.lock().fails_at = Some(step);
    }

    /// The power fails and returns: a new disk with what survived. The old one's handles stay on the old disk.
    #[must_use]
    pub fn power_cut(&self, unsynced: Unsynced) -> Self {
        let old = self.disk.lock();
        let random = SeededEntropy::new(if let Unsynced::Torn(seed) = unsynced { seed } else { 0 });
        let kept = match unsynced {
            Unsynced::Lost => 0,
            Unsynced::Kept => old.changes.len(),
            Unsynced::Torn(_) => random.below(old.changes.len() as u64 + 1) as usize,
        };
        let mut names = old.durable.clone();
        let torn = matches!(unsynced, Unsynced::Torn(_));
        for (position, change) in old.changes.iter().enumerate() {
            let removal = torn && matches!(change, Change::Unlink(_));
            if if removal { random.next_u64() & 1 == 0 } else { position < kept } {
                change.apply(&mut names);
            }
        }
        let mut disk = Disk {
            next_inode: old.next_inode,
            directories: old.directories.clone(),
            lies: old.lies,
            ..Disk::default()
        };
        for (path, number) in names {
            let inode = old.inodes.get(&number).cloned().unwrap_or_default();
            let bytes = survive(&inode, unsynced, &random);
            disk.inodes.insert(number, Inode { seen: bytes.clone(), durable: bytes, unsynced: Vec::new() });
            disk.seen.insert(path.clone(), number);
            disk.durable.insert(path, number);
        }
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// The process dies, the machine lives: the same disk, with nothing lost and no fault planned any more.
    pub fn restart(&self) {
        let mut disk = self.disk.lock();
        disk.dies_at = None;
        disk.fails_at = None;
        disk.steps = 0;
    }

    /// What processes see in this file.
    #[must_use]
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.disk.lock();
        disk.seen.get(path).and_then(|inode| disk.inodes.get(inode)).map(|inode| inode.seen.clone())
    }

    /// Damages a file: from now on it has this content, durably.
    pub fn overwrite(&self, path: &Path, bytes: Vec<u8>) {
        let mut disk = self.disk.lock();
        if let Some(number) = disk.seen.get(path).copied() {
            *disk.inode(number) = Inode { seen: bytes.clone(), durable: bytes, unsynced: Vec::new() };
        }
    }
}

fn survive(inode: &Inode, unsynced: Unsynced, random: &SeededEntropy) -> Vec<u8> {
    match unsynced {
        Unsynced::Lost => inode.durable.clone(),
        Unsynced::Kept => {
            let mut bytes = inode.durable.clone();
            for (offset, write) in &inode.unsynced {
                put(&mut bytes, *offset, write);
            }
            bytes
        }
        Unsynced::Torn(_) => {
            let mut bytes = inode.durable.clone();
            for (offset, write) in &inode.unsynced {
                tear(&mut bytes, *offset, write, random);
            }
            bytes
        }
    }
}

fn tear(bytes: &mut Vec<u8>, offset: usize, write: &[u8], random: &SeededEntropy) {
    let mut at = 0;
    while at < write.len() {
        let end = (SECTOR - (offset + at) % SECTOR + at).min(write.len());
        if random.next_u64() & 1 == 0 {
            put(bytes, offset + at, &write[at..end]);
        }
        at = end;
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, write: &[u8]) {
    let end = offset + write.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(write);
}

fn missing() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl Fs for SimFs {
    type File = SimFile;

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        if !disk.directories.contains(dir) {
            disk.step()?;
            disk.directories.insert(dir.to_path_buf());
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk.lock();
        let here = disk.seen.keys().filter(|path| path.parent() == Some(dir));
        Ok(here.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn create(&self, path: &Path) -> io::Result<SimFile> {
        let mut disk = self.disk.lock();
        disk.step()?;
        let inode = disk.next_inode;
        disk.next_inode += 1;
        disk.inodes.insert(inode, Inode::default());
        disk.change(Change::Link(path.to_path_buf(), inode));
        Ok(SimFile { disk: self.disk.clone(), inode })
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        let disk = self.disk.lock();
        let inode = disk.seen.get(path).copied().ok_or_else(missing)?;
        Ok(SimFile { disk: self.disk.clone(), inode })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.step()?;
        if !disk.seen.contains_key(from) {
            return Err(missing());
        }
        disk.change(Change::Rename(from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.step()?;
        if !disk.seen.contains_key(path) {
            return Err(missing());
        }
        disk.change(Change::Unlink(path.to_path_buf()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.step()?;
        let (here, elsewhere) = disk.changes.drain(..).partition::<Vec<_>, _>(|c| c.directory() == Some(dir));
        disk.changes = elsewhere;
        for change in here {
            change.apply(&mut disk.durable);
        }
        Ok(())
    }
}

/// A file on a simulated disk.
#[derive(Clone, Debug)]
pub struct SimFile {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let bytes = &disk.inode(self.inode).seen;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let found = bytes.get(start..start + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let result = disk.step();
        if result.is_ok() || disk.dying() {
            let offset = usize::try_from(offset).map_err(io::Error::other)?;
            let inode = disk.inode(self.inode);
            put(&mut inode.seen, offset, bytes);
            inode.unsynced.push((offset, bytes.to_vec()));
        }
        result
    }

    /// A sync that fails drops what it should have written, while processes go on seeing it: as Linux does.
    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let result = disk.step();
        if result.is_err() {
            if disk.fails_at == Some(disk.steps - 1) {
                disk.inode(self.inode).unsynced.clear();
            }
            return result;
        }
        if disk.lies {
            return Ok(());
        }
        let inode = disk.inode(self.inode);
        for (offset, write) in std::mem::take(&mut inode.unsynced) {
            put(&mut inode.durable, offset, &write);
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.lock().inode(self.inode).seen.len() as u64)
    }
}

/// Numbers from a seed (splitmix64): the same seed, the same run.
#[derive(Debug)]
pub struct SeededEntropy {
    state: AtomicU64,
}

impl SeededEntropy {
    /// Starts from this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: AtomicU64::new(seed) }
    }

    /// A number below `bound`, which must not be zero.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

impl Entropy for SeededEntropy {
    fn next_u64(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A clock that stands still until it is told otherwise.
#[derive(Debug, Default)]
pub struct SimClock {
    mono: AtomicU64,
    wall: AtomicU64,
}

impl SimClock {
    /// Both clocks go on by `ms` milliseconds.
    pub fn advance(&self, ms: u64) {
        self.mono.fetch_add(ms, Ordering::Relaxed);
        self.wall.fetch_add(ms, Ordering::Relaxed);
    }

    /// The wall clock jumps; monotonic time does not notice.
    pub fn set_wall(&self, at: Millis) {
        self.wall.store(at.0, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn mono(&self) -> Mono {
        Mono(self.mono.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Millis {
        Millis(self.wall.load(Ordering::Relaxed))
    }
}
