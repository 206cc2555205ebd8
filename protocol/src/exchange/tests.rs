use std::collections::BTreeSet;

use bytes::Bytes;
use kith_object::id::Cid;
use kith_object::time::{Span, Time};
use proptest::prelude::*;

use super::message::{Block, Entry, EntryKind, Message, Prefix, Presence};
use super::network::{Manner, Network, Script, device};
use super::*;

/// One that asks (node 0) and `peers` that hold everything.
fn star(seed: u64, peers: usize, count: usize, len: usize) -> (Network, Vec<(Cid, Bytes)>) {
    let mut network = Network::new(seed, peers + 1);
    let blocks = network.blocks(count, len);
    for peer in 1..=peers {
        network.nodes[peer].store = blocks.iter().cloned().collect();
        network.connect(0, peer, 200, 100_000);
    }
    (network, blocks)
}

fn cids(blocks: &[(Cid, Bytes)]) -> Vec<Cid> {
    blocks.iter().map(|(cid, _)| *cid).collect()
}

fn duplicates_percent(network: &Network, node: usize) -> f64 {
    let stats = network.nodes[node].exchange.stats();
    100.0 * stats.duplicates as f64 / stats.blocks_received.max(1) as f64
}

#[test]
fn ten_thousand_blocks_come_from_one_peer_once_each() {
    let (mut network, blocks) = star(1, 1, 10_000, 2000);
    network.check_every = 500;
    network.want(0, 7, cids(&blocks));
    assert!(network.run_until(60_000, |network| network.has_all(0, &blocks)));
    let stats = *network.nodes[0].exchange.stats();
    assert_eq!(
        (stats.blocks_received, stats.duplicates, stats.asks),
        (10_000, 0, 10_000)
    );
    assert_eq!(network.nodes[0].exchange.wants_len(), 0);
    // Small blocks share messages, and so do the asks for them.
    assert!(stats.messages_received < 2_500, "{stats:?}");
    assert!(stats.messages_sent < 2_500, "{stats:?}");
}

#[test]
fn four_full_peers_share_the_work_and_hardly_send_twice() {
    for seed in 0..12 {
        let (mut network, blocks) = star(seed, 4, 1500, 20_000);
        network.check_every = 50;
        for peer in 1..=4 {
            let (latency, speed) = (100 + network.below(30_000), 5_000 + network.below(50_000));
            network.connect(0, peer, latency, speed);
        }
        network.want(0, 1, cids(&blocks));
        assert!(
            network.run_until(60_000, |network| network.has_all(0, &blocks)),
            "seed {seed}"
        );
        network.run_until(2_000, |_| false);
        assert!(
            duplicates_percent(&network, 0) < 2.0,
            "seed {seed}: {:?}",
            network.nodes[0].exchange.stats()
        );
        for peer in 1..=4 {
            assert!(
                network.nodes[0].got_from[&device(peer)] > 20,
                "seed {seed}: {:?}",
                network.nodes[0].got_from
            );
        }
    }
}

#[test]
fn equal_peers_send_equal_parts() {
    let (mut network, blocks) = star(3, 4, 2000, 50_000);
    network.check_every = 100;
    network.want(0, 1, cids(&blocks));
    assert!(network.run_until(60_000, |network| network.has_all(0, &blocks)));
    for peer in 1..=4 {
        let part = network.nodes[0].got_from[&device(peer)];
        assert!(
            (350..650).contains(&part),
            "{:?}",
            network.nodes[0].got_from
        );
    }
    assert_eq!(network.nodes[0].exchange.stats().duplicates, 0);
}

#[test]
fn window_grows_until_the_wire_is_full() {
    // 100 ms there and back, 100 MB/s, blocks of 128 KiB: the first window would fill a fifth of it.
    let (mut network, blocks) = star(4, 1, 4000, 128 * 1024);
    network.check_every = 200;
    network.connect(0, 1, 50_000, 100_000);
    let begun = network.now_us;
    network.want(0, 1, cids(&blocks));
    assert!(network.run_until(60_000, |network| network.has_all(0, &blocks)));
    let ideal = 4000 * 128 * 1024 / 100;
    assert!(
        network.now_us - begun < ideal * 14 / 10,
        "{} against {ideal}",
        network.now_us - begun
    );
}

#[test]
fn blocks_scattered_over_peers_are_all_found() {
    for seed in 0..15 {
        let mut network = Network::new(seed, 6);
        network.check_every = 4;
        let blocks = network.blocks(300, 3000);
        for peer in 1..6 {
            network.connect(0, peer, 500 + peer as u64 * 300, 20_000);
        }
        for block in &blocks {
            let holder = 1 + network.below(5) as usize;
            network.nodes[holder].store.insert(block.0, block.1.clone());
            if network.below(2) == 0 {
                let other = 1 + network.below(5) as usize;
                network.nodes[other].store.insert(block.0, block.1.clone());
            }
        }
        network.want(0, 1, cids(&blocks));
        assert!(
            network.run_until(20_000, |network| network.has_all(0, &blocks)),
            "seed {seed}"
        );
        assert!(network.nodes[0].unavailable.is_empty(), "seed {seed}");
        assert!(
            duplicates_percent(&network, 0) < 2.0,
            "seed {seed}: {:?}",
            network.nodes[0].exchange.stats()
        );
    }
}

#[test]
fn one_holder_among_many_is_found_and_the_others_are_left_in_peace() {
    let mut network = Network::new(5, 13);
    let blocks = network.blocks(2000, 3000);
    network.check_every = 100;
    network.nodes[12].store = blocks.iter().cloned().collect();
    for peer in 1..13 {
        network.connect(0, peer, 1000, 50_000);
    }
    network.want(0, 1, cids(&blocks));
    assert!(network.run_until(20_000, |network| network.has_all(0, &blocks)));
    let stats = network.nodes[0].exchange.stats();
    assert_eq!(stats.duplicates, 0);
    assert!(stats.asks < 4 * 2000, "{stats:?}");
}

#[test]
fn peers_come_and_go_and_all_arrives() {
    for seed in 0..40 {
        let (mut network, blocks) = star(seed, 4, 400, 30_000);
        network.check_every = 7;
        for peer in 1..=4 {
            let speed = 1_000 + network.below(10_000);
            network.connect(0, peer, 2_000, speed);
            let mut at = network.below(300);
            for _ in 0..6 {
                network.at(at, Script::Disconnect(0, peer));
                let away = 1 + network.below(200);
                network.at(at + away, Script::Connect(0, peer));
                at += away + network.below(400);
            }
        }
        network.want(0, 1, cids(&blocks));
        assert!(
            network.run_until(60_000, |network| network.has_all(0, &blocks)),
            "seed {seed}"
        );
        assert!(
            network.nodes[0].cut.is_empty(),
            "seed {seed}: an honest peer is never cut off {:?}",
            network.nodes[0].cut
        );
    }
}

#[test]
fn slow_peer_holds_nothing_up() {
    let (mut network, blocks) = star(8, 2, 400, 128 * 1024);
    network.check_every = 20;
    // One block in 1.3 seconds; the other peer sends 750 in that time.
    network.connect(0, 2, 5_000, 100);
    let begun = network.now_us;
    network.want(0, 1, cids(&blocks));
    assert!(network.run_until(60_000, |network| network.has_all(0, &blocks)));
    let took_ms = (network.now_us - begun) / 1000;
    assert!(took_ms < 4_000, "{took_ms}");
    assert!(network.nodes[0].cut.is_empty());
}

#[test]
fn only_peer_may_be_as_slow_as_it_likes() {
    let (mut network, blocks) = star(9, 1, 6, 1_000_000);
    // Ten seconds a block, twice the silence after which a peer counts as stalled.
    network.connect(0, 1, 1_000, 100);
    network.want(0, 1, cids(&blocks));
    assert!(network.run_until(200_000, |network| network.has_all(0, &blocks)));
    assert!(network.nodes[0].cut.is_empty());
    let stats = network.nodes[0].exchange.stats();
    assert!(stats.duplicates <= 1, "{stats:?}");
}

#[test]
fn liars_are_cut_off_or_passed_over_and_the_fetch_goes_on() {
    use Manner::{Corrupt, Honest, Noise, Promiser, Repeater, Silent, Waverer};
    for manner in [Corrupt, Silent, Promiser, Waverer, Noise, Repeater] {
        for seed in 0..5 {
            let (mut network, blocks) = star(seed, 3, 200, 30_000);
            network.check_every = 3;
            network.nodes[2].manner = manner;
            network.nodes[3].manner = if seed % 2 == 0 { Honest } else { manner };
            network.want(0, 1, cids(&blocks));
            assert!(
                network.run_until(40_000, |network| network.has_all(0, &blocks)),
                "{manner:?} seed {seed}"
            );
            let cut = &network.nodes[0].cut;
            let expected = match manner {
                Corrupt => Some(CutReason::Unasked),
                Noise => Some(CutReason::Garbage),
                Repeater => Some(CutReason::Repeats),
                _ => None,
            };
            if let Some(reason) = expected {
                network.run_until(20_000, |_| false);
                let cut = &network.nodes[0].cut;
                assert!(
                    cut.iter().any(|(_, other)| *other == reason),
                    "{manner:?} seed {seed}: {cut:?}"
                );
                assert!(
                    cut.iter().all(|(peer, _)| *peer != device(1)),
                    "{manner:?} seed {seed}: {cut:?}"
                );
            } else {
                assert!(cut.is_empty(), "{manner:?} seed {seed}: {cut:?}");
            }
        }
    }
}

#[test]
fn silent_peer_costs_five_seconds_at_most() {
    let (mut network, blocks) = star(11, 2, 100, 10_000);
    network.nodes[2].manner = Manner::Silent;
    let begun = network.now_us;
    network.want(0, 1, cids(&blocks));
    assert!(network.run_until(60_000, |network| network.has_all(0, &blocks)));
    assert!(network.now_us - begun < 5_500_000);
}

#[test]
fn what_nobody_has_is_said_once_and_fetched_when_it_comes() {
    let mut network = Network::new(12, 4);
    let blocks = network.blocks(3, 5000);
    for peer in 1..4 {
        network.connect(0, peer, 1000, 10_000);
    }
    network.want(0, 5, cids(&blocks));
    assert!(
        network.run_until(1_000, |network| network.nodes[0].unavailable.len() == 3),
        "{:?}",
        network.nodes[0].unavailable
    );
    // One gets it: it says so by itself, long before all are asked again.
    let (cid, block) = blocks[0].clone();
    network.at(3_000, Script::Store(2, cid, block));
    assert!(network.run_until(3_500, |network| {
        network.nodes[0].got.contains_key(&blocks[0].0)
    }));
    // Two get it at once: still asked of one.
    let (cid, block) = blocks[1].clone();
    network.at(100, Script::Store(1, cid, block.clone()));
    network.at(100, Script::Store(3, cid, block));
    assert!(network.run_until(500, |network| {
        network.nodes[0].got.contains_key(&blocks[1].0)
    }));
    network.run_until(200_000, |_| false);
    assert_eq!(
        network.nodes[0].unavailable,
        [(5, blocks[2].0)],
        "the third is still lacking, and was said once"
    );
    assert_eq!(network.nodes[0].exchange.stats().duplicates, 0);
    assert_eq!(network.nodes[0].exchange.wants_len(), 1);
    // A newcomer is asked at once.
    let mut late = Network::new(13, 2);
    late.want(0, 1, cids(&blocks));
    assert_eq!(
        late.nodes[0].unavailable.len(),
        3,
        "with no peer at all it is known at once"
    );
    late.nodes[1].store = blocks.iter().cloned().collect();
    late.connect(0, 1, 1000, 10_000);
    assert!(
        late.nodes[0].unavailable.is_empty(),
        "a peer that comes is hope, before it has sent anything"
    );
    assert!(late.run_until(100, |network| network.has_all(0, &blocks)));
}

#[test]
fn ten_thousand_blocks_nobody_has_are_all_reported() {
    let mut network = Network::new(14, 4);
    network.check_every = 500;
    let blocks = network.blocks(10_000, 8);
    for peer in 1..4 {
        network.connect(0, peer, 1000, 10_000);
    }
    network.want(0, 5, cids(&blocks));
    assert!(
        network.run_until(20_000, |network| network.nodes[0].unavailable.len()
            == 10_000)
    );
}

#[test]
fn asking_again_gets_rarer() {
    let mut network = Network::new(21, 4);
    let blocks = network.blocks(100, 8);
    for peer in 1..4 {
        network.connect(0, peer, 1000, 10_000);
    }
    network.want(0, 5, cids(&blocks));
    network.run_until(10_000, |_| false);
    let asks = network.nodes[0].exchange.stats().asks;
    network.run_until(2 * 3_600_000, |_| false);
    let more = network.nodes[0].exchange.stats().asks - asks;
    assert!(more > 4 * asks && more < 11 * asks, "{asks}, then {more}");
    assert_eq!(network.nodes[0].unavailable.len(), 100);
}

#[test]
fn cancelled_request_leaves_no_trace() {
    let (mut network, blocks) = star(15, 3, 500, 50_000);
    network.nodes[3].store.clear();
    network.want(0, 1, cids(&blocks));
    network.want(0, 2, cids(&blocks[..5]));
    network.run_until(20, |_| false);
    network.feed(0, Input::Cancel { request: 1 });
    assert!(network.nodes[0].exchange.wants_len() <= 5);
    network.feed(0, Input::Cancel { request: 2 });
    assert_eq!(network.nodes[0].exchange.wants_len(), 0);
    network.run_until(100_000, |_| false);
    assert!(
        network.nodes[0].cut.is_empty(),
        "blocks under way are no offence"
    );
    assert_eq!(network.nodes[0].exchange.next_wakeup(), None);
    for peer in 1..=3 {
        assert_eq!(
            network.nodes[peer].exchange.serving_len(),
            0,
            "nothing stays in the ledger of {peer}"
        );
    }
}

#[test]
fn small_request_does_not_wait_for_a_large_one() {
    let (mut network, blocks) = star(16, 1, 3000, 50_000);
    network.check_every = 100;
    network.want(0, 1, cids(&blocks[..2990]));
    network.run_until(100, |_| false);
    network.want(0, 2, cids(&blocks[2990..]));
    assert!(network.run_until(300, |network| {
        blocks[2990..]
            .iter()
            .all(|(cid, _)| network.nodes[0].got.contains_key(cid))
    }));
    assert!(network.nodes[0].got.len() < 1000);
}

#[test]
fn small_asker_is_served_beside_a_large_one() {
    let mut network = Network::new(17, 3);
    let blocks = network.blocks(3000, 50_000);
    network.check_every = 100;
    network.nodes[0].store = blocks.iter().cloned().collect();
    network.connect(0, 1, 500, 10_000);
    network.connect(0, 2, 500, 10_000);
    network.want(1, 1, cids(&blocks));
    network.run_until(1_000, |_| false);
    network.want(2, 1, cids(&blocks[..1]));
    assert!(network.run_until(20, |network| !network.nodes[2].got.is_empty()));
}

#[test]
fn peer_that_takes_nothing_costs_bounded_memory() {
    let mut bench = Bench::new(1);
    let block = Bytes::from(vec![7; 100_000]);
    let wanted: Vec<Cid> = (0..1000_u32)
        .map(|number| Cid::of_block(&number.to_le_bytes()))
        .collect();
    let mut effects = bench.hear(
        0,
        &wantlist(
            wanted
                .iter()
                .map(|cid| entry(*cid, EntryKind::Block))
                .collect(),
        ),
    );
    let (mut loaded, mut served, mut unflushed) = (0, 0, 0);
    let mut answer = |bench: &mut Bench, effects: &mut Vec<Effect>| {
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Load { peer, cid, .. } => {
                    loaded += 1;
                    let found = Some(Loaded::Block(block.clone()));
                    effects.extend(bench.feed(Input::Loaded { peer, cid, found }));
                }
                Effect::Send { message, .. } => {
                    unflushed += message.len_bytes();
                    served += Message::decode(&message.into_bytes()).unwrap().blocks.len();
                }
                _ => panic!("{effect:?}"),
            }
        }
        (loaded, served, std::mem::take(&mut unflushed))
    };
    let (loaded, served, mut len) = answer(&mut bench, &mut effects);
    assert!(
        len > SERVE_BYTES_MAX * 9 / 10 && len <= SERVE_BYTES_MAX,
        "{len}"
    );
    assert!(
        loaded - served <= 2,
        "nor is it kept here: {loaded} loaded, {served} sent"
    );
    assert!(bench.feed(Input::Wake).is_empty());
    // It takes what it was sent after all, and gets the rest, each once.
    while len > 0 {
        effects = bench.feed(Input::Flushed {
            peer: device(0),
            len,
        });
        let (_, served, more) = answer(&mut bench, &mut effects);
        len = more;
        assert!(len <= SERVE_BYTES_MAX, "{len}");
        assert!(len > 0 || served == 1000, "{served}");
    }
}

#[test]
fn five_devices_swap_what_they_have() {
    for seed in 0..10 {
        let mut network = Network::new(seed, 5);
        network.check_every = 20;
        let blocks = network.blocks(500, 10_000);
        for (number, block) in blocks.iter().enumerate() {
            network.nodes[number % 5]
                .store
                .insert(block.0, block.1.clone());
        }
        for a in 0..5 {
            for b in 0..a {
                let (latency, speed) = (100 + network.below(5_000), 5_000 + network.below(20_000));
                network.connect(a, b, latency, speed);
            }
        }
        for node in 0..5 {
            let lacking = blocks
                .iter()
                .enumerate()
                .filter(|(number, _)| number % 5 != node);
            let lacking = lacking.map(|(_, (cid, _))| *cid).collect();
            network.want(node, 1, lacking);
        }
        let done = |network: &Network| network.nodes.iter().all(|node| node.store.len() == 500);
        assert!(network.run_until(30_000, done), "seed {seed}");
        for node in 0..5 {
            assert!(
                duplicates_percent(&network, node) < 2.0,
                "seed {seed}: {:?}",
                network.nodes[node].exchange.stats()
            );
            assert!(network.nodes[node].cut.is_empty());
        }
    }
}

#[test]
fn small_block_comes_without_a_second_question() {
    // All peers cold: they are asked whether, and answer with the block.
    let mut network = Network::new(20, 4);
    let missing = network.blocks(40, 9);
    let blocks = network.blocks(1, 500);
    for peer in 1..4 {
        network.connect(0, peer, 10_000, 10_000);
    }
    network.want(0, 1, cids(&missing));
    network.run_until(1_000, |_| false);
    network.nodes[2]
        .store
        .insert(blocks[0].0, blocks[0].1.clone());
    let begun = network.now_us;
    network.want(0, 2, cids(&blocks));
    assert!(network.run_until(1_000, |network| network.has_all(0, &blocks)));
    assert!(network.now_us - begun < 2 * 10_000 + 2_000);
}

#[test]
fn same_seed_same_run() {
    let run = |seed| {
        let (mut network, blocks) = star(seed, 4, 100, 20_000);
        network.nodes[3].manner = Manner::Corrupt;
        network.want(0, 1, cids(&blocks));
        network.run_until(5_000, |_| false);
        network.trace
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

/// A machine with one connected peer, and what it sends.
struct Bench {
    exchange: Exchange,
    now: Time,
}

impl Bench {
    fn new(peers: usize) -> Self {
        let mut bench = Self {
            exchange: Exchange::new(),
            now: Time(1_000),
        };
        for peer in 0..peers {
            bench.feed(Input::PeerUp(device(peer)));
        }
        bench
    }

    fn feed(&mut self, input: Input) -> Vec<Effect> {
        self.exchange.handle(self.now, input);
        self.exchange.check_invariants();
        std::iter::from_fn(|| self.exchange.poll_effect()).collect()
    }

    fn hear(&mut self, peer: usize, message: &Message) -> Vec<Effect> {
        self.feed(Input::Message {
            peer: device(peer),
            bytes: message.encode().into_bytes(),
        })
    }
}

fn sent(effects: &[Effect]) -> Vec<Message> {
    let send = |effect: &Effect| match effect {
        Effect::Send { message, .. } => {
            Some(Message::decode(&message.clone().into_bytes()).unwrap())
        }
        _ => None,
    };
    effects.iter().filter_map(send).collect()
}

fn entry(cid: Cid, kind: EntryKind) -> Entry {
    Entry {
        cid,
        priority: 1,
        kind,
        send_dont_have: true,
        once: false,
    }
}

fn wantlist(entries: Vec<Entry>) -> Message {
    Message {
        entries,
        ..Message::default()
    }
}

fn delivery(cid: &Cid, data: &'static [u8]) -> Message {
    let block = Block {
        prefix: Prefix::of(cid),
        data: Bytes::from_static(data),
    };
    Message {
        blocks: vec![block],
        ..Message::default()
    }
}

#[test]
fn first_message_ends_what_the_peer_remembers() {
    let mut bench = Bench::new(1);
    let cid = Cid::of_block(b"a");
    let messages = sent(&bench.feed(Input::Want {
        request: 1,
        cids: vec![cid],
    }));
    assert_eq!(messages.len(), 1);
    assert!(messages[0].full);
    let expected = Entry {
        cid,
        priority: i32::MAX - 1,
        kind: EntryKind::Block,
        send_dont_have: true,
        once: true,
    };
    assert_eq!(messages[0].entries, vec![expected]);
    let other = Cid::of_block(b"b");
    assert!(
        !sent(&bench.feed(Input::Want {
            request: 1,
            cids: vec![other]
        }))[0]
            .full
    );
}

#[test]
fn block_of_other_bytes_than_asked_for_ends_the_connection() {
    let mut bench = Bench::new(2);
    let cid = Cid::of_block(b"a");
    let asked = bench.feed(Input::Want {
        request: 1,
        cids: vec![cid],
    });
    let Effect::Send { peer, .. } = asked[0] else {
        panic!("{asked:?}")
    };
    let effects = bench.hear(network::index(&peer), &delivery(&cid, b"b"));
    assert!(
        effects.contains(&Effect::Disconnect {
            peer,
            reason: CutReason::Unasked
        }),
        "{effects:?}"
    );
    let asked_elsewhere = sent(&effects);
    assert_eq!(asked_elsewhere[0].entries[0].cid, cid);
    // And what it says afterwards is not heard.
    assert!(
        bench
            .hear(network::index(&peer), &delivery(&cid, b"a"))
            .is_empty()
    );
    // It comes back at once, and is asked again when some seconds have passed, not before: else the two would never come to rest.
    bench.feed(Input::PeerUp(peer));
    let other = device(1 - network::index(&peer));
    assert!(sent(&bench.feed(Input::PeerDown(other))).is_empty());
    let until = bench.exchange.next_wakeup().unwrap();
    assert!(until.since(bench.now) <= Span::from_secs(5));
    bench.now = bench.now + Span::from_secs(5);
    let again = sent(&bench.feed(Input::Wake));
    assert_eq!(again[0].entries[0].cid, cid);
}

#[test]
fn unasked_block_is_not_even_hashed_into_the_store() {
    let mut bench = Bench::new(1);
    let cid = Cid::of_block(b"a");
    let effects = bench.hear(0, &delivery(&cid, b"a"));
    assert_eq!(
        effects,
        vec![Effect::Disconnect {
            peer: device(0),
            reason: CutReason::Unasked
        }]
    );
}

#[test]
fn block_that_crosses_a_cancel_or_a_reconnection_is_no_offence() {
    let mut bench = Bench::new(1);
    let cid = Cid::of_block(b"a");
    bench.feed(Input::Want {
        request: 1,
        cids: vec![cid],
    });
    bench.feed(Input::Cancel { request: 1 });
    assert!(bench.hear(0, &delivery(&cid, b"a")).is_empty());
    bench.feed(Input::PeerDown(device(0)));
    bench.feed(Input::PeerUp(device(0)));
    assert!(bench.hear(0, &delivery(&cid, b"a")).is_empty());
    assert_eq!(bench.exchange.stats().duplicates, 2);
}

#[test]
fn garbage_and_oversize_end_the_connection() {
    let mut bench = Bench::new(2);
    let effects = bench.feed(Input::Message {
        peer: device(0),
        bytes: Bytes::from_static(&[0xff; 9]),
    });
    assert_eq!(
        effects,
        vec![Effect::Disconnect {
            peer: device(0),
            reason: CutReason::Garbage
        }]
    );
    let effects = bench.feed(Input::Message {
        peer: device(1),
        bytes: Bytes::from(vec![0; MESSAGE_BYTES_MAX + 1]),
    });
    assert_eq!(
        effects,
        vec![Effect::Disconnect {
            peer: device(1),
            reason: CutReason::Oversize
        }]
    );
}

#[test]
fn want_is_answered_with_block_have_or_dont_have() {
    let mut bench = Bench::new(1);
    let (block, have, lack) = (
        Cid::of_block(b"1"),
        Cid::of_block(b"2"),
        Cid::of_block(b"3"),
    );
    let entries = vec![
        entry(block, EntryKind::Block),
        entry(have, EntryKind::Have),
        entry(lack, EntryKind::Block),
    ];
    let effects = bench.hear(0, &wantlist(entries));
    let load = |cid, block| Effect::Load {
        peer: device(0),
        cid,
        block,
    };
    assert_eq!(
        effects,
        vec![load(block, true), load(have, false), load(lack, true)]
    );
    let loaded = |cid, found| Input::Loaded {
        peer: device(0),
        cid,
        found,
    };
    let messages = sent(&bench.feed(loaded(block, Some(Loaded::Block(Bytes::from_static(b"1"))))));
    assert_eq!(messages[0].blocks, delivery(&block, b"1").blocks);
    // The shell is busy and more is being loaded: the next answers wait for one another.
    assert!(sent(&bench.feed(loaded(have, Some(Loaded::Size(5000))))).is_empty());
    let messages = sent(&bench.feed(loaded(lack, None)));
    let expected: BTreeSet<_> = [(have, true), (lack, false)].into();
    assert_eq!(
        messages[0]
            .presences
            .iter()
            .map(|presence| (presence.cid, presence.have))
            .collect::<BTreeSet<_>>(),
        expected
    );
    assert_eq!(bench.exchange.serving_len(), 1, "what we lack stays wanted");
    // It comes; it is sent unasked.
    assert_eq!(
        bench.feed(Input::Stored(vec![lack])),
        vec![load(lack, true)]
    );
    let messages = sent(&bench.feed(loaded(lack, Some(Loaded::Block(Bytes::from_static(b"3"))))));
    assert_eq!(messages[0].blocks.len(), 1);
    assert_eq!(bench.exchange.serving_len(), 0);
}

#[test]
fn block_stored_while_it_is_looked_for_is_found() {
    let mut bench = Bench::new(1);
    let cid = Cid::of_block(b"1");
    bench.hear(0, &wantlist(vec![entry(cid, EntryKind::Block)]));
    assert!(bench.feed(Input::Stored(vec![cid])).is_empty());
    let effects = bench.feed(Input::Loaded {
        peer: device(0),
        cid,
        found: None,
    });
    assert_eq!(
        effects,
        vec![Effect::Load {
            peer: device(0),
            cid,
            block: true
        }]
    );
}

#[test]
fn cancelled_and_small_and_huge_blocks_are_served_as_they_should() {
    let mut bench = Bench::new(1);
    let (small, huge, gone) = (
        Cid::of_block(b"s"),
        Cid::of_block(b"h"),
        Cid::of_block(b"g"),
    );
    let entries = vec![
        entry(small, EntryKind::Have),
        entry(huge, EntryKind::Block),
        entry(gone, EntryKind::Block),
    ];
    bench.hear(0, &wantlist(entries));
    bench.hear(0, &wantlist(vec![entry(gone, EntryKind::Cancel)]));
    let loaded = |cid, found| Input::Loaded {
        peer: device(0),
        cid,
        found,
    };
    assert!(
        bench
            .feed(loaded(gone, Some(Loaded::Block(Bytes::from_static(b"g")))))
            .is_empty()
    );
    let effects = bench.feed(loaded(small, Some(Loaded::Size(1024))));
    assert_eq!(
        effects,
        vec![Effect::Load {
            peer: device(0),
            cid: small,
            block: true
        }]
    );
    let messages = sent(&bench.feed(loaded(small, Some(Loaded::Block(Bytes::from_static(b"s"))))));
    assert_eq!(messages[0].blocks, delivery(&small, b"s").blocks);
    let messages = sent(&bench.feed(loaded(
        huge,
        Some(Loaded::Block(Bytes::from(vec![0; BLOCK_BYTES_MAX + 1]))),
    )));
    assert_eq!(
        messages[0].presences,
        vec![Presence {
            cid: huge,
            have: false
        }],
        "it could not travel"
    );
}

#[test]
fn full_wantlist_replaces_the_one_before() {
    let mut bench = Bench::new(1);
    let (a, b) = (Cid::of_block(b"a"), Cid::of_block(b"b"));
    bench.hear(0, &wantlist(vec![entry(a, EntryKind::Block)]));
    bench.hear(
        0,
        &Message {
            full: true,
            ..wantlist(vec![entry(b, EntryKind::Block)])
        },
    );
    assert_eq!(bench.exchange.serving_len(), 1);
    let loaded = Input::Loaded {
        peer: device(0),
        cid: a,
        found: Some(Loaded::Block(Bytes::from_static(b"a"))),
    };
    assert!(bench.feed(loaded).is_empty());
}

#[test]
fn ledger_remembers_so_much_and_says_no_to_the_rest() {
    let mut bench = Bench::new(1);
    let many: Vec<Cid> = (0..LEDGER_MAX as u32 + 50)
        .map(|number| Cid::of_block(&number.to_le_bytes()))
        .collect();
    let effects = bench.hear(
        0,
        &wantlist(
            many.iter()
                .map(|cid| entry(*cid, EntryKind::Block))
                .collect(),
        ),
    );
    assert_eq!(bench.exchange.serving_len(), LEDGER_MAX);
    assert_eq!(sent(&effects)[0].presences.len(), 50);
    // Those we lack make room for new ones.
    for cid in &many[..20] {
        bench.feed(Input::Loaded {
            peer: device(0),
            cid: *cid,
            found: None,
        });
    }
    bench.hear(
        0,
        &wantlist(
            many[LEDGER_MAX..LEDGER_MAX + 20]
                .iter()
                .map(|cid| entry(*cid, EntryKind::Block))
                .collect(),
        ),
    );
    assert_eq!(bench.exchange.serving_len(), LEDGER_MAX);
}

#[test]
fn stored_block_ends_its_want_here() {
    let mut bench = Bench::new(1);
    let cid = Cid::of_block(b"a");
    bench.feed(Input::Want {
        request: 4,
        cids: vec![cid],
    });
    let effects = bench.feed(Input::Stored(vec![cid]));
    assert!(effects.contains(&Effect::Held {
        requests: vec![4],
        cid
    }));
    assert_eq!(sent(&effects)[0].entries[0].kind, EntryKind::Cancel);
}

#[test]
fn cid_that_cannot_be_checked_is_refused() {
    let mut bench = Bench::new(1);
    // Identity, and SHA2-512.
    let identity = Cid::from_bytes(&[1, 0x55, 0, 1, 7]).unwrap();
    let mut sha512 = vec![1, 0x55, 0x13, 64];
    sha512.extend([3; 64]);
    let sha512 = Cid::from_bytes(&sha512).unwrap();
    let refused = |cid| Effect::Refused {
        request: 1,
        cid,
        reason: RefusedReason::Unverifiable,
    };
    assert_eq!(
        bench.feed(Input::Want {
            request: 1,
            cids: vec![identity, sha512]
        }),
        vec![refused(identity), refused(sha512)]
    );
    assert_eq!(bench.exchange.wants_len(), 0);
}

#[test]
fn wants_have_a_limit_and_the_rest_is_refused() {
    let mut exchange = Exchange::new();
    let cids = (0..WANTS_MAX as u32 + 3).map(|number| {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&number.to_le_bytes());
        Cid::from_digest(digest)
    });
    exchange.handle(Time(0), Input::PeerUp(device(0)));
    exchange.handle(
        Time(0),
        Input::Want {
            request: 1,
            cids: cids.collect(),
        },
    );
    let refused = std::iter::from_fn(|| exchange.poll_effect());
    let refused = refused.filter(|effect| {
        matches!(
            effect,
            Effect::Refused {
                reason: RefusedReason::TooMany,
                ..
            }
        )
    });
    assert_eq!(refused.count(), 3);
    exchange.check_invariants();
}

#[test]
fn peers_have_a_limit() {
    let mut exchange = Exchange::new();
    for number in 0..=PEERS_MAX as u32 {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_le_bytes());
        exchange.handle(Time(0), Input::PeerUp(DeviceId(id)));
    }
    let effects: Vec<Effect> = std::iter::from_fn(|| exchange.poll_effect()).collect();
    assert!(
        matches!(
            effects[..],
            [Effect::Disconnect {
                reason: CutReason::Crowded,
                ..
            }]
        ),
        "{effects:?}"
    );
}

/// Anything that may happen to a machine, in a world of few peers and few blocks.
#[derive(Debug, Clone)]
enum Step {
    Up(u8),
    Down(u8),
    Want(u8, Vec<u8>),
    Cancel(u8),
    Stored(u8),
    Presence(u8, u8, bool),
    Block(u8, u8),
    Entries(u8, bool, Vec<(u8, u8)>),
    Bytes(u8, Vec<u8>),
    /// Answers the n-th load that is open.
    Load(u8, u8),
    Flush(u8),
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let peer = || 0..5_u8;
    let block = || 0..24_u8;
    prop_oneof![
        2 => peer().prop_map(Step::Up),
        1 => peer().prop_map(Step::Down),
        4 => (0..3_u8, proptest::collection::vec(block(), 0..12)).prop_map(|(request, blocks)| Step::Want(request, blocks)),
        1 => (0..3_u8).prop_map(Step::Cancel),
        1 => block().prop_map(Step::Stored),
        8 => (peer(), block(), any::<bool>()).prop_map(|(peer, block, have)| Step::Presence(peer, block, have)),
        4 => (peer(), block()).prop_map(|(peer, block)| Step::Block(peer, block)),
        4 => (peer(), any::<bool>(), proptest::collection::vec((block(), 0..3_u8), 0..8))
            .prop_map(|(peer, full, entries)| Step::Entries(peer, full, entries)),
        1 => (peer(), proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(peer, bytes)| Step::Bytes(peer, bytes)),
        6 => (any::<u8>(), 0..4_u8).prop_map(|(which, found)| Step::Load(which, found)),
        3 => peer().prop_map(Step::Flush),
        4 => prop_oneof![0..400_u16, 4_000..7_000_u16, Just(40_000)].prop_map(Step::Pass),
    ]
}

fn nth(block: u8) -> (Cid, Bytes) {
    // Some small enough to come in place of a word.
    let len = if block.is_multiple_of(3) { 100 } else { 3000 };
    let bytes = Bytes::from(vec![block; len]);
    (Cid::of_block(&bytes), bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_whatever_happens(steps in proptest::collection::vec(step(), 1..150)) {
        let mut exchange = Exchange::new();
        let mut now = Time(5_000);
        let mut loads: Vec<(DeviceId, Cid, bool)> = Vec::new();
        let mut unflushed: Vec<(DeviceId, usize)> = Vec::new();
        let mut waiting: BTreeSet<(u64, Cid)> = BTreeSet::new();
        let mut lacking: BTreeSet<(u64, Cid)> = BTreeSet::new();
        for step in steps {
            let hear = |peer: u8, message: Message| Input::Message { peer: device(peer.into()), bytes: message.encode().into_bytes() };
            let input = match step {
                Step::Up(peer) => Input::PeerUp(device(peer.into())),
                Step::Down(peer) => {
                    let peer = device(peer.into());
                    loads.retain(|(other, _, _)| *other != peer);
                    unflushed.retain(|(other, _)| *other != peer);
                    Input::PeerDown(peer)
                }
                Step::Want(request, blocks) => {
                    let cids: Vec<Cid> = blocks.into_iter().map(|block| nth(block).0).collect();
                    waiting.extend(cids.iter().map(|cid| (u64::from(request), *cid)));
                    Input::Want { request: request.into(), cids }
                }
                Step::Cancel(request) => {
                    waiting.retain(|(other, _)| *other != u64::from(request));
                    Input::Cancel { request: request.into() }
                }
                Step::Stored(block) => Input::Stored(vec![nth(block).0]),
                Step::Presence(peer, block, have) => {
                    let presences = vec![Presence { cid: nth(block).0, have }];
                    hear(peer, Message { presences, ..Message::default() })
                }
                Step::Block(peer, block) => {
                    let (cid, data) = nth(block);
                    hear(peer, Message { blocks: vec![Block { prefix: Prefix::of(&cid), data }], ..Message::default() })
                }
                Step::Entries(peer, full, entries) => {
                    let kinds = [EntryKind::Block, EntryKind::Have, EntryKind::Cancel];
                    let entry = |(block, kind): (u8, u8)| Entry {
                        cid: nth(block).0,
                        priority: i32::from(block % 4),
                        kind: kinds[usize::from(kind)],
                        send_dont_have: block % 2 == 0,
                        once: block % 5 == 0,
                    };
                    hear(peer, Message { full, entries: entries.into_iter().map(entry).collect(), ..Message::default() })
                }
                Step::Bytes(peer, bytes) => Input::Message { peer: device(peer.into()), bytes: Bytes::from(bytes) },
                Step::Load(which, found) => {
                    if loads.is_empty() {
                        continue;
                    }
                    let (peer, cid, block) = loads.remove(usize::from(which) % loads.len());
                    let bytes = (0..24).map(nth).find(|(other, _)| *other == cid).map(|(_, bytes)| bytes);
                    let found = bytes.filter(|_| found > 0).map(|bytes| if block { Loaded::Block(bytes) } else { Loaded::Size(bytes.len() as u32) });
                    Input::Loaded { peer, cid, found }
                }
                Step::Flush(peer) => {
                    let peer = device(peer.into());
                    let len = unflushed.iter().filter(|(other, _)| *other == peer).map(|(_, len)| len).sum();
                    unflushed.retain(|(other, _)| *other != peer);
                    Input::Flushed { peer, len }
                }
                Step::Pass(ms) => {
                    now = now + Span(u64::from(ms));
                    Input::Wake
                }
            };
            exchange.handle(now, input);
            exchange.check_invariants();
            prop_assert!(exchange.next_wakeup().is_none_or(|at| at > now), "no wake-up is left behind");
            while let Some(effect) = exchange.poll_effect() {
                match effect {
                    Effect::Send { peer, message } => {
                        unflushed.push((peer, message.len_bytes()));
                        let message = Message::decode(&message.into_bytes()).unwrap();
                        prop_assert!(!message.is_empty());
                    }
                    Effect::Load { peer, cid, block } => {
                        prop_assert!(!loads.iter().any(|(other, known, _)| (other, known) == (&peer, &cid)), "one load of a kind");
                        loads.push((peer, cid, block));
                    }
                    Effect::Got { requests, cid, block, .. } => {
                        prop_assert!(cid.verifies(&block));
                        for request in requests {
                            prop_assert!(waiting.remove(&(request, cid)), "only what is waited for is handed on");
                        }
                    }
                    Effect::Held { requests, cid } => {
                        for request in requests {
                            prop_assert!(waiting.remove(&(request, cid)));
                        }
                    }
                    Effect::Unavailable { request, cid } => {
                        prop_assert!(waiting.contains(&(request, cid)));
                        prop_assert!(lacking.insert((request, cid)), "said once");
                    }
                    Effect::Sought { request, cid } => prop_assert!(lacking.remove(&(request, cid)), "said of what was told to be unavailable"),
                    Effect::Refused { .. } => prop_assert!(false, "all these can be checked"),
                    Effect::Disconnect { peer, .. } => {
                        loads.retain(|(other, _, _)| *other != peer);
                        unflushed.retain(|(other, _)| *other != peer);
                    }
                }
            }
            lacking.retain(|known| waiting.contains(known));
            let wanted: BTreeSet<Cid> = waiting.iter().map(|(_, cid)| *cid).collect();
            prop_assert_eq!(exchange.wants_len(), wanted.len(), "nothing wanted is forgotten");
        }
    }
}
