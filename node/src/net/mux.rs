//! Many streams over one TCP connection: Yamux as libp2p speaks it, in longer frames, and read from the system in longer parts.
//!
//! Yamux sends frames of at most 16 KiB unless it is told otherwise, each of which then is sealed and handed to the system by itself; and Noise reads 8 KiB at a time. Bulk
//! transfer spends more on that than on its cipher. Libp2p's own adapter has no way to say otherwise.
//!
//! Spec: `protocol/spec/net.md`, "Inside".

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use yamux::{Connection, ConnectionError, Mode, Stream};

/// Most bytes of a stream in one frame: with its head it fills a frame of Noise.
const FRAME_BYTES: usize = 64_511 - 12;
/// Read from the system at a time.
const READ_BYTES: usize = 128 << 10;
/// Streams that the other side opened and nobody has asked for yet; as many as it may open before one is taken.
const WAITING_MAX: usize = 256;

/// Makes a [`Mux`] of a connection.
#[derive(Debug, Clone)]
pub(super) struct Muxing(yamux::Config);

impl Muxing {
    pub(super) fn new() -> Self {
        let mut config = yamux::Config::default();
        config.set_split_send_size(FRAME_BYTES);
        Self(config)
    }
}

impl UpgradeInfo for Muxing {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/yamux/1.0.0")
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Muxing {
    type Output = Mux<C>;
    type Error = Infallible;
    type Future = Ready<Result<Mux<C>, Infallible>>;

    fn upgrade_inbound(self, connection: C, _: &'static str) -> Self::Future {
        ready(Ok(Mux::new(connection, self.0, Mode::Server)))
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Muxing {
    type Output = Mux<C>;
    type Error = Infallible;
    type Future = Ready<Result<Mux<C>, Infallible>>;

    fn upgrade_outbound(self, connection: C, _: &'static str) -> Self::Future {
        ready(Ok(Mux::new(connection, self.0, Mode::Client)))
    }
}

/// Many streams over one connection.
#[derive(Debug)]
pub(super) struct Mux<C> {
    connection: Connection<C>,
    /// Yamux goes on only when it is asked for the next stream: what comes so when none is wanted waits here.
    waiting: VecDeque<Stream>,
    wanted: Option<Waker>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Mux<C> {
    fn new(connection: C, config: yamux::Config, mode: Mode) -> Self {
        Self {
            connection: Connection::new(connection, config, mode),
            waiting: VecDeque::new(),
            wanted: None,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Stream, ConnectionError>> {
        let next = ready!(self.connection.poll_next_inbound(cx));
        Poll::Ready(next.unwrap_or(Err(ConnectionError::Closed)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Mux<C> {
    type Substream = Stream;
    type Error = ConnectionError;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stream, ConnectionError>> {
        if let Some(stream) = self.waiting.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        let next = self.poll_next(cx);
        if next.is_pending() {
            self.wanted = Some(cx.waker().clone());
        }
        next
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stream, ConnectionError>> {
        self.connection.poll_new_outbound(cx)
    }

    fn poll_close(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ConnectionError>> {
        self.connection.poll_close(cx)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, ConnectionError>> {
        let stream = ready!(self.poll_next(cx))?;
        // Beyond, the stream is reset.
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(stream);
            if let Some(wanted) = self.wanted.take() {
                wanted.wake();
            }
        }
        // There may be more to do, after others had their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A connection that is read in long parts, however short those are that are asked for.
#[derive(Debug)]
pub(super) struct Wide<C> {
    connection: C,
    /// What was read and not yet asked for: `from..to`.
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
}

impl<C> Wide<C> {
    pub(super) fn new(connection: C) -> Self {
        Self {
            connection,
            buffer: Box::default(),
            from: 0,
            to: 0,
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Wide<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.from == this.to {
            if this.buffer.is_empty() {
                this.buffer = vec![0; READ_BYTES].into();
            }
            let connection = Pin::new(&mut this.connection);
            let read = ready!(connection.poll_read(cx, &mut this.buffer))?;
            (this.from, this.to) = (0, read.min(this.buffer.len()));
        }
        let there = this.buffer.get(this.from..this.to).unwrap_or_default();
        let len = there.len().min(bytes.len());
        if let (Some(bytes), Some(there)) = (bytes.get_mut(..len), there.get(..len)) {
            bytes.copy_from_slice(there);
        }
        this.from += len;
        Poll::Ready(Ok(len))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Wide<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(cx, parts)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_close(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::future::poll_fn;

    use futures::{AsyncReadExt, AsyncWriteExt};
    use libp2p::tcp::tokio::TcpStream;
    use libp2p::yamux as theirs;
    use tokio::net::TcpListener;

    use super::*;

    const STREAMS: u32 = 20;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (one, other) = tokio::join!(tokio::net::TcpStream::connect(addr), listener.accept());
        (TcpStream(one.unwrap()), TcpStream(other.unwrap().0))
    }

    fn bytes(stream: u32) -> Vec<u8> {
        let mut bytes = vec![0; 700_000];
        blake3::Hasher::new()
            .update(&stream.to_le_bytes())
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    async fn next<M: StreamMuxer + Unpin>(mux: &mut M, outbound: bool) -> Option<M::Substream> {
        poll_fn(|cx| {
            // As a swarm does: what goes on beneath is asked for besides.
            let stream = if outbound {
                Pin::new(&mut *mux).poll_outbound(cx)
            } else {
                Pin::new(&mut *mux).poll_inbound(cx)
            };
            if let Poll::Ready(stream) = stream {
                return Poll::Ready(stream.ok());
            }
            match Pin::new(&mut *mux).poll(cx) {
                Poll::Ready(Err(_)) => Poll::Ready(None),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Opens streams, and sends and reads back what is long on each.
    async fn open<M: StreamMuxer + Unpin + Send + 'static>(mut mux: M)
    where
        M::Substream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut talks = Vec::new();
        for n in 0..STREAMS {
            let mut stream = next(&mut mux, true).await.unwrap();
            talks.push(tokio::spawn(async move {
                let sent = bytes(n);
                stream.write_all(&sent).await.unwrap();
                stream.close().await.unwrap();
                let mut back = Vec::new();
                stream.read_to_end(&mut back).await.unwrap();
                assert!(back == sent, "stream {n}");
            }));
        }
        let talks = futures::future::join_all(talks);
        tokio::select! {
            _ = next(&mut mux, false) => panic!("nobody opens a stream to us"),
            done = talks => done.into_iter().for_each(|talk| talk.unwrap()),
        }
    }

    /// Says back what is said on each stream.
    async fn echo<M: StreamMuxer + Unpin + Send + 'static>(mut mux: M)
    where
        M::Substream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        while let Some(mut stream) = next(&mut mux, false).await {
            tokio::spawn(async move {
                let mut said = Vec::new();
                stream.read_to_end(&mut said).await.unwrap();
                stream.write_all(&said).await.unwrap();
                stream.close().await.unwrap();
            });
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_is_understood_by_the_muxer_of_libp2p_and_understands_it() {
        let ours = Muxing::new;
        let name = "/yamux/1.0.0";
        assert!(ours().protocol_info().eq([name]));
        let (one, other) = pair().await;
        let dialler = ours().upgrade_outbound(Wide::new(one), name).await.unwrap();
        let listener = theirs::Config::default().upgrade_inbound(other, name);
        let echo_of = tokio::spawn(echo(listener.await.unwrap()));
        open(dialler).await;
        echo_of.await.unwrap();
        let (one, other) = pair().await;
        let dialler = theirs::Config::default().upgrade_outbound(one, name);
        let listener = ours().upgrade_inbound(Wide::new(other), name).await;
        let echo_of = tokio::spawn(echo(listener.unwrap()));
        open(dialler.await.unwrap()).await;
        echo_of.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_read_in_long_parts_is_the_same() {
        let sent = bytes(7);
        for step in [1, 700, 8192, 100_000, 300_000] {
            let (mut one, other) = pair().await;
            let all = sent.clone();
            let len = if step == 1 { 5000 } else { all.len() };
            let writing = tokio::spawn(async move {
                one.write_all(&all[..len]).await.unwrap();
                one.close().await.unwrap();
            });
            let mut wide = Wide::new(other);
            let mut read = Vec::new();
            let mut buffer = vec![0; step];
            loop {
                let count = wide.read(&mut buffer).await.unwrap();
                if count == 0 {
                    break;
                }
                read.extend_from_slice(&buffer[..count]);
            }
            assert!(read == sent[..len], "{step}");
            writing.await.unwrap();
        }
    }
}
