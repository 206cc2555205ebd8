//! Streams that others open and no longer listen to.
//!
//! A peer of the IPFS world opens a stream, writes the negotiation and its message at once, and closes both directions: over QUIC that tells us to stop sending, and
//! the reply of the negotiation, which nobody waits for, fails. libp2p would drop the stream for that, and the message with it. So what is written to such a stream
//! counts as written.
//!
//! Spec: `protocol/spec/outside.md`, "Swarm".

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::StreamMuxer;
use libp2p::core::muxing::StreamMuxerEvent;

/// A connection on whose incoming streams writes do not fail.
#[derive(Debug)]
pub(super) struct Unheard<C>(pub(super) C);

/// A stream of it.
#[derive(Debug)]
pub(super) struct UnheardStream<S> {
    stream: S,
    incoming: bool,
    /// Nobody listens any more.
    deaf: bool,
}

impl<C> StreamMuxer for Unheard<C>
where
    C: StreamMuxer + Unpin,
    C::Substream: Unpin,
{
    type Substream = UnheardStream<C::Substream>;
    type Error = C::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.0).poll_inbound(cx))?;
        Poll::Ready(Ok(UnheardStream {
            stream,
            incoming: true,
            deaf: false,
        }))
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.0).poll_outbound(cx))?;
        Poll::Ready(Ok(UnheardStream {
            stream,
            incoming: false,
            deaf: false,
        }))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.0).poll_close(cx)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for UnheardStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S> UnheardStream<S> {
    /// What a write came to; one that failed since nobody listens went well.
    fn heard<T>(&mut self, outcome: io::Result<T>, written: T) -> Poll<io::Result<T>> {
        match outcome {
            Err(_) if self.incoming => {
                self.deaf = true;
                Poll::Ready(Ok(written))
            }
            outcome => Poll::Ready(outcome),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for UnheardStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Ready(Ok(bytes.len()));
        }
        let outcome = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.heard(outcome, bytes.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        let outcome = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        self.heard(outcome, ())
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        let outcome = ready!(Pin::new(&mut self.stream).poll_close(cx));
        self.heard(outcome, ())
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt, FutureExt};

    use super::*;

    /// A stream that can be read and not be written.
    struct Stopped(&'static [u8]);

    impl AsyncRead for Stopped {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Stopped {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }

    #[test]
    fn what_nobody_hears_counts_as_written_on_streams_that_others_opened() {
        for incoming in [true, false] {
            let mut stream = UnheardStream {
                stream: Stopped(b"message"),
                incoming,
                deaf: false,
            };
            let mut work = async || {
                stream.write_all(b"reply").await?;
                stream.flush().await?;
                let mut read = Vec::new();
                stream.read_to_end(&mut read).await?;
                stream.close().await?;
                Ok::<_, io::Error>(read)
            };
            let outcome = work().now_or_never().unwrap();
            assert_eq!(outcome.ok(), incoming.then(|| b"message".to_vec()));
        }
    }
}
