//! Durable single writes per second: job submissions beside etcd's puts.

use std::time::Duration;

use hodei_proto::v1::JobSpec;
use prost::Message as _;
use tonic::Status;

use super::{
    cpu::Meter,
    etcd::Etcd,
    load::{self, Figures, Put},
};
use crate::{Client, Cluster, client::shell};

/// Size of a value, and of an encoded job spec.
pub const SIZE: usize = 512;
/// Members of each cluster.
const MEMBERS: usize = 3;
/// A request that takes longer counts as an error.
const DEADLINE: Duration = Duration::from_secs(10);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Numbers of clients.
    pub clients: Vec<usize>,
    /// How often each is measured.
    pub rounds: usize,
    /// Before each measurement.
    pub warm_up: Duration,
    /// Of each measurement.
    pub measured: Duration,
    /// Leave etcd out.
    pub without_etcd: bool,
}

/// All measurements of one number of clients.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// How many clients.
    pub clients: usize,
    /// One per round.
    pub hodei: Vec<Figures>,
    /// One per round.
    pub etcd: Vec<Figures>,
}

/// Runs the plan; progress goes to standard error.
pub async fn run(plan: &Plan) -> Vec<Row> {
    let mut rows: Vec<_> = plan.clients.iter().map(|&clients| Row { clients, ..Row::default() }).collect();
    for round in 0..plan.rounds {
        // Whoever goes first finds the machine in another state: take turns.
        if round % 2 == 0 {
            etcd_round(plan, &mut rows).await;
        }
        hodei_round(plan, &mut rows).await;
        if round % 2 == 1 {
            etcd_round(plan, &mut rows).await;
        }
    }
    rows
}

async fn hodei_round(plan: &Plan, rows: &mut [Row]) {
    let mut cluster = Cluster::start(MEMBERS).await;
    let meter = Meter::new(cluster.nodes.iter_mut().map(|node| node.process().pid()).collect());
    for row in rows {
        let clients = (0..row.clients).map(|i| Submitter { client: cluster.client(i % MEMBERS), spec: spec(SIZE) });
        let figures = load::run(clients.collect(), meter.clone(), plan.warm_up, plan.measured).await;
        note("hodei", row.clients, &figures);
        row.hodei.push(figures);
    }
}

async fn etcd_round(plan: &Plan, rows: &mut [Row]) {
    if plan.without_etcd {
        return;
    }
    let etcd = Etcd::start(MEMBERS).await;
    for row in rows {
        let figures = load::run(etcd.clients(row.clients, SIZE), etcd.meter(), plan.warm_up, plan.measured).await;
        note("etcd", row.clients, &figures);
        row.etcd.push(figures);
    }
}

fn note(system: &str, clients: usize, figures: &Figures) {
    let Figures { per_second, p50_ms, p99_ms, servers_us, clients_us, errors, first_error } = figures;
    eprintln!(
        "{system:>6} {clients:>4} clients: {per_second:>9.0}/s  p50 {p50_ms:.2} ms  p99 {p99_ms:.2} ms  \
         CPU {servers_us:.0} + {clients_us:.0} us"
    );
    if let Some(error) = first_error {
        eprintln!("       {errors} errors, the first: {error}");
    }
}

struct Submitter {
    client: Client,
    spec: JobSpec,
}

impl Put for Submitter {
    async fn put(&mut self) -> Result<(), Status> {
        self.client.submit(self.spec.clone(), DEADLINE).await.map(|_| ())
    }
}

/// A job whose encoded spec is `size` bytes: `true` with one long argument.
fn spec(size: usize) -> JobSpec {
    let mut pad = size;
    loop {
        let spec = shell("true", &[&"x".repeat(pad)]);
        match spec.encoded_len().checked_sub(size) {
            Some(0) | None => return spec,
            Some(over) => pad -= over.min(pad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spec_has_the_size_of_etcds_value() {
        assert_eq!(spec(SIZE).encoded_len(), SIZE);
    }
}
