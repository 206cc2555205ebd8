//! Names of things: CIDs, identifiers as text, paths, words.

use kith_crdt::names::{TreePath, VersionId};
use kith_object::id::{Cid, DeviceId, EntryId, EpochId, InodeId, PackId, SpaceId};
use kith_object::key::Words;
use kith_protocol::pairing::{DeviceName, TicketId};

use super::Target;

pub(super) const TARGETS: &[Target] = &[
    Target::new("cid", cid),
    Target::new("ids", ids),
    Target::new("path", path),
    Target::new("words", words),
];

fn cid(bytes: &[u8]) -> bool {
    let binary = Cid::from_bytes(bytes).ok();
    let text = std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse::<Cid>().ok());
    if let Some(cid) = binary {
        assert_eq!(cid.to_bytes(), bytes, "a CID has one binary form");
    }
    for cid in binary.into_iter().chain(text) {
        assert_eq!(Cid::from_bytes(&cid.to_bytes()).ok(), Some(cid));
        assert_eq!(cid.to_string().parse().ok(), Some(cid));
        let (version, codec, hash, len) = cid.prefix();
        if let Some(named) = Cid::from_prefix(version, codec, hash, len, b"data") {
            assert_eq!(named.prefix(), cid.prefix());
            assert!(named.verifies(b"data"));
        }
    }
    binary.is_some() || text.is_some()
}

fn ids(bytes: &[u8]) -> bool {
    let mut taken = false;
    if let Some(device) = DeviceId::from_peer_id_bytes(bytes) {
        assert_eq!(device.to_peer_id_bytes(), bytes);
        taken = true;
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return taken;
    };
    let forms = [
        text.parse::<SpaceId>().ok().map(|id| id.to_string()),
        text.parse::<EntryId>().ok().map(|id| id.to_string()),
        text.parse::<EpochId>().ok().map(|id| id.to_string()),
        text.parse::<PackId>().ok().map(|id| id.to_string()),
        text.parse::<InodeId>().ok().map(|id| id.to_string()),
        text.parse::<TicketId>().ok().map(|id| id.to_string()),
        text.parse::<VersionId>().ok().map(|id| id.to_string()),
        DeviceName::new(text)
            .ok()
            .map(|name| name.as_str().to_owned()),
    ];
    for form in forms.into_iter().flatten() {
        assert_eq!(form, text, "a name has one form");
        taken = true;
    }
    taken
}

fn path(bytes: &[u8]) -> bool {
    let Ok(path) = TreePath::parse(bytes) else {
        return false;
    };
    assert_eq!(TreePath::parse(&path.to_bytes()).ok().as_ref(), Some(&path));
    let mut built = TreePath::root();
    for name in path.names() {
        let child = built.child(name).expect("a name of a path is one");
        assert_eq!(child.parent().as_ref(), Some(&built));
        assert_eq!(child.name(), Some(name));
        assert!(child.starts_with(&built) && path.starts_with(&child));
        built = child;
    }
    assert_eq!(built, path);
    true
}

fn words(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let Ok(words) = Words::parse(text) else {
        return false;
    };
    let phrase = words.phrase();
    let again = Words::parse(&phrase).expect("words that were read");
    assert_eq!(*again.phrase(), *phrase);
    true
}
