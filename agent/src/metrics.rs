//! What the machine, or the container that the agent is in, uses at the moment. Read in a blocking task, kept for
//! 35 seconds: heartbeats carry what there is and never wait for it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use hodei_proto::v1::WorkerStats;
use nix::sys::statvfs::statvfs;
use parking_lot::Mutex;

use crate::clock::wall_ms;

const KEPT_FOR: Duration = Duration::from_secs(35);

#[derive(Default)]
struct Cached {
    stats: Option<WorkerStats>,
    asked: Option<Instant>,
    cpu: Option<(Instant, u64)>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    cached: Arc<Mutex<Cached>>,
    dir: PathBuf,
}

impl Metrics {
    /// Also tells the space left where `dir` is.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { cached: Arc::default(), dir }
    }

    /// The newest figures; asks for newer ones in the background where they are old.
    #[must_use]
    pub fn current(&self) -> Option<WorkerStats> {
        let mut cached = self.cached.lock();
        if cached.asked.is_none_or(|asked| asked.elapsed() >= KEPT_FOR) {
            cached.asked = Some(Instant::now());
            let this = self.clone();
            drop(tokio::task::spawn_blocking(move || this.refresh()));
        }
        cached.stats
    }

    fn refresh(&self) {
        let (now, cpu) = (Instant::now(), cpu_micros());
        let before = cpu.and_then(|cpu| self.cached.lock().cpu.replace((now, cpu)));
        let stats =
            sample(&self.dir, before.zip(cpu).map(|((at, before), cpu)| (now - at, cpu.saturating_sub(before))));
        self.cached.lock().stats = Some(stats);
    }
}

/// Memory and storage of this machine, or of the container that the agent is in, in MiB.
#[must_use]
pub fn capacity(dir: &Path) -> (u64, u64) {
    let storage = statvfs(dir).map_or(0, |fs| fs.blocks() * fs.fragment_size());
    (memory().0 >> 20, storage >> 20)
}

fn sample(dir: &Path, cpu: Option<(Duration, u64)>) -> WorkerStats {
    let (total, used) = memory();
    WorkerStats {
        cpu_used_millis: cpu.map_or(0, |(over, micros)| micros * 1_000 / (over.as_micros().max(1) as u64)),
        memory_used_mb: used >> 20,
        memory_total_mb: total >> 20,
        storage_free_mb: statvfs(dir).map_or(0, |fs| fs.blocks_available() * fs.fragment_size()) >> 20,
        load_1m_centi: load_centi(),
        sampled_at_ms: wall_ms(),
    }
}

/// Total and used bytes: the group's where it has a limit, else the machine's.
fn memory() -> (u64, u64) {
    let v2 = Path::new("/sys/fs/cgroup");
    let v1 = Path::new("/sys/fs/cgroup/memory");
    let limited = |limit: PathBuf, usage: PathBuf| {
        let limit = number(&limit).filter(|limit| *limit < 1 << 50)?;
        Some((limit, number(&usage)?))
    };
    limited(v2.join("memory.max"), v2.join("memory.current"))
        .or_else(|| limited(v1.join("memory.limit_in_bytes"), v1.join("memory.usage_in_bytes")))
        .unwrap_or_else(|| {
            let total = meminfo("MemTotal:");
            (total, total.saturating_sub(meminfo("MemAvailable:")))
        })
}

fn meminfo(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() << 10
}

/// CPU time used so far, in microseconds: the group's, else the machine's.
fn cpu_micros() -> Option<u64> {
    if let Ok(text) = fs::read_to_string("/sys/fs/cgroup/cpu.stat")
        && let Some(micros) = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok())
    {
        return Some(micros);
    }
    if let Some(nanos) = number(Path::new("/sys/fs/cgroup/cpuacct/cpuacct.usage")) {
        return Some(nanos / 1_000);
    }
    let text = fs::read_to_string("/proc/stat").ok()?;
    let fields = text.lines().next()?.split_whitespace().skip(1).map_while(|field| field.parse::<u64>().ok());
    // user nice system idle iowait irq softirq steal, in hundredths of a second; idle and iowait are no use.
    let busy: u64 = fields.enumerate().filter(|(at, _)| !matches!(at, 3 | 4 | 8 | 9)).map(|(_, ticks)| ticks).sum();
    Some(busy * 10_000)
}

fn load_centi() -> u32 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut digits = text.split_whitespace().next().unwrap_or("0").split('.');
    let whole: u32 = digits.next().and_then(|text| text.parse().ok()).unwrap_or_default();
    whole * 100 + digits.next().and_then(|text| text.parse::<u32>().ok()).unwrap_or_default()
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_plausible() {
        let stats = sample(Path::new("/"), Some((Duration::from_secs(2), 3_000_000)));
        assert_eq!(stats.cpu_used_millis, 1_500);
        assert!(stats.memory_total_mb >= stats.memory_used_mb && stats.memory_total_mb > 0);
        assert!(cpu_micros().is_some_and(|micros| micros > 0));
    }
}
