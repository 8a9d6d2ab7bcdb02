//! Waiting for conditions, each with a deadline.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks `probe` until it answers `Some`, and gives up after `within`.
///
/// # Panics
/// With `what` when the time is over.
pub async fn until<T, F>(what: &str, within: Duration, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(start.elapsed() < within, "waited {within:?} in vain: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// [`until`] for a condition that has no value.
///
/// # Panics
/// With `what` when the time is over.
pub async fn until_true<F>(what: &str, within: Duration, mut probe: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    until(what, within, || {
        let answer = probe();
        async move { answer.await.then_some(()) }
    })
    .await;
}
