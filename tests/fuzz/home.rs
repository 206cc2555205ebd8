//! Files of the home folder, with their proofs put on. Apart from the other targets, since they need the whole node.

use std::fs;

use kith_node::config::Home;

use crate::targets::{Target, proved};

pub(crate) const TARGETS: &[Target] = &[
    // Each writes and reads a file.
    Target::new("settings", settings).costs(8),
    Target::new("identity", identity).costs(8),
    Target::new("joining", joining).costs(8),
];

/// A home of which only that file is there, in a folder that is gone at the end.
fn home(name: &str, bytes: &[u8]) -> (tempfile::TempDir, Home) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join(name), bytes).expect("write a file");
    let home = Home::at(folder.path());
    (folder, home)
}

fn other() -> (tempfile::TempDir, Home) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let home = Home::at(folder.path());
    (folder, home)
}

fn settings(body: &[u8]) -> bool {
    let proof = kith_object::key::derive("kith settings 1", body);
    let proof = data_encoding::HEXLOWER.encode(proof.split_at(16).0);
    let text = [body, b"check ", proof.as_bytes(), b"\n"].concat();
    let (_folder, home) = home("settings", &text);
    let Ok(settings) = home.settings() else {
        return false;
    };
    // Lines of later versions are passed over, so there are others that say the same.
    home.write_settings(settings).expect("write settings");
    assert_eq!(home.settings().ok(), Some(settings));
    true
}

fn identity(body: &[u8]) -> bool {
    let bytes = proved::<16>("kith key file 1", body);
    let (_folder, home) = home("device.key", &bytes);
    let Ok(identity) = home.identity() else {
        return false;
    };
    let (folder, home) = other();
    home.write_identity(&identity).expect("write a key file");
    let again = fs::read(folder.path().join("device.key")).expect("read it");
    assert!(again == bytes, "a key file has one form");
    true
}

fn joining(body: &[u8]) -> bool {
    let bytes = proved::<16>("kith joining file 1", body);
    let (_folder, home) = home("joining.key", &bytes);
    let Ok(Some(joining)) = home.joining() else {
        return false;
    };
    let (folder, home) = other();
    home.write_joining(&joining).expect("write a joining file");
    let again = fs::read(folder.path().join("joining.key")).expect("read it");
    assert!(again == bytes, "a joining file has one form");
    true
}
