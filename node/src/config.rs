//! The home folder of a device: where it is, what is in it, the keys that never leave it.
//!
//! Spec: `protocol/spec/home.md`, "Files".

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use kith_object::id::SpaceId;
use kith_object::key::{DeviceKeys, Rng, Secret};
use kith_protocol::pairing::SecretBytes;
use zeroize::{Zeroize, Zeroizing};

/// The file that says who the device is.
pub(crate) const KEY_FILE: &str = "device.key";
/// The file with what the owner has set.
pub(crate) const SETTINGS_FILE: &str = "settings";
/// Longest settings file that is read.
const SETTINGS_BYTES_MAX: u64 = 4096;
const KEY_MAGIC: &[u8; 8] = b"kithkey1";
/// Magic, space, device keys, door seed, checksum.
const KEY_FILE_BYTES: usize = 8 + 32 + 64 + 32 + 16;
/// What a device that is being made keeps until it is in.
const JOINING_FILE: &str = "joining.key";
const JOINING_MAGIC: &[u8; 8] = b"kithjoi1";
/// Magic, mesh, device keys, name, conversation, checksum; each of the two in the middle with its length.
const JOINING_BYTES_MAX: u64 = 8 + 32 + 64 + 1 + 64 + 4 + (16 << 10) + 16;
/// Largest sealed side file that is read.
const SIDE_FILE_BYTES_MAX: u64 = 8 << 20;

/// The folder all of a device's data is in.
#[derive(Clone, Debug)]
pub struct Home {
    path: PathBuf,
}

/// Who the device is: read from its key file.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The mesh: the id of its space `home`.
    pub space: SpaceId,
    /// The device's own keys.
    pub keys: DeviceKeys,
    /// Seed of the door's key, unlinked to the device's.
    pub door: Secret,
}

/// A device that is being made: what it needs to go on after its process was ended in the middle.
#[derive(Clone, Debug)]
pub struct Joining {
    /// The mesh it is to belong to.
    pub mesh: SpaceId,
    /// Its keys, which the mesh may have heard of already.
    pub keys: DeviceKeys,
    /// Its name.
    pub name: String,
    /// What the conversation at the door remembers; `None` if it joins by the words, which are never kept.
    pub conversation: Option<SecretBytes>,
}

/// What the owner has set for this device, kept from one start to the next.
///
/// Spec: `protocol/spec/home.md`, "Settings".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Most bytes that packs may take.
    pub quota: Option<u64>,
    /// Most bytes that packs may take that were only read here, or that others keep.
    pub cache: Option<u64>,
    /// Bytes that stay free on the disk; if not said, [`kith_object::store::FREE_FLOOR`] or less on a small disk.
    pub keep_free: Option<u64>,
    /// What an acknowledgement promises.
    pub durability: Durability,
}

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// What was acknowledged outlasts a power cut.
    #[default]
    Group,
    /// What was acknowledged outlasts a killed process; a power cut may take the last seconds.
    Relaxed,
}

impl Durability {
    /// As people type and read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Relaxed => "relaxed",
        }
    }
}

impl std::str::FromStr for Durability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Group, Self::Relaxed]
            .into_iter()
            .find(|durability| durability.name() == text)
            .ok_or_else(|| format!("{text:?} is neither group nor relaxed"))
    }
}

impl Settings {
    fn encode(self) -> String {
        let mut text = String::new();
        if let Some(quota) = self.quota {
            text.push_str(&format!("quota {quota}\n"));
        }
        if let Some(cache) = self.cache {
            text.push_str(&format!("cache-size {cache}\n"));
        }
        if let Some(free) = self.keep_free {
            text.push_str(&format!("keep-free {free}\n"));
        }
        text.push_str(&format!("durability {}\n", self.durability.name()));
        checked_text("kith settings 1", text)
    }

    fn decode(text: &str) -> Option<Self> {
        let mut settings = Self::default();
        for line in unchecked_text("kith settings 1", text)?.lines() {
            match line.split_once(' ')? {
                ("quota", bytes) => settings.quota = Some(bytes.parse().ok()?),
                ("cache-size", bytes) => settings.cache = Some(bytes.parse().ok()?),
                ("keep-free", bytes) => settings.keep_free = Some(bytes.parse().ok()?),
                ("durability", name) => settings.durability = name.parse().ok()?,
                // Of a later version, which this one need not understand.
                _ => {}
            }
        }
        Some(settings)
    }
}

/// Adds a line that proves the text to be what was written: a flipped bit in a setting must not pass for a setting.
pub(crate) fn checked_text(domain: &str, text: String) -> String {
    let check = text_check(domain, &text);
    format!("{text}check {check}\n")
}

/// The text without that line, if it is what was written.
pub(crate) fn unchecked_text<'a>(domain: &str, text: &'a str) -> Option<&'a str> {
    let (body, check) = text.strip_suffix('\n')?.rsplit_once("check ")?;
    (check == text_check(domain, body)).then_some(body)
}

fn text_check(domain: &str, text: &str) -> String {
    let whole = kith_object::key::derive(domain, text.as_bytes());
    data_encoding::HEXLOWER.encode(whole.split_at(16).0)
}

/// Why a home could not be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// There is no device in it yet.
    #[error("there is no Kith device in {path}")]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// There is one already.
    #[error("there is a Kith device in {path} already")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The key file is not what was written.
    #[error("the key file {path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The settings are not what was written.
    #[error("the settings {path} are damaged; set them again, say with `kith up --quota none`")]
    SettingsDamaged {
        /// The file.
        path: PathBuf,
    },
    /// A side file is not what was written.
    #[error("the file {path} is damaged")]
    SideDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("use {path}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Home {
    /// The home at that path, which need not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a device lives here.
    pub fn exists(&self) -> bool {
        self.path.join(KEY_FILE).exists()
    }

    /// Whether there is anything of a device here, if only a key that cannot be read.
    pub fn has_files(&self) -> bool {
        self.exists() || self.path.join("packs").exists() || self.path.join("logs").exists()
    }

    /// Makes the folder, readable by nobody else.
    ///
    /// # Errors
    /// [`HomeError::Exists`] if a device lives here, [`HomeError::Io`].
    pub fn prepare(&self) -> Result<(), HomeError> {
        if self.exists() {
            return Err(HomeError::Exists {
                path: self.path.clone(),
            });
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(|source| HomeError::Io {
                path: self.path.clone(),
                source,
            })
    }

    /// Writes the key file: the last step of making a device, after which the home exists.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn write_identity(&self, identity: &Identity) -> Result<(), HomeError> {
        if self.exists() {
            return Err(HomeError::Exists {
                path: self.path.clone(),
            });
        }
        self.rewrite_identity(identity)
    }

    /// Writes the key file again from the memory of a process that read it while it was sound.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub(crate) fn rewrite_identity(&self, identity: &Identity) -> Result<(), HomeError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES));
        bytes.extend_from_slice(KEY_MAGIC);
        bytes.extend_from_slice(&identity.space.0);
        bytes.extend_from_slice(identity.keys.to_bytes().as_slice());
        bytes.extend_from_slice(identity.door.expose());
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        self.write_whole(KEY_FILE, &bytes)
    }

    /// Reads who the device is.
    ///
    /// # Errors
    /// [`HomeError::Missing`], [`HomeError::Damaged`], [`HomeError::Io`].
    pub fn identity(&self) -> Result<Identity, HomeError> {
        let path = self.path.join(KEY_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(HomeError::Missing {
                    path: self.path.clone(),
                });
            }
            Err(source) => return Err(HomeError::Io { path, source }),
        };
        parse_identity(&bytes).ok_or(HomeError::Damaged { path })
    }

    /// What the owner has set; all defaults if nothing was.
    ///
    /// # Errors
    /// [`HomeError::SettingsDamaged`], [`HomeError::Io`].
    pub fn settings(&self) -> Result<Settings, HomeError> {
        let path = self.path.join(SETTINGS_FILE);
        let damaged = || HomeError::SettingsDamaged { path: path.clone() };
        match fs::metadata(&path) {
            Ok(data) if data.len() > SETTINGS_BYTES_MAX => return Err(damaged()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Settings::default()),
            _ => {}
        }
        let bytes = fs::read(&path).map_err(|source| HomeError::Io {
            path: path.clone(),
            source,
        })?;
        let text = String::from_utf8(bytes).map_err(|_| damaged())?;
        Settings::decode(&text).ok_or_else(damaged)
    }

    /// Keeps what the owner has set.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn write_settings(&self, settings: Settings) -> Result<(), HomeError> {
        self.write_whole(SETTINGS_FILE, settings.encode().as_bytes())
    }

    /// Keeps a device that is being made, durably: from now on a join that is ended can be taken up again.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn write_joining(&self, joining: &Joining) -> Result<(), HomeError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(8192));
        bytes.extend_from_slice(JOINING_MAGIC);
        bytes.extend_from_slice(&joining.mesh.0);
        bytes.extend_from_slice(joining.keys.to_bytes().as_slice());
        bytes.push(u8::try_from(joining.name.len()).expect("a name has at most 64 bytes"));
        bytes.extend_from_slice(joining.name.as_bytes());
        let conversation = joining
            .conversation
            .as_ref()
            .map_or(&[][..], SecretBytes::expose);
        let len = u32::try_from(conversation.len()).expect("a conversation is a few KiB");
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(conversation);
        let sum = joining_checksum(&bytes);
        bytes.extend_from_slice(&sum);
        self.write_whole(JOINING_FILE, &bytes)
    }

    /// The device that is being made here, if one is.
    ///
    /// # Errors
    /// [`HomeError::Damaged`], [`HomeError::Io`].
    pub fn joining(&self) -> Result<Option<Joining>, HomeError> {
        let path = self.path.join(JOINING_FILE);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(HomeError::Io { path, source }),
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(8192));
        if let Err(source) = file.take(JOINING_BYTES_MAX + 1).read_to_end(&mut bytes) {
            return Err(HomeError::Io { path, source });
        }
        parse_joining(&bytes)
            .map(Some)
            .ok_or(HomeError::Damaged { path })
    }

    /// Removes what was kept of a device that was being made: it is in, or it will not be.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn forget_joining(&self) -> Result<(), HomeError> {
        for name in [JOINING_FILE.to_owned(), format!("{JOINING_FILE}.new")] {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(HomeError::Io { path, source }),
            }
        }
        Ok(())
    }

    /// Replaces a small file whole: temporary name, fsync, rename, folder fsync.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn write_whole(&self, name: &str, bytes: &[u8]) -> Result<(), HomeError> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}.new"));
        let write = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            fs::File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| HomeError::Io {
            path: path.clone(),
            source,
        })
    }

    /// Replaces a small file whole, sealed under the device's own key: what it remembers of others is nobody else's business.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn write_sealed(
        &self,
        name: &str,
        keys: &DeviceKeys,
        rng: &mut Rng,
        plain: &[u8],
    ) -> Result<(), HomeError> {
        let nonce = rng.bytes::<24>();
        let sealed = side_cipher(keys)
            .encrypt(
                &XNonce::from(nonce),
                Payload {
                    msg: plain,
                    aad: name.as_bytes(),
                },
            )
            .expect("a buffer that fits memory can be sealed");
        self.write_whole(name, &[nonce.as_slice(), &sealed].concat())
    }

    /// Reads such a file; `None` if there is none or it is not what was written (it holds nothing that cannot be learnt again).
    pub fn read_sealed(&self, name: &str, keys: &DeviceKeys) -> Option<Vec<u8>> {
        self.read_sealed_strictly(name, keys, SIDE_FILE_BYTES_MAX)
            .ok()
            .flatten()
    }

    /// Reads such a file, of at most so many bytes, whose loss would matter; `None` only if there is none.
    ///
    /// # Errors
    /// [`HomeError::SideDamaged`], [`HomeError::Io`].
    pub fn read_sealed_strictly(
        &self,
        name: &str,
        keys: &DeviceKeys,
        bytes_max: u64,
    ) -> Result<Option<Vec<u8>>, HomeError> {
        let path = self.path.join(name);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(HomeError::Io { path, source }),
        };
        let mut bytes = Vec::new();
        if let Err(source) = file.take(bytes_max + 1).read_to_end(&mut bytes) {
            return Err(HomeError::Io { path, source });
        }
        let opened = bytes
            .split_first_chunk::<24>()
            .filter(|_| bytes.len() as u64 <= bytes_max)
            .and_then(|(nonce, sealed)| {
                let payload = Payload {
                    msg: sealed,
                    aad: name.as_bytes(),
                };
                side_cipher(keys)
                    .decrypt(&XNonce::from(*nonce), payload)
                    .ok()
            });
        opened.map(Some).ok_or(HomeError::SideDamaged { path })
    }
}

fn side_cipher(keys: &DeviceKeys) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(keys.local_secret("kith side file 1").expose().into())
}

fn checksum(bytes: &[u8]) -> [u8; 16] {
    let whole = kith_object::key::derive("kith key file 1", bytes);
    let mut sum = [0; 16];
    sum.copy_from_slice(whole.split_at(16).0);
    sum
}

fn joining_checksum(bytes: &[u8]) -> [u8; 16] {
    let whole = kith_object::key::derive("kith joining file 1", bytes);
    let mut sum = [0; 16];
    sum.copy_from_slice(whole.split_at(16).0);
    sum
}

fn parse_joining(bytes: &[u8]) -> Option<Joining> {
    let (body, sum) = bytes.split_last_chunk::<16>()?;
    if joining_checksum(body) != *sum {
        return None;
    }
    let rest = body.strip_prefix(JOINING_MAGIC)?;
    let (mesh, rest) = rest.split_first_chunk::<32>()?;
    let (keys, rest) = rest.split_first_chunk::<64>()?;
    let (len, rest) = rest.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*len))?;
    let (len, conversation) = rest.split_first_chunk::<4>()?;
    if usize::try_from(u32::from_le_bytes(*len)) != Ok(conversation.len()) {
        return None;
    }
    Some(Joining {
        mesh: SpaceId(*mesh),
        keys: DeviceKeys::from_bytes(keys),
        name: String::from_utf8(name.to_vec()).ok()?,
        conversation: (!conversation.is_empty()).then(|| SecretBytes::new(conversation.to_vec())),
    })
}

fn parse_identity(bytes: &[u8]) -> Option<Identity> {
    if bytes.len() != KEY_FILE_BYTES {
        return None;
    }
    let (body, sum) = bytes.split_last_chunk::<16>()?;
    if checksum(body) != *sum {
        return None;
    }
    let rest = body.strip_prefix(KEY_MAGIC)?;
    let (space, rest) = rest.split_first_chunk::<32>()?;
    let (keys, rest) = rest.split_first_chunk::<64>()?;
    let mut door: [u8; 32] = rest.try_into().ok()?;
    let identity = Identity {
        space: SpaceId(*space),
        keys: DeviceKeys::from_bytes(keys),
        door: Secret::new(door),
    };
    door.zeroize();
    Some(identity)
}

/// Random bytes of the operating system, to seed a generator with.
///
/// # Panics
/// If the system has none to give: nothing safe can be done then.
pub fn fresh_rng() -> Rng {
    let mut seed = Zeroizing::new([0; 32]);
    let mut filled = 0;
    while let Some(rest) = seed.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .expect("the operating system gives random bytes");
    }
    Rng::from_seed(*seed)
}

/// The wall clock, read here and nowhere in the cores.
pub fn now() -> kith_object::time::Time {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    kith_object::time::Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let mut rng = Rng::from_seed([3; 32]);
        Identity {
            space: SpaceId([9; 32]),
            keys: DeviceKeys::generate(&mut rng),
            door: Secret::generate(&mut rng),
        }
    }

    #[test]
    fn identity_survives_and_every_flipped_bit_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().join("deep/home"));
        assert!(matches!(home.identity(), Err(HomeError::Missing { .. })));
        home.prepare().unwrap();
        let written = identity();
        home.write_identity(&written).unwrap();
        let read = home.identity().unwrap();
        assert_eq!(
            (read.space, read.keys.id()),
            (written.space, written.keys.id())
        );
        assert!(read.door == written.door);
        assert!(matches!(home.prepare(), Err(HomeError::Exists { .. })));
        assert!(matches!(
            home.write_identity(&written),
            Err(HomeError::Exists { .. })
        ));

        let path = home.path().join(KEY_FILE);
        let good = fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse_identity(&bad).is_none(), "bit {bit}");
        }
        assert!(parse_identity(&good[..good.len() - 1]).is_none());
    }

    #[test]
    fn settings_survive_and_every_flipped_bit_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        assert_eq!(home.settings().unwrap(), Settings::default());
        let set = Settings {
            quota: Some(200 << 30),
            cache: Some(8 << 30),
            keep_free: Some(5 << 30),
            durability: Durability::Relaxed,
        };
        home.write_settings(set).unwrap();
        assert_eq!(home.settings().unwrap(), set);
        let path = folder.path().join(SETTINGS_FILE);
        let good = fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bad).unwrap();
            let read = home.settings();
            assert!(
                matches!(read, Err(HomeError::SettingsDamaged { .. })),
                "bit {bit}: {read:?}"
            );
        }
    }

    #[test]
    fn device_being_made_survives_and_every_flipped_bit_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        assert!(home.joining().unwrap().is_none());
        for conversation in [None, Some(SecretBytes::new(vec![7; 3000]))] {
            let written = Joining {
                mesh: SpaceId([4; 32]),
                keys: identity().keys,
                name: "attic".to_owned(),
                conversation,
            };
            home.write_joining(&written).unwrap();
            let read = home.joining().unwrap().unwrap();
            assert_eq!(
                (read.mesh, read.keys.id(), &read.name, &read.conversation),
                (
                    written.mesh,
                    written.keys.id(),
                    &written.name,
                    &written.conversation
                )
            );
        }
        let path = folder.path().join(JOINING_FILE);
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "nobody else reads it");
        let good = fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse_joining(&bad).is_none(), "bit {bit}");
        }
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(matches!(home.joining(), Err(HomeError::Damaged { .. })));
        home.forget_joining().unwrap();
        home.forget_joining().unwrap();
        assert!(home.joining().unwrap().is_none());
    }

    #[test]
    fn sealed_side_file_is_read_by_its_device_only() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let mut rng = fresh_rng();
        let keys = identity().keys;
        home.write_sealed("peers", &keys, &mut rng, b"addresses")
            .unwrap();
        assert_eq!(
            home.read_sealed("peers", &keys).as_deref(),
            Some(&b"addresses"[..])
        );
        assert_eq!(
            home.read_sealed("peers", &DeviceKeys::generate(&mut rng)),
            None
        );
        assert_eq!(home.read_sealed("other", &keys), None);
        // As large as an address book gets, whatever others tell.
        let mut book = kith_core::book::Book::default();
        let addrs = |n: u64| (0..16).map(move |i| format!("{n}/{i:0>250}"));
        for n in 0..2000_u64 {
            let device = kith_object::id::DeviceId(blake3::hash(&n.to_le_bytes()).into());
            let addrs: Vec<String> = addrs(n).collect();
            book.learn(kith_object::time::Time(0), device, &addrs, false);
        }
        let book = book.encode();
        assert!(book.len() > 4_000_000);
        home.write_sealed("peers", &keys, &mut rng, &book).unwrap();
        assert_eq!(home.read_sealed("peers", &keys), Some(book.to_vec()));
    }
}
