//! A TLS connection, on either side, with what belongs to it.
//!
//! With TLS 1.3 a client's handshake is complete before the server has looked at its certificate; a refusal comes later
//! and looks like any broken connection, perhaps with a request already on its way. Servers of HTTP/2 speak first,
//! though: whoever waits for those first bytes ([`Connection::accepted`]) knows that it was let in, and has sent nothing
//! yet.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

/// Enough for the first frame; what is more comes with the next read.
const FIRST: usize = 256;

/// See the module.
pub struct Connection<T> {
    tls: TlsStream<TcpStream>,
    /// What the other side said first and nobody has read yet.
    first: Bytes,
    /// Lives as long as the connection.
    pub with: T,
}

impl<T: Unpin> Connection<T> {
    /// A connection of which nothing was read.
    pub fn new(tls: impl Into<TlsStream<TcpStream>>, with: T) -> Self {
        Self { tls: tls.into(), first: Bytes::new(), with }
    }

    /// Waits until the server has spoken.
    ///
    /// # Errors
    /// How the server refused, as far as it said so.
    pub async fn accepted(mut self) -> io::Result<Self> {
        let mut first = vec![0; FIRST];
        let read = self.tls.read(&mut first).await?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the node closed the connection"));
        }
        first.truncate(read);
        Ok(Self { first: first.into(), ..self })
    }
}

impl<T: Unpin> AsyncRead for Connection<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.tls).poll_read(cx, buf);
        }
        let part = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..part]);
        self.first.advance(part);
        Poll::Ready(Ok(()))
    }
}

impl<T: Unpin> AsyncWrite for Connection<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
}
