//! A closed loop of clients: each sends its next request when the last one is answered.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tonic::Status;

use super::cpu::{Meter, Spent};

/// One client with a connection of its own.
pub trait Put: Send + 'static {
    /// One durable write; done when it is acknowledged.
    fn put(&mut self) -> impl Future<Output = Result<(), Status>> + Send;
}

/// What a stretch of load came to.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Acknowledged writes per second.
    pub per_second: f64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile in milliseconds.
    pub p99_ms: f64,
    /// Processor time per acknowledged write: of all servers together, in microseconds.
    pub servers_us: f64,
    /// The same of all clients.
    pub clients_us: f64,
    /// Writes that were not acknowledged.
    pub errors: u64,
    /// The first of these errors.
    pub first_error: Option<String>,
}

/// What one client saw between the end of the warm-up and the end.
struct Tally {
    latencies: Histogram<u64>,
    errors: u64,
    first_error: Option<String>,
}

/// Has all `clients` write for `warm_up + measured` and reports on the second part.
///
/// # Panics
/// If a client panics.
pub async fn run<P: Put>(clients: Vec<P>, meter: Meter, warm_up: Duration, measured: Duration) -> Figures {
    let begin = Instant::now() + warm_up;
    let end = begin + measured;
    let barrier = Arc::new(tokio::sync::Barrier::new(clients.len()));
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|client| {
            let barrier = barrier.clone();
            tokio::spawn(async move {
                barrier.wait().await;
                one(client, begin, end).await
            })
        })
        .collect();
    let spent = tokio::spawn(spent(meter, begin, end));
    let mut total = Tally::new();
    for task in tasks {
        total.add(&task.await.expect("a client does not panic"));
    }
    let spent = spent.await.expect("reading the time does not panic");
    let (count, seconds) = (to_f64(total.latencies.len()), measured.as_secs_f64());
    let per_write = |seconds: f64| seconds * 1e6 / count.max(1.0);
    let ms = |quantile| millis(total.latencies.value_at_quantile(quantile));
    Figures {
        per_second: count / seconds,
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        servers_us: per_write(spent.servers),
        clients_us: per_write(spent.clients),
        errors: total.errors,
        first_error: total.first_error.clone(),
    }
}

async fn spent(meter: Meter, begin: Instant, end: Instant) -> Spent {
    tokio::time::sleep_until(begin.into()).await;
    let before = meter.read();
    tokio::time::sleep_until(end.into()).await;
    meter.read() - before
}

async fn one<P: Put>(mut client: P, begin: Instant, end: Instant) -> Tally {
    let mut tally = Tally::new();
    while Instant::now() < end {
        let sent = Instant::now();
        let answer = client.put().await;
        let done = Instant::now();
        if done < begin || done >= end {
            continue;
        }
        match answer {
            Ok(()) => tally.latencies.saturating_record(micros(done - sent)),
            Err(status) => {
                tally.errors += 1;
                tally.first_error.get_or_insert_with(|| format!("{:?}: {}", status.code(), status.message()));
            }
        }
    }
    tally
}

impl Tally {
    fn new() -> Self {
        // Microseconds up to a minute.
        let latencies = Histogram::new_with_max(60_000_000, 3).expect("the bounds are valid");
        Self { latencies, errors: 0, first_error: None }
    }

    fn add(&mut self, other: &Self) {
        self.latencies.add(&other.latencies).expect("all histograms have the same bounds");
        self.errors += other.errors;
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Microseconds as milliseconds.
#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
#[must_use]
pub fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn to_f64(count: u64) -> f64 {
    count as f64
}
