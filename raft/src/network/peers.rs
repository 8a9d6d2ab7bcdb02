//! Talking to one peer: a channel from the dialer, the envelope around every message, a deadline on every call.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use hodei_proto::v1::{RaftMessage, raft_service_client::RaftServiceClient};
use hodei_state::ids::{ClusterId, NodeId};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Request, Response, Status, transport::Channel};

use crate::{codec, config::Dialer};

/// No message is larger. An append holds at most what the log store puts into one read, one oversized entry included.
pub const MAX_MESSAGE: usize = 64 << 20;

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the address of node {0} is not known")]
    NoAddress(NodeId),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] Box<Status>),
    #[error(transparent)]
    Decode(#[from] codec::DecodeError),
}

/// Knows how to reach every peer.
#[derive(Clone)]
pub(crate) struct Peers {
    pub(crate) me: NodeId,
    cluster: Arc<str>,
    dialer: Arc<dyn Dialer>,
}

impl Peers {
    pub(crate) fn new(me: NodeId, cluster: ClusterId, dialer: Arc<dyn Dialer>) -> Self {
        Self { me, cluster: cluster.to_string().into(), dialer }
    }

    /// A client on the peer's channel. Nothing is connected yet.
    pub(crate) fn client(&self, to: NodeId) -> Result<RaftServiceClient<Channel>, CallError> {
        let channel = self.dialer.channel(to).ok_or(CallError::NoAddress(to))?;
        Ok(RaftServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }

    /// The envelope of a single call, or of the first message in a stream.
    pub(crate) fn envelope(&self, to: NodeId, payload: Bytes) -> RaftMessage {
        RaftMessage { cluster_id: self.cluster.to_string(), from: self.me, to, payload }
    }

    /// One question, one answer, within `timeout`.
    pub(crate) async fn call<Q, A, F, R>(
        &self,
        to: NodeId,
        timeout: Duration,
        question: &Q,
        method: F,
    ) -> Result<A, CallError>
    where
        Q: Serialize,
        A: DeserializeOwned,
        F: FnOnce(RaftServiceClient<Channel>, Request<RaftMessage>) -> R,
        R: Future<Output = Result<Response<RaftMessage>, Status>>,
    {
        let mut request = Request::new(self.envelope(to, codec::encode(question).into()));
        request.set_timeout(timeout);
        let answer = tokio::time::timeout(timeout, method(self.client(to)?, request))
            .await
            .map_err(|_| CallError::Timeout(timeout))?
            .map_err(Box::new)?;
        Ok(codec::decode(&answer.into_inner().payload)?)
    }

    /// Whether a message is for this node of this cluster; says from whom it is.
    pub(crate) fn check(&self, message: &RaftMessage) -> Result<NodeId, Box<Status>> {
        if *message.cluster_id != *self.cluster {
            return Err(Box::new(Status::failed_precondition(format!(
                "this node belongs to cluster {}, not {}",
                self.cluster, message.cluster_id
            ))));
        }
        if message.to != self.me {
            return Err(Box::new(Status::failed_precondition(format!(
                "this is node {}, the message is for node {}",
                self.me, message.to
            ))));
        }
        Ok(message.from)
    }
}

/// A message within a stream, after the first.
pub(crate) fn bare(payload: Bytes) -> RaftMessage {
    RaftMessage { cluster_id: String::new(), from: 0, to: 0, payload }
}
