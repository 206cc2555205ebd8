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
        let mut make = self.switch.way.clone();
        make.extend(["unshare".into(), "--net".into()]);
        let enter: Vec<String> = self
            .switch
            .way
            .iter()
            .skip(3)
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        let enter: Vec<&str> = enter.iter().map(String::as_str).collect();
        let holder = Holder::start(&make, &enter)?;
        let (port, pid) = (format!("host{}", self.hosts), holder.child.id());
        self.switch
            .run(&format!("ip link add {port} type veth peer name eth0"))?;
        self.switch.run(&format!("ip link set eth0 netns {pid}"))?;
        self.switch
            .run(&format!("ip link set {port} master br0 up"))?;
        let host = Host { holder };
        for line in ["ip link set lo up", "ip link set eth0 up"] {
            host.holder.run(line)?;
        }
        host.add(addr)?;
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

    /// Runs words split at blanks.
    fn run(&self, line: &str) -> Result<(), String> {
        let mut words = line.split(' ');
        let program = words.next().ok_or("an empty line")?;
        let output = self
            .command(Path::new(program))
            .args(words)
            .output()
            .map_err(|error| format!("{line}: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{line}: {}", said.trim()))
    }
}
