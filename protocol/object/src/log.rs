//! Logs: records one behind the other in a file, each with its checksum, for what packs do not hold.
//!
//! Spec: `protocol/spec/log.md`, "Frames".

use std::io;
use std::ops::Range;
use std::sync::Mutex;

use bytes::Bytes;

use crate::disk::{Disk, Group, lock, read_around};

/// Bytes before the first frame.
pub const HEADER_BYTES: usize = 16;
/// Bytes of a frame before its record.
pub const FRAME_BYTES: usize = 48;
/// Longest record.
pub const RECORD_BYTES_MAX: usize = 4 << 20;

const MAGIC: [u8; 8] = *b"kithlog\n";
const VERSION: u8 = 1;
const FRAME_MAGIC: [u8; 4] = [0xf1, b'k', b'l', 0x1f];
/// Separates the check of a frame's position and length from every other hash.
const POSITION_DOMAIN: &str = "kith log position 1";
/// Separates the check of a record from every other hash.
const RECORD_DOMAIN: &str = "kith log record 1";
/// How much of a log is in memory while it is read through.
const WINDOW_BYTES: usize = 1 << 20;

/// What went wrong with a log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file does not begin as a log of this version does, and holds no sound frame either.
    #[error("{name} is not a log of version {VERSION}")]
    NotALog {
        /// The file.
        name: String,
    },
    /// The log could not be read.
    #[error("read log {name}")]
    Read {
        /// The file.
        name: String,
        /// What the disk said.
        source: io::Error,
    },
    /// The log could not be written; the record is not in it.
    #[error("write log {name}")]
    Write {
        /// The file.
        name: String,
        /// What the disk said.
        source: io::Error,
    },
    /// The log could not be made to last.
    #[error("sync log {name}")]
    Sync {
        /// The file.
        name: String,
        /// What the disk said.
        source: io::Error,
    },
    /// An earlier failure left it open what is on the disk; opening the log again settles it.
    #[error("log {name} takes no more records since an earlier failure; open it again")]
    Broken {
        /// The file.
        name: String,
    },
    /// The record is longer than [`RECORD_BYTES_MAX`].
    #[error("record of {len} bytes is too long for log {name}")]
    TooLong {
        /// The file.
        name: String,
        /// The record's length.
        len: usize,
    },
    /// What stands at this place is not an intact record.
    #[error("no intact record at {offset} of log {name}")]
    NoRecord {
        /// The file.
        name: String,
        /// The place.
        offset: u64,
    },
}

impl LogError {
    /// Whether the disk was full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// What [`Log::open`] met besides records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogReport {
    /// Intact records.
    pub records: u64,
    /// Places in the middle that hold no intact record; their bytes stay where they are.
    pub damaged: Vec<Range<u64>>,
    /// Bytes cut off the end, where a write was torn; a copy of them is in `<name>.torn`.
    pub torn_bytes: u64,
}

/// Most damaged places that a report lists; further ones are joined to the last.
const DAMAGED_MAX: usize = 1024;

/// An append-only file of checksummed records.
///
/// [`Log::append`] hands a record to the system; after [`Log::sync`] has returned it outlasts a power cut. Callers on many threads share one sync.
///
/// Spec: `protocol/spec/log.md`, "Frames".
#[derive(Debug)]
pub struct Log<D> {
    disk: D,
    name: String,
    state: Mutex<State>,
    group: Group,
}

#[derive(Debug)]
struct State {
    len: u64,
    broken: bool,
}

impl<D: Disk> Log<D> {
    /// Opens a log, making it if there is none, and answers all its records in order. [`Log::open_each`] does so without holding them all.
    ///
    /// # Errors
    /// [`LogError`]; a torn end or damage in the middle is none.
    pub fn open(disk: D, name: &str) -> Result<(Self, Vec<Bytes>, LogReport), LogError> {
        let mut records = Vec::new();
        let (log, report) = Self::open_each(disk, name, |_, record| records.push(record))?;
        Ok((log, records, report))
    }

    /// Opens a log, making it if there is none; `each` sees every record in order with the offset that [`Log::read`] takes.
    ///
    /// A torn end is copied to `<name>.torn` and cut off. All that remains has been synced when this returns.
    ///
    /// # Errors
    /// [`LogError`]; a torn end or damage in the middle is none.
    ///
    /// Spec: `protocol/spec/log.md`, "Opening".
    pub fn open_each(
        disk: D,
        name: &str,
        mut each: impl FnMut(u64, Bytes),
    ) -> Result<(Self, LogReport), LogError> {
        let mut report = LogReport::default();
        let read_error = |source| LogError::Read {
            name: name.to_owned(),
            source,
        };
        let write_error = |source| LogError::Write {
            name: name.to_owned(),
            source,
        };
        // Left by one that was being written anew; if it cannot be removed it does no harm.
        if disk.len(&fresh_name(name)).is_ok() {
            let _ = forget(&disk, &fresh_name(name));
        }
        let mut len = match disk.len(name) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                disk.create(name).map_err(write_error)?;
                0
            }
            Err(source) => return Err(read_error(source)),
        };
        let front = usize::try_from(len)
            .unwrap_or(HEADER_BYTES)
            .min(HEADER_BYTES);
        let front = read_around(&disk, name, 0, front).map_err(read_error)?;
        let newborn = len <= HEADER_BYTES as u64
            && front
                .iter()
                .zip(header())
                .all(|(byte, whole)| *byte == whole || *byte == 0);
        if newborn && front != header() {
            // The header is synced before the first record, so only a log that never held one is cut short at birth.
            disk.truncate(name, 0).map_err(write_error)?;
            disk.append(name, &header()).map_err(write_error)?;
            len = HEADER_BYTES as u64;
        }
        let mut window = Window {
            disk: &disk,
            name,
            len,
            start: 0,
            bytes: Vec::new(),
        };
        let mut offset = HEADER_BYTES as u64;
        let mut fault: Option<u64> = None;
        if !newborn && front != header() {
            // A sound frame proves by its place that this is a log whose first bytes are damaged.
            offset = window.next_sound(0).map_err(read_error)?;
            if offset == len {
                return Err(LogError::NotALog {
                    name: name.to_owned(),
                });
            }
            fault = Some(0);
        }
        while offset < len {
            match window.frame(offset).map_err(read_error)? {
                Frame::Sound(record) => {
                    if let Some(from) = fault.take() {
                        report.note_damage(from..offset);
                    }
                    let next = offset + (FRAME_BYTES + record.len()) as u64;
                    report.records += 1;
                    each(offset, record);
                    offset = next;
                }
                broken => {
                    fault.get_or_insert(offset);
                    offset = match broken {
                        // Only if a sound frame follows is this one known to be whole: else it may be torn, and later ones stand
                        // inside its length.
                        Frame::Broken { next } if window.is_sound(next).map_err(read_error)? => {
                            next
                        }
                        _ => window.next_magic(offset + 1).map_err(read_error)?,
                    };
                }
            }
        }
        if let Some(from) = fault {
            report.torn_bytes = len - from;
            match keep_tail(&disk, name, from, len) {
                Ok(()) => {
                    disk.truncate(name, from).map_err(write_error)?;
                    len = from;
                }
                // No room for the copy: the bytes stay, later records follow them, and opening skips them as damage.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    report.note_damage(from..len)
                }
                Err(source) => return Err(write_error(source)),
            }
        }
        // What is told to the caller must last, even if the process that wrote it never came to sync it.
        let sync_error = |source| LogError::Sync {
            name: name.to_owned(),
            source,
        };
        disk.sync(name).map_err(sync_error)?;
        disk.sync_names().map_err(sync_error)?;
        let state = Mutex::new(State { len, broken: false });
        Ok((
            Self {
                disk,
                name: name.to_owned(),
                state,
                group: Group::from(len),
            },
            report,
        ))
    }

    /// The name of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The length of the file.
    pub fn len_bytes(&self) -> u64 {
        lock(&self.state).len
    }

    /// Adds a record; answers the offset that [`Log::read`] takes. It lasts once [`Log::sync`] has returned.
    ///
    /// # Errors
    /// [`LogError::TooLong`], [`LogError::Write`], [`LogError::Broken`]; the record is then not in the log.
    pub fn append(&self, record: &[u8]) -> Result<u64, LogError> {
        if record.len() > RECORD_BYTES_MAX {
            return Err(LogError::TooLong {
                name: self.name.clone(),
                len: record.len(),
            });
        }
        let check = record_hash(record);
        let mut state = lock(&self.state);
        if state.broken {
            return Err(LogError::Broken {
                name: self.name.clone(),
            });
        }
        let offset = state.len;
        let head = frame_head(offset, record.len(), &check);
        match self.disk.append_parts(&self.name, &[&head, record]) {
            Ok(at) if at == offset => {
                state.len = offset + (FRAME_BYTES + record.len()) as u64;
                Ok(offset)
            }
            Ok(_) => {
                state.broken = true;
                Err(LogError::Write {
                    name: self.name.clone(),
                    source: io::Error::other("somebody else writes to this file"),
                })
            }
            Err(source) => {
                state.broken = self.disk.truncate(&self.name, offset).is_err();
                Err(LogError::Write {
                    name: self.name.clone(),
                    source,
                })
            }
        }
    }

    /// Returns once every record appended before would outlast a power cut.
    ///
    /// # Errors
    /// [`LogError::Sync`], [`LogError::Broken`]: then nothing is known of the records since the last sync.
    pub fn sync(&self) -> Result<(), LogError> {
        let wanted = lock(&self.state).len;
        self.group.reach(wanted, || {
            let len = {
                let state = lock(&self.state);
                if state.broken {
                    return Err(LogError::Broken {
                        name: self.name.clone(),
                    });
                }
                state.len
            };
            match self.disk.sync(&self.name) {
                Ok(()) => Ok(len),
                Err(source) => {
                    lock(&self.state).broken = true;
                    Err(LogError::Sync {
                        name: self.name.clone(),
                        source,
                    })
                }
            }
        })
    }

    /// Writes the log anew: the records at these offsets, in this order, and nothing else. `moved` is told of each where it was and where it is.
    ///
    /// A crash leaves the log as it was or as it is then; an error before the new one has the name, as it was. `settle` does what syncs of the disk may
    /// have put off, so that no name comes before what it stands for.
    ///
    /// # Errors
    /// [`LogError::NoRecord`] if one of the records is not intact, [`LogError::Read`], [`LogError::Write`], [`LogError::Sync`], [`LogError::Broken`].
    ///
    /// Spec: `protocol/spec/log.md`, "Writing anew".
    pub fn write_anew(
        &mut self,
        offsets: &[u64],
        mut moved: impl FnMut(u64, u64),
        settle: impl Fn() -> io::Result<()>,
    ) -> Result<(), LogError> {
        let name = self.name.clone();
        if lock(&self.state).broken {
            return Err(LogError::Broken { name });
        }
        let fresh = fresh_name(&name);
        let write_error = |source| LogError::Write {
            name: name.clone(),
            source,
        };
        let sync_error = |source| LogError::Sync {
            name: name.clone(),
            source,
        };
        let write = || -> Result<(u64, Vec<(u64, u64)>), LogError> {
            forget(&self.disk, &fresh).map_err(write_error)?;
            self.disk.create(&fresh).map_err(write_error)?;
            self.disk.append(&fresh, &header()).map_err(write_error)?;
            let mut len = HEADER_BYTES as u64;
            let mut places = Vec::with_capacity(offsets.len());
            for offset in offsets {
                let record = self.read(*offset)?;
                let head = frame_head(len, record.len(), &record_hash(&record));
                self.disk
                    .append_parts(&fresh, &[&head, &record])
                    .map_err(write_error)?;
                places.push((*offset, len));
                len += (FRAME_BYTES + record.len()) as u64;
            }
            self.disk.sync(&fresh).map_err(sync_error)?;
            settle().map_err(sync_error)?;
            self.disk.rename(&fresh, &name).map_err(write_error)?;
            Ok((len, places))
        };
        let (len, places) = match write() {
            Ok(written) => written,
            Err(error) => {
                // If it stays, the next opening removes it.
                let _ = forget(&self.disk, &fresh);
                return Err(error);
            }
        };
        let named = self.disk.sync_names().and_then(|()| settle());
        self.state = Mutex::new(State {
            len,
            broken: named.is_err(),
        });
        self.group = Group::from(len);
        for (from, to) in places {
            moved(from, to);
        }
        named.map_err(sync_error)
    }

    /// Reads the record at an offset that [`Log::append`] or [`Log::open_each`] gave.
    ///
    /// # Errors
    /// [`LogError::NoRecord`] if the bytes there are no longer what was written, [`LogError::Read`].
    pub fn read(&self, offset: u64) -> Result<Bytes, LogError> {
        let len = self.len_bytes();
        let mut window = Window {
            disk: &self.disk,
            name: &self.name,
            len,
            start: 0,
            bytes: Vec::new(),
        };
        match window.frame_alone(offset) {
            Ok(Frame::Sound(record)) => Ok(record),
            Ok(_) => Err(LogError::NoRecord {
                name: self.name.clone(),
                offset,
            }),
            Err(source) => Err(LogError::Read {
                name: self.name.clone(),
                source,
            }),
        }
    }
}

/// What [`check`] found in a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogCheck {
    /// Intact records.
    pub records: u64,
    /// Bytes looked at.
    pub bytes: u64,
    /// Places that hold no intact record; the last may be the end of a write that was cut short.
    pub damaged: Vec<Range<u64>>,
}

/// Reads a log through and changes nothing; a file that is missing has no records.
///
/// # Errors
/// Whatever the disk says.
pub fn check<D: Disk>(disk: &D, name: &str) -> io::Result<LogCheck> {
    let len = match disk.len(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LogCheck::default()),
        len => len?,
    };
    let mut report = LogReport::default();
    let mut window = Window {
        disk,
        name,
        len,
        start: 0,
        bytes: Vec::new(),
    };
    let head = window.at(0, HEADER_BYTES)?;
    let mut fault = (head.first_chunk() != Some(&header())).then_some(0);
    let mut offset = HEADER_BYTES as u64;
    while offset < len {
        match window.frame(offset)? {
            Frame::Sound(record) => {
                if let Some(from) = fault.take() {
                    // Damage in the head of the file ends there; the first frame does not begin later.
                    report.note_damage(from..offset);
                }
                report.records += 1;
                offset += (FRAME_BYTES + record.len()) as u64;
            }
            broken => {
                fault.get_or_insert(offset);
                offset = match broken {
                    Frame::Broken { next } if window.is_sound(next)? => next,
                    _ => window.next_magic(offset + 1)?,
                };
            }
        }
    }
    if let Some(from) = fault {
        report.note_damage(from..len);
    }
    Ok(LogCheck {
        records: report.records,
        bytes: len,
        damaged: report.damaged,
    })
}

impl LogReport {
    fn note_damage(&mut self, range: Range<u64>) {
        let full = self.damaged.len() >= DAMAGED_MAX;
        match self.damaged.last_mut() {
            Some(last) if last.end == range.start || full => last.end = range.end,
            _ => self.damaged.push(range),
        }
    }
}

/// What a log that is written anew is called until it is whole.
fn fresh_name(name: &str) -> String {
    format!("{name}.new")
}

/// Removes a file that may not be there.
fn forget(disk: &impl Disk, name: &str) -> io::Result<()> {
    match disk.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies the end of a log to `<name>.torn`, durably, in place of an earlier copy.
fn keep_tail(disk: &impl Disk, name: &str, from: u64, len: u64) -> io::Result<()> {
    let copy = format!("{name}.torn");
    forget(disk, &copy)?;
    let write = || -> io::Result<()> {
        disk.create(&copy)?;
        let mut offset = from;
        while offset < len {
            let part = usize::try_from(len - offset)
                .unwrap_or(usize::MAX)
                .min(WINDOW_BYTES);
            disk.append(&copy, &read_around(disk, name, offset, part)?)?;
            offset += part as u64;
        }
        disk.sync(&copy)?;
        disk.sync_names()
    };
    let result = write();
    if result
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::StorageFull)
    {
        // Only a copy, and not a whole one: give its room back.
        disk.remove(&copy)?;
    }
    result
}

/// The first bytes of a log.
fn header() -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let (magic, rest) = bytes.split_at_mut(MAGIC.len());
    magic.copy_from_slice(&MAGIC);
    if let Some(version) = rest.first_mut() {
        *version = VERSION;
    }
    bytes
}

fn record_hash(record: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new_derive_key(RECORD_DOMAIN)
        .update(record)
        .finalize()
        .as_bytes()
}

/// Binds a frame to its place, so that bytes inside a record never pass for a frame when one before them is damaged.
fn position_check(offset: u64, len: u32) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new_derive_key(POSITION_DOMAIN);
    hasher
        .update(&offset.to_le_bytes())
        .update(&len.to_le_bytes());
    let hash = hasher.finalize();
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// The bytes before a record: magic, length, check of both and of the offset, hash of the record.
fn frame_head(offset: u64, len: usize, check: &[u8; 32]) -> Vec<u8> {
    let len = u32::try_from(len).expect("the caller checks the length of a record");
    let mut head = Vec::with_capacity(FRAME_BYTES);
    head.extend_from_slice(&FRAME_MAGIC);
    head.extend_from_slice(&len.to_le_bytes());
    head.extend_from_slice(&position_check(offset, len));
    head.extend_from_slice(check);
    head
}

/// What stands at a place of a log.
enum Frame {
    /// A frame with its record.
    Sound(Bytes),
    /// A frame whose record is not what was written; the next begins there, if the frame was ever written whole.
    Broken { next: u64 },
    /// No frame, or one that the file's end cuts off.
    None,
}

/// A stretch of the file in memory.
struct Window<'a, D> {
    disk: &'a D,
    name: &'a str,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<D: Disk> Window<'_, D> {
    /// The bytes from there on; at least `least` of them, or as many as the file has.
    fn at(&mut self, offset: u64, least: usize) -> io::Result<&[u8]> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let least = least.min(left);
        let inside = offset
            .checked_sub(self.start)
            .and_then(|skip| usize::try_from(skip).ok());
        let skip = match inside {
            Some(skip) if self.bytes.len().saturating_sub(skip) >= least => skip,
            _ => {
                let len = least.max(WINDOW_BYTES).min(left);
                self.bytes = read_around(self.disk, self.name, offset, len)?;
                self.start = offset;
                0
            }
        };
        Ok(self.bytes.get(skip..).unwrap_or_default())
    }

    fn frame(&mut self, offset: u64) -> io::Result<Frame> {
        let left = self.len.saturating_sub(offset);
        let Some((len, check)) = parse_head(offset, self.at(offset, FRAME_BYTES)?) else {
            return Ok(Frame::None);
        };
        let whole = FRAME_BYTES + len;
        if (whole as u64) > left {
            return Ok(Frame::None);
        }
        let record = self
            .at(offset, whole)?
            .get(FRAME_BYTES..whole)
            .unwrap_or_default();
        Ok(judge(offset, record, &check))
    }

    /// The next sound frame, from `offset` on; the end of the file if there is none.
    fn next_sound(&mut self, mut offset: u64) -> io::Result<u64> {
        loop {
            offset = self.next_magic(offset)?;
            if offset == self.len || self.is_sound(offset)? {
                return Ok(offset);
            }
            offset += 1;
        }
    }

    fn is_sound(&mut self, offset: u64) -> io::Result<bool> {
        Ok(matches!(self.frame(offset)?, Frame::Sound(_)))
    }

    /// As [`Window::frame`], reading no more than the frame.
    fn frame_alone(&mut self, offset: u64) -> io::Result<Frame> {
        if offset.saturating_add(FRAME_BYTES as u64) > self.len {
            return Ok(Frame::None);
        }
        let head = read_around(self.disk, self.name, offset, FRAME_BYTES)?;
        let Some((len, check)) = parse_head(offset, &head) else {
            return Ok(Frame::None);
        };
        let start = offset + FRAME_BYTES as u64;
        if start.saturating_add(len as u64) > self.len {
            return Ok(Frame::None);
        }
        let record = read_around(self.disk, self.name, start, len)?;
        if record_hash(&record) == check {
            return Ok(Frame::Sound(Bytes::from(record)));
        }
        Ok(Frame::Broken {
            next: start + len as u64,
        })
    }

    /// The next place, from `offset` on, at which a frame might begin; the end of the file if there is none.
    fn next_magic(&mut self, mut offset: u64) -> io::Result<u64> {
        while offset < self.len {
            let bytes = self.at(offset, FRAME_MAGIC.len())?;
            if let Some(at) = bytes
                .windows(FRAME_MAGIC.len())
                .position(|four| four == FRAME_MAGIC)
            {
                return Ok(offset + at as u64);
            }
            // The last three bytes may begin a magic that the next stretch ends.
            offset += (bytes.len().saturating_sub(FRAME_MAGIC.len() - 1)).max(1) as u64;
        }
        Ok(self.len)
    }
}

/// Length and hash of the record that follows, if these bytes are the head of a frame at that offset.
fn parse_head(offset: u64, bytes: &[u8]) -> Option<(usize, [u8; 32])> {
    let rest = bytes.strip_prefix(&FRAME_MAGIC)?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (position, rest) = rest.split_first_chunk::<8>()?;
    let check = rest.first_chunk::<32>()?;
    let len = u32::from_le_bytes(*len);
    let sound = len as usize <= RECORD_BYTES_MAX && *position == position_check(offset, len);
    sound.then_some((len as usize, *check))
}

fn judge(offset: u64, record: &[u8], check: &[u8; 32]) -> Frame {
    if record_hash(record) == *check {
        Frame::Sound(Bytes::copy_from_slice(record))
    } else {
        Frame::Broken {
            next: offset + (FRAME_BYTES + record.len()) as u64,
        }
    }
}

#[cfg(test)]
mod tests;
