//! How fast a device sends and receives, where its owner has set a limit.
//!
//! The limit stands around whole connections, so that it covers whatever goes over them: blocks, entries, the DHT, and what is relayed for others. A stream without
//! leave to send waits as if the network were slow, and so does its sender's queue; one that may not be read holds up the other side by its window.
//!
//! Spec: `protocol/spec/net.md`, "Bandwidth".

use std::future::Future;
use std::io;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::StreamMuxer;
use libp2p::core::muxing::StreamMuxerEvent;
use tokio::time::{Instant, Sleep};

/// Most bytes that one stream takes at once, so that streams share.
const SHARE_BYTES_MAX: usize = 16 << 10;
/// What is that short goes at once and is counted afterwards: a ping that waits behind a file for 20 s would end the connection.
const SHORT_BYTES_MAX: usize = 512;
/// How much of the past counts as unused: a line that was idle may burst for that long.
const BURST: Duration = Duration::from_millis(100);
/// A limit below which nothing would work is raised to this many bytes a second.
pub const RATE_MIN: u64 = 16 << 10;

/// Most bytes a second in each direction; without one there is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Of what is sent.
    pub upload: Option<NonZeroU64>,
    /// Of what is received.
    pub download: Option<NonZeroU64>,
}

/// The limits that all connections of a swarm share.
#[derive(Debug, Clone, Default)]
pub(super) struct Limits {
    upload: Option<Arc<Allowance>>,
    download: Option<Arc<Allowance>>,
}

impl Limits {
    pub(super) fn new(rates: Rates) -> Self {
        let allowance = |rate: Option<NonZeroU64>| {
            let rate = rate?.get().max(RATE_MIN);
            Some(Arc::new(Allowance::new(rate, Instant::now())))
        };
        Self {
            upload: allowance(rates.upload),
            download: allowance(rates.download),
        }
    }
}

/// Bytes that may go in one direction now.
#[derive(Debug)]
struct Allowance {
    bytes_per_second: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// In billionths of a byte; below zero after something short that went at once.
    left: i128,
    counted: Instant,
}

/// Billionths of a byte in one.
const NANO: i128 = 1_000_000_000;

impl Allowance {
    fn new(bytes_per_second: u64, now: Instant) -> Self {
        let state = Mutex::new(State {
            left: 0,
            counted: now,
        });
        Self {
            bytes_per_second,
            state,
        }
    }

    /// How many of `wanted` bytes may go now, at least one; or how long to wait.
    fn ask(&self, wanted: usize, now: Instant) -> Result<usize, Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let per_second = i128::from(self.bytes_per_second);
        let nanos = |time: Duration| i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
        let passed = nanos(now.saturating_duration_since(state.counted));
        let most = per_second * nanos(BURST);
        state.left = (state.left.saturating_add(per_second.saturating_mul(passed))).min(most);
        state.counted = now;
        let wanted = wanted.min(SHARE_BYTES_MAX);
        let whole = usize::try_from(state.left / NANO).unwrap_or(0);
        // Not a few bytes at a time: each would be a frame of its own.
        let granted = if wanted <= SHORT_BYTES_MAX {
            wanted
        } else if whole >= SHORT_BYTES_MAX.min(wanted) {
            whole.min(wanted)
        } else {
            let short = i128::try_from(wanted.min(SHARE_BYTES_MAX / 4)).unwrap_or(i128::MAX);
            let missing = short.saturating_mul(NANO).saturating_sub(state.left);
            let wait = u64::try_from(missing / per_second).unwrap_or(u64::MAX);
            return Err(Duration::from_nanos(wait.max(1_000_000)));
        };
        state.left -= i128::try_from(granted).unwrap_or(i128::MAX) * NANO;
        Ok(granted)
    }

    /// Gives back what was granted and did not go.
    fn unused(&self, bytes: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left += i128::try_from(bytes).unwrap_or(0) * NANO;
    }
}

/// One direction of one stream.
#[derive(Debug, Default)]
struct Way {
    allowance: Option<Arc<Allowance>>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Way {
    fn new(allowance: Option<&Arc<Allowance>>) -> Self {
        Self {
            allowance: allowance.cloned(),
            wait: None,
        }
    }

    /// Does what moves up to that many bytes with as many as may go now.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
        act: impl FnOnce(&mut Context<'_>, usize) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Some(allowance) = &self.allowance else {
            return act(cx, wanted);
        };
        let granted = loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(cx));
                self.wait = None;
            }
            match allowance.ask(wanted, Instant::now()) {
                Ok(granted) => break granted,
                Err(wait) => self.wait = Some(Box::pin(tokio::time::sleep(wait))),
            }
        };
        let outcome = act(cx, granted);
        let moved = match &outcome {
            Poll::Ready(Ok(moved)) => *moved,
            _ => 0,
        };
        allowance.unused(granted.saturating_sub(moved));
        outcome
    }
}

/// A connection under limits.
#[derive(Debug)]
pub(super) struct Limited<C> {
    connection: C,
    limits: Limits,
}

/// A stream of it.
#[derive(Debug)]
pub(super) struct LimitedStream<S> {
    stream: S,
    upload: Way,
    download: Way,
}

impl<C> Limited<C> {
    pub(super) fn new(connection: C, limits: Limits) -> Self {
        Self { connection, limits }
    }

    fn limited<S>(&self, stream: S) -> LimitedStream<S> {
        LimitedStream {
            stream,
            upload: Way::new(self.limits.upload.as_ref()),
            download: Way::new(self.limits.download.as_ref()),
        }
    }
}

impl<C> StreamMuxer for Limited<C>
where
    C: StreamMuxer + Unpin,
    C::Substream: Unpin,
{
    type Substream = LimitedStream<C::Substream>;
    type Error = C::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.connection).poll_inbound(cx))?;
        Poll::Ready(Ok(self.limited(stream)))
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.connection).poll_outbound(cx))?;
        Poll::Ready(Ok(self.limited(stream)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.connection).poll_close(cx)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.connection).poll(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LimitedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let stream = Pin::new(&mut this.stream);
        this.download.poll(cx, buffer.len(), |cx, granted| {
            let room = buffer.get_mut(..granted).unwrap_or_default();
            stream.poll_read(cx, room)
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LimitedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let stream = Pin::new(&mut this.stream);
        this.upload.poll(cx, bytes.len(), |cx, granted| {
            stream.poll_write(cx, bytes.get(..granted).unwrap_or_default())
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_the_rate_goes_whatever_is_asked() {
        let begin = Instant::now();
        let rate = 1_000_000;
        let allowance = Allowance::new(rate, begin);
        let mut now = begin;
        let mut went = 0_u64;
        let mut seed = 7_u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let wanted = 1 + usize::try_from(seed >> 40).unwrap() % 40_000;
            match allowance.ask(wanted, now) {
                Ok(granted) => {
                    assert!((1..=wanted).contains(&granted));
                    went += granted as u64;
                    // A third of it did not go.
                    allowance.unused(granted / 3);
                    went -= (granted / 3) as u64;
                }
                Err(wait) => {
                    assert!(wait <= Duration::from_millis(5), "{wait:?}");
                    now += wait;
                }
            }
            let elapsed = now.duration_since(begin).as_nanos();
            let most = u128::from(rate) * elapsed / 1_000_000_000;
            // What is short goes into debt, and no further than the short ones asked.
            assert!(u128::from(went) <= most + 100_000 + 20_000 * 512);
        }
        let elapsed = now.duration_since(begin).as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let reached = went as f64 / elapsed;
        assert!(
            (0.9e6..1.2e6).contains(&reached),
            "{reached} bytes a second"
        );
    }

    #[test]
    fn what_is_short_never_waits() {
        let now = Instant::now();
        let allowance = Allowance::new(RATE_MIN, now);
        assert!(allowance.ask(100_000, now).is_err());
        for _ in 0..100 {
            assert_eq!(allowance.ask(32, now), Ok(32));
        }
        // It was counted all the same: what is long waits for it.
        let wait = allowance.ask(100_000, now).unwrap_err();
        assert!(wait > Duration::from_millis(3200 * 1000 / 16384));
    }
}
