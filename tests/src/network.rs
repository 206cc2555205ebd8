//! Several machines with a network between them, made of namespaces on this one. Nothing in it reaches the world, and all of it goes with the process.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::plain_command;

/// A network: one switch, and hosts on it.
pub struct Network {
    switch: Holder,
    hosts: u8,
}

/// A network behind a router, which lets nobody in unless told so, and hides all who are in it behind its own address.
pub struct Home {
    router: Holder,
    addr: Ipv4Addr,
    hosts: u8,
}

/// How a router hides who is behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// A connection keeps its port if that is free, so that two behind such routers can find a way to each other.
    KeepsPorts,
    /// Each connection has a port at random, so that nobody can tell it before.
    RandomPorts,
}

/// One machine in it.
pub struct Host {
    holder: Holder,
}

/// A process that keeps namespaces alive: it ends with its standard input, and so with the test, however that ends.
struct Holder {
    child: Child,
    way: Vec<OsString>,
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How namespaces are made: by any user where the system lets users have their own, by root alone elsewhere.
const KINDS: [(&[&str], &[&str]); 2] = [
    (
        &["unshare", "--user", "--map-root-user", "--net"],
        &["--user", "--preserve-credentials", "--net"],
    ),
    (&["unshare", "--net"], &["--net"]),
];

impl Network {
    /// Makes one.
    ///
    /// # Errors
    /// Why this machine has none to give.
    pub fn new() -> Result<Self, String> {
        let mut why = String::new();
        for (make, enter) in KINDS {
            match Self::of_kind(make, enter) {
                Ok(network) => return Ok(network),
                Err(error) => why = format!("{why}{}: {error}; ", make.join(" ")),
            }
        }
        Err(why)
    }

    fn of_kind(make: &[&str], enter: &[&str]) -> Result<Self, String> {
        let make: Vec<OsString> = make.iter().map(Into::into).collect();
        let switch = Holder::start(&make, enter)?;
        for line in [
            "ip link add br0 type bridge mcast_snooping 0",
            "ip link set br0 up",
        ] {
            switch.run(line)?;
        }
        let network = Self { switch, hosts: 0 };
        Ok(network)
    }

    /// Adds a machine with that address, in a network of 24 bits.
    ///
    /// # Errors
    /// What the system says.
    pub fn host(&mut self, addr: Ipv4Addr) -> Result<Host, String> {
        self.hosts += 1;
        let holder = self.switch.port(self.hosts)?;
        let host = Host { holder };
        host.add(addr)?;
        Ok(host)
    }

    /// A program beside the switch, which stands in no machine.
    pub fn command(&self, program: &Path) -> Command {
        self.switch.command(program)
    }

    /// Adds a router with that address here, and behind it a network of 24 bits in which it has the address `inner`.
    ///
    /// # Errors
    /// What the system says.
    pub fn home(&mut self, addr: Ipv4Addr, inner: Ipv4Addr, nat: Nat) -> Result<Home, String> {
        self.hosts += 1;
        let router = self.switch.port(self.hosts)?;
        let random = match nat {
            Nat::KeepsPorts => "",
            Nat::RandomPorts => " random",
        };
        let rules = format!(
            "add table ip nat; \
             add chain ip nat out {{ type nat hook postrouting priority 100 ; }}; \
             add rule ip nat out oifname eth0 masquerade{random}; \
             add table ip filter; \
             add chain ip filter way {{ type filter hook forward priority 0 ; policy drop ; }}; \
             add rule ip filter way ct state established,related accept; \
             add rule ip filter way iifname br0 accept; \
             add chain ip filter in {{ type filter hook input priority 0 ; policy accept ; }}; \
             add rule ip filter in iifname eth0 drop"
        );
        for line in [
            format!("ip addr add {addr}/24 dev eth0"),
            "ip link add br0 type bridge mcast_snooping 0".to_owned(),
            "ip link set br0 up".to_owned(),
            format!("ip addr add {inner}/24 dev br0"),
        ] {
            router.run(&line)?;
        }
        router.run_words(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        router.run_words(&["nft", &rules])?;
        Ok(Home {
            router,
            addr: inner,
            hosts: 0,
        })
    }
}

/// Rules by which a router passes a port on.
pub fn forwarding(protocol: &str, port: u16, to: &str) -> String {
    format!(
        "add chain ip nat into {{ type nat hook prerouting priority -100 ; }}; \
         add rule ip nat into iifname eth0 {protocol} dport {port} dnat to {to}; \
         insert rule ip filter way ct status dnat accept"
    )
}

impl Home {
    /// Has the router pass a port on to a machine behind it.
    ///
    /// # Errors
    /// What the system says.
    pub fn forward(&self, protocol: &str, port: u16, to: Ipv4Addr) -> Result<(), String> {
        let rules = forwarding(protocol, port, &to.to_string());
        self.router.run_words(&["nft", &rules])
    }

    /// A program on the router.
    pub fn command(&self, program: &Path) -> Command {
        self.router.command(program)
    }

    /// Adds a machine with that address.
    ///
    /// # Errors
    /// What the system says.
    pub fn host(&mut self, addr: Ipv4Addr) -> Result<Host, String> {
        self.hosts += 1;
        let holder = self.router.port(self.hosts)?;
        let host = Host { holder };
        host.add(addr)?;
        host.holder
            .run(&format!("ip route add default via {}", self.addr))?;
        Ok(host)
    }
}

impl Host {
    /// The command that brings a program to this machine.
    pub fn way(&self) -> &[OsString] {
        &self.holder.way
    }

    /// A program on this machine.
    pub fn command(&self, program: &Path) -> Command {
        self.holder.command(program)
    }

    /// The process that its namespaces live with.
    pub fn id(&self) -> u32 {
        self.holder.child.id()
    }

    /// Runs words split at blanks there.
    ///
    /// # Errors
    /// What the system says.
    pub fn run(&self, line: &str) -> Result<(), String> {
        self.holder.run(line)
    }

    /// Gives it an address.
    ///
    /// # Errors
    /// What the system says.
    pub fn add(&self, addr: Ipv4Addr) -> Result<(), String> {
        self.holder
            .run(&format!("ip addr add {addr}/24 broadcast + dev eth0"))
    }

    /// Takes an address from it.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self, addr: Ipv4Addr) -> Result<(), String> {
        self.holder.run(&format!("ip addr del {addr}/24 dev eth0"))
    }
}

impl Holder {
    fn start(make: &[OsString], enter: &[&str]) -> Result<Self, String> {
        let (program, args) = make.split_first().ok_or("no way to make a namespace")?;
        let mut child = plain_command(Path::new(program))
            .args(args)
            .args(["sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("its output is piped")?;
        let _ = BufReader::new(stdout).read_line(&mut line);
        if line != "ready\n" {
            let _ = child.kill();
            let output = child
                .wait_with_output()
                .map_err(|error| error.to_string())?;
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        let target = child.id().to_string();
        let way = ["nsenter", "--target", &target]
            .iter()
            .chain(enter)
            .map(Into::into)
            .collect();
        Ok(Self { child, way })
    }

    fn command(&self, program: &Path) -> Command {
        let (first, rest) = self.way.split_first().expect("a way has a command");
        let mut command = plain_command(Path::new(first));
        command.args(rest).arg(program);
        command
    }

    /// A new machine on the switch that is here.
    fn port(&self, number: u8) -> Result<Self, String> {
        let mut make = self.way.clone();
        make.extend(["unshare".into(), "--net".into()]);
        let enter: Vec<String> = self
            .way
            .iter()
            .skip(3)
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        let enter: Vec<&str> = enter.iter().map(String::as_str).collect();
        let holder = Self::start(&make, &enter)?;
        let (port, pid) = (format!("host{number}"), holder.child.id());
        self.run(&format!("ip link add {port} type veth peer name new0"))?;
        self.run(&format!("ip link set new0 netns {pid}"))?;
        self.run(&format!("ip link set {port} master br0 up"))?;
        holder.run("ip link set new0 name eth0")?;
        for line in ["ip link set lo up", "ip link set eth0 up"] {
            holder.run(line)?;
        }
        Ok(holder)
    }

    /// Runs words split at blanks.
    fn run(&self, line: &str) -> Result<(), String> {
        self.run_words(&line.split(' ').collect::<Vec<_>>())
    }

    fn run_words(&self, words: &[&str]) -> Result<(), String> {
        let line = words.join(" ");
        let (program, args) = words.split_first().ok_or("an empty line")?;
        let output = self
            .command(Path::new(program))
            .args(args)
            .output()
            .map_err(|error| format!("{line}: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{line}: {}", said.trim()))
    }
}
