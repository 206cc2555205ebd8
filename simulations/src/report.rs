//! A run as one page that a browser shows without any network.
//!
//! Spec: `protocol/spec/simulation.md`, "Report".

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::plan::Plan;
use crate::scenario::Report;
use crate::world::record::{Mark, Record};

/// Width of a plot's field, and what lies left and below of it, in pixels.
const WIDE: u64 = 760;
const LEFT: u64 = 90;
const HIGH: u64 = 180;
/// Colours that those who see red and green alike tell apart.
const COLOURS: [&str; 8] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d1f", "#666666",
];
/// Devices that are shown one by one; of more, the first.
const DEVICES_MAX: usize = 40;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;color:#222;background:#fff;max-width:920px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.1em;margin:2em 0 .2em}p{margin:.3em 0}.note{color:#555}
svg{width:100%;height:auto;font:12px system-ui,sans-serif}svg text{fill:#333}.grid{stroke:#ddd}.axis{stroke:#999}
table{border-collapse:collapse;margin:.6em 0}td,th{padding:.15em .9em .15em 0;text-align:left;vertical-align:top}td.n,th.n{text-align:right}
.key{display:inline-block;width:.8em;height:.8em;margin:0 .35em 0 1em;border-radius:2px}.bad{color:#a40000}.good{color:#006b3f}code{background:#f3f3f3;padding:.1em .3em}";

/// A dot on the line of a device, with words for who points at it.
fn dot(signs: &mut String, x: u64, top: u64, colour: &str, what: &str, at: u64) {
    let _ = write!(
        signs,
        "<circle cx={x} cy={} r=4 fill=\"{colour}\" stroke=\"#fff\"><title>{what} at {}</title></circle>",
        top + 11,
        time(at)
    );
}

/// The page.
pub fn page(name: &str, seed: u64, plan: &Plan, report: &Report, record: &Record) -> String {
    let mut page = String::new();
    let end = record.samples.last().map_or(1, |last| last.at_ms).max(1);
    let outcome = match report.failures.is_empty() {
        true => "<span class=good>all checks held</span>",
        false => "<span class=bad>checks failed</span>",
    };
    // Writing to a string does not fail.
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>{title}, seed {seed}</title><style>{STYLE}</style>\n<h1>{title}</h1><p>{about}</p>\n<p>Seed {seed}: {outcome}. Replay it with <code>kith sim run {title} --seed {seed}</code>; trace {hash}.</p>\n",
        title = escaped(name),
        about = escaped(&plan.about),
        hash = report.trace_hash,
    );
    if !report.failures.is_empty() {
        page.push_str("<ul class=bad>");
        for failure in &report.failures {
            let _ = write!(page, "<li>{}</li>", escaped(failure));
        }
        page.push_str("</ul>\n");
    }
    facts(&mut page, plan, report);
    timeline(&mut page, plan, record, end);
    copies(&mut page, record, end);
    spreading(&mut page, record, end);
    delays(&mut page, report);
    hops(&mut page, report);
    traffic(&mut page, report);
    traffic_over_time(&mut page, record, end);
    stored(&mut page, plan, record, end);
    page.push_str("</html>\n");
    page
}

fn facts(page: &mut String, plan: &Plan, report: &Report) {
    let delay = |share| report.delay_ms(share).map_or("-".to_owned(), time);
    let rows = [
        ("devices", plan.devices.len().to_string()),
        ("virtual time", time(report.virtual_ms)),
        ("events", report.events.to_string()),
        ("puts acknowledged", report.promises.to_string()),
        ("objects read back whole", report.read_back.to_string()),
        ("messages between devices", report.messages.to_string()),
        ("packets sent again", report.lost_packets.to_string()),
        ("half of all entries were everywhere in", delay(500)),
        ("99 % in", delay(990)),
        ("all in", delay(1000)),
    ];
    page.push_str("<table>");
    for (what, value) in rows {
        let _ = write!(page, "<tr><td>{what}<td class=n>{value}");
    }
    page.push_str("</table>\n");
}

/// When each device ran, when it was down or away, and what else befell it.
fn timeline(page: &mut String, plan: &Plan, record: &Record, end: u64) {
    let shown = plan.devices.len().min(DEVICES_MAX);
    heading(
        page,
        "Events and faults",
        "A row is a device: it runs (bar), reaches nobody (pale), or is down (nothing). Red: lost its power. Triangle: its clock jumped. Grey: the mesh is parted. Any other dot says what happened where the pointer rests on it.",
    );
    if shown < plan.devices.len() {
        let _ = writeln!(page, "<p class=note>The first {shown} devices.</p>");
    }
    let high = 22 * shown as u64;
    begin(page, high);
    let mut parted: Option<(u64, BTreeSet<u64>)> = None;
    let ending = (end, 0, Mark::AllWell);
    for (at, _, mark) in record.marks.iter().chain([&ending]) {
        let over = match (mark, &mut parted) {
            (Mark::Parted(number), Some((_, open))) => {
                open.insert(*number);
                false
            }
            (Mark::Parted(number), None) => {
                parted = Some((*at, BTreeSet::from([*number])));
                false
            }
            (Mark::Healed(number), Some((_, open))) => {
                open.remove(number);
                open.is_empty()
            }
            (Mark::AllWell, Some(_)) => true,
            _ => false,
        };
        if over && let Some((from, _)) = parted.take() {
            let (x, to) = (across(from, end), across(*at, end));
            let _ = write!(
                page,
                "<rect x={x} y=0 width={} height={high} fill=\"#ccc\"><title>parted from {} to {}</title></rect>",
                (to - x).max(1),
                time(from),
                time(*at)
            );
        }
    }
    for (place, device) in plan.devices.iter().enumerate().take(shown) {
        lane(page, record, (place, &device.name), end);
    }
    finish(page, high, end);
}

fn lane(page: &mut String, record: &Record, (place, name): (usize, &str), end: u64) {
    let top = 22 * place as u64;
    let _ = write!(
        page,
        "<text x={} y={} text-anchor=end>{}</text>",
        LEFT - 8,
        top + 15,
        escaped(name)
    );
    let (mut since, mut away) = (None, 0_u32);
    let mut bars = String::new();
    let mut bar = |from: Option<u64>, to: u64, away: u32| {
        let Some(from) = from.filter(|from| *from < to) else {
            return;
        };
        let (x, right) = (across(from, end), across(to, end));
        let colour = if away > 0 { "#bcd9ea" } else { "#0072b2" };
        let _ = write!(
            bars,
            "<rect x={x} y={} width={} height=14 fill=\"{colour}\"/>",
            top + 4,
            (right - x).max(1)
        );
    };
    let mut signs = String::new();
    for (at, device, mark) in &record.marks {
        if *mark != Mark::AllWell
            && (*device != place || matches!(mark, Mark::Parted(_) | Mark::Healed(_)))
        {
            continue;
        }
        let x = across(*at, end);
        match mark {
            Mark::Starts => since = since.or(Some(*at)),
            Mark::Stops | Mark::Crashes => {
                bar(since.take(), *at, away);
                if *mark == Mark::Crashes {
                    let _ = write!(
                        signs,
                        "<rect x={} y={} width=3 height=18 fill=\"#d00000\"><title>lost its power at {}</title></rect>",
                        x - 1,
                        top + 2,
                        time(*at)
                    );
                }
            }
            Mark::Leaves | Mark::Returns | Mark::AllWell => {
                bar(since, *at, away);
                since = since.map(|_| *at);
                away = match mark {
                    Mark::Leaves => away + 1,
                    Mark::Returns => away.saturating_sub(1),
                    _ => 0,
                };
            }
            Mark::Jumps(by) => {
                let _ = write!(
                    signs,
                    "<path d=\"M{x} {}l5 9h-10z\" fill=\"#e69f00\" stroke=\"#fff\"><title>its clock jumped by {by} ms at {}</title></path>",
                    top + 6,
                    time(*at)
                );
            }
            Mark::Parted(_) | Mark::Healed(_) => {}
            Mark::Rots => dot(
                &mut signs,
                x,
                top,
                "#8c6d1f",
                "something on its disk turned over or was lost",
                *at,
            ),
            Mark::Restored => dot(
                &mut signs,
                x,
                top,
                "#009e73",
                "was put back to a backup",
                *at,
            ),
            Mark::Fills => dot(&mut signs, x, top, "#a6611a", "had no room left", *at),
            Mark::Unwritable => dot(
                &mut signs,
                x,
                top,
                "#a6611a",
                "had disks that failed to make something durable",
                *at,
            ),
            Mark::Slows(true) => dot(&mut signs, x, top, "#999", "was slow from then on", *at),
            Mark::Slows(false) => dot(&mut signs, x, top, "#999", "was quick again", *at),
            Mark::Moves => dot(&mut signs, x, top, "#cc79a7", "went elsewhere", *at),
            Mark::Storms(true) => dot(&mut signs, x, top, "#56b4e9", "a storm begins", *at),
            Mark::Storms(false) => dot(&mut signs, x, top, "#56b4e9", "the storm is over", *at),
            Mark::Pauses => dot(&mut signs, x, top, "#666", "stood still", *at),
            Mark::Harms(how) => dot(
                &mut signs,
                x,
                top,
                "#cc79a7",
                &format!("did harm ({how})"),
                *at,
            ),
            Mark::Lost => dot(&mut signs, x, top, "#000", "was lost for good", *at),
            Mark::Removed => dot(&mut signs, x, top, "#000", "was removed from the mesh", *at),
        }
    }
    bar(since, end, away);
    page.push_str(&bars);
    page.push_str(&signs);
}

/// On how many devices the objects are.
fn copies(page: &mut String, record: &Record, end: u64) {
    heading(
        page,
        "Redundancy",
        "On how many disks the roots of the acknowledged objects lie, as shares of them; a device that is down counts with what it had. What is read is kept, so the end of the run, where every device reads everything, is not of the scenario.",
    );
    let most = record
        .samples
        .iter()
        .map(|sample| sample.copies.len())
        .max();
    // From the top: those with the most copies.
    let kinds: Vec<usize> = (0..most.unwrap_or(0)).collect();
    let seen = |kind: usize| {
        let at = |sample: &crate::world::record::Sample| sample.copies.get(kind).copied();
        record.samples.iter().any(|sample| at(sample) > Some(0))
    };
    let kinds: Vec<usize> = kinds.into_iter().filter(|kind| seen(*kind)).collect();
    let name = |kind: usize| match kind {
        0 => "none".to_owned(),
        kind => kind.to_string(),
    };
    legend(page, kinds.iter().map(|kind| name(*kind)));
    begin(page, HIGH);
    for (number, _) in kinds.iter().enumerate() {
        let mut points = String::new();
        let mut last = 0;
        for sample in &record.samples {
            let all: u64 = sample.copies.iter().sum();
            if all == 0 {
                continue;
            }
            // All from this kind on, drawn over by the next.
            let here = kinds.iter().skip(number);
            let here: u64 = here.filter_map(|kind| sample.copies.get(*kind)).sum();
            last = across(sample.at_ms, end);
            if points.is_empty() {
                let _ = write!(points, "{last},{HIGH} ");
            }
            let _ = write!(points, "{last},{} ", HIGH - HIGH * here / all);
        }
        let _ = write!(
            page,
            "<polygon points=\"{points}{last},{HIGH}\" fill=\"{}\"/>",
            colour(number)
        );
    }
    scale(page, 100, |share| format!("{share} %"));
    finish(page, HIGH, end);
}

fn spreading(page: &mut String, record: &Record, end: u64) {
    heading(
        page,
        "Not yet everywhere",
        "Entries that some device has and another has not. While a device is down or away they heap up.",
    );
    let line = record.samples.iter();
    let line = line.map(|sample| (sample.at_ms, sample.spreading));
    lines(
        page,
        &[("entries".to_owned(), line.collect())],
        end,
        |count| count.to_string(),
    );
}

/// How entries are distributed by the time they took.
fn delays(page: &mut String, report: &Report) {
    heading(
        page,
        "How long entries took",
        "From the first device that had an entry to the last; each bar is twice the time of the one before.",
    );
    let bars: Vec<Bar> = buckets(&report.delays_ms)
        .into_iter()
        .map(|(upto, count)| Bar {
            label: whole_time(upto),
            says: format!("{count} in less than {}", time(upto)),
            count,
        })
        .collect();
    if bars.is_empty() {
        page.push_str("<p>None reached all devices.</p>\n");
    }
    bar_plot(page, &bars);
}

fn hops(page: &mut String, report: &Report) {
    heading(
        page,
        "Hops of lookups in the DHT",
        "How many devices were asked one after the other until the one closest to the key was known.",
    );
    if report.lookups.is_empty() {
        page.push_str("<p>Nobody looked anything up.</p>\n");
    }
    let most = report.lookups.iter().map(|(hops, _)| *hops).max();
    let bars: Vec<Bar> = (0..=most.unwrap_or(0))
        .filter(|_| most.is_some())
        .map(|hops| {
            let count = report.lookups.iter().filter(|(of, _)| *of == hops).count();
            Bar {
                label: hops.to_string(),
                says: format!("{count} with {hops}"),
                count: count as u64,
            }
        })
        .collect();
    bar_plot(page, &bars);
}

/// A column of a plot.
struct Bar {
    label: String,
    /// For who points at it.
    says: String,
    count: u64,
}

fn bar_plot(page: &mut String, bars: &[Bar]) {
    let Some(most) = bars.iter().map(|bar| bar.count).max() else {
        return;
    };
    let most = most.max(1);
    begin(page, HIGH);
    scale(page, most, |count| count.to_string());
    let wide = WIDE / bars.len().max(12) as u64;
    // Labels that have room.
    let every = bars.len().div_ceil(14);
    for (place, bar) in bars.iter().enumerate() {
        let x = LEFT + wide * place as u64;
        let high = HIGH * bar.count / most;
        let _ = write!(
            page,
            "<rect x={} y={} width={} height={high} fill=\"{}\"><title>{}</title></rect>",
            x + 2,
            HIGH - high,
            wide.saturating_sub(4).max(1),
            colour(0),
            bar.says
        );
        if place % every == 0 {
            let _ = write!(
                page,
                "<text x={} y={} text-anchor=middle>{}</text>",
                x + wide / 2,
                HIGH + 16,
                bar.label
            );
        }
    }
    page.push_str("</svg>\n");
}

/// How many took less than each power of two of milliseconds and not less than the one before; empty ends are left out.
pub fn buckets(sorted_ms: &[u64]) -> Vec<(u64, u64)> {
    let mut counts = [0_u64; 64];
    for ms in sorted_ms {
        let place = usize::try_from(64 - ms.leading_zeros())
            .unwrap_or(0)
            .min(63);
        if let Some(count) = counts.get_mut(place) {
            *count += 1;
        }
    }
    let first = counts.iter().position(|count| *count > 0);
    let last = counts.iter().rposition(|count| *count > 0);
    let (Some(first), Some(last)) = (first, last) else {
        return Vec::new();
    };
    let here = counts.iter().enumerate().skip(first).take(last - first + 1);
    here.map(|(place, count)| (1 << place, *count)).collect()
}

/// What each device sent, by purpose.
fn traffic(page: &mut String, report: &Report) {
    heading(
        page,
        "Sent by each device",
        "Bytes by what they were for; hover for figures.",
    );
    let purposes: BTreeSet<&str> = report
        .devices
        .iter()
        .flat_map(|device| device.sent.iter().map(|(what, _)| *what))
        .collect();
    legend(page, purposes.iter().map(|what| (*what).to_owned()));
    let sum = |sent: &[(&'static str, u64)]| sent.iter().map(|(_, bytes)| *bytes).sum::<u64>();
    let most = report.devices.iter().map(|device| sum(&device.sent)).max();
    let most = most.unwrap_or(1).max(1);
    let shown = report.devices.len().min(DEVICES_MAX);
    let high = 22 * shown as u64;
    begin(page, high);
    let room = WIDE - 90;
    for (place, device) in report.devices.iter().take(shown).enumerate() {
        let top = 22 * place as u64;
        let _ = write!(
            page,
            "<text x={} y={} text-anchor=end>{}</text>",
            LEFT - 8,
            top + 15,
            escaped(&device.name)
        );
        let mut before = 0;
        for (number, purpose) in purposes.iter().enumerate() {
            let here = device.sent.iter().filter(|(what, _)| what == purpose);
            let bytes: u64 = here.map(|(_, bytes)| *bytes).sum();
            let (x, right) = (part(before, most, room), part(before + bytes, most, room));
            before += bytes;
            let _ = write!(
                page,
                "<rect x={} y={} width={} height=14 fill=\"{}\"><title>{purpose}: {}</title></rect>",
                LEFT + x,
                top + 4,
                right - x,
                colour(number),
                bytes_told(bytes)
            );
        }
        let _ = write!(
            page,
            "<text x={} y={}>{}</text>",
            LEFT + part(before, most, room) + 6,
            top + 15,
            bytes_told(before)
        );
    }
    page.push_str("</svg>\n");
}

fn traffic_over_time(page: &mut String, record: &Record, end: u64) {
    heading(
        page,
        "Sent over time",
        "Bytes sent by all devices so far, by what they were for.",
    );
    let purposes: BTreeSet<&str> = record
        .samples
        .iter()
        .flat_map(|sample| sample.sent.keys().copied())
        .collect();
    let series: Vec<(String, Vec<(u64, u64)>)> = purposes
        .iter()
        .map(|what| {
            let line = record.samples.iter();
            let line =
                line.map(|sample| (sample.at_ms, sample.sent.get(what).copied().unwrap_or(0)));
            ((*what).to_owned(), line.collect())
        })
        .collect();
    lines(page, &series, end, bytes_told);
}

fn stored(page: &mut String, plan: &Plan, record: &Record, end: u64) {
    heading(page, "Stored by each device", "Bytes of packs and log.");
    let series: Vec<(String, Vec<(u64, u64)>)> = plan
        .devices
        .iter()
        .enumerate()
        .take(COLOURS.len())
        .map(|(place, device)| {
            let line = record.samples.iter();
            let line =
                line.map(|sample| (sample.at_ms, sample.stored.get(place).copied().unwrap_or(0)));
            (device.name.clone(), line.collect())
        })
        .collect();
    if series.len() < plan.devices.len() {
        let _ = writeln!(
            page,
            "<p class=note>The first {} devices.</p>",
            series.len()
        );
    }
    lines(page, &series, end, bytes_told);
}

/// Lines over time.
fn lines(
    page: &mut String,
    series: &[(String, Vec<(u64, u64)>)],
    end: u64,
    told: impl Fn(u64) -> String,
) {
    if series.len() > 1 {
        legend(page, series.iter().map(|(name, _)| name.clone()));
    }
    let values = series.iter().flat_map(|(_, line)| line);
    let most = values.map(|(_, value)| *value).max().unwrap_or(1).max(1);
    begin(page, HIGH);
    scale(page, most, told);
    for (number, (name, line)) in series.iter().enumerate() {
        let mut points = String::new();
        for (at, value) in line {
            let _ = write!(
                points,
                "{},{} ",
                across(*at, end),
                HIGH - part(*value, most, HIGH)
            );
        }
        let _ = write!(
            page,
            "<polyline points=\"{points}\" fill=none stroke=\"{}\" stroke-width=2><title>{}</title></polyline>",
            colour(number),
            escaped(name)
        );
    }
    finish(page, HIGH, end);
}

fn heading(page: &mut String, title: &str, note: &str) {
    let _ = writeln!(page, "<h2>{title}</h2><p class=note>{note}</p>");
}

fn legend(page: &mut String, names: impl Iterator<Item = String>) {
    page.push_str("<p>");
    for (number, name) in names.enumerate() {
        let _ = write!(
            page,
            "<span class=key style=\"background:{}\"></span>{}",
            colour(number),
            escaped(&name)
        );
    }
    page.push_str("</p>\n");
}

fn begin(page: &mut String, high: u64) {
    let _ = write!(
        page,
        "<svg viewBox=\"0 -8 {} {}\" role=img>",
        LEFT + WIDE + 30,
        high + 36
    );
}

/// Lines at quarters of the height, with their values.
fn scale(page: &mut String, most: u64, told: impl Fn(u64) -> String) {
    let steps = most.clamp(1, 4);
    for step in 0..=steps {
        let y = HIGH - HIGH * step / steps;
        let _ = write!(
            page,
            "<line class=grid x1={LEFT} x2={} y1={y} y2={y} /><text x={} y={} text-anchor=end>{}</text>",
            LEFT + WIDE,
            LEFT - 8,
            y + 4,
            told(part(step, steps, most))
        );
    }
}

/// The axis of time, and the end of the plot.
fn finish(page: &mut String, high: u64, end: u64) {
    let _ = write!(
        page,
        "<line class=axis x1={LEFT} x2={} y1={high} y2={high} />",
        LEFT + WIDE
    );
    const ROUND: [u64; 22] = [
        1,
        10,
        100,
        1000,
        5000,
        10_000,
        30_000,
        60_000,
        300_000,
        600_000,
        900_000,
        1_800_000,
        3_600_000,
        7_200_000,
        10_800_000,
        21_600_000,
        43_200_000,
        86_400_000,
        172_800_000,
        432_000_000,
        864_000_000,
        2_592_000_000,
    ];
    let step = ROUND.iter().copied().find(|step| end / step <= 9);
    let step = step.unwrap_or(end / 9).max(1);
    for number in 0..=end / step {
        let at = step * number;
        let x = across(at, end);
        let _ = write!(
            page,
            "<line class=axis x1={x} x2={x} y1={high} y2={} /><text x={x} y={} text-anchor=middle>{}</text>",
            high + 4,
            high + 18,
            short_time(at)
        );
    }
    page.push_str("</svg>\n");
}

/// So much of `wide` as `value` is of `most`.
fn part(value: u64, most: u64, wide: u64) -> u64 {
    let part = u128::from(value) * u128::from(wide) / u128::from(most.max(1));
    u64::try_from(part).unwrap_or(wide)
}

fn across(at: u64, end: u64) -> u64 {
    LEFT + part(at.min(end), end, WIDE)
}

fn colour(number: usize) -> &'static str {
    COLOURS
        .get(number % COLOURS.len())
        .copied()
        .unwrap_or("#000")
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            letter => out.push(letter),
        }
    }
    out
}

fn bytes_told(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut rest = bytes;
    let mut tenth = 0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while rest >= 1024
        && let Some(larger) = units.next()
    {
        tenth = rest % 1024 * 10 / 1024;
        rest /= 1024;
        unit = Some(larger);
    }
    let unit = unit.copied().unwrap_or_default();
    match bytes < 1024 || rest >= 100 {
        true => format!("{rest} {unit}"),
        false => format!("{rest}.{tenth} {unit}"),
    }
}

/// As people tell times.
pub fn time(ms: u64) -> String {
    let (seconds, minutes, hours) = (ms / 1000, ms / 60_000, ms / 3_600_000);
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{seconds}.{} s", ms % 1000 / 100),
        60_000..3_600_000 => format!("{minutes} min {} s", seconds % 60),
        3_600_000..86_400_000 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{} d {} h", hours / 24, hours % 24),
    }
}

/// The same with one unit, for axes.
fn short_time(ms: u64) -> String {
    let tenths = |of: u64| match (ms / of, ms % of * 10 / of) {
        (whole, 0) => whole.to_string(),
        (whole, _) if whole >= 10 => whole.to_string(),
        (whole, tenth) => format!("{whole}.{tenth}"),
    };
    match ms {
        0 => "0".to_owned(),
        1..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{} s", tenths(1000)),
        60_000..3_600_000 => format!("{} min", tenths(60_000)),
        3_600_000..172_800_000 => format!("{} h", tenths(3_600_000)),
        _ => format!("{} d", tenths(86_400_000)),
    }
}

/// In whole units.
fn whole_time(ms: u64) -> String {
    let rounded = |of: u64| (ms + of / 2) / of;
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{} s", rounded(1000)),
        60_000..3_600_000 => format!("{} min", rounded(60_000)),
        3_600_000..172_800_000 => format!("{} h", rounded(3_600_000)),
        _ => format!("{} d", rounded(86_400_000)),
    }
}

/// The distribution of [`buckets`] as a line of text.
pub fn sparkline(sorted_ms: &[u64]) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let bars = buckets(sorted_ms);
    let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let step = |count: u64| {
        let place = usize::try_from(part(count, most, 7)).unwrap_or(0);
        match count {
            0 => ' ',
            _ => STEPS.get(place).copied().unwrap_or(' '),
        }
    };
    bars.into_iter().map(|(_, count)| step(count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario;

    #[test]
    fn times_are_told_as_people_tell_them() {
        for (ms, told, short) in [
            (7, "7 ms", "7 ms"),
            (1999, "1.9 s", "1.9 s"),
            (61_000, "1 min 1 s", "1 min"),
            (3_660_000, "1 h 1 min", "1 h"),
            (90_000_000, "1 d 1 h", "25 h"),
            (30 * 86_400_000, "30 d 0 h", "30 d"),
        ] {
            assert_eq!((&*time(ms), &*short_time(ms)), (told, short));
        }
    }

    #[test]
    fn bytes_are_told_as_people_tell_them() {
        for (bytes, told) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (200 << 20, "200 MiB"),
            (u64::MAX, "16777215 TiB"),
        ] {
            assert_eq!(bytes_told(bytes), told);
        }
    }

    #[test]
    fn delays_are_counted_by_powers_of_two() {
        assert_eq!(buckets(&[]), []);
        assert_eq!(sparkline(&[]), "");
        assert_eq!(buckets(&[0, 0]), [(1, 2)]);
        assert_eq!(buckets(&[2, 3, 9]), [(4, 2), (8, 0), (16, 1)]);
        assert_eq!(sparkline(&[2, 3, 9]), "█ ▄");
        assert_eq!(buckets(&[u64::MAX]), [(1 << 63, 1)]);
    }

    #[test]
    fn a_recorded_run_is_the_same_run_and_its_page_tells_what_happened() {
        let found = scenario::find("crash-storm").unwrap();
        let plain = found.run(3, false);
        let (report, record) = found.run_recorded(3, false);
        assert_eq!(plain.trace_hash, report.trace_hash);
        assert_eq!(plain.events, report.events);
        assert!(
            (200..400).contains(&record.samples.len()),
            "{}",
            record.samples.len()
        );
        let crashes = record
            .marks
            .iter()
            .filter(|(_, _, mark)| *mark == Mark::Crashes);
        assert!(crashes.count() > 2);
        let last = record.samples.last().unwrap();
        assert_eq!(last.promises, report.promises as u64);
        // At the end all devices have read everything.
        assert_eq!(last.copies.last(), last.copies.iter().max());
        assert_eq!(last.spreading, 0);
        // What was acknowledged was never nowhere.
        let nowhere = |sample: &&crate::world::record::Sample| sample.copies.first() > Some(&0);
        assert_eq!(record.samples.iter().find(nowhere), None);
        let page = page("<storm>", 3, found.plan(), &report, &record);
        assert!(page.contains("<h1>&lt;storm&gt;</h1>") && page.contains("all checks held"));
        assert!(page.contains("lost its power at"));
        assert!(page.contains("Hops of lookups") && !report.lookups.is_empty());
        for outside in ["http:", "https:", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        for device in &found.plan().devices {
            assert!(page.contains(&device.name));
        }
    }
}
