//! `kith sim`.

mod planning;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use kith_protocol::api::{Failure, FailureKind};
use kith_simulations::report::{self, sparkline, time};
use kith_simulations::scenario::{self, Moved, Report, Scenario};
use kith_simulations::swarm::{Draft, known};
use serde_json::{Map, Value, json};

use crate::args::SimCommand;
use crate::failure::CommandError;
use crate::output::{Output, human};

pub(crate) fn run(command: SimCommand, output: &mut Output) -> Result<(), CommandError> {
    match command {
        SimCommand::List => {
            for name in scenario::names() {
                let about = scenario::find(name).map(|found| found.about().to_owned());
                let about = about.unwrap_or_default();
                let value = json!({ "event": "scenario", "scenario": name, "about": about });
                output.result(&value, || format!("{name:<14}{about}\n"))?;
            }
            Ok(())
        }
        SimCommand::Run {
            scenario: name,
            seed,
            runs,
            trace,
            report,
        } => {
            let found = found(&name)?;
            let files = Files {
                trace: trace.as_deref(),
                report: report.as_deref(),
            };
            for seed in seed..seed.saturating_add(runs) {
                one(&name, &found, seed, files, output)?;
            }
            Ok(())
        }
        SimCommand::Plan {
            devices,
            data,
            growth,
            from,
        } => planning::plan(&devices, (data, growth), from.as_deref(), output),
        SimCommand::Swarm {
            minutes,
            seed,
            runs,
            shrink,
        } => {
            let until = Instant::now() + Duration::from_secs(minutes * 60);
            swarm(until, seed, runs, shrink.as_deref(), output)
        }
    }
}

/// The scenario that comes with Kith under that name, or that stands in that file.
fn found(name: &str) -> Result<Scenario, CommandError> {
    if let Some(found) = scenario::find(name) {
        return Ok(found);
    }
    let text = match std::fs::read_to_string(name) {
        Ok(text) => text,
        Err(error) => {
            let known: Vec<&str> = scenario::names().collect();
            let hint = format!(
                "these come with Kith: {}; anything else is a file",
                known.join(", ")
            );
            let what = format!("find the scenario {name}");
            let failure = Failure::new(FailureKind::NotFound, what).because(&error);
            return Err(failure.hint(hint).into());
        }
    };
    scenario::of_text(name, &text).map_err(|error| {
        let what = format!("read the scenario {name}");
        let failure = Failure::new(FailureKind::Usage, what).because(&error);
        failure.hint("nothing was run").into()
    })
}

/// What was built: a failed run is told with it.
const COMMIT: &str = env!("KITH_COMMIT");

/// A run, or what it ended with: a law that a machine says of itself fails by a panic.
fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, Vec<String>> {
    std::panic::catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        vec![text.unwrap_or_else(|| "a law of a machine does not hold".to_owned())]
    })
}

/// A run in which something was found wrong.
fn failed(what: &str, hint: &str, causes: Vec<String>) -> CommandError {
    let what = format!("{what} (commit {COMMIT})");
    let mut failure = Failure::new(FailureKind::Failed, what).hint(hint);
    failure.causes = causes;
    failure.into()
}

/// Devices of a run that are told of one by one.
const TOLD_MAX: usize = 20;

/// Where what a run leaves is to go.
#[derive(Clone, Copy)]
struct Files<'a> {
    trace: Option<&'a Path>,
    report: Option<&'a Path>,
}

fn one(
    name: &str,
    found: &Scenario,
    seed: u64,
    files: Files<'_>,
    output: &mut Output,
) -> Result<(), CommandError> {
    let write = |kind: &str, path: &Path, text: &str| {
        std::fs::write(path, text).map_err(|error| {
            let what = format!("write the {kind} {}", path.display());
            Failure::new(FailureKind::Failed, what).because(&error)
        })
    };
    let what = format!("run {name} with seed {seed}");
    let hint = format!("replay it with `kith sim run {name} --seed {seed} --trace FILE`");
    let report = match files.report {
        None => guarded(|| found.run(seed, files.trace.is_some()))
            .map_err(|causes| failed(&what, &hint, causes))?,
        Some(path) => {
            let (report, record) = guarded(|| found.run_recorded(seed, files.trace.is_some()))
                .map_err(|causes| failed(&what, &hint, causes))?;
            let page = report::page(name, seed, found.plan(), &report, &record);
            write("report", path, &page)?;
            report
        }
    };
    if let Some(path) = files.trace {
        write("trace", path, &report.trace_text)?;
    }
    let value = json!({
        "event": "run",
        "scenario": name,
        "seed": seed,
        "trace": report.trace_hash,
        "virtual_ms": report.virtual_ms,
        "events": report.events,
        "puts": report.promises,
        "read_back": report.read_back,
        "delay_p50_ms": report.delay_ms(500),
        "delay_p99_ms": report.delay_ms(990),
        "delay_max_ms": report.delay_ms(1000),
        "messages": report.messages,
        "lost_packets": report.lost_packets,
        "devices": report.devices.iter().map(moved).collect::<Vec<Value>>(),
        "failures": report.failures,
    });
    output.result(&value, || told(name, seed, &report))?;
    if report.failures.is_empty() {
        return Ok(());
    }
    Err(failed(&what, &hint, report.failures))
}

/// Runs seeds on all cores, those that once failed first.
fn swarm(
    until: Instant,
    first: Option<u64>,
    runs: Option<u64>,
    shrink: Option<&Path>,
    output: &mut Output,
) -> Result<(), CommandError> {
    let fresh = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(1, |since| since.as_secs()) * 1_000_000
    };
    let begin = first.unwrap_or_else(fresh);
    // A seed that is asked for is that seed.
    let known = if first.is_some() { Vec::new() } else { known() };
    let next = AtomicU64::new(0);
    let found: Mutex<Vec<(u64, Vec<String>)>> = Mutex::default();
    let (done, events) = (AtomicU64::new(0), AtomicU64::new(0));
    let most = runs.unwrap_or(u64::MAX);
    let work = || {
        while Instant::now() < until {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let none_failed = found.lock().is_ok_and(|found| found.is_empty());
            if number >= most || !none_failed {
                return;
            }
            let old = usize::try_from(number).ok().and_then(|at| known.get(at));
            let fresh = number.saturating_sub(known.len() as u64);
            let seed = old.copied().unwrap_or(begin.wrapping_add(fresh));
            let failures = match guarded(|| kith_simulations::swarm::run(seed, false)) {
                Ok(report) => {
                    events.fetch_add(report.events, Ordering::Relaxed);
                    report.failures
                }
                Err(panic) => panic,
            };
            done.fetch_add(1, Ordering::Relaxed);
            if !failures.is_empty()
                && let Ok(mut found) = found.lock()
            {
                found.push((seed, failures));
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    let (done, events) = (done.into_inner(), events.into_inner());
    let found = found.into_inner().unwrap_or_default();
    let seeds: Vec<u64> = found.iter().map(|(seed, _)| *seed).collect();
    let value = json!({
        "event": "swarm",
        "first_seed": begin,
        "runs": done,
        "events": events,
        "failed": seeds,
    });
    output.result(&value, || {
        format!(
            "{done} runs from seed {begin}, {events} events: {} failed\n",
            seeds.len()
        )
    })?;
    let Some((seed, failures)) = found.into_iter().next() else {
        return Ok(());
    };
    if let Some(path) = shrink {
        let fails = |draft: &Draft| {
            let run = guarded(|| draft.scenario().run(seed, false));
            run.is_err() || run.is_ok_and(|report| !report.failures.is_empty())
        };
        let draft = Draft::new(seed).shrunk(&fails);
        std::fs::write(path, draft.text()).map_err(|error| {
            let what = format!("write the scenario {}", path.display());
            Failure::new(FailureKind::Failed, what).because(&error)
        })?;
    }
    let what = format!("run seed {seed} of the swarm");
    let hint = format!(
        "replay it with `kith sim swarm --seed {seed} --runs 1 --shrink FILE`, then `kith sim run FILE --seed {seed} --trace FILE`"
    );
    Err(failed(&what, &hint, failures))
}

fn moved(device: &Moved) -> Value {
    let by_purpose = |bytes: &[(&'static str, u64)]| -> Map<String, Value> {
        let each = bytes.iter();
        each.map(|(what, bytes)| ((*what).to_owned(), json!(bytes)))
            .collect()
    };
    json!({
        "name": device.name,
        "sent": by_purpose(&device.sent),
        "got": by_purpose(&device.got),
        "metered": device.metered,
    })
}

/// A run in a few lines.
fn told(name: &str, seed: u64, report: &Report) -> String {
    let outcome = if report.failures.is_empty() {
        "all agree"
    } else {
        "FAILED"
    };
    let mut text = format!(
        "{name} seed {seed}: {outcome}, {} events in {}, trace {}\n",
        report.events,
        time(report.virtual_ms),
        report.trace_hash
    );
    text += &format!(
        "  {} puts acknowledged, {} read back\n",
        report.promises, report.read_back
    );
    if let (Some(half), Some(most), Some(all)) = (
        report.delay_ms(500),
        report.delay_ms(990),
        report.delay_ms(1000),
    ) {
        text += &format!(
            "  from the first device to the last: half of all entries in {}, 99 % in {}, all in {}\n",
            time(half),
            time(most),
            time(all)
        );
        text += &format!(
            "  {}  each step twice the time\n",
            sparkline(&report.delays_ms)
        );
    }
    for device in report.devices.iter().take(TOLD_MAX) {
        let sum = |bytes: &[(&'static str, u64)]| bytes.iter().map(|(_, bytes)| bytes).sum();
        let purposes = device.sent.iter();
        let purposes: Vec<String> = purposes
            .map(|(what, bytes)| format!("{what} {}", human(*bytes)))
            .collect();
        text += &format!(
            "  {:<12} sent {} ({}), got {}",
            device.name,
            human(sum(&device.sent)),
            purposes.join(", "),
            human(sum(&device.got))
        );
        if device.metered > 0 {
            text += &format!(", {} of it paid for", human(device.metered));
        }
        text.push('\n');
    }
    if report.devices.len() > TOLD_MAX {
        let more = report.devices.len() - TOLD_MAX;
        text += &format!("  and {more} more devices: `--json` tells of all\n");
    }
    text
}
