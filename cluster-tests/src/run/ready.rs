//! Whether this machine has what a run takes. What it lacks is no fault of the product, and another run lacks it, too.

use std::env;

use nix::unistd::geteuid;

use super::clock;
use crate::{binaries, schedule::Plan};

/// Programs that make networks and disks.
const PROGRAMS: [&str; 4] = ["ip", "mkfs.ext4", "mount", "umount"];

/// Whether a plan can be run here.
///
/// # Errors
/// What it lacks.
pub fn ready(plan: &Plan) -> Result<(), String> {
    plan.check()?;
    if !geteuid().is_root() {
        return Err("making networks and disks needs root".to_owned());
    }
    for name in ["hodei-node", "hodei-agent", "witness"] {
        binaries::find(name)?;
    }
    if plan.needs_failpoints() {
        ["hodei-node", "hodei-agent"]
            .into_iter()
            .try_for_each(|name| binaries::find_with_failpoints(name).map(drop))?;
    }
    if plan.needs_clocks() {
        clock::ready()?;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &&str| env::split_paths(&path).any(|dir| dir.join(program).is_file());
    match PROGRAMS.iter().find(|program| !is_there(program)) {
        Some(program) => Err(format!("{program} is missing: install e2fsprogs, iproute2 and mount")),
        None => Ok(()),
    }
}
