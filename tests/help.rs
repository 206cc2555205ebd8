//! The help texts are the reference of the command line: each stands under `tests/cmd/`, and a change of one is seen.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use kith_tests::{assert_snapshot, plain_command, repository, run};

fn help(verbs: &[String]) -> String {
    let mut command = plain_command(Path::new(env!("CARGO_BIN_EXE_kith")));
    command.args(verbs).arg("--help");
    let ran = run(command, &[]);
    ran.expect_code(0);
    assert!(
        ran.stderr.is_empty(),
        "help is a result, so it goes to standard output: {}",
        ran.stderr
    );
    String::from_utf8(ran.stdout).unwrap()
}

/// The verbs that a help text lists.
fn verbs(help: &str) -> Vec<String> {
    let Some(section) = help.split("\nCommands:\n").nth(1) else {
        return Vec::new();
    };
    let lines = section.lines().take_while(|line| !line.is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn help_texts_are_as_they_were() {
    let mut seen = BTreeSet::new();
    let mut todo: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let text = help(&path);
        let name = format!(
            "{}.txt",
            [&["kith".to_owned()], path.as_slice()].concat().join("-")
        );
        assert_snapshot(&name, &text);
        seen.insert(name);
        for verb in verbs(&text) {
            todo.push([path.as_slice(), &[verb]].concat());
        }
    }
    assert!(seen.len() > 20, "{seen:?}");
    for entry in fs::read_dir(repository().join("tests/cmd")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("kith") {
            assert!(
                seen.contains(&name),
                "tests/cmd/{name} is of a command that is gone"
            );
        }
    }
}

#[test]
fn every_argument_says_what_it_is() {
    let mut todo: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let text = help(&path);
        let lines: Vec<&str> = text.lines().collect();
        for (place, line) in lines.iter().enumerate() {
            let typed = line.trim_start();
            // What stands further in explains the one above.
            let indent = line.len() - typed.len();
            let is_argument = (2..=8).contains(&indent)
                && (typed.starts_with('-') || typed.starts_with('<') || typed.starts_with('['));
            let explained = typed.contains("  ")
                || lines
                    .get(place + 1)
                    .is_some_and(|next| next.starts_with("          "));
            assert!(!is_argument || explained, "kith {}: {line}", path.join(" "));
        }
        for verb in verbs(&text) {
            todo.push([path.as_slice(), &[verb]].concat());
        }
    }
}
