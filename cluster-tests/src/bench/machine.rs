//! What the figures were measured on.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    thread,
    time::Instant,
};

use super::{load::millis, median};

/// How many times the disk is asked.
const SYNCS: usize = 200;

/// One line per property.
#[must_use]
pub fn describe(dir: &Path) -> Vec<(String, String)> {
    let (median, worst) = sync_latency(dir);
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    vec![
        ("cores".to_owned(), cores.to_string()),
        ("processor".to_owned(), processor()),
        ("kernel".to_owned(), read("/proc/sys/kernel/osrelease")),
        ("append 4 KiB + fdatasync".to_owned(), format!("median {median:.2} ms, p99 {worst:.2} ms ({SYNCS} times)")),
    ]
}

/// The load averages over 1, 5 and 15 minutes.
#[must_use]
pub fn load() -> String {
    read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn processor() -> String {
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned())
}

/// Median and 99th percentile, in milliseconds, of an append that is made durable.
fn sync_latency(dir: &Path) -> (f64, f64) {
    let Ok(file) = tempfile::NamedTempFile::new_in(dir) else { return (f64::NAN, f64::NAN) };
    let Ok(mut append) = OpenOptions::new().append(true).open(file.path()) else { return (f64::NAN, f64::NAN) };
    let mut took: Vec<_> = (0..SYNCS)
        .filter_map(|_| {
            let start = Instant::now();
            append.write_all(&[0x5a; 4096]).and_then(|()| append.sync_data()).ok()?;
            Some(millis(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)))
        })
        .collect();
    took.sort_by(f64::total_cmp);
    (median(&took), took.get(took.len() * 99 / 100).copied().unwrap_or(f64::NAN))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
