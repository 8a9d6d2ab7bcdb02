//! From the submission of a job to the first instruction of its process.

use std::{
    env, fs,
    io::Write as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hdrhistogram::Histogram;
use hodei_proto::v1::{JobSelector, JobState, WatchJobsRequest};
use rand::Rng as _;

use super::load::millis;
use crate::{Client, Cluster, client::shell};

const DEADLINE: Duration = Duration::from_secs(10);
/// Not counted: connections are made, caches filled.
const WARM_UP: usize = 20;

/// What was measured, in milliseconds.
#[derive(Clone, Debug)]
pub struct Started {
    /// How many jobs.
    pub samples: u64,
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

/// Runs `samples` jobs one after the other on three idle nodes with one agent, submitting to each node in turn.
///
/// # Panics
/// If a job does not run.
pub async fn run(samples: usize) -> Started {
    let mut cluster = Cluster::start(3).await;
    cluster.agent(&[0, 1, 2], &[]).await;
    let clients: Vec<_> = (0..3).map(|node| cluster.client(node)).collect();
    let mut latencies = Histogram::<u64>::new_with_max(60_000_000, 3).expect("the bounds are valid");
    for i in 0..samples + WARM_UP {
        let path = cluster.dir().join(format!("witness-{i}"));
        let took = one(&clients[i % 3], &path).await;
        if i >= WARM_UP {
            latencies.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
        // Anywhere between two beats of whatever timers there are.
        let pause = rand::rng().random_range(20..60);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    Started {
        samples: latencies.len(),
        p50_ms: millis(latencies.value_at_quantile(0.5)),
        p99_ms: millis(latencies.value_at_quantile(0.99)),
        max_ms: millis(latencies.max()),
    }
}

async fn one(client: &Client, path: &Path) -> Duration {
    let program = env::current_exe().expect("a running process has an executable");
    let spec = shell(&program.to_string_lossy(), &["witness", &path.to_string_lossy()]);
    let sent = now();
    let job = client.submit(spec, DEADLINE).await.expect("an idle cluster takes a job");
    let end = end_of(client, &job).await;
    assert_eq!(end, JobState::Succeeded, "the witness failed");
    let started = fs::read_to_string(path).expect("the witness has written");
    let started = Duration::from_nanos(started.trim().parse().expect("the witness writes a number"));
    started.saturating_sub(sent)
}

async fn end_of(client: &Client, job: &str) -> JobState {
    let request = WatchJobsRequest { jobs: vec![JobSelector { text: job.to_owned() }] };
    let mut watch = client.jobs().watch_jobs(request).await.expect("a job can be watched").into_inner();
    let mut state = JobState::Unspecified;
    while let Some(event) = watch.message().await.expect("the watch lasts") {
        state = event.job.map_or(state, |job| job.state());
    }
    state
}

/// What the job does: notes the time, first thing in `main`.
///
/// # Errors
/// If the file cannot be written.
pub fn witness(started: Duration, path: &Path) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    writeln!(file, "{}", started.as_nanos())
}

/// CLOCK_REALTIME.
///
/// # Panics
/// If the clock is before 1970.
#[must_use]
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970")
}
