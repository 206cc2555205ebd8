//! The targets under libFuzzer, which prefers inputs that reach new code. `run` beside this file builds and starts it.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

#[path = "../targets/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the seeds are made elsewhere")]
mod targets;

/// The one that is named in `KITH_FUZZ`.
fn target() -> fn(&[u8]) -> bool {
    static TARGET: OnceLock<fn(&[u8]) -> bool> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let name = std::env::var("KITH_FUZZ").unwrap_or_default();
        let found = targets::all().find(|target| target.name == name);
        let names: Vec<&str> = targets::all().map(|target| target.name).collect();
        match found {
            Some(target) => target.run,
            None => panic!("KITH_FUZZ names no target, but {name:?}; there are {names:?}"),
        }
    })
}

fuzz_target!(|bytes: &[u8]| {
    target()(bytes);
});
