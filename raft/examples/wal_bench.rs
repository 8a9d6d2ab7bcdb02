//! How fast the log is on this disk: `cargo run --release -p hodei-raft --example wal_bench -- [DIRECTORY]`.
//!
//! Groups of entries are submitted with a few in flight, as a leader does under load, and one by one, as it does when
//! idle; each acknowledgement means WAL and high-water mark are synced. Beside it, what the disk gives at best: the same
//! bytes written to a file that was filled before, one fdatasync each.

#![allow(clippy::unwrap_used, reason = "an example may panic")]

use std::{
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hodei_raft::{
    seam::{File, Fs, RealFs, SystemEntropy},
    wal::{EntryId, Options, Record, Wal},
};

const ENTRY: usize = 512;

struct Shape {
    name: &'static str,
    entries: u64,
    in_flight: u64,
    groups: u64,
}

const SHAPES: [Shape; 4] = [
    Shape { name: "64 × 512 B, 1 in flight", entries: 64, in_flight: 1, groups: 3_000 },
    Shape { name: "64 × 512 B, 4 in flight", entries: 64, in_flight: 4, groups: 6_000 },
    Shape { name: "64 × 512 B, 16 in flight", entries: 64, in_flight: 16, groups: 10_000 },
    Shape { name: "1 × 512 B, 1 in flight", entries: 1, in_flight: 1, groups: 3_000 },
];

fn report(name: &str, entries: u64, took: Duration, mut latencies: Vec<Duration>) {
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let rate = entries as f64 / took.as_secs_f64();
    println!(
        "{name:<28} {rate:>9.0} entries/s   p50 {:>6.2} ms   p99 {:>6.2} ms   max {:>6.2} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

fn log(dir: &Path, shape: &Shape) {
    let (wal, recovered) = Wal::open(&RealFs, dir, &Options::default(), Arc::new(SystemEntropy)).unwrap();
    let body = Bytes::from(vec![0x5a; ENTRY]);
    let mut index = recovered.last.map_or(0, |last| last.index + 1);
    let (done, finished) = mpsc::channel();
    let mut latencies = Vec::new();
    let began = Instant::now();
    for group in 0..shape.groups + shape.in_flight {
        if group >= shape.in_flight {
            latencies.push(finished.recv().unwrap());
        }
        if group < shape.groups {
            let ids = index..index + shape.entries;
            let append = |index| Record::Append { id: EntryId { term: 1, index }, body: body.clone().into() };
            let (done, submitted) = (done.clone(), Instant::now());
            let done = Box::new(move || done.send(submitted.elapsed()).unwrap());
            wal.submit(ids.clone().map(append).collect(), None, Some(done)).unwrap();
            index = ids.end;
            if group % 1_000 == 999 {
                let upto = EntryId { term: 1, index: index - 1 };
                wal.submit(vec![Record::Purge { upto }], None, None).unwrap();
            }
        }
    }
    report(shape.name, shape.groups * shape.entries, began.elapsed(), latencies);
    wal.close();
}

fn bare(dir: &Path) {
    let file = RealFs.create(&dir.join("bare")).unwrap();
    let (group, groups) = (vec![0x5a; 64 * ENTRY], 512);
    for at in 0..groups {
        File::write_at(&file, &vec![0; group.len()], at * group.len() as u64).unwrap();
    }
    File::sync_data(&file).unwrap();
    let mut latencies = Vec::new();
    let began = Instant::now();
    for at in 0..groups {
        let start = Instant::now();
        File::write_at(&file, &group, at * group.len() as u64).unwrap();
        File::sync_data(&file).unwrap();
        latencies.push(start.elapsed());
    }
    report("bare file, one fdatasync", 64 * groups, began.elapsed(), latencies);
}

fn main() {
    let parent = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(parent).unwrap();
    bare(dir.path());
    for shape in &SHAPES {
        log(&dir.path().join("wal"), shape);
    }
    let began = Instant::now();
    let (wal, recovered) =
        Wal::open(&RealFs, &dir.path().join("wal"), &Options::default(), Arc::new(SystemEntropy)).unwrap();
    println!("reopening {} bytes of entries took {:.0?}; {recovered:?}", wal.bytes(), began.elapsed());
    wal.close();
}
