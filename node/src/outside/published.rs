//! What was put for anybody: files and folders of this machine as UnixFS, and the list of them.
//!
//! Spec: `protocol/spec/outside.md`, "Publishing".

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use kith_core::collect;
use kith_object::id::Cid;
use kith_object::key::DeviceKeys;
use kith_object::object::{Leaves, Reach, Reached};
use kith_object::pack::Class;
use kith_object::seal::Opener;
use kith_object::store::{StoreError, Verified};
use kith_object::tree::TREE_DEPTH_MAX;
use kith_object::unixfs::{self, FileBuilder, FolderError, Profile, Written};

use super::driver::Outside;
use crate::config::{Home, HomeError, fresh_rng};
use crate::ingest::Progress;
use crate::store::DiskStore;

/// The file of the list.
pub(crate) const PUBLISHED_FILE: &str = "published";
const MAGIC: &[u8; 8] = b"kithpub2";
/// Before anything could be taken back.
const MAGIC_BEFORE: &[u8; 8] = b"kithpub1";
/// Most roots in the list, and its length.
const PUBLISHED_MAX: usize = 10_000;
const PUBLISHED_BYTES_MAX: u64 = 4 << 20;
/// Longest name kept with a root.
const NAME_BYTES_MAX: usize = 255;
/// Blocks that are told together to whoever waits for them.
const TELL_TOGETHER: usize = 256;
/// Most blocks that are told of late; who waits for others asks again by itself.
const HELD_BACK_MAX: usize = 1 << 16;

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

/// What is public.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Published {
    /// The roots, in the order in which they were put.
    pub(crate) roots: Vec<Root>,
    /// Blocks that no root leads to may still lie in public packs: something was taken back, and its room has not been given back yet.
    pub(crate) has_strays: bool,
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
    #[error("{path} is a large folder, two names of which cannot be told apart by the hash that spreads it over several nodes", path = path.display())]
    Names { path: std::path::PathBuf },
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
    #[error("{0} is not in the list of what is public")]
    Unknown(Cid),
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
    /// Whether nothing may be told of before the root is in the list.
    holds_back: bool,
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
            holds_back: false,
            told: Vec::new(),
            failed: None,
        }
    }

    /// Tells nobody of blocks before [`Publisher::tell`]: they are served only once the root is in the list.
    pub(crate) fn holding_back(mut self) -> Self {
        self.holds_back = true;
        self
    }

    /// Stores what stands at a path; it lasts when this returns. Answers the root and the bytes of all files.
    pub(crate) fn publish(&mut self, path: &Path) -> Result<(Cid, u64), PublishError> {
        let before = self.progress.bytes.load(Ordering::Relaxed);
        let written = self.item(path, 0)?;
        self.store
            .flush()
            .map_err(|error| PublishError::Store(Box::new(error)))?;
        if !self.holds_back {
            self.tell();
        }
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
            Err(FolderError::Collide) => Err(PublishError::Names { path: path_of() }),
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
                if self.told.len() < HELD_BACK_MAX {
                    self.told.push(cid);
                }
                if self.told.len() >= TELL_TOGETHER && !self.holds_back {
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

    /// Tells whoever waits for the blocks that they are here.
    pub(crate) fn tell(&mut self) {
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

/// What is public; nothing if nothing was ever put, or if somebody removed the list.
///
/// # Errors
/// [`HomeError`]: it cannot be read, or is damaged.
pub(crate) fn read(home: &Home, keys: &DeviceKeys) -> Result<Option<Published>, HomeError> {
    let plain = home.read_sealed_strictly(PUBLISHED_FILE, keys, PUBLISHED_BYTES_MAX)?;
    let Some(plain) = plain else {
        return Ok(None);
    };
    let published = decode(&plain).ok_or_else(|| HomeError::SideDamaged {
        path: home.path().join(PUBLISHED_FILE),
    });
    published.map(Some)
}

/// Writes the list down; it lasts when this returns.
pub(crate) fn write(
    home: &Home,
    keys: &DeviceKeys,
    published: &Published,
) -> Result<(), HomeError> {
    home.write_sealed(PUBLISHED_FILE, keys, &mut fresh_rng(), &encode(published))
}

/// Which blocks the roots lead to.
///
/// # Errors
/// [`StoreError`] of the disk or the index as a whole.
pub(crate) fn reached(store: &DiskStore, published: &Published) -> Result<Reached, StoreError> {
    let nothing = Opener::new(Vec::new());
    let mut reach = Reach::new(nothing, Leaves::new(fresh_rng().bytes()), BTreeSet::new());
    reach.enter_public(published.cids());
    collect::walk(store, &mut reach, &|| false)?;
    Ok(reach.finish().0)
}

impl Published {
    /// Adds a root, in place of an earlier entry of the same.
    pub(crate) fn add(&mut self, root: Root) -> Result<(), PublishError> {
        self.roots.retain(|known| known.cid != root.cid);
        if self.roots.len() >= PUBLISHED_MAX {
            return Err(PublishError::Full);
        }
        self.roots.push(root);
        Ok(())
    }

    /// The roots by name.
    pub(crate) fn cids(&self) -> Vec<Cid> {
        self.roots.iter().map(|root| root.cid).collect()
    }
}

/// The name that a root is listed under.
pub(crate) fn name_of(path: &Path) -> Vec<u8> {
    let name = path.file_name().unwrap_or_default().as_bytes();
    name.iter().take(NAME_BYTES_MAX).copied().collect()
}

fn encode(published: &Published) -> Vec<u8> {
    let mut plain = MAGIC.to_vec();
    plain.push(u8::from(published.has_strays));
    for root in &published.roots {
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

fn decode(plain: &[u8]) -> Option<Published> {
    let (has_strays, mut rest) = match plain.strip_prefix(MAGIC) {
        Some(rest) => match rest.split_first()? {
            (0, rest) => (false, rest),
            (1, rest) => (true, rest),
            _ => return None,
        },
        None => (false, plain.strip_prefix(MAGIC_BEFORE)?),
    };
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
    Some(Published { roots, has_strays })
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
        let published = |has_strays| Published {
            roots: roots.clone(),
            has_strays,
        };
        for has_strays in [false, true] {
            let published = published(has_strays);
            let plain = encode(&published);
            assert_eq!(decode(&plain), Some(published));
            // Only where a root ends.
            let ends = (0..plain.len()).filter(|end| decode(&plain[..*end]).is_some());
            assert_eq!(ends.count(), 2);
        }
        let plain = encode(&published(false));
        assert_eq!(
            decode(&[MAGIC.as_slice(), &[0]].concat()),
            Some(Published::default())
        );
        assert_eq!(decode(&[MAGIC.as_slice(), &[2]].concat()), None);
        // As it was written before.
        let before = [MAGIC_BEFORE.as_slice(), &plain[9..]].concat();
        assert_eq!(decode(&before), Some(published(false)));
        let twice = [plain.as_slice(), &plain[9..]].concat();
        assert_eq!(decode(&twice), None);
    }
}
