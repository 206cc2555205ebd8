//! Over lines that are slow to answer, and over such as lose packets: what is asked for comes, and how fast beside a bare stream on the same line.
//!
//! The line is `line.py`. Short in the ordinary run, where it only has to come; `KITH_LARGE=1` measures, with the program of `KITH_PROGRAM` if that is set.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a test fails by panicking, and prints figures for people"
)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Instant;

use bytes::Bytes;
use kith_node::net::{Channel, Config, Inside, InsideHandle, NetEvent, NetEvents, Refused};
use kith_object::id::{DeviceId, SpaceId};
use kith_tests::network::{Host, Network};
use kith_tests::{Kith, Place, noise, repository, say_loudly, say_skipped, text};
use zeroize::Zeroizing;

/// Set where this program is one end of a bare stream: whether it sends, the address of the receiver, the bytes.
const STREAM: &str = "KITH_TEST_STREAM";
/// Bytes of a message on it: those of a block.
const MESSAGE_BYTES: usize = 256 << 10;

fn ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 79, 0, n)
}

/// Two machines, and a line between them.
struct Line {
    relay: Child,
    hosts: [Host; 2],
    _network: Network,
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.relay.kill();
        let _ = self.relay.wait();
    }
}

impl Line {
    fn new(delay_ms: u32, mbit: u32, loss: f64) -> Result<Self, String> {
        let mut network = Network::new()?;
        // Not on a switch with each other: each has a network of its own but for the line.
        let hosts = [
            network.host(Ipv4Addr::new(10, 80, 1, 1))?,
            network.host(Ipv4Addr::new(10, 80, 2, 1))?,
        ];
        let mut relay = network
            .command("python3".as_ref())
            .arg(repository().join("tests/line.py"))
            .args(hosts.iter().map(|host| host.id().to_string()))
            .args(["--delay-ms", &delay_ms.to_string()])
            .args(["--mbit", &mbit.to_string()])
            .args(["--loss", &loss.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut line = String::new();
        let stdout = relay.stdout.take().ok_or("its output is piped")?;
        let _ = BufReader::new(stdout).read_line(&mut line);
        if line != "ready\n" {
            let _ = relay.kill();
            let output = relay
                .wait_with_output()
                .map_err(|error| error.to_string())?;
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        for (n, host) in (1..).zip(&hosts) {
            host.run(&format!("ip addr add {}/24 dev line0", ip(n)))?;
            host.run("ip link set line0 up")?;
            // Only the line leads from one to the other.
            host.run("ip link set eth0 down")?;
        }
        Ok(Self {
            relay,
            hosts,
            _network: network,
        })
    }
}

fn line(test: &str, delay_ms: u32, mbit: u32, loss: f64) -> Option<Line> {
    match Line::new(delay_ms, mbit, loss) {
        Ok(line) => Some(line),
        Err(why) => {
            say_skipped(test, &format!("no line between namespaces here: {why}"));
            None
        }
    }
}

/// Not a test: one end of a bare stream.
#[test]
fn stream() {
    let Some(said) = std::env::var_os(STREAM) else {
        return;
    };
    let said = said.to_str().unwrap().to_owned();
    let said: Vec<&str> = said.split(' ').collect();
    let (addr, bytes) = (said[1].to_owned(), said[2].parse::<u64>().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        if said[0] == "receives" {
            receive(&addr, bytes).await;
        } else {
            send(&addr, bytes).await;
        }
    });
}

fn end(seed: u8, listen: Vec<&str>) -> (InsideHandle, NetEvents) {
    let listen = listen.into_iter().map(|addr| addr.parse().unwrap());
    let config = Config::new(SpaceId([9; 32]), listen.collect());
    let (inside, events) = Inside::start(Zeroizing::new([seed; 32]), config).unwrap();
    inside.allow(BTreeSet::from([name(1), name(2)]));
    (inside, events)
}

fn name(seed: u8) -> DeviceId {
    kith_object::key::SignKey::from_seed(&[seed; 32]).id()
}

async fn receive(addr: &str, bytes: u64) {
    let (inside, mut events) = end(2, vec![addr]);
    let (mut got, mut begun) = (0, None);
    eprintln!("ready");
    while got < bytes {
        if let NetEvent::Received { bytes, .. } = events.recv().await.unwrap() {
            begun.get_or_insert_with(Instant::now);
            got += bytes.len() as u64;
        }
    }
    let took = begun.unwrap().elapsed().as_secs_f64();
    eprintln!("took {took}");
    inside.shutdown().await;
}

async fn send(addr: &str, bytes: u64) {
    let (inside, mut events) = end(1, Vec::new());
    let to = name(2);
    inside.dial(to, vec![addr.parse().unwrap()]).unwrap();
    while !matches!(events.recv().await.unwrap(), NetEvent::Connected(_)) {}
    let message = Bytes::from(noise(1, MESSAGE_BYTES));
    let mut sent = 0;
    while sent < bytes {
        match inside.send(to, Channel::Sync, message.clone(), 0) {
            Ok(()) => sent += message.len() as u64,
            Err(Refused::Full) => {
                events.recv().await.unwrap();
            }
            Err(_) => return,
        }
    }
    // Until the other side has all and goes.
    while let Some(event) = events.recv().await {
        if matches!(event, NetEvent::Disconnected(_)) {
            return;
        }
    }
}

/// Bytes a second of a bare stream from the first machine to the second.
fn bare(line: &Line, transport: &str, bytes: u64) -> f64 {
    let there = match transport {
        "tcp" => format!("/ip4/{}/tcp/5555", ip(2)),
        _ => format!("/ip4/{}/udp/5555/quic-v1", ip(2)),
    };
    let run = |host: &Host, does: &str| {
        host.command(&std::env::current_exe().unwrap())
            .args(["--exact", "stream", "--nocapture"])
            .env(STREAM, format!("{does} {there} {bytes}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut receiver = run(&line.hosts[1], "receives");
    let lines = BufReader::new(receiver.stderr.take().unwrap());
    let mut lines = lines.lines().map_while(Result::ok);
    lines.find(|line| line == "ready").unwrap();
    let mut sender = run(&line.hosts[0], "sends");
    let took = lines.find_map(|line| line.strip_prefix("took ")?.parse::<f64>().ok());
    let _ = receiver.wait();
    let _ = sender.kill();
    let _ = sender.wait();
    bytes as f64 / took.unwrap()
}

fn program() -> PathBuf {
    std::env::var_os("KITH_PROGRAM").map_or_else(
        || env!("CARGO_BIN_EXE_kith").into(),
        |program| PathBuf::from(program).canonicalize().unwrap(),
    )
}

/// Two devices at the ends of the line, over that transport, which agree.
fn devices(place: &Place, line: &Line, transport: &str) -> [Kith; 2] {
    if transport == "quic" {
        for host in &line.hosts {
            let closed = "add table ip only; add chain ip only in { type filter hook input priority 0 ; }; \
                          add rule ip only in ip protocol tcp reject with tcp reset";
            let ran = host.command("nft".as_ref()).arg(closed).status();
            assert!(ran.unwrap().success());
        }
    }
    let mut first = place.device_on(&line.hosts[0], "first");
    first.ok(["init", "--name", "first"]);
    let up = ["--listen", "0.0.0.0", "--no-lan", "--no-upnp"];
    first.up_with(&up);
    let mut second = place.device_on(&line.hosts[1], "second");
    let pairing = first.pair(&["--yes"]);
    second.ok(["join", pairing.ticket(), "--name", "second"]);
    pairing.finish().expect_code(0);
    second.up_with(&up);
    second.agrees_with(&first);
    [first, second]
}

/// Bytes a second of our get, start of the command included.
fn ours(place: &Place, line: &Line, transport: &str, bytes: usize) -> f64 {
    let [first, second] = devices(place, line, transport);
    let body = noise(3, bytes);
    let cid = first.put_bytes(&body, "/file");
    second.agrees_with(&first);
    let dest = place.file("dest");
    let begun = Instant::now();
    second.ok(["get", &cid, "-o", dest.to_str().unwrap()]);
    let took = begun.elapsed().as_secs_f64();
    assert!(std::fs::read(dest).unwrap() == body);
    let told = second.ok(["doctor"]).values();
    let addr = text(&told[1]["links"][0], "addr").to_owned();
    assert!(
        addr.contains(transport) && addr.contains("10.79."),
        "{addr}"
    );
    bytes as f64 / took
}

/// One row: a line, both transports, so many bytes over each; ours beside a bare stream.
fn row(test: &str, delay_ms: u32, mbit: u32, loss: f64, bytes: [usize; 2]) {
    for (transport, bytes) in ["tcp", "quic"].into_iter().zip(bytes) {
        let place = Place::new(program());
        let Some(line) = line(test, delay_ms, mbit, loss) else {
            return;
        };
        let bare = bare(&line, transport, bytes as u64);
        let ours = ours(&place, &line, transport, bytes);
        let width = f64::from(mbit) * 1e6 / 8.0;
        say_loudly(&format!(
            "round trip {} ms, {mbit} Mbit/s, loss {loss} %, {transport}, {} MB: bare stream {:.2} MB/s, {:.0} % of the line; get {:.2} MB/s, {:.0} %; get / bare {:.2}",
            2 * delay_ms,
            bytes / 1_000_000,
            bare / 1e6,
            100.0 * bare / width,
            ours / 1e6,
            100.0 * ours / width,
            ours / bare
        ));
    }
}

fn is_large() -> bool {
    std::env::var_os("KITH_LARGE").is_some()
}

#[test]
fn lines_that_are_slow_to_answer_bring_all() {
    let test = "lines_that_are_slow_to_answer_bring_all";
    if is_large() {
        row(test, 25, 100, 0.0, [200_000_000; 2]);
        row(test, 100, 100, 0.0, [200_000_000; 2]);
    } else {
        row(test, 25, 100, 0.0, [5_000_000; 2]);
    }
}

#[test]
fn lines_that_lose_packets_bring_all() {
    let test = "lines_that_lose_packets_bring_all";
    if is_large() {
        // QUIC takes a lost packet for a sign that the line is full.
        row(test, 25, 100, 1.0, [100_000_000, 10_000_000]);
    } else {
        row(test, 10, 100, 2.0, [1_000_000; 2]);
    }
}
