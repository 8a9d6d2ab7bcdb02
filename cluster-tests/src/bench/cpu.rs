//! Processor time of the servers and of the clients, who are this process.

use std::fs;

use nix::unistd::{Pid, SysconfVar, sysconf};

/// Whose time is taken.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    servers: Vec<Pid>,
}

/// Processor time in seconds, user and system together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Of all servers.
    pub servers: f64,
    /// Of this process.
    pub clients: f64,
}

impl Meter {
    /// Of these servers and this process.
    #[must_use]
    pub fn new(servers: Vec<Pid>) -> Self {
        Self { servers }
    }

    /// What was spent since they were started.
    #[must_use]
    pub fn read(&self) -> Spent {
        let servers = self.servers.iter().map(|pid| own(&pid.to_string())).sum();
        Spent { servers, clients: own("self") }
    }
}

impl std::ops::Sub for Spent {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { servers: self.servers - earlier.servers, clients: self.clients - earlier.clients }
    }
}

/// Of all threads of a process (its id, or `self`), those that have ended included, in seconds; 0 if it is gone.
#[must_use]
pub fn own(process: &str) -> f64 {
    let [own, _] = times(process);
    own
}

/// Of all children of a process that have ended and were waited for, and of theirs, in seconds; 0 if it is gone.
#[must_use]
pub fn of_children(process: &str) -> f64 {
    let [_, children] = times(process);
    children
}

fn times(process: &str) -> [f64; 2] {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let per_second = f64::from(u32::try_from(per_second).unwrap_or(100));
    // The name before the last parenthesis may contain anything; utime, stime, cutime and cstime are the 12th to 15th
    // field after it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    let ticks: Vec<u32> = fields.skip(11).take(4).filter_map(|field| field.parse().ok()).collect();
    let sum = |ticks: Option<&[u32]>| f64::from(ticks.unwrap_or_default().iter().sum::<u32>()) / per_second;
    [sum(ticks.get(..2)), sum(ticks.get(2..4))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_busy_thread_is_seen() {
        let meter = Meter::new(vec![nix::unistd::getpid()]);
        let before = meter.read();
        while (meter.read() - before).clients < 0.05 {
            std::hint::black_box(0);
        }
        let spent = meter.read() - before;
        assert!(spent.servers >= 0.05 && spent.clients >= 0.05, "{spent:?}");
        assert!(own("0").abs() < f64::EPSILON);
    }
}
