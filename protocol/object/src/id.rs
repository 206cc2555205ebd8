//! Names of things: blocks, devices, spaces, entries, epochs, packs, inodes.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use multihash::Multihash;
use sha2::{Digest, Sha256};

/// Multicodec of raw bytes.
const RAW: u64 = 0x55;
/// Multihash code of BLAKE3.
const BLAKE3: u64 = 0x1e;
/// Multihash code of SHA2-256.
const SHA2_256: u64 = 0x12;
/// Longest binary CID accepted; Kubo ignores longer ones too.
pub const CID_BYTES_MAX: usize = 128;

/// The content identifier of a block.
///
/// Blocks of ours are CIDv1, raw, BLAKE3-256; any other CID stands for something of the IPFS world.
///
/// Spec: `protocol/spec/ids.md`, "CID".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cid(cid::Cid);

/// Why bytes or text are not a CID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidError {
    /// Not the form of a CID at all.
    #[error("not a content identifier")]
    Malformed,
    /// Longer than [`CID_BYTES_MAX`].
    #[error("content identifier longer than {CID_BYTES_MAX} bytes")]
    TooLong,
}

impl Cid {
    /// The CID of a block of ours: CIDv1, raw, BLAKE3-256 of its bytes.
    pub fn of_block(block: &[u8]) -> Self {
        Self::from_digest(*blake3::hash(block).as_bytes())
    }

    /// The CID with that BLAKE3-256 digest.
    pub fn from_digest(digest: [u8; 32]) -> Self {
        let hash = Multihash::wrap(BLAKE3, &digest).expect("32 bytes fit a multihash of 64");
        Self(cid::Cid::new_v1(RAW, hash))
    }

    /// The BLAKE3-256 digest, if this names a block of ours.
    pub fn digest(&self) -> Option<[u8; 32]> {
        let ours = self.0.version() == cid::Version::V1
            && self.0.codec() == RAW
            && self.0.hash().code() == BLAKE3;
        if ours {
            self.0.hash().digest().try_into().ok()
        } else {
            None
        }
    }

    /// The SHA2-256 digest, if this names a block by it, as all that is public is named.
    pub fn public_digest(&self) -> Option<[u8; 32]> {
        let hash = self.0.hash();
        let digest = hash.digest().try_into().ok();
        digest.filter(|_| hash.code() == SHA2_256)
    }

    /// Whether the block is bytes that lead to no others.
    pub fn is_raw(&self) -> bool {
        self.0.codec() == RAW
    }

    /// The binary form.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_bytes()
    }

    /// Reads the binary form.
    ///
    /// # Errors
    /// [`CidError`] if the bytes are not exactly one CID in its shortest form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CidError> {
        if bytes.len() > CID_BYTES_MAX {
            return Err(CidError::TooLong);
        }
        let cid = cid::Cid::try_from(bytes).map_err(|_| CidError::Malformed)?;
        if cid.to_bytes() == bytes {
            Ok(Self(cid))
        } else {
            Err(CidError::Malformed)
        }
    }

    /// Builds a CID from the four numbers of a Bitswap prefix and the data, hashing it.
    ///
    /// `None` if the hash function is not one we compute (BLAKE3-256, SHA2-256).
    pub fn from_prefix(
        version: u64,
        codec: u64,
        hash: u64,
        hash_len: u64,
        data: &[u8],
    ) -> Option<Self> {
        if hash_len != 32 {
            return None;
        }
        let digest: [u8; 32] = match hash {
            BLAKE3 => *blake3::hash(data).as_bytes(),
            SHA2_256 => Sha256::digest(data).into(),
            _ => return None,
        };
        let multihash = Multihash::wrap(hash, &digest).ok()?;
        match version {
            0 => cid::Cid::new_v0(multihash).ok().map(Self),
            1 => Some(Self(cid::Cid::new_v1(codec, multihash))),
            _ => None,
        }
    }

    /// The four numbers of a Bitswap prefix: version, codec, hash function, digest length.
    pub fn prefix(&self) -> (u64, u64, u64, u64) {
        let version = match self.0.version() {
            cid::Version::V0 => 0,
            cid::Version::V1 => 1,
        };
        (
            version,
            self.0.codec(),
            self.0.hash().code(),
            u64::from(self.0.hash().size()),
        )
    }

    /// Whether these bytes are what the CID names.
    pub fn verifies(&self, data: &[u8]) -> bool {
        let (version, codec, hash, len) = self.prefix();
        Self::from_prefix(version, codec, hash, len, data) == Some(*self)
    }

    /// The last eight characters, for logs.
    pub fn short(&self) -> String {
        let text = self.to_string();
        text.chars()
            .skip(text.chars().count().saturating_sub(8))
            .collect()
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cid({self})")
    }
}

impl FromStr for Cid {
    type Err = CidError;

    fn from_str(text: &str) -> Result<Self, CidError> {
        if text.len() > 2 * CID_BYTES_MAX {
            return Err(CidError::TooLong);
        }
        let cid = cid::Cid::try_from(text).map_err(|_| CidError::Malformed)?;
        Self::from_bytes(&cid.to_bytes())
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl $name {
            /// The first eight hexadecimal digits, for logs.
            pub fn short(&self) -> String {
                HEXLOWER.encode(&self.0).chars().take(8).collect()
            }
        }
    };
}

macro_rules! hex_name {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        name!($(#[$doc])* $name, $len);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER.encode(&self.0))
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| NameError)?;
                Ok(Self(bytes.try_into().map_err(|_| NameError)?))
            }
        }
    };
}

/// The text is not the name of such a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a name of this kind")]
pub struct NameError;

name!(
    /// A device, named by its Ed25519 public key; prints as the libp2p peer id of that key.
    ///
    /// Spec: `protocol/spec/ids.md`, "Device".
    DeviceId,
    32
);
hex_name!(
    /// A space: the hash of its genesis record.
    SpaceId,
    32
);
hex_name!(
    /// An entry: the hash of its header.
    EntryId,
    32
);
hex_name!(
    /// An epoch: a commitment to its keys, its space and its parents.
    EpochId,
    32
);
hex_name!(
    /// A pack: the BLAKE3 of the whole file.
    PackId,
    32
);
hex_name!(
    /// What a name in the tree stands for, whatever it is called and wherever it moves. All zero: the root folder.
    InodeId,
    16
);

/// What stands before an Ed25519 key in a libp2p peer id: identity multihash of 36 bytes, key type 1, 32 bytes.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl DeviceId {
    /// The bytes of the libp2p peer id.
    pub fn to_peer_id_bytes(&self) -> [u8; 38] {
        let mut bytes = [0; 38];
        let (prefix, key) = bytes.split_at_mut(PEER_ID_PREFIX.len());
        prefix.copy_from_slice(&PEER_ID_PREFIX);
        key.copy_from_slice(&self.0);
        bytes
    }

    /// The device of that libp2p peer id; `None` unless it holds an Ed25519 key.
    pub fn from_peer_id_bytes(bytes: &[u8]) -> Option<Self> {
        let key = bytes.strip_prefix(&PEER_ID_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_peer_id_bytes()).into_string())
    }
}

impl FromStr for DeviceId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() > 64 {
            return Err(NameError);
        }
        let bytes = bs58::decode(text).into_vec().map_err(|_| NameError)?;
        Self::from_peer_id_bytes(&bytes).ok_or(NameError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cid_of_empty_block_is_the_known_one() {
        let cid = Cid::of_block(b"");
        assert_eq!(HEXLOWER.encode(&cid.to_bytes()[..4]), "01551e20");
        assert!(cid.verifies(b""));
        assert!(!cid.verifies(b"x"));
        assert_eq!(cid.to_string().parse::<Cid>(), Ok(cid));
    }

    #[test]
    fn foreign_cid_is_kept_but_is_not_ours() {
        let cid: Cid = "QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n"
            .parse()
            .unwrap();
        assert_eq!(cid.digest(), None);
        assert_eq!(Cid::from_bytes(&cid.to_bytes()), Ok(cid));
    }

    #[test]
    fn device_prints_as_peer_id() {
        let device = DeviceId([7; 32]);
        let text = device.to_string();
        assert!(text.starts_with("12D3KooW"), "{text}");
        assert_eq!(text.parse(), Ok(device));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(cid) = Cid::from_bytes(&bytes) {
                prop_assert_eq!(cid.to_bytes(), bytes.clone());
            }
            let _ = String::from_utf8_lossy(&bytes).parse::<Cid>();
            let _ = String::from_utf8_lossy(&bytes).parse::<DeviceId>();
        }
    }
}
