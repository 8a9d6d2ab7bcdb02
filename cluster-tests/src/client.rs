//! Persistent gRPC clients over mTLS, as an application would hold them.

use std::{error::Error, fmt::Display, fs, io, path::Path, time::Duration};

use hodei_proto::v1::{
    self as wire, JobSelector, JobSpec, LogEvent, QueueJobRequest, Shell, SubscribeLogsRequest,
    cluster_service_client::ClusterServiceClient, job_execution_service_client::JobExecutionServiceClient,
    log_event::Kind, log_stream_service_client::LogStreamServiceClient,
};
use tonic::{
    Request, Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use uuid::Uuid;

/// The name by which clients dial every node.
const SERVER_NAME: &str = "node.hodei.internal";

/// One connection to one node, made at its first use and again after it broke. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// A client of the node at `address` that shows the identity in `dir` (ca.pem, cert.pem, key.pem).
    ///
    /// # Errors
    /// If the identity cannot be read or is none.
    pub fn new(address: impl Display, dir: &Path) -> Result<Self, Box<dyn Error>> {
        Self::with_identity(address, read(dir, "ca.pem")?, read(dir, "cert.pem")?, read(dir, "key.pem")?)
    }

    /// A client of the node at `address` that trusts a CA and shows an identity, all of them PEM.
    ///
    /// # Errors
    /// If that is no identity.
    pub fn with_identity(
        address: impl Display,
        ca: impl AsRef<[u8]>,
        certificate: impl AsRef<[u8]>,
        key: impl AsRef<[u8]>,
    ) -> Result<Self, Box<dyn Error>> {
        Self::lazy(address, trust(ca).identity(Identity::from_pem(certificate, key)))
    }

    /// A client that trusts the CA in `dir` and shows no certificate of its own.
    ///
    /// # Errors
    /// If the CA cannot be read.
    pub fn without_identity(address: impl Display, dir: &Path) -> Result<Self, Box<dyn Error>> {
        Self::lazy(address, trust(read(dir, "ca.pem")?))
    }

    fn lazy(address: impl Display, tls: ClientTlsConfig) -> Result<Self, Box<dyn Error>> {
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?
            .tls_config(tls)?
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(2));
        Ok(Self { channel: endpoint.connect_lazy() })
    }

    /// The connection itself, for services that have no method here.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Jobs.
    #[must_use]
    pub fn jobs(&self) -> JobExecutionServiceClient<Channel> {
        JobExecutionServiceClient::new(self.channel.clone())
    }

    /// Logs.
    #[must_use]
    pub fn logs(&self) -> LogStreamServiceClient<Channel> {
        LogStreamServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    /// Membership and status.
    #[must_use]
    pub fn cluster(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel.clone())
    }

    /// Submits `spec` under a new id, within `within`.
    ///
    /// # Errors
    /// The node's answer.
    pub async fn submit(&self, spec: JobSpec, within: Duration) -> Result<String, Status> {
        self.submit_as(&Uuid::now_v7().to_string(), spec, within).await
    }

    /// Submits `spec` under `id`, within `within`.
    ///
    /// # Errors
    /// The node's answer.
    pub async fn submit_as(&self, id: &str, spec: JobSpec, within: Duration) -> Result<String, Status> {
        let message = QueueJobRequest { id: id.to_owned(), spec: Some(spec), idempotency_key: String::new() };
        let mut request = Request::new(message);
        request.set_timeout(within);
        Ok(self.jobs().queue_job(request).await?.into_inner().id)
    }

    /// Follows the job's log from its first entry until the job ends.
    ///
    /// # Errors
    /// The node's answer, and a broken stream.
    pub async fn follow(&self, job: &str) -> Result<Log, Status> {
        let request = SubscribeLogsRequest {
            job: Some(JobSelector { text: job.to_owned() }),
            follow: true,
            ..SubscribeLogsRequest::default()
        };
        Log::collect(self.logs().subscribe_logs(request).await?.into_inner()).await
    }
}

fn trust(ca: impl AsRef<[u8]>) -> ClientTlsConfig {
    ClientTlsConfig::new().domain_name(SERVER_NAME).ca_certificate(Certificate::from_pem(ca))
}

fn read(dir: &Path, name: &str) -> io::Result<Vec<u8>> {
    let path = dir.join(name);
    fs::read(&path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// A job that executes `cmd args`, everything else left out.
#[must_use]
pub fn shell(cmd: &str, args: &[&str]) -> JobSpec {
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    let kind = wire::command::Kind::Shell(Shell { cmd: cmd.to_owned(), args });
    JobSpec { command: Some(wire::Command { kind: Some(kind) }), ..JobSpec::default() }
}

/// Which stream an entry belongs to, as [`wire::LogBatch`] numbers it.
pub const STDOUT: u32 = 1;
/// See [`STDOUT`].
pub const STDERR: u32 = 2;
/// Lines that were lost.
pub const GAP: u32 = 3;

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// 1, 2, 3 …
    pub attempt: u32,
    /// Across both streams, from 1.
    pub sequence: u64,
    /// [`STDOUT`], [`STDERR`] or [`GAP`].
    pub kind: u32,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// A log as it was received.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// In the order of arrival.
    pub entries: Vec<Entry>,
    /// The ends of attempts that were announced.
    pub ends: Vec<wire::AttemptLogEnd>,
    /// The terminal state, where the stream got that far.
    pub job: Option<wire::Job>,
}

impl Log {
    async fn collect(mut stream: Streaming<LogEvent>) -> Result<Self, Status> {
        let mut log = Self::default();
        while let Some(event) = stream.message().await? {
            match event.kind {
                Some(Kind::Batch(batch)) => log.push(&batch),
                Some(Kind::AttemptEnd(end)) => log.ends.push(end),
                Some(Kind::JobEnd(end)) => log.job = end.job,
                Some(Kind::Notice(_)) | None => {}
            }
        }
        Ok(log)
    }

    fn push(&mut self, batch: &wire::LogBatch) {
        let attempt = batch.attempt.as_ref().map_or(0, |attempt| attempt.attempt);
        let mut at = 0;
        for (i, (&len, &kind)) in batch.lens.iter().zip(&batch.kinds).enumerate() {
            let end = at + len as usize;
            let data = batch.data[at..end].to_vec();
            self.entries.push(Entry { attempt, sequence: batch.first_sequence + i as u64, kind, data });
            at = end;
        }
    }

    /// One stream's bytes, of all attempts in order.
    #[must_use]
    pub fn bytes(&self, kind: u32) -> Vec<u8> {
        self.entries.iter().filter(|entry| entry.kind == kind).flat_map(|entry| entry.data.clone()).collect()
    }

    /// Whether every attempt's sequence runs 1, 2, 3 … without a hole, a repetition or a gap record.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        let mut expected = (0, 1);
        self.entries.iter().all(|entry| {
            if entry.attempt != expected.0 {
                expected = (entry.attempt, 1);
            }
            let fits = entry.sequence == expected.1 && entry.kind != GAP;
            expected.1 += 1;
            fits
        })
    }
}
