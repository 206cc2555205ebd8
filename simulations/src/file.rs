//! Scenarios as people write them: TOML, checked before anything runs.
//!
//! Spec: `protocol/spec/simulation.md`, "Scenarios".

mod units;

use std::collections::BTreeMap;
use std::fmt;

use kith_object::time::Span;
use serde::Deserialize;
use toml::Spanned;

use self::units::{DAY, Hours, Length, MINUTE, Range, Rate, SECOND, Share, Signed, Size};
use crate::plan::{
    DevicePlan, Doing, Fault, Harm, HarmPlan, Path, Plan, Site, Times, When, Work, Wrong,
};

/// Most devices of a run.
const DEVICES_MAX: usize = 10_000;
/// Longest run: ten years.
const LENGTH_MAX: u64 = 10 * 366 * DAY;
/// Longest one-way latency: further than any satellite.
const LATENCY_MAX: u64 = 10_000;
/// Bits a second that a line may carry.
const RATE_MIN: u64 = 1_000;
const RATE_MAX: u64 = 1_000_000_000_000;
/// Packets lost, of a million.
const LOSS_MAX: u64 = 500_000;
/// Things that people do in one run, and bytes that they put.
const DOINGS_MAX: u64 = 5_000_000;
const BYTES_MAX: u64 = 64 << 30;
/// Largest file.
const FILE_MAX: u64 = 256 << 20;
/// Furthest that a clock may be off: ten years.
const SKEW_MAX: u64 = LENGTH_MAX;
/// Bytes: an exabyte.
const CAPACITY_MAX: u64 = 1_000_000_000_000_000_000;

/// What is wrong with a scenario, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}, line {line}: {what}")]
pub struct FileError {
    /// Which scenario.
    pub name: String,
    /// The line, from 1 on.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    about: String,
    duration: Option<Spanned<Length>>,
    #[serde(default = "five_minutes")]
    settle: Spanned<Length>,
    #[serde(default = "five_minutes")]
    read: Spanned<Length>,
    gossip_loss: Option<Spanned<Share>>,
    #[serde(default)]
    between: Way,
    #[serde(default)]
    site: Vec<SiteText>,
    #[serde(default)]
    link: Vec<LinkText>,
    device: Spanned<Vec<DeviceText>>,
    #[serde(default)]
    work: Vec<Spanned<WorkText>>,
    #[serde(default)]
    fault: Vec<Spanned<FaultText>>,
    #[serde(default)]
    harm: Vec<HarmText>,
}

fn five_minutes() -> Spanned<Length> {
    Spanned::new(0..0, Length(5 * MINUTE))
}

/// What lies between.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Way {
    latency: Option<Spanned<Range<Length>>>,
    loss: Option<Spanned<Share>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteText {
    name: Spanned<String>,
    up: Option<Spanned<Rate>>,
    down: Option<Spanned<Rate>>,
    latency: Option<Spanned<Range<Length>>>,
    loss: Option<Spanned<Share>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkText {
    between: Spanned<Vec<Spanned<String>>>,
    latency: Option<Spanned<Range<Length>>>,
    loss: Option<Spanned<Share>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceText {
    name: Spanned<String>,
    count: Option<Spanned<u64>>,
    site: Option<Spanned<String>>,
    #[serde(default)]
    admin: bool,
    skew: Option<Spanned<Signed>>,
    drift: Option<Spanned<i64>>,
    online: Option<Spanned<Hours>>,
    capacity: Option<Spanned<Size>>,
    fails: Option<Spanned<Share>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkText {
    what: Spanned<String>,
    devices: Option<Vec<Spanned<String>>>,
    at: Option<Spanned<Length>>,
    between: Option<Spanned<[Length; 2]>>,
    count: Option<Spanned<u64>>,
    every: Option<Spanned<Length>>,
    size: Option<Spanned<Range<Size>>>,
    files: Option<Spanned<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultText {
    what: Spanned<String>,
    devices: Option<Vec<Spanned<String>>>,
    at: Option<Spanned<Length>>,
    between: Option<Spanned<[Length; 2]>>,
    count: Option<Spanned<u64>>,
    every: Option<Spanned<Length>>,
    lasts: Option<Spanned<Range<Length>>>,
    groups: Option<Vec<Vec<Spanned<String>>>>,
    jump: Option<Spanned<Signed>>,
    age: Option<Spanned<Range<Length>>>,
    loss: Option<Spanned<Share>>,
    chance: Option<Spanned<Share>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HarmText {
    what: Spanned<String>,
    devices: Vec<Spanned<String>>,
    at: Option<Spanned<Length>>,
    between: Option<Spanned<[Length; 2]>>,
    count: Option<Spanned<u64>>,
    every: Option<Spanned<Length>>,
}

/// Reads a scenario.
///
/// # Errors
/// [`FileError`]: the first thing that is wrong.
pub fn read(name: &str, text: &str) -> Result<Plan, FileError> {
    read_as(name, text, None)
}

/// Reads the devices of a mesh, written as those of a scenario; it need not say how long anything happens.
///
/// # Errors
/// [`FileError`]: the first thing that is wrong.
pub fn read_mesh(name: &str, text: &str) -> Result<Plan, FileError> {
    read_as(name, text, Some(DAY))
}

/// Bytes, as people write them.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    Size::try_from(text.to_owned()).map(|size| size.0)
}

fn read_as(name: &str, text: &str, usual_length: Option<u64>) -> Result<Plan, FileError> {
    let at = |place: usize, what: String| FileError {
        name: name.to_owned(),
        line: 1 + text
            .bytes()
            .take(place)
            .filter(|byte| *byte == b'\n')
            .count(),
        what,
    };
    let file: File = toml::from_str(text).map_err(|error| {
        let place = error.span().map_or(0, |span| span.start);
        at(place, error.message().to_owned())
    })?;
    Reading {
        sites: BTreeMap::new(),
        devices: BTreeMap::new(),
        length: usual_length.unwrap_or(0),
    }
    .plan(name, file)
    .map_err(|Bad(place, what)| at(place, what))
}

/// Where in the text, and what.
struct Bad(usize, String);

fn bad<T, R>(spanned: &Spanned<T>, what: impl fmt::Display) -> Result<R, Bad> {
    Err(Bad(spanned.span().start, what.to_string()))
}

struct Reading {
    sites: BTreeMap<String, usize>,
    /// The devices of each name, and of each site under the name of that.
    devices: BTreeMap<String, Vec<usize>>,
    length: u64,
}

impl Reading {
    fn plan(mut self, name: &str, file: File) -> Result<Plan, Bad> {
        match &file.duration {
            Some(duration) => self.length = within(duration, "duration", SECOND, LENGTH_MAX)?,
            None if self.length == 0 => {
                return Err(Bad(0, "say how long things happen: `duration`".to_owned()));
            }
            None => {}
        }
        let path = way(&file.between.latency, &file.between.loss, (1, 40))?;
        let gossip_lost = match &file.gossip_loss {
            Some(loss) if loss.get_ref().0 > LOSS_MAX => {
                return bad(loss, "nothing spreads where more than half is lost");
            }
            loss => loss.as_ref().map_or(0, |loss| loss.get_ref().0),
        };
        let mut sites = Vec::new();
        for site in &file.site {
            let known = self.sites.insert(site.name.get_ref().clone(), sites.len());
            if known.is_some() {
                let what = format!("there are two sites `{}`", site.name.get_ref());
                return bad(&site.name, what);
            }
            sites.push(Site {
                name: site.name.get_ref().clone(),
                up: rate(site.up.as_ref())?,
                down: rate(site.down.as_ref())?,
                inner: way(&site.latency, &site.loss, (1, 3))?,
            });
        }
        let mut paths = BTreeMap::new();
        for link in &file.link {
            let [one, other] = link.between.get_ref().as_slice() else {
                return bad(&link.between, "a link is between two sites");
            };
            let (a, b) = (self.site(one)?, self.site(other)?);
            if a == b {
                return bad(other, "a link is between two sites that are not the same");
            }
            let path = way(&link.latency, &link.loss, (1, 40))?;
            if paths.insert((a.min(b), a.max(b)), path).is_some() {
                return bad(one, "there are two links between these sites");
            }
        }
        let devices = self.devices(&file.device, &mut sites)?;
        let mut works = Vec::new();
        let (mut doings, mut bytes) = (0_u64, 0_u64);
        for work in &file.work {
            let read = self.work(work.get_ref())?;
            let times = self.how_often(&read.when);
            doings = doings.saturating_add(times.saturating_mul(read.files.max(1)));
            let each = read.files.max(1).saturating_mul(read.size.1);
            bytes = bytes.saturating_add(times.saturating_mul(each));
            if doings > DOINGS_MAX {
                let what = format!("with this, people do more than {DOINGS_MAX} things");
                return bad(work, what);
            }
            if bytes > BYTES_MAX {
                let what = format!("with this, people put more than {BYTES_MAX} bytes");
                return bad(work, what);
            }
            works.push(read);
        }
        let mut faults = Vec::new();
        for fault in &file.fault {
            let read = self.fault(fault.get_ref())?;
            if self.how_often(&read.when) > DOINGS_MAX {
                return bad(fault, "this happens more often than any run lasts");
            }
            let admin = |device: &usize| devices.get(*device).is_none_or(|device| device.admin);
            if read.wrong == Wrong::Removed && read.devices.iter().any(admin) {
                return bad(
                    &fault.get_ref().what,
                    "only the words remove an admin: say `devices`, and none of them admins",
                );
            }
            faults.push(read);
        }
        let mut harms = Vec::new();
        for harm in &file.harm {
            harms.push(self.harm(harm, &devices)?);
        }
        let plan = Plan {
            name: name.to_owned(),
            about: file.about,
            length: Span(self.length),
            settle: Span(within(&file.settle, "settle", SECOND, LENGTH_MAX)?),
            read: Span(within(&file.read, "read", SECOND, LENGTH_MAX)?),
            sites,
            paths: paths.into_iter().collect(),
            path,
            gossip_lost,
            devices,
            works,
            faults,
            harms,
            spread_entries: true,
            anti_entropy: true,
        };
        let staying = plan.devices.len() - plan.hostile().union(&plan.removed()).count();
        let removal = file.fault.iter().map(|fault| &fault.get_ref().what);
        let removal = removal.filter(|what| what.get_ref() == "removed");
        match file
            .harm
            .iter()
            .map(|harm| &harm.what)
            .chain(removal)
            .next()
        {
            Some(place) if staying < 2 => bad(
                place,
                "fewer than two devices are left that mean well and are not removed",
            ),
            _ => Ok(plan),
        }
    }

    fn harm(&self, text: &HarmText, devices: &[DevicePlan]) -> Result<HarmPlan, Bad> {
        let Some(harm) = Harm::named(text.what.get_ref()) else {
            let what = format!(
                "no device does `{}` to others, but {}",
                text.what.get_ref(),
                Harm::names()
            );
            return bad(&text.what, what);
        };
        let named = self.named(Some(&text.devices))?;
        if named
            .iter()
            .any(|device| devices.get(*device).is_none_or(|device| device.admin))
        {
            let place = text.devices.first().unwrap_or(&text.what);
            return bad(
                place,
                "an admin that means harm may remove everybody: let it be a member",
            );
        }
        Ok(HarmPlan {
            harm,
            devices: named,
            when: self.when(
                &text.what,
                text.at.as_ref(),
                text.between.as_ref(),
                text.count.as_ref(),
                text.every.as_ref(),
            )?,
        })
    }

    fn site(&self, name: &Spanned<String>) -> Result<usize, Bad> {
        match self.sites.get(name.get_ref()) {
            Some(site) => Ok(*site),
            None => bad(name, format!("there is no site `{}`", name.get_ref())),
        }
    }

    fn devices(
        &mut self,
        all: &Spanned<Vec<DeviceText>>,
        sites: &mut Vec<Site>,
    ) -> Result<Vec<DevicePlan>, Bad> {
        if sites.is_empty() {
            // Somewhere, all of them.
            self.sites.insert("home".to_owned(), 0);
            sites.push(Site {
                name: "home".to_owned(),
                up: None,
                down: None,
                inner: Path {
                    latency: (1, 40),
                    loss: 0,
                },
            });
        }
        let mut devices = Vec::new();
        for text in all.get_ref() {
            let name = text.name.get_ref();
            let site = match &text.site {
                Some(site) => self.site(site)?,
                None if sites.len() == 1 => 0,
                None => return bad(&text.name, "there are several sites: say `site`"),
            };
            if self.devices.contains_key(name) || self.sites.contains_key(name) {
                let what = format!("something else is called `{name}`");
                return bad(&text.name, what);
            }
            let count = match &text.count {
                Some(count) => number(count, "count", 1, DEVICES_MAX as u64)?,
                None => 1,
            };
            let skew = match &text.skew {
                Some(skew) if skew.get_ref().0.unsigned_abs() > SKEW_MAX => {
                    return bad(skew, "`skew` is more than ten years");
                }
                skew => skew.as_ref().map_or(0, |skew| skew.get_ref().0),
            };
            let drift = match &text.drift {
                Some(drift) if drift.get_ref().unsigned_abs() > 10_000 => {
                    return bad(
                        drift,
                        "`drift` is in parts of a million, and more than 10,000",
                    );
                }
                drift => drift.as_ref().map_or(0, |drift| *drift.get_ref()),
            };
            let capacity = match &text.capacity {
                Some(size) if size.get_ref().0 > CAPACITY_MAX => {
                    return bad(size, "`capacity` is more than any device holds, 1000000TB");
                }
                size => size.as_ref().map(|size| size.get_ref().0),
            };
            let fails = match &text.fails {
                Some(share) if share.get_ref().0 > 990_000 => {
                    return bad(
                        share,
                        "`fails` is the share of such devices lost in a year, 99% at most",
                    );
                }
                share => share.as_ref().map(|share| share.get_ref().0),
            };
            for n in 1..=count {
                let own = if text.count.is_some() {
                    format!("{name}-{n}")
                } else {
                    name.clone()
                };
                for called in [
                    name,
                    &own,
                    &sites
                        .get(site)
                        .map_or(String::new(), |site| site.name.clone()),
                ] {
                    let group = self.devices.entry(called.clone()).or_default();
                    if group.last() != Some(&devices.len()) {
                        group.push(devices.len());
                    }
                }
                devices.push(DevicePlan {
                    name: own,
                    site,
                    // One of several is.
                    admin: text.admin,
                    skew,
                    drift,
                    online: text.online.as_ref().map(|hours| {
                        let Hours(from, to) = *hours.get_ref();
                        (from, to)
                    }),
                    capacity,
                    fails,
                });
            }
            if devices.len() > DEVICES_MAX {
                let what = format!("these are more than {DEVICES_MAX} devices");
                return bad(&text.name, what);
            }
        }
        if !devices.iter().any(|device| device.admin) {
            return bad(all, "no device is an admin");
        }
        // Who founds the mesh comes first.
        if !devices.first().is_some_and(|device| device.admin) {
            return bad(all, "the first device is no admin, and it founds the mesh");
        }
        Ok(devices)
    }

    fn named(&self, names: Option<&Vec<Spanned<String>>>) -> Result<Vec<usize>, Bad> {
        let Some(names) = names else {
            let mut all: Vec<usize> = self.devices.values().flatten().copied().collect();
            all.sort_unstable();
            all.dedup();
            return Ok(all);
        };
        let mut devices = Vec::new();
        for name in names {
            match self.devices.get(name.get_ref()) {
                Some(found) => devices.extend(found),
                None => {
                    let what = format!("there is no device or site `{}`", name.get_ref());
                    return bad(name, what);
                }
            }
        }
        devices.sort_unstable();
        devices.dedup();
        Ok(devices)
    }

    fn when(
        &self,
        what: &Spanned<String>,
        at: Option<&Spanned<Length>>,
        between: Option<&Spanned<[Length; 2]>>,
        count: Option<&Spanned<u64>>,
        every: Option<&Spanned<Length>>,
    ) -> Result<When, Bad> {
        let (from, to) = match (at, between) {
            (Some(_), Some(between)) => {
                return bad(between, "`at` and `between` exclude each other");
            }
            (Some(at), None) => {
                let at = within(at, "at", 0, self.length)?;
                (at, at)
            }
            (None, Some(between)) => {
                let [from, to] = *between.get_ref();
                if from.0 > to.0 || to.0 > self.length {
                    return bad(
                        between,
                        "`between` is two times of the run, the earlier first",
                    );
                }
                (from.0, to.0)
            }
            (None, None) => (0, self.length),
        };
        let by_chance = what.get_ref() == "unlucky";
        let times = match (count, every) {
            (Some(_), Some(every)) => return bad(every, "`count` and `every` exclude each other"),
            (Some(count), None) => Times::Count(number(count, "count", 1, DOINGS_MAX)?),
            (None, Some(every)) => Times::Every(Span(within(every, "every", 1, LENGTH_MAX)?)),
            (None, None) if at.is_some() || between.is_some() || by_chance => Times::Count(1),
            (None, None) => return bad(what, "say when: `at`, `between`, `count` or `every`"),
        };
        Ok(When {
            from: Span(from),
            to: Span(to),
            times,
        })
    }

    /// About how often something happens.
    fn how_often(&self, when: &When) -> u64 {
        match when.times {
            Times::Count(count) => count,
            Times::Every(each) => (when.to.0 - when.from.0) / each.0.max(1) + 1,
        }
    }

    fn work(&self, text: &WorkText) -> Result<Work, Bad> {
        let (doing, size, files) = match text.what.get_ref().as_str() {
            "edits" => (Doing::Edits, (0, 4000), 0),
            "photos" => (Doing::Photos, (500_000, 3_000_000), 50),
            "source" => (Doing::Source, (200, 20_000), 300),
            "lifelog" => (Doing::Lifelog, (500, 4000), 0),
            "reads" => (Doing::Reads, (0, 0), 0),
            other => {
                let what = format!(
                    "people do not do `{other}`, but edits, photos, source, lifelog and reads"
                );
                return bad(&text.what, what);
            }
        };
        let size = match &text.size {
            Some(size) if doing == Doing::Reads => return bad(size, "`size` is for what is put"),
            Some(size) => {
                let Range(least, most) = *size.get_ref();
                if least.0 > most.0 || most.0 > FILE_MAX {
                    return bad(
                        size,
                        format!("`size` is one size or two, the smaller first, up to {FILE_MAX}B"),
                    );
                }
                (least.0, most.0)
            }
            None => size,
        };
        let files = match &text.files {
            Some(given) if files == 0 => {
                return bad(given, "`files` is for photos and source");
            }
            Some(given) => number(given, "files", 1, DOINGS_MAX)?,
            None => files,
        };
        Ok(Work {
            doing,
            devices: self.named(text.devices.as_ref())?,
            when: self.when(
                &text.what,
                text.at.as_ref(),
                text.between.as_ref(),
                text.count.as_ref(),
                text.every.as_ref(),
            )?,
            size,
            files,
        })
    }

    fn fault(&self, text: &FaultText) -> Result<Fault, Bad> {
        let what = text.what.get_ref().as_str();
        let wrong = match (what, &text.jump) {
            ("partition", None) => {
                let mut groups = Vec::new();
                for group in text.groups.iter().flatten() {
                    groups.push(self.named(Some(group))?);
                }
                Wrong::Partition(groups)
            }
            ("crash", None) => Wrong::Crash,
            ("unlucky", None) => match &text.chance {
                Some(chance) if chance.get_ref().0 <= 1_000_000 => {
                    Wrong::Unlucky(chance.get_ref().0)
                }
                Some(chance) => return bad(chance, "`chance` is more than 100 %"),
                None => return bad(&text.what, "say how often: `chance`"),
            },
            ("away", None) => Wrong::Away,
            ("removed", None) => Wrong::Removed,
            ("rot", None) => Wrong::Rot,
            ("paused", None) => Wrong::Paused,
            ("moved", None) => Wrong::Moved,
            ("storm", None) => match &text.loss {
                Some(loss) if loss.get_ref().0 > LOSS_MAX => {
                    return bad(loss, "nothing gets through where more than half is lost");
                }
                Some(loss) => Wrong::Storm(loss.get_ref().0),
                None => return bad(&text.what, "say how many packets are lost: `loss`"),
            },
            ("restored", None) => match &text.age {
                Some(age) => {
                    let Range(least, most) = *age.get_ref();
                    if least.0 > most.0 || most.0 > self.length {
                        return bad(
                            age,
                            "`age` is one length of time or two, the shorter first, of the run",
                        );
                    }
                    Wrong::Restored((Span(least.0), Span(most.0)))
                }
                None => return bad(&text.what, "say how old the backup is: `age`"),
            },
            ("clock", Some(jump)) if jump.get_ref().0.unsigned_abs() <= SKEW_MAX => {
                Wrong::Clock(jump.get_ref().0)
            }
            ("clock", Some(jump)) => return bad(jump, "`jump` is more than ten years"),
            ("clock", None) => return bad(&text.what, "say how far the clock jumps: `jump`"),
            (
                "partition" | "crash" | "unlucky" | "away" | "removed" | "rot" | "paused"
                | "restored" | "moved" | "storm",
                Some(jump),
            ) => {
                return bad(jump, "`jump` is for clock");
            }
            _ => {
                let what = format!(
                    "`{what}` does not go wrong, but partition, crash, unlucky, away, clock, removed, rot, paused, restored, moved and storm"
                );
                return bad(&text.what, what);
            }
        };
        if let (Some(chance), false) = (&text.chance, matches!(wrong, Wrong::Unlucky(_))) {
            return bad(chance, "`chance` is for unlucky");
        }
        if matches!(wrong, Wrong::Unlucky(_)) && (text.count.is_some() || text.every.is_some()) {
            return bad(
                &text.what,
                "`unlucky` has no `count` and no `every`, but `chance`",
            );
        }
        if let (Some(age), false) = (&text.age, matches!(wrong, Wrong::Restored(_))) {
            return bad(age, "`age` is for restored");
        }
        if let (Some(loss), false) = (&text.loss, matches!(wrong, Wrong::Storm(_))) {
            return bad(loss, "`loss` is for storm");
        }
        if let (Some(devices), Wrong::Storm(_)) = (&text.devices, &wrong) {
            let place = devices.first().unwrap_or(&text.what);
            return bad(place, "a storm is everywhere: leave `devices` out");
        }
        if let (Some(groups), false) = (&text.groups, matches!(wrong, Wrong::Partition(_))) {
            let place = groups.iter().flatten().next().unwrap_or(&text.what);
            return bad(place, "`groups` is for partition");
        }
        let lasts = match (&text.lasts, &wrong) {
            (Some(lasts), wrong) if !wrong.ends() => {
                return bad(lasts, "this does not end: leave `lasts` out");
            }
            (None, wrong) if !wrong.ends() => (0, 0),
            (Some(lasts), _) => {
                let Range(least, most) = *lasts.get_ref();
                if least.0 > most.0 || most.0 > LENGTH_MAX {
                    return bad(
                        lasts,
                        "`lasts` is one length of time or two, the shorter first",
                    );
                }
                (least.0, most.0)
            }
            (None, _) => return bad(&text.what, "say how long: `lasts`"),
        };
        Ok(Fault {
            wrong,
            devices: self.named(text.devices.as_ref())?,
            when: self.when(
                &text.what,
                text.at.as_ref(),
                text.between.as_ref(),
                text.count.as_ref(),
                text.every.as_ref(),
            )?,
            lasts: (Span(lasts.0), Span(lasts.1)),
        })
    }
}

fn within(length: &Spanned<Length>, key: &str, least: u64, most: u64) -> Result<u64, Bad> {
    let given = length.get_ref().0;
    if (least..=most).contains(&given) {
        return Ok(given);
    }
    bad(
        length,
        format!("`{key}` is {given} ms, and may be {least} to {most}"),
    )
}

fn number(given: &Spanned<u64>, key: &str, least: u64, most: u64) -> Result<u64, Bad> {
    if (least..=most).contains(given.get_ref()) {
        return Ok(*given.get_ref());
    }
    let what = format!(
        "`{key}` is {}, and may be {least} to {most}",
        given.get_ref()
    );
    bad(given, what)
}

fn rate(given: Option<&Spanned<Rate>>) -> Result<Option<u64>, Bad> {
    match given {
        Some(rate) if !(RATE_MIN..=RATE_MAX).contains(&rate.get_ref().0) => bad(
            rate,
            format!("a line carries {RATE_MIN} to {RATE_MAX} bits a second"),
        ),
        given => Ok(given.map(|rate| rate.get_ref().0)),
    }
}

fn way(
    latency: &Option<Spanned<Range<Length>>>,
    loss: &Option<Spanned<Share>>,
    usual: (u64, u64),
) -> Result<Path, Bad> {
    let latency = match latency {
        Some(latency) => {
            let Range(least, most) = *latency.get_ref();
            if least.0 > most.0 || most.0 > LATENCY_MAX {
                return bad(
                    latency,
                    format!(
                        "`latency` is one time or two, the shorter first, up to {LATENCY_MAX}ms"
                    ),
                );
            }
            (least.0, most.0)
        }
        None => usual,
    };
    let loss = match loss {
        Some(loss) if loss.get_ref().0 > LOSS_MAX => {
            return bad(loss, "nothing gets through where more than half is lost");
        }
        loss => loss.as_ref().map_or(0, |loss| loss.get_ref().0),
    };
    Ok(Path { latency, loss })
}

#[cfg(test)]
mod tests {
    use super::units::HOUR;
    use super::*;

    const GOOD: &str = "about = 'three'
duration = '2h'
[[site]]
name = 'house'
up = '20Mbit/s'
down = '100Mbit/s'
[[site]]
name = 'cloud'
[[link]]
between = ['house', 'cloud']
latency = '15ms..40ms'
loss = '0.1%'
[[device]]
name = 'desk'
site = 'house'
admin = true
[[device]]
name = 'laptop'
site = 'house'
count = 2
online = '08:00-23:30'
skew = '-3m'
[[device]]
name = 'box'
site = 'cloud'
[[work]]
what = 'lifelog'
devices = ['laptop']
every = '1m'
[[work]]
what = 'photos'
devices = ['laptop-2']
at = '1.5h'
size = '1KB..2KB'
[[fault]]
what = 'partition'
groups = [['house'], ['box']]
at = '10m'
lasts = '5m..6m'
[[fault]]
what = 'clock'
jump = '+2h'
between = ['1m', '2m']
";

    #[test]
    fn what_is_written_is_what_is_run() {
        let plan = read("x", GOOD).unwrap();
        assert_eq!(plan.length, Span(2 * HOUR));
        assert_eq!(plan.settle, Span(5 * MINUTE));
        let names: Vec<&str> = plan.devices.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["desk", "laptop-1", "laptop-2", "box"]);
        let laptop = &plan.devices[1];
        assert_eq!(
            (laptop.online, laptop.skew, laptop.admin),
            (Some((480, 1410)), -180_000, false)
        );
        assert_eq!(plan.sites[0].up, Some(20_000_000));
        let path = Path {
            latency: (15, 40),
            loss: 1000,
        };
        assert_eq!(plan.paths, [((0, 1), path)]);
        assert_eq!(plan.works[0].devices, [1, 2]);
        assert_eq!(plan.works[0].when.times, Times::Every(Span(MINUTE)));
        assert_eq!(plan.works[1].devices, [2]);
        assert_eq!(plan.works[1].when.from, Span(90 * MINUTE));
        assert_eq!(plan.works[1].size, (1000, 2000));
        let groups = vec![vec![0, 1, 2], vec![3]];
        assert_eq!(plan.faults[0].wrong, Wrong::Partition(groups));
        assert_eq!(plan.faults[0].lasts, (Span(300_000), Span(360_000)));
        assert_eq!(plan.faults[1].wrong, Wrong::Clock(7_200_000));
    }

    #[test]
    fn what_is_wrong_is_named_with_line_and_key() {
        for (from, to, line, says) in [
            (
                "duration = '2h'",
                "duration = '2h'\nspeed = 3",
                3,
                "unknown field `speed`",
            ),
            (
                "up = '20Mbit/s'",
                "uplink = '20Mbit/s'",
                5,
                "unknown field `uplink`",
            ),
            ("'2h'", "'2 hours'", 2, "no length of time"),
            ("'2h'", "'-2h'", 2, "no length of time"),
            ("'2h'", "'2000000d'", 2, "`duration`"),
            ("'20Mbit/s'", "'20000000Mbit/s'", 5, "bits a second"),
            ("'20Mbit/s'", "'20'", 5, "no rate"),
            ("'15ms..40ms'", "'15s..40s'", 11, "`latency`"),
            ("'15ms..40ms'", "'40ms..15ms'", 11, "the shorter first"),
            ("'0.1%'", "'70%'", 12, "more than half"),
            (
                "['house', 'cloud']",
                "['house', 'house']",
                10,
                "not the same",
            ),
            (
                "['house', 'cloud']",
                "['house', 'moon']",
                10,
                "no site `moon`",
            ),
            ("count = 2", "count = 2000000", 20, "`count`"),
            ("site = 'cloud'", "site = 'moon'", 25, "no site `moon`"),
            ("admin = true", "admin = false", 13, "admin"),
            ("'08:00-23:30'", "'23:30-08:00'", 21, "time of day"),
            (
                "devices = ['laptop']",
                "devices = ['phone']",
                28,
                "no device or site `phone`",
            ),
            ("every = '1m'", "every = '1ms'", 26, "more than"),
            ("size = '1KB..2KB'", "size = '1GB'", 34, "`size`"),
            ("what = 'photos'", "what = 'sleep'", 31, "do not do `sleep`"),
            ("at = '1.5h'", "at = '3h'", 33, "`at`"),
            ("lasts = '5m..6m'", "", 36, "`lasts`"),
            ("jump = '+2h'", "", 41, "`jump`"),
            ("what = 'clock'", "what = 'flood'", 41, "does not go wrong"),
            (
                "between = ['1m', '2m']",
                "between = ['1m', '2m']\n[[harm]]\nwhat = 'sulk'\ndevices = ['box']\nat = '1m'",
                45,
                "no device does `sulk`",
            ),
            (
                "between = ['1m', '2m']",
                "between = ['1m', '2m']\n[[harm]]\nwhat = 'forge'\ndevices = ['desk']\nat = '1m'",
                46,
                "let it be a member",
            ),
            (
                "between = ['1m', '2m']",
                "between = ['1m', '2m']\n[[harm]]\nwhat = 'forge'\ndevices = ['box', 'laptop']\nat = '1m'",
                45,
                "fewer than two devices",
            ),
            (
                "between = ['1m', '2m']",
                "between = ['1m', '2m']\n[[harm]]\nwhat = 'forge'\ndevices = ['box']",
                45,
                "say when",
            ),
            (
                "what = 'clock'\njump = '+2h'",
                "what = 'removed'",
                41,
                "only the words",
            ),
            ("duration = '2h'", "", 1, "`duration`"),
            (
                "site = 'cloud'\n",
                "site = 'cloud'\ncapacity = '2000000TB'\n",
                26,
                "`capacity`",
            ),
            (
                "site = 'cloud'\n",
                "site = 'cloud'\nfails = '100%'\n",
                26,
                "`fails`",
            ),
            (
                "what = 'clock'\njump = '+2h'",
                "what = 'rot'\nage = '1m'",
                42,
                "`age` is for restored",
            ),
            (
                "what = 'clock'\njump = '+2h'",
                "what = 'storm'\nlasts = '1m'",
                41,
                "`loss`",
            ),
            (
                "what = 'clock'\njump = '+2h'",
                "what = 'storm'\nloss = '60%'\nlasts = '1m'",
                42,
                "more than half",
            ),
            (
                "what = 'clock'\njump = '+2h'",
                "what = 'moved'\nlasts = '1m'",
                42,
                "does not end",
            ),
            (
                "what = 'clock'\njump = '+2h'",
                "what = 'restored'",
                41,
                "how old the backup is",
            ),
            (
                "what = 'clock'\njump = '+2h'",
                "what = 'rot'\nlasts = '1m'",
                42,
                "does not end",
            ),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert!(text != GOOD, "{from}");
            let error = read("x", &text).unwrap_err();
            assert!(error.what.contains(says), "{to}: {error}");
            assert_eq!(error.line, line, "{to}: {error}");
        }
        // For planning it need not say how long.
        let text = GOOD.replacen("duration = '2h'", "", 1);
        let planned = read_mesh("x", &text).unwrap();
        assert_eq!(planned.length, Span(24 * HOUR));
        // Cut anywhere it is a scenario or an error, and nothing worse.
        for end in 0..GOOD.len() {
            let _ = read("x", &GOOD[..end]);
        }
    }
}
