//! What `--json` prints is stable: the keys of every object and their types are under snapshot, and documented in `cli/docs/json.md`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use kith_tests::{Kith, Place, Ran, assert_snapshot, noise, repository, wait_until};
use serde_json::Value;

/// Event, key (with `.` and `[]` for what is inside), types seen.
type Shapes = BTreeMap<String, BTreeMap<String, BTreeSet<&'static str>>>;

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn note(value: &Value, at: &str, keys: &mut BTreeMap<String, BTreeSet<&'static str>>) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                let key = if at.is_empty() {
                    key.clone()
                } else {
                    format!("{at}.{key}")
                };
                keys.entry(key.clone()).or_default().insert(type_of(field));
                note(field, &key, keys);
            }
        }
        Value::Array(items) => {
            for item in items {
                let key = format!("{at}[]");
                keys.entry(key.clone()).or_default().insert(type_of(item));
                note(item, &key, keys);
            }
        }
        _ => {}
    }
}

fn note_all(shapes: &mut Shapes, values: &[Value]) {
    for value in values {
        let event = value["event"]
            .as_str()
            .unwrap_or_else(|| panic!("an object without event: {value}"));
        note(value, "", shapes.entry(event.to_owned()).or_default());
    }
}

/// Everything `--json` prints, one of each kind.
fn seen() -> Shapes {
    let mut shapes = Shapes::new();
    let place = Place::new(env!("CARGO_BIN_EXE_kith"));
    let mut first = place.device("first");
    let mut keep = |ran: &Ran| note_all(&mut shapes, &ran.values());
    keep(&first.ok(["init", "--name", "first"]));
    let mut more = vec![first.up()];
    let pairing = first.pair(&["--yes"]);
    let second = place.device("second");
    keep(&second.ok(["join", pairing.ticket(), "--name", "second"]));
    keep(&pairing.finish());
    let mut second = second;
    second.up();
    let file = place.write("lake.jpg", vec![7; 100_000]);
    let odd = place.write(std::ffi::OsStr::new("odd"), b"x");
    keep(&first.ok(["policy", "show"]));
    keep(&first.ok(["put", file.to_str().unwrap(), odd.to_str().unwrap()]));
    keep(&first.ok(["where", "/lake.jpg"]));
    let bytes_name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"/n\xff");
    keep(&first.ok([
        std::ffi::OsStr::new("put"),
        odd.as_os_str(),
        std::ffi::OsStr::new("--to"),
        bytes_name,
    ]));
    keep(&first.ok(["mkdir", "/folder"]));
    keep(&first.ok(["mv", "/odd", "/folder"]));
    keep(&first.ok(["rm", "/folder/odd"]));
    keep(&first.ok(["history", "/folder/odd"]));
    keep(&first.ok(["restore", "/folder/odd"]));
    keep(&first.ok(["ls", "/"]));
    second.agrees_with(&first);
    keep(&second.ok([
        "get",
        "--wait",
        "/lake.jpg",
        "-o",
        place.file("out").to_str().unwrap(),
    ]));
    let car = place.file("all.car");
    keep(&first.ok(["export", "--car", car.to_str().unwrap()]));
    keep(&second.ok(["import", "--car", car.to_str().unwrap()]));
    keep(&first.ok(["pin", "/lake.jpg"]));
    let root = first.ok(["ls", "/"]).values();
    let odd = root.iter().find(|entry| entry["name"] == "n\u{fffd}");
    let odd = odd.unwrap()["cid"].as_str().unwrap().to_owned();
    keep(&first.ok(["pin", &odd]));
    keep(&first.ok(["pins"]));
    keep(&first.ok(["unpin", &odd]));
    keep(&first.ok(["unpin", "/lake.jpg"]));
    keep(&first.ok(["put", "--public", file.to_str().unwrap()]));
    let published = first.ok(["published"]);
    keep(&published);
    let root = published.event("published")["cid"]
        .as_str()
        .unwrap()
        .to_owned();
    keep(&first.ok(["unpublish", &root]));
    keep(&first.ok(["retention"]));
    // What a refused put leaves behind is garbage, which waits for the second device.
    let litter = place.write("litter", noise(77, 400_000));
    first.run(["put", litter.to_str().unwrap(), "--to", "/lake.jpg/below"]);
    keep(&first.ok(["gc", "--dry-run"]));
    keep(&first.ok(["gc"]));
    keep(&first.ok(["device", "set", "--capacity", "1G", "--site", "home"]));
    keep(&first.ok([
        "policy",
        "set",
        "home",
        "--replicas",
        "1",
        "--sites",
        "home",
    ]));
    keep(&wait_until("it is known to be held", || {
        let told = first.ok(["where", "/lake.jpg"]);
        let is_named = |key: &str| {
            told.last()[key]
                .as_array()
                .is_some_and(|all| !all.is_empty())
        };
        (is_named("held") && is_named("placed")).then_some(told)
    }));
    keep(&second.ok(["devices"]));
    // Once all that there is to tell is known.
    keep(&wait_until("a round trip is measured", || {
        let told = second.ok(["doctor"]);
        let peer = told.values().pop()?;
        peer["links"][0]["round_trip_us"]
            .is_number()
            .then_some(told)
    }));
    for device in [&first, &second] {
        keep(&device.ok(["status"]));
    }
    more.extend(failures(&second));
    keep(&first.ok(["device", "remove", "second", "--yes"]));
    keep(&first.ok(["stop"]));
    first.kill();
    keep(&first.ok(["status"]));
    keep(&first.ok(["sim", "run", "--seed", "1"]));
    let (page, trace) = (place.file("page.html"), place.file("trace"));
    let (page_at, trace_at) = (page.to_str().unwrap(), trace.to_str().unwrap());
    first.ok(["sim", "run", "--report", page_at, "--trace", trace_at]);
    let page = fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(fs::read_to_string(trace).unwrap().lines().count() > 300);
    let refused = first.fails(1, ["sim", "run", "--report", "/nowhere/page.html"]);
    assert!(refused.failure().to_string().contains("/nowhere/page.html"));
    // Nobody reads a photograph over such a line in a second: told with when, seed, commit and how to see it again.
    let hurried = "duration = '1m'\nread = '1s'\n[[site]]\nname = 'x'\nup = '9kbit/s'\n[[site]]\nname = 'y'\n[[device]]\nname = 'a'\nsite = 'x'\nadmin = true\n[[device]]\nname = 'b'\nsite = 'y'\n[[work]]\nwhat = 'photos'\ndevices = ['a']\nfiles = 1\nat = '1s'\n";
    let hurried = place.write("hurried.toml", hurried);
    let failed = first.fails(1, ["sim", "run", hurried.to_str().unwrap(), "--seed", "5"]);
    let failure = failed.failure().to_string();
    for says in ["at 361000 ms: ", "--seed 5", "(commit ", "--trace FILE"] {
        assert!(failure.contains(says), "{says}: {failure}");
    }
    keep(&first.ok(["sim", "list"]));
    let mesh = "[[site]]\nname = 'x'\n[[site]]\nname = 'y'\n[[device]]\nname = 'a'\nsite = 'x'\nadmin = true\ncapacity = '3TB'\n[[device]]\nname = 'b'\nsite = 'y'\nonline = '08:00-10:00'\n";
    let mesh = place.write("mesh.toml", mesh);
    let mesh = ["sim", "plan", "--devices", mesh.to_str().unwrap()];
    let asked = [&mesh[..], &["--data", "1TB", "--growth", "1GB/day"]].concat();
    let planned = first.ok(asked.clone());
    assert_eq!(planned.values()[0]["recommended"], "2 copies");
    keep(&planned);
    let other = first.fails(1, [&asked[..], &["--from", "c"]].concat());
    assert!(other.failure().to_string().contains("a, b"));
    first.fails(2, [&mesh[..], &["--data", "much"]].concat());
    let never = "[[device]]\nname = 'a'\nadmin = true\nonline = '08:00-10:00'\ncapacity = '1GB'\n[[device]]\nname = 'b'\nonline = '12:00-14:00'\n";
    let never = place.write("never.toml", never);
    let never = ["sim", "plan", "--devices", never.to_str().unwrap()];
    keep(&first.ok([&never[..], &["--data", "1TB"]].concat()));
    keep(&first.ok(["sim", "swarm", "--seed", "1", "--runs", "2"]));
    keep(&first.ok(["store", "rebuild"]));
    // In all of them, since a block may lie in a pack on its way out and in another.
    for pack in kith_tests::files_below(&first.home().join("packs")) {
        let mut bytes = fs::read(&pack).unwrap();
        bytes[200] ^= 1;
        fs::write(&pack, bytes).unwrap();
    }
    let mut verified = first.run(["verify"]).values();
    verified.retain(|value| value["event"] != "failed");
    note_all(&mut shapes, &verified);
    note_all(&mut shapes, &more);
    shapes
}

/// What standard error says under `--json`.
fn failures(device: &Kith) -> Vec<Value> {
    let mut told = Vec::new();
    for args in [["cat", "/missing"], ["restore", "/missing"]] {
        let ran = device.fails(1, args);
        told.push(
            ran.stderr
                .lines()
                .find_map(|line| serde_json::from_str(line).ok())
                .unwrap(),
        );
    }
    told
}

#[test]
fn keys_of_every_object_are_as_they_were_and_documented() {
    let shapes = seen();
    let mut text = String::new();
    for (event, keys) in &shapes {
        text.push_str(event);
        text.push('\n');
        for (key, types) in keys {
            let types: Vec<&str> = types.iter().copied().collect();
            text.push_str(&format!("  {key}: {}\n", types.join(" or ")));
        }
    }
    assert_snapshot("json.txt", &text);

    let docs = fs::read_to_string(repository().join("cli/docs/json.md")).unwrap();
    let mut missing = Vec::new();
    for (event, keys) in &shapes {
        let section = docs.split(&format!("\n### `{event}`\n")).nth(1);
        let section = section.map(|rest| rest.split("\n##").next().unwrap_or_default());
        let Some(section) = section else {
            missing.push(event.clone());
            continue;
        };
        for key in keys
            .keys()
            .filter(|key| *key != "event" && !key.ends_with("_base64") && !key.ends_with("[]"))
        {
            if !section.contains(&format!("`{key}`")) {
                missing.push(format!("{event}: {key}"));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "cli/docs/json.md does not say what these are: {}",
        missing.join(", ")
    );
}
