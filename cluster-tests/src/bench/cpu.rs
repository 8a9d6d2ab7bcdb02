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
        let servers = self.servers.iter().map(|pid| of(&pid.to_string())).sum();
        Spent { servers, clients: of("self") }
    }
}

impl std::ops::Sub for Spent {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { servers: self.servers - earlier.servers, clients: self.clients - earlier.clients }
    }
}

/// Of all threads of a process, those that have ended included; 0 if it is gone.
fn of(process: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    // The name before the last parenthesis may contain anything; utime and stime are the 12th and 13th field after it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    let ticks: u32 = fields.skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    f64::from(ticks) / f64::from(u32::try_from(per_second).unwrap_or(100))
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
        assert!(of("0").abs() < f64::EPSILON);
    }
}
