//! Scenarios as people write them: TOML, checked before anything runs.
//!
//! Spec: `protocol/spec/simulation.md`, "Scenarios".

mod faults;
mod lines;
mod regions;
mod text;
mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kith_core::arrangement::GRACE;
use kith_object::time::Span;
use toml::Spanned;

use self::lines::{FAR, loss, way};
use self::text::{DeviceText, File, HarmText, TimesText, WorkText};
use self::units::{DAY, Hours, Length, MINUTE, Range, SECOND, Size};
use crate::plan::{
    Access, DevicePlan, Doing, Harm, HarmPlan, Nat, Path, Plan, Site, Times, When, Work, Wrong,
};

/// Most devices of a run.
const DEVICES_MAX: usize = 10_000;
/// Longest run: ten years.
const LENGTH_MAX: u64 = 10 * 366 * DAY;
/// A device is not given up sooner.
const GRACE_MIN: u64 = MINUTE;
/// Things that people do in one run, and bytes that they put.
const DOINGS_MAX: u64 = 5_000_000;
const BYTES_MAX: u64 = 64 << 30;
/// Largest file.
const FILE_MAX: u64 = 256 << 20;
/// Furthest that a clock may be off: ten years.
const SKEW_MAX: u64 = LENGTH_MAX;
/// What a processor takes for an input, and a disk for an access.
const ACCESS_MAX: u64 = 10 * SECOND;
/// Reading from a disk, and writing to the log with its fsync, milliseconds.
const READS: (u64, u64) = (0, 4);
const SYNCS: (u64, u64) = (1, 12);
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
        let path = way(&file.between.way(), FAR)?;
        let gossip_lost = loss(file.gossip_loss.as_ref())?;
        let mut sites = self.sites(&file)?;
        let paths = self.links(&file)?;
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
            about: file.about.clone(),
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
        self.all_meet(&file, &plan)?;
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

    /// Those behind routers meet, because somebody is reached from everywhere and relays.
    fn all_meet(&self, file: &File, plan: &Plan) -> Result<(), Bad> {
        let nat = |device: &DevicePlan| plan.sites.get(device.site).map(|site| site.nat);
        let places: BTreeSet<usize> = plan.devices.iter().map(|device| device.site).collect();
        let hidden = |device: &DevicePlan| nat(device) != Some(Nat::Open);
        let absent: BTreeSet<usize> = plan.hostile().union(&plan.removed()).copied().collect();
        let mut others = plan.devices.iter().enumerate();
        let relays = others
            .any(|(place, device)| !hidden(device) && device.relay && !absent.contains(&place));
        if places.len() < 2 || relays || !plan.devices.iter().any(hidden) {
            return Ok(());
        }
        let what = "no device is reached from everywhere and relays, so those behind routers at different sites never meet: let one that means well and stays be at a site with `nat = 'open'`";
        match file.site.iter().find_map(|site| site.nat.as_ref()) {
            Some(place) => bad(place, what),
            None => bad(&file.device, what),
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
            when: self.when(&text.times())?,
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
                access: Access::default(),
                inner: Path::new(FAR),
                nat: Nat::default(),
                hours: Vec::new(),
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
            let gives = match &text.gives {
                Some(size) if size.get_ref().0 > CAPACITY_MAX => {
                    return bad(size, "`gives` is more than any device holds, 1000000TB");
                }
                size => size.as_ref().map_or(0, |size| size.get_ref().0),
            };
            let grace = match &text.grace {
                Some(grace) => Span(within(grace, "grace", GRACE_MIN, LENGTH_MAX)?),
                None => GRACE,
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
            let cpu = match &text.cpu {
                Some(cpu) => within(cpu, "cpu", 0, ACCESS_MAX)?,
                None => 0,
            };
            let reads = access(text.reads.as_ref(), "reads", READS)?;
            let syncs = access(text.syncs.as_ref(), "syncs", SYNCS)?;
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
                    relay: text.relay.unwrap_or(true),
                    cpu,
                    reads,
                    syncs,
                    capacity,
                    gives,
                    grace,
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

    fn when(&self, text: &TimesText<'_>) -> Result<When, Bad> {
        let TimesText {
            what,
            at,
            between,
            count,
            every,
        } = *text;
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
            when: self.when(&text.times())?,
            size,
            files,
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

fn access(
    given: Option<&Spanned<Range<Length>>>,
    key: &str,
    usual: (u64, u64),
) -> Result<(u64, u64), Bad> {
    let Some(given) = given else {
        return Ok(usual);
    };
    let Range(least, most) = *given.get_ref();
    if least.0 > most.0 || most.0 > ACCESS_MAX {
        let what = format!("`{key}` is one time or two, the shorter first, up to {ACCESS_MAX}ms");
        return bad(given, what);
    }
    Ok((least.0, most.0))
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

#[cfg(test)]
mod tests;
