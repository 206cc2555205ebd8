//! A removed device whose program ignores politeness: it holds its old keys and speaks to the others as if nothing had happened.

use std::collections::BTreeSet;

use bytes::Bytes;
use kith_node::config::Home;
use kith_node::net::{Channel, Config, Inside, NetEvent};
use kith_protocol::exchange::message::{Entry, EntryKind, Message};
use kith_tests::Place;
use zeroize::Zeroizing;

#[test]
fn removed_device_with_its_own_client_is_told_nothing() {
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut first, _) = place.first("first");
    if !first.is_up() {
        first.up();
    }
    let mut second = place.join("second", &first);
    if !second.is_up() {
        second.up();
    }
    second.agrees_with(&first);
    second.stop();
    first.ok(["device", "remove", "second", "--yes"]);
    let cid = first.put_bytes(&[9; 1000], "/secret").parse().unwrap();
    let status = first.status();
    let identity = Home::at(second.home()).identity().unwrap();
    let first_id = status["device"].as_str().unwrap().parse().unwrap();
    let addrs: Vec<_> = status["inside"]
        .as_array()
        .unwrap()
        .iter()
        .map(|addr| addr.as_str().unwrap().parse().unwrap())
        .collect();

    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let seed = Zeroizing::new(*identity.keys.sign_key().seed().expose());
        let config = Config::new(
            identity.space,
            vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
        );
        let (inside, mut events) = Inside::start(seed, config).unwrap();
        inside.allow(BTreeSet::from([first_id]));
        for _ in 0..5 {
            inside.dial(first_id, addrs.clone()).unwrap();
            loop {
                match events.recv().await.unwrap() {
                    // For a moment it looks connected, until the other side has looked at its list.
                    NetEvent::Connected(_) => {
                        let want = Entry {
                            cid,
                            priority: 1,
                            kind: EntryKind::Block,
                            send_dont_have: true,
                            once: false,
                        };
                        let message = Message {
                            full: true,
                            entries: vec![want],
                            ..Message::default()
                        };
                        let _ = inside.send(
                            first_id,
                            Channel::Bitswap,
                            message.encode().into_bytes(),
                            1,
                        );
                        let _ = inside.send(
                            first_id,
                            Channel::Sync,
                            Bytes::from_static(&[0, 1, 2, 3]),
                            2,
                        );
                        let _ = inside.publish(Bytes::from_static(b"hello"));
                    }
                    NetEvent::Received { channel, bytes, .. } => panic!(
                        "a removed device was told {} bytes on {channel:?}",
                        bytes.len()
                    ),
                    NetEvent::Published { .. } => panic!("a removed device hears gossip"),
                    NetEvent::Subscribed(_) => panic!("a removed device is in the gossip"),
                    NetEvent::Disconnected(_) | NetEvent::Unreachable(_) => break,
                    _ => {}
                }
            }
        }
        inside.shutdown().await;
    });
}
