//! Devices in different networks: whose addresses work from outside, who relays, and who finds a direct way through two routers.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};

use kith_tests::network::{Home, Host, Nat, Network, forwarding};
use kith_tests::{Kith, Place, noise, say_skipped, text, wait_until};
use serde_json::Value;

/// Three devices: one at a public address, two in homes behind routers of their own.
struct World {
    _network: Network,
    homes: [Home; 2],
    server: Host,
    hosts: [Host; 2],
}

fn ip(network: u8, n: u8) -> Ipv4Addr {
    if network == 0 {
        // Public, as far as anybody can tell.
        Ipv4Addr::new(11, 0, 0, n)
    } else {
        Ipv4Addr::new(10, network, 0, n)
    }
}

fn world(nats: [Nat; 2]) -> Result<World, String> {
    let mut network = Network::new()?;
    let server = network.host(ip(0, 1))?;
    let mut one = network.home(ip(0, 2), ip(1, 1), nats[0])?;
    let mut two = network.home(ip(0, 3), ip(2, 1), nats[1])?;
    let hosts = [one.host(ip(1, 5))?, two.host(ip(2, 5))?];
    Ok(World {
        _network: network,
        homes: [one, two],
        server,
        hosts,
    })
}

/// As [`world`]; `None`, said loudly, where this machine has no networks to give.
fn world_for(test: &str, nats: [Nat; 2]) -> Option<World> {
    match world(nats) {
        Ok(world) => Some(world),
        Err(why) => {
            say_skipped(test, &format!("no namespaces with nftables here: {why}"));
            None
        }
    }
}

fn doctor(device: &Kith) -> (Value, Vec<Value>) {
    let told = device.ok(["doctor"]).values();
    let (reach, peers): (Vec<_>, Vec<_>) = told
        .into_iter()
        .partition(|value| value["event"] == "reach");
    (reach[0].clone(), peers)
}

/// Waits until a device says of itself what is looked for.
fn wait_doctor(what: &str, device: &Kith, is: impl Fn(&Value) -> bool) -> Value {
    let last = Cell::new(Value::Null);
    let looked = catch_unwind(AssertUnwindSafe(|| {
        wait_until(what, || {
            let (reach, _) = doctor(device);
            last.set(reach.clone());
            is(&reach).then_some(reach)
        })
    }));
    looked.unwrap_or_else(|_| panic!("{what}: in vain; {}", last.take()))
}

fn state(device: &Kith, name: &str) -> String {
    let (_, peers) = doctor(device);
    let peer = peers.iter().find(|peer| peer["name"] == name).unwrap();
    text(peer, "state").to_owned()
}

/// The three devices, up and agreed.
fn devices(place: &Place, world: &World) -> [Kith; 3] {
    let mut server = place.device_on(&world.server, "server");
    let words = text(&server.ok(["init", "--name", "server"]).last(), "words").to_owned();
    let ready = server.up_with(&["--listen", "0.0.0.0"]);
    let door = ready["addrs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|addr| addr.as_str().unwrap().to_owned())
        .find(|addr| addr.contains("/11.0.0.1/tcp/"))
        .unwrap();
    let mut others = ["one", "two"]
        .into_iter()
        .zip(&world.hosts)
        .map(|(name, host)| {
            let mut device = place.device_on(host, name);
            device
                .join_by_words(&words, name, std::slice::from_ref(&door))
                .expect_code(0);
            device.up_with(&["--listen", "0.0.0.0"]);
            device.agrees_with(&server);
            device
        });
    let (one, two) = (others.next().unwrap(), others.next().unwrap());
    drop(others);
    [server, one, two]
}

#[test]
fn devices_behind_two_routers_meet_through_a_third() {
    let test = "devices_behind_two_routers_meet_through_a_third";
    let Some(world) = world_for(test, [Nat::RandomPorts; 2]) else {
        return;
    };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let [server, one, two] = devices(&place, &world);
    wait_until("the server knows that it is reached", || {
        (doctor(&server).0["verdict"] == "public").then_some(())
    });
    for device in [&one, &two] {
        wait_until("the server relays to it", || {
            (doctor(device).0["verdict"] == "relayed").then_some(())
        });
    }
    wait_until("the two meet", || {
        (state(&one, "two") == "relayed").then_some(())
    });
    // Only what passes between the two can have brought it: the server keeps nothing that it was not asked for.
    let body = noise(7, 3_000_000);
    one.put_bytes(&body, "/far.bin");
    assert_eq!(two.cat_waiting("/far.bin"), body);
    assert_eq!(state(&two, "one"), "relayed");
    let (reach, peers) = doctor(&two);
    assert_eq!(reach["relays"], serde_json::json!(["server"]));
    let says = reach["says"].to_string();
    assert!(
        says.contains("router or firewall") && says.contains("server"),
        "{says}"
    );
    let why = peers.iter().find(|peer| peer["name"] == "one").unwrap();
    assert!(why["why"].is_string(), "{why}");
    assert_eq!(server.status()["blocks"], 0, "the server keeps none of it");
}

#[test]
fn devices_behind_two_routers_find_a_direct_way() {
    let test = "devices_behind_two_routers_find_a_direct_way";
    let Some(world) = world_for(test, [Nat::KeepsPorts; 2]) else {
        return;
    };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let [mut server, one, two] = devices(&place, &world);
    for (device, other) in [(&one, "two"), (&two, "one")] {
        wait_until("the two are connected without a relay", || {
            (state(device, other) == "direct").then_some(())
        });
    }
    // The one that brought them together is needed no longer.
    server.kill();
    let body = noise(8, 3_000_000);
    one.put_bytes(&body, "/far.bin");
    assert_eq!(two.cat_waiting("/far.bin"), body);
    let (reach, _) = doctor(&two);
    assert_ne!(reach["verdict"], "public", "nobody else gets in");
}

#[test]
fn forwarded_port_is_tried_and_used() {
    let test = "forwarded_port_is_tried_and_used";
    let Some(world) = world_for(test, [Nat::RandomPorts; 2]) else {
        return;
    };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let [server, one, mut two] = devices(&place, &world);
    wait_until("the port is tried in vain", || {
        let (reach, _) = doctor(&two);
        let closed = reach["closed"].as_array().unwrap();
        (!closed.is_empty() && reach["verdict"] == "relayed").then_some(())
    });
    // What its owner does at the router then; the ports stay the same.
    let ports = ports(&two);
    two.stop();
    world.homes[1].forward("tcp", ports.0, ip(2, 5)).unwrap();
    world.homes[1].forward("udp", ports.1, ip(2, 5)).unwrap();
    two.up_with(&["--listen", "0.0.0.0"]);
    assert_eq!(self::ports(&two), ports);
    let (reach, _) = wait_until("its address is known to work", || {
        let told = doctor(&two);
        (told.0["verdict"] == "public").then_some(told)
    });
    assert!(reach["public"].to_string().contains("11.0.0.3"), "{reach}");
    wait_until("the other dials it", || {
        (state(&one, "two") == "direct").then_some(())
    });
    // It relays from now on, as the server does.
    wait_until("it relays", || {
        (doctor(&two).0["relaying"] == true).then_some(())
    });
    drop(server);
}

#[test]
fn router_that_is_asked_forwards_a_port() {
    let test = "router_that_is_asked_forwards_a_port";
    let Some(world) = world_for(test, [Nat::RandomPorts; 2]) else {
        return;
    };
    let _router = Router::on(&world.homes[1]);
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let [_server, one, two] = devices(&place, &world);
    let reach = wait_doctor("the router forwards", &two, |reach| {
        reach["router"] == "mapped" && reach["verdict"] == "public"
    });
    let public = reach["public"].to_string();
    assert!(
        public.contains("11.0.0.3") && public.contains("router"),
        "{reach}"
    );
    wait_until("the other dials it", || {
        (state(&one, "two") == "direct").then_some(())
    });
    // At the other's router nobody listens.
    wait_until("no router answers", || {
        (doctor(&one).0["router"] == "silent").then_some(())
    });
    // And a device that is told not to ask does not.
    let mut two = two;
    two.stop();
    two.up_with(&["--listen", "0.0.0.0", "--no-upnp"]);
    assert_eq!(doctor(&two).0["router"], "not-asked");
}

#[test]
fn public_objects_are_found_through_the_dht_of_all() {
    let test = "public_objects_are_found_through_the_dht_of_all";
    let made = Network::new().and_then(|mut network| {
        let hosts: Result<Vec<Host>, String> = (1..=3).map(|n| network.host(ip(0, n))).collect();
        Ok((network, hosts?))
    });
    let (_network, hosts) = match made {
        Ok(made) => made,
        Err(why) => return say_skipped(test, &format!("no namespaces here: {why}")),
    };
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    // Each of a mesh of its own: they know nothing of each other.
    let mut devices = ["middle", "publisher", "getter"]
        .into_iter()
        .zip(&hosts)
        .map(|(name, host)| {
            let device = place.device_on(host, name);
            device.ok(["init", "--name", name]);
            device
        });
    let mut device = || devices.next().unwrap();
    let (mut middle, mut publisher, getter) = (device(), device(), device());
    let up = ["--public", "--dht", "wan", "--listen"];
    let ready =
        middle.up_with(&[&up[..], &["11.0.0.1", "--dht-peer", "/ip4/11.0.0.9/tcp/1"]].concat());
    let addrs = ready["public"].as_array().unwrap();
    let middle_addr = addrs[0].as_str().unwrap();
    publisher.up_with(&[&up[..], &["11.0.0.2", "--dht-peer", middle_addr]].concat());
    let source = place.write("source", noise(3, 2_500_000));
    let put = publisher.ok(["put", "--public", source.to_str().unwrap()]);
    let cid = text(&put.event("published"), "cid").to_owned();
    wait_until("it is found", || {
        let dest = place.file("found");
        let args = ["get", &cid, "-o", dest.to_str().unwrap(), "--dht", "wan"];
        let ran = getter.run(args.into_iter().chain(["--peer", middle_addr]));
        let found = ran.code == Some(0);
        found.then(|| assert!(std::fs::read(&dest).unwrap() == noise(3, 2_500_000)))
    });
}

/// Behind a router that forwards a port, by itself or because its owner told it to.
#[test]
fn public_objects_behind_routers_are_found_through_the_dht_of_all() {
    let test = "public_objects_behind_routers_are_found_through_the_dht_of_all";
    let Some(world) = world_for(test, [Nat::RandomPorts; 2]) else {
        return;
    };
    let _router = Router::on(&world.homes[1]);
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let device = |host: &Host, name: &str| {
        let device = place.device_on(host, name);
        device.ok(["init", "--name", name]);
        device
    };
    let mut middle = device(&world.server, "middle");
    let [mut told, mut asking] = [("told", &world.hosts[0]), ("asking", &world.hosts[1])]
        .map(|(name, host)| device(host, name));
    let up = ["--public", "--dht", "wan"];
    let nobody = ["--listen", "11.0.0.1", "--dht-peer", "/ip4/11.0.0.9/tcp/1"];
    let ready = middle.up_with(&[&up[..], &nobody].concat());
    let middle_addr = ready["public"][0].as_str().unwrap().to_owned();
    let up = [&up[..], &["--dht-peer", &middle_addr, "--listen"]].concat();
    // The port is known once it was up.
    let ready = told.up_with(&[&up[..], &["0.0.0.0", "--no-upnp"]].concat());
    let addrs = ready["public"].as_array().unwrap().iter();
    let mut addrs = addrs.map(|addr| addr.as_str().unwrap());
    let tcp = addrs.find(|addr| addr.starts_with("/ip4/10.") && addr.contains("/tcp/"));
    let port: u16 = tcp.unwrap().split('/').nth(4).unwrap().parse().unwrap();
    let puts: Vec<(String, Vec<u8>)> = [(&told, 1), (&asking, 2)]
        .map(|(device, seed)| {
            let bytes = noise(seed, 700_000);
            let source = place.write(format!("source-{seed}"), &bytes);
            let put = device.ok(["put", "--public", source.to_str().unwrap()]);
            (text(&put.event("published"), "cid").to_owned(), bytes)
        })
        .into();
    told.stop();
    world.homes[0].forward("tcp", port, ip(1, 5)).unwrap();
    let public = format!("/ip4/{}/tcp/{port}", ip(0, 2));
    let said = ["0.0.0.0", "--no-upnp", "--public-addr", &public];
    told.up_with(&[&up[..], &said].concat());
    asking.up_with(&[&up[..], &["0.0.0.0"]].concat());
    let getter = device(&world.server, "getter");
    for (at, (cid, bytes)) in puts.iter().enumerate() {
        wait_until("it is found", || {
            let dest = place.file(format!("found-{at}"));
            let args = ["get", cid, "-o", dest.to_str().unwrap(), "--dht", "wan"];
            let ran = getter.run(args.into_iter().chain(["--peer", &middle_addr]));
            (ran.code == Some(0)).then(|| assert!(std::fs::read(&dest).unwrap() == *bytes))
        });
    }
}

/// The ports that a device listens on: TCP, UDP.
fn ports(device: &Kith) -> (u16, u16) {
    let status = device.status();
    let inside = status["inside"].as_array().unwrap().iter();
    let inside: Vec<&str> = inside.map(|addr| addr.as_str().unwrap()).collect();
    let port = |name: &str| {
        let mut ports = inside
            .iter()
            .filter(|addr| addr.starts_with("/ip4/10."))
            .filter_map(|addr| addr.split_once(name)?.1.split('/').next()?.parse().ok());
        ports.next().unwrap()
    };
    (port("/tcp/"), port("/udp/"))
}

/// Set where this program is to be a [`router`]: the address in its network, then that which the world sees.
const ROUTER: &str = "KITH_TEST_ROUTER";

/// A router that answers when it is asked for a port.
struct Router(Child);

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Router {
    fn on(home: &Home) -> Self {
        let mut child = home
            .command(&std::env::current_exe().unwrap())
            .args(["--exact", "router", "--nocapture"])
            .env(ROUTER, format!("{} {}", ip(2, 1), ip(0, 3)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut lines = stderr.lines().map_while(Result::ok);
        lines.find(|line| line == "router ready").unwrap();
        std::thread::spawn(move || lines.for_each(|line| eprintln!("router: {line}")));
        Self(child)
    }
}

/// Not a test: an Internet Gateway Device, as far as it takes to be given a port.
#[test]
fn router() {
    let Some(addrs) = std::env::var_os(ROUTER) else {
        return;
    };
    let addrs = addrs.to_str().unwrap().to_owned();
    let (inner, outer) = addrs.split_once(' ').unwrap();
    let web = TcpListener::bind((inner, 0)).unwrap();
    let at = web.local_addr().unwrap();
    let asked = UdpSocket::bind("0.0.0.0:1900").unwrap();
    asked
        .join_multicast_v4(&Ipv4Addr::new(239, 255, 255, 250), &inner.parse().unwrap())
        .unwrap();
    eprintln!("router ready");
    std::thread::spawn(move || {
        let mut datagram = [0; 2000];
        while let Ok((_, from)) = asked.recv_from(&mut datagram) {
            let answer = format!("HTTP/1.1 200 OK\r\nLOCATION: http://{at}/device.xml\r\n\r\n");
            let _ = asked.send_to(answer.as_bytes(), from);
        }
    });
    for stream in web.incoming() {
        if answer(&mut stream.unwrap(), outer).is_none() {
            eprintln!("not answered");
        }
    }
}

fn answer(stream: &mut TcpStream, outer: &str) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut head, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line).ok()? > 2 {
        head.push_str(&line.to_lowercase());
        line.clear();
    }
    let len = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).ok()?;
    let field = |name: &str| {
        let rest = body.split_once(&format!("<{name}>"))?.1;
        Some(rest.split_once('<')?.0.to_owned())
    };
    let service = "urn:schemas-upnp-org:service:WANIPConnection:1";
    let enveloped = |action: &str, inside: &str| {
        format!(
            "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>\
             <u:{action}Response xmlns:u=\"{service}\">{inside}</u:{action}Response></s:Body></s:Envelope>"
        )
    };
    let said = if head.starts_with("get /device.xml") {
        format!(
            "<root><device><serviceList><service><serviceType>{service}</serviceType>\
             <SCPDURL>/service.xml</SCPDURL><controlURL>/control</controlURL></service></serviceList></device></root>"
        )
    } else if head.starts_with("get /service.xml") {
        let argument = |name: &&str| {
            format!("<argument><name>{name}</name><direction>in</direction></argument>")
        };
        let action = |name: &str, arguments: &[&str]| {
            let arguments: String = arguments.iter().map(argument).collect();
            format!("<action><name>{name}</name><argumentList>{arguments}</argumentList></action>")
        };
        let to = ["NewRemoteHost", "NewExternalPort", "NewProtocol"];
        let more = [
            "NewInternalPort",
            "NewInternalClient",
            "NewEnabled",
            "NewPortMappingDescription",
            "NewLeaseDuration",
        ];
        format!(
            "<scpd><actionList>{}{}{}</actionList></scpd>",
            action("AddPortMapping", &[&to[..], &more[..]].concat()),
            action("DeletePortMapping", &to),
            action("GetExternalIPAddress", &[])
        )
    } else if body.contains("GetExternalIPAddress") {
        let addr = format!("<NewExternalIPAddress>{outer}</NewExternalIPAddress>");
        enveloped("GetExternalIPAddress", &addr)
    } else if body.contains("AddPortMapping") {
        let protocol = field("NewProtocol")?.to_lowercase();
        let port: u16 = field("NewExternalPort")?.parse().ok()?;
        let to = format!(
            "{}:{}",
            field("NewInternalClient")?,
            field("NewInternalPort")?
        );
        let rules = forwarding(&protocol, port, &to);
        let ran = Command::new("nft").arg(rules).output().ok()?;
        if !ran.status.success() {
            eprintln!("nft: {}", String::from_utf8_lossy(&ran.stderr));
            return None;
        }
        enveloped("AddPortMapping", "")
    } else {
        enveloped("DeletePortMapping", "")
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        said.len()
    );
    stream.write_all((head + &said).as_bytes()).ok()
}
