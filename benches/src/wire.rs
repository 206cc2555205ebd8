//! Messages over the inside swarm of two devices in one process: what one libp2p stream carries.

use std::collections::BTreeSet;
use std::time::Instant;

use bytes::Bytes;
use kith_node::net::{Channel, Config, Inside, InsideHandle, NetEvent, NetEvents, Refused};
use kith_object::id::SpaceId;

use crate::Measured;

/// Size of a message, near that of a block.
const MESSAGE_BYTES: usize = 256 << 10;

async fn start(seed: u8, listen: &str) -> (InsideHandle, NetEvents) {
    let config = Config::new(SpaceId([9; 32]), vec![listen.parse().expect("an address")]);
    Inside::start(zeroize::Zeroizing::new([seed; 32]), config).expect("loopback can be listened on")
}

async fn wait<T>(events: &mut NetEvents, mut want: impl FnMut(NetEvent) -> Option<T>) -> T {
    loop {
        let event = events.recv().await.expect("the inside runs");
        if let Some(found) = want(event) {
            return found;
        }
    }
}

/// Sends that many bytes from one device to another over one stream.
///
/// # Panics
/// If the two do not connect.
pub async fn raw_stream(bytes: u64, listen: &str) -> Measured {
    let (one, mut one_events) = start(1, listen).await;
    let (other, mut other_events) = start(2, listen).await;
    let (a, b) = (one.device(), other.device());
    one.allow(BTreeSet::from([b]));
    other.allow(BTreeSet::from([a]));
    let addr = wait(&mut other_events, |event| match event {
        NetEvent::Listening(addr) => Some(addr),
        _ => None,
    })
    .await;
    one.dial(b, vec![addr]).expect("a dial is taken");
    wait(&mut one_events, |event| {
        matches!(event, NetEvent::Connected(_)).then_some(())
    })
    .await;
    let message = Bytes::from(crate::kernels::random(MESSAGE_BYTES));
    let began = Instant::now();
    let receiver = tokio::spawn(async move {
        let mut got = 0;
        while got < bytes {
            got += wait(&mut other_events, |event| match event {
                NetEvent::Received { bytes, .. } => Some(bytes.len() as u64),
                _ => None,
            })
            .await;
        }
    });
    let mut sent = 0;
    while sent < bytes {
        match one.send(b, Channel::Sync, message.clone(), 0) {
            Ok(()) => sent += message.len() as u64,
            Err(Refused::Full) => {
                wait(&mut one_events, |event| {
                    matches!(event, NetEvent::Sent { .. }).then_some(())
                })
                .await;
            }
            Err(error) => panic!("message not taken: {error}"),
        }
    }
    let drain = tokio::spawn(async move { while one_events.recv().await.is_some() {} });
    receiver.await.expect("the receiver ends");
    let took = began.elapsed();
    drain.abort();
    one.shutdown().await;
    other.shutdown().await;
    Measured { bytes: sent, took }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn some_messages_pass() {
        assert!(
            super::raw_stream(4 << 20, "/ip4/127.0.0.1/tcp/0")
                .await
                .bytes
                >= 4 << 20
        );
    }
}
