//! The datagrams: a sealed notice inside an mDNS message.
//!
//! Spec: `protocol/spec/lan.md`, "Datagram".

use std::net::Ipv4Addr;

use bytes::Bytes;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use kith_object::id::DeviceId;
use kith_object::key::{Rng, Secret};

/// Largest datagram that is looked at: what fits an Ethernet frame.
pub const DATAGRAM_BYTES_MAX: usize = 1472;
/// The name all notices stand under, as DNS labels.
const NAME: [&[u8]; 3] = [b"_kith", b"_udp", b"local"];
/// Before the sealed bytes in the TXT string: the key of a key-value pair.
const TXT_KEY: &[u8] = b"k=";
/// The form of the sealed bytes.
const FORM: u8 = 1;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
/// Kind, device, IP address, four ports.
const NOTICE_BYTES: usize = 1 + 32 + 4 + 8;
/// Form, nonce, notice, tag.
const SEALED_BYTES: usize = 1 + NONCE_BYTES + NOTICE_BYTES + TAG_BYTES;
/// Seconds that programs which keep what they hear may keep it; we keep nothing.
const TTL_S: u32 = 10;
/// Response, authoritative.
const FLAGS: u16 = 0x8400;
const TYPE_TXT: u16 = 16;
const CLASS_IN: u16 = 1;
/// The bit of a class that mDNS has made into "flush your cache".
const CLASS_FLUSH: u16 = 0x8000;
/// Questions and records of a datagram that are looked at.
const RECORDS_MAX: u16 = 16;
/// Sealed notices of a datagram that are tried to open.
const NOTICES_MAX: usize = 4;
/// Pointers followed in one name; each points further to the front.
const POINTERS_MAX: usize = 8;
/// Longest name, by RFC 1035.
const NAME_BYTES_MAX: usize = 255;

/// What seals and opens the notices of one mesh: whoever has its words, or has ever read its `access`, has it.
#[derive(Clone)]
pub struct LanKey(Secret);

impl LanKey {
    /// The key of the mesh with that root key.
    pub fn of(root: &DeviceId) -> Self {
        Self(Secret::new(kith_object::key::derive(
            "kith lan key 1",
            &root.0,
        )))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.0.expose().into())
    }
}

/// TCP and UDP port; 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ports {
    /// For TCP.
    pub tcp: u16,
    /// For QUIC.
    pub udp: u16,
}

/// What one says to all of its mesh in the local network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A device is here.
    Here {
        /// Whether whoever hears this should say where it is.
        answer: bool,
        /// Which device.
        device: DeviceId,
        /// Its address in this network.
        addr: Ipv4Addr,
        /// Where devices of the mesh connect.
        inside: Ports,
        /// Where newcomers knock.
        door: Ports,
    },
    /// One who has only the words looks for a door.
    Seek,
}

impl Notice {
    fn to_bytes(self) -> [u8; NOTICE_BYTES] {
        let mut bytes = Vec::with_capacity(NOTICE_BYTES);
        match self {
            Self::Here {
                answer,
                device,
                addr,
                inside,
                door,
            } => {
                bytes.push(if answer { 2 } else { 1 });
                bytes.extend_from_slice(&device.0);
                bytes.extend_from_slice(&addr.octets());
                for port in [inside.tcp, inside.udp, door.tcp, door.udp] {
                    bytes.extend_from_slice(&port.to_le_bytes());
                }
            }
            // As long as the others: from outside one cannot be told from the other.
            Self::Seek => {
                bytes.push(3);
                bytes.resize(NOTICE_BYTES, 0);
            }
        }
        bytes.try_into().expect("both kinds have that length")
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        if bytes.len() != NOTICE_BYTES {
            return None;
        }
        let (device, rest) = rest.split_first_chunk::<32>()?;
        let (addr, rest) = rest.split_first_chunk::<4>()?;
        let mut ports = rest
            .as_chunks::<2>()
            .0
            .iter()
            .map(|port| u16::from_le_bytes(*port));
        let mut pair = || {
            Some(Ports {
                tcp: ports.next()?,
                udp: ports.next()?,
            })
        };
        match kind {
            1 | 2 => Some(Self::Here {
                answer: *kind == 2,
                device: DeviceId(*device),
                addr: Ipv4Addr::from(*addr),
                inside: pair()?,
                door: pair()?,
            }),
            3 => bytes
                .iter()
                .skip(1)
                .all(|byte| *byte == 0)
                .then_some(Self::Seek),
            _ => None,
        }
    }
}

/// Seals a notice and wraps it as a datagram. No two are alike, whatever they say.
pub fn encode(key: &LanKey, rng: &mut Rng, notice: Notice) -> Bytes {
    let nonce = rng.bytes::<NONCE_BYTES>();
    let sealed = key
        .cipher()
        .encrypt(
            &XNonce::from(nonce),
            Payload {
                msg: &notice.to_bytes(),
                aad: &[FORM],
            },
        )
        .expect("a few bytes can be sealed");
    let mut out = Vec::with_capacity(160);
    for half in [0, FLAGS, 0, 1, 0, 0] {
        out.extend_from_slice(&half.to_be_bytes());
    }
    for label in NAME {
        push_string(&mut out, label);
    }
    out.push(0);
    out.extend_from_slice(&TYPE_TXT.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out.extend_from_slice(&TTL_S.to_be_bytes());
    let text = [TXT_KEY, &[FORM], &nonce, &sealed].concat();
    let len = u16::try_from(text.len() + 1).expect("a short string");
    out.extend_from_slice(&len.to_be_bytes());
    push_string(&mut out, &text);
    out.into()
}

fn push_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(u8::try_from(text.len()).expect("a short string"));
    out.extend_from_slice(text);
}

/// The sealed notices in a datagram, still unopened; none of whatever else goes about in a network. Bounded work, whatever the bytes.
pub fn sealed_in(datagram: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    if datagram.len() <= DATAGRAM_BYTES_MAX {
        let _ = collect(datagram, &mut found);
    }
    found
}

/// Opens one of them; `None` if it is not of this mesh.
pub fn open(key: &LanKey, sealed: &[u8]) -> Option<Notice> {
    let (form, rest) = sealed.split_first()?;
    if *form != FORM || sealed.len() != SEALED_BYTES {
        return None;
    }
    let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>()?;
    let plain = key
        .cipher()
        .decrypt(
            &XNonce::from(*nonce),
            Payload {
                msg: sealed,
                aad: &[FORM],
            },
        )
        .ok()?;
    Notice::from_bytes(&plain)
}

/// `None` where the message ends early or makes no sense; what was found before that stays found.
fn collect<'a>(message: &'a [u8], found: &mut Vec<&'a [u8]>) -> Option<()> {
    let mut at = 0;
    let _id = half(message, &mut at)?;
    let flags = half(message, &mut at)?;
    // A response without an error code, of the standard kind.
    if flags & 0xf80f != 0x8000 {
        return None;
    }
    let questions = half(message, &mut at)?;
    let answers = half(message, &mut at)?;
    at = 12;
    if questions > RECORDS_MAX {
        return None;
    }
    for _ in 0..questions {
        is_ours(message, &mut at)?;
        at += 4;
    }
    for _ in 0..answers.min(RECORDS_MAX) {
        let ours = is_ours(message, &mut at)?;
        let kind = half(message, &mut at)?;
        let class = half(message, &mut at)?;
        at += 4;
        let len = usize::from(half(message, &mut at)?);
        let data = message.get(at..)?.get(..len)?;
        at += len;
        if ours && kind == TYPE_TXT && class & !CLASS_FLUSH == CLASS_IN {
            take_strings(data, found)?;
        }
        if found.len() >= NOTICES_MAX {
            return None;
        }
    }
    Some(())
}

/// The strings of TXT data that may be sealed notices.
fn take_strings<'a>(mut data: &'a [u8], found: &mut Vec<&'a [u8]>) -> Option<()> {
    while let Some((len, rest)) = data.split_first() {
        let (text, rest) = rest.split_at_checked(usize::from(*len))?;
        if let Some(sealed) = text.strip_prefix(TXT_KEY)
            && sealed.len() == SEALED_BYTES
            && found.len() < NOTICES_MAX
        {
            found.push(sealed);
        }
        data = rest;
    }
    Some(())
}

fn half(message: &[u8], at: &mut usize) -> Option<u16> {
    let bytes = message.get(*at..)?.first_chunk::<2>()?;
    *at += 2;
    Some(u16::from_be_bytes(*bytes))
}

/// Reads a name and says whether it is ours. `None` if it is no name.
fn is_ours(message: &[u8], at: &mut usize) -> Option<bool> {
    let mut wanted = NAME.iter();
    let mut same = true;
    let mut here = *at;
    let mut after = None;
    let mut pointers = 0;
    let mut name_bytes = 0;
    loop {
        let len = *message.get(here)?;
        match len {
            0 => {
                *at = after.unwrap_or(here + 1);
                return Some(same && wanted.next().is_none());
            }
            1..=63 => {
                let label = message.get(here + 1..)?.get(..usize::from(len))?;
                name_bytes += label.len() + 1;
                if name_bytes > NAME_BYTES_MAX {
                    return None;
                }
                same &= wanted
                    .next()
                    .is_some_and(|wanted| wanted.eq_ignore_ascii_case(label));
                here += 1 + label.len();
            }
            192.. => {
                let low = *message.get(here + 1)?;
                let target = usize::from(u16::from_be_bytes([len & 63, low]));
                after = after.or(Some(here + 2));
                pointers += 1;
                // Only ever to the front, so that no name runs in a circle.
                if target >= here || pointers > POINTERS_MAX {
                    return None;
                }
                here = target;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kith_object::key::Rng;
    use proptest::prelude::*;

    fn key(n: u8) -> LanKey {
        LanKey::of(&DeviceId([n; 32]))
    }

    fn here() -> Notice {
        Notice::Here {
            answer: true,
            device: DeviceId([7; 32]),
            addr: Ipv4Addr::new(192, 168, 1, 7),
            inside: Ports {
                tcp: 4100,
                udp: 4101,
            },
            door: Ports {
                tcp: 4102,
                udp: 4103,
            },
        }
    }

    fn opened(key: &LanKey, datagram: &[u8]) -> Vec<Notice> {
        sealed_in(datagram)
            .into_iter()
            .filter_map(|sealed| open(key, sealed))
            .collect()
    }

    #[test]
    fn notice_is_read_by_its_mesh_only() {
        let mut rng = Rng::from_seed([1; 32]);
        for notice in [here(), Notice::Seek] {
            let datagram = encode(&key(1), &mut rng, notice);
            assert_eq!(opened(&key(1), &datagram), [notice]);
            assert_eq!(opened(&key(2), &datagram), []);
        }
    }

    #[test]
    fn nothing_in_a_datagram_is_constant_but_its_frame() {
        let mut rng = Rng::from_seed([1; 32]);
        let one = encode(&key(1), &mut rng, here());
        let seek = encode(&key(1), &mut rng, Notice::Seek);
        assert_eq!(one.len(), seek.len(), "nobody sees who seeks");
        let two = encode(&key(1), &mut rng, here());
        let sealed = |datagram: &Bytes| sealed_in(datagram)[0].to_vec();
        let (one, two) = (sealed(&one), sealed(&two));
        let same = one.windows(8).any(|part| two.windows(8).any(|p| p == part));
        assert!(!same, "two datagrams of one device share bytes");
        for secret in [[7_u8; 32].as_slice(), &[192, 168, 1, 7]] {
            assert!(!one.windows(secret.len()).any(|part| part == secret));
        }
    }

    #[test]
    fn every_flipped_bit_of_the_sealed_part_is_noticed() {
        let datagram = encode(&key(1), &mut Rng::from_seed([1; 32]), here());
        let begin = datagram.len() - SEALED_BYTES;
        for bit in begin * 8..datagram.len() * 8 {
            let mut bad = datagram.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opened(&key(1), &bad), [], "bit {bit}");
        }
    }

    #[test]
    fn compressed_and_merged_records_are_understood() {
        let mut rng = Rng::from_seed([1; 32]);
        let (one, two) = (
            encode(&key(1), &mut rng, here()),
            encode(&key(1), &mut rng, Notice::Seek),
        );
        // As a program that repeats mDNS writes them: the second name points to the first, in capitals, and a record of others stands between.
        let mut merged = one.to_vec();
        merged[7] = 3;
        merged[13..18].copy_from_slice(b"_KITH");
        merged.extend_from_slice(&[
            3, b'x', b'y', b'z', 192, 23, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4,
        ]);
        merged.extend_from_slice(&[192, 12]);
        merged.extend_from_slice(&two[30..]);
        assert_eq!(opened(&key(1), &merged), [here(), Notice::Seek]);
    }

    #[test]
    fn hostile_messages_cost_little_and_say_nothing() {
        let datagram = encode(&key(1), &mut Rng::from_seed([1; 32]), here()).to_vec();
        // A name that points at itself, and two that point at each other.
        let mut circle = datagram[..12].to_vec();
        circle.extend_from_slice(&[192, 12, 192, 12]);
        assert!(sealed_in(&circle).is_empty());
        let mut long = datagram.clone();
        long.resize(DATAGRAM_BYTES_MAX + 1, 0);
        assert!(sealed_in(&long).is_empty());
        // Sixty-five thousand records are promised.
        let mut many = datagram.clone();
        many[4..8].copy_from_slice(&[255; 4]);
        assert!(sealed_in(&many).is_empty());
        // One TXT record full of notices: a few are tried.
        let string = datagram[datagram.len() - SEALED_BYTES - 3..].to_vec();
        let mut full = datagram[..40].to_vec();
        let strings = string.repeat(12);
        full[38..40].copy_from_slice(&u16::try_from(strings.len()).unwrap().to_be_bytes());
        full.extend_from_slice(&strings);
        assert_eq!(sealed_in(&full).len(), NOTICES_MAX);
        // Questions are none of ours, whatever they ask.
        let mut question = datagram;
        question[2] = 0;
        assert!(sealed_in(&question).is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = opened(&key(1), &bytes);
            let mut framed = encode(&key(1), &mut Rng::from_seed([1; 32]), here()).to_vec();
            framed.truncate(30);
            framed.extend_from_slice(&bytes);
            let _ = opened(&key(1), &framed);
        }

        #[test]
        fn altered_messages_never_panic(at in 0usize..130, with in any::<u8>(), cut in 0usize..130) {
            let mut bytes = encode(&key(1), &mut Rng::from_seed([1; 32]), here()).to_vec();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with;
            }
            let _ = opened(&key(1), &bytes);
            bytes.truncate(cut);
            let _ = opened(&key(1), &bytes);
        }
    }
}
