//! `kith demo`: three devices as three processes on this machine, and Kith's main job done on real files.

#![expect(
    clippy::indexing_slicing,
    reason = "JSON values answer null for keys they lack"
)]

mod compare;
mod device;
mod source;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kith_object::key::Rng;
use kith_protocol::api::{Failure, FailureKind};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::DemoArgs;
use crate::failure::CommandError;
use crate::output::{Output, human};
use compare::{differences, scan};
use device::{Demo, Device};

/// How long a step waits for devices to agree before it gives up.
const AGREE_WAIT: Duration = Duration::from_secs(120);
/// Pause between looks while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A step of the table.
struct Step {
    what: String,
    bytes: u64,
    files: u64,
    took: Duration,
    note: String,
}

/// Runs the demo; everything it made is gone when it returns, also on Ctrl-C.
pub(crate) async fn run(args: DemoArgs, output: &mut Output) -> Result<(), CommandError> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let folder = tempfile::Builder::new().prefix("kith-demo-").tempdir()?;
    let outcome = tokio::select! {
        outcome = steps(args, folder.path(), output) => outcome,
        _ = interrupt.recv() => Err(stopped()),
        _ = terminate.recv() => Err(stopped()),
    };
    // The devices died with the future above; now their folders go.
    folder.close()?;
    outcome
}

fn stopped() -> CommandError {
    Failure::new(FailureKind::Failed, "run the demo: it was interrupted").into()
}

/// A failed expectation.
fn differs(what: impl Into<String>) -> CommandError {
    Failure::new(FailureKind::Failed, format!("demo: {}", what.into())).into()
}

async fn steps(args: DemoArgs, folder: &Path, output: &mut Output) -> Result<(), CommandError> {
    let mut table = Vec::new();
    let source = source::find(args.path, folder)?;
    let canaries = Canaries::plant(folder)?;
    output.say(&format!(
        "Three devices in {}, storing {}",
        folder.display(),
        source.label
    ));

    let demo = Demo::new(folder)?;
    let (mut first, words) = demo.init("first").await?;
    first.up().await?;
    let mut second = demo.join_by_ticket("second", &first).await?;
    second.up().await?;
    let mut third = demo.join_by_words("third", &words, &first).await?;
    third.up().await?;
    output.say("Paired: the second by ticket, the third by the 24 words");

    let began = Instant::now();
    let put = first.put(&source.path, "/demo").await?;
    let cid = text(&put, "cid")?;
    let (bytes, files) = (number(&put, "size"), number(&put, "files"));
    table.push(Step {
        what: "put on the first".into(),
        bytes,
        files,
        took: began.elapsed(),
        note: format!("{} dedup", human(number(&put, "dedup"))),
    });
    let secret = first.put(&canaries.folder, "/canaries").await?;
    let secret_cid = text(&secret, "cid")?;

    get_and_compare(
        &second,
        &cid,
        &source.path,
        "get on the second, by CID",
        &mut table,
    )
    .await?;
    get_and_compare(&second, &secret_cid, &canaries.folder, "", &mut table).await?;

    let status = third.status().await?;
    if number(&status, "blocks") != 0 {
        return Err(differs(
            "the third device holds blocks before it got anything",
        ));
    }
    third
        .wait_for_tree_of(&second, AGREE_WAIT, LOOK_EVERY)
        .await?;
    first.kill().await?;
    output.say("The first device is dead; the third gets all from the second");
    get_and_compare(
        &third,
        &cid,
        &source.path,
        "get on the third, first dead",
        &mut table,
    )
    .await?;
    get_and_compare(&third, &secret_cid, &canaries.folder, "", &mut table).await?;

    let began = Instant::now();
    conflict(&mut second, &mut third, folder, &canaries).await?;
    table.push(Step {
        what: "both edit, meet, see both".into(),
        bytes: 0,
        files: 2,
        took: began.elapsed(),
        note: String::new(),
    });

    second.stop().await?;
    third.stop().await?;
    let scanned = canaries.hunt(&[first.home(), second.home(), third.home()])?;
    table.push(Step {
        what: "canaries looked for".into(),
        bytes: scanned,
        files: 0,
        took: Duration::ZERO,
        note: format!("0 of {} found", canaries.needles.len()),
    });
    show(&table, &source.label, output)?;
    Ok(())
}

async fn get_and_compare(
    device: &Device,
    cid: &str,
    source: &Path,
    label: &str,
    table: &mut Vec<Step>,
) -> Result<(), CommandError> {
    let dest = device.scratch(cid);
    let began = Instant::now();
    let got = device.get(cid, &dest).await?;
    let took = began.elapsed();
    let found = differences(source, &dest)?;
    if !found.is_empty() {
        return Err(differs(format!(
            "what {} got differs from what was put: {}",
            device.name(),
            found.join("; ")
        )));
    }
    remove(&dest)?;
    if !label.is_empty() {
        let from: Vec<String> = got["from"]
            .as_array()
            .map(|from| {
                from.iter()
                    .map(|peer| {
                        format!(
                            "{} from {}",
                            human(number(peer, "bytes")),
                            peer["name"].as_str().unwrap_or("?")
                        )
                    })
                    .collect()
            })
            .unwrap_or_default();
        table.push(Step {
            what: label.into(),
            bytes: number(&got, "size"),
            files: number(&got, "files"),
            took,
            note: from.join(", "),
        });
    }
    Ok(())
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    }
}

/// The same file changed on two devices that do not see one another: both versions stand after they meet.
async fn conflict(
    second: &mut Device,
    third: &mut Device,
    folder: &Path,
    canaries: &Canaries,
) -> Result<(), CommandError> {
    let path = "/shared.txt";
    second
        .put_text(folder, path, &canaries.text("as it was"))
        .await?;
    third
        .wait_for_tree_of(second, AGREE_WAIT, LOOK_EVERY)
        .await?;
    second.stop().await?;
    third.stop().await?;
    let mut wrote = [
        canaries.text("by the second"),
        canaries.text("by the third"),
    ];
    second.put_text(folder, path, &wrote[0]).await?;
    third.put_text(folder, path, &wrote[1]).await?;
    second.up().await?;
    third.up().await?;
    third
        .wait_for_tree_of(second, AGREE_WAIT, LOOK_EVERY)
        .await?;
    wrote.sort();
    for device in [&*second, &*third] {
        let names = device.versions_named("/", "shared.txt").await?;
        let mut read = Vec::new();
        for name in &names {
            read.push(device.cat(&format!("/{name}")).await?);
        }
        read.sort();
        if read != wrote {
            return Err(differs(format!(
                "{} shows {} versions of a file that two devices changed at once, not both",
                device.name(),
                read.len()
            )));
        }
    }
    Ok(())
}

/// Random strings planted in contents and names, to look for where they must not be.
struct Canaries {
    folder: PathBuf,
    needles: Vec<Vec<u8>>,
}

impl Canaries {
    fn plant(folder: &Path) -> std::io::Result<Self> {
        let mut rng: Rng = kith_node::config::fresh_rng();
        let mut needle = || data_encoding::HEXLOWER.encode(&rng.bytes::<16>());
        let (content, file, inner, shared) = (needle(), needle(), needle(), needle());
        let planted = folder.join("canaries");
        std::fs::create_dir_all(planted.join(&inner))?;
        std::fs::write(
            planted.join(format!("{file}.txt")),
            format!("{content}\n").repeat(1000),
        )?;
        std::fs::write(planted.join(&inner).join("note"), &content)?;
        std::fs::write(planted.join("shared"), &shared)?;
        let needles = [content, file, inner, shared]
            .into_iter()
            .map(String::into_bytes)
            .collect();
        Ok(Self {
            folder: planted,
            needles,
        })
    }

    /// A text with a canary in it.
    fn text(&self, text: &str) -> String {
        format!(
            "{text} {}\n",
            self.needles
                .last()
                .map(|needle| String::from_utf8_lossy(needle).into_owned())
                .unwrap_or_default()
        )
    }

    /// Proves that the scan finds every canary in the source, then that no data folder has one. Returns how many bytes it went through.
    fn hunt(&self, homes: &[&Path]) -> Result<u64, CommandError> {
        let (_, in_source) = scan(&self.folder, &self.needles)?;
        if in_source.len() != self.needles.len() {
            return Err(differs(
                "the scan does not find the canaries where they were planted",
            ));
        }
        let mut scanned = 0;
        for home in homes {
            let (bytes, found) = scan(home, &self.needles)?;
            scanned += bytes;
            if let Some(place) = found.values().next() {
                return Err(differs(format!(
                    "a canary is readable in {}",
                    place.display()
                )));
            }
        }
        Ok(scanned)
    }
}

fn text(value: &Value, key: &str) -> Result<String, CommandError> {
    value[key]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| differs(format!("a result has no {key}")))
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

fn show(table: &[Step], label: &str, output: &mut Output) -> Result<(), CommandError> {
    let rows: Vec<Value> = table
        .iter()
        .map(|step| {
            json!({ "what": step.what, "bytes": step.bytes, "files": step.files, "ms": u64::try_from(step.took.as_millis()).unwrap_or(u64::MAX), "note": step.note })
        })
        .collect();
    let value = json!({ "event": "demo", "source": label, "steps": rows });
    output.result(&value, || {
        let mut lines = format!(
            "{:30} {:>12} {:>8} {:>10} {:>10}\n",
            "step", "bytes", "files", "seconds", "MB/s"
        );
        for step in table {
            let secs = step.took.as_secs_f64();
            let (seconds, speed) = if step.took.is_zero() {
                (String::new(), String::new())
            } else {
                #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
                let speed = step.bytes as f64 / 1e6 / secs;
                (
                    format!("{secs:.2}"),
                    if step.bytes > 0 {
                        format!("{speed:.1}")
                    } else {
                        String::new()
                    },
                )
            };
            let files = if step.files > 0 {
                step.files.to_string()
            } else {
                String::new()
            };
            lines.push_str(&format!(
                "{:30} {:>12} {files:>8} {seconds:>10} {speed:>10}  {}\n",
                step.what, step.bytes, step.note
            ));
        }
        lines.push_str("Every byte compared; no canary in any data folder.\n");
        lines
    })?;
    Ok(())
}
