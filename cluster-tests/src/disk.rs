//! Disks whose power can be cut: an ext4 file system in a file, mounted through a loop device.
//!
//! [`Disk::cut_power`] has the file system shut down at once without flushing its journal, so that what was not made
//! durable by fsync is gone, as after a power failure. [`Disk::slow_down`] and [`freeze`] have writes take their time.

use std::{
    env,
    fs::{self, File},
    io::{self, Seek as _, SeekFrom, Write as _},
    os::fd::AsRawFd as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    unistd::Pid,
};

use crate::groups::Group;

nix::ioctl_read! {
    /// `EXT4_IOC_SHUTDOWN`, 0x8004587d.
    ext4_shutdown, b'X', 125, u32
}
nix::ioctl_readwrite! {
    /// `FIFREEZE`, 0xc0045877.
    freeze_file_system, b'X', 119, i32
}
nix::ioctl_readwrite! {
    /// `FITHAW`, 0xc0045878.
    thaw_file_system, b'X', 120, i32
}
/// Neither the log nor data are flushed.
const WITHOUT_FLUSHING: u32 = 2;

/// Set to anything, it has tests that need root pass without doing anything, and say so.
pub const SKIP: &str = "HODEI_SKIP_ROOT_TESTS";

/// Whether this test may mount disks and make networks.
///
/// # Panics
/// Without root, unless the environment says to skip.
#[must_use]
pub fn permitted() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(
        env::var_os(SKIP).is_some(),
        "mounting disks and making networks needs root: run as root, or set {SKIP}=1 to skip this test"
    );
    eprintln!("skipped: {SKIP} is set");
    false
}

/// A mounted file system of its own. Dropping it unmounts it.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
    /// The file system that the image lies on, where that is its own.
    memory: Option<PathBuf>,
}

impl Disk {
    /// Makes `<dir>/<name>.img` of `mib` MiB and mounts it at `<dir>/<name>`.
    ///
    /// # Panics
    /// If it cannot be made or mounted.
    #[must_use]
    pub fn new(dir: &Path, name: &str, mib: u64) -> Self {
        let disk = Self { image: dir.join(format!("{name}.img")), at: dir.join(name), memory: None };
        let image = File::create(&disk.image).expect("an image can be made");
        image.set_len(mib << 20).expect("an image can be extended");
        fs::create_dir_all(&disk.at).expect("a mount point can be made");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.image));
        disk.mount();
        disk
    }

    /// The same with its image in memory, of which there is no more than that: [`Disk::exhaust`].
    ///
    /// # Panics
    /// If it cannot be made or mounted.
    #[must_use]
    pub fn in_memory(dir: &Path, name: &str, mib: u64) -> Self {
        let memory = dir.join(format!("{name}.memory"));
        fs::create_dir_all(&memory).expect("a mount point can be made");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(&memory));
        let mut disk = Self::new(&memory, name, mib);
        disk.memory = Some(memory);
        disk
    }

    /// Has writes fail once their pages are to be made durable: what lies below the file system is full.
    ///
    /// # Panics
    /// Unless it is in memory.
    pub fn exhaust(&self) {
        let memory = self.memory.as_ref().expect("its image is in memory");
        fill(&memory.join("filler")).expect("memory can be filled");
    }

    /// Takes [`Disk::exhaust`] back, and mounts it anew: a file system that has failed stays so.
    ///
    /// # Panics
    /// If a process still uses it.
    pub fn replenish(&self) {
        let memory = self.memory.as_ref().expect("its image is in memory");
        fs::remove_file(memory.join("filler")).expect("what filled it is there");
        self.restore_power();
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Loses whatever is not durable, at once. Kill the processes that use it, then [`Disk::restore_power`].
    ///
    /// # Panics
    /// If the file system refuses.
    #[allow(unsafe_code)]
    pub fn cut_power(&self) {
        let root = File::open(&self.at).expect("the mount point can be opened");
        let mut how = WITHOUT_FLUSHING;
        // SAFETY: the descriptor is open, and the kernel reads one u32 from the pointer, which outlives the call.
        let cut = unsafe { ext4_shutdown(root.as_raw_fd(), &raw mut how) };
        cut.expect("ext4 can be shut down");
    }

    /// Unmounts and mounts again, which replays the journal.
    ///
    /// # Panics
    /// If a process still uses it.
    pub fn restore_power(&self) {
        run(Command::new("umount").arg(&self.at));
        self.mount();
    }

    /// Has the file system find an error in itself and refuse writes from then on, until [`Disk::restore_power`].
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn find_error(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("there are mounts");
        let at = self.at.display().to_string();
        let device = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let device = fields.next()?.strip_prefix("/dev/")?;
            (fields.next()? == at).then_some(device)
        });
        let trigger = format!("/sys/fs/ext4/{}/trigger_fs_error", device.expect("it is mounted"));
        fs::write(trigger, "a test's wish").expect("ext4 takes an error");
    }

    /// Lets a process make no more than so many writes a second reach the disk, until what this gives is dropped.
    ///
    /// # Panics
    /// If control groups refuse.
    #[must_use]
    pub fn slow_down(&self, process: Pid, writes_per_second: u32) -> Group {
        let device = fs::metadata(&self.at).expect("it is mounted").dev();
        Group::slow(process, device, writes_per_second)
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop,errors=remount-ro"]).arg(&self.image).arg(&self.at));
    }
}

/// Has everything wait that would write to the file system at this mount point, in system calls that no signal interrupts,
/// until what this gives is dropped.
///
/// # Panics
/// If the file system refuses.
#[must_use]
#[allow(unsafe_code)]
pub fn freeze(at: &Path) -> Frozen {
    let root = File::open(at).expect("the mount point can be opened");
    let mut unused = 0;
    // SAFETY: the descriptor is open, and the kernel does not look at what the pointer points to.
    let frozen = unsafe { freeze_file_system(root.as_raw_fd(), &raw mut unused) };
    frozen.expect("ext4 can be frozen");
    Frozen { root }
}

/// A disk to which nothing can be written. Dropping it ends that.
#[derive(Debug)]
pub struct Frozen {
    root: File,
}

impl Drop for Frozen {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        let mut unused = 0;
        // SAFETY: the descriptor is open, and the kernel does not look at what the pointer points to.
        let thawed = unsafe { thaw_file_system(self.root.as_raw_fd(), &raw mut unused) };
        if let Err(error) = thawed {
            eprintln!("a file system stays frozen: {error}");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Detached lazily where a process of a failed test still has a file open; the loop device goes with it.
        for at in [Some(&self.at), self.memory.as_ref()].into_iter().flatten() {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}

/// Unmounts whatever lies below a directory `PREFIX-PID-…` whose process was killed: nobody else will.
pub fn sweep(prefix: &str) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let owner = |at: &str| {
        let name = at.split('/').find_map(|name| name.strip_prefix(prefix)?.strip_prefix('-'))?;
        name.split('-').next()?.parse::<u32>().ok()
    };
    let is_left = |at: &&str| owner(at).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    let all: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(is_left).collect();
    // What was mounted last lies on what was mounted first.
    for at in all.into_iter().rev() {
        let _ = Command::new("umount").arg("-l").arg(at).status();
    }
}

/// Has a file take up all room that is left, to the last byte.
///
/// # Errors
/// If the file cannot be made.
pub fn fill(path: &Path) -> io::Result<()> {
    let mut filler = File::create(path)?;
    // Reserved, which takes no time, as far as that goes; the rest is written.
    let (mut taken, mut piece) = (0, 1_i64 << 30);
    while piece >= 1 << 16 {
        match fallocate(&filler, FallocateFlags::empty(), taken, piece) {
            Ok(()) => taken += piece,
            Err(_) => piece /= 2,
        }
    }
    filler.seek(SeekFrom::End(0))?;
    let mut bytes = vec![0x5a; 1 << 16];
    while !bytes.is_empty() {
        if filler.write_all(&bytes).is_err() {
            bytes.truncate(bytes.len() / 2);
        }
    }
    Ok(())
}

/// Takes [`fill`] back, so that it is not undone by a power cut. What is wiped by then is empty already.
pub fn empty(path: &Path) {
    if fs::remove_file(path).is_ok()
        && let Some(dir) = path.parent()
    {
        let _ = File::open(dir).and_then(|dir| dir.sync_all());
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    fn write(disk: &Path) {
        let mut file = File::create(disk.join("file")).expect("a file can be made");
        file.write_all(b"x").expect("it can be written");
        file.sync_all().expect("it can be made durable");
    }

    #[test]
    fn disks_of_the_dead_are_swept_and_those_of_the_living_stay() {
        if !permitted() {
            return;
        }
        let mut owner = Command::new("true").spawn().expect("true runs");
        let dead = owner.id();
        let _ = owner.wait();
        let dir = tempfile::tempdir().expect("a directory can be made");
        let disk = |pid: u32| {
            let of = dir.path().join(format!("hodei-sweep-{pid}-x"));
            fs::create_dir(&of).expect("a directory can be made");
            Disk::in_memory(&of, "disk", 8)
        };
        let [left, held] = [dead, std::process::id()].map(disk);
        sweep("hodei-sweep");
        let mounts = fs::read_to_string("/proc/self/mounts").expect("there are mounts");
        let is_mounted = |disk: &Disk| mounts.contains(&disk.path().display().to_string());
        assert!(!is_mounted(&left) && is_mounted(&held), "{mounts}");
    }

    #[test]
    fn a_frozen_disk_takes_nothing_until_it_is_thawed() {
        if !permitted() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory can be made");
        let disk = Disk::new(dir.path(), "disk", 16);
        let path = disk.path().to_owned();
        let (tell, told) = mpsc::channel();
        let frozen = freeze(&path);
        let writer = thread::spawn(move || {
            write(&path);
            let _ = tell.send(());
        });
        assert!(told.recv_timeout(Duration::from_millis(300)).is_err());
        // As when a test panics.
        let dropped = thread::spawn(move || {
            let _frozen = frozen;
            std::panic::resume_unwind(Box::new("a test panics"));
        });
        assert!(dropped.join().is_err());
        assert!(told.recv_timeout(Duration::from_secs(30)).is_ok());
        assert!(writer.join().is_ok());
    }
}
