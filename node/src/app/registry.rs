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
        let standing = self.handle.inspect(|state| match (state.identity(caller), caller) {
            (None, _) => Standing::Unknown,
            (Some(_), _) if !state.is_revoked(caller) => Standing::Good,
            // Who was replaced has forgotten what it had promised, and has no part in anything.
            (Some(_), Caller::Node(node)) if state.member(node).is_some_and(|member| member.replaced_by.is_none()) => {
                Standing::Leaving
            }
            (Some(_), _) => Standing::Revoked,
        });
        match (standing, caller) {
            (Standing::Leaving, Caller::Node(node)) if !self.handle.status().counts_in(node) => Standing::Revoked,
            (standing, _) => standing,
        }
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
