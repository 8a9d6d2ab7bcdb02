//! Three etcd members, as etcd's own guide starts them, and a client for `KV.Put`.

use std::{net::SocketAddr, process::Command, time::Duration};

use tempfile::TempDir;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use self::wire::{PutRequest, kv_client::KvClient};
use super::{cpu::Meter, load::Put};
use crate::{net, proc::Proc, wait};

/// The part of etcd's API that is used here.
#[allow(missing_docs, unused_qualifications, clippy::all, reason = "generated code")]
pub mod wire {
    tonic::include_proto!("etcdserverpb");
}

/// A running cluster.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Proc>,
    clients: Vec<SocketAddr>,
    _dir: TempDir,
}

impl Etcd {
    /// Starts `count` members with etcd's defaults, on fresh data below the temporary directory.
    ///
    /// # Panics
    /// If etcd is not installed or does not take writes within half a minute.
    pub async fn start(count: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("etcd-bench-").tempdir().expect("a temporary directory");
        let addresses: Vec<_> = (0..count).map(|_| net::fresh()).collect();
        let peer = |address: &SocketAddr| format!("http://{}:{}", address.ip(), address.port() + 1);
        let initial: Vec<_> = addresses.iter().enumerate().map(|(i, a)| format!("m{i}={}", peer(a))).collect();
        let members = addresses.iter().enumerate().map(|(i, address)| {
            let client = format!("http://{address}");
            let mut command = Command::new("etcd");
            command.args(["--name", &format!("m{i}"), "--logger", "zap", "--log-level", "error"]);
            command.arg("--data-dir").arg(dir.path().join(format!("m{i}")));
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer(address), "--initial-advertise-peer-urls", &peer(address)]);
            command.args(["--initial-cluster", &initial.join(","), "--initial-cluster-token", "bench"]);
            Proc::spawn(&format!("etcd{i}"), &mut command, dir.path())
        });
        let etcd = Self { members: members.collect(), clients: addresses, _dir: dir };
        for client in etcd.clients(count, 16) {
            wait::until_true("etcd takes writes", Duration::from_secs(30), || {
                let mut client = client.clone();
                async move { client.put().await.is_ok() }
            })
            .await;
        }
        etcd
    }

    /// Takes the members' processor time.
    #[must_use]
    pub fn meter(&self) -> Meter {
        Meter::new(self.members.iter().map(Proc::pid).collect())
    }

    /// `count` clients with a connection each, spread evenly over the members, that write values of `size` bytes.
    ///
    /// # Panics
    /// Never: the addresses are valid.
    #[must_use]
    pub fn clients(&self, count: usize, size: usize) -> Vec<EtcdClient> {
        (0..count)
            .map(|i| {
                let address = self.clients[i % self.clients.len()];
                let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("the address is valid");
                let kv = KvClient::new(endpoint.tcp_nodelay(true).connect_lazy());
                EtcdClient { kv, name: i, next: 0, value: vec![b'x'; size] }
            })
            .collect()
    }
}

/// Writes to keys of its own, a new one each time.
#[derive(Clone, Debug)]
pub struct EtcdClient {
    kv: KvClient<Channel>,
    name: usize,
    next: u64,
    value: Vec<u8>,
}

impl Put for EtcdClient {
    async fn put(&mut self) -> Result<(), Status> {
        self.next += 1;
        let key = format!("{:04}-{:011}", self.name, self.next).into_bytes();
        self.kv.put(PutRequest { key, value: self.value.clone(), lease: 0 }).await.map(|_| ())
    }
}
