//! Disks whose power can be cut: an ext4 file system in a file, mounted through a loop device.
//!
//! [`Disk::cut_power`] has the file system shut down at once without flushing its journal, so that what was not made
//! durable by fsync is gone, as after a power failure.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

nix::ioctl_read! {
    /// `EXT4_IOC_SHUTDOWN`, 0x8004587d.
    ext4_shutdown, b'X', 125, u32
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
}

impl Disk {
    /// Makes `<dir>/<name>.img` of `mib` MiB and mounts it at `<dir>/<name>`.
    ///
    /// # Panics
    /// If it cannot be made or mounted.
    #[must_use]
    pub fn new(dir: &Path, name: &str, mib: u64) -> Self {
        let disk = Self { image: dir.join(format!("{name}.img")), at: dir.join(name) };
        let image = File::create(&disk.image).expect("an image can be made");
        image.set_len(mib << 20).expect("an image can be extended");
        fs::create_dir_all(&disk.at).expect("a mount point can be made");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.image));
        disk.mount();
        disk
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
        use std::os::fd::AsRawFd as _;
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

    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Detached lazily where a process of a failed test still has a file open; the loop device goes with it.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
