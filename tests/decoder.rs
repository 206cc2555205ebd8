//! The formats, opened by a program in another language that was written from `protocol/spec/` alone: `tests/decoder.py`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use kith_tests::{repository, say_loudly};

#[test]
fn decoder_written_from_the_spec_alone_opens_the_vectors() {
    let script = repository().join("tests/decoder.py");
    let found = Command::new("python3").arg("-V").output();
    if !found.is_ok_and(|output| output.status.success()) {
        say_loudly(
            "NOT TESTED: the formats, against an independent decoder; there is no python3 on this machine",
        );
        return;
    }
    let output = Command::new("python3")
        .arg("-B")
        .arg(&script)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for line in said.lines().filter(|line| line.starts_with("SKIPPED")) {
        say_loudly(line);
    }
}

#[test]
fn decoder_notices_what_is_wrong() {
    if Command::new("python3").arg("-V").output().is_err() {
        return;
    }
    // The same vectors with one digit changed in what a good one is expected to hold.
    let folder = tempfile::tempdir().unwrap();
    let vectors = repository().join("tests/vectors");
    let text = std::fs::read_to_string(vectors.join("seal.json")).unwrap();
    let (before, after) = text.split_once("\"data\": \"").unwrap();
    let flipped = if after.starts_with('0') { '1' } else { '0' };
    let changed = if after.starts_with('"') {
        format!("{before}\"data\": \"00{after}")
    } else {
        format!("{before}\"data\": \"{flipped}{}", after.get(1..).unwrap())
    };
    std::fs::write(folder.path().join("seal.json"), changed).unwrap();
    let script = repository().join("tests/decoder.py");
    let output = Command::new("python3")
        .arg("-B")
        .arg(&script)
        .arg(folder.path())
        .arg("seal")
        .output()
        .unwrap();
    assert!(
        !output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
