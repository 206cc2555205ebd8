//! The README's code map is true, what is called pure is pure, and every reference to the spec leads somewhere.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use kith_tests::repository;

/// What a pure crate may use: computes, and knows no runtime, socket, file or clock. Whoever adds one looks at what it does first.
const PURE: &[&str] = &[
    "automerge",
    "bip39",
    "bao-tree",
    "blake3",
    "bs58",
    "bytes",
    "chacha20",
    "chacha20poly1305",
    "cid",
    "data-encoding",
    "ed25519-dalek",
    "gearhash",
    "hkdf",
    "hpke",
    "multihash",
    "poly1305",
    "prost",
    "quick_cache",
    "rand_core",
    "reed-solomon-simd",
    "serde",
    "serde_json",
    "sha2",
    "sha3",
    "subtle",
    "thiserror",
    "toml",
    "tracing",
    "x25519-dalek",
    "zeroize",
    "zstd",
];
/// What only tests of a pure crate may use.
const PURE_IN_TESTS: &[&str] = &["proptest", "serde_json"];
/// Files that are no module of the map.
const NO_MODULES: &[&str] = &["lib", "main", "tests"];

/// A line of the code map.
struct Line {
    path: PathBuf,
    is_folder: bool,
    crate_name: Option<String>,
    pure: bool,
}

/// The block under the heading "Code map": two spaces a level, a name, what it is, `crate NAME` and `pure` where they hold.
fn code_map() -> Vec<Line> {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let section = readme
        .split("\n## Code map\n")
        .nth(1)
        .expect("the README has a code map");
    let block = section
        .split("```")
        .nth(1)
        .expect("the code map is a block");
    let mut above: Vec<PathBuf> = Vec::new();
    let mut lines = Vec::new();
    for line in block.lines().filter(|line| !line.trim().is_empty()) {
        let level = (line.len() - line.trim_start().len()) / 2;
        let mut words = line.split_whitespace();
        let name = words.next().unwrap();
        let rest: Vec<&str> = words.collect();
        assert!(level <= above.len(), "the line is indented too far: {line}");
        above.truncate(level);
        let path = above
            .last()
            .cloned()
            .unwrap_or_default()
            .join(name.trim_end_matches('/'));
        let crate_name = rest
            .iter()
            .position(|word| *word == "crate")
            .map(|place| rest[place + 1].to_owned());
        let pure = rest.last() == Some(&"pure");
        above.push(path.clone());
        lines.push(Line {
            path,
            is_folder: name.ends_with('/'),
            crate_name,
            pure,
        });
    }
    assert!(!lines.is_empty());
    lines
}

fn manifest(folder: &Path) -> toml::Table {
    let path = repository().join(folder).join("Cargo.toml");
    fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .parse()
        .unwrap()
}

fn package_name(manifest: &toml::Table) -> &str {
    manifest["package"]["name"].as_str().unwrap()
}

fn members() -> Vec<PathBuf> {
    let manifest = manifest(Path::new(""));
    let members = manifest["workspace"]["members"].as_array().unwrap();
    members
        .iter()
        .map(|member| PathBuf::from(member.as_str().unwrap()))
        .collect()
}

/// The crate a path lies in, and the path from its sources.
fn split_at_crate(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let home = path
        .ancestors()
        .skip(1)
        .find(|folder| members().iter().any(|member| member == folder))?;
    Some((home.to_owned(), path.strip_prefix(home).unwrap().to_owned()))
}

#[test]
fn everything_on_the_code_map_exists() {
    for Line {
        path,
        is_folder,
        crate_name,
        ..
    } in code_map()
    {
        let root = repository();
        if let Some(name) = &crate_name {
            assert!(is_folder, "{} is a crate, so a folder", path.display());
            assert_eq!(package_name(&manifest(&path)), name, "{}", path.display());
        }
        if is_folder {
            let in_sources =
                split_at_crate(&path).map(|(home, rest)| root.join(home).join("src").join(rest));
            let found = root.join(&path).is_dir() || in_sources.is_some_and(|path| path.is_dir());
            assert!(
                found,
                "the code map names a folder that is not there: {}",
                path.display()
            );
        } else {
            let (home, rest) = split_at_crate(&path)
                .unwrap_or_else(|| panic!("{} is in no crate", path.display()));
            let in_sources = root
                .join(&home)
                .join("src")
                .join(&rest)
                .with_extension("rs");
            let found = in_sources.is_file()
                || root.join(&path).with_extension("rs").is_file()
                || root.join(&path).is_file();
            assert!(
                found,
                "the code map names a module that is not there: {}",
                path.display()
            );
        }
    }
}

#[test]
fn every_crate_and_module_is_on_the_code_map() {
    let map = code_map();
    let crates: BTreeSet<&Path> = map
        .iter()
        .filter(|line| line.crate_name.is_some())
        .map(|line| line.path.as_path())
        .collect();
    for member in members() {
        assert!(
            crates.contains(member.as_path()),
            "the code map does not name the crate in {}",
            member.display()
        );
        let Ok(sources) = fs::read_dir(repository().join(&member).join("src")) else {
            continue;
        };
        for source in sources {
            let path = source.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let is_module = path.extension().is_some_and(|extension| extension == "rs");
            if is_module && !NO_MODULES.contains(&stem.as_str()) {
                let named = map.iter().any(|line| line.path == member.join(&stem));
                assert!(
                    named,
                    "the code map does not name {}",
                    member.join(&stem).display()
                );
            }
        }
    }
}

#[test]
fn pure_manifests_hold_no_runtime_socket_file_or_clock_crate() {
    let pure: BTreeMap<String, PathBuf> = code_map()
        .into_iter()
        .filter(|line| line.pure)
        .map(|line| (line.crate_name.expect("what is pure is a crate"), line.path))
        .collect();
    for wanted in ["kith-object", "kith-protocol", "kith-crdt", "kith-core"] {
        assert!(
            pure.contains_key(wanted),
            "{wanted} is pure, and the code map says so"
        );
    }
    for (name, folder) in &pure {
        let manifest = manifest(folder);
        assert!(
            manifest.get("target").is_none(),
            "{name} is the same on every machine"
        );
        for (table, in_tests) in [
            ("dependencies", false),
            ("dev-dependencies", true),
            ("build-dependencies", false),
        ] {
            let Some(table) = manifest.get(table).and_then(toml::Value::as_table) else {
                continue;
            };
            for used in table.keys() {
                let allowed = PURE.contains(&used.as_str())
                    || pure.contains_key(used)
                    || (in_tests && PURE_IN_TESTS.contains(&used.as_str()));
                assert!(allowed, "{name} is pure and uses {used}");
            }
        }
        let lints =
            fs::read_to_string(repository().join(folder).join("clippy.toml")).unwrap_or_default();
        for disallowed in [
            "std::time::Instant::now",
            "std::time::SystemTime::now",
            "std::thread::spawn",
            "std::collections::HashMap",
        ] {
            assert!(
                lints.contains(disallowed),
                "the clippy.toml of {name} does not disallow {disallowed}"
            );
        }
    }
}

#[test]
fn crates_depend_on_each_other_as_the_diamond_says() {
    let allowed: &[(&str, &[&str])] = &[
        ("kith-object", &[]),
        ("kith-protocol", &["kith-object"]),
        ("kith-crdt", &["kith-object"]),
        ("kith-core", &["kith-object", "kith-protocol", "kith-crdt"]),
        (
            "kith-node",
            &["kith-object", "kith-protocol", "kith-crdt", "kith-core"],
        ),
        (
            "kith-simulations",
            &["kith-object", "kith-protocol", "kith-crdt", "kith-core"],
        ),
        (
            "kith-cli",
            &[
                "kith-object",
                "kith-protocol",
                "kith-node",
                "kith-simulations",
            ],
        ),
        ("kith-tests", &[]),
    ];
    for member in members() {
        let manifest = manifest(&member);
        let name = package_name(&manifest);
        let Some((_, allowed)) = allowed.iter().find(|(crate_name, _)| *crate_name == name) else {
            continue;
        };
        let Some(used) = manifest.get("dependencies").and_then(toml::Value::as_table) else {
            continue;
        };
        for used in used.keys().filter(|used| used.starts_with("kith-")) {
            assert!(allowed.contains(&used.as_str()), "{name} depends on {used}");
        }
    }
}

#[test]
fn every_outside_library_says_why_it_is_there() {
    let text = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let section = text.split("[workspace.dependencies]").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    let mut group_says = false;
    for line in section
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        if line.starts_with('#') {
            group_says = true;
        } else {
            assert!(group_says || line.contains(" # "), "no word on why: {line}");
        }
    }
}

/// Every Rust file of the workspace.
fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![repository()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && name != ".git" {
                    folders.push(entry.path());
                }
            } else if entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "rs")
            {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    files
}

fn spec_pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = fs::read_dir(repository().join("protocol/spec"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.sort();
    pages
}

fn headings(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let lines = text.lines().filter(|line| line.starts_with('#'));
    lines
        .map(|line| line.trim_start_matches('#').trim().to_owned())
        .collect()
}

/// The comments of a file, one text for each stretch of lines, with the line it begins at.
fn comments(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut last = usize::MAX;
    for (number, line) in text.lines().enumerate() {
        let Some(comment) = line.trim_start().strip_prefix("//") else {
            continue;
        };
        let comment = comment.trim_start_matches(['/', '!']).trim();
        match found.last_mut() {
            Some((_, text)) if last.wrapping_add(1) == number => {
                text.push(' ');
                text.push_str(comment);
            }
            _ => found.push((number + 1, comment.to_owned())),
        }
        last = number;
    }
    found
}

/// What follows a page's name: headings in quotes, after commas or "and".
fn quoted(mut rest: &str) -> Vec<&str> {
    let mut found = Vec::new();
    while let Some(after) = [", \"", " and \"", ", and \""]
        .iter()
        .find_map(|start| rest.strip_prefix(start))
    {
        let Some((heading, behind)) = after.split_once('"') else {
            break;
        };
        found.push(heading);
        rest = behind;
    }
    found
}

#[test]
fn every_spec_reference_points_to_a_heading() {
    // Put together, so that this file holds no reference itself.
    let mark = ["Spec", ": `"].concat();
    let mut wrong = Vec::new();
    let mut count = 0;
    for file in rust_files() {
        let shown = file
            .strip_prefix(repository())
            .unwrap()
            .display()
            .to_string();
        for (line, text) in comments(&file) {
            for reference in text.split(mark.as_str()).skip(1) {
                count += 1;
                let Some((page, rest)) = reference.split_once('`') else {
                    wrong.push(format!("{shown}:{line}: a reference that does not end"));
                    continue;
                };
                let path = repository().join(page);
                if !page.starts_with("protocol/spec/") || !path.is_file() {
                    wrong.push(format!("{shown}:{line}: there is no page {page}"));
                    continue;
                }
                let known = headings(&path);
                for heading in quoted(rest)
                    .into_iter()
                    .filter(|heading| !known.iter().any(|known| known == heading))
                {
                    wrong.push(format!(
                        "{shown}:{line}: {page} has no heading \"{heading}\""
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 50, "only {count} references found");
}

#[test]
fn every_reference_within_the_spec_leads_somewhere() {
    let mut wrong = Vec::new();
    for page in spec_pages() {
        let shown = page.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&page).unwrap().replace('\n', " ");
        // Every second piece stands between backticks.
        let pieces: Vec<&str> = text.split('`').collect();
        for place in (1..pieces.len()).step_by(2) {
            let (name, rest) = (
                pieces[place],
                pieces.get(place + 1).copied().unwrap_or_default(),
            );
            let before = pieces[place - 1];
            if name.ends_with(".md") && !name.contains([' ', '/']) {
                let path = page.with_file_name(name);
                if !path.is_file() {
                    wrong.push(format!("{shown}: there is no page {name}"));
                    continue;
                }
                let known = headings(&path);
                for heading in quoted(rest)
                    .into_iter()
                    .filter(|heading| !known.iter().any(|known| known == heading))
                {
                    wrong.push(format!("{shown}: {name} has no heading \"{heading}\""));
                }
            }
            let is_path = before.ends_with("Code: ")
                || before.ends_with("Vectors: ")
                || name.starts_with("tests/vectors/");
            if is_path
                && name.contains('/')
                && !name.contains(['<', '*', '{'])
                && !repository().join(name).exists()
            {
                wrong.push(format!("{shown}: there is no {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_committed_file_names_this_machine() {
    // Put together, so that this file does not name them.
    let words = [
        ["/wo", "rk/"].concat(),
        ["/tmp/", "kith/"].concat(),
        ["/ro", "ot/"].concat(),
    ];
    let mut files = rust_files();
    files.extend(spec_pages());
    for name in [
        "README.md",
        "Cargo.toml",
        ".ci/run",
        "cli/CHANGELOG.md",
        "cli/docs/json.md",
        "tests/decoder.py",
        "tests/kubo.py",
    ] {
        files.push(repository().join(name));
    }
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        for word in &words {
            assert!(
                !text.contains(word.as_str()),
                "{} contains {word}",
                file.display()
            );
        }
    }
}
