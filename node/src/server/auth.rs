//! Decides for each request whether its caller may make it, by the one [`table`].
//!
//! A connection outlives a revocation and even a certificate, so nothing is decided once per connection but who speaks.
//! Who passes is put into the request's extensions as [`Peer`]; handlers and `apply` go by that.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hodei_state::ids::{Caller, ClusterId, Role};
use tokio::time::Instant;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    deadline,
    listener::ConnInfo,
    table::{self, Access},
};
use crate::{clock, error, net::SERVERS_KEY, pki::subject::Certified};

/// How long a caller that this node has not heard of may wait until the node is up to date, if its own deadline is not
/// before that.
const CATCH_UP: Duration = Duration::from_secs(5);

/// The authenticated caller, put into the request's extensions by the auth layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// From the certificate's URI.
    pub caller: Caller,
}

/// The caller of a request.
///
/// # Errors
/// `UNAUTHENTICATED` for the one call that works without a certificate.
pub fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    let peer = request.extensions().get::<Peer>();
    peer.map(|peer| peer.caller).ok_or_else(|| error::unauthenticated("a client certificate is required"))
}

/// What the state says of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A party of the cluster.
    Good,
    /// Not, or not yet, heard of here.
    Unknown,
    /// A node that is removed, but still has its part in Raft.
    Leaving,
    /// Revoked or removed: for good.
    Revoked,
}

/// The state, as far as the auth layer looks at it.
pub trait Registry: Send + Sync + 'static {
    /// This node's cluster.
    fn cluster(&self) -> ClusterId;
    /// What is known here of a caller.
    fn standing(&self, caller: Caller) -> Standing;
    /// Where all members are, host:port separated by commas.
    fn servers(&self) -> String;
    /// Brings what is known here up to date, or says why it cannot.
    fn refresh(&self, deadline: Instant) -> impl Future<Output = Result<(), Status>> + Send;
}

/// Wraps a service so that it sees allowed requests only.
pub struct AuthLayer<R> {
    registry: Arc<R>,
}

impl<R> AuthLayer<R> {
    /// Decides by what `registry` knows.
    #[must_use]
    pub fn new(registry: Arc<R>) -> Self {
        Self { registry }
    }
}

impl<R> Clone for AuthLayer<R> {
    fn clone(&self) -> Self {
        Self { registry: self.registry.clone() }
    }
}

impl<S, R> Layer<S> for AuthLayer<R> {
    type Service = Auth<S, R>;

    fn layer(&self, inner: S) -> Auth<S, R> {
        Auth { inner, registry: self.registry.clone() }
    }
}

/// See [`AuthLayer`].
pub struct Auth<S, R> {
    inner: S,
    registry: Arc<R>,
}

impl<S: Clone, R> Clone for Auth<S, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), registry: self.registry.clone() }
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<S, R> Service<http::Request<Body>> for Auth<S, R>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    R: Registry,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // The clone has not been polled ready; the original has. Take the one that is ready.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let registry = self.registry.clone();
        Box::pin(async move {
            // Nobody but this layer says who the caller is.
            request.extensions_mut().remove::<Peer>();
            let certified = request.extensions().get::<ConnInfo>().and_then(|info| info.certified);
            let by = deadline::of_headers(request.headers()).min(Instant::now() + CATCH_UP);
            match decide(&*registry, request.uri().path(), certified, by).await {
                Ok(peer) => {
                    if let Some(peer) = peer {
                        request.extensions_mut().insert(peer);
                    }
                    let mut response = inner.call(request).await?;
                    if let Some(Peer { caller: Caller::User(_) | Caller::Admin(_) }) = peer
                        && let Ok(servers) = registry.servers().parse()
                    {
                        response.headers_mut().insert(SERVERS_KEY, servers);
                    }
                    Ok(response)
                }
                Err(status) => {
                    tracing::debug!(path = request.uri().path(), who = ?certified.map(|c| c.subject.to_string()), reason = status.message(), "request refused");
                    Ok(status.into_http())
                }
            }
        })
    }
}

/// Whether a request may pass, and as whose; where what is known here has to be brought up to date for that, by then.
async fn decide<R: Registry>(
    registry: &R,
    path: &str,
    shown: Option<Certified>,
    by: Instant,
) -> Result<Option<Peer>, Status> {
    let access = table::access(path).ok_or_else(|| Status::unimplemented("there is no such call"))?;
    if access == Access::Anyone {
        return Ok(None);
    }
    let certified = shown.ok_or_else(|| error::unauthenticated("a client certificate is required"))?;
    let caller = certified.subject.caller;
    if certified.subject.cluster != registry.cluster() {
        return Err(error::unauthenticated("the certificate is of another cluster"));
    }
    if certified.not_after <= clock::unix_seconds() {
        return Err(error::unauthenticated("the certificate has expired"));
    }
    let role = table::role(caller);
    let allowed = match access {
        Access::Anyone => true,
        Access::Roles(roles) => roles.contains(&role),
        Access::Peers | Access::Members | Access::AnyNode => matches!(caller, Caller::Node(_)),
    };
    if !allowed {
        return Err(error::not_allowed(refusal(role, access, path)));
    }
    if access == Access::AnyNode {
        return Ok(Some(Peer { caller }));
    }
    let among_nodes = matches!(access, Access::Peers | Access::Members);
    let mut standing = registry.standing(caller);
    if standing == Standing::Unknown && !among_nodes {
        registry.refresh(by).await?;
        standing = registry.standing(caller);
    }
    let served = match standing {
        Standing::Good => true,
        Standing::Unknown => among_nodes,
        Standing::Leaving => access == Access::Members,
        Standing::Revoked => hodei_state::armed!("bug::revoked-served"),
    };
    if served { Ok(Some(Peer { caller })) } else { Err(error::revoked(caller)) }
}

/// What a role may not do, and which one may, in the words of those who use the cluster.
fn refusal(role: Role, access: Access, path: &str) -> String {
    // What has no words of its own is no command of the command line: its name is known to who calls it.
    let action = table::action(path).map_or_else(|| format!("call {path}"), str::to_owned);
    let allowed: Vec<_> = match access {
        Access::Anyone => Vec::new(),
        Access::Roles(roles) => roles.iter().map(|role| role.as_str()).collect(),
        Access::Peers | Access::Members | Access::AnyNode => vec![Role::Node.as_str()],
    };
    format!("role {role} may not {action}: that takes role {}", allowed.join(" or "))
}

#[cfg(test)]
mod tests;
