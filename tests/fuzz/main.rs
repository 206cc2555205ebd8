//! Every parser of stored bytes, and of bytes from outside, on bytes that are not what they should be.
//!
//! Each target runs on the inputs in `corpus/`, then on seeded mutations of them. An input that breaks a law is printed with its seed, made smaller, and
//! put into `corpus/`, where it is the first of the next run: fix the parser and commit it. Each input runs under a bound on memory too, so that no length
//! field buys more than it is worth.
//!
//! - `KITH_LARGE=1` runs each target a million times.
//! - `KITH_FUZZ=car` runs that target only, `KITH_FUZZ_SEED=7` others than the usual mutations.
//! - `KITH_BLESS=1` makes the seeds of the corpus anew, from `tests/vectors/` and from real objects.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kith_tests::repository;
use peak_alloc::PeakAlloc;

mod home;
mod mutation;
mod seeds;
mod targets;

use mutation::{Chance, mutated};
use targets::Target;

/// All of them.
fn targets() -> impl Iterator<Item = &'static Target> {
    targets::all().chain(home::TARGETS)
}

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Mutations of an ordinary target; slower ones get their share.
const RUNS: u64 = 6_000;
/// The same, if there is time.
const RUNS_LARGE: u64 = 1_000_000;
/// Fewest of any target.
const RUNS_MIN: u64 = 200;
/// Tries to make an input smaller that breaks a law.
const SHRINKS: usize = 2_000;

/// One at a time: the memory that is measured is that of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn corpus() -> PathBuf {
    repository().join("tests/fuzz/corpus")
}

/// Inputs of a target by file name, those that once broke a law first.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let Ok(files) = fs::read_dir(corpus().join(target)) else {
        return Vec::new();
    };
    let mut inputs: Vec<(String, Vec<u8>)> = files
        .map(|file| {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            (name, fs::read(file.path()).unwrap())
        })
        .collect();
    inputs.sort();
    inputs
}

/// What the target says to these bytes; how a law is broken otherwise.
fn tried(target: &Target, bytes: &[u8]) -> Result<bool, String> {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    let held = MEMORY.peak_usage().saturating_sub(before);
    let taken = outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied());
        text.unwrap_or("it panics").to_owned()
    })?;
    let (each, beside) = target.memory;
    let bound = beside + each * bytes.len();
    if held > bound {
        let len = bytes.len();
        return Err(format!(
            "{held} bytes are held at once for {len} of input, {bound} are allowed"
        ));
    }
    Ok(taken)
}

/// A smaller input that breaks a law too.
fn shrunk(target: &Target, mut bytes: Vec<u8>) -> Vec<u8> {
    let mut tries = 0;
    let mut step = bytes.len() / 2;
    while step > 0 && tries < SHRINKS {
        let mut at = 0;
        while at < bytes.len() && tries < SHRINKS {
            let mut less = bytes.clone();
            less.drain(at..(at + step).min(bytes.len()));
            tries += 1;
            if tried(target, &less).is_err() {
                bytes = less;
            } else {
                at += step;
            }
        }
        step /= 2;
    }
    bytes
}

fn wanted(target: &Target) -> bool {
    std::env::var("KITH_FUZZ").map_or(true, |only| only == target.name)
}

fn fuzz(target: &Target) -> Result<(), String> {
    let inputs = inputs(target.name);
    if inputs.is_empty() {
        return Err("it has no corpus; make the seeds with KITH_BLESS=1".into());
    }
    let mut taken = 0;
    // What is made once is made before memory is measured.
    let _ = catch_unwind(AssertUnwindSafe(|| (target.run)(&inputs[0].1)));
    for (name, bytes) in &inputs {
        match tried(target, bytes) {
            Ok(sound) => taken += usize::from(sound),
            Err(broken) => return Err(format!("corpus/{}/{name}: {broken}", target.name)),
        }
    }
    // A target that takes nothing tests only how it refuses.
    if taken == 0 || taken == inputs.len() {
        return Err(format!(
            "{taken} of {} inputs are taken; some should be, and some refused",
            inputs.len()
        ));
    }
    let large = std::env::var_os("KITH_LARGE").is_some();
    let runs = if large { RUNS_LARGE } else { RUNS };
    let runs = (runs / u64::from(target.cost)).max(RUNS_MIN);
    let first = match std::env::var("KITH_FUZZ_SEED") {
        Ok(seed) => seed.parse::<u64>().unwrap(),
        Err(_) => 1,
    };
    for seed in first..first + runs {
        let mut chance = Chance::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let one = &inputs[chance.below(inputs.len())].1;
        let other = &inputs[chance.below(inputs.len())].1;
        let bytes = mutated(&mut chance, one, other);
        if let Err(broken) = tried(target, &bytes) {
            let small = shrunk(target, bytes);
            let name = format!("broke-{}", blake3::hash(&small).to_hex().split_at(12).0);
            let folder = corpus().join(target.name);
            fs::write(folder.join(&name), &small).unwrap();
            return Err(format!(
                "seed {seed}: {broken}\nmade smaller and put into tests/fuzz/corpus/{}/{name}: {:02x?}",
                target.name,
                &small[..small.len().min(200)]
            ));
        }
    }
    Ok(())
}

#[test]
fn broken_laws_are_seen() {
    let _alone = alone();
    let short = Target::new("short", |bytes| {
        assert!(bytes.len() < 3, "too long");
        true
    });
    assert_eq!(tried(&short, b"ab"), Ok(true));
    assert_eq!(tried(&short, b"abc"), Err("too long".to_owned()));
    assert_eq!(shrunk(&short, vec![7; 100]).len(), 3);
    let greedy = Target::new("greedy", |bytes| {
        std::hint::black_box(Vec::<u8>::with_capacity(bytes.len() << 20)).is_empty()
    });
    assert_eq!(tried(&greedy, b""), Ok(true));
    let held = tried(&greedy, b"x").unwrap_err();
    assert!(held.contains("1048576 bytes are held at once"), "{held}");
}

#[test]
fn no_parser_breaks_a_law_whatever_the_bytes() {
    let _alone = alone();
    let mut broken = Vec::new();
    for target in targets().filter(|target| wanted(target)) {
        if let Err(how) = fuzz(target) {
            broken.push(format!("{}: {how}", target.name));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
}

#[test]
fn seeds_of_the_corpus_are_those_that_are_made() {
    let _alone = alone();
    let made = seeds::all();
    let bless = std::env::var_os("KITH_BLESS").is_some_and(|value| value == "1");
    let mut known = BTreeSet::new();
    for target in targets() {
        assert!(known.insert(target.name), "two targets {}", target.name);
        let seeds = made.get(target.name).cloned().unwrap_or_default();
        let folder = corpus().join(target.name);
        let there = inputs(target.name);
        let there = there
            .into_iter()
            .filter(|(name, _)| name.starts_with("seed-"));
        let there: BTreeMap<String, Vec<u8>> = there.collect();
        if bless {
            fs::create_dir_all(&folder).unwrap();
            for name in there.keys().filter(|name| !seeds.contains_key(*name)) {
                fs::remove_file(folder.join(name)).unwrap();
            }
            for (name, bytes) in &seeds {
                fs::write(folder.join(name), bytes).unwrap();
            }
        } else {
            assert!(
                there == seeds,
                "the seeds of {} are others (KITH_BLESS=1 takes the new ones over)",
                target.name
            );
        }
    }
    for target in made.keys() {
        assert!(known.contains(target.as_str()), "no target {target}");
    }
    for folder in fs::read_dir(corpus()).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(name.as_str()), "no target {name}");
    }
}
