//! Plain HTTP for probes: `/healthz` (the process lives), `/readyz` (the node can take jobs). Nothing secret, no writes.

use std::sync::Arc;

use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves probes until `stop`. `ready` says whether the node can take jobs.
///
/// # Errors
/// When the socket breaks.
pub async fn serve(
    listener: TcpListener,
    ready: Arc<dyn Fn() -> bool + Send + Sync>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let readyz = move || async move {
        if ready() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "no quorum\n") }
    };
    let app = Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(readyz));
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
}
