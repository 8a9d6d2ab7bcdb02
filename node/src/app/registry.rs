//! What the auth layer knows of callers: the state.

use hodei_raft::Handle;
use hodei_state::ids::{Caller, ClusterId};
use tokio::time::Instant;
use tonic::Status;

use crate::{
    error,
    server::auth::{Registry, Standing},
};

/// The state as a registry of callers.
pub struct Known {
    cluster: ClusterId,
    handle: Handle,
}

impl Known {
    /// Of this cluster, as this node knows it.
    #[must_use]
    pub fn new(cluster: ClusterId, handle: Handle) -> Self {
        Self { cluster, handle }
    }
}

impl Registry for Known {
    fn cluster(&self) -> ClusterId {
        self.cluster
    }

    fn standing(&self, caller: Caller) -> Standing {
        self.handle.inspect(|state| match state.identity(caller) {
            None => Standing::Unknown,
            Some(_) if state.is_revoked(caller) => Standing::Revoked,
            Some(_) => Standing::Good,
        })
    }

    fn servers(&self) -> String {
        self.handle.inspect(|state| {
            let members = state.members().filter(|member| member.removed_at.is_none());
            members.map(|member| member.address.as_str()).collect::<Vec<_>>().join(",")
        })
    }

    async fn refresh(&self, deadline: Instant) -> Result<(), Status> {
        self.handle.read(deadline).await.map(drop).map_err(error::read)
    }
}
