//! What was put for anybody: files and folders of this machine as UnixFS, and the list of them.
//!
//! Spec: `protocol/spec/outside.md`, "Publishing".

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use kith_object::id::Cid;
use kith_object::key::DeviceKeys;
use kith_object::pack::Class;
use kith_object::store::{StoreError, Verified};
use kith_object::tree::TREE_DEPTH_MAX;
use kith_object::unixfs::{self, FileBuilder, FolderError, Profile, Written};

use super::driver::Outside;
use crate::config::{Home, HomeError, fresh_rng};
use crate::ingest::Progress;
use crate::store::DiskStore;

/// The file of the list.
pub(crate) const PUBLISHED_FILE: &str = "published";
const MAGIC: &[u8; 8] = b"kithpub1";
/// Most roots in the list, and its length.
const PUBLISHED_MAX: usize = 10_000;
const PUBLISHED_BYTES_MAX: u64 = 4 << 20;
/// Longest name kept with a root.
const NAME_BYTES_MAX: usize = 255;
/// Blocks that are told together to whoever waits for them.
const TELL_TOGETHER: usize = 256;

/// A root that anybody may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) cid: Cid,
    /// Bytes of all files.
    pub(crate) size: u64,
    /// When it was put, milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// The last part of the path that it was put from.
    pub(crate) name: Vec<u8>,
}

/// Why something is not published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error("read {path}", path = path.display())]
    Read {
        path: std::path::PathBuf,
        source: io::Error,
    },
    #[error("{path} is neither file, folder nor symlink", path = path.display())]
    Kind { path: std::path::PathBuf },
    #[error("{path} has so many names that it would have to be sharded, which Kith does not do", path = path.display())]
    TooLong { path: std::path::PathBuf },
    #[error("{path} is nested too deeply", path = path.display())]
    TooDeep { path: std::path::PathBuf },
    #[error("{path} is Kith's own data folder", path = path.display())]
    Own { path: std::path::PathBuf },
    #[error("it was cancelled")]
    Cancelled,
    #[error("use the store")]
    Store(#[source] Box<StoreError>),
    #[error("keep the list of what is public")]
    List(#[source] HomeError),
    #[error("the list of what is public has {PUBLISHED_MAX} entries, which is all that it takes")]
    Full,
}

/// Puts files and folders for anybody.
pub(crate) struct Publisher<'a> {
    pub(crate) store: &'a DiskStore,
    pub(crate) profile: Profile,
    pub(crate) outside: Option<&'a Arc<Outside>>,
    pub(crate) progress: &'a Progress,
    /// Kith's own folder, whose keys never leave the device.
    pub(crate) without: &'a Path,
    told: Vec<Cid>,
    failed: Option<StoreError>,
}

impl<'a> Publisher<'a> {
    pub(crate) fn new(
        store: &'a DiskStore,
        profile: Profile,
        outside: Option<&'a Arc<Outside>>,
        progress: &'a Progress,
        without: &'a Path,
    ) -> Self {
        Self {
            store,
            profile,
            outside,
            progress,
            without,
            told: Vec::new(),
            failed: None,
        }
    }

    /// Stores what stands at a path; it lasts when this returns. Answers the root and the bytes of all files.
    pub(crate) fn publish(&mut self, path: &Path) -> Result<(Cid, u64), PublishError> {
        let before = self.progress.bytes.load(Ordering::Relaxed);
        let written = self.item(path, 0)?;
        self.store
            .flush()
            .map_err(|error| PublishError::Store(Box::new(error)))?;
        self.tell();
        let after = self.progress.bytes.load(Ordering::Relaxed);
        Ok((written.cid, after - before))
    }

    fn item(&mut self, path: &Path, depth: usize) -> Result<Written, PublishError> {
        let path_of = || path.to_owned();
        let read = |source| PublishError::Read {
            path: path_of(),
            source,
        };
        if self.progress.cancelled.load(Ordering::Relaxed) {
            return Err(PublishError::Cancelled);
        }
        if depth > TREE_DEPTH_MAX {
            return Err(PublishError::TooDeep { path: path_of() });
        }
        let metadata = fs::symlink_metadata(path).map_err(read)?;
        if metadata.is_symlink() {
            let target = fs::read_link(path).map_err(read)?;
            let profile = self.profile;
            let bytes = target.as_os_str().as_bytes().to_owned();
            self.progress.files.fetch_add(1, Ordering::Relaxed);
            let written =
                unixfs::symlink(profile, &bytes, &mut |cid, block| self.keep(cid, &block));
            return self.done(path, written);
        }
        if metadata.is_file() {
            let file = File::open(path).map_err(read)?;
            let written = self.file(path, file)?;
            self.progress.files.fetch_add(1, Ordering::Relaxed);
            return Ok(written);
        }
        if !metadata.is_dir() {
            return Err(PublishError::Kind { path: path_of() });
        }
        if same(path, self.without) {
            return Err(PublishError::Own { path: path_of() });
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(read)? {
            names.push(entry.map_err(read)?.file_name());
        }
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            let child = self.item(&path.join(&name), depth + 1)?;
            entries.push((name.as_bytes().to_vec(), child));
        }
        let profile = self.profile;
        let written = unixfs::folder(profile, &entries, &mut |cid, block| self.keep(cid, &block));
        match written {
            Ok(written) => Ok(written),
            Err(FolderError::TooLong) => Err(PublishError::TooLong { path: path_of() }),
            Err(FolderError::Sink(error)) => self.done(path, Err(error)),
        }
    }

    fn file(&mut self, path: &Path, mut file: File) -> Result<Written, PublishError> {
        let mut builder = FileBuilder::new(self.profile);
        let mut leaf = Vec::with_capacity(self.profile.leaf_bytes());
        loop {
            if self.progress.cancelled.load(Ordering::Relaxed) {
                return Err(PublishError::Cancelled);
            }
            leaf.clear();
            let most = self.profile.leaf_bytes() as u64;
            let len = (&mut file)
                .take(most)
                .read_to_end(&mut leaf)
                .map_err(|source| PublishError::Read {
                    path: path.to_owned(),
                    source,
                })?;
            if len == 0 {
                break;
            }
            let kept = builder.leaf(&leaf, &mut |cid, block| self.keep(cid, &block));
            if let Err(error) = kept {
                return self.done(path, Err(error));
            }
            self.progress.bytes.fetch_add(len as u64, Ordering::Relaxed);
            if (len as u64) < most {
                break;
            }
        }
        let written = builder.finish(&mut |cid, block: Bytes| self.keep(cid, &block));
        self.done(path, written)
    }

    fn keep(&mut self, cid: Cid, block: &[u8]) -> io::Result<()> {
        let put = self
            .store
            .put_verified(Class::Public, Verified::computed(cid, block));
        match put {
            Ok(_) => {
                self.told.push(cid);
                if self.told.len() >= TELL_TOGETHER {
                    self.tell();
                }
                Ok(())
            }
            Err(error) => {
                self.failed = Some(error);
                Err(io::ErrorKind::Other.into())
            }
        }
    }

    fn tell(&mut self) {
        let told = std::mem::take(&mut self.told);
        if let Some(outside) = self.outside {
            outside.stored(told);
        }
    }

    fn done(&mut self, path: &Path, written: io::Result<Written>) -> Result<Written, PublishError> {
        written.map_err(|source| match self.failed.take() {
            Some(error) => PublishError::Store(Box::new(error)),
            None => PublishError::Read {
                path: path.to_owned(),
                source,
            },
        })
    }
}

fn same(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((place(one), place(other)), (Ok(one), Ok(other)) if one == other)
}

/// What is public, in the order in which it was put.
///
/// # Errors
/// [`HomeError`]: it cannot be read, or is damaged.
pub(crate) fn read(home: &Home, keys: &DeviceKeys) -> Result<Vec<Root>, HomeError> {
    let plain = home.read_sealed_strictly(PUBLISHED_FILE, keys, PUBLISHED_BYTES_MAX)?;
    let Some(plain) = plain else {
        return Ok(Vec::new());
    };
    decode(&plain).ok_or_else(|| HomeError::SideDamaged {
        path: home.path().join(PUBLISHED_FILE),
    })
}

/// Adds a root, in place of an earlier entry of the same.
pub(crate) fn add(home: &Home, keys: &DeviceKeys, root: Root) -> Result<(), PublishError> {
    let mut roots = read(home, keys).map_err(PublishError::List)?;
    roots.retain(|known| known.cid != root.cid);
    if roots.len() >= PUBLISHED_MAX {
        return Err(PublishError::Full);
    }
    roots.push(root);
    let plain = encode(&roots);
    home.write_sealed(PUBLISHED_FILE, keys, &mut fresh_rng(), &plain)
        .map_err(PublishError::List)
}

/// The name that a root is listed under.
pub(crate) fn name_of(path: &Path) -> Vec<u8> {
    let name = path.file_name().unwrap_or_default().as_bytes();
    name.iter().take(NAME_BYTES_MAX).copied().collect()
}

fn encode(roots: &[Root]) -> Vec<u8> {
    let mut plain = MAGIC.to_vec();
    for root in roots {
        let cid = root.cid.to_bytes();
        for part in [cid.as_slice(), &root.name] {
            plain.push(u8::try_from(part.len()).expect("CIDs and names are shorter than 256"));
            plain.extend_from_slice(part);
        }
        plain.extend(root.size.to_le_bytes());
        plain.extend(root.at_ms.to_le_bytes());
    }
    plain
}

fn decode(plain: &[u8]) -> Option<Vec<Root>> {
    let mut rest = plain.strip_prefix(MAGIC)?;
    let mut roots: Vec<Root> = Vec::new();
    while !rest.is_empty() {
        let mut part = || {
            let (len, after) = rest.split_first()?;
            let (part, after) = after.split_at_checked(usize::from(*len))?;
            rest = after;
            Some(part)
        };
        let cid = Cid::from_bytes(part()?).ok()?;
        let name = part()?.to_vec();
        let mut number = || {
            let (number, after) = rest.split_first_chunk::<8>()?;
            rest = after;
            Some(u64::from_le_bytes(*number))
        };
        let (size, at_ms) = (number()?, number()?);
        if roots.len() >= PUBLISHED_MAX || roots.iter().any(|root| root.cid == cid) {
            return None;
        }
        roots.push(Root {
            cid,
            size,
            at_ms,
            name,
        });
    }
    Some(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_read_as_it_was_written_and_nothing_else_is() {
        let root = |text: &[u8], name: &[u8]| Root {
            cid: Cid::from_prefix(1, 0x55, 0x12, 32, text).unwrap(),
            size: text.len() as u64,
            at_ms: 7,
            name: name.to_vec(),
        };
        let roots = vec![root(b"one", b""), root(b"two", &[0xff; NAME_BYTES_MAX])];
        let plain = encode(&roots);
        assert_eq!(decode(&plain), Some(roots.clone()));
        assert_eq!(decode(MAGIC), Some(Vec::new()));
        let ends = (0..plain.len()).filter(|end| decode(&plain[..*end]).is_some());
        assert_eq!(ends.count(), 2);
        let twice = [plain.as_slice(), &plain[8..]].concat();
        assert_eq!(decode(&twice), None);
    }
}
