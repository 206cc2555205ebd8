//! Real swarms on 127.0.0.1, waiting for events under a deadline.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt};
use kith_object::id::{DeviceId, SpaceId};
use zeroize::Zeroizing;

use super::door::{
    self, Door, DoorError, DoorEvent, DoorEvents, DoorHandle, DoorStream, KnockError,
};
use super::event::QUEUE_BYTES_MAX;
use super::inside::PUBLISH_BYTES_MAX;
use super::rate::Rates;
use super::*;

/// Far beyond what any of these waits takes.
const DEADLINE: Duration = Duration::from_secs(60);

struct Node {
    handle: InsideHandle,
    events: NetEvents,
    tcp: Multiaddr,
    quic: Multiaddr,
}

fn listen() -> Vec<Multiaddr> {
    vec![
        "/ip4/127.0.0.1/tcp/0".parse().unwrap(),
        "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap(),
    ]
}

impl Node {
    async fn start(seed: u8) -> Self {
        Self::start_with(seed, Config::new(SpaceId([9; 32]), listen())).await
    }

    async fn start_with(seed: u8, config: Config) -> Self {
        let (handle, mut events) = Inside::start(Zeroizing::new([seed; 32]), config).unwrap();
        let (mut tcp, mut quic) = (None, None);
        while tcp.is_none() || quic.is_none() {
            if let NetEvent::Listening(addr) = next(&mut events).await {
                let slot = if is_tcp(&addr) { &mut tcp } else { &mut quic };
                *slot = Some(addr);
            }
        }
        Self {
            handle,
            events,
            tcp: tcp.unwrap(),
            quic: quic.unwrap(),
        }
    }

    fn device(&self) -> DeviceId {
        self.handle.device()
    }

    /// Says who may enter, and waits until that holds: commands are performed in order, and a dial to nobody is answered.
    async fn allow(&mut self, devices: BTreeSet<DeviceId>) {
        let nobody = DeviceId([0xee; 32]);
        self.handle.allow(devices);
        self.handle.dial(nobody, Vec::new()).unwrap();
        self.sees(NetEvent::Unreachable(nobody)).await;
    }

    /// Skips events until one that `pick` wants.
    async fn until<T>(&mut self, mut pick: impl FnMut(NetEvent) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(next(&mut self.events).await) {
                return found;
            }
        }
    }

    async fn sees(&mut self, event: NetEvent) {
        self.until(|seen| (seen == event).then_some(())).await;
    }

    async fn connect(&mut self, other: &mut Self, addr: Multiaddr) {
        self.handle.dial(other.device(), vec![addr]).unwrap();
        self.sees(NetEvent::Connected(other.device())).await;
        other.sees(NetEvent::Connected(self.device())).await;
    }

    /// The next message.
    async fn message(&mut self) -> (DeviceId, Channel, Bytes) {
        self.until(|event| match event {
            NetEvent::Received {
                peer,
                channel,
                bytes,
            } => Some((peer, channel, bytes)),
            _ => None,
        })
        .await
    }

    /// Sends as soon as the queue has room.
    async fn send_waiting(&mut self, to: DeviceId, channel: Channel, bytes: Bytes, token: u64) {
        while let Err(refused) = self.handle.send(to, channel, bytes.clone(), token) {
            assert_eq!(refused, Refused::Full);
            self.until(|event| matches!(event, NetEvent::Sent { .. }).then_some(()))
                .await;
        }
    }
}

async fn next(events: &mut NetEvents) -> NetEvent {
    tokio::time::timeout(DEADLINE, events.recv())
        .await
        .expect("no event in time")
        .expect("the inside has stopped")
}

/// Nodes that allow each other.
async fn nodes<const N: usize>() -> [Node; N] {
    let mut all = Vec::new();
    for seed in 1..=N {
        all.push(Node::start(seed as u8).await);
    }
    let devices: BTreeSet<DeviceId> = all.iter().map(Node::device).collect();
    for node in &mut all {
        node.allow(devices.clone()).await;
    }
    all.try_into().ok().unwrap()
}

/// `len` bytes that differ from message to message.
fn body(len: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes.into()
}

async fn messages_go_both_ways(addr: fn(&Node) -> Multiaddr) {
    let [mut a, mut b] = nodes().await;
    let to = addr(&b);
    a.connect(&mut b, to).await;
    let mut token = 0;
    for channel in [Channel::Bitswap, Channel::Sync] {
        for len in [
            1,
            127,
            128,
            16 << 10,
            (16 << 10) + 1,
            256 << 10,
            MESSAGE_BYTES_MAX,
        ] {
            token += 1;
            let sent = body(len, token);
            a.handle
                .send(b.device(), channel, sent.clone(), token)
                .unwrap();
            assert_eq!(b.message().await, (a.device(), channel, sent.clone()));
            b.handle
                .send(a.device(), channel, sent.clone(), token)
                .unwrap();
            assert_eq!(a.message().await, (b.device(), channel, sent));
            let peer = a.device();
            b.sees(NetEvent::Sent {
                peer,
                channel,
                token,
                len,
            })
            .await;
        }
    }
    let too_long = Bytes::from(vec![0; MESSAGE_BYTES_MAX + 1]);
    assert_eq!(
        a.handle.send(b.device(), Channel::Sync, too_long, 0),
        Err(Refused::TooLong)
    );
    assert_eq!(
        a.handle.send(b.device(), Channel::Sync, Bytes::new(), 0),
        Err(Refused::TooLong)
    );
    assert_eq!(
        a.handle
            .send(DeviceId([7; 32]), Channel::Sync, body(1, 1), 0),
        Err(Refused::NotConnected)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_both_ways_over_tcp() {
    messages_go_both_ways(|node| node.tcp.clone()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_both_ways_over_quic() {
    messages_go_both_ways(|node| node.quic.clone()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn burst_loses_nothing_and_keeps_its_order() {
    let [mut a, mut b] = nodes().await;
    let to = b.tcp.clone();
    a.connect(&mut b, to).await;
    for token in 0..1000 {
        a.handle
            .send(
                b.device(),
                Channel::Sync,
                body(1 + token as usize * 7 % 3000, token),
                token,
            )
            .unwrap();
    }
    // Both owners look after their queues, or the one that does not would hold up the other.
    let received = async {
        for token in 0..1000 {
            assert_eq!(
                b.message().await.2,
                body(1 + token as usize * 7 % 3000, token)
            );
        }
    };
    let sent = async {
        for expected in 0..1000 {
            let token = a
                .until(|event| {
                    if let NetEvent::Sent { token, .. } = event {
                        Some(token)
                    } else {
                        None
                    }
                })
                .await;
            assert_eq!(token, expected);
        }
    };
    futures::join!(received, sent);
}

/// More streams at once than a device has towards another, and an owner that takes one after the other: none is lost, none waits for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn burst_of_raw_streams_loses_none() {
    for transport in [
        |node: &Node| node.tcp.clone(),
        |node: &Node| node.quic.clone(),
    ] {
        let [mut a, mut b] = nodes().await;
        let to = transport(&b);
        a.connect(&mut b, to).await;
        let mut streams = b.handle.take_raw().unwrap();
        assert!(b.handle.take_raw().is_none(), "one owner");
        for _ in 0..4 {
            let mut asking = tokio::task::JoinSet::new();
            for n in 0..200_u8 {
                let (handle, to) = (a.handle.clone(), b.device());
                asking.spawn(async move {
                    let mut stream = handle.open_raw(to, Raw::Where).await.unwrap();
                    stream.write_all(&[n; 100], DEADLINE).await.unwrap();
                    stream.close(DEADLINE).await.unwrap();
                    let answer = stream.read_to_end(1000, DEADLINE).await.unwrap();
                    assert_eq!(answer, [n; 200]);
                });
            }
            for _ in 0..200 {
                let mut stream = streams.recv().await.unwrap();
                assert_eq!((stream.device(), stream.raw()), (a.device(), Raw::Where));
                let asked = stream.read_to_end(100, DEADLINE).await.unwrap();
                assert_eq!(asked.len(), 100);
                let answer = [&asked[..], &asked].concat();
                stream.write_all(&answer, DEADLINE).await.unwrap();
                stream.close(DEADLINE).await.unwrap();
            }
            while let Some(done) = asking.join_next().await {
                done.unwrap();
            }
        }
        assert_eq!(b.handle.stats().cut, 0);
        // More than is asked for is refused, and who is gone is missed at once.
        let mut asking = a.handle.open_raw(b.device(), Raw::Packs).await.unwrap();
        asking.write_all(&[1; 200], DEADLINE).await.unwrap();
        let mut stream = streams.recv().await.unwrap();
        let read = stream.read_to_end(100, DEADLINE).await;
        assert_eq!(read, Err(RawError::TooLong));
        drop(stream);
        b.handle.shutdown().await;
        let read = asking.read_to_end(100, DEADLINE).await;
        assert!(matches!(read, Err(RawError::Broken)) || read == Ok(Vec::new()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_owner_holds_up_the_sender_and_not_the_memory() {
    let [mut a, mut b] = nodes().await;
    let to = b.tcp.clone();
    a.connect(&mut b, to).await;
    const LEN: usize = 1 << 20;
    const COUNT: u64 = 96;
    let target = b.device();
    let message = body(LEN, 1);
    let (filled, full) = tokio::sync::oneshot::channel();
    let sender = async {
        let mut filled = Some(filled);
        for token in 0..COUNT {
            a.send_waiting(target, Channel::Bitswap, message.clone(), token)
                .await;
            // So much is taken off our hands while nobody takes it out there.
            if a.handle.stats().sent_bytes >= QUEUE_BYTES_MAX as u64
                && let Some(filled) = filled.take()
            {
                filled.send(()).unwrap();
            }
        }
    };
    let receiver = async {
        full.await.unwrap();
        let mut taken = 0;
        for _ in 0..COUNT {
            let waiting = b.handle.stats().received_bytes - taken;
            assert!(
                waiting <= (QUEUE_BYTES_MAX + 2 * MESSAGE_BYTES_MAX) as u64,
                "{waiting} bytes wait"
            );
            assert_eq!(b.message().await.2.len(), LEN);
            taken += LEN as u64;
        }
    };
    futures::join!(sender, receiver);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_outlives_a_broken_stream_once() {
    let [mut a, mut b] = nodes().await;
    let to = b.tcp.clone();
    a.connect(&mut b, to).await;
    let sent = body(MESSAGE_BYTES_MAX, 1);
    b.handle.streams().breaks.store(1, Ordering::SeqCst);
    a.handle
        .send(b.device(), Channel::Bitswap, sent.clone(), 1)
        .unwrap();
    assert_eq!(b.message().await.2, sent);
    b.handle.streams().breaks.store(2, Ordering::SeqCst);
    a.handle
        .send(b.device(), Channel::Sync, sent.clone(), 2)
        .unwrap();
    let (peer, channel, len) = (b.device(), Channel::Sync, sent.len());
    a.sees(NetEvent::Unsent {
        peer,
        channel,
        token: 2,
        len,
    })
    .await;
    a.handle
        .send(b.device(), Channel::Sync, sent.clone(), 3)
        .unwrap();
    assert_eq!(b.message().await.2, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversize_and_garbage_are_cut_off_and_kept_out() {
    for (channel, bytes) in [
        (Channel::Sync, &[0xff; 4][..]),
        (Channel::Sync, &[0; 4]),
        (Channel::Bitswap, &[0xff; 8]),
        (Channel::Bitswap, &[0x81, 0x80, 0x80, 0x02]),
    ] {
        let [mut a, mut b, mut c] = nodes().await;
        let to = b.tcp.clone();
        a.connect(&mut b, to.clone()).await;
        let mut stream = a.handle.streams().open(&b.device(), channel).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        a.sees(NetEvent::Disconnected(b.device())).await;
        b.sees(NetEvent::Disconnected(a.device())).await;
        assert_eq!(b.handle.stats().cut, 1);
        // It comes again, in vain: another device's coming is the next that is heard.
        a.handle.dial(b.device(), vec![to.clone()]).unwrap();
        let gone = [
            NetEvent::Disconnected(b.device()),
            NetEvent::Unreachable(b.device()),
        ];
        a.until(|event| gone.contains(&event).then_some(())).await;
        c.handle.dial(b.device(), vec![to]).unwrap();
        let first = b
            .until(|event| match event {
                NetEvent::Connected(device) => Some(device),
                _ => None,
            })
            .await;
        assert_eq!(first, c.device());
        c.sees(NetEvent::Connected(b.device())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_streams_is_cut_off() {
    let [mut a, mut b] = nodes().await;
    let to = b.tcp.clone();
    a.connect(&mut b, to).await;
    let mut streams = Vec::new();
    for _ in 0..64 {
        let mut stream = a
            .handle
            .streams()
            .open(&b.device(), Channel::Bitswap)
            .await
            .unwrap();
        stream.write_all(&[0]).await.unwrap();
        stream.flush().await.unwrap();
        streams.push(stream);
    }
    assert_eq!(b.handle.stats().cut, 0);
    let _one_more = a.handle.streams().open(&b.device(), Channel::Bitswap).await;
    b.sees(NetEvent::Disconnected(a.device())).await;
    assert_eq!(b.handle.stats().cut, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_of_one_message_per_stream_is_understood() {
    let [mut a, mut b] = nodes().await;
    let to = b.tcp.clone();
    a.connect(&mut b, to).await;
    for round in 0..100_u8 {
        let mut stream = a
            .handle
            .streams()
            .open(&b.device(), Channel::Bitswap)
            .await
            .unwrap();
        stream.write_all(&[2, round, round]).await.unwrap();
        stream.close().await.unwrap();
        assert_eq!(b.message().await.2, vec![round, round]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stranger_is_turned_away_before_any_protocol() {
    for quic in [false, true] {
        let [mut a, mut member] = nodes().await;
        let mut stranger = Node::start(77).await;
        stranger.allow(BTreeSet::from([a.device()])).await;
        let to = if quic { a.quic.clone() } else { a.tcp.clone() };
        stranger.handle.dial(a.device(), vec![to.clone()]).unwrap();
        loop {
            match next(&mut stranger.events).await {
                NetEvent::Connected(_) => {}
                NetEvent::Disconnected(_) | NetEvent::Unreachable(_) => break,
                event => panic!("a stranger is told {event:?}"),
            }
        }
        // The first that is heard inside is a member.
        member.handle.dial(a.device(), vec![to]).unwrap();
        assert_eq!(
            next(&mut a.events).await,
            NetEvent::Connected(member.device())
        );
        member.sees(NetEvent::Connected(a.device())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_device_is_cut_while_connected() {
    let [mut a, mut b] = nodes().await;
    let to = b.tcp.clone();
    a.connect(&mut b, to).await;
    b.handle.allow(BTreeSet::new());
    b.sees(NetEvent::Disconnected(a.device())).await;
    a.sees(NetEvent::Disconnected(b.device())).await;
    assert_eq!(
        b.handle.send(a.device(), Channel::Sync, body(1, 1), 1),
        Err(Refused::NotConnected)
    );
    // Allowed again, it may come back at once: it did nothing wrong.
    b.handle.allow(BTreeSet::from([a.device()]));
    let to = a.tcp.clone();
    b.connect(&mut a, to).await;
    b.handle
        .send(a.device(), Channel::Sync, body(1, 1), 1)
        .unwrap();
    assert_eq!(a.message().await.2, body(1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_passes_on_what_is_accepted() {
    let [mut a, mut b, mut c] = nodes().await;
    let to = b.tcp.clone();
    a.connect(&mut b, to.clone()).await;
    a.sees(NetEvent::Subscribed(b.device())).await;
    b.sees(NetEvent::Subscribed(a.device())).await;
    c.connect(&mut b, to).await;
    b.sees(NetEvent::Subscribed(c.device())).await;
    let published = |event| match event {
        NetEvent::Published { from, bytes, id } => Some((from, bytes, id)),
        _ => None,
    };
    assert_eq!(
        a.handle.publish(vec![0; PUBLISH_BYTES_MAX + 1].into()),
        Err(Refused::TooLong)
    );
    for (message, accept) in [(body(10, 1), false), (body(PUBLISH_BYTES_MAX, 2), true)] {
        a.handle.publish(message.clone()).unwrap();
        let (from, bytes, id) = b.until(published).await;
        assert_eq!((from, bytes), (a.device(), message));
        b.handle.verdict(id, accept).unwrap();
    }
    let (from, bytes, _) = c.until(published).await;
    assert_eq!((from, bytes), (a.device(), body(PUBLISH_BYTES_MAX, 2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provider_is_found_through_a_third() {
    let [mut a, mut b, mut c] = nodes().await;
    let to = b.tcp.clone();
    a.connect(&mut b, to.clone()).await;
    let told = |device| {
        move |event| {
            matches!(event, NetEvent::Addresses { device: of, .. } if of == device).then_some(())
        }
    };
    a.until(told(b.device())).await;
    c.connect(&mut b, to).await;
    c.until(told(b.device())).await;
    a.handle.provide([5; 32]).unwrap();
    let mut token = 0;
    loop {
        token += 1;
        c.handle.find_providers([5; 32], token).unwrap();
        let found = c
            .until(|event| match event {
                NetEvent::Providers { token: of, devices } if of == token => Some(devices),
                _ => None,
            })
            .await;
        if !found.is_empty() {
            assert_eq!(found, [a.device()]);
            break;
        }
    }
    c.handle.find_providers([6; 32], 0).unwrap();
    c.sees(NetEvent::Providers {
        token: 0,
        devices: Vec::new(),
    })
    .await;
}

/// Connects two devices, which then know each other in the DHT.
async fn acquaint(one: &mut Node, other: &mut Node) {
    let to = other.tcp.clone();
    one.connect(other, to).await;
    let told = |device| {
        move |event| {
            matches!(event, NetEvent::Addresses { device: of, .. } if of == device).then_some(())
        }
    };
    one.until(told(other.device())).await;
    other.until(told(one.device())).await;
}

/// Asks until somebody is found.
async fn provider(node: &mut Node, key: [u8; 32]) -> Vec<DeviceId> {
    for token in 1.. {
        node.handle.find_providers(key, token).unwrap();
        let found = node
            .until(|event| match event {
                NetEvent::Providers { token: of, devices } if of == token => Some(devices),
                _ => None,
            })
            .await;
        if !found.is_empty() {
            return found;
        }
    }
    unreachable!("asked for ever")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_others_outlasts_a_restart() {
    let [mut a, mut b] = nodes().await;
    acquaint(&mut a, &mut b).await;
    a.handle.provide([5; 32]).unwrap();
    let (first, devices) = (a.device(), BTreeSet::from([a.device(), b.device()]));
    // It may be found at the one that provides before it is told to the other.
    let told = async {
        loop {
            assert_eq!(provider(&mut b, [5; 32]).await, [first]);
            if let Some(records) = b.handle.records().await.unwrap() {
                return records;
            }
        }
    };
    let records = tokio::time::timeout(DEADLINE, told).await.unwrap();
    assert_eq!(b.handle.records().await.unwrap(), None, "nothing is new");
    b.handle.shutdown().await;
    a.handle.shutdown().await;
    // The one that knew is here again, the one that told is not.
    let config = |records| Config {
        records,
        ..Config::new(SpaceId([9; 32]), listen())
    };
    let mut b = Node::start_with(2, config(records.clone())).await;
    b.allow(devices).await;
    assert_eq!(provider(&mut b, [5; 32]).await, [first]);
    // It was removed from the mesh meanwhile.
    let mut b = Node::start_with(2, config(records)).await;
    b.allow(BTreeSet::new()).await;
    b.handle.find_providers([5; 32], 1).unwrap();
    let devices = Vec::new();
    b.sees(NetEvent::Providers { token: 1, devices }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn address_record_is_offered_to_the_owner_and_found_by_a_third() {
    use kith_object::key::{DeviceKeys, Rng};
    use kith_object::time::Time;
    use kith_protocol::record::AddressRecord;

    let [mut a, mut b, mut c] = nodes().await;
    acquaint(&mut a, &mut b).await;
    acquaint(&mut c, &mut b).await;
    let keys = DeviceKeys::generate(&mut Rng::from_seed([1; 32]));
    let said = AddressRecord::sign(&keys, Time(1), &["here".to_owned()]).unwrap();
    let said = Bytes::copy_from_slice(said.bytes());
    let key = [6; 32];
    a.handle.put_record(key, said.clone()).unwrap();
    b.sees(NetEvent::Offered {
        key,
        record: said.clone(),
    })
    .await;
    // Nobody passes on what its owner has not looked at.
    let reach = b.handle.records().await.unwrap();
    assert!(reach.is_none(), "not kept yet");
    b.handle.keep_record(key, said.clone()).unwrap();
    c.handle.find_record(key).unwrap();
    c.sees(NetEvent::Record { key, record: said }).await;
}

/// An address where nobody listens.
fn dead() -> Multiaddr {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dial_takes_tcp_first_and_what_works_next() {
    let [mut a, mut b] = nodes().await;
    a.handle.dial(b.device(), vec![dead()]).unwrap();
    a.sees(NetEvent::Unreachable(b.device())).await;
    a.handle.dial(b.device(), Vec::new()).unwrap();
    a.sees(NetEvent::Unreachable(b.device())).await;
    a.handle
        .dial(DeviceId([7; 32]), vec![b.tcp.clone()])
        .unwrap();
    a.sees(NetEvent::Unreachable(DeviceId([7; 32]))).await;
    let both = vec![b.quic.clone(), b.tcp.clone()];
    a.handle.dial(b.device(), both).unwrap();
    a.sees(NetEvent::Connected(b.device())).await;
    assert_eq!(a.handle.streams().transports(&b.device()), [true]);
    b.sees(NetEvent::Connected(a.device())).await;
    b.handle.allow(BTreeSet::new());
    a.sees(NetEvent::Disconnected(b.device())).await;
    b.sees(NetEvent::Disconnected(a.device())).await;
    b.allow(BTreeSet::from([a.device()])).await;
    a.handle
        .dial(b.device(), vec![dead(), b.quic.clone()])
        .unwrap();
    a.sees(NetEvent::Connected(b.device())).await;
    assert_eq!(a.handle.streams().transports(&b.device()), [false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_dial_each_other_are_connected_once() {
    for _ in 0..5 {
        let [mut a, mut b] = nodes().await;
        a.handle.dial(b.device(), vec![b.tcp.clone()]).unwrap();
        b.handle.dial(a.device(), vec![a.tcp.clone()]).unwrap();
        for (node, other) in [(&mut a, b.device()), (&mut b, DeviceId([0; 32]))] {
            let seen = node
                .until(|event| match event {
                    NetEvent::Connected(device) => Some(device),
                    NetEvent::Disconnected(_) | NetEvent::Unreachable(_) => panic!("{event:?}"),
                    _ => None,
                })
                .await;
            assert!(other == DeviceId([0; 32]) || seen == other);
        }
        for token in 0..100 {
            a.handle
                .send(b.device(), Channel::Sync, body(100, token), token)
                .unwrap();
            b.handle
                .send(a.device(), Channel::Sync, body(100, token), token)
                .unwrap();
        }
        for token in 0..100 {
            assert_eq!(b.message().await.2, body(100, token));
            assert_eq!(a.message().await.2, body(100, token));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taken_address_is_an_error_at_the_start() {
    let node = Node::start(1).await;
    let config = Config::new(SpaceId([9; 32]), vec![node.tcp.clone()]);
    let error = Inside::start(Zeroizing::new([2; 32]), config).unwrap_err();
    assert_eq!(error.to_string(), format!("listen on {}", node.tcp));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defect_in_the_swarm_ends_the_events() {
    let mut node = Node::start(1).await;
    node.handle.panic();
    while node.events.recv().await.is_some() {}
    assert_eq!(
        node.handle.publish(Bytes::from_static(b"x")),
        Err(Refused::Stopped)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_ends_the_events_and_frees_the_port() {
    let [mut a, mut b] = nodes().await;
    let to = b.tcp.clone();
    a.connect(&mut b, to.clone()).await;
    b.handle.shutdown().await;
    while tokio::time::timeout(DEADLINE, b.events.recv())
        .await
        .unwrap()
        .is_some()
    {}
    assert_eq!(
        b.handle.send(a.device(), Channel::Sync, body(1, 1), 1),
        Err(Refused::NotConnected)
    );
    assert_eq!(b.handle.publish(body(1, 1)), Err(Refused::Stopped));
    a.sees(NetEvent::Disconnected(b.device())).await;
    let config = Config::new(SpaceId([9; 32]), vec![to]);
    let (again, mut events) = Inside::start(Zeroizing::new([2; 32]), config).unwrap();
    assert!(matches!(next(&mut events).await, NetEvent::Listening(_)));
    drop(again);
    while tokio::time::timeout(DEADLINE, events.recv())
        .await
        .unwrap()
        .is_some()
    {}
}

struct TestDoor {
    handle: DoorHandle,
    events: DoorEvents,
    tcp: Multiaddr,
    quic: Multiaddr,
}

async fn test_door() -> TestDoor {
    let (handle, mut events) = Door::start(Zeroizing::new([50; 32]), &listen()).unwrap();
    let (mut tcp, mut quic) = (None, None);
    while tcp.is_none() || quic.is_none() {
        let event = tokio::time::timeout(DEADLINE, events.recv())
            .await
            .unwrap()
            .unwrap();
        let DoorEvent::Listening(addr) = event else {
            panic!("{event:?}")
        };
        let slot = if is_tcp(&addr) { &mut tcp } else { &mut quic };
        *slot = Some(addr);
    }
    TestDoor {
        handle,
        events,
        tcp: tcp.unwrap(),
        quic: quic.unwrap(),
    }
}

impl TestDoor {
    async fn knocked(&mut self) -> Box<DoorStream> {
        loop {
            let event = tokio::time::timeout(DEADLINE, self.events.recv())
                .await
                .unwrap()
                .unwrap();
            if let DoorEvent::Knock(stream) = event {
                return stream;
            }
        }
    }

    /// Both ends of a stream that has carried a frame.
    async fn pair(&mut self, seed: u8, addr: Multiaddr) -> (DoorStream, Box<DoorStream>) {
        let mut ours = door::knock(Zeroizing::new([seed; 32]), &[addr], Some(self.handle.key()))
            .await
            .unwrap();
        ours.send(b"knock").await.unwrap();
        let mut theirs = self.knocked().await;
        assert_eq!(theirs.recv().await.unwrap(), &b"knock"[..]);
        (ours, theirs)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_pass_the_door_both_ways() {
    let mut door = test_door().await;
    for addr in [door.tcp.clone(), door.quic.clone()] {
        let (mut ours, mut theirs) = door.pair(60, addr).await;
        assert_eq!(ours.remote_peer, door.handle.key().to_peer_id_bytes());
        assert_eq!(
            (&ours.local_peer, &ours.remote_peer),
            (&theirs.remote_peer, &theirs.local_peer)
        );
        theirs.send(b"").await.unwrap();
        assert!(ours.recv().await.unwrap().is_empty());
        ours.proven(DEADLINE);
        theirs.proven(DEADLINE);
        let welcome = body(door::FRAME_BYTES_MAX, 1);
        let (sent, received) = futures::join!(theirs.send(&welcome), ours.recv());
        sent.unwrap();
        assert_eq!(received.unwrap(), welcome);
        assert!(matches!(
            theirs.send(&vec![0; door::FRAME_BYTES_MAX + 1]).await,
            Err(DoorError::TooLong)
        ));
        // The last frame before a close arrives.
        ours.send(b"done").await.unwrap();
        let last = async {
            assert_eq!(theirs.recv().await.unwrap(), &b"done"[..]);
            assert!(matches!(theirs.recv().await, Err(DoorError::Closed)));
            theirs.close().await;
        };
        futures::join!(ours.close(), last);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stranger_at_the_door_has_little_room_and_time() {
    let mut door = test_door().await;
    let addr = door.tcp.clone();
    let (mut ours, mut theirs) = door.pair(60, addr.clone()).await;
    ours.send(&[0; 10 << 10]).await.unwrap();
    ours.send(&[0; 10 << 10]).await.unwrap();
    assert_eq!(theirs.recv().await.unwrap().len(), 10 << 10);
    assert!(matches!(theirs.recv().await, Err(DoorError::TooLong)));
    let (mut ours, mut theirs) = door.pair(61, addr.clone()).await;
    ours.proven(DEADLINE);
    theirs.proven(DEADLINE);
    ours.raw().write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    ours.raw().flush().await.unwrap();
    assert!(matches!(theirs.recv().await, Err(DoorError::TooLong)));
    let (_ours, mut theirs) = door.pair(62, addr).await;
    theirs.expire();
    assert!(matches!(theirs.recv().await, Err(DoorError::Late)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_recv_loses_nothing() {
    let mut door = test_door().await;
    let addr = door.tcp.clone();
    let (mut ours, mut theirs) = door.pair(60, addr).await;
    let frame = [&5_u32.to_le_bytes()[..], b"whole"].concat();
    let (last, rest) = frame.split_last().unwrap();
    for byte in rest {
        ours.raw().write_all(&[*byte]).await.unwrap();
        ours.raw().flush().await.unwrap();
        for _ in 0..10 {
            assert!(theirs.recv().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
    }
    ours.raw().write_all(&[*last]).await.unwrap();
    ours.raw().flush().await.unwrap();
    assert_eq!(theirs.recv().await.unwrap(), &b"whole"[..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_may_knock_and_no_more() {
    let mut door = test_door().await;
    let addr = door.tcp.clone();
    let mut held = Vec::new();
    for seed in 0..8 {
        held.push(door.pair(60 + seed, addr.clone()).await);
    }
    let ninth = door::knock(
        Zeroizing::new([80; 32]),
        std::slice::from_ref(&addr),
        Some(door.handle.key()),
    )
    .await;
    // The opener's side may have a stream before it hears that it is not let in.
    if let Ok(mut stream) = ninth {
        let _ = stream.send(b"knock").await;
        assert!(stream.recv().await.is_err());
    }
    for (ours, mut theirs) in held {
        drop(ours);
        assert!(theirs.recv().await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn knock_finds_the_right_door_or_says_why_not() {
    let mut door = test_door().await;
    let seed = || Zeroizing::new([60; 32]);
    let error = door::knock(
        seed(),
        std::slice::from_ref(&door.tcp),
        Some(DeviceId([7; 32])),
    )
    .await;
    assert!(
        matches!(
            error,
            Err(KnockError::AnotherDoor | KnockError::Unreachable { .. })
        ),
        "{error:?}"
    );
    let inside = Node::start(1).await;
    inside.handle.allow(BTreeSet::from([DeviceId([7; 32])]));
    for addrs in [vec![dead()], Vec::new(), vec![inside.tcp.clone()]] {
        let error = door::knock(seed(), &addrs, None).await;
        assert!(
            matches!(
                error,
                Err(KnockError::Unreachable { .. } | KnockError::Silent)
            ),
            "{error:?}"
        );
    }
    // Whoever answers, when only an address is known; one that is dead does no harm.
    let mut ours = door::knock(seed(), &[dead(), door.quic.clone()], None)
        .await
        .unwrap();
    assert_eq!(ours.remote_peer, door.handle.key().to_peer_id_bytes());
    ours.send(b"knock").await.unwrap();
    assert_eq!(door.knocked().await.recv().await.unwrap(), &b"knock"[..]);
}

/// CPU time of this process so far, where the system tells; the clock ticks a hundred times a second on every Linux of today.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields = stat.rsplit_once(')')?.1;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Some(ticks as f64 / 100.0)
}

/// What the transports carry with nothing of ours around it, and what arrives through [`Inside`]: 16 MiB, or `KITH_NET_MIB`. Expected within a tenth of each
/// other, since all that is added is a prefix, one copy of 16 KiB in 256, and two events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throughput_is_that_of_the_raw_stream() {
    const MESSAGE: usize = 256 << 10;
    let mib = std::env::var("KITH_NET_MIB")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(16_usize);
    let total = mib << 20;
    let report = |what: &str, (start, cpu): (Instant, Option<f64>)| {
        let speed = total as f64 / 1e6 / start.elapsed().as_secs_f64();
        let cpu = cpu_seconds()
            .zip(cpu)
            .map(|(now, then)| (now - then) / (total as f64 / 1e9));
        eprintln!("{what}: {speed:.0} MB/s, CPU seconds per GB, both ends: {cpu:.2?}");
    };
    for quic in [false, true] {
        let name = if quic { "quic" } else { "tcp" };
        let mut door = test_door().await;
        let addr = if quic {
            door.quic.clone()
        } else {
            door.tcp.clone()
        };
        let (mut ours, mut theirs) = door.pair(60, addr).await;
        let start = (Instant::now(), cpu_seconds());
        let writer = tokio::spawn(async move {
            let buffer = vec![7; MESSAGE];
            for _ in 0..total / MESSAGE {
                ours.raw().write_all(&buffer).await.unwrap();
            }
            ours.raw().flush().await.unwrap();
            ours
        });
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; MESSAGE];
            for _ in 0..total / MESSAGE {
                theirs.raw().read_exact(&mut buffer).await.unwrap();
            }
            theirs
        });
        let _streams = (writer.await.unwrap(), reader.await.unwrap());
        report(&format!("{name}, raw stream"), start);

        let [mut a, mut b] = nodes().await;
        let to = if quic { b.quic.clone() } else { b.tcp.clone() };
        a.connect(&mut b, to).await;
        let message = Bytes::from(vec![7; MESSAGE]);
        let target = b.device();
        let start = (Instant::now(), cpu_seconds());
        let writer = tokio::spawn(async move {
            for token in 0..(total / MESSAGE) as u64 {
                a.send_waiting(target, Channel::Bitswap, message.clone(), token)
                    .await;
            }
            a
        });
        for _ in 0..total / MESSAGE {
            assert_eq!(b.message().await.2.len(), MESSAGE);
        }
        report(&format!("{name}, inside"), start);
        writer.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_goes_a_second_than_the_owner_allows() {
    // Whoever sends is held back, and whoever receives holds the sender back; over both transports.
    let rate = std::num::NonZeroU64::new(512 << 10);
    let upload = Rates {
        upload: rate,
        ..Rates::default()
    };
    let download = Rates {
        download: rate,
        ..Rates::default()
    };
    for (sends, receives, quic) in [
        (upload, Rates::default(), false),
        (Rates::default(), download, false),
        (upload, Rates::default(), true),
        (Rates::default(), download, true),
    ] {
        let config = |rates| Config {
            rates,
            ..Config::new(SpaceId([9; 32]), listen())
        };
        let mut a = Node::start_with(1, config(sends)).await;
        let mut b = Node::start_with(2, config(receives)).await;
        let devices = BTreeSet::from([a.device(), b.device()]);
        a.allow(devices.clone()).await;
        b.allow(devices).await;
        let addr = if quic { b.quic.clone() } else { b.tcp.clone() };
        a.connect(&mut b, addr).await;
        let begun = Instant::now();
        let (to, len) = (b.device(), 256 << 10);
        for n in 0..6 {
            a.handle
                .send(to, Channel::Bitswap, body(len, n), n)
                .unwrap();
        }
        for n in 0..6 {
            assert_eq!(b.message().await.2, body(len, n));
        }
        // 1.5 MiB at half of one a second, less what may go at once. No upper bound: others use the machine.
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(2500), "{took:?}");
        // Pings go by all that.
        assert_eq!(a.handle.stats().cut + b.handle.stats().cut, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_no_more_than_the_owner_allows() {
    let few = Config {
        connections_max: 3,
        ..Config::new(SpaceId([9; 32]), listen())
    };
    let mut hub = Node::start_with(100, few).await;
    let mut others = Vec::new();
    for seed in 1..=5 {
        others.push(Node::start(seed).await);
    }
    let mut devices: BTreeSet<DeviceId> = others.iter().map(Node::device).collect();
    devices.insert(hub.device());
    hub.allow(devices.clone()).await;
    let mut connected = 0;
    for other in &mut others {
        other.allow(devices.clone()).await;
        other
            .handle
            .dial(hub.device(), vec![hub.tcp.clone()])
            .unwrap();
        // Whoever is one too many may look connected for a moment, until the other side has counted.
        let there = hub.device();
        let stays = other
            .until(|event| match event {
                NetEvent::Connected(device) if device == there => Some(true),
                NetEvent::Unreachable(device) if device == there => Some(false),
                _ => None,
            })
            .await;
        connected += usize::from(stays);
    }
    assert!(connected >= 3, "{connected}");
    let reach = hub.handle.reach().await.unwrap();
    assert_eq!(reach.links.len(), 3, "{reach:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_move_to_tcp_as_soon_as_it_is_there() {
    let mut moved = 0;
    for _ in 0..40 {
        let [mut a, mut b] = nodes().await;
        // Each dials once, before it knows of the other's.
        let (quic, tcp) = (b.quic.clone(), a.tcp.clone());
        a.handle.dial(b.device(), vec![quic]).unwrap();
        b.handle.dial(a.device(), vec![tcp]).unwrap();
        a.sees(NetEvent::Connected(b.device())).await;
        b.sees(NetEvent::Connected(a.device())).await;
        let to = b.device();
        a.handle
            .send(to, Channel::Bitswap, body(1000, 1), 1)
            .unwrap();
        assert_eq!(b.message().await.2, body(1000, 1));
        let first = a.handle.streams().sends_by_tcp(&to, Channel::Bitswap);
        let both = |node: &Node| node.handle.streams().transports(&to).len() == 2;
        let begun = Instant::now();
        while !both(&a) && begun.elapsed() < Duration::from_millis(200) {
            tokio::task::yield_now().await;
        }
        if !both(&a) {
            continue;
        }
        for n in 2..5 {
            a.handle
                .send(to, Channel::Bitswap, body(1000, n), n)
                .unwrap();
            assert_eq!(b.message().await.2, body(1000, n));
        }
        assert!(a.handle.streams().sends_by_tcp(&to, Channel::Bitswap));
        moved += usize::from(!first);
        if moved == 3 {
            return;
        }
    }
    assert!(moved > 0, "QUIC was never first");
}
