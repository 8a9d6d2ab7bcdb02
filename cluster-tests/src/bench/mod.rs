//! The bench: Hodei beside etcd on one machine, in one run, with persistent clients.
//!
//! - [`submit`]: durable single writes per second. A client is one connection with one request in flight; the same
//!   number of clients, the same size of value, the same durations, three members each, spread evenly over them. The
//!   two systems take turns, each on a fresh cluster while the other one does not run, in alternating order, for
//!   several rounds; medians over the rounds are shown. etcd speaks plain HTTP/2 here, Hodei mutual TLS as always.
//! - [`started`]: from the call of the client that submits to the first instruction of the job's own `main`, one job
//!   at a time on an idle cluster, by one clock (CLOCK_REALTIME of this machine): the job is this program as witness.
//! - [`noop`]: jobs that do nothing, through one agent of two slots, beside the rate at which this machine can start
//!   processes at all, and beside HyperQueue where that is installed.
//! - [`failover`]: from kill -9 of the leader to the answer to the first write that was sent after it.
//! - [`cpu`]: the processor time of servers and clients during a measurement, which other load on the machine moves far
//!   less than it moves the rates.
//! - [`machine`]: what all of this ran on, and how busy it was.

pub mod cpu;
pub mod etcd;
pub mod failover;
pub mod load;
pub mod machine;
pub mod noop;
pub mod started;
pub mod submit;
pub mod table;

/// The median of what was measured; 0 of nothing.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (n, half) if n % 2 == 1 => sorted[half],
        (_, half) => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).abs() < f64::EPSILON);
    }
}
