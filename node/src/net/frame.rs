//! Length prefixes: how one message ends and the next begins on a stream.

use std::io;

use futures::{AsyncRead, AsyncReadExt};

use super::Channel;

/// Longest message on a channel: what Bitswap allows, and eight times the largest chunk.
///
/// Spec: `protocol/spec/net.md`, "Channels".
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Bytes of the longest prefix: a varint of 28 bits, or a u32.
pub(super) const PREFIX_BYTES_MAX: usize = 4;

/// Why a stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// Longer than [`MESSAGE_BYTES_MAX`], or a prefix that no encoder of ours writes.
    #[error("length prefix is malformed or over the limit")]
    Length,
    /// The stream ended inside a message, or broke.
    #[error("read stream")]
    Read(#[source] io::Error),
}

/// Appends the prefix of a message of that length.
pub(super) fn put_prefix(channel: Channel, len: usize, out: &mut Vec<u8>) {
    let len = u32::try_from(len).expect("messages are checked against MESSAGE_BYTES_MAX");
    match channel {
        Channel::Sync => out.extend_from_slice(&len.to_le_bytes()),
        Channel::Bitswap => {
            let mut rest = len;
            while rest >= 0x80 {
                out.push(rest.to_le_bytes()[0] | 0x80);
                rest >>= 7;
            }
            out.push(rest.to_le_bytes()[0]);
        }
    }
}

/// Reads a prefix; `None` if the stream ends before its first byte.
///
/// # Errors
/// [`FrameError`]; after it the stream is good for nothing.
pub(super) async fn read_prefix(
    channel: Channel,
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<usize>, FrameError> {
    let mut first = [0; 1];
    if stream.read(&mut first).await.map_err(FrameError::Read)? == 0 {
        return Ok(None);
    }
    let [first] = first;
    let len = match channel {
        Channel::Sync => {
            let mut rest = [0; 3];
            stream
                .read_exact(&mut rest)
                .await
                .map_err(FrameError::Read)?;
            let [b, c, d] = rest;
            u32::from_le_bytes([first, b, c, d])
        }
        Channel::Bitswap => {
            let mut len = u32::from(first & 0x7f);
            let mut last = first;
            let mut shift = 7;
            while last & 0x80 != 0 {
                if shift >= 7 * PREFIX_BYTES_MAX {
                    return Err(FrameError::Length);
                }
                let mut next = [0; 1];
                stream
                    .read_exact(&mut next)
                    .await
                    .map_err(FrameError::Read)?;
                [last] = next;
                len |= u32::from(last & 0x7f) << shift;
                shift += 7;
            }
            // Each length has one form: a varint does not end in a zero byte unless it is zero itself.
            if last == 0 && shift > 7 {
                return Err(FrameError::Length);
            }
            len
        }
    };
    let len = usize::try_from(len).map_err(|_| FrameError::Length)?;
    if len > MESSAGE_BYTES_MAX {
        return Err(FrameError::Length);
    }
    Ok(Some(len))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::io::Cursor;
    use proptest::prelude::*;

    use super::*;

    fn read(channel: Channel, bytes: &[u8]) -> Result<Option<usize>, FrameError> {
        read_prefix(channel, &mut Cursor::new(bytes))
            .now_or_never()
            .unwrap()
    }

    #[test]
    fn known_prefixes() {
        let mut out = Vec::new();
        put_prefix(Channel::Bitswap, 300, &mut out);
        assert_eq!(out, [0xac, 0x02]);
        out.clear();
        put_prefix(Channel::Sync, 300, &mut out);
        assert_eq!(out, [0x2c, 0x01, 0, 0]);
    }

    #[test]
    fn long_and_crooked_prefixes_are_refused() {
        for bytes in [&[0x81, 0x80, 0x80, 0x02][..], &[0xff; 9], &[0x80, 0x00]] {
            assert!(
                matches!(read(Channel::Bitswap, bytes), Err(FrameError::Length)),
                "{bytes:?}"
            );
        }
        assert!(matches!(
            read(Channel::Sync, &[1, 0, 0x40, 0]),
            Err(FrameError::Length)
        ));
        assert!(matches!(
            read(Channel::Sync, &[1, 0]),
            Err(FrameError::Read(_))
        ));
        assert!(matches!(
            read(Channel::Bitswap, &[0x80]),
            Err(FrameError::Read(_))
        ));
        assert!(matches!(read(Channel::Sync, &[]), Ok(None)));
    }

    proptest! {
        #[test]
        fn prefix_returns(len in 0..=MESSAGE_BYTES_MAX, bitswap: bool) {
            let channel = if bitswap { Channel::Bitswap } else { Channel::Sync };
            let mut out = Vec::new();
            put_prefix(channel, len, &mut out);
            prop_assert!(out.len() <= PREFIX_BYTES_MAX);
            prop_assert_eq!(read(channel, &out).unwrap(), Some(len));
        }

        #[test]
        fn any_bytes_never_panic_and_have_one_form(bytes in proptest::collection::vec(any::<u8>(), 0..8), bitswap: bool) {
            let channel = if bitswap { Channel::Bitswap } else { Channel::Sync };
            if let Ok(Some(len)) = read(channel, &bytes) {
                let mut out = Vec::new();
                put_prefix(channel, len, &mut out);
                prop_assert_eq!(&bytes[..out.len()], &out[..]);
            }
        }
    }
}
