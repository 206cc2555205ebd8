//! Which commit is built, so that a failed run of the simulator can say so.

use std::process::Command;

fn main() {
    // Each commit writes there; where there is no repository, nothing does.
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../.git/logs/HEAD");
    let said = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output();
    let said = said.ok().filter(|said| said.status.success());
    let commit = said.and_then(|said| String::from_utf8(said.stdout).ok());
    let commit = commit.as_deref().map_or("unknown", str::trim);
    println!("cargo:rustc-env=KITH_COMMIT={commit}");
}
