//! The network between replicas: over loopback, through relays that can hold back what passes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::Arc,
};

use hodei_raft::Dialer;
use hodei_state::ids::NodeId;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split},
    net::TcpStream,
    sync::watch,
};
use tonic::transport::{Channel, Endpoint};

/// Bytes on their way through a relay.
const WINDOW: usize = 64 << 10;
/// Who is none of the replicas.
const STRANGER: NodeId = 0;

/// One direction of the connection that a replica has made to another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Flow {
    /// From the one that has connected.
    Requests(NodeId, NodeId),
    /// To it.
    Answers(NodeId, NodeId),
}

/// Who can reach whom.
#[derive(Default)]
pub struct Net {
    addresses: Mutex<BTreeMap<NodeId, SocketAddr>>,
    /// From the first to the second, as long as the second has the same address.
    channels: Mutex<BTreeMap<(NodeId, NodeId), Channel>>,
    /// New connections to these are refused.
    unreachable: Mutex<BTreeSet<NodeId>>,
    held: watch::Sender<BTreeSet<Flow>>,
}

impl Net {
    /// Whether anybody can connect to a node from now on. Connections that there are stay.
    pub fn reach(&self, node: NodeId, reachable: bool) {
        let mut unreachable = self.unreachable.lock();
        if reachable {
            unreachable.remove(&node)
        } else {
            unreachable.insert(node)
        };
    }

    /// Holds back what comes along these from now on, and keeps it.
    pub fn hold(&self, flows: impl IntoIterator<Item = Flow>) {
        self.held.send_modify(|held| held.extend(flows));
    }

    /// Lets pass what was held back, and what comes.
    pub fn release(&self, flows: impl IntoIterator<Item = Flow>) {
        let flows: BTreeSet<Flow> = flows.into_iter().collect();
        self.held.send_modify(|held| held.retain(|flow| !flows.contains(flow)));
    }

    /// How a node reaches the others.
    pub fn ways_of(self: &Arc<Self>, node: NodeId) -> Arc<Ways> {
        Arc::new(Ways { net: Arc::clone(self), from: node })
    }

    pub(super) fn is_at(&self, node: NodeId, address: SocketAddr) {
        self.addresses.lock().insert(node, address);
    }

    pub(super) fn is_gone(&self, node: NodeId) {
        self.addresses.lock().remove(&node);
        self.channels.lock().retain(|(_, to), _| *to != node);
    }

    fn channel_from(&self, from: NodeId, to: NodeId) -> Option<Channel> {
        if self.unreachable.lock().contains(&to) {
            return None;
        }
        let address = *self.addresses.lock().get(&to)?;
        let connect = || {
            let held = self.held.subscribe();
            let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
            endpoint.connect_with_connector_lazy(tower::service_fn(move |_| relay(address, (from, to), held.clone())))
        };
        Some(self.channels.lock().entry((from, to)).or_insert_with(connect).clone())
    }
}

impl Dialer for Net {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        self.channel_from(STRANGER, node)
    }
}

/// See [`Net::ways_of`].
pub struct Ways {
    net: Arc<Net>,
    from: NodeId,
}

impl Dialer for Ways {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        self.net.channel_from(self.from, node)
    }
}

/// Connects, and passes on what comes from either side until both have ended or the network is gone.
async fn relay(
    address: SocketAddr,
    (from, to): (NodeId, NodeId),
    held: watch::Receiver<BTreeSet<Flow>>,
) -> io::Result<TokioIo<DuplexStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (theirs, ours) = duplex(WINDOW);
    tokio::spawn(async move {
        let ((requests, answers), (server, client)) = (split(ours), stream.into_split());
        let requests = pass(requests, client, Flow::Requests(from, to), held.clone());
        let answers = pass(server, answers, Flow::Answers(from, to), held);
        tokio::join!(requests, answers);
    });
    Ok(TokioIo::new(theirs))
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    flow: Flow,
    mut held: watch::Receiver<BTreeSet<Flow>>,
) {
    let mut buffer = vec![0; WINDOW];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let passes = held.wait_for(|held| !held.contains(&flow)).await.is_ok();
        if !passes || to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    // Fails only where the other side has gone as well.
    let _ = to.shutdown().await;
}
