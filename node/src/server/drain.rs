//! Ends streams when the node stops: a request that was answered once is left to its handler, a stream would go on for
//! ever. Whoever reads it is told that the node stops, and goes to another one.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;

use crate::error;

/// A response's body that ends when `stop` does, unless it ends before.
#[must_use]
pub fn until(stop: &CancellationToken, response: http::Response<Body>) -> http::Response<Body> {
    if response.body().is_end_stream() {
        return response;
    }
    let stopped = Box::pin(stop.clone().cancelled_owned());
    response.map(|inner| Body::new(Ending { inner, stopped, ended: false }))
}

struct Ending {
    inner: Body,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

impl HttpBody for Ending {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // What is there goes out first: an answer is never cut in two.
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if self.stopped.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.ended = true;
        let mut trailers = http::HeaderMap::new();
        match error::unavailable("the node is stopping").add_header(&mut trailers) {
            Ok(()) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Err(status) => Poll::Ready(Some(Err(status))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Not exact: the body may end early.
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn frame(body: &mut Body) -> Option<Frame<bytes::Bytes>> {
        poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await.map(Result::unwrap)
    }

    #[tokio::test]
    async fn a_stream_is_ended_and_told_why() {
        let stop = CancellationToken::new();
        let (mut sender, stream) = futures::channel::mpsc::channel::<Result<bytes::Bytes, axum::BoxError>>(4);
        let body = Body::new(axum::body::Body::from_stream(stream));
        let mut body = until(&stop, http::Response::new(body)).into_body();
        sender.try_send(Ok("one".into())).unwrap();
        assert_eq!(frame(&mut body).await.unwrap().into_data().unwrap(), "one");
        sender.try_send(Ok("two".into())).unwrap();
        stop.cancel();
        assert_eq!(frame(&mut body).await.unwrap().into_data().unwrap(), "two", "what is there goes out first");
        let trailers = frame(&mut body).await.unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "14");
        assert!(frame(&mut body).await.is_none());
    }
}
