//! Devices find each other in a local network, and one who has only the words finds a door; whatever else goes about there.
//!
//! The only tests in which anything is multicast: in namespaces made for them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::process::{Child, Stdio};

use kith_object::id::DeviceId;
use kith_object::key::{Rng, Words};
use kith_protocol::lan::{LanKey, Notice, Ports, encode};
use kith_tests::network::{Host, Network};
use kith_tests::{Kith, Place, Ran, noise, text, wait_until};

const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 251), 5353);
/// Set where this program is to be a [`neighbour`].
const NEIGHBOUR: &str = "KITH_TEST_NEIGHBOUR";
/// The group as `/proc/net/igmp` has it.
const GROUP_JOINED: &str = "FB0000E0";

fn ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, n)
}

/// A network and its hosts, or `None`, said loudly, where this machine has none to give.
fn network<const N: usize>(test: &str) -> Option<(Network, [Host; N])> {
    let made = Network::new().and_then(|mut network| {
        let hosts: Result<Vec<Host>, String> = (1..=N).map(|n| network.host(ip(n as u8))).collect();
        Ok((network, hosts?))
    });
    match made {
        Ok((network, hosts)) => Some((network, hosts.try_into().ok().unwrap())),
        Err(why) => {
            // Straight to the file: the harness keeps what tests print.
            let line = format!("\nSKIPPED {test}: no network namespaces here: {why}\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            None
        }
    }
}

fn place() -> Place {
    Place::new(env!("CARGO_BIN_EXE_kith"))
}

/// A new mesh whose first device is on that host and serves there.
fn first_on(place: &Place, host: &Host, name: &str) -> (Kith, String) {
    let mut device = place.device_on(host, name);
    let words = text(&device.ok(["init", "--name", name]).last(), "words").to_owned();
    device.up_with(&[]);
    (device, words)
}

fn doors(ran: &Ran) -> Vec<String> {
    let doors = ran
        .values()
        .into_iter()
        .filter(|value| value["event"] == "door");
    doors
        .flat_map(|door| door["addrs"].as_array().unwrap().clone())
        .map(|addr| addr.as_str().unwrap().to_owned())
        .collect()
}

fn events(ran: &Ran) -> Vec<String> {
    let values = ran.values();
    values
        .iter()
        .map(|value| text(value, "event").to_owned())
        .collect()
}

fn connected(device: &Kith) -> usize {
    let devices = device.ok(["devices"]).values();
    devices
        .iter()
        .filter(|device| device["connected"] == true)
        .count()
}

#[test]
fn words_alone_find_the_mesh_in_the_local_network() {
    let Some((_network, [one, two, three, four])) = network("words alone find the mesh") else {
        return;
    };
    let place = place();
    let (first, words) = first_on(&place, &one, "first");
    let (other, others_words) = first_on(&place, &four, "other");
    first.put_bytes(b"kept", "/kept.txt");

    let mut second = place.device_on(&two, "second");
    let joined = second.join_by_words(&words, "second", &[]);
    joined.expect_code(0);
    assert_eq!(events(&joined), ["searching", "door", "joined"]);
    let found = doors(&joined);
    assert!(
        found.iter().all(|addr| addr.starts_with("/ip4/10.77.0.1/")) && !found.is_empty(),
        "only doors of this mesh: {found:?}"
    );
    assert_eq!(joined.event("joined")["mesh"], first.status()["mesh"]);
    second.up_with(&[]);
    second.agrees_with(&first);
    assert_eq!(second.cat_waiting("/kept.txt"), b"kept");

    // A third finds either of the two; and the newcomer of the other mesh its own.
    let mut third = place.device_on(&three, "third");
    let joined = third.join_by_words(&words, "third", &[]);
    joined.expect_code(0);
    assert!(
        doors(&joined)
            .iter()
            .all(|addr| !addr.contains("10.77.0.4"))
    );
    third.up_with(&[]);
    third.agrees_with(&first);
    second.agrees_with(&first);
    let stray = place.device_on(&three, "stray");
    let joined = stray.join_by_words(&others_words, "stray", &[]);
    joined.expect_code(0);
    assert!(
        doors(&joined)
            .iter()
            .all(|addr| addr.starts_with("/ip4/10.77.0.4/"))
    );
    assert_eq!(joined.event("joined")["mesh"], other.status()["mesh"]);
    for device in [&first, &second, &third] {
        assert_eq!(device.ok(["devices"]).values().len(), 3);
        wait_until("all three are connected", || {
            (connected(device) >= 2).then_some(())
        });
    }
    assert_eq!(connected(&other), 0, "nobody of the other mesh came");
}

#[test]
fn nobody_found_says_what_was_tried() {
    let Some((_network, [one, two])) = network("nobody found says what was tried") else {
        return;
    };
    let place = place();
    let (mut first, words) = first_on(&place, &one, "first");
    first.kill();
    // It serves, but not for the local network.
    first.up_with(&["--no-lan"]);
    assert!(!is_listening(&first), "it is in the group");
    let second = place.device_on(&two, "second");
    let failed = second.join_by_words(&words, "second", &[]);
    failed.expect_code(1);
    assert_eq!(failed.failure_kind(), "unreachable");
    assert_eq!(events(&failed), ["searching"]);
    let said = failed.failure_text();
    assert!(
        said.contains("local network") && said.contains("--peer"),
        "{said}"
    );
    // With its address it is found; an earlier failure is in nobody's way.
    let addr = first
        .addrs()
        .into_iter()
        .find(|addr| addr.contains("10.77.0.1"))
        .unwrap();
    second
        .join_by_words(&words, "second", &[addr])
        .expect_code(0);
}

/// Whether the machine of a daemon takes part in mDNS.
fn is_listening(device: &Kith) -> bool {
    let proc = format!("/proc/{}/net", device.pid());
    let read = |name: &str| std::fs::read_to_string(format!("{proc}/{name}")).unwrap();
    // Two files are read one after the other, and it may be in the middle of it.
    wait_until("socket and group go together", || {
        let joined = read("igmp").contains(GROUP_JOINED);
        let bound = read("udp").contains(":14E9 ");
        (joined == bound).then_some(joined)
    })
}

#[test]
fn only_who_is_to_be_found_speaks() {
    let Some((_network, [one])) = network("only who is to be found speaks") else {
        return;
    };
    let place = place();
    let mut device = place.device_on(&one, "first");
    device.ok(["init", "--name", "first"]);
    for (args, speaks) in [
        (&["--listen", "127.0.0.1"][..], false),
        (&["--listen", "0.0.0.0", "--no-lan"], false),
        (&["--listen", "10.77.0.1"], true),
        (&["--listen", "127.0.0.1", "--listen", "0.0.0.0"], true),
    ] {
        device.up_with(args);
        if speaks {
            wait_until("it takes part", || is_listening(&device).then_some(()));
        } else {
            assert!(!is_listening(&device), "{args:?}");
        }
        device.kill();
    }
}

#[test]
fn devices_find_each_other_wherever_they_move() {
    let Some((_network, [one, two])) = network("devices find each other wherever they move") else {
        return;
    };
    let place = place();
    let (mut first, words) = first_on(&place, &one, "first");
    let mut second = place.device_on(&two, "second");
    second.join_by_words(&words, "second", &[]).expect_code(0);
    second.up_with(&[]);
    second.agrees_with(&first);

    // Both are off, both come back elsewhere: no address that either knows is good.
    first.kill();
    second.kill();
    for (host, old, new) in [(&one, 1, 101), (&two, 2, 102)] {
        host.remove(ip(old)).unwrap();
        host.add(ip(new)).unwrap();
    }
    first.up_with(&[]);
    second.up_with(&[]);
    first.put_bytes(b"here again", "/again.txt");
    second.agrees_with(&first);
    assert_eq!(second.cat_waiting("/again.txt"), b"here again");

    // One moves while both run.
    two.remove(ip(102)).unwrap();
    two.add(ip(202)).unwrap();
    second.put_bytes(b"and moved", "/moved.txt");
    // First the old connection has to be known as dead, which pings tell.
    wait_until("the old connection is given up", || {
        let agree = first.status()["digest"] == second.status()["digest"];
        (agree || connected(&first) == 0).then_some(())
    });
    second.agrees_with(&first);
    assert_eq!(first.cat_waiting("/moved.txt"), b"and moved");
}

/// Not a test: what stands in a network with bad intent. Sends each datagram it reads, in hexadecimal, to the group; before, opens TCP ports at which it says
/// nothing, and prints them.
#[test]
fn neighbour() {
    let Some(ports) = std::env::var_os(NEIGHBOUR) else {
        return;
    };
    let ports: usize = ports.to_str().unwrap().parse().unwrap();
    let silent: Vec<TcpListener> = (0..ports)
        .map(|_| TcpListener::bind("0.0.0.0:0").unwrap())
        .collect();
    let numbers: Vec<String> = silent
        .iter()
        .map(|door| door.local_addr().unwrap().port().to_string())
        .collect();
    let socket = UdpSocket::bind("0.0.0.0:5353").unwrap();
    eprintln!("ports {}", numbers.join(" "));
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let bytes = data_encoding::HEXLOWER.decode(line.as_bytes()).unwrap();
        // Where a queue is full the rest is lost, as in any flood.
        let _ = socket.send_to(&bytes, GROUP);
    }
}

struct Neighbour {
    child: Child,
    ports: Vec<u16>,
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Neighbour {
    fn on(host: &Host, ports: usize) -> Self {
        // So that the group is reached without saying through which interface.
        let route = ["route", "add", "224.0.0.0/4", "dev", "eth0"];
        let added = host.command("ip".as_ref()).args(route).status().unwrap();
        assert!(added.success());
        let mut child = host
            .command(&std::env::current_exe().unwrap())
            .args(["--exact", "neighbour", "--nocapture"])
            .env(NEIGHBOUR, ports.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = std::io::BufReader::new(child.stderr.take().unwrap());
        let line = stderr
            .lines()
            .map_while(Result::ok)
            .find(|line| line.starts_with("ports"))
            .unwrap();
        let ports = line
            .split(' ')
            .filter_map(|port| port.parse().ok())
            .collect();
        Self { child, ports }
    }

    fn say(&mut self, datagram: &[u8]) {
        let line = data_encoding::HEXLOWER.encode(datagram) + "\n";
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).unwrap();
    }

    /// Waits until all was sent.
    fn finish(mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

fn forged(key: &LanKey, seed: u64, addr: Ipv4Addr, door: u16) -> Vec<u8> {
    let mut bytes = [1; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let ports = Ports { tcp: door, udp: 0 };
    let notice = Notice::Here {
        answer: true,
        device: DeviceId(bytes),
        addr,
        inside: ports,
        door: ports,
    };
    encode(key, &mut Rng::from_seed(bytes), notice).to_vec()
}

#[test]
fn false_doors_hold_nobody_up() {
    let Some((_network, [one, two, three, four])) = network("false doors hold nobody up") else {
        return;
    };
    let place = place();
    let (first, words) = first_on(&place, &one, "first");
    let (other, _) = first_on(&place, &three, "other");
    let others_door: u16 = other
        .addrs()
        .iter()
        .find_map(|addr| addr.strip_prefix("/ip4/10.77.0.3/tcp/")?.parse().ok())
        .unwrap();
    // One who once was of the mesh: it has the key, and names doors that stall, one of another mesh, and one where nobody is.
    let mut hostile = Neighbour::on(&four, 5);
    let key = LanKey::of(&Words::parse(&words).unwrap().root().sign.id());
    let mut places: Vec<(Ipv4Addr, u16)> =
        hostile.ports.iter().map(|port| (ip(4), *port)).collect();
    places.extend([(ip(3), others_door), (ip(99), 4000)]);
    let second = place.device_on(&two, "second");
    let joining = std::thread::scope(|scope| {
        let joining = scope.spawn(|| second.join_by_words(&words, "second", &[]));
        // Again and again, so that some come before the true one.
        let mut seed = 0;
        while !joining.is_finished() {
            for (addr, port) in &places {
                hostile.say(&forged(&key, seed, *addr, *port));
                seed += 1;
            }
            std::thread::yield_now();
        }
        joining.join().unwrap()
    });
    joining.expect_code(0);
    assert_eq!(joining.event("joined")["mesh"], first.status()["mesh"]);
    let knocked = joining
        .values()
        .iter()
        .filter(|value| value["event"] == "door")
        .count();
    assert!(knocked <= 16, "{knocked} doors were knocked at");
}

fn resident_kb(device: &Kith) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", device.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn flood_of_false_announcements_is_survived() {
    let Some((_network, [one, two, three])) = network("a flood is survived") else {
        return;
    };
    let place = place();
    let (first, words) = first_on(&place, &one, "first");
    let before = resident_kb(&first);
    let mut hostile = Neighbour::on(&three, 0);
    let key = LanKey::of(&Words::parse(&words).unwrap().root().sign.id());
    let strangers = LanKey::of(&DeviceId([9; 32]));
    for n in 0..20_000_u64 {
        let datagram = match n % 4 {
            // Thousands of devices, at thousands of places, of one who has the key.
            0 => forged(&key, n, Ipv4Addr::from(0x0a00_0000 + n as u32), 4000),
            1 => forged(&strangers, n, ip(3), 4000),
            // Giants, and noise with the head of a true one.
            2 => noise(n, 1400),
            _ => {
                let mut bytes = forged(&strangers, n, ip(3), 4000);
                bytes.truncate(40);
                bytes.extend(noise(n, 1000));
                bytes
            }
        };
        hostile.say(&datagram);
    }
    hostile.finish();
    let mut second = place.device_on(&two, "second");
    second.join_by_words(&words, "second", &[]).expect_code(0);
    second.up_with(&[]);
    second.agrees_with(&first);
    assert_eq!(first.ok(["devices"]).values().len(), 2);
    let grown = resident_kb(&first).saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB more than before");
}
