//! What may be typed after `kith`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// One private store from all of your devices.
#[derive(Debug, Parser)]
#[command(name = "kith", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Understood by every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The data folder of the device [default: $XDG_DATA_HOME/kith, else ~/.local/share/kith]
    #[arg(long, global = true, env = "KITH_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Print one JSON object per line instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Confirm whatever would be asked
    #[arg(long, short = 'y', global = true)]
    pub(crate) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a new mesh with this device as its first; shows the 24 words once
    Init(InitArgs),
    /// Serve this device: connect to the others, answer local commands, until stopped
    Up(UpArgs),
    /// End the daemon of this device
    Stop,
    /// Let a new device in: shows a ticket as QR code and text until it is used or expires
    Pair(PairArgs),
    /// Make this machine a device of an existing mesh; given again after it was ended, it goes on
    Join(JoinArgs),
    /// Store files and folders; prints the root CID of each
    Put(PutArgs),
    /// Restore a file or a folder, by CID or by path
    Get(GetArgs),
    /// Print a file, by CID or by path
    Cat(CatArgs),
    /// Copy out of the store: the tree as plain files, or a backup as one CAR file
    Export(ExportArgs),
    /// Copy into the store: what is in a folder, or a CAR file
    Import(ImportArgs),
    /// List a folder of the tree
    Ls(LsArgs),
    /// Make a folder in the tree
    Mkdir(MkdirArgs),
    /// Move or rename in the tree
    Mv(MvArgs),
    /// Remove from the tree; its history stays
    Rm(RmArgs),
    /// Show every version that stood at a path
    History(HistoryArgs),
    /// Make an old version the current one again
    #[command(disable_version_flag = true)]
    Restore(RestoreArgs),
    /// Keep a file or a folder on this device for good, and fetch all of it now
    #[command(after_help = PIN_HELP)]
    Pin(PinArgs),
    /// End a pin: what it kept stays only as long as the tree shows it or retention keeps it
    Unpin(UnpinArgs),
    /// List what is pinned on this device
    Pins,
    /// List what was put for anybody with `kith put --public`
    Published,
    /// Take back what was put for anybody: it is served and listed no longer, and its room comes back with `kith gc`
    #[command(after_help = UNPUBLISH_HELP)]
    Unpublish(UnpublishArgs),
    /// Show or set how long old versions keep their content
    #[command(after_help = RETENTION_HELP)]
    Retention(RetentionArgs),
    /// Show how this device and the mesh are
    Status,
    /// Tell why this device is reached from other networks or not, and how it reaches each of the others
    Doctor,
    /// Read what is stored and find whatever is damaged: packs, index, logs, keys
    Verify(VerifyArgs),
    /// Give back the room of what nothing needs any more: versions older than `kith retention` keeps, small packs
    Gc(GcArgs),
    /// Look after this device's store
    #[command(subcommand)]
    Store(StoreCommand),
    /// Show or set how often, and where, the mesh keeps what is stored
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Show how much of what is stored each device wrote and holds, and what it gives
    #[command(after_help = QUOTA_HELP)]
    Quota,
    /// Show which devices hold a file or a folder
    Where(WhereArgs),
    /// Show what is being waited for until a file or a folder is kept as often as it should be
    Why(WhereArgs),
    /// List the devices of the mesh
    Devices,
    /// Do something with one device of the mesh
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Run three devices on this machine and see Kith's main job done on real files
    Demo(DemoArgs),
    /// Run a mesh in simulated bad weather, from one seed
    #[command(subcommand)]
    Sim(SimCommand),
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// What to call this device [default: the machine's host name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// How much of the disk stays free of stored packs, as `5G` (of 1,024 each) [default: 1G, or a sixteenth of a smaller disk]; kept for later starts
    #[arg(long, value_name = "SIZE", env = "KITH_KEEP_FREE", hide_env_values = true, value_parser = size)]
    pub(crate) keep_free: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Address to listen on, without port; may be given several times
    #[arg(
        long,
        value_name = "IP",
        default_value = "0.0.0.0",
        env = "KITH_LISTEN"
    )]
    pub(crate) listen: Vec<std::net::IpAddr>,
    /// Neither look for devices of the mesh in the local network (mDNS) nor be found there; on loopback it never happens
    #[arg(long, env = "KITH_NO_LAN", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) no_lan: bool,
    /// Most bytes a second sent to devices of the mesh, as `500K` or `2M` (of 1,024 each), or `none`
    #[arg(long, value_name = "RATE", env = "KITH_MAX_UPLOAD", default_value = "none", value_parser = quota)]
    pub(crate) max_upload: Quota,
    /// Most bytes a second received from devices of the mesh, as `--max-upload`
    #[arg(long, value_name = "RATE", env = "KITH_MAX_DOWNLOAD", default_value = "none", value_parser = quota)]
    pub(crate) max_download: Quota,
    /// Most connections with devices of the mesh at once; a third of them is left for those that dial this one
    #[arg(long, value_name = "COUNT", env = "KITH_MAX_CONNECTIONS", default_value_t = kith_node::net::CONNECTIONS_USUAL, value_parser = clap::value_parser!(u32).range(4..=1024))]
    pub(crate) max_connections: u32,
    /// Do not relay between devices of the mesh that cannot reach each other; it is done only where this device is reachable from everywhere
    #[arg(long, env = "KITH_NO_RELAY", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) no_relay: bool,
    /// Do not ask the router for a port (UPnP); on loopback it never happens
    #[arg(long, env = "KITH_NO_UPNP", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) no_upnp: bool,
    /// Serve what was put with `kith put --public` to anybody, by Bitswap, on ports and under a name of their own
    #[arg(long, env = "KITH_PUBLIC", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) public: bool,
    /// With --public: say in a DHT of the IPFS world what is public, in that of the local network or in that of all; there this device needs an address that anybody reaches: its own, one that the router gives it (UPnP), or --public-addr
    #[arg(long, value_name = "WHERE", requires = "public", requires = "dht_peer")]
    pub(crate) dht: Option<Dht>,
    /// A peer of that DHT, as /ip4/192.0.2.7/tcp/4001/p2p/ID, by which the others are found; may be given several times
    #[arg(long, value_name = "ADDR", requires = "dht")]
    pub(crate) dht_peer: Vec<kith_node::net::Multiaddr>,
    /// Where anybody reaches what is public, because a router forwards a port to it, as /ip4/203.0.113.7/tcp/4001; may be given several times
    #[arg(long, value_name = "ADDR", requires = "public")]
    pub(crate) public_addr: Vec<kith_node::net::Multiaddr>,
    /// Most that stored packs may take, as `200G` (of 1,024 each), or `none`; kept for later starts
    #[arg(long, value_name = "SIZE", value_parser = quota)]
    pub(crate) quota: Option<Quota>,
    /// Most that may lie here of what was only read, or what others keep, as `8G` (of 1,024 each), or `none`: what is of least use goes first; with `--capacity 0` names, keys, pins and this are all that a phone keeps. For later starts too
    #[arg(long, value_name = "SIZE", value_parser = quota)]
    pub(crate) cache_size: Option<Quota>,
    /// How much of the disk stays free of stored packs, as `5G` (of 1,024 each) [default: 1G, or a sixteenth of a smaller disk]; kept for later starts
    #[arg(long, value_name = "SIZE", env = "KITH_KEEP_FREE", hide_env_values = true, value_parser = size)]
    pub(crate) keep_free: Option<u64>,
    /// How much of the disk is for packs that others rely on too, as `500G` (of 1,024 each), or 0 [default: the quota, or the size of the disk]; as `kith device set --capacity`
    #[arg(long, value_name = "SIZE", env = "KITH_CAPACITY", hide_env_values = true, value_parser = size)]
    pub(crate) capacity: Option<u64>,
    /// Most bytes a second at which it fetches what it should hold, as `--max-upload`
    #[arg(long, value_name = "RATE", env = "KITH_KEEP_RATE", default_value = "none", value_parser = quota)]
    pub(crate) keep_rate: Quota,
    /// What an acknowledgement promises: `group` outlasts a power cut, `relaxed` only a killed process; kept for later starts
    #[arg(long, value_name = "KIND")]
    pub(crate) durability: Option<kith_node::config::Durability>,
}

/// A DHT of the IPFS world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Dht {
    /// That of the local network
    Lan,
    /// That of all
    Wan,
}

/// A limit in bytes, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota(pub(crate) Option<u64>);

fn quota(typed: &str) -> Result<Quota, String> {
    if typed == "none" {
        return Ok(Quota(None));
    }
    size(typed).map(|bytes| Quota(Some(bytes)))
}

/// Bytes: a number, with `K`, `M`, `G` or `T` of 1,024 each.
pub(crate) fn size(typed: &str) -> Result<u64, String> {
    let wrong = || format!("{typed:?} is no size: a number, with K, M, G or T if meant");
    let (number, shift) = match typed.strip_suffix(['K', 'M', 'G', 'T']) {
        Some(number) if typed.ends_with('K') => (number, 10),
        Some(number) if typed.ends_with('M') => (number, 20),
        Some(number) if typed.ends_with('G') => (number, 30),
        Some(number) => (number, 40),
        None => (typed, 0),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[derive(Debug, Args)]
pub(crate) struct PairArgs {
    /// What the newcomer becomes: `member`, or `blind` for a device that keeps data without keys
    #[arg(long, default_value = "member", value_parser = ["member", "blind"])]
    pub(crate) role: String,
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The ticket that `kith pair` shows; `-` reads it from standard input; none goes on with the join that was begun here
    #[arg(conflicts_with = "words")]
    pub(crate) ticket: Option<String>,
    /// Join by the 24 words, typed at a prompt or read from standard input
    #[arg(long)]
    pub(crate) words: bool,
    /// Where a device of the mesh listens, as its `kith status` shows as `door`; may be given several times [default: searched for in the local network]
    #[arg(long, value_name = "ADDR", requires = "words")]
    pub(crate) peer: Vec<String>,
    /// What to call this device [default: the machine's host name]
    #[arg(long)]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// Files and folders; `-` is standard input
    #[arg(required = true, value_name = "SRC")]
    pub(crate) sources: Vec<OsString>,
    /// Path in the tree [default: /<basename>]; into it, if it is a folder or several sources are given
    #[arg(long, value_name = "PATH")]
    pub(crate) to: Option<OsString>,
    /// For anybody to read: stored plain, as UnixFS, under the CID that `ipfs add` gives it, and not in the tree; `kith up --public` serves it
    #[arg(long, conflicts_with = "to")]
    pub(crate) public: bool,
    /// Return only once as many devices hold it as should: `replicated`
    #[arg(long, value_name = "UNTIL", value_parser = ["replicated"], conflicts_with = "public")]
    pub(crate) wait: Option<String>,
    /// With --public: which CIDs they get, those of `unixfs-v1-2025`, or the older ones of `unixfs-v0-2015`
    #[arg(
        long,
        value_name = "NAME",
        requires = "public",
        default_value = "unixfs-v1-2025",
        value_parser = ["unixfs-v1-2025", "unixfs-v0-2015"]
    )]
    pub(crate) profile: String,
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// A CID, or a path in the tree; what begins with `/` is always a path
    #[arg(value_name = "CID|PATH")]
    pub(crate) what: OsString,
    /// Where to put it [default: ./<basename>]
    #[arg(long, short, value_name = "DEST")]
    pub(crate) output: Option<PathBuf>,
    /// Overwrite what is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Wait for what no device within reach has now, instead of failing
    #[arg(long)]
    pub(crate) wait: bool,
    /// Get a public object, by CID, from that peer of the IPFS world, as /ip4/192.0.2.7/tcp/4001/p2p/ID; may be given several times
    #[arg(long, value_name = "ADDR", conflicts_with = "wait")]
    pub(crate) peer: Vec<String>,
    /// With --peer: look for more peers that have it, by way of those, in the DHT of the local network or in that of all
    #[arg(long, value_name = "WHERE", requires = "peer")]
    pub(crate) dht: Option<Dht>,
}

#[derive(Debug, Args)]
pub(crate) struct CatArgs {
    /// A CID, or a path in the tree; what begins with `/` is always a path
    #[arg(value_name = "CID|PATH")]
    pub(crate) what: OsString,
    /// Begin at that byte; only what is needed from there is read, and fetched
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) offset: u64,
    /// Print so many bytes at most [default: to the end]
    #[arg(long, value_name = "N")]
    pub(crate) length: Option<u64>,
    /// Wait for what no device within reach has now, instead of failing
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Without --car the folder to make, with the tree in it; with --car what to export, by CID or by path [default: the whole space with its history]
    #[arg(value_name = "DIR|CID|PATH", required_unless_present = "car")]
    pub(crate) what: Option<OsString>,
    /// Write one CAR file, sealed: the words, or a member, open it again
    #[arg(long, value_name = "FILE")]
    pub(crate) car: Option<PathBuf>,
    /// Of the whole space, the files that the tree shows now and no older ones; their names keep their history
    #[arg(long, requires = "car", conflicts_with = "what")]
    pub(crate) current: bool,
    /// Not sealed: plain UnixFS, for anybody and for IPFS [default: what the tree shows now]
    #[arg(long, requires = "car", conflicts_with = "current")]
    pub(crate) public: bool,
    /// With --public: which CIDs the files get, those of `unixfs-v1-2025`, or the older ones of `unixfs-v0-2015`
    #[arg(
        long,
        requires = "public",
        default_value = "unixfs-v1-2025",
        hide_default_value = true,
        hide_possible_values = true,
        value_parser = ["unixfs-v1-2025", "unixfs-v0-2015"]
    )]
    pub(crate) profile: String,
    /// Overwrite what is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Wait for what no device within reach has now, instead of leaving it out
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The folder whose contents are stored
    #[arg(value_name = "DIR", required_unless_present = "car", conflicts_with_all = ["car", "words", "name"])]
    pub(crate) folder: Option<PathBuf>,
    /// Take in a CAR file that `kith export` made
    #[arg(long, value_name = "FILE")]
    pub(crate) car: Option<PathBuf>,
    /// The folder of the tree for what has no place in it yet [default: /]
    #[arg(long, value_name = "PATH")]
    pub(crate) to: Option<OsString>,
    /// The file is a plain one of UnixFS: each of its roots is stored, under its CID
    #[arg(long, requires = "car", conflicts_with = "words")]
    pub(crate) public: bool,
    /// First make this machine a device of the mesh, by the 24 words and the file alone: typed at a prompt or read from standard input
    #[arg(long, requires = "car")]
    pub(crate) words: bool,
    /// With --words: what to call this device [default: the machine's host name]
    #[arg(long, requires = "words")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Path in the tree
    #[arg(default_value = "/")]
    pub(crate) path: OsString,
}

#[derive(Debug, Args)]
pub(crate) struct MkdirArgs {
    /// Path in the tree
    pub(crate) path: OsString,
    /// Make missing parents, and be content if it exists
    #[arg(long, short)]
    pub(crate) parents: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MvArgs {
    /// Path in the tree
    pub(crate) from: OsString,
    /// New path; into it, if it is a folder
    pub(crate) to: OsString,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Path in the tree
    pub(crate) path: OsString,
    /// Folders with all in them
    #[arg(long, short)]
    pub(crate) recursive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Path in the tree, of something there or removed
    pub(crate) path: OsString,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// Path in the tree
    pub(crate) path: OsString,
    /// Version as `kith history` shows it [default: the one before the current]
    #[arg(long)]
    pub(crate) version: Option<String>,
}

const PIN_HELP: &str = "What is pinned stays on this device, whatever `kith retention` says, until it is unpinned. A path pins what stands there now and not \
the name: what is stored there later is not pinned, and what was pinned stays. Interrupted, the pin stands; give it again to fetch the rest. Ends with \
exit code 3 if the pin stands but something of it could not be had.";

#[derive(Debug, Args)]
pub(crate) struct PinArgs {
    /// A CID, or a path in the tree; what begins with `/` is always a path
    #[arg(value_name = "CID|PATH")]
    pub(crate) what: OsString,
    /// Wait for what no device within reach has now, instead of going without
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UnpublishArgs {
    /// CIDs, as `kith published` lists them
    #[arg(required = true, value_name = "CID")]
    pub(crate) cids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UnpinArgs {
    /// A CID, or the path at which it was pinned: all that was pinned there
    #[arg(value_name = "CID|PATH")]
    pub(crate) what: OsString,
}

const UNPUBLISH_HELP: &str = "From then on this device gives it to nobody, except what is part of something else that is public. Who has got it has it, and what a DHT was told it \
forgets within two days. `kith gc` gives the room back.";

const RETENTION_HELP: &str = "It holds for all devices, and only an admin sets it; what is not given stays as it is. What the tree shows now is always kept, \
and so are all sides of a conflict. Versions themselves stay in `kith history` for ever; the content of those that are not kept any more may go. As long as \
nothing is set, every version is kept for 30 days, the last of each day for 365, the last of each month for ever.";

#[derive(Debug, Args)]
pub(crate) struct RetentionArgs {
    /// Keep everything that was current in so many days
    #[arg(long, value_name = "DAYS|forever", value_parser = days)]
    pub(crate) all: Option<u32>,
    /// Keep the last version of each day (UTC) for so many days
    #[arg(long, value_name = "DAYS|forever", value_parser = days)]
    pub(crate) daily: Option<u32>,
    /// Keep the last version of each month (UTC) for so many days
    #[arg(long, value_name = "DAYS|forever", value_parser = days)]
    pub(crate) monthly: Option<u32>,
}

/// Days of retention; for ever is the greatest number.
fn days(typed: &str) -> Result<u32, String> {
    if typed == "forever" {
        return Ok(u32::MAX);
    }
    let days = typed.parse().ok();
    days.filter(|days| (1..u32::MAX).contains(days))
        .ok_or_else(|| format!("{typed:?} is neither `forever` nor a number of days, at least 1"))
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Read only so many packs of a hundred, chosen anew each time
    #[arg(long, value_name = "PCT", value_parser = clap::value_parser!(u8).range(1..=100), default_value = "100")]
    pub(crate) sample: u8,
    /// Read at most so many MB a second [default: as fast as the disk gives]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// Go on with a check that was interrupted
    #[arg(long)]
    pub(crate) resume: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Only say which packs would go, and why
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Make the whole index anew from the packs; no daemon may run
    Rebuild,
}

const QUOTA_HELP: &str = "Counted in packs that are to be kept: a device wrote those that came to be on it first, what it merged and collected included. `takes` is what all copies of these \
come to; `holds` is what lies on a device for good, whoever wrote it. What was read and may go when room is needed counts for nobody.";

const POLICY_HELP: &str = "It holds for all devices, and only an admin sets it. Of each pack as many whole copies are kept as outlast what was asked for: `--replicas 3` three, \
`--erasure 4+2` three too (any two devices may be lost), until packs are coded. Unless something is set, it is `--auto`: any two devices may be lost where there are four or more, one \
where there are two or three.";

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Show what holds now
    Show,
    /// Set it
    #[command(after_help = POLICY_HELP)]
    Set(PolicyArgs),
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("kept").required(true).args(["replicas", "erasure", "auto"]))]
pub(crate) struct PolicyArgs {
    /// Of which space; there is `home`
    #[arg(value_name = "SPACE")]
    pub(crate) space: String,
    /// Keep so many whole copies
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) replicas: Option<u8>,
    /// Keep shards, any so many of which restore the whole, and so many besides: 2+1, 4+2, 6+3, 8+4, 10+6
    #[arg(long, value_name = "K+M")]
    pub(crate) erasure: Option<String>,
    /// By the number of devices
    #[arg(long)]
    pub(crate) auto: bool,
    /// Only at these sites, as `home,cloud`; devices elsewhere may still read
    #[arg(long, value_name = "SITES", value_delimiter = ',')]
    pub(crate) sites: Vec<String>,
    /// Spread over so many sites at least
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) min_sites: u8,
}

#[derive(Debug, Args)]
pub(crate) struct WhereArgs {
    /// A CID, or a path in the tree; what begins with `/` is always a path
    #[arg(value_name = "CID|PATH")]
    pub(crate) what: OsString,
}

/// A length of time: a number with `h` or `d`.
fn grace(typed: &str) -> Result<u32, String> {
    let wrong =
        || format!("{typed:?} is no length of time: a number with `s`, `m`, `h` or `d`, as `48h`");
    let (number, each) = match typed.split_at_checked(typed.len().saturating_sub(1)) {
        Some((number, "s")) => (number, 1),
        Some((number, "m")) => (number, 60),
        Some((number, "h")) => (number, 3600),
        Some((number, "d")) => (number, 86_400),
        _ => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(each).ok_or_else(wrong)
}

#[derive(Debug, Args)]
pub(crate) struct DeviceSetArgs {
    /// Its name, or its id [default: this device]; others by an admin
    pub(crate) name: Option<String>,
    /// Bytes for packs that others rely on too, as `2T` (of 1,024 each); 0, and it holds only its own
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) capacity: Option<u64>,
    /// Where it is, as `home` or `cloud`: copies are spread over sites first; `none` for nowhere in particular
    #[arg(long, value_name = "LABEL")]
    pub(crate) site: Option<String>,
    /// What it is: `always-on` counts as gone after 48 hours of silence, `laptop` after 14 days
    #[arg(long, value_name = "CLASS", value_parser = ["always-on", "laptop"], conflicts_with = "grace")]
    pub(crate) class: Option<String>,
    /// After how long a silence it counts as gone, and others take its place, as `48h` or `30d`
    #[arg(long, value_name = "TIME", value_parser = grace)]
    pub(crate) grace: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Say what a device gives for packs, where it is, and how long it may be silent
    Set(DeviceSetArgs),
    /// Have everything that a device holds taken over by others, before it leaves; `kith devices` and `kith status` show how far that is
    Drain {
        /// Its name, or its id
        name: String,
    },
    /// Say that a device is gone for good, so that others take its place at once; a return undoes it
    Lost {
        /// Its name, or its id
        name: String,
    },
    /// Take back `drain` or `lost`
    Stay {
        /// Its name, or its id
        name: String,
    },
    /// Remove a device for good: it can neither read nor write what comes later
    Remove {
        /// Its name, or its id
        name: String,
        /// Remove it with the 24 words, asked for or read from standard input: the only way to remove an admin
        #[arg(long)]
        words: bool,
        /// Even though no other device is within reach that could know more of what it wrote; that will not count any more
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// What to store [default: the tracked files of this repository]
    pub(crate) path: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SimCommand {
    /// List the scenarios that come with Kith
    List,
    /// Run a scenario: one that comes with Kith, or a TOML file
    Run {
        /// Its name, or where the file is
        #[arg(default_value = "split-brain", value_name = "NAME|FILE")]
        scenario: String,
        /// First seed
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many seeds, one run each
        #[arg(long, default_value_t = 1)]
        runs: u64,
        /// Write a readable event log
        #[arg(long, value_name = "FILE")]
        trace: Option<PathBuf>,
        /// Write one page with plots of the last run, for a browser, that needs nothing else
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
    /// Work out what a mesh of your own would come to: how long the first sync takes, what survives which failures, traffic, and the policy to choose
    Plan {
        /// A file that says which devices there are and where, written as in a scenario
        #[arg(long, value_name = "FILE")]
        devices: PathBuf,
        /// How much there is to keep, such as 2TB
        #[arg(long, value_name = "SIZE", value_parser = kith_simulations::sizing::bytes)]
        data: u64,
        /// How much comes to it, such as 5GB/day or 100GB/month
        #[arg(long, value_name = "SIZE/TIME", default_value = "0B/day", value_parser = kith_simulations::sizing::a_day)]
        growth: u64,
        /// The device that has it all at first [default: the first in the file]
        #[arg(long, value_name = "NAME")]
        from: Option<String>,
    },
    /// Run scenarios by chance, one for each seed, on all cores, until time is over or one fails
    Swarm {
        /// How long, in minutes
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=525_600))]
        minutes: u64,
        /// First seed; a fresh one if it is not given
        #[arg(long)]
        seed: Option<u64>,
        /// Most runs
        #[arg(long)]
        runs: Option<u64>,
        /// Of the first that fails, leave out whatever has nothing to do with that, and write it to this file
        #[arg(long, value_name = "FILE")]
        shrink: Option<PathBuf>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn sizes_are_read_as_typed() {
        assert_eq!(quota("200G"), Ok(Quota(Some(200 << 30))));
        assert_eq!(quota("7"), Ok(Quota(Some(7))));
        assert_eq!(quota("3K"), Ok(Quota(Some(3072))));
        assert_eq!(quota("none"), Ok(Quota(None)));
        for wrong in ["", "G", "-1", "1g", "1.5G", "99999999999T", "1 G"] {
            assert!(quota(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn days_are_read_as_typed() {
        assert_eq!(days("1"), Ok(1));
        assert_eq!(days("365"), Ok(365));
        assert_eq!(days("forever"), Ok(u32::MAX));
        assert_eq!(days("4294967294"), Ok(u32::MAX - 1));
        for wrong in ["", "0", "-1", "4294967295", "1.5", "30d", "ever", " 3"] {
            assert!(days(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
