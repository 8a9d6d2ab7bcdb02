//! The one source of a Linux process's randomness, taken over.
//!
//! openraft's election time-outs, tokio's choice among branches and waiters, and the order of every hash map come, through
//! some generator, from `getrandom`. A simulation's process has its own, which counts on from a seed. Some of what is made
//! of it is counted over the whole process (tokio numbers its runtimes), so that each simulation needs a process to itself.

#![allow(unsafe_code, reason = "the symbol of a C library is replaced")]

use std::{
    ffi::{c_uint, c_void},
    slice,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

static SEEDED: AtomicBool = AtomicBool::new(false);
static STATE: AtomicU64 = AtomicU64::new(0);

/// From now on, all randomness of this process follows from `seed`. What a thread drew before stays with it: call this
/// before the thread that simulates is made.
pub fn seed(seed: u64) {
    STATE.store(seed, Ordering::SeqCst);
    assert!(!SEEDED.swap(true, Ordering::SeqCst), "a process has one simulation");
}

/// As getrandom(2).
#[unsafe(no_mangle)]
pub extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    if !SEEDED.load(Ordering::SeqCst) {
        // SAFETY: the arguments are those of a caller of getrandom(2), and go to it.
        return unsafe { nix::libc::syscall(nix::libc::SYS_getrandom, buffer, length, flags) as isize };
    }
    if length == 0 {
        return 0;
    }
    // SAFETY: the caller of getrandom(2) owns so many bytes.
    let buffer = unsafe { slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for chunk in buffer.chunks_mut(8) {
        let bytes = mix(STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst)).to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
    length as isize
}

/// splitmix64
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
