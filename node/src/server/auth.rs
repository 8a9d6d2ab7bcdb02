//! Who speaks.

use hodei_state::ids::Caller;
use tonic::Status;

use crate::error;

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
