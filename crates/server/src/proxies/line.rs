//! A connection to a proxy, as the one who calls over it. It can be cut: whatever is under way on it then breaks off. Knows nothing of
//! who is at its other end.

use super::endpoint;
use crate::trust::Presented;
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::{Channel, Uri};

/// A way to call a proxy.
#[derive(Clone)]
pub struct Line {
    /// For calls.
    pub channel: Channel,
    /// Ends it at once.
    pub cut: CancellationToken,
    /// What the other side's certificate said; nothing within this process.
    pub presented: Option<Presented>,
}

impl Line {
    /// Within this process; cutting it does nothing.
    pub fn in_memory(channel: Channel) -> Self {
        Line { channel, cut: CancellationToken::new(), presented: None }
    }

    /// Over a connection that was accepted.
    pub async fn over<IO>(io: IO, presented: Presented) -> Result<Self, tonic::transport::Error>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let cut = CancellationToken::new();
        let io = Cuttable { io, cut: Box::pin(cut.clone().cancelled_owned()) };
        // There is one connection: who wants another has to wait until the proxy dials again.
        let once = Mutex::new(Some(TokioIo::new(io)));
        let connector = tower::service_fn(move |_: Uri| {
            let io = once.lock().ok().and_then(|mut once| once.take());
            std::future::ready(io.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection ended")))
        });
        let channel = endpoint().connect_with_connector(connector).await?;
        Ok(Line { channel, cut, presented: Some(presented) })
    }
}

/// Fails once it was cut.
struct Cuttable<IO> {
    io: IO,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Cuttable<IO> {
    fn is_cut(&mut self, context: &mut Context<'_>) -> Option<io::Error> {
        let was = self.cut.as_mut().poll(context).is_ready();
        was.then(|| io::Error::new(io::ErrorKind::ConnectionAborted, "the backup server cut the connection"))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Cuttable<IO> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.is_cut(context) {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.io).poll_read(context, into),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Cuttable<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.is_cut(context) {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.io).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
