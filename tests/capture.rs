//! All that goes over the wire between two devices, recorded and searched: nothing of what is private is in it. And what goes when nothing happens.
//!
//! The network is made of namespaces; the recorder is this program again, beside one of the devices.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kith_tests::network::{Host, Network};
use kith_tests::{Kith, Place, noise, say_loudly, say_skipped, text, wait_until};

/// Set where this program is to be a [`recorder`]: the file to write.
const RECORDER: &str = "KITH_TEST_RECORDER";
/// What must not be found: a word of a file's bytes, of its name, of a folder's, of a symlink's target, and of a device's name.
const WORDS: [&str; 5] = [
    "canary-of-the-bytes-91c2",
    "canary-of-the-name-51f7",
    "canary-of-the-folder-07da",
    "canary-of-the-target-c3e8",
    "canary-of-the-device-6b40",
];
/// Most bytes a second that two devices which have nothing to say to each other may exchange, both ways, everything counted.
const IDLE_BYTES_A_SECOND: u64 = 1024;

/// Not a test: writes all that passes the interfaces of this machine to a file, until its standard input ends.
#[test]
fn recorder() {
    let Some(file) = std::env::var_os(RECORDER) else {
        return;
    };
    // Every protocol, in the order of the network.
    let all = i32::from(0x0003_u16.to_be());
    let socket = socket2::Socket::new(
        socket2::Domain::PACKET,
        socket2::Type::RAW,
        Some(socket2::Protocol::from(all)),
    )
    .unwrap();
    let _ = socket.set_recv_buffer_size(64 << 20);
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let ends = over.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        ends.store(true, Ordering::SeqCst);
    });
    let mut out = std::io::BufWriter::new(fs::File::create(file).unwrap());
    eprintln!("recording");
    let mut packet = vec![0; 128 << 10];
    while !over.load(Ordering::SeqCst) {
        if let Ok(len) = (&socket).read(&mut packet) {
            out.write_all(&packet[..len]).unwrap();
        }
    }
    out.flush().unwrap();
}

struct Recorder {
    child: Child,
    file: PathBuf,
}

impl Recorder {
    fn on(host: &Host, file: PathBuf) -> Self {
        let mut child = host
            .command(&std::env::current_exe().unwrap())
            .args(["--exact", "recorder", "--nocapture"])
            .env(RECORDER, &file)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut lines = stderr.lines().map_while(Result::ok);
        lines.find(|line| line == "recording").unwrap();
        Self { child, file }
    }

    fn finish(mut self) -> Vec<u8> {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
        fs::read(&self.file).unwrap()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A word in the forms in which it might be told.
fn forms(word: &str) -> Vec<Vec<u8>> {
    let bytes = word.as_bytes();
    let mut forms = vec![
        bytes.to_vec(),
        data_encoding::HEXLOWER.encode(bytes).into_bytes(),
        data_encoding::HEXUPPER.encode(bytes).into_bytes(),
        bytes.iter().flat_map(|byte| [*byte, 0]).collect(),
    ];
    // In the middle of something longer, wherever it begins there.
    for skip in 0..3 {
        let body = &bytes[skip..bytes.len() - (bytes.len() - skip) % 3];
        forms.push(data_encoding::BASE64.encode(body).into_bytes());
    }
    for skip in 0..5 {
        let body = &bytes[skip..bytes.len() - (bytes.len() - skip) % 5];
        forms.push(
            data_encoding::BASE32
                .encode(body)
                .to_lowercase()
                .into_bytes(),
        );
    }
    forms
}

fn count(haystack: &[u8], needle: &[u8]) -> usize {
    let first = needle[0];
    haystack
        .windows(needle.len())
        .filter(|part| part[0] == first && *part == needle)
        .count()
}

fn search(recorded: &[u8], at_least: usize) {
    assert!(
        recorded.len() >= at_least,
        "only {} bytes were recorded",
        recorded.len()
    );
    for word in WORDS {
        for form in forms(word) {
            let found = count(recorded, &form);
            let form = String::from_utf8_lossy(&form);
            assert_eq!(found, 0, "{word} is on the wire as {form}");
        }
    }
}

fn ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, n)
}

fn network(test: &str) -> Option<(Network, [Host; 2])> {
    let made = Network::new().and_then(|mut network| {
        let hosts = [network.host(ip(1))?, network.host(ip(2))?];
        Ok((network, hosts))
    });
    match made {
        Ok(made) => Some(made),
        Err(why) => {
            say_skipped(test, &format!("no network namespaces here: {why}"));
            None
        }
    }
}

/// A tree with the words in it, and something that does not shrink, so that it shows in the recording.
fn tree(place: &Place) -> (PathBuf, usize) {
    let root = place.file("source");
    let folder = root.join(WORDS[2]);
    fs::create_dir_all(&folder).unwrap();
    let text = format!("{} and more of the same. ", WORDS[0]).repeat(4000);
    fs::write(folder.join(WORDS[1]), &text).unwrap();
    let mut mixed = noise(4, 2_000_000);
    for at in (0..mixed.len() - 100).step_by(10_000) {
        mixed[at..at + WORDS[0].len()].copy_from_slice(WORDS[0].as_bytes());
    }
    fs::write(folder.join("mixed"), &mixed).unwrap();
    std::os::unix::fs::symlink(WORDS[3], folder.join("link")).unwrap();
    (root, mixed.len())
}

fn same(one: &Path, other: &Path) {
    for file in [WORDS[1], "mixed"] {
        let path = |root: &Path| root.join(WORDS[2]).join(file);
        assert!(fs::read(path(one)).unwrap() == fs::read(path(other)).unwrap());
    }
    let link = fs::read_link(other.join(WORDS[2]).join("link")).unwrap();
    assert_eq!(link.as_os_str().as_bytes(), WORDS[3].as_bytes());
}

/// How the first reaches the other: addresses of its connections.
fn ways(device: &Kith) -> Vec<String> {
    let told = device.ok(["doctor"]).values();
    let links = told.iter().filter_map(|peer| peer["links"].as_array());
    links
        .flatten()
        .map(|link| text(link, "addr").to_owned())
        .collect()
}

#[test]
fn nothing_private_is_on_the_wire() {
    let test = "nothing_private_is_on_the_wire";
    let Some((_network, [one, two])) = network(test) else {
        return;
    };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let (source, len) = tree(&place);
    // Everything from the first word on: the pairing, the put, the listing, the get.
    let recorder = Recorder::on(&two, place.file("tcp"));
    let mut first = place.device_on(&one, "first");
    first.ok(["init", "--name", WORDS[4]]);
    first.up_with(&["--listen", "0.0.0.0"]);
    let mut second = place.device_on(&two, "second");
    let pairing = first.pair(&["--yes"]);
    second.ok(["join", pairing.ticket(), "--name", "second"]);
    pairing.finish().expect_code(0);
    second.up_with(&["--listen", "0.0.0.0"]);
    second.agrees_with(&first);
    first.ok(["put", source.to_str().unwrap(), "--to", "/tree"]);
    second.agrees_with(&first);
    assert_eq!(second.names("/tree"), [WORDS[2]]);
    let dest = place.file("dest");
    second.ok(["get", "/tree", "-o", dest.to_str().unwrap()]);
    same(&source, &dest);
    assert!(ways(&second).iter().any(|addr| addr.contains("/tcp/")));
    let recorded = recorder.finish();
    search(&recorded, len);
    // It can fail: what is sent in the clear is found.
    let seen = [recorded.as_slice(), forms(WORDS[0])[1].as_slice()].concat();
    assert!(std::panic::catch_unwind(|| search(&seen, len)).is_err());

    // The same over QUIC, the other way round, the door with it.
    let closed = "add table ip only; add chain ip only in { type filter hook input priority 0 ; }; \
                  add rule ip only in ip protocol tcp reject with tcp reset";
    let nft = two.command(Path::new("nft")).arg(closed).output();
    if !nft.is_ok_and(|output| output.status.success()) {
        return say_skipped(test, "over QUIC: no nftables here");
    }
    first.stop();
    second.stop();
    let recorder = Recorder::on(&two, place.file("quic"));
    first.up_with(&["--listen", "0.0.0.0"]);
    second.up_with(&["--listen", "0.0.0.0"]);
    let again = place.file("again");
    copy_with_more(&source, &again);
    second.ok(["put", again.to_str().unwrap(), "--to", "/again"]);
    first.agrees_with(&second);
    let dest = place.file("dest-again");
    first.ok(["get", "/again", "-o", dest.to_str().unwrap()]);
    same(&again, &dest);
    let ways = ways(&first);
    assert!(
        !ways.is_empty() && ways.iter().all(|addr| addr.contains("/quic-v1")),
        "{ways:?}"
    );
    search(&recorder.finish(), len);
}

/// The same tree with other bytes, so that none of it is there already.
fn copy_with_more(from: &Path, to: &Path) {
    kith_tests::copy_folder(from, to);
    let mixed = to.join(WORDS[2]).join("mixed");
    let mut bytes = fs::read(&mixed).unwrap();
    for (at, byte) in noise(9, bytes.len()).into_iter().enumerate() {
        if at % 10_000 >= WORDS[0].len() {
            bytes[at] ^= byte;
        }
    }
    fs::write(mixed, bytes).unwrap();
    let link = to.join(WORDS[2]).join("link");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(WORDS[3], link).unwrap();
}

/// Bytes that went through the interface of a daemon's machine, both ways, with their frames.
fn passed(device: &Kith) -> u64 {
    let table = fs::read_to_string(format!("/proc/{}/net/dev", device.pid())).unwrap();
    let line = table.lines().find(|line| line.contains("eth0:")).unwrap();
    let numbers: Vec<u64> = line
        .split_once(':')
        .unwrap()
        .1
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    numbers[0] + numbers[8]
}

#[test]
fn devices_with_nothing_to_say_say_little() {
    let test = "devices_with_nothing_to_say_say_little";
    let Some((_network, [one, two])) = network(test) else {
        return;
    };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let mut first = place.device_on(&one, "first");
    first.ok(["init", "--name", "first"]);
    first.up_with(&["--listen", "0.0.0.0"]);
    let mut second = place.device_on(&two, "second");
    let pairing = first.pair(&["--yes"]);
    second.ok(["join", pairing.ticket(), "--name", "second"]);
    pairing.finish().expect_code(0);
    second.up_with(&["--listen", "0.0.0.0"]);
    first.put_bytes(&noise(1, 100_000), "/file");
    second.agrees_with(&first);
    // Until what the meeting brought about is over.
    let mut before = passed(&second);
    wait_until("the first rush is over", || {
        std::thread::sleep(Duration::from_secs(4));
        let now = passed(&second);
        let quiet = now - before < 4 * IDLE_BYTES_A_SECOND;
        before = now;
        quiet.then_some(())
    });
    let window = if std::env::var_os("KITH_LARGE").is_some() {
        Duration::from_secs(600)
    } else {
        Duration::from_secs(20)
    };
    let (begun, before) = (Instant::now(), passed(&second));
    std::thread::sleep(window);
    let bytes = passed(&second) - before;
    let seconds = begun.elapsed().as_secs();
    say_loudly(&format!(
        "idle traffic of one peer, both ways, frames and local network included: {bytes} bytes in {seconds} s, {} KB an hour",
        bytes * 3600 / seconds / 1000
    ));
    assert!(
        bytes <= IDLE_BYTES_A_SECOND * (seconds + 1),
        "{bytes} bytes in {seconds} s"
    );
}
