//! A job that writes down that it lives: the outside witness of which attempts run when.
//!
//! `witness DIR --for-ms N` takes the lock `DIR/JOB.lock`, which everything that it would make inherits, appends `start`, a
//! `beat` every 10 ms and `end` to `DIR/witness-JOB.jsonl`, lines of a history with times of `CLOCK_MONOTONIC`, and prints
//! seeded lines on both streams. An attempt that finds the lock taken appends `refused`.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use cluster_tests::{
    check::logs::seeded::Lines,
    history::{Body, Mark, MarkKind, Note, Record, now_ns},
};
use nix::fcntl::{Flock, FlockArg};

/// Between two beats.
const BEAT: Duration = Duration::from_millis(10);
/// How it ends when another attempt holds its lock.
const REFUSED: u8 = 99;

#[derive(Debug, Parser)]
#[command(about = "A job that writes down that it lives")]
struct Options {
    /// Where its lock and its marks are.
    dir: PathBuf,
    /// For how many milliseconds it goes on
    #[arg(long)]
    for_ms: u64,
    /// How many lines it prints at each beat
    #[arg(long, default_value_t = 1)]
    lines: u64,
    /// Its exit code
    #[arg(long, default_value_t = 0)]
    code: u8,
}

struct Witness {
    job: String,
    attempt: u32,
    fence: u64,
    worker: String,
    marks: File,
    lines: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let mut witness = Witness::new(&options.dir)?;
    let lock = File::create(options.dir.join(format!("{}.lock", witness.job)))?;
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
        witness.mark(MarkKind::Refused)?;
        return Ok(ExitCode::from(REFUSED));
    };
    witness.mark(MarkKind::Start)?;
    let begun = Instant::now();
    // It goes on when nobody reads any more what it prints, as most jobs do that print little.
    let mut is_heard = true;
    while begun.elapsed() < Duration::from_millis(options.for_ms) {
        witness.mark(MarkKind::Beat)?;
        is_heard = is_heard && witness.print(options.lines).is_ok();
        std::thread::sleep(BEAT);
    }
    witness.mark(MarkKind::End)?;
    Ok(ExitCode::from(options.code))
}

impl Witness {
    fn new(dir: &Path) -> anyhow::Result<Self> {
        let job = std::env::var("HODEI_JOB_ID")?;
        let marks = dir.join(format!("witness-{job}.jsonl"));
        Ok(Self {
            attempt: std::env::var("HODEI_ATTEMPT")?.parse()?,
            fence: std::env::var("HODEI_FENCE")?.parse()?,
            worker: std::env::var("HODEI_WORKER_ID").unwrap_or_default(),
            marks: OpenOptions::new().append(true).create(true).open(marks)?,
            lines: 0,
            job,
        })
    }

    /// One write, so that marks of two attempts would not be mixed.
    fn mark(&mut self, mark: MarkKind) -> anyhow::Result<()> {
        // What is counted has left this process: a beat tells what a log must hold even if there is no end.
        let lines = matches!(mark, MarkKind::Beat | MarkKind::End).then_some(self.lines);
        let (attempt, fence, worker) = (self.attempt, self.fence, self.worker.clone());
        let note = Note::Witness(Mark { mark, attempt, fence, worker, lines });
        let mut line = serde_json::to_vec(&Record::new(now_ns(), 0, &self.job, Body::Note(note)))?;
        line.push(b'\n');
        self.marks.write_all(&line)?;
        Ok(())
    }

    /// Mostly on standard output; each fourth line goes to standard error.
    fn print(&mut self, lines: u64) -> io::Result<()> {
        let of = Lines { job: self.job.clone(), attempt: self.attempt };
        for _ in 0..lines {
            // Numbers count in each stream by itself.
            let (stream, number) = match self.lines % 4 {
                3 => (2, self.lines / 4),
                at => (1, self.lines / 4 * 3 + at),
            };
            let line = of.line(stream, number);
            if stream == 1 {
                writeln!(io::stdout(), "{line}")?;
            } else {
                writeln!(io::stderr(), "{line}")?;
            }
            self.lines += 1;
        }
        io::stdout().flush()
    }
}
