//! A device of the mesh whose program keeps to no rule: it holds the device's key and speaks to the others byte by byte.
//!
//! It shares no code with what it attacks but libp2p's handshake: streams are opened, negotiated and written by hand.

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex};

use futures::{AsyncReadExt, AsyncWriteExt, FutureExt};
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use libp2p::core::transport::{DialOpts, PortUse};
use libp2p::core::upgrade::Version;
use libp2p::core::{Endpoint, Transport};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, noise, tcp, yamux};
use tokio::sync::{mpsc, oneshot};

/// Streams of the other side that wait to be looked at.
const INCOMING_MAX: usize = 256;

/// A connection, as one who breaks the rules has it.
pub struct Traitor {
    runtime: tokio::runtime::Runtime,
    opens: mpsc::UnboundedSender<oneshot::Sender<io::Result<SubstreamBox>>>,
    incoming: Mutex<mpsc::Receiver<(String, SubstreamBox)>>,
    ended: Arc<Mutex<bool>>,
}

impl Traitor {
    /// Connects under the key of that seed, over TCP.
    ///
    /// # Errors
    /// Why the other side is not reached.
    pub fn connect(seed: [u8; 32], addr: &str) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let addr: Multiaddr = addr.parse().map_err(io::Error::other)?;
        let keys = Keypair::ed25519_from_bytes(seed).map_err(io::Error::other)?;
        let muxer = runtime.block_on(dial(&keys, addr))?;
        let (opens, open_queue) = mpsc::unbounded_channel();
        let (to_incoming, incoming) = mpsc::channel(INCOMING_MAX);
        let ended = Arc::new(Mutex::new(false));
        runtime.spawn(drive(muxer, open_queue, to_incoming, ended.clone()));
        Ok(Self {
            runtime,
            opens,
            incoming: Mutex::new(incoming),
            ended,
        })
    }

    /// Whether the other side has ended the connection.
    pub fn is_cut_off(&self) -> bool {
        *self.ended.lock().expect("nobody panics with it")
    }

    /// Opens a stream of that protocol.
    ///
    /// # Errors
    /// The other side does not let it.
    pub fn open(&self, protocol: &str) -> io::Result<Stream<'_>> {
        let gone = || io::Error::from(io::ErrorKind::ConnectionAborted);
        let (reply, answer) = oneshot::channel();
        self.opens.send(reply).map_err(|_| gone())?;
        let stream = self.runtime.block_on(async {
            let mut stream = answer.await.map_err(|_| gone())??;
            for line in ["/multistream/1.0.0", protocol] {
                stream.write_all(&line_of(line)).await?;
            }
            stream.flush().await?;
            for line in ["/multistream/1.0.0", protocol] {
                if read_line(&mut stream).await? != line {
                    return Err(io::Error::from(io::ErrorKind::Unsupported));
                }
            }
            Ok(stream)
        })?;
        Ok(Stream {
            traitor: self,
            stream,
        })
    }

    /// The next stream that the other side opens; `None` once it has ended the connection.
    pub fn accept(&self) -> Option<(String, Stream<'_>)> {
        let mut incoming = self.incoming.lock().expect("nobody panics with it");
        let (protocol, stream) = self.runtime.block_on(incoming.recv())?;
        let stream = Stream {
            traitor: self,
            stream,
        };
        Some((protocol, stream))
    }
}

/// A stream of a [`Traitor`].
pub struct Stream<'a> {
    traitor: &'a Traitor,
    stream: SubstreamBox,
}

impl Stream<'_> {
    /// Writes bytes as they are.
    ///
    /// # Errors
    /// The other side has ended it.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.traitor.runtime.block_on(async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        })
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// The stream broke.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.stream.read_to_end(&mut bytes);
        self.traitor.runtime.block_on(read)?;
        Ok(bytes)
    }

    /// Says that nothing more is written.
    ///
    /// # Errors
    /// The other side has ended it.
    pub fn close(&mut self) -> io::Result<()> {
        self.traitor.runtime.block_on(self.stream.close())
    }

    /// Writes a Bitswap message, its length before it.
    ///
    /// # Errors
    /// The other side has ended it.
    pub fn write_message(&mut self, message: &[u8]) -> io::Result<()> {
        let mut bytes = varint(message.len());
        bytes.extend_from_slice(message);
        self.write(&bytes)
    }

    /// The next Bitswap message; `None` at the end.
    ///
    /// # Errors
    /// The stream broke.
    pub fn read_message(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.traitor.runtime.block_on(async {
            let Some(len) = read_varint(&mut self.stream).await? else {
                return Ok(None);
            };
            let mut message = vec![0; len];
            self.stream.read_exact(&mut message).await?;
            Ok(Some(message))
        })
    }
}

async fn dial(keys: &Keypair, addr: Multiaddr) -> io::Result<StreamMuxerBox> {
    let mut transport = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keys).map_err(io::Error::other)?)
        .multiplex(yamux::Config::default())
        .map(|(_, muxer), _| StreamMuxerBox::new(muxer))
        .boxed();
    let opts = DialOpts {
        role: Endpoint::Dialer,
        port_use: PortUse::New,
    };
    let dial = transport.dial(addr, opts).map_err(io::Error::other)?;
    dial.await.map_err(io::Error::other)
}

async fn drive(
    mut muxer: StreamMuxerBox,
    mut opens: mpsc::UnboundedReceiver<oneshot::Sender<io::Result<SubstreamBox>>>,
    incoming: mpsc::Sender<(String, SubstreamBox)>,
    ended: Arc<Mutex<bool>>,
) {
    let mut open = None;
    loop {
        if open.is_none() {
            open = opens.recv().now_or_never().flatten();
        }
        let happened = poll_fn(|cx| {
            use std::task::Poll;
            if let Poll::Ready(Err(error)) = muxer.poll_unpin(cx) {
                return Poll::Ready(Err(io::Error::other(error)));
            }
            if let Poll::Ready(stream) = muxer.poll_inbound_unpin(cx) {
                return Poll::Ready(stream.map(|stream| (true, Some(stream))));
            }
            if open.is_some() {
                if let Poll::Ready(stream) = muxer.poll_outbound_unpin(cx) {
                    return Poll::Ready(stream.map(|stream| (false, Some(stream))));
                }
            } else if let Poll::Ready(Some(reply)) = opens.poll_recv(cx) {
                open = Some(reply);
                return Poll::Ready(Ok((false, None)));
            }
            Poll::Pending
        });
        match happened.await {
            Ok((true, Some(stream))) => {
                let incoming = incoming.clone();
                tokio::spawn(async move {
                    if let Ok(accepted) = negotiate(stream).await {
                        let _ = incoming.send(accepted).await;
                    }
                });
            }
            Ok((_, Some(stream))) => {
                if let Some(reply) = open.take() {
                    let _ = reply.send(Ok(stream));
                }
            }
            Ok((_, None)) => {}
            Err(_) => break,
        }
    }
    *ended.lock().expect("nobody panics with it") = true;
}

/// Takes whatever the other side wants to speak, but pings, which cost it nothing to go without.
async fn negotiate(mut stream: SubstreamBox) -> io::Result<(String, SubstreamBox)> {
    let hello = read_line(&mut stream).await?;
    stream.write_all(&line_of(&hello)).await?;
    loop {
        let protocol = read_line(&mut stream).await?;
        let known = ["/ipfs/bitswap", "/kith/sync", "/kith/where", "/iroh-bytes"];
        let taken = known.iter().any(|known| protocol.starts_with(known));
        let answer = if taken { protocol.as_str() } else { "na" };
        stream.write_all(&line_of(answer)).await?;
        stream.flush().await?;
        if taken {
            return Ok((protocol, stream));
        }
    }
}

/// A line of the negotiation: its length, itself, and a line feed.
fn line_of(line: &str) -> Vec<u8> {
    let mut bytes = varint(line.len() + 1);
    bytes.extend_from_slice(line.as_bytes());
    bytes.push(b'\n');
    bytes
}

async fn read_line(stream: &mut SubstreamBox) -> io::Result<String> {
    let len = read_varint(stream).await?;
    let len = len.filter(|len| (1..=1024).contains(len));
    let mut line = vec![0; len.ok_or(io::ErrorKind::UnexpectedEof)?];
    stream.read_exact(&mut line).await?;
    line.pop();
    String::from_utf8(line).map_err(io::Error::other)
}

/// A number as the prefixes have it.
pub fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap_or(0));
    bytes
}

async fn read_varint(stream: &mut SubstreamBox) -> io::Result<Option<usize>> {
    let (mut number, mut shift) = (0_usize, 0);
    loop {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        number |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            return Ok(Some(number));
        }
        shift += 7;
        if shift > 28 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}
