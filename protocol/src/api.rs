//! Requests and replies between the daemon and its local clients.
//!
//! One call is one exchange: a JSON request on one line, raw bytes after it where the request says so ([`Request::PutStream`]); the reply is a sequence of
//! JSON events, one a line, each [`Event::Data`] followed by that many raw bytes, the last one [`Event::Done`] or [`Event::Failed`].
//!
//! Spec: `protocol/spec/api.md`, "Calls".

use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Where the daemon answers, as the path of its one HTTP resource.
pub const CALL_PATH: &str = "/v1/call";
/// Longest request line.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Longest event line, [`Event::Data`]'s raw bytes not counted.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
/// Most raw bytes behind one [`Event::Data`].
pub const DATA_BYTES_MAX: usize = 4 << 20;

/// A name or path: bytes, usually UTF-8. In JSON a string if it is UTF-8, else `{"base64": "…"}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Name(pub Vec<u8>);

impl Name {
    /// For people to read: what is not UTF-8 is replaced.
    pub fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum NameForm {
    Text(String),
    Bytes { base64: String },
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => NameForm::Text(text.to_owned()),
            Err(_) => NameForm::Bytes {
                base64: BASE64.encode(&self.0),
            },
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match NameForm::deserialize(deserializer)? {
            NameForm::Text(text) => Ok(Self(text.into_bytes())),
            NameForm::Bytes { base64 } => BASE64
                .decode(base64.as_bytes())
                .map(Self)
                .map_err(serde::de::Error::custom),
        }
    }
}

/// The 24 words on their way to the daemon: wiped when dropped, never shown.
#[derive(Clone)]
pub struct Spoken(pub Zeroizing<String>);

impl Serialize for Spoken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Spoken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

impl std::fmt::Debug for Spoken {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Spoken(..)")
    }
}

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// How the device and the mesh are. One [`Event::Status`].
    Status,
    /// The devices of the mesh. One [`Event::Device`] each.
    Devices,
    /// How this device is reached, and how it reaches the others. One [`Event::Reach`], then one [`Event::Peer`] for each other device.
    Doctor,
    /// Stores files and folders. Progress, then one [`Event::Put`] each; acknowledged means on disk.
    Put {
        /// Absolute paths on this machine.
        sources: Vec<Name>,
        /// Where in the tree; without it `/<basename>`. With several sources, or if it names a folder that exists, they go into it.
        to: Option<Name>,
        /// The sources are folders, and what is in them is stored, not they themselves; it goes into `to`.
        #[serde(default)]
        contents: bool,
    },
    /// Stores the bytes that follow the request line, as one file.
    PutStream {
        /// Where in the tree.
        to: Name,
    },
    /// Restores an object into the file system. Progress, then one [`Event::Got`].
    Get {
        /// A CID, or a path in the tree.
        what: What,
        /// Absolute path to make.
        dest: Name,
        /// Overwrite what is there.
        force: bool,
        /// Wait for what is not within reach yet instead of failing.
        wait: bool,
    },
    /// Restores a public object, had from those peers, into the file system. Progress, then one [`Event::Got`].
    GetPublic {
        /// Its CID: the root of a graph of UnixFS nodes.
        cid: String,
        /// Multiaddrs of peers to ask.
        peers: Vec<String>,
        /// In which DHT to look for more, `lan` or `wan`, by way of these.
        #[serde(default)]
        dht: Option<String>,
        /// Absolute path to make.
        dest: Name,
        /// Overwrite what is there.
        force: bool,
    },
    /// Stores files and folders for anybody, plain, as UnixFS. Progress, then one [`Event::Published`] each; acknowledged means on disk.
    PutPublic {
        /// Absolute paths on this machine.
        sources: Vec<Name>,
        /// Which CIDs they get: `unixfs-v1-2025` or `unixfs-v0-2015`.
        profile: String,
    },
    /// What anybody may have. One [`Event::Published`] each.
    Published,
    /// Takes back what was public: all of these or none. One [`Event::Unpublished`] each.
    Unpublish {
        /// The roots.
        cids: Vec<String>,
    },
    /// Sends a file's bytes, or a range of them, as [`Event::Data`]. Only what the range needs is read, and fetched.
    Cat {
        /// A CID, or a path in the tree.
        what: What,
        /// Where to begin; beyond the end there is nothing.
        #[serde(default)]
        offset: u64,
        /// How many bytes at most; to the end if absent.
        #[serde(default)]
        length: Option<u64>,
        /// Wait for what is not within reach yet instead of failing.
        wait: bool,
    },
    /// Writes a CAR archive. Progress, then one [`Event::Exported`].
    Export {
        /// A CID, or a path in the tree; the whole space if absent.
        what: Option<What>,
        /// Absolute path of the file to make.
        file: Name,
        /// Of the whole space, only the objects that the tree shows now.
        current: bool,
        /// For anybody to read: plain, as UnixFS, under this profile. Without it sealed, for members and the words.
        public: Option<String>,
        /// Overwrite what is there.
        force: bool,
        /// Wait for what is not within reach yet instead of leaving it out.
        wait: bool,
    },
    /// Takes in a CAR archive. Progress, an [`Event::Put`] for each thing named, then one [`Event::Imported`].
    Import {
        /// Absolute path of the file.
        file: Name,
        /// The folder of the tree that things go into which have no place there yet.
        to: Name,
        /// It is a plain one, of UnixFS.
        public: bool,
    },
    /// Lists a folder, or shows one file. One [`Event::Entry`] each.
    Ls {
        /// Path in the tree.
        path: Name,
    },
    /// Makes a folder.
    Mkdir {
        /// Path in the tree.
        path: Name,
        /// Make missing parents, and be content if it exists.
        parents: bool,
    },
    /// Moves or renames.
    Mv {
        /// From where.
        from: Name,
        /// To where; into it, if it is a folder.
        to: Name,
    },
    /// Removes from the tree; history keeps it.
    Rm {
        /// Path in the tree.
        path: Name,
        /// Folders with all in them.
        recursive: bool,
    },
    /// Every version that stood at a path. One [`Event::Version`] each, newest first.
    History {
        /// Path in the tree, of something there or removed.
        path: Name,
    },
    /// Makes an old version the current one again.
    Restore {
        /// Path in the tree.
        path: Name,
        /// As [`Event::Version`] names it; the one before the current if absent.
        version: Option<String>,
    },
    /// Lets a device in. [`Event::Ticket`] first, [`Event::Knock`] when someone with the ticket is at the door, [`Event::Paired`] at the end.
    Pair {
        /// What the newcomer becomes: `member` or `blind`.
        role: String,
        /// Admit whoever proves the ticket, without a [`Request::Confirm`].
        yes: bool,
    },
    /// Answers [`Event::Knock`].
    Confirm {
        /// The ticket id of the knock.
        ticket: String,
        /// Whether both screens show the same code.
        accept: bool,
    },
    /// Removes a device for good: a new epoch, sealed to those who remain.
    DeviceRemove {
        /// Its name, or its id.
        device: String,
        /// The 24 words, which may remove an admin.
        #[serde(default)]
        words: Option<Spoken>,
        /// Even though what it wrote that is not known here will not count any more.
        #[serde(default)]
        force: bool,
    },
    /// Checks what is stored. Progress, [`Event::Damage`] as it is found, then one [`Event::Verified`].
    Verify {
        /// How many packs of a hundred.
        percent: u8,
        /// Bytes a second; as fast as the disk gives if absent.
        rate: Option<u64>,
        /// Go on with a check that was interrupted.
        resume: bool,
    },
    /// Gives the room back that nothing kept needs. Progress (files are blocks looked at), then one [`Event::Collected`]; with `dry_run` an
    /// [`Event::Garbage`] for each pack that would go, and nothing is changed.
    Gc {
        /// Only look.
        dry_run: bool,
    },
    /// Keeps an object on this device whatever retention says, and fetches all of it. Progress, [`Event::Warning`]s, then one [`Event::Pinned`].
    Pin {
        /// A CID, or a path in the tree: what stands there now.
        what: What,
        /// Wait for what is not within reach yet instead of going without.
        wait: bool,
    },
    /// Ends that. One [`Event::Unpinned`] each.
    Unpin {
        /// A CID, or the path at which it was pinned.
        what: What,
    },
    /// What is pinned. One [`Event::Pin`] each.
    Pins,
    /// Which versions keep their content. One [`Event::Retention`], of what holds now.
    Retention {
        /// Days for which all versions are to be kept; 4294967295 for ever, as it is if absent.
        #[serde(default)]
        all: Option<u32>,
        /// Days for which the last version of each day is.
        #[serde(default)]
        daily: Option<u32>,
        /// Days for which the last version of each month is.
        #[serde(default)]
        monthly: Option<u32>,
    },
    /// Where packs are to be kept. One [`Event::Policy`], of what holds now.
    Policy {
        /// What is to hold from now on, if that is to change.
        #[serde(default)]
        set: Option<PolicyWish>,
    },
    /// What each device takes of the room there is. One [`Event::Quota`] for each.
    Quota,
    /// Says what a device gives for packs; what is absent stays as it is. One [`Event::Device`].
    DeviceSet {
        /// Its name or id; the one asked if absent.
        #[serde(default)]
        device: Option<String>,
        /// Bytes for packs that others rely on.
        #[serde(default)]
        capacity: Option<u64>,
        /// Where it is; empty for nowhere in particular.
        #[serde(default)]
        site: Option<String>,
        /// Seconds of silence after which it counts as gone.
        #[serde(default)]
        grace_s: Option<u32>,
        /// `stays`, `drains` or `lost`.
        #[serde(default)]
        leaving: Option<String>,
    },
    /// Where an object lies. One [`Event::Where`] for each pack.
    Where {
        /// A CID, or a path in the tree.
        what: What,
    },
    /// Waits until every pack that these objects lie in has as many holders as there should be. Progress in packs, then the end.
    AwaitHolders {
        /// CIDs, or paths in the tree.
        what: Vec<What>,
    },
    /// Ends the daemon.
    Stop,
}

/// How packs are to be kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyWish {
    /// Of which space.
    pub space: String,
    /// `auto`, a number of copies as `3`, or shards as `10+6`.
    pub redundancy: String,
    /// Sites over which they have to be spread, at least.
    pub min_sites: u8,
    /// The only sites at which they may be; all if empty.
    pub sites: Vec<String>,
}

/// What to get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// By content.
    Cid(String),
    /// By name.
    Path(Name),
}

/// What the daemon tells, one a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// How far a long operation is; may come many times, and at most some ten times a second.
    Progress {
        /// Bytes dealt with.
        bytes: u64,
        /// Bytes in all, if known.
        total: Option<u64>,
        /// Files dealt with.
        files: u64,
    },
    /// Stored and durable.
    Put(Put),
    /// Restored.
    Got {
        /// The root; a folder got by path has none.
        cid: Option<String>,
        /// Where it was put.
        dest: Name,
        /// Bytes of all files.
        size: u64,
        /// Files restored.
        files: u64,
        /// Bytes of blocks that came from each device for this.
        from: Vec<FromDevice>,
    },
    /// Anybody may have this, as soon as the device serves it.
    Published {
        /// The root.
        cid: String,
        /// The last part of the path that it was put from.
        name: Name,
        /// Bytes of all files.
        size: u64,
        /// When it was put, milliseconds since 1970.
        at_ms: u64,
    },
    /// This is public no more; whoever has it has it.
    Unpublished {
        /// The root.
        cid: String,
        /// The last part of the path that it was put from.
        name: Name,
        /// Bytes of all files.
        size: u64,
        /// When it was put, milliseconds since 1970.
        at_ms: u64,
    },
    /// A CAR archive is written, and durable.
    Exported {
        /// The first root in it.
        cid: String,
        /// Where it is.
        file: Name,
        /// Its length.
        size: u64,
        /// Blocks of objects in it.
        blocks: u64,
        /// Entries in it; none in a public one.
        entries: u64,
    },
    /// A CAR archive was taken in, and what was sound in it is durable.
    Imported {
        /// The file.
        file: Name,
        /// Blocks that were not here before.
        blocks: u64,
        /// Blocks that were.
        known: u64,
        /// Entries in it.
        entries: u64,
        /// Places at which the file is damaged or cut short.
        damaged: u64,
        /// Blocks and entries that it should hold, and that neither it nor this device has.
        missing: u64,
    },
    /// Raw bytes follow this line.
    Data {
        /// How many.
        len: u64,
    },
    /// A line of a listing.
    Entry(Entry),
    /// A version in a history.
    Version(Version),
    /// A device.
    Device(Device),
    /// How this device is reached.
    Reach(Reach),
    /// How another device is reached.
    Peer(Peer),
    /// The status.
    Status(Box<Status>),
    /// A ticket is open.
    Ticket {
        /// The ticket as text.
        ticket: String,
        /// Its id, for [`Request::Confirm`].
        id: String,
        /// When it ends, in milliseconds since 1970.
        expires_ms: u64,
    },
    /// Someone proved the ticket; both screens show the code.
    Knock {
        /// The ticket's id.
        ticket: String,
        /// The short code.
        code: String,
        /// What the newcomer calls itself.
        name: String,
        /// Its id.
        device: String,
    },
    /// The device is in.
    Paired {
        /// Its name.
        name: String,
        /// Its id.
        device: String,
    },
    /// Something stored is not what it was.
    Damage {
        /// The file, from the data folder on.
        file: String,
        /// Where in it.
        offset: Option<u64>,
        /// What is wrong.
        what: String,
        /// Blocks that are damaged there.
        blocks: Vec<String>,
        /// Of these, blocks that are nowhere else on this disk.
        lost: Vec<String>,
        /// What was done about it.
        mended: Option<String>,
    },
    /// A check is over.
    Verified {
        /// Packs read.
        packs: u64,
        /// Bytes of them.
        bytes: u64,
        /// How many [`Event::Damage`] there were.
        damaged: u64,
        /// Blocks of damaged packs, found now or earlier, that are nowhere on this disk.
        lost: Vec<String>,
        /// Blocks that were lost and came back from other devices meanwhile.
        #[serde(default)]
        healed: u64,
    },
    /// The index was made anew.
    Rebuilt {
        /// Packs taken up.
        packs: u64,
        /// Blocks in them.
        blocks: u64,
    },
    /// A pack worth retiring.
    Garbage {
        /// Its id.
        pack: String,
        /// What its blocks are for: `names`, `stream`, `bulk`, `public`, `entries` or `link`.
        class: String,
        /// Bytes of its file.
        bytes: u64,
        /// Of these, bytes of blocks that nothing kept contains.
        garbage_bytes: u64,
        /// `garbage`: at least half of it is; `small`: it is merged with others.
        why: String,
    },
    /// Garbage was collected, or looked for.
    Collected {
        /// Nothing was changed.
        dry_run: bool,
        /// Packs looked at.
        packs: u64,
        /// Their bytes.
        bytes: u64,
        /// Of these, bytes of blocks that nothing kept contains; 0 if that cannot be told.
        garbage_bytes: u64,
        /// Blocks of kept things that are neither here nor within reach: while there are any, nothing is left out.
        missing: u64,
        /// Packs retired because they are garbage.
        retired: u64,
        /// Small packs merged into others.
        merged: u64,
        /// Bytes copied out of both.
        copied_bytes: u64,
        /// Files of packs removed.
        dropped: u64,
        /// Bytes that they took.
        freed_bytes: u64,
        /// Retirements of other devices of which this one has said that it misses nothing.
        seen: u64,
        /// Packs passed over because a command under way relies on them.
        in_use: u64,
        /// Packs on their way out that are still here.
        waiting: Vec<Waiting>,
    },
    /// A pin stands, and what of it could be had is here for good.
    Pinned {
        /// Which.
        #[serde(flatten)]
        pin: Pin,
        /// Blocks of it that are here.
        blocks: u64,
        /// Bytes of them.
        bytes: u64,
        /// Blocks and folders of it that could not be had.
        missing: u64,
    },
    /// A pin stands no more.
    Unpinned {
        /// Which.
        #[serde(flatten)]
        pin: Pin,
    },
    /// A pin.
    Pin {
        /// Which.
        #[serde(flatten)]
        pin: Pin,
    },
    /// Which versions keep their content, in days; absent means for ever.
    Retention {
        /// All that was current in them.
        all: Option<u32>,
        /// The last version of each day.
        daily: Option<u32>,
        /// The last version of each month.
        monthly: Option<u32>,
    },
    /// Where packs are to be kept.
    Policy {
        /// Of which space.
        space: String,
        /// What was set: `auto`, a number of copies, or shards as `10+6`.
        redundancy: String,
        /// What that comes to with the devices that are there.
        effective: Option<String>,
        /// Whole copies that are kept of each pack.
        copies: u64,
        /// Sites over which they have to be spread, at least.
        min_sites: u64,
        /// The only sites at which they may be; all if empty.
        sites: Vec<String>,
        /// Why it cannot be kept now.
        unmet: Option<String>,
    },
    /// What a device takes of the room there is, and gives.
    Quota(Quota),
    /// A pack in which something of an object lies.
    Where {
        /// Its id; absent for what lies in no closed pack yet, or nowhere that is known.
        pack: Option<String>,
        /// Blocks of the object in it.
        blocks: u64,
        /// Copies that there should be.
        copies: u64,
        /// Names of the devices that hold it.
        held: Vec<String>,
        /// Names of those that should.
        placed: Vec<String>,
        /// What is being waited for until as many hold it as should.
        waits: Vec<String>,
    },
    /// Something the owner should know, which does not stop the call.
    Warning {
        /// In a sentence.
        text: String,
    },
    /// The call succeeded; nothing follows.
    Done,
    /// The call failed; nothing follows.
    Failed(Failure),
}

/// What a device takes of the room there is, and gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// In which space.
    pub space: String,
    /// Its id.
    pub device: String,
    /// Its name.
    pub name: String,
    /// Whether it belongs no more; what it wrote is still kept.
    pub removed: bool,
    /// Packs it wrote that are to be kept.
    pub wrote_packs: u64,
    /// Bytes of these, once.
    pub wrote: u64,
    /// Bytes of all copies that there are of these.
    pub takes: u64,
    /// Packs it says it holds, whoever wrote them.
    pub held_packs: u64,
    /// Bytes of these.
    pub held: u64,
    /// Bytes it gives for packs that others rely on.
    pub gives: u64,
}

/// A pack on its way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Its id.
    pub pack: String,
    /// Bytes of its file.
    pub bytes: u64,
    /// Names of devices that have not said yet that they miss nothing of it.
    pub on: Vec<String>,
    /// Until when it stays whatever they say, in milliseconds since 1970.
    pub until_ms: Option<u64>,
}

/// What was stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// The root.
    pub cid: String,
    /// Where it stands in the tree.
    pub path: Name,
    /// Bytes of all files.
    pub size: u64,
    /// Files stored.
    pub files: u64,
    /// Bytes that were there already.
    pub dedup: u64,
}

/// A root that a device keeps whatever retention says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The root.
    pub cid: String,
    /// The path at which it was pinned; absent if that was done by its CID.
    pub name: Option<Name>,
    /// `file`, `folder` or `symlink`.
    pub kind: String,
    /// Bytes of all files in it, as far as it is known.
    pub size: u64,
}

/// Bytes that came from one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromDevice {
    /// Its id.
    pub device: String,
    /// Its name.
    pub name: String,
    /// Bytes of blocks.
    pub bytes: u64,
}

/// A line of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Name as shown; one of several versions of a conflict shows as `NAME~xxxxxxxx`.
    pub name: Name,
    /// `file`, `folder` or `symlink`.
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// Modification time, milliseconds since 1970.
    pub mtime_ms: u64,
    /// Unix permission bits.
    pub mode: u32,
    /// The root of its object, if it has one.
    pub cid: Option<String>,
    /// Which version this is; the root folder has none.
    pub version: Option<String>,
    /// Name of the device that wrote it.
    pub device: Option<String>,
    /// Whether it is one of several current versions.
    pub conflict: bool,
}

/// A version in a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Names it for [`Request::Restore`].
    pub version: String,
    /// Where it stood; absent if that path has become too long to write.
    pub path: Option<Name>,
    /// `file`, `folder` or `symlink`.
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// Modification time, milliseconds since 1970.
    pub mtime_ms: u64,
    /// When it was written, milliseconds since 1970, by the writing device's clock.
    pub written_ms: u64,
    /// The root of its object, if it has one.
    pub cid: Option<String>,
    /// Name of the device that wrote it.
    pub device: String,
    /// Whether it says that the thing was removed.
    pub deleted: bool,
    /// Whether it is current.
    pub current: bool,
}

/// A device of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its id.
    pub device: String,
    /// Its name.
    pub name: String,
    /// `admin`, `member` or `blind`.
    pub role: String,
    /// Whether it is the one asked.
    pub this: bool,
    /// Whether there is a connection to it now.
    pub connected: bool,
    /// Whether it was removed.
    pub removed: bool,
    /// Bytes that it gives for packs.
    #[serde(default)]
    pub capacity: u64,
    /// Where it is; empty if that was not said.
    #[serde(default)]
    pub site: String,
    /// Seconds of silence after which it counts as gone.
    #[serde(default)]
    pub grace_s: u64,
    /// `stays`, `drains` or `lost`.
    #[serde(default)]
    pub leaving: String,
    /// Whether it counts as gone now.
    #[serde(default)]
    pub gone: bool,
    /// Whether it is known what it holds.
    #[serde(default)]
    pub told: bool,
    /// Packs that it holds, as far as that is known.
    #[serde(default)]
    pub packs: u64,
    /// When it gave its last sign of life that is known, in milliseconds since 1970; 0 if none is.
    #[serde(default)]
    pub heard_ms: u64,
}

/// How the device and the mesh are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The mesh.
    pub mesh: String,
    /// This device.
    pub device: String,
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: String,
    /// Whether a daemon answers.
    pub online: bool,
    /// Where newcomers may knock.
    pub addrs: Vec<String>,
    /// Where other devices of the mesh connect.
    pub inside: Vec<String>,
    /// As [`Reach::verdict`].
    #[serde(default)]
    pub reach: String,
    /// As the first of [`Reach::says`].
    #[serde(default)]
    pub reach_says: String,
    /// Devices in the mesh, this one included.
    pub devices: u64,
    /// Devices connected now.
    pub connected: u64,
    /// Entries that count.
    pub entries: u64,
    /// Digest over them.
    pub digest: String,
    /// Fingerprint of the visible tree.
    pub tree: String,
    /// Versions that the tree of names keeps, old ones included.
    pub versions: u64,
    /// Blocks on this disk.
    pub blocks: u64,
    /// Bytes of packs on this disk.
    pub disk_bytes: u64,
    /// Of these, bytes that go first when room is needed.
    pub cached_bytes: u64,
    /// Most bytes of these.
    pub cache_bytes: Option<u64>,
    /// Most bytes that packs may take, if there is a limit.
    pub quota_bytes: Option<u64>,
    /// Bytes free on the disk, where it can tell.
    pub free_bytes: Option<u64>,
    /// Bytes that stay free.
    pub floor_bytes: u64,
    /// `group`, or `relaxed`: then a power cut may take the last seconds of what was acknowledged.
    pub durability: String,
    /// Damaged files that the daemon's own checks have found since its start.
    pub damaged: u64,
    /// Packs on their way out that are still here.
    pub dying_packs: u64,
    /// Bytes of them.
    pub dying_bytes: u64,
    /// Blocks that damage took and that are nowhere on this disk.
    #[serde(default)]
    pub lost: u64,
    /// Blocks that came back from other devices since the daemon's start.
    #[serde(default)]
    pub healed: u64,
    /// Names with more than one current version.
    pub conflicts: u64,
    /// Whether this device can write now.
    pub writable: bool,
    /// Why it cannot.
    pub read_only: Option<String>,
    /// Bytes received and sent by device since the start.
    pub traffic: Vec<Traffic>,
    /// Packs that moved whole.
    #[serde(default)]
    pub bulk: Bulk,
    /// How well packs are kept.
    #[serde(default)]
    pub keeping: Keeping,
}

/// How well the mesh's packs are kept, as far as the device knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeping {
    /// `healthy`, `at risk`, `lost`, or `unknown` where not all devices have told yet what they hold.
    pub verdict: String,
    /// Packs that are to be kept.
    pub packs: u64,
    /// Copies that there should be of each.
    pub copies: u64,
    /// Packs with as many.
    pub healthy: u64,
    /// Packs with fewer.
    pub at_risk: u64,
    /// Packs of which no holder is known, while not all devices have told what they hold.
    pub unheard: u64,
    /// Packs that no device holds.
    pub lost: u64,
    /// Packs that this device should hold and lacks.
    pub wanted: u64,
    /// Of these, those that no device within reach has.
    pub out_of_reach: u64,
    /// Copies that are too many here, and go once those who should have them have proved that they do.
    pub surplus: u64,
    /// Copies that devices say they hold, and do not.
    pub disproved: u64,
    /// Devices of which so many do not exist that none counts.
    pub distrusted: u64,
    /// Whether this disk had no room for one lately.
    pub no_room: bool,
}

/// Packs that moved whole since the daemon's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bulk {
    /// Packs that came.
    pub packs: u64,
    /// Bytes that came for them.
    pub received: u64,
    /// Of these, for nothing: twice, or not what was asked for.
    pub wasted: u64,
    /// Pieces that others were sent.
    pub pieces_sent: u64,
    /// Times that others asked for a pack that is not here.
    pub lacked: u64,
}

/// How this device is reached by those in other networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// `public`: they dial it; `relayed`: another device relays to it; `local`: only those in its own network reach it; `offline`: no daemon runs.
    pub verdict: String,
    /// The same for a person, and what can be done about it; one sentence each.
    pub says: Vec<String>,
    /// Addresses that work from outside, and how that is known: `dialled`, `tried` or `router`.
    pub public: Vec<(String, String)>,
    /// Addresses that were tried from outside in vain.
    pub closed: Vec<String>,
    /// Names of devices that relay to it.
    pub relays: Vec<String>,
    /// Whether it relays for others.
    pub relaying: bool,
    /// What the router said when it was asked for a port: `not-asked`, `asked`, `silent`, `not-public` or `mapped`.
    pub router: String,
}

/// How another device is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub device: String,
    /// Its name.
    pub name: String,
    /// `direct`, `relayed` or `away`.
    pub state: String,
    /// Its address there, and whether this device dialled it: one for each connection.
    pub links: Vec<PeerLink>,
    /// Where it was last known to listen.
    pub addrs: Vec<String>,
    /// Why it is not reached or only through a relay, for a person.
    pub why: Option<String>,
}

/// One connection with a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLink {
    /// The other end.
    pub addr: String,
    /// Whether another device relays.
    pub relayed: bool,
    /// Whether this device dialled.
    pub dialled: bool,
    /// The last round trip.
    pub round_trip_us: Option<u64>,
}

/// Bytes of blocks exchanged with one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Its id.
    pub device: String,
    /// Its name.
    pub name: String,
    /// Bytes of blocks received.
    pub received: u64,
    /// Bytes of blocks sent.
    pub sent: u64,
}

/// Why a call failed, for a person: what was tried on what, why it failed, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    /// What kind of failure, stable for programs.
    pub kind: FailureKind,
    /// What was tried, on what.
    pub what: String,
    /// Causes, outermost first.
    pub causes: Vec<String>,
    /// What to do.
    pub hint: Option<String>,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The request makes no sense as it stands.
    Usage,
    /// No such path, CID, version or device.
    NotFound,
    /// Something is in the way.
    Exists,
    /// Known, but no device within reach has it now.
    Unreachable,
    /// Not enough room on the disk.
    Full,
    /// The device lacks the right.
    Denied,
    /// Bytes on disk are not what they were.
    Corrupt,
    /// Done in part.
    Partial,
    /// The system refused, or anything else.
    Failed,
}

impl Failure {
    /// A failure of that kind.
    pub fn new(kind: FailureKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            causes: Vec::new(),
            hint: None,
        }
    }

    /// Adds a cause, and the causes behind it.
    #[must_use]
    pub fn because(mut self, cause: &dyn std::error::Error) -> Self {
        let mut next = Some(cause);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_utf8_survive_json() {
        for name in [Name::from("plain"), Name(vec![0xff, b'a', 0xfe])] {
            let text = serde_json::to_string(&name).unwrap();
            assert_eq!(serde_json::from_str::<Name>(&text).unwrap(), name, "{text}");
        }
    }

    #[test]
    fn words_are_not_shown() {
        let request = Request::DeviceRemove {
            device: "attic".to_owned(),
            words: Some(Spoken(Zeroizing::new("abandon ability".to_owned()))),
            force: false,
        };
        assert!(!format!("{request:?}").contains("abandon"));
        let text = serde_json::to_string(&request).unwrap();
        let Request::DeviceRemove { words, .. } = serde_json::from_str(&text).unwrap() else {
            panic!("another request")
        };
        assert_eq!(words.unwrap().0.as_str(), "abandon ability");
    }

    #[test]
    fn events_are_one_line_each() {
        let event = Event::Failed(Failure::new(FailureKind::NotFound, "find /a\nb").hint("look"));
        let text = serde_json::to_string(&event).unwrap();
        assert!(!text.contains('\n'));
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}
